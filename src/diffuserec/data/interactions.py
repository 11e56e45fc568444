"""Interaction logs: out of files and frames, filters, and the way into the ragged store.

A log is a table of users, the items they chose, and the times. From whatever source, it becomes an
:class:`Interactions`: a Polars frame grouped by user, oldest first. Raw ids live here and in the
:class:`~diffuserec.data.catalog.Catalog`, nowhere else. File formats are listed in
:mod:`~diffuserec.data.formats`, types of ids and times in :mod:`~diffuserec.data.columns`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
from jaxtyping import Int64

from diffuserec.data.catalog import Catalog
from diffuserec.data.columns import (
    ALIASES,
    Columns,
    Source,
    find_roles,
    parse_flags,
    parse_ids,
    parse_other,
    parse_times,
    usual_names,
)
from diffuserec.data.dataset import SequenceDataset
from diffuserec.data.formats import read_columns, write_log
from diffuserec.data.grouping import codes_of, group_order, k_core, time_order
from diffuserec.data.ids import IdIndex
from diffuserec.errors import ConfigError, DataError


@dataclass(frozen=True)
class Summary:
    """Source and size of a log, and the changes made to it.

    Attributes:
        source: file name, or kind of frame.
        format: name of a log format, ``frame`` or ``dataset``.
        columns: pairs (name in the source, name here).
        n_interactions: interactions.
        n_users: users.
        n_items: items.
        n_reordered: interactions that came after a later one of the same user, and were sorted.
        n_ties: interactions with the time of the same user's previous one; they keep their order.
        n_merged: repeated (user, item) pairs that a filter merged.
        n_filtered: interactions that a k-core filter removed.
        notes: one line for each further remark.
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
    """A log: users, the items they chose, and the times.

    Make one with :func:`read_log`, :func:`from_frame` or :func:`from_dataset`.

    Attributes:
        frame: ``user_id`` and ``item_id`` (both int64 or string), ``timestamp`` (int64; absent
            if the log has only an order), ``synthetic`` (bool; absent if no item is marked), and
            the log's other columns. Sorted by user; a user's rows are together, oldest first.
        summary: source and size, and the changes made.
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
            users, user_ids = codes_of(frame["user_id"])
            items, item_ids = codes_of(frame["item_id"])
            keep, rounds = k_core(users, items, min_user or 1, min_item or 1)
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
                others such as ``name`` and ``category``. Items that the log does not hold are
                left out; items that the frame does not hold get nulls.

        Raises:
            DataError: the attributes have no item column, an item twice, or no item of the log.
        """
        frame = self.frame
        starts = _starts(frame)
        codes, item_ids = codes_of(frame["item_id"])
        codes += 1
        catalog = Catalog(
            item_ids=item_ids,
            n_users=len(starts),
            user_ids=frame["user_id"].gather(starts),
            attributes=None if attributes is None else _aligned(attributes, item_ids),
        )
        marked = "synthetic" in frame.columns and frame["synthetic"].any()
        return SequenceDataset.from_offsets(
            items=codes,
            offsets=np.append(starts, frame.height),
            catalog=catalog,
            synthetic=frame["synthetic"].to_numpy().copy() if marked else None,
            timestamps=frame["timestamp"].to_numpy() if "timestamp" in frame.columns else None,
        )

    def write(self, path: Path | str, format: str | None = None) -> None:
        """Writes the log; the file is complete or absent.

        A log without times gets each interaction's position in its user's history, from 0, as
        ``timestamp``. ``sequences`` holds no times, no synthetic marks and no other columns. A
        text format does not tell the string ``"7"`` from the integer 7; Parquet does.

        Args:
            path: must not exist.
            format: ``csv``, ``parquet``, ``sequences``, ``inter`` or another format that can be
                written; by default that of the end of the name (``.txt`` is ``sequences``).

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
        format: name of one of :data:`~diffuserec.data.formats.FORMATS`; by default it is
            recognized by the name and the content.
        user: name of the column of users; by default the one with a usual name.
        item: name of the column of items; by default the one with a usual name.
        time: name of the column of times; by default the one with a usual name. ``none`` (if no
            column has that name) takes the rows to be in time order, which a table without times
            needs.
        allow_single: accept a log of one user or one item: nothing can be learned from it, but it
            can hold histories to recommend to.

    Raises:
        DataError: the file is missing, empty, damaged, or not of the format; the message names
            the line or column and says how to mend it.
        ConfigError: no such format.
    """
    named = {"user_id": user, "item_id": item, "timestamp": time}
    with read_columns(path, format, named) as columns:
        return _assemble(columns, allow_single)


def from_frame(
    frame: Any, user: str | None = None, item: str | None = None, time: str | None = None
) -> Interactions:
    """The interactions of a frame: pandas, Polars (eager or lazy), pyarrow, or another of narwhals.

    Args:
        frame: one interaction a row.
        user: name of the column of users; by default the one with a usual name.
        item: name of the column of items; by default the one with a usual name.
        time: name of the column of times; by default the one with a usual name. ``none`` takes
            the rows to be in time order.

    Raises:
        DataError: a column is missing or has a wrong value; names the column and row (from 0).
    """
    table, kind = _as_polars(frame, "the frame")
    source = Source(f"the {kind} frame")
    named = {"user_id": user, "item_id": item, "timestamp": time}
    roles = find_roles(table.columns, named, source)
    return _assemble(Columns(table.clone(), roles, source, "frame"))


def from_dataset(dataset: SequenceDataset) -> Interactions:
    """The interactions of a dataset, with raw ids; synthetic items are marked.

    Users whose raw ids the catalog does not keep are named by their numbers. A dataset without
    times gives a log without ``timestamp``.
    """
    catalog = dataset.catalog
    numbers = np.asarray(dataset.users)
    users = pl.Series("user_id", numbers)
    if catalog.user_ids is not None:
        users = catalog.user_ids.gather(numbers).rename("user_id")
    owners = pl.Series(np.repeat(np.arange(len(dataset)), dataset.lengths))
    columns = [
        users.gather(owners),
        catalog.item_ids.gather(np.asarray(dataset.items, dtype=np.int64) - 1).rename("item_id"),
    ]
    if dataset.timestamps is not None:
        columns.append(pl.Series("timestamp", np.asarray(dataset.timestamps)))
    if dataset.has_synthetic:
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
            values, note = parse_times(table.drop_in_place(name), source)
        else:
            values, note = parse_ids(table.drop_in_place(name), source, columns.text)
        series.append(values.alias(role))
        if note:
            notes.append(f"{role}: {note}")
    if "timestamp" not in roles:
        notes.append("no times: the order of the source is the order in time")
    if "synthetic" in table.columns:
        series.append(parse_flags(table.drop_in_place("synthetic"), source))
        mapping.append(("synthetic", "synthetic"))
    for name in table.columns:
        kept = name
        while kept in ALIASES or (kept != name and kept in table.columns):
            kept = f"file_{kept}"
        series.append((parse_other(table[name]) if columns.text else table[name]).alias(kept))
        mapping.append((name, kept))
    frame, n_reordered = _sorted(pl.DataFrame(series))
    summary = Summary(
        source.name, columns.format, tuple(mapping), n_reordered=n_reordered, notes=tuple(notes)
    )
    demand = None if allow_single else "so there is nothing to recommend"
    return _counted(frame, summary, demand)


def _sorted(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The frame by user, then time, then its own order; and how many rows were out of order."""
    users, user_ids = codes_of(frame["user_id"])
    n_reordered, order = 0, None
    if (users[1:] < users[:-1]).any():
        order = group_order(users, len(user_ids))
    if "timestamp" in frame.columns:
        times = frame["timestamp"].to_numpy()
        by_user, in_time = (users, times) if order is None else (users[order], times[order])
        late = (in_time[1:] < in_time[:-1]) & (by_user[1:] == by_user[:-1])
        n_reordered = int(late.sum())
        del by_user, in_time, late
        if n_reordered:
            by_time = time_order(times)
            order = by_time[group_order(users[by_time], len(user_ids))]
    if order is None:
        return frame, n_reordered
    rest = frame.drop("user_id")[order]
    # in this order the codes ascend, so this reads memory in one sweep
    ids = user_ids.gather(users[order]).rename("user_id")
    return rest.insert_column(0, ids), n_reordered


def _starts(frame: pl.DataFrame) -> Int64[np.ndarray, " U"]:
    """First row of each user of a frame whose users are together."""
    users = frame["user_id"]
    return users.ne_missing(users.shift()).arg_true().to_numpy().astype(np.int64)


def _counted(frame: pl.DataFrame, summary: Summary, demand: str | None = None) -> Interactions:
    """The log with its counts.

    Raises:
        DataError: fewer than two users or items, if there is a demand, which ends the message.
    """
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


def _aligned(attributes: Any, item_ids: pl.Series) -> pl.DataFrame:
    """The attributes in the order of the items, without their column of ids."""
    table, _ = _as_polars(attributes, "attributes")
    source = Source("the attributes")
    found = usual_names(table.columns, "item_id")
    name = "item_id" if "item_id" in found else found[0] if len(found) == 1 else None
    if name is None:
        raise source.fail(
            f"no column 'item_id' among: {', '.join(table.columns)}: rename one to it"
        )
    at = IdIndex(item_ids).find(table[name])
    known = np.flatnonzero(at >= 0)
    if not len(known):
        raise source.fail("none of the items is in the log: check the ids")
    row_of_item = np.full(len(item_ids), -1)
    row_of_item[at[known]] = known
    again = known[row_of_item[at[known]] != known]
    if len(again):
        row = int(again[0])
        raise source.fail(f"item {table[name][row]!r} has more than one row: keep one", row)
    rows = pl.Series(row_of_item)
    return table.drop(name)[rows.set(rows < 0, None)]
