"""Logs larger than memory, made into prepared data a piece at a time.

The result is that of reading the log whole: the same numbers, order, notes and errors. The way:

1. Polars' streaming engine groups the raw ids of users and of items; what
   :func:`~diffuserec.data.values.parse_ids` says of the distinct ones holds for all rows.
2. It joins the numbers to the rows, in their order, and each batch is divided by user over files:
   a partition holds all rows of some consecutive users.
3. A partition is sorted in memory, merged, and added to the flat arrays on the disk.
4. A k-core filter counts over these arrays until nothing changes; then they are written anew.

What stays in memory are a partition and a few numbers for each user and item.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32, Int64

from diffuserec.data.arrays import TYPES, ArrayWriter, blocks, map_array, read_part
from diffuserec.data.columns import Scan, Source, kept_name
from diffuserec.data.dataset import offsets_of
from diffuserec.data.grouping import codes_of, user_order
from diffuserec.data.partitions import Partitions
from diffuserec.data.selection import select_in_scan
from diffuserec.data.summary import (
    AFTER_FILTERING,
    AT_FIRST,
    MARKS,
    Summary,
    in_words,
    note_of_core,
    note_of_merging,
    note_of_positives,
    require_two,
)
from diffuserec.data.values import TimeReader, parse_flags, parse_ids
from diffuserec.errors import DataError

_ROW = "row of the source"
_OWN = "as it stands: {}"
_NUMBER = "number of {}"


@dataclass(frozen=True)
class Limits:
    """Sizes of what is in memory at a time, by the bytes that all of it may take.

    Attributes:
        memory: bytes for interactions; ids and their tables come on top.
    """

    memory: int

    @property
    def n_rows(self) -> int:
        """Rows of a partition: sorting takes about 128 bytes for each, in a quarter of memory."""
        return max(64, self.memory // 512)

    @property
    def n_batch(self) -> int:
        """Rows that Polars gives at a time."""
        return min(max(64, self.memory // 2048), 2**20)

    @property
    def n_bytes(self) -> int:
        """Bytes of text that are read at a time; as arrays and strings they take some 20 times."""
        return min(max(1024, self.memory // 128), 2**24)


@dataclass(frozen=True, eq=False)
class FlatFiles:
    """A log in flat arrays on the disk, by user and time, and what goes with them.

    Attributes:
        files: of the arrays ``items`` and perhaps ``timestamps``, ``synthetic``, ``context_only``.
        lengths: interactions of each user, shape (U,).
        user_ids: raw ids of the users in the order of their numbers.
        item_ids: raw ids of the items in the order of their numbers.
        read_items: raw ids of all items that were read, those of filtered ones too.
        summary: source and size, and the changes made.
    """

    files: dict[str, Path]
    lengths: Int64[np.ndarray, " U"]
    user_ids: pl.Series
    item_ids: pl.Series
    read_items: pl.Series
    summary: Summary


def flat_files(
    scan: Scan,
    folder: Path,
    limits: Limits,
    where: str | None = None,
    literal: bool = False,
    min_user: int | None = None,
    min_item: int | None = None,
    merge_repeats: bool = False,
    about_items: Callable[[pl.Series], Sequence[str]] | None = None,
) -> FlatFiles:
    """Makes the flat arrays of a log in an empty folder; for the options see ``prepare_log``.

    Args:
        about_items: called with the ids of all items that were read, for further notes.

    Raises:
        DataError: a value is wrong, or too few users or items are there or left.
    """
    notes = list(scan.notes)
    frame, note = _frame_of_roles(scan, where)
    notes += note
    marks = [name for name in MARKS if name in frame.collect_schema()]
    users = _numbered(frame, "user_id", scan, literal, folder, notes)
    items = _numbered(frame, "item_id", scan, literal, folder, notes)
    times = _times_looked_at(frame, scan, limits)
    records = _records(frame, scan, (users, items), times, marks, limits)
    partitions = Partitions(folder, users.n_rows, limits.n_rows, times is not None, marks)
    n_rows = 0
    for batch in records:
        partitions.add(batch)
        n_rows += len(batch["users"])
    if times is None:
        notes.append("no times: the order of the source is the order in time")
    elif times.note:
        notes.append(f"timestamp: {times.note}")
    others = [name for name in scan.names if name not in scan.roles.values() and name not in marks]
    if where is None:
        notes += note_of_positives(others, lambda name: _first_text(scan.frame, name))
    source = scan.source.name
    require_two(source, n_rows, len(users.n_rows), len(items.n_rows), AT_FIRST)
    if about_items is not None:
        notes += about_items(items.ids())
    sorted_log = _sorted_files(partitions, folder, len(users.n_rows), merge_repeats)
    summary = Summary(
        source,
        scan.format,
        (*((name, role) for role, name in scan.roles.items()), *((name, name) for name in marks)),
        tuple((name, kept_name(name, others)) for name in others),
        n_interactions=n_rows,
        n_users=len(users.n_rows),
        n_items=len(items.n_rows),
        n_reordered=sorted_log.n_reordered,
        n_ties=sorted_log.n_ties,
        notes=tuple(notes),
        filters=() if where is None else (f"where {where}",),
    )
    user_ids, item_ids = users.ids(), items.ids()
    log = FlatFiles(sorted_log.files, sorted_log.lengths, user_ids, item_ids, item_ids, summary)
    if min_user is not None or min_item is not None or merge_repeats:
        n_merged = n_rows - int(log.lengths.sum())
        log = _filtered(log, folder, limits, min_user, min_item, merge_repeats, n_merged)
    return replace(log, files=_without_idle_marks(log.files))


def _frame_of_roles(scan: Scan, where: str | None) -> tuple[pl.LazyFrame, list[str]]:
    """The rows that are kept: their place in the source, ids, times and marks under our names."""
    columns = dict(scan.roles)
    columns |= {
        name: name for name in MARKS if name in scan.names and name not in scan.roles.values()
    }
    raw = scan.frame.collect_schema()
    frame = scan.frame.with_row_index(_ROW).with_columns(
        (
            pl.col(name).cast(pl.String)
            if role in ("user_id", "item_id") and raw[name] in (pl.Categorical, pl.Enum)
            else pl.col(name)
        ).alias(_OWN.format(role))
        for role, name in columns.items()
    )
    notes = []
    if where is not None:
        frame, note = select_in_scan(frame, scan, where)
        notes.append(note)
    return frame.select(_ROW, *(pl.col(_OWN.format(role)).alias(role) for role in columns)), notes


@dataclass(frozen=True, eq=False)
class _Numbered:
    """Numbers of the raw ids of users or items.

    Attributes:
        index: each distinct raw value and its number.
        n_rows: rows of each number.
        file: of the ids in the order of their numbers.
    """

    index: pl.DataFrame
    n_rows: Int64[np.ndarray, " I"]
    file: Path

    def ids(self) -> pl.Series:
        """The ids in the order of their numbers."""
        return pl.read_parquet(self.file, glob=False).to_series()


def _numbered(
    frame: pl.LazyFrame, role: str, scan: Scan, literal: bool, folder: Path, notes: list[str]
) -> _Numbered:
    """Numbers the raw ids of a role in the order of the ids that they stand for."""
    name = scan.roles[role]

    def parsed(values: pl.Series, source: Source, n_rows: pl.Series) -> tuple[pl.Series, str]:
        return parse_ids(values.alias(name), source, scan.text, literal, n_rows=n_rows)

    distinct = frame.group_by(role).agg(pl.len().alias("n")).collect(engine="streaming")
    if not distinct.height:
        raise scan.source.fail("there is no interaction")
    try:
        ids, note = parsed(distinct[role], scan.source, distinct["n"])
    except DataError:
        # of the wrong values, the one to name is the first in the source
        first = frame.group_by(role).agg(pl.col(_ROW).min(), pl.len().alias("n"))
        found = first.sort(_ROW).collect(engine="streaming")
        parsed(found[role], _at_rows(scan.source, found[_ROW]), found["n"])
        raise
    if note:
        notes.append(f"{role}: {note}")
    codes, ordered = codes_of(ids)
    n_rows = np.bincount(codes, distinct["n"].to_numpy(), minlength=len(ordered)).astype(np.int64)
    file = folder / f"{role}s.parquet"
    ordered.alias(role).to_frame().write_parquet(file)
    index = distinct.select(role, pl.Series(_NUMBER.format(role), codes))
    return _Numbered(index, n_rows, file)


def _at_rows(source: Source, rows: pl.Series) -> Source:
    """The source of values that stand at these of its rows."""
    return replace(source, locate=lambda place: source.locate(int(rows[place])))


def _times_looked_at(frame: pl.LazyFrame, scan: Scan, limits: Limits) -> TimeReader | None:
    """A reader that has looked at all times; None if the log has none."""
    if "timestamp" not in scan.roles:
        return None
    reader, dtype = TimeReader(), frame.collect_schema()["timestamp"]
    if dtype.is_integer() or dtype.is_temporal():
        reader.look(pl.Series([], dtype=dtype))
        return reader
    for batch in _batches(frame.select("timestamp"), limits):
        reader.look(batch.to_series())
    return reader


def _batches(frame: pl.LazyFrame, limits: Limits) -> Iterator[pl.DataFrame]:
    yield from frame.collect_batches(
        chunk_size=limits.n_batch, maintain_order=True, engine="streaming"
    )


def _records(
    frame: pl.LazyFrame,
    scan: Scan,
    numbered: Sequence[_Numbered],
    times: TimeReader | None,
    marks: Sequence[str],
    limits: Limits,
) -> Iterator[dict[str, np.ndarray]]:
    """Columns ``users``, ``items`` and those of times and marks, in the order of the source."""
    readers: dict[str, Callable[[pl.Series, Source], pl.Series]] = {}
    if times is not None:
        readers["timestamp"] = times.read
    readers |= dict.fromkeys(marks, parse_flags)
    roles = ("user_id", "item_id")
    wide = frame
    for role, numbers in zip(roles, numbered, strict=True):
        wide = wide.join(numbers.index.lazy(), on=role, how="left", maintain_order="left")
    names = {name: scan.roles.get(name, name) for name in readers}
    for batch in _batches(wide.select(*map(_NUMBER.format, roles), *readers), limits):
        columns = {"users": batch[:, 0].to_numpy(), "items": batch[:, 1].to_numpy()}
        for name, read in readers.items():
            try:
                columns[name] = read(batch[name].alias(names[name]), scan.source).to_numpy()
            except DataError:
                _fail_at_row(frame, name, names[name], read, scan.source, limits)
                raise
        yield columns


def _fail_at_row(
    frame: pl.LazyFrame,
    column: str,
    name: str,
    read: Callable[[pl.Series, Source], pl.Series],
    source: Source,
    limits: Limits,
) -> None:
    """Reads a column again, rows in hand, so that its first wrong value is named with its place."""
    for batch in _batches(frame.select(_ROW, column), limits):
        read(batch[column].alias(name), _at_rows(source, batch[_ROW]))


def _first_text(frame: pl.LazyFrame, name: str) -> str | None:
    """The first value of a column of text, empty if it has none; None for another column."""
    if frame.collect_schema()[name] != pl.String:
        return None
    known = frame.select(name).filter(pl.col(name).is_not_null()).head(1)
    values = known.collect(engine="streaming").to_series()
    return str(values[0]) if len(values) else ""


@dataclass(frozen=True, eq=False)
class _Sorted:
    files: dict[str, Path]
    lengths: Int64[np.ndarray, " U"]
    n_reordered: int
    n_ties: int


def _sorted_files(
    partitions: Partitions, folder: Path, n_users: int, merge_repeats: bool
) -> _Sorted:
    """Sorts each partition by user and time, and writes them as flat arrays."""
    lengths = np.zeros(n_users, dtype=np.int64)
    n_reordered = n_ties = 0
    with _writers(folder, "", partitions.names) as writers:
        for first, last, columns in partitions:
            users = columns.pop("users") - np.int32(first)
            order, n_late = user_order(users, last - first, columns.get("timestamp"))
            n_reordered += n_late
            if merge_repeats:
                order = _first_of_pairs(users, columns["items"], order)
            if order is not None:
                users = users[order]
                columns = {name: values[order] for name, values in columns.items()}
            lengths[first:last] = np.bincount(users, minlength=last - first)
            n_ties += _ties(users, columns.get("timestamp"))
            columns["items"] += np.int32(1)
            for name, writer in writers.items():
                writer.add(columns[name])
    return _Sorted(_files(writers), lengths, n_reordered, n_ties)


def _first_of_pairs(
    users: Int32[np.ndarray, " N"],
    items: Int32[np.ndarray, " N"],
    order: Int[np.ndarray, " N"] | None,
) -> Int[np.ndarray, " M"]:
    """Those of the ordered positions at which a pair of user and item occurs first."""
    if order is None:
        order = np.arange(len(users))
    pairs = (users.astype(np.int64) << 32) | items
    _, first = np.unique(pairs[order], return_index=True)
    first.sort()
    kept: np.ndarray = order[first]
    return kept


def _ties(users: Int32[np.ndarray, " N"], times: Int64[np.ndarray, " N"] | None) -> int:
    """Rows with the user and the time of the row before."""
    if times is None:
        return 0
    return int(((times[1:] == times[:-1]) & (users[1:] == users[:-1])).sum())


@contextmanager
def _writers(folder: Path, prefix: str, columns: Sequence[str]) -> Iterator[dict[str, ArrayWriter]]:
    """Files of the arrays of some columns, which are complete at the end of the block."""
    with ExitStack() as opened:
        yield {
            name: opened.enter_context(
                ArrayWriter(folder / f"{prefix}{name}.npy", TYPES[_array(name)])
            )
            for name in columns
        }


def _files(writers: dict[str, ArrayWriter]) -> dict[str, Path]:
    return {_array(name): writer.path for name, writer in writers.items()}


def _array(column: str) -> str:
    return "timestamps" if column == "timestamp" else column


def _filtered(
    log: FlatFiles,
    folder: Path,
    limits: Limits,
    min_user: int | None,
    min_item: int | None,
    merge_repeats: bool,
    n_merged: int,
) -> FlatFiles:
    """The log without rare users and items; see ``Interactions.filter``."""
    summary, notes = log.summary, list(log.summary.notes)
    n_before = int(log.lengths.sum())
    if merge_repeats:
        notes.append(note_of_merging(n_merged))
    if min_user is not None or min_item is not None:
        users, items, rounds = _core(log, limits, min_user or 1, min_item or 1)
        n_users, n_items = int(users.sum()), int(items.sum())
        log, n_ties = _rewritten(log, folder, limits, users, items)
        n_left = int(log.lengths.sum())
        removed = (n_before - n_left, len(users) - n_users, len(items) - n_items)
        notes.append(note_of_core(summary.source, min_user, min_item, n_before, removed, rounds))
        summary = replace(summary, n_ties=n_ties)
    summary = replace(
        summary,
        n_interactions=int(log.lengths.sum()),
        n_users=len(log.user_ids),
        n_items=len(log.item_ids),
        n_merged=n_merged,
        n_filtered=n_before - int(log.lengths.sum()),
        filters=summary.filters + in_words(min_user, min_item, merge_repeats),
        notes=tuple(notes),
    )
    require_two(
        summary.source,
        summary.n_interactions,
        summary.n_users,
        summary.n_items,
        AFTER_FILTERING,
    )
    return replace(log, summary=summary)


def _core(
    log: FlatFiles, limits: Limits, min_user: int, min_item: int
) -> tuple[Bool[np.ndarray, " U"], Bool[np.ndarray, " I"], int]:
    """Which users and items a k-core keeps, and the number of rounds that removed any."""
    users = np.ones(len(log.user_ids), dtype=bool)
    items = np.ones(len(log.item_ids), dtype=bool)
    rounds = 0
    while True:
        of_user, of_item = np.zeros(len(users), np.int64), np.zeros(len(items), np.int64)
        for first, last, rows in _parts(log.lengths, limits):
            taken = read_part(log.files["items"], TYPES["items"], *rows) - 1
            owners = np.repeat(np.arange(last - first), log.lengths[first:last])
            kept = items[taken] & users[first:last][owners]
            of_user[first:last] = np.bincount(owners[kept], minlength=last - first)
            of_item += np.bincount(taken[kept], minlength=len(items))
        there, here = of_user > 0, of_item > 0
        enough = (of_user >= min_user)[there].all() and (of_item >= min_item)[here].all()
        users &= there & (of_user >= min_user)
        items &= here & (of_item >= min_item)
        if enough:
            return users, items, rounds
        rounds += 1


def _parts(
    lengths: Int64[np.ndarray, " U"], limits: Limits
) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Users [first, last) and rows [begin, end) of one part of the flat arrays after the other."""
    offsets, first = offsets_of(lengths), 0
    while first < len(lengths):
        end = int(np.searchsorted(offsets, offsets[first] + limits.n_rows, side="right")) - 1
        last = max(first + 1, end)
        yield first, last, (int(offsets[first]), int(offsets[last]))
        first = last


def _rewritten(
    log: FlatFiles,
    folder: Path,
    limits: Limits,
    users: Bool[np.ndarray, " U"],
    items: Bool[np.ndarray, " I"],
) -> tuple[FlatFiles, int]:
    """The log of some users and items, numbered anew, and its ties of times."""
    number = np.cumsum(items, dtype=np.int32)
    lengths, n_ties = np.zeros(len(users), np.int64), 0
    columns = {"timestamp" if name == "timestamps" else name: name for name in log.files}
    with _writers(folder, "kept-", list(columns)) as writers:
        for first, last, rows in _parts(log.lengths, limits):
            part = {
                column: read_part(log.files[name], TYPES[name], *rows)
                for column, name in columns.items()
            }
            part["items"] -= 1
            owners = np.repeat(np.arange(last - first, dtype=np.int32), log.lengths[first:last])
            kept = items[part["items"]] & users[first:last][owners]
            part = {name: values[kept] for name, values in part.items()}
            owners = owners[kept]
            part["items"] = number[part["items"]]
            lengths[first:last] = np.bincount(owners, minlength=last - first)
            n_ties += _ties(owners, part.get("timestamp"))
            for name, writer in writers.items():
                writer.add(part[name])
    for file in log.files.values():
        file.unlink()
    left = replace(
        log,
        files=_files(writers),
        lengths=lengths[lengths > 0],
        user_ids=log.user_ids.filter(pl.Series(users)),
        item_ids=log.item_ids.filter(pl.Series(items)),
    )
    return left, n_ties


def _without_idle_marks(files: dict[str, Path]) -> dict[str, Path]:
    """The files without those of marks that no interaction has."""

    def marked(name: str) -> bool:
        return any(bool(block.any()) for block in blocks(map_array(files[name], TYPES[name])))

    return {name: file for name, file in files.items() if name not in MARKS or marked(name)}
