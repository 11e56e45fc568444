"""Augmented logs: a whole log with synthetic items, for training any other system on."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffuserec.data import SequenceDataset, leave_one_out, load_dataset, offsets_of
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.base import Runtime
from diffuserec.models.methods import find_augmenter
from diffuserec.models.settings import use_of


def augment_log(
    data: Path | str,
    method: str,
    settings: Mapping[str, Any],
    runtime: Runtime,
    max_history: int | None = None,
) -> SequenceDataset:
    """The whole log with synthetic items.

    The augmenter learns from the training part and sees only the training part when it
    generates: the validation and test items are appended afterwards, untouched.

    Args and errors are those of :func:`fitted_to_log`.
    """
    augmenter = fitted_to_log(data, method, settings, runtime, max_history)
    return augmented_part(augmenter, load_dataset(data), runtime.seed)


def fitted_to_log(
    data: Path | str,
    method: str,
    settings: Mapping[str, Any],
    runtime: Runtime,
    max_history: int | None = None,
) -> Augmenter:
    """An augmenter, fitted to the training part of a log.

    Args:
        max_history: the augmenter's setting of that name, if it has one: only users with at most
            so many training items are given any.

    Raises:
        ConfigError: no such augmenter or setting, or one of the use of items in training.
        DataError: no prepared dataset, or names of users that are taken.
    """
    chosen = find_augmenter(method)
    if max_history is not None:
        if "max_history" not in chosen.Config.model_fields:
            raise ConfigError(f"{method} changes histories of any length: leave out --max-history")
        settings = {**settings, "max_history": max_history}
    augmenter = chosen(**settings)
    used = [name for name in use_of(augmenter.config) if name != "use_threshold"]
    if used:
        raise ConfigError(
            f"{used[0]} says how a recommender is trained or asked, which a log can't hold: leave "
            "it out"
        )
    split = leave_one_out(load_dataset(data))
    return augmenter.fit(split.train, split.valid, runtime)


def augmented_part(augmenter: Augmenter, dataset: SequenceDataset, seed: int) -> SequenceDataset:
    """Whole sequences with the synthetic items of a fitted augmenter."""
    part = leave_one_out(dataset).train
    augmented = augmenter.augment(part, seed)
    if augmented.copies is not None:
        return copies_as_users(dataset, augmented.compact())
    return append_rest(augmented, dataset, part)


def copies_as_users(whole: SequenceDataset, augmented: SequenceDataset) -> SequenceDataset:
    """The whole sequences, and after them each augmented copy as a synthetic user of its own.

    Copy k of user ``B12`` is user ``B12#k``, counted from 1, the first that training uses.

    Args:
        whole: the full sequences.
        augmented: the training part of the same users, compact, with copies.

    Raises:
        DataError: the log has a user of such a name.
    """
    copies = augmented.copies
    assert copies is not None
    n_copies = len(copies)
    lengths = np.concatenate([whole.lengths, np.tile(augmented.lengths, n_copies)])
    known = whole.catalog.user_ids
    names = pl.Series(np.asarray(whole.users)) if known is None else known.gather(whole.users)
    names = names.cast(pl.String)
    made = [names + f"#{number + 1}" for number in range(n_copies)]
    user_ids = pl.concat([names, *made]).rename("user_id")
    if user_ids.n_unique() < len(user_ids):
        raise DataError("a user of the log has the name of a copy, like B12#1: rename it")
    catalog = replace(whole.catalog, n_users=len(user_ids), user_ids=user_ids)
    times = None
    if whole.timestamps is not None and augmented.timestamps is not None:
        times = np.concatenate([whole.timestamps, np.tile(augmented.timestamps, n_copies)])
    items = np.concatenate([whole.items, copies.items.reshape(-1)])
    synthetic = np.arange(len(items)) >= len(whole.items)
    return SequenceDataset.from_offsets(
        items, offsets_of(lengths), catalog, synthetic=synthetic, timestamps=times
    )


def append_rest(
    augmented: SequenceDataset, whole: SequenceDataset, part: SequenceDataset
) -> SequenceDataset:
    """Augmented beginnings of sequences, followed by what the whole sequences have after them.

    Args:
        augmented: `part`, augmented; new users may follow after those of `part`.
        whole: the full sequences.
        part: the first items of each.
    """
    rest = whole.view(whole.starts + part.lengths, whole.ends)
    owners = [np.repeat(np.arange(len(d)), d.lengths) for d in (augmented, rest)]
    order = np.argsort(np.concatenate(owners), kind="stable")
    lengths = augmented.lengths.copy()
    lengths[: len(rest)] += rest.lengths
    times = None
    if augmented.timestamps is not None and rest.timestamps is not None:
        times = np.concatenate([augmented.timestamps, rest.timestamps])[order]
    context = augmented.context_only
    if context is not None:
        context = np.concatenate([context, np.zeros(len(rest.items), dtype=bool)])[order]
    return augmented.with_items(
        np.concatenate([augmented.items, rest.items])[order],
        lengths,
        np.concatenate([augmented.synthetic, rest.synthetic])[order],
        times,
        context,
    )
