"""Interaction logs: out of files and frames, filters, and the way into the ragged store.

A log is a table of who took what, and when. Whatever it comes from, it becomes an
:class:`Interactions`: a Polars frame grouped by user, oldest first. Raw ids live here and in the
:class:`~diffuserec.data.dataset.Catalog`, nowhere else. What a file may look like is told in
:mod:`~diffuserec.data.formats`.

Ids in a text file are integers only if every one of them is written as an integer is (``7``, not
``007`` or ``7.0``); otherwise all stay the strings they were. Elsewhere they keep their type.

Times are int64. Integers stay as they are, and so do floats without a fraction; floats with one
are taken for seconds, dates for UTC where they name no zone, and both become microseconds.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32, Int64
from scipy.sparse import csc_array

from diffuserec.data.dataset import Catalog, SequenceDataset
from diffuserec.data.formats import (
    ALIASES,
    Columns,
    Source,
    find_roles,
    first_true,
    read_columns,
    usual_names,
    write_log,
)
from diffuserec.errors import ConfigError, DataError

_MISSING = ("nan", "null", "none", "<na>", "\\n")
"""Ids that a program wrote in place of no id, in lower case."""


@dataclass(frozen=True)
class Summary:
    """What was read, and what was done to it.

    Attributes:
        source: file name, or what kind of frame.
        format: one of the formats, or ``frame``.
        columns: pairs (name in the source, name here).
        n_interactions: rows.
        n_users: users.
        n_items: items.
        n_reordered: interactions that stood after a later one of the same user, and were sorted.
        n_ties: interactions with the time of the same user's previous one; they keep their order.
        n_merged: repeated (user, item) pairs that a filter merged.
        n_filtered: interactions that a k-core filter removed.
        notes: everything else worth a line.
    """

    source: str
    format: str
    columns: tuple[tuple[str, str], ...]
    n_interactions: int = 0
    n_users: int = 0
    n_items: int = 0
    n_reordered: int = 0
    n_ties: int = 0
    n_merged: int = 0
    n_filtered: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        mapping = ", ".join(a if a == b else f"{a} -> {b}" for a, b in self.columns)
        lines = [
            f"{self.source}: {self.format}; {mapping}",
            f"interactions: {self.n_interactions:,}, users: {self.n_users:,}, "
            f"items: {self.n_items:,}",
        ]
        if self.n_reordered:
            lines.append(f"out of time order: {self.n_reordered:,} (sorted)")
        if self.n_ties:
            lines.append(
                f"at the same time as the user's previous one: {self.n_ties:,} "
                "(kept in the order of the source)"
            )
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, eq=False)
class Interactions:
    """A log: who took what, and when.

    Make one with :func:`read_log`, :func:`from_frame` or :func:`from_dataset`.

    Attributes:
        frame: ``user_id`` and ``item_id`` (both int64 or string), ``timestamp`` (int64; absent
            where the log has only an order), ``synthetic`` (bool; absent where nothing says), and
            the log's other columns. Sorted by user; a user's rows are together, oldest first.
        summary: what was read, and what was done to it.
    """

    frame: pl.DataFrame
    summary: Summary

    def __len__(self) -> int:
        return self.frame.height

    def describe(self) -> str:
        """The summary in a few lines, for printing."""
        return str(self.summary)

    __str__ = describe

    def filter(
        self, min_user: int | None = None, min_item: int | None = None, merge_repeats: bool = False
    ) -> "Interactions":
        """The log without its rare users and items (iterative k-core).

        Users and items are removed in turns until both limits hold.

        Args:
            min_user: interactions a user must have.
            min_item: interactions an item must have.
            merge_repeats: first keep only the oldest of a user's interactions with one item.

        Raises:
            ConfigError: a limit below 1.
            DataError: fewer than two users or items are left.
        """
        for name, limit in (("min_user", min_user), ("min_item", min_item)):
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} must be at least 1, got {limit}")
        frame, summary, notes = self.frame, self.summary, list(self.summary.notes)
        n_merged = n_filtered = 0
        if merge_repeats:
            frame = frame.unique(["user_id", "item_id"], keep="first", maintain_order=True)
            n_merged = self.frame.height - frame.height
            notes.append(f"repeated (user, item) pairs merged into their first: {n_merged:,}")
        if min_user is not None or min_item is not None:
            users, user_ids = _codes(frame["user_id"])
            items, item_ids = _codes(frame["item_id"])
            keep, rounds = _k_core(users, items, min_user or 1, min_item or 1)
            left = f"{min_user or 1} a user and {min_item or 1} an item"
            if not keep.any():
                raise DataError(
                    f"{summary.source}: at least {left} leaves nothing of "
                    f"{frame.height:,} interactions: use smaller limits"
                )
            n_filtered = int((~keep).sum())
            frame = frame.filter(pl.Series(keep))
            notes.append(
                f"at least {left}: removed interactions: {n_filtered:,}, "
                f"users: {len(user_ids) - frame['user_id'].n_unique():,}, "
                f"items: {len(item_ids) - frame['item_id'].n_unique():,} (rounds: {rounds})"
            )
        summary = replace(
            summary,
            n_merged=summary.n_merged + n_merged,
            n_filtered=summary.n_filtered + n_filtered,
            notes=tuple(notes),
        )
        return _counted(frame, summary, demand="after filtering: use smaller limits")

    def to_dataset(self, attributes: Any = None) -> SequenceDataset:
        """The log as a ragged dataset; items and users are numbered by their sorted raw ids.

        Args:
            attributes: optional frame (pandas, Polars, pyarrow) with a column of item ids and
                others such as ``name`` and ``category``. Rows of items that the log does not hold
                are left out; items without a row get nulls.

        Raises:
            DataError: the attributes have no item column, an item twice, or no item of the log.
        """
        frame = self.frame
        starts = _starts(frame)
        codes, item_ids = _codes(frame["item_id"])
        codes += 1
        catalog = Catalog(
            item_ids=item_ids,
            n_users=len(starts),
            user_ids=frame["user_id"].gather(starts),
            attributes=None if attributes is None else _aligned(attributes, item_ids),
        )
        marked = "synthetic" in frame.columns and frame["synthetic"].any()
        return SequenceDataset(
            items=codes,
            offsets=np.append(starts, frame.height),
            catalog=catalog,
            synthetic=frame["synthetic"].to_numpy().copy() if marked else None,  # type: ignore[arg-type]
            timestamps=frame["timestamp"].to_numpy() if "timestamp" in frame.columns else None,
        )

    def write(self, path: Path | str, format: str | None = None) -> None:
        """Writes the log; the file is complete or absent.

        A log without times gets each interaction's position in its user's history, from 0, as
        ``timestamp``. ``sequences`` holds no times, no synthetic marks and no other columns. A
        text format does not tell the string ``"7"`` from the integer 7; Parquet does.

        Args:
            path: must not exist.
            format: ``csv``, ``parquet``, ``sequences`` or ``inter``; by default what the name ends
                in says (``.txt`` is ``sequences``).

        Raises:
            DataError: the path exists or cannot be written, or the format cannot hold an id or a
                column.
            ConfigError: no such format.
        """
        write_log(self.frame, path, format)


def read_log(
    path: Path | str,
    format: str | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    *,
    allow_single: bool = False,
) -> Interactions:
    """Reads an interaction log.

    Args:
        path: the file.
        format: one of :data:`~diffuserec.data.formats.FORMATS`; by default what the name and the
            content say.
        user: name of the column of users; by default the one with a usual name.
        item: the same for items.
        time: the same for times; ``none`` (where no column has that name) takes the rows to be in
            time order already, which tables without a time column need said.
        allow_single: take a log of one user or one item as well: nothing can be learned from it,
            but it can hold histories to recommend to.

    Raises:
        DataError: the file is missing, empty, damaged, or not what the format says; the message
            names the line or column and what to do.
        ConfigError: no such format.
    """
    named = {"user_id": user, "item_id": item, "timestamp": time}
    with read_columns(path, format, named) as columns:
        return _assemble(columns, allow_single)


def from_frame(
    frame: Any, user: str | None = None, item: str | None = None, time: str | None = None
) -> Interactions:
    """The interactions of a frame: pandas, Polars (eager or lazy), pyarrow, or what narwhals knows.

    Args:
        frame: one interaction a row.
        user: name of the column of users; by default the one with a usual name.
        item: the same for items.
        time: the same for times; ``none`` takes the rows to be in time order already.

    Raises:
        DataError: a column is missing or holds what it must not; names column and row (from 0).
    """
    table, kind = _as_polars(frame, "the frame")
    source = Source(f"the {kind} frame")
    named = {"user_id": user, "item_id": item, "timestamp": time}
    roles = find_roles(table.columns, named, source)
    return _assemble(Columns(table.clone(), roles, source, "frame"))


def from_dataset(dataset: SequenceDataset) -> Interactions:
    """The interactions of a dataset, raw ids again; synthetic items are marked.

    Users whose raw ids the catalog does not keep go by their numbers. A dataset without times
    gives a log without ``timestamp``.
    """
    catalog = dataset.catalog
    numbers = np.asarray(dataset.users)
    users = pl.Series("user_id", numbers)
    if catalog.user_ids is not None:
        users = catalog.user_ids.gather(numbers).rename("user_id")
    rows = pl.Series(np.repeat(np.arange(len(dataset)), dataset.lengths))
    columns = [
        users.gather(rows),
        catalog.item_ids.gather(np.asarray(dataset.items, dtype=np.int64) - 1).rename("item_id"),
    ]
    if dataset.timestamps is not None:
        columns.append(pl.Series("timestamp", np.asarray(dataset.timestamps)))
    if dataset.synthetic.strides != (0,):
        columns.append(pl.Series("synthetic", np.ascontiguousarray(dataset.synthetic)))
    frame = pl.DataFrame(columns).sort("user_id", maintain_order=True)
    names = tuple((name, name) for name in frame.columns)
    return _counted(frame, Summary("the dataset", "dataset", names))


def _as_polars(frame: Any, what: str) -> tuple[pl.DataFrame, str]:
    try:
        wrapped = nw.from_native(frame)
        eager = wrapped.collect() if isinstance(wrapped, nw.LazyFrame) else wrapped
        return eager.to_polars(), str(wrapped.implementation.value)
    except TypeError as error:
        raise DataError(
            f"{what} must be a pandas, Polars or pyarrow frame, got {type(frame).__name__}"
        ) from error
    except (nw.exceptions.DuplicateError, pl.exceptions.DuplicateError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{what} has two columns of one name ({reason}): rename one") from error


def _assemble(columns: Columns, allow_single: bool = False) -> Interactions:
    """Checks and converts the columns, and sorts the rows by user and time; empties the table."""
    table, roles, source = columns.table, columns.roles, columns.source
    if not table.height:
        raise source.fail("there is no interaction")
    series: list[pl.Series] = []
    notes: list[str] = []
    mapping = [(name, role) for role, name in roles.items()]
    for role, name in roles.items():
        # taken out of the table, so that each column's raw values go before the next is converted
        if role == "timestamp":
            values, note = _times(table.drop_in_place(name), source)
        else:
            values, note = _ids(table.drop_in_place(name), source, columns.text)
        series.append(values.alias(role))
        if note:
            notes.append(f"{role}: {note}")
    if "timestamp" not in roles:
        notes.append("no times: the order of the source is the order in time")
    if "synthetic" in table.columns:
        series.append(_flags(table.drop_in_place("synthetic"), source))
        mapping.append(("synthetic", "synthetic"))
    for name in table.columns:
        kept = name
        while kept in ALIASES or (kept != name and kept in table.columns):
            kept = f"file_{kept}"
        series.append((_typed(table[name]) if columns.text else table[name]).alias(kept))
        mapping.append((name, kept))
    frame, n_reordered = _sorted(pl.DataFrame(series))
    summary = Summary(
        source.name, columns.format, tuple(mapping), n_reordered=n_reordered, notes=tuple(notes)
    )
    demand = None if allow_single else "so there is nothing to recommend"
    return _counted(frame, summary, demand)


def _ids(values: pl.Series, source: Source, text: bool) -> tuple[pl.Series, str]:
    """Ids as int64 or strings, and what was made of them, if anything."""
    name, dtype = values.name, values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    row = first_true(values.is_null())
    if row is not None:
        raise source.fail(f"column {name!r} is empty: give the id or remove the row", row)
    if dtype.is_integer() or dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        row = first_true(whole.is_null() | (whole != values))
        if row is not None:
            raise source.fail(
                f"{values[row]!r} in column {name!r} is no id: give an integer or a string "
                "(strings where 64 bits are too few)",
                row,
            )
        return whole, "whole floats taken for integers" if dtype.is_float() else ""
    if values.dtype != pl.String:
        raise source.fail(f"column {name!r} holds {dtype}; ids are integers or strings")
    if text:
        integers = _integers(values)
        if integers is not None:
            return integers, ""
        if values.str.contains(r"^\s|\s$").any():
            integers = _integers(values.str.strip_chars())
            if integers is not None:
                return integers, "blanks around the integers left out"
    short = values.str.len_bytes() <= max(map(len, _MISSING))
    bare = values.filter(short).str.strip_chars().str.to_lowercase()
    missing = bare.is_in(["", *_MISSING])
    if missing.any():
        row = int(short.arg_true()[int(missing.arg_true()[0])])
        what = repr(values[row]) if values[row].strip() else "an empty value"
        raise source.fail(
            f"{what} in column {name!r} stands for no id: give the id or remove the row", row
        )
    return values, ""


def _integers(values: pl.Series) -> pl.Series | None:
    """The strings as integers if each is written just as that integer is, else None."""
    for part in (values.head(1000), values):  # most that fail, fail at once
        whole = part.cast(pl.Int64, strict=False)
        if not whole.cast(pl.String).eq_missing(part).all():
            return None
    return whole


def _times(values: pl.Series, source: Source) -> tuple[pl.Series, str]:
    """Times as int64, and what was made of them, if anything."""
    name, dtype = values.name, values.dtype
    row = first_true(values.is_null())
    if row is not None:
        raise source.fail(f"column {name!r} is empty: give the time or remove the row", row)
    if dtype in (pl.Date, pl.Datetime):
        return values.cast(pl.Datetime("us")).to_physical(), "dates stored as microseconds"
    if dtype.is_numeric():
        whole = values.cast(pl.Int64, strict=False)
        if dtype.is_integer() and not whole.null_count():
            return whole, ""
        return _from_floats(values.cast(pl.Float64), values, source)
    if dtype != pl.String:
        raise source.fail(f"column {name!r} holds {dtype}; times are numbers or ISO dates")
    whole = values.cast(pl.Int64, strict=False)
    if whole.null_count():
        values = values.str.strip_chars()
        whole = values.cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole, ""
    numbers = values.cast(pl.Float64, strict=False)
    if numbers[0] is None:
        return _from_dates(values, source)
    row = first_true(numbers.is_null())
    if row is not None:
        raise _not_a_time(values, row, source)
    return _from_floats(numbers, values, source)


def _from_floats(numbers: pl.Series, values: pl.Series, source: Source) -> tuple[pl.Series, str]:
    row = first_true(~numbers.is_finite())
    if row is not None:
        raise _not_a_time(values, row, source)
    fraction = not (numbers == numbers.round()).all()
    scaled = (numbers * 1e6).round() if fraction else numbers
    row = first_true(scaled.abs() >= 2.0**63)
    if row is not None:
        raise source.fail(f"{values[row]!r} in column {values.name!r} is beyond 64 bits", row)
    note = "times with fractions taken for seconds, stored as microseconds" if fraction else ""
    return scaled.cast(pl.Int64), note


def _from_dates(values: pl.Series, source: Source) -> tuple[pl.Series, str]:
    text = values.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.to_uppercase()
    moments = pl.Series([None], dtype=pl.Datetime("us")).new_from_index(0, len(text))
    moment = "%Y-%m-%dT%H:%M:%S%.f"
    for pattern in (moment, moment + "%#z", "%Y-%m-%d", "%Y-%m-%dT%H:%M"):
        if not moments.null_count():
            break
        parsed = text.str.to_datetime(pattern, time_unit="us", strict=False)
        moments = moments.zip_with(moments.is_not_null(), parsed.dt.replace_time_zone(None))
    row = first_true(moments.is_null())
    if row is not None:
        raise _not_a_time(values, row, source)
    return moments.to_physical(), "dates stored as microseconds"


def _not_a_time(values: pl.Series, row: int, source: Source) -> DataError:
    return source.fail(
        f"{values[row]!r} in column {values.name!r} is not a time: use numbers throughout, or ISO "
        "dates such as 2024-05-31 or 2024-05-31T12:00:00Z",
        row,
    )


def _flags(values: pl.Series, source: Source) -> pl.Series:
    words = values.cast(pl.String).str.strip_chars().str.to_lowercase().str.strip_suffix(".0")
    row = first_true(~words.is_in(["true", "false", "1", "0"]).fill_null(False))
    if row is not None:
        raise source.fail(
            f"{values[row]!r} in column 'synthetic' is neither true nor false (1 nor 0)", row
        )
    return words.is_in(["true", "1"]).alias("synthetic")


def _typed(values: pl.Series) -> pl.Series:
    """A column that only travels along: numbers where all its values are."""
    integers = _integers(values)
    if integers is not None:
        return integers
    numbers = values.cast(pl.Float64, strict=False)
    padded = values.str.contains(r"^[+-]?0\d|^\+").any()
    return values if padded or numbers.null_count() > values.null_count() else numbers


def _sorted(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The rows by user, then time, then as they stood; and how many were out of time order."""
    users, user_ids = _codes(frame["user_id"])
    n_reordered, order = 0, None
    if (users[1:] < users[:-1]).any():
        order = _grouped(users, len(user_ids))
    if "timestamp" in frame.columns:
        times = frame["timestamp"].to_numpy()
        by_user, in_time = (users, times) if order is None else (users[order], times[order])
        late = (in_time[1:] < in_time[:-1]) & (by_user[1:] == by_user[:-1])
        n_reordered = int(late.sum())
        del by_user, in_time, late
        if n_reordered:
            by_time = _by_time(times)
            order = by_time[_grouped(users[by_time], len(user_ids))]
    if order is None:
        return frame, n_reordered
    rest = frame.drop("user_id")[order]
    # in this order the codes ascend, so this reads memory in one sweep
    ids = user_ids.gather(users[order]).rename("user_id")
    return rest.insert_column(0, ids), n_reordered


def _grouped(codes: Int[np.ndarray, " N"], n_groups: int) -> Int[np.ndarray, " N"]:
    """Positions by group, each group in the order it had: a counting sort, linear in N.

    That is the transposition of a sparse matrix with one entry a column.
    """
    n = len(codes)
    narrow = np.int32 if n < 2**31 - 1 else np.int64
    ones = np.ones(n, dtype=np.int8)
    matrix = csc_array(
        (ones, codes.astype(narrow, copy=False), np.arange(n + 1, dtype=narrow)),
        shape=(n_groups, n),
    )
    return np.asarray(matrix.tocsr().indices)


def _by_time(times: Int64[np.ndarray, " N"]) -> Int64[np.ndarray, " N"]:
    """Positions by time, equal times in the order they had."""
    n, first = len(times), int(times.min())
    bits = n.bit_length()
    if (int(times.max()) - first).bit_length() + bits < 63:
        # (time, position) fits one integer, and plain sorting of integers is several times faster
        keys = ((times - first) << bits) | np.arange(n)
        keys.sort()
        keys &= (1 << bits) - 1
        return keys
    return np.argsort(times, kind="stable")


def _codes(values: pl.Series) -> tuple[Int32[np.ndarray, " N"], pl.Series]:
    """Each value's place among the sorted distinct values, and these."""
    distinct = values.unique().sort()
    if values.dtype.is_integer() and len(distinct):
        low, high = int(distinct[0]), int(distinct[-1])
        if high - low < 4 * len(values) + 1024:
            table = np.zeros(high - low + 1, dtype=np.int32)
            table[distinct.to_numpy() - low] = np.arange(len(distinct), dtype=np.int32)
            return table[values.to_numpy() - low], distinct
    index = pl.DataFrame({"value": distinct, "code": np.arange(len(distinct), dtype=np.int32)})
    found = pl.DataFrame({"value": values}).join(
        index, on="value", how="left", maintain_order="left"
    )
    return found["code"].to_numpy().copy(), distinct


def _starts(frame: pl.DataFrame) -> Int64[np.ndarray, " U"]:
    """First row of each user of a frame whose users are together."""
    users = frame["user_id"]
    return users.ne_missing(users.shift()).arg_true().to_numpy().astype(np.int64)


def _counted(frame: pl.DataFrame, summary: Summary, demand: str | None = None) -> Interactions:
    """The log with its counts; where there is a demand, two users and two items are needed."""
    starts = _starts(frame)
    n_rows, n_users, n_items, n_ties = frame.height, len(starts), frame["item_id"].n_unique(), 0
    for n, what in ((n_users, "user"), (n_items, "item")):
        if demand is not None and n < 2:
            raise DataError(
                f"{summary.source}: only one {what} in {n_rows:,} interactions, {demand}"
            )
    if "timestamp" in frame.columns:
        times = frame["timestamp"].to_numpy()
        same = times[1:] == times[:-1]
        same[starts[1:] - 1] = False
        n_ties = int(same.sum())
    counted = replace(
        summary, n_interactions=n_rows, n_users=n_users, n_items=n_items, n_ties=n_ties
    )
    return Interactions(frame, counted)


def _k_core(
    users: Int32[np.ndarray, " N"], items: Int32[np.ndarray, " N"], min_user: int, min_item: int
) -> tuple[Bool[np.ndarray, " N"], int]:
    """Which interactions stay, and after how many rounds nothing more was removed."""
    rows, rounds = np.arange(len(users)), 0
    while len(rows):
        u, i = users[rows], items[rows]
        enough = (np.bincount(u)[u] >= min_user) & (np.bincount(i)[i] >= min_item)
        if enough.all():
            break
        rows, rounds = rows[enough], rounds + 1
    keep = np.zeros(len(users), dtype=bool)
    keep[rows] = True
    return keep, rounds


def _aligned(attributes: Any, item_ids: pl.Series) -> pl.DataFrame:
    table, _ = _as_polars(attributes, "attributes")
    source = Source("the attributes")
    found = usual_names(table.columns, "item_id")
    name = "item_id" if "item_id" in found else found[0] if len(found) == 1 else None
    if name is None:
        raise source.fail(
            f"no column 'item_id' among: {', '.join(table.columns)}: rename one to it"
        )
    table = table.with_columns(pl.col(name).cast(item_ids.dtype, strict=False))
    row = first_true(table[name].is_duplicated() & table[name].is_not_null())
    if row is not None:
        raise source.fail(f"item {table[name][row]!r} has more than one row: keep one", row)
    if not table[name].is_in(item_ids.implode()).any():
        raise source.fail("none of the items is in the log: check the ids")
    return (
        item_ids.rename(name)
        .to_frame()
        .join(table, on=name, how="left", maintain_order="left")
        .drop(name)
    )
