"""What leaves for other systems: lists of a trained run, and logs with synthetic items."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffuserec.models.base import Recommender, Run, find, load
from diffuserec.data import SequenceDataset, Variants, leave_one_out, load_dataset, read_log
from diffuserec.errors import ConfigError, DataError


def recommend_from(
    run: Path,
    history: Sequence[str] | None,
    histories: Path | None,
    *,
    columns: Mapping[str, str | None] | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> pl.DataFrame:
    """Recommendations of a finished run for one history, or for every user of a log.

    Only the run's models are read, not its data.

    Args:
        run: the run's directory.
        history: raw item ids, oldest first.
        histories: a log, when no single history is given; its users become ``user_id``.
        columns: ``format, user, item, time`` of that log, as :func:`read_log` takes them.
        out: a ``.csv``, ``.parquet`` or ``.jsonl`` file to write as well.
        say: told when histories are longer than the model looks back.
        options: of :meth:`Recommender.recommend`.
    """
    model: Recommender = load(run / "model")
    augmenter = load(run / "augmenter") if (run / "augmenter").is_dir() else None
    writers = {".csv": "write_csv", ".parquet": "write_parquet", ".jsonl": "write_ndjson"}
    if out is not None and out.exists():
        raise DataError(f"{out} exists already: choose another --out or remove it")
    if out is not None and out.suffix not in writers:
        raise ConfigError(f"--out must end in {', '.join(writers)}, got {out.name!r}")
    max_len = model.config.model_dump().get("max_len")

    def lists(asked: list[Sequence[Any]]) -> pl.DataFrame:
        n_longer = sum(max_len is not None and len(items) > max_len for items in asked)
        if n_longer:
            say(
                f"{n_longer:,} of {len(asked):,} histories are longer than the {max_len} items "
                f"that {model.name} looks back on: only their newest {max_len} count"
            )
        return model.recommend(asked, augmenter=augmenter, **options)

    if history is not None:
        frame = lists([history]).drop("query")
    else:
        if histories is None:
            raise ConfigError("give a history or a file of histories")
        log = read_log(histories, allow_single=True, **(columns or {})).frame
        grouped = log.group_by("user_id", maintain_order=True).agg("item_id")
        frame = lists(grouped["item_id"].to_list())
        users = grouped.select("user_id").with_row_index("query").cast({"query": pl.Int64})
        frame = frame.join(users, on="query", maintain_order="left").select(
            "user_id", pl.exclude("query", "user_id")
        )
    if out is not None:
        work = out.with_name(f".{out.name}.partial")
        getattr(frame, writers[out.suffix])(work)
        work.replace(out)
    return frame


def augment_log(
    data: Path | str,
    method: str,
    settings: Mapping[str, Any],
    run: Run,
) -> SequenceDataset:
    """The whole log with synthetic items, for training any other system on.

    The augmenter learns from the training part and sees only the training part when it
    generates: the validation and test items are appended afterwards, untouched.
    """
    dataset = load_dataset(data)
    split = leave_one_out(dataset)
    augmenter = find("augmenter", method)(**settings)
    augmenter.fit(split.train, split.valid, run)
    augmented = augmenter.augment(split.train, run.seed)
    if augmented.variants is not None:
        return with_variants(dataset, augmented, augmented.variants)
    return append_rest(augmented, dataset, split.train)


def with_variants(
    whole: SequenceDataset, part: SequenceDataset, variants: Variants
) -> SequenceDataset:
    """The whole sequences, and after them each variant as a synthetic user of its own.

    Variant k of user ``B12`` is user ``B12#k``, counted from 1, the first that training uses.

    Args:
        whole: the full sequences.
        part: the training part, of the same users.
        variants: of the training part.

    Raises:
        DataError: the log has a user of such a name.
    """
    n_variants, n_users = variants.difficulty.shape
    starts = np.arange(n_variants)[:, None] * len(part.items) + part.offsets[None, 1:]
    offsets = np.concatenate([whole.offsets, len(whole.items) + starts.reshape(-1)])
    known = whole.catalog.user_ids
    names = pl.Series(np.asarray(whole.users)) if known is None else known.gather(whole.users)
    names = names.cast(pl.String)
    made = [names.gather(np.arange(n_users)) + f"#{number + 1}" for number in range(n_variants)]
    user_ids = pl.concat([names, *made]).rename("user_id")
    if user_ids.n_unique() < len(user_ids):
        raise DataError("a user of the log is called as a variant would be, like B12#1: rename it")
    catalog = replace(whole.catalog, n_users=len(user_ids), user_ids=user_ids)
    times = None
    if whole.timestamps is not None and part.timestamps is not None:
        times = np.concatenate([whole.timestamps, np.tile(part.timestamps, n_variants)])
    items = np.concatenate([whole.items, variants.items.reshape(-1)])
    synthetic = np.arange(len(items)) >= len(whole.items)
    return SequenceDataset(items, offsets, catalog, synthetic=synthetic, timestamps=times)


def append_rest(
    longer: SequenceDataset, whole: SequenceDataset, part: SequenceDataset
) -> SequenceDataset:
    """Augmented beginnings of sequences, followed by what the whole sequences have after them.

    Args:
        longer: `part`, augmented.
        whole: the full sequences.
        part: the first items of each.
    """
    rest = whole.slice(whole.offsets[:-1] + part.lengths, whole.offsets[1:])
    lengths = longer.lengths + rest.lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    begin = np.repeat(offsets[:-1] - longer.offsets[:-1], longer.lengths)
    items = np.empty(offsets[-1], dtype=np.int32)
    synthetic = np.zeros(offsets[-1], dtype=bool)
    at = begin + np.arange(len(longer.items))
    items[at], synthetic[at] = longer.items, longer.synthetic
    after = np.repeat(offsets[1:] - rest.offsets[1:], rest.lengths) + np.arange(len(rest.items))
    items[after] = rest.items
    times = None
    if longer.timestamps is not None and rest.timestamps is not None:
        times = np.empty(offsets[-1], dtype=np.int64)
        times[at], times[after] = longer.timestamps, rest.timestamps
    return SequenceDataset(items, offsets, whole.catalog, whole.users, synthetic, times)
