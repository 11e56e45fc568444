"""Recommendation lists of a saved run, for one history or for every user of a log."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from diffuserec.data import Catalog, RawId, encode_histories, read_histories
from diffuserec.errors import ConfigError, DataError
from diffuserec.files import replacing
from diffuserec.models.methods import load, load_augmenter, run_of
from diffuserec.serving.item_index import item_index_of

_WRITERS = {".csv": "write_csv", ".parquet": "write_parquet", ".jsonl": "write_ndjson"}


def recommend_from(
    run: Path,
    history: Sequence[RawId] | None,
    histories: Path | None,
    *,
    columns: Mapping[str, Any] | None = None,
    out: Path | None = None,
    fallback: bool = False,
    approximate: bool = False,
    say: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> pl.DataFrame:
    """Recommendations of a finished run for one history, or for every user of a log.

    Only the run's models are read, not its data.

    Args:
        run: a run's directory, or that of a saved recommender.
        history: raw item ids, oldest first.
        histories: a log, if no single history is given; its users become ``user_id``.
        columns: ``format, user, item, time`` of that log, as :func:`read_histories` takes them.
        out: a ``.csv``, ``.parquet`` or ``.jsonl`` file to write as well. Raw ids are written as
            they are, so a CSV file has formulas for a spreadsheet program if ids begin with
            ``=``, ``+``, ``-`` or ``@``: import such columns as text.
        fallback: answer by popularity even if no id of any history is known.
        approximate: look only at the items that an index finds, which is made when it is missing
            and kept beside the model.
        say: called with a line that tells who answered for how many histories and how many ids are
            unknown (of a single history, only if there is something to tell); and with one if
            histories are longer than the model looks back.
        options: of :meth:`Recommender.recommend`.

    Raises:
        ConfigError: neither or both of the two histories, an ending of `out` that is not known, or
            an option that is not allowed.
        DataError: `out` exists or has no folder, the log cannot be read, ids are refused, or none
            of the ids is known.
    """
    if (history is None) == (histories is None):
        raise ConfigError("give either --history or --histories")
    if history is not None and not len(history):
        raise DataError("--history names no item: give item ids, oldest first, commas between them")
    _check_out(out)
    run = run_of(run)
    model = load(run)
    augmenter = load_augmenter(run / "augmenter") if (run / "augmenter").is_dir() else None
    users = None
    asked: list[Sequence[RawId]] = [history or []]
    if histories is not None:
        log = read_histories(histories, **(columns or {}))
        grouped = log.group_by("user_id", maintain_order=True).agg(pl.exclude("user_id"))
        users, asked = grouped["user_id"], grouped["item_id"].to_list()
        if model.reads_times and "timestamp" in grouped.columns:
            options["times"] = grouped["timestamp"].to_list()
    known, n_unknown = encode_histories(model.catalog, asked)
    if not known.lengths.any() and not fallback:
        raise DataError(_nothing_known(model.catalog, asked, histories))
    max_len = model.max_len
    n_longer = sum(max_len is not None and len(items) > max_len for items in asked)
    if n_longer:
        say(
            f"{n_longer:,} of {len(asked):,} histories are longer than the {max_len} items "
            f"that {model.name} looks back on: only their newest {max_len} count"
        )
    if approximate:
        options["index"] = item_index_of(run, model, say)
    frame = model.recommend(asked, augmenter=augmenter, **options)
    n_alone = int((known.lengths == 0).sum())
    n_without = len(asked) - frame["query"].n_unique()
    if users is not None or n_unknown.any() or n_alone or n_without:
        say(_summary(sum(map(len, asked)), len(asked), int(n_unknown.sum()), n_alone, n_without))
    if users is not None:
        names = frame.select(user_id=users.gather(frame["query"]))
        frame = names.hstack(frame)
    frame = frame.drop("query")
    if out is not None:
        with replacing(out) as work:
            getattr(frame, _WRITERS[out.suffix])(work)
    return frame


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    if out.exists():
        raise DataError(f"{out} exists already: choose another --out or remove it")
    if out.suffix not in _WRITERS:
        raise ConfigError(f"--out must end in {', '.join(_WRITERS)}, got {out.name!r}")
    if not out.parent.is_dir():
        raise DataError(f"{out} cannot be written: there is no folder {out.parent}")


def _nothing_known(catalog: Catalog, asked: Sequence[Sequence[RawId]], file: Path | None) -> str:
    """Message for histories without a known id."""
    first = next((str(item) for items in asked for item in items), "")
    what = f"of {file} " if file is not None else "of the history "
    example = f"{str(catalog.item_ids[0])!r}" if catalog.n_items else "none"
    return (
        f"none of the {sum(map(len, asked)):,} item ids {what}is in the catalog (the first is "
        f"{first!r}, one of the catalog is {example}): check the ids and the commas between them, "
        "or add --fallback to be answered by popularity"
    )


def _summary(n_ids: int, n_asked: int, n_unknown: int, n_alone: int, n_without: int) -> str:
    """Who answered how many histories, what was not known, and who was given nothing."""
    histories = "1 history" if n_asked == 1 else f"{n_asked:,} histories"
    parts = [
        f"{histories}: {n_asked - n_alone:,} answered by the model, {n_alone:,} by popularity",
        f"{n_unknown:,} of {n_ids:,} item ids unknown and skipped",
    ]
    if n_without:
        parts.append(f"{n_without:,} without a list: no item is left to show")
    return "; ".join(parts)
