"""Split files: the part of every user, or of every interaction, written down by someone else."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64

from diffuserec.data.columns import (
    ALIASES,
    OPTIONS,
    Columns,
    Source,
    first_true,
    usual_names,
)
from diffuserec.data.dataset import SequenceDataset, offsets_of
from diffuserec.data.formats import read_columns
from diffuserec.data.ids import IdIndex
from diffuserec.data.values import parse_ids, parse_times
from diffuserec.errors import DataError, did_you_mean

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Parts:
    """What of each sequence of a dataset belongs to which part; the parts follow one another.

    Attributes:
        n_train: interactions to train on, int64, shape (U,).
        n_before_test: those and the ones for validation, int64, shape (U,).
    """

    n_train: Int64[np.ndarray, " U"]
    n_before_test: Int64[np.ndarray, " U"]


def read_parts(dataset: SequenceDataset, path: Path | str) -> Parts:
    """Reads a split file; see :func:`diffuserec.data.splits.split_by_file`.

    Raises:
        DataError: the file cannot be read or does not fit the dataset; says the line if it can.
    """
    if dataset.catalog.user_ids is None:
        raise DataError("a split by file needs the users' ids, and this dataset keeps none")
    with read_columns(path, None, {"user_id": None}) as columns:
        names, source = columns.table.columns, columns.source
        if columns.objects:
            raise source.fail("values of one column differ in type: make all of them alike")
        user, item, time = (_column(names, role, source) for role in ALIASES)
        if "part" not in names:
            raise source.fail(
                f"no column 'part'{did_you_mean('part', names)} among: {', '.join(names)}; give "
                f"one that says {', '.join(PARTS)}"
            )
        other = [name for name in names if name not in (user, item, time, "part")]
        if other:
            raise source.fail(f"column {other[0]!r} is no user, item, time or part: leave it out")
        if item is None and time is not None:
            raise source.fail(
                f"column {time!r} has times, and no column has items: give both, or users and "
                "their parts alone"
            )
        parts = _codes(columns.table["part"], source)
        users = _places(dataset, columns, str(user))
        if item is None:
            return _of_users(dataset, users, parts, source)
        return _of_interactions(dataset, columns, users, item, time, parts)


def _column(names: list[str], role: str, source: Source) -> str | None:
    found = usual_names(names, role)
    if len(found) > 1:
        both = " and ".join(map(repr, found))
        raise source.fail(f"columns {both} could each be the {OPTIONS[role]}: leave one out")
    return found[0] if found else None


def _codes(values: pl.Series, source: Source) -> Int64[np.ndarray, " R"]:
    """Number of each row's part: 0 train, 1 valid, 2 test."""
    words = values.cast(pl.String)
    row = first_true(~words.is_in(PARTS).fill_null(False))
    if row is not None:
        word = words[row]
        what = "an empty value" if word is None else f"{word!r}{did_you_mean(word, PARTS)}"
        raise source.fail(f"{what} in column 'part': say {', '.join(PARTS)}", row)
    codes = words.replace_strict(PARTS, range(len(PARTS)), return_dtype=pl.Int64)
    return codes.to_numpy(writable=True)


def _places(dataset: SequenceDataset, columns: Columns, name: str) -> Int64[np.ndarray, " R"]:
    """Index of the dataset's sequence that each row is about."""
    users = dataset.catalog.user_ids
    assert users is not None
    ids, _ = parse_ids(columns.table[name], columns.source, columns.text)
    number = IdIndex(users).find(ids)
    place = np.full(dataset.catalog.n_users + 1, -1)  # the last one is nobody's
    place[dataset.users] = np.arange(len(dataset))
    found: np.ndarray = place[number]
    _require_known(found, ids, "user", columns.source)
    return found


def _require_known(
    found: Int64[np.ndarray, " R"], ids: pl.Series, what: str, source: Source
) -> None:
    if (found < 0).any():
        row = int(np.argmax(found < 0))
        raise source.fail(f"the dataset has no {what} {ids[row]!r}: leave the row out", row)


def _of_users(
    dataset: SequenceDataset,
    users: Int64[np.ndarray, " R"],
    parts: Int64[np.ndarray, " R"],
    source: Source,
) -> Parts:
    """All of a user's interactions are of one part."""
    ids = dataset.catalog.user_ids
    assert ids is not None
    counts = np.bincount(users, minlength=len(dataset))
    for wrong, what in ((counts > 1, "stands twice"), (counts == 0, "has no part")):
        if wrong.any():
            first = int(np.argmax(wrong))
            raise source.fail(
                f"user {ids[int(dataset.users[first])]!r} {what} ({int(wrong.sum()):,} such "
                "users): say the part of each user once"
            )
    of_user = np.empty(len(dataset), dtype=np.int64)
    of_user[users] = parts
    lengths = dataset.lengths
    return Parts(np.where(of_user == 0, lengths, 0), np.where(of_user < 2, lengths, 0))


def _of_interactions(
    dataset: SequenceDataset,
    columns: Columns,
    users: Int64[np.ndarray, " R"],
    item: str,
    time: str | None,
    parts: Int64[np.ndarray, " R"],
) -> Parts:
    """Each interaction has a part; those of a user follow one another."""
    source = columns.source
    raw_items, _ = parse_ids(columns.table[item], source, columns.text)
    items = dataset.catalog.encode(raw_items) - 1
    _require_known(items, raw_items, "item", source)
    theirs = pl.DataFrame({"user": users, "item": items, "part": parts}).with_row_index("row")
    owners = np.repeat(np.arange(len(dataset)), dataset.lengths)
    ours = pl.DataFrame({"user": owners, "item": dataset.items.astype(np.int64) - 1})
    keys = ["user", "item"]
    if time is not None:
        if dataset.timestamps is None:
            raise source.fail(f"the dataset has no times: leave column {time!r} out")
        moments, _ = parse_times(columns.table[time], source)
        theirs = theirs.with_columns(moments.alias("time"))
        ours = ours.with_columns(pl.Series("time", np.asarray(dataset.timestamps)))
        keys.append("time")
    else:
        _require_one_part_a_pair(theirs, source)
    # interactions that no key tells apart are matched in their order
    nth = pl.int_range(pl.len()).over(keys).alias("nth")
    theirs, ours = theirs.with_columns(nth), ours.with_columns(nth).with_row_index("place")
    matched = theirs.join(ours, on=[*keys, "nth"], how="left", maintain_order="left")
    if matched["place"].null_count():
        row = int(matched["row"].filter(matched["place"].is_null())[0])
        raise source.fail("this interaction is not in the dataset: leave the row out", row)
    n_missing = ours.height - matched.height
    if n_missing:
        raise source.fail(
            f"{n_missing:,} of the dataset's {ours.height:,} interactions are not in the file: "
            "say the part of each"
        )
    of_place = np.empty(ours.height, dtype=np.int64)
    of_place[matched["place"].to_numpy()] = matched["part"].to_numpy()
    rows = np.empty(ours.height, dtype=np.int64)
    rows[matched["place"].to_numpy()] = matched["row"].to_numpy()
    back = (of_place[1:] < of_place[:-1]) & (owners[1:] == owners[:-1])
    if back.any():
        place = int(np.argmax(back)) + 1
        raise source.fail(
            f"a {PARTS[of_place[place]]} interaction after one of {PARTS[of_place[place - 1]]} of "
            "the same user: train, valid and test must follow one another in time",
            int(rows[place]),
        )
    n_train, n_before_test = (
        np.diff(offsets_of(of_place < part)[dataset.offsets]) for part in (1, 2)
    )
    return Parts(n_train, n_before_test)


def _require_one_part_a_pair(table: pl.DataFrame, source: Source) -> None:
    several = table.select(pl.col("part").n_unique().over("user", "item") > 1).to_series()
    row = first_true(several)
    if row is not None:
        raise source.fail(
            "this user has this item more than once, in different parts: add a column of times",
            row,
        )
