"""Recommendation lists of a saved run, for one history or for every user of a log."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from diffuserec.data import RawId, read_log
from diffuserec.errors import ConfigError, DataError
from diffuserec.files import replacing
from diffuserec.models.methods import load, load_augmenter


def recommend_from(
    run: Path,
    history: Sequence[RawId] | None,
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
        history: raw item ids, oldest first.
        histories: a log, if no single history is given; its users become ``user_id``.
        columns: ``format, user, item, time`` of that log, as :func:`read_log` takes them.
        out: a ``.csv``, ``.parquet`` or ``.jsonl`` file to write as well.
        say: called with a line if histories are longer than the model looks back, or hold ids that
            the catalog does not.
        options: of :meth:`Recommender.recommend`.

    Raises:
        ConfigError: neither or both of the two histories, an ending of `out` that is not known, or
            an option that is not allowed.
        DataError: `out` exists or has no folder, the log cannot be read, or ids are refused.
    """
    if (history is None) == (histories is None):
        raise ConfigError("give either --history or --histories")
    model = load(run / "model")
    augmenter = load_augmenter(run / "augmenter") if (run / "augmenter").is_dir() else None
    writers = {".csv": "write_csv", ".parquet": "write_parquet", ".jsonl": "write_ndjson"}
    if out is not None and out.exists():
        raise DataError(f"{out} exists already: choose another --out or remove it")
    if out is not None and out.suffix not in writers:
        raise ConfigError(f"--out must end in {', '.join(writers)}, got {out.name!r}")
    if out is not None and not out.parent.is_dir():
        raise DataError(f"{out} cannot be written: there is no folder {out.parent}")
    users = None
    asked: list[Sequence[RawId]] = [history or []]
    if histories is not None:
        log = read_log(histories, allow_single=True, **(columns or {})).frame
        grouped = log.group_by("user_id", maintain_order=True).agg("item_id")
        users, asked = grouped["user_id"], grouped["item_id"].to_list()
    max_len = model.max_len
    n_longer = sum(max_len is not None and len(items) > max_len for items in asked)
    if n_longer:
        say(
            f"{n_longer:,} of {len(asked):,} histories are longer than the {max_len} items "
            f"that {model.name} looks back on: only their newest {max_len} count"
        )
    frame = model.recommend(asked, augmenter=augmenter, **options)
    n_unknown = int(frame.unique("query")["n_unknown"].sum())
    if n_unknown:
        say(f"{n_unknown:,} item ids are not in the catalog and were skipped")
    if users is not None:
        names = frame.select(user_id=users.gather(frame["query"]))
        frame = names.hstack(frame)
    frame = frame.drop("query")
    if out is not None:
        with replacing(out) as work:
            getattr(frame, writers[out.suffix])(work)
    return frame
