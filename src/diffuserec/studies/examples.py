"""Examples of a run for its report: a few users, by name.

Histories with generated items, sequences with augmented copies, lists of a generative recommender,
and views of a contrastive one. Items have the names that the catalog has for them, else their raw
ids; :func:`inspection`, which looks users up in the log, has raw ids alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from diffuserec.data import SequenceDataset, trainable_sequences
from diffuserec.data.ids import IdIndex
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.methods import find_recommender, method_names
from diffuserec.models.recommender import Contrastive
from diffuserec.models.retrieval import seen_items, top_k
from diffuserec.reports.html import AugmentedHistory, DrawnLists, SequenceWithCopies
from diffuserec.reports.inspection import (
    Inspection,
    Names,
    describe_sequence,
    inspect_views,
    sample_sequences,
    view_metrics,
)
from diffuserec.studies.run_directory import RunDirectory


def augmented_histories(
    run: RunDirectory, n: int = 5, part: str = "test"
) -> list[AugmentedHistory]:
    """Histories of some users with generated items; short ones first.

    Empty if the augmenter only adds to training, or if there is none.
    """
    if run.augmenter is None or run.augmenter.training_only:
        return []
    queries = run.queries(part)
    index = _first(n, queries.histories, 3, 8)
    augmented = run.augmenter.as_in_training(queries.histories.select(index), run.plan.seed)
    names = _display_names(run.split.train)
    found = []
    for number, query in enumerate(index):
        one = augmented.select(np.array([number]))
        found.append(
            AugmentedHistory(
                user=_user_name(augmented, number),
                items=list(zip(names(one.items), one.synthetic.tolist(), strict=True)),
                target=names(queries.targets[[query]])[0],
            )
        )
    return found


def sequences_with_copies(run: RunDirectory, n: int = 3) -> list[SequenceWithCopies]:
    """Training sequences of some users with the first and the last of their augmented copies.

    Empty if the augmenter makes no copies, or if there is none.
    """
    if run.augmenter is None or not run.augmenter.training_only:
        return []
    train = run.split.train
    augmented = run.augmenter.augment(train.select(_first(n, train, 4, 8)), run.plan.seed)
    copies = augmented.copies
    if copies is None:
        return []
    names = _display_names(train)
    found = []
    for number, own in enumerate(augmented):
        shown = {}
        for which in dict.fromkeys((0, len(copies) - 1)):
            items = copies.items[which, augmented.starts[number] : augmented.ends[number]]
            heading = f"copy {which + 1}, difficulty {copies.difficulty[which, number]:.3f}"
            new = (~np.isin(items, own)).tolist()
            shown[heading] = list(zip(names(items), new, strict=True))
        found.append(SequenceWithCopies(_user_name(augmented, number), names(own), shown))
    return found


def drawn_lists(
    run: RunDirectory, n_users: int = 3, n_items: int = 5, part: str = "test"
) -> list[DrawnLists]:
    """Lists of a recommender for some users, seen items hidden.

    Of a generative one ten draws averaged, and three seeds alone.
    """
    model, queries = run.model, run.queries(part)
    model.eval()
    index = _first(n_users, queries.histories, 4, 10)
    histories = queries.histories.select(index)
    shown = histories
    if run.augmenter is not None:
        shown = run.augmenter.augment_for_inference(histories, run.plan.seed)
    everyone = np.arange(len(index))
    hidden = seen_items(histories, everyone)
    draws = {"recommended": (run.plan.seed, 1)}
    if model.is_generative:
        draws = {"mean of 10 draws": (run.plan.seed, 10)}
        draws |= {f"one draw, seed {seed}": (seed, 1) for seed in range(3)}
    lists = {
        heading: top_k(model.scorer_of(shown, everyone, seed, n_draws), n_items, hidden)[1]
        .cpu()
        .numpy()
        for heading, (seed, n_draws) in draws.items()
    }
    names = _display_names(run.split.train)
    return [
        DrawnLists(
            method=run.plan.label,
            user=_user_name(histories, number),
            history=names(histories[number]),
            target=names(queries.targets[[query]])[0],
            lists={
                heading: names(items[number][items[number] > 0]) for heading, items in lists.items()
            },
        )
        for number, query in enumerate(index)
    ]


def run_examples(run: RunDirectory) -> dict[str, Any]:
    """Arguments of :func:`write_html` that show examples of a run's augmenter and lists."""
    return {
        "augmented": augmented_histories(run),
        "copied": sequences_with_copies(run),
        "drawn": drawn_lists(run),
    }


def inspection(
    run: RunDirectory, users: Sequence[str] | None = None, n: int = 3, seed: int = 0
) -> Inspection:
    """Views of some users that training would contrast now, in raw ids, and metrics of the views.

    Args:
        users: raw user ids; None draws users from the seed.
        n: how many users to draw.

    Raises:
        ConfigError: the run's recommender is not contrastive, or n is below 1.
        DataError: a user is not in the training part, or has fewer than two items there.
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    if not isinstance(run.model, Contrastive):
        names = method_names("recommender")
        contrastive = [name for name in names if issubclass(find_recommender(name), Contrastive)]
        raise ConfigError(
            f"{run.path} is of {run.plan.model}, which contrasts no views; "
            f"these do: {', '.join(contrastive)}"
        )
    train = run.training_data()
    index = sample_sequences(train, n, seed) if users is None else _index_of(train, users)
    return _inspection(run, train, index, seed, _raw_ids(train))


def short_inspection(
    run: RunDirectory, train: SequenceDataset, n_users: int = 3
) -> Inspection | None:
    """Views that training contrasts of some short histories; None for other recommenders.

    Args:
        train: the sequences that its model was trained on.
    """
    index = trainable_sequences(train)
    if not isinstance(run.model, Contrastive) or not len(index):
        return None
    chosen = index[_first(n_users, train.select(index), 5, 10)]
    return _inspection(run, train, chosen, run.plan.seed, _display_names(train))


def _inspection(
    run: RunDirectory,
    train: SequenceDataset,
    index: Int64[np.ndarray, " S"],
    seed: int,
    names: Names,
) -> Inspection:
    model = run.model
    assert isinstance(model, Contrastive)
    sample = sample_sequences(train, seed=seed)
    shown = inspect_views(model, train, index, seed)
    return Inspection(
        run.plan.label,
        seed,
        [
            describe_sequence(sequence, _user_name(train, number), names, train.vocab_size)
            for number, sequence in zip(index.tolist(), shown, strict=True)
        ],
        view_metrics(inspect_views(model, train, sample, seed), model.table.embeddings()),
        len(sample),
    )


def _first(n: int, dataset: SequenceDataset, least: int, most: int) -> Int64[np.ndarray, " S"]:
    """Indices of the first n sequences of such a length; if there are none, of any length."""
    lengths = dataset.lengths
    index = np.flatnonzero((lengths >= least) & (lengths <= most))
    return (index if len(index) else np.flatnonzero(lengths))[:n]


def _index_of(train: SequenceDataset, users: Sequence[str]) -> Int64[np.ndarray, " S"]:
    """Indices of the sequences of raw user ids, each with two items or more."""
    ids = train.catalog.user_ids
    known = IdIndex(pl.Series(np.arange(train.catalog.n_users)) if ids is None else ids)
    index, trainable = [], trainable_sequences(train)
    for user, number in zip(users, known.find(users), strict=True):
        found = np.flatnonzero(train.users == number)
        if not len(found):
            raise DataError(f"the training part holds no user {user!r}")
        if not np.isin(found[0], trainable):
            raise DataError(
                f"user {user!r} has too few training items: a sequence to contrast and a real item "
                "that comes next take two"
            )
        index.append(found[0])
    return np.array(index)


def _display_names(dataset: SequenceDataset) -> Names:
    attributes = dataset.catalog.attributes
    if attributes is not None and "name" in attributes.columns:
        ids = dataset.catalog.item_ids.cast(pl.String)
        names = attributes["name"].cast(pl.String).fill_null(ids)
        return lambda items: names.gather(items - 1).to_list()
    return _raw_ids(dataset)


def _raw_ids(dataset: SequenceDataset) -> Names:
    return lambda items: [str(raw) for raw in dataset.catalog.decode(items)]


def _user_name(dataset: SequenceDataset, index: int) -> str:
    user, ids = int(dataset.users[index]), dataset.catalog.user_ids
    return str(user if ids is None else ids[user])
