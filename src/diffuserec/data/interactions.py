"""Interaction logs: out of files and frames, filters, and the way into the ragged store.

A log is a table of users, the items they chose, and the times. From whatever source, it becomes an
:class:`Interactions`: a Polars frame grouped by user, oldest first. Raw ids live here and in the
:class:`~diffuserec.data.catalog.Catalog`, nowhere else. File formats are listed in
:mod:`~diffuserec.data.formats`, types of ids and times in :mod:`~diffuserec.data.columns`.
"""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int64

from diffuserec.data.attributes import described, frame_of_items, read_items
from diffuserec.data.catalog import Catalog
from diffuserec.data.columns import (
    Columns,
    Source,
    find_roles,
    kept_name,
)
from diffuserec.data.dataset import SequenceDataset
from diffuserec.data.formats import read_columns, write_log
from diffuserec.data.frames import to_polars
from diffuserec.data.grouping import codes_of, k_core, user_order
from diffuserec.data.selection import select
from diffuserec.data.summary import (
    AFTER_FILTERING,
    AT_FIRST,
    MARKS,
    Summary,
    in_words,
    note_of_core,
    note_of_merging,
    note_of_positives,
    require_limits,
    require_two,
)
from diffuserec.data.values import (
    ids_of_objects,
    other_of_objects,
    parse_flags,
    parse_ids,
    parse_other,
    parse_times,
    times_of_objects,
)
from diffuserec.errors import ConfigError, DataError

_UNITS = 100
"""Factor by which newest times differ if their units do."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """A log: users, the items they chose, and the times.

    Make one with :func:`read_log`, :func:`from_frame` or :func:`from_dataset`.

    Attributes:
        frame: ``user_id`` and ``item_id`` (both int64 or string), ``timestamp`` (int64; absent
            if the log has only an order), ``synthetic`` and ``context_only`` (bool; see
            :class:`FlatLog`; absent if no item is marked), and the log's other columns. Sorted by
            user; a user's rows are together, oldest first.
        summary: source and size, and the changes made.
        attributes: of items, as a frame with a column ``item_id``, or None.
        removed_items: ids of items that a filter removed; attributes do not bring them back.
    """

    frame: pl.DataFrame
    summary: Summary
    attributes: pl.DataFrame | None = None
    removed_items: pl.Series | None = None

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
        require_limits(min_user, min_item)
        frame, summary, notes = self.frame, self.summary, list(self.summary.notes)
        n_merged = n_filtered = 0
        if merge_repeats:
            frame = frame.unique(["user_id", "item_id"], keep="first", maintain_order=True)
            n_merged = self.frame.height - frame.height
            notes.append(note_of_merging(n_merged))
        if min_user is not None or min_item is not None:
            users, user_ids = codes_of(frame["user_id"])
            items, item_ids = codes_of(frame["item_id"])
            keep, rounds = k_core(users, items, min_user or 1, min_item or 1)
            n_filtered = int((~keep).sum())
            core = frame.filter(pl.Series(keep))
            sizes = (
                n_filtered,
                len(user_ids) - core["user_id"].n_unique(),
                len(item_ids) - core["item_id"].n_unique(),
            )
            notes.append(
                note_of_core(summary.source, min_user, min_item, frame.height, sizes, rounds)
            )
            frame = core
        summary = replace(
            summary,
            n_merged=summary.n_merged + n_merged,
            n_filtered=summary.n_filtered + n_filtered,
            filters=summary.filters + in_words(min_user, min_item, merge_repeats),
            notes=tuple(notes),
        )
        left = _counted(frame, summary, AFTER_FILTERING)
        before = self.frame["item_id"].unique()
        removed = before.filter(~before.is_in(frame["item_id"].unique().to_list()))
        if self.removed_items is not None:
            removed = pl.concat([self.removed_items, removed])
        return replace(left, attributes=self.attributes, removed_items=removed)

    def to_dataset(self, attributes: Any = None) -> SequenceDataset:
        """The log as a ragged dataset; items and users are numbered by their sorted raw ids.

        Args:
            attributes: optional frame (pandas, Polars, pyarrow) with a column of item ids and
                others such as ``name`` and ``category``, by default those read with the log; see
                :mod:`diffuserec.data.attributes`. Its items that no interaction has come behind
                the others in the catalog, but for those that a filter removed; items that it does
                not hold get nulls.

        Raises:
            DataError: the attributes have no item column, an item twice, or no item of the log.
        """
        frame = self.frame
        starts = _starts(frame)
        codes, item_ids = codes_of(frame["item_id"])
        codes += 1
        source, table = Source("the attributes"), self.attributes
        if attributes is not None:
            table, source = frame_of_items(attributes)
        user_ids = frame["user_id"].gather(starts)
        catalog = catalog_of(self.summary, user_ids, item_ids, table, source, self.removed_items)
        marks = {
            name: frame[name].to_numpy().copy()
            for name in MARKS
            if name in frame.columns and frame[name].any()
        }
        return SequenceDataset.from_offsets(
            items=codes,
            offsets=np.append(starts, frame.height),
            catalog=catalog,
            timestamps=frame["timestamp"].to_numpy() if "timestamp" in frame.columns else None,
            **marks,
        )

    def write(self, path: Path | str, format: str | None = None) -> None:
        """Writes the log; the file is complete or absent.

        A log without times gets each interaction's position in its user's history, from 0, as
        ``timestamp``. ``sequences`` holds no times, no synthetic marks and no other columns. A
        text format does not tell the string ``"7"`` or ``"7.0"`` from the integer 7, nor, unless
        it is read with ``literal_ids``, an id from one with blanks around it; Parquet does.

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
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    where: str | None = None,
    items: Path | str | None = None,
    items_id: str | None = None,
    item_columns: Sequence[str] | None = None,
    known_items_only: bool = False,
    literal_ids: bool = False,
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
        columns: names of the columns by their position, for a table without a header:
            ``["user", "item", "rating", "time"]``.
        encoding: of a text file, such as ``latin-1``; by default UTF-8.
        where: keeps only the rows for which this SQL expression is true, such as
            ``rating >= 4`` or ``event_type = 'purchase'``. It names columns as the file does.
        items: file with a row for each item (CSV, TSV, Parquet or JSON lines): its id, under the
            name that `item` gives or a usual one, and columns such as ``name`` (or ``title``) and
            ``category``, for lists, reports and models; see :mod:`diffuserec.data.attributes`. Its
            items that no interaction has become items of the catalog. Or a ``.json`` file: one
            object of lists of categories by item id.
        items_id: name of its column of ids, if it is another.
        item_columns: its columns to keep, by default all; ``brand:category`` takes numbers for
            categories, ``genres:categories`` divides a text such as ``Comedy|Drama``.
        known_items_only: leave out its items that no interaction has.
        literal_ids: take ids of a text file as they are: blanks around them belong to them,
            ``null`` and ``nan`` are ids, ``7.0`` is not 7.
        allow_single: accept a log of one user or one item: nothing can be learned from it, but it
            can hold histories to recommend to.

    Raises:
        DataError: the file is missing, empty, damaged, or not of the format; the message names
            the line or column and says how to mend it.
        ConfigError: no such format or encoding.
    """
    named = {"user_id": user, "item_id": item, "timestamp": time}
    with read_columns(path, format, named, columns, encoding) as found:
        log = _assemble(found, where, literal_ids, allow_single)
    if items is None:
        require_no_items_options(items_id, item_columns)
        return log
    return with_items(
        log,
        items,
        encoding,
        literal_ids,
        item,
        items_id=items_id,
        item_columns=item_columns,
        known_items_only=known_items_only,
    )


def require_no_items_options(items_id: str | None, item_columns: Sequence[str] | None) -> None:
    """Raises ConfigError if something is said about a file of items that is not given."""
    for name, value in (("items_id", items_id), ("item_columns", item_columns)):
        if value is not None:
            raise ConfigError(f"{name} is about a file of items: name it with items= (--items)")


def read_histories(
    path: Path | str,
    format: str | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    literal_ids: bool = False,
) -> pl.DataFrame:
    """The frame of a log of histories to recommend to; the arguments are :func:`read_log`'s.

    Item ids of a text file stay strings, so that a catalog takes each of them for the same item
    whatever else is in the file. One user or one item is enough.

    Raises:
        DataError: the file is missing, empty, damaged, or not of the format.
        ConfigError: no such format or encoding.
    """
    named = {"user_id": user, "item_id": item, "timestamp": time}
    with read_columns(path, format, named, columns, encoding) as found:
        return _assemble(found, None, literal_ids, allow_single=True, texts={"item_id"}).frame


def read_more(
    path: Path | str,
    like: Catalog,
    format: str | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    where: str | None = None,
    literal_ids: bool = False,
) -> Interactions:
    """Reads a log that goes on where another ended; the other arguments are :func:`read_log`'s.

    Args:
        like: catalog of the earlier log. Where its ids are strings, those of a text file stay
            strings, whatever they look like. One user or one item is enough.

    Raises:
        DataError: the file is missing, empty, damaged, or not of the format.
        ConfigError: no such format or encoding.
    """
    named = {"user_id": user, "item_id": item, "timestamp": time}
    ids = {"user_id": like.user_ids, "item_id": like.item_ids}
    texts = {role for role, known in ids.items() if known is not None and known.dtype == pl.String}
    with read_columns(path, format, named, columns, encoding) as found:
        return _assemble(found, where, literal_ids, allow_single=True, texts=texts)


def append(older: Interactions, newer: Interactions) -> tuple[Interactions, int]:
    """A log and one that goes on where it ended, as one; what both hold is taken once.

    Ids are strings if those of either log are. Columns beside users, items and times are left out.
    Without times, the newer interactions follow the older ones.

    Returns:
        The log, and the number of interactions of the newer one that the older held already, which
        only times can tell.

    Raises:
        DataError: only one of the logs has times, or their units differ; synthetic items; or the
            newer log adds nothing.
    """
    roles = ["user_id", "item_id", "timestamp"]
    frames = [
        log.frame.select(r for r in roles if r in log.frame.columns) for log in (older, newer)
    ]
    name = newer.summary.source
    if any(mark in log.frame.columns for log in (older, newer) for mark in MARKS):
        raise DataError(
            f"{name}: logs with synthetic items are not appended: use the original ones"
        )
    if frames[0].columns != frames[1].columns:
        has, lacks = (
            ("the earlier log", name) if "timestamp" in frames[0] else (name, "the earlier log")
        )
        raise DataError(
            f"{has} has times and {lacks} has none: name their column, or leave both out"
        )
    for role in ("user_id", "item_id"):
        kinds = {frame[role].dtype == pl.String for frame in frames}
        dtype = pl.String if True in kinds else pl.Int64
        frames = [frame.with_columns(pl.col(role).cast(dtype)) for frame in frames]
    n_known = 0
    if "timestamp" in roles[: frames[0].width]:
        _require_one_unit(frames[0]["timestamp"], frames[1]["timestamp"], name)
        fresh = frames[1].join(frames[0], on=roles, how="anti", maintain_order="left")
        n_known = frames[1].height - fresh.height
        frames[1] = fresh
    if not frames[1].height:
        raise DataError(f"{name} adds nothing: the earlier log holds all of its {n_known:,} rows")
    frame, _ = _sorted(pl.concat(frames))
    summary = replace(
        older.summary,
        source=f"{older.summary.source} and {name}",
        columns=tuple((role, role) for role in frame.columns),
        others=(),
    )
    return replace(_counted(frame, summary), attributes=older.attributes), n_known


def _require_one_unit(older: pl.Series, newer: pl.Series, name: str) -> None:
    """Refuses times that differ by factors, as seconds and microseconds do."""
    last, first = (int(part.cast(pl.Int64).max() or 0) for part in (older, newer))  # type: ignore[arg-type]
    if min(last, first) > 0 and max(last, first) > _UNITS * min(last, first):
        raise DataError(
            f"{name}: its newest time is {first}, that of the earlier log {last}: they are not of "
            "one unit; write both as dates, or both as numbers of one unit"
        )


def from_frame(
    frame: Any,
    user: Hashable | None = None,
    item: Hashable | None = None,
    time: Hashable | None = None,
    *,
    where: str | None = None,
    literal_ids: bool = False,
) -> Interactions:
    """The interactions of a frame: pandas, Polars (eager or lazy), pyarrow, or another of narwhals.

    Args:
        frame: one interaction a row.
        user: name of the column of users; by default the one with a usual name.
        item: name of the column of items; by default the one with a usual name.
        time: name of the column of times; by default the one with a usual name. ``none`` takes
            the rows to be in time order.
        where: keeps only the rows for which this SQL expression is true, such as
            ``rating >= 4``. It names columns as the frame does.
        literal_ids: take strings such as ``null`` and ``nan`` for ids.

    Raises:
        DataError: a column is missing or has a wrong value; names the column and row (from 0).
    """
    table, objects, kind = to_polars(frame, "the frame")
    source = Source(f"the {kind} frame")
    given = {"user_id": user, "item_id": item, "timestamp": time}
    named = {role: None if name is None else str(name) for role, name in given.items()}
    roles = find_roles([*table.columns, *objects], named, source)
    columns = Columns(table.clone(), roles, source, "frame", objects=objects)
    return _assemble(columns, where, literal_ids)


def from_dataset(dataset: SequenceDataset) -> Interactions:
    """The interactions of a dataset, with raw ids; items that are no targets are marked.

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
    if dataset.context_only is not None:
        columns.append(pl.Series("context_only", np.ascontiguousarray(dataset.context_only)))
    frame = pl.DataFrame(columns).sort("user_id", maintain_order=True)
    names = tuple((name, name) for name in frame.columns)
    log = _counted(frame, Summary(catalog.log or "the dataset", "dataset", names))
    if catalog.attributes is None:
        return log
    others = catalog.attributes.drop("item_id", strict=False)
    return replace(log, attributes=catalog.item_ids.to_frame("item_id").hstack(others))


def _assemble(
    columns: Columns,
    where: str | None,
    literal: bool,
    allow_single: bool = False,
    texts: Collection[str] = (),
) -> Interactions:
    """Checks and converts the columns, and sorts the rows by user and time; empties the table."""
    columns, notes = select(columns, where)
    table, roles, source = columns.table, columns.roles, columns.source
    if not table.height and not any(map(len, columns.objects.values())):
        raise source.fail("there is no interaction")
    objects = dict(columns.objects)
    series: list[pl.Series] = []
    for role, name in roles.items():
        # taken out of the table, so that each column's raw values go before the next is converted
        if name in objects:
            values, note = _of_objects(role, name, objects.pop(name), source, literal)
        elif role == "timestamp":
            values, note = parse_times(table.drop_in_place(name), source)
        else:
            typed = role not in texts
            values, note = parse_ids(
                table.drop_in_place(name), source, columns.text, literal, typed
            )
        series.append(values.alias(role))
        if note:
            notes.append(f"{role}: {note}")
    if "timestamp" not in roles:
        notes.append("no times: the order of the source is the order in time")
    mapping = [(name, role) for role, name in roles.items()]
    for name, raw in objects.items():
        other = other_of_objects(name, raw)
        if other is None:
            notes.append(f"column {name!r} left out: its values are not of one type")
        else:
            table = table.with_columns(other) if table.width else other.to_frame()
    for name in MARKS:
        if name in table.columns:
            series.append(parse_flags(table.drop_in_place(name), source))
            mapping.append((name, name))
    if where is None:
        notes += note_of_positives(table.columns, lambda name: _first_text(table[name]))
    others = []
    for name in table.columns:
        kept = kept_name(name, table.columns)
        series.append((parse_other(table[name]) if columns.text else table[name]).alias(kept))
        others.append((name, kept))
    frame, n_reordered = _sorted(pl.DataFrame(series))
    summary = Summary(
        source.name,
        columns.format,
        tuple(mapping),
        tuple(others),
        n_reordered=n_reordered,
        notes=tuple(notes),
        filters=() if where is None else (f"where {where}",),
    )
    return _counted(frame, summary, None if allow_single else AT_FIRST)


def _of_objects(
    role: str, name: str, values: Sequence[Any], source: Source, literal: bool
) -> tuple[pl.Series, str]:
    """Ids or times out of Python objects, and a note on a conversion, if any."""
    if role == "timestamp":
        return parse_times(times_of_objects(name, values, source), source)
    ids, note = ids_of_objects(name, values, source)
    ids, further = parse_ids(ids, source, text=False, literal=literal)
    return ids, note or further


def _first_text(values: pl.Series) -> str | None:
    """The first value of a column of text, empty if it has none; None for another column."""
    if values.dtype != pl.String:
        return None
    known = values.drop_nulls()
    return str(known[0]) if len(known) else ""


def with_items(
    log: Interactions,
    path: Path | str,
    encoding: str | None = None,
    literal_ids: bool = False,
    item: str | None = None,
    *,
    items_id: str | None = None,
    item_columns: Sequence[str] | None = None,
    known_items_only: bool = False,
) -> Interactions:
    """The log with the attributes in a file of items, and a note on how many were found.

    Args:
        path: the file; the other arguments are :func:`read_log`'s.
        item: name of the log's column of items, which that of the file has, too, or a usual one.

    Raises:
        DataError: the file cannot be read, has no column of ids, or has an item twice.
        ConfigError: no such kind of column.
    """
    attributes, notes = read_items(
        Path(path),
        log.frame["item_id"].unique().sort(),
        item,
        id_column=items_id,
        columns=item_columns,
        known_only=known_items_only,
        encoding=encoding,
        literal=literal_ids,
    )
    summary = replace(log.summary, notes=(*log.summary.notes, *notes))
    return replace(log, attributes=attributes, summary=summary)


def _sorted(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The frame by user, then time, then its own order; and how many rows were out of order."""
    users, user_ids = codes_of(frame["user_id"])
    times = frame["timestamp"].to_numpy() if "timestamp" in frame.columns else None
    order, n_reordered = user_order(users, len(user_ids), times)
    if order is None:
        return frame, n_reordered
    rest = frame.drop("user_id")[order]
    # in this order the codes ascend, so this reads memory in one sweep
    ids = user_ids.gather(users[order]).rename("user_id")
    return rest.insert_column(0, ids), n_reordered


def catalog_of(
    summary: Summary,
    user_ids: pl.Series,
    item_ids: pl.Series,
    attributes: pl.DataFrame | None,
    source: Source,
    removed_items: pl.Series | None,
) -> Catalog:
    """The catalog of a log: its items, and behind them those of which it has attributes alone.

    Args:
        user_ids: of its users, ascending.
        item_ids: of its items, ascending.
        attributes: of items, the ids in front; or None.
        source: of the attributes.
        removed_items: ids of items that a filter removed.

    Raises:
        DataError: as for :meth:`Interactions.to_dataset`.
    """
    of_items = None
    if attributes is not None:
        found = described(attributes, item_ids, source, removed_items)
        item_ids, of_items = found.item_ids, found.attributes
    return Catalog(
        item_ids=item_ids,
        n_users=len(user_ids),
        user_ids=user_ids,
        attributes=of_items,
        log=summary.source,
        filters=", ".join(summary.filters) or "none",
    )


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
    if demand is not None:
        require_two(summary.source, n_rows, n_users, n_items, demand)
    if "timestamp" in frame.columns:
        times = frame["timestamp"].to_numpy()
        same = times[1:] == times[:-1]
        same[starts[1:] - 1] = False
        n_ties = int(same.sum())
    counted = replace(
        summary, n_interactions=n_rows, n_users=n_users, n_items=n_items, n_ties=n_ties
    )
    return Interactions(frame, counted)
