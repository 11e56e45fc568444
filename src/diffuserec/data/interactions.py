"""Interaction logs: reading and writing every format, filters, and the way into the ragged store.

A log is a table of who took what, and when. Whatever it comes from, it becomes an
:class:`Interactions`: a Polars frame grouped by user, oldest first. Raw ids live here and in the
:class:`~diffuserec.data.dataset.Catalog`, nowhere else.

Formats:

==============  ==================================================================================
``csv, tsv``    a header line, then one interaction a line; quoted fields may span lines
``parquet``     one interaction a row
``jsonl``       one JSON object a line
``inter``       RecBole's atomic file: tabs, a header such as ``user_id:token``
``movielens``   ``user::item::rating::time``
``sequences``   one line a user: the user, then the items, oldest first
``pairs``       one line an interaction: ``user item``, in time order
==============  ==================================================================================

All but Parquet may be gzipped. A file of two fields on every line is read as ``pairs`` where a
user comes back, and as ``sequences`` where none does.

Ids in a text file are integers only if every one of them is written as an integer is (``7``, not
``007`` or ``7.0``); otherwise all stay the strings they were. Elsewhere they keep their type.

Times are int64. Integers stay as they are, and so do floats without a fraction; floats with one
are taken for seconds, dates for UTC where they name no zone, and both become microseconds.
"""

import csv
import difflib
import gzip
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32, Int64, UInt8
from scipy.sparse import csc_array

from diffuserec.data.dataset import Catalog, SequenceDataset
from diffuserec.errors import ConfigError, DataError

FORMATS = ("csv", "tsv", "parquet", "jsonl", "inter", "movielens", "sequences", "pairs")
WRITABLE = ("csv", "parquet", "sequences", "inter")

_ALIASES = {
    "user_id": ("user_id", "user", "uid", "query_id", "reviewer_id", "customer_id", "visitor_id"),
    "item_id": (
        *("item_id", "item", "iid", "asin", "parent_asin", "movie_id", "product_id"),
        *("article_id", "book_id", "business_id"),
    ),
    "timestamp": (
        *("timestamp", "time", "datetime", "ts", "date"),
        *("unix_review_time", "unix_time", "event_time"),
    ),
}
"""Usual column names; case, underscores, hyphens and blanks do not count."""

_OPTIONS = {"user_id": "user", "item_id": "item", "timestamp": "time"}
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".inter": "inter",
}
_NOT_TEXT = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"BZh": "bzip2 data: unpack it first",
    b"\xfd7zXZ": "xz data: unpack it first",
    b"\x28\xb5\x2f\xfd": "Zstandard data: unpack it first",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
    b"\x80": "perhaps a pickle, and pickles are never opened: export a CSV or Parquet file",
}
_MISSING = ("nan", "null", "none", "<na>", "\\n")
"""Ids that a program wrote in place of no id, in lower case."""

_BLOCK = 1 << 24
_MOMENT = "%Y-%m-%dT%H:%M:%S%.f"


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
    n_interactions: int
    n_users: int
    n_items: int
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

    def __str__(self) -> str:
        return self.describe()

    def filter(
        self,
        min_user: int | None = None,
        min_item: int | None = None,
        merge_repeats: bool = False,
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
        frame, notes = self.frame, list(self.summary.notes)
        n_merged = n_filtered = 0
        if merge_repeats:
            frame = frame.unique(["user_id", "item_id"], keep="first", maintain_order=True)
            n_merged = self.frame.height - frame.height
            notes.append(f"repeated (user, item) pairs merged into their first: {n_merged:,}")
        if min_user is not None or min_item is not None:
            users, n_users = _user_codes(frame)
            items, item_ids = _codes(frame["item_id"])
            keep, rounds = _k_core(users, items, min_user or 1, min_item or 1)
            left = f"{min_user or 1} a user and {min_item or 1} an item"
            if not keep.any():
                raise DataError(
                    f"{self.summary.source}: at least {left} leaves nothing of "
                    f"{frame.height:,} interactions: use smaller limits"
                )
            n_filtered = int((~keep).sum())
            frame = frame.filter(pl.Series(keep))
            notes.append(
                f"at least {left}: removed interactions: {n_filtered:,}, "
                f"users: {n_users - frame['user_id'].n_unique():,}, "
                f"items: {len(item_ids) - frame['item_id'].n_unique():,} (rounds: {rounds})"
            )
        summary = replace(
            self.summary,
            n_merged=self.summary.n_merged + n_merged,
            n_filtered=self.summary.n_filtered + n_filtered,
            n_ties=_ties(frame),
            notes=tuple(notes),
        )
        return Interactions(
            frame, _counted(summary, frame, hint="after filtering: use smaller limits")
        )

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
        target = Path(path)
        if format is None:
            format = {**_SUFFIXES, ".txt": "sequences"}.get(target.suffix.lower())
            if format not in WRITABLE:
                raise ConfigError(
                    f"{target.name}: the name does not say a format to write; "
                    f"name one with format= (--format): {', '.join(WRITABLE)}"
                )
        elif format not in WRITABLE:
            raise ConfigError(
                f"no format {format!r} to write{_nearest(format, WRITABLE)}; "
                f"there are: {', '.join(WRITABLE)}"
            )
        if target.exists():
            raise DataError(f"{target} exists already: choose another path or remove it")
        frame = _writable(self.frame, format, target.name)
        work = target.with_name(f".{target.name}.partial-{os.getpid()}")
        try:
            with work.open("wb") as file:
                if format == "parquet":
                    frame.write_parquet(file)
                elif format == "csv":
                    frame.write_csv(file)
                else:
                    frame.write_csv(
                        file,
                        include_header=format == "inter",
                        separator="\t",
                        quote_style="never",
                    )
                file.flush()
                os.fsync(file.fileno())
            work.rename(target)
        except OSError as error:
            raise DataError(f"{target} cannot be written: {error.strerror or error}") from error
        finally:
            if work.exists():
                work.unlink()


@dataclass(frozen=True)
class _Source:
    """Where values come from, for messages."""

    name: str
    place: Callable[[int], str]
    """Where row i (from 0) stands: ``line 7``."""

    def fail(self, message: str, row: int | None = None) -> DataError:
        return DataError(f"{self.name}{'' if row is None else ', ' + self.place(row)}: {message}")


def read_log(
    path: Path | str,
    format: str | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
) -> Interactions:
    """Reads an interaction log.

    Args:
        path: the file.
        format: one of :data:`FORMATS`; by default what the name and the content say.
        user: name of the column of users; by default the one with a usual name.
        item: the same for items.
        time: the same for times; ``none`` (where no column has that name) takes the rows to be in
            time order already, which tables without a time column need said.

    Raises:
        DataError: the file is missing, empty, damaged, or not what the format says; the message
            names the line or column and what to do.
        ConfigError: no such format.
    """
    file = Path(path)
    if format is not None and format not in FORMATS:
        raise ConfigError(
            f"no format {format!r}{_nearest(format, FORMATS)}; there are: {', '.join(FORMATS)}"
        )
    if file.is_dir():
        raise DataError(f"{file} is a directory: give the log file itself")
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    try:
        with _uncompressed(file) as plain:
            return _read(file, plain, format, {"user_id": user, "item_id": item, "timestamp": time})
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


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
    source = _Source(f"the {kind} frame", lambda row: f"row {row}")
    named = {"user_id": user, "item_id": item, "timestamp": time}
    roles = _roles(table.columns, named, source)
    return _assemble(table, roles, source, "frame", parse=False)


def from_dataset(dataset: SequenceDataset) -> Interactions:
    """The interactions of a dataset, raw ids again; synthetic items are marked.

    Users whose raw ids the catalog does not keep go by their numbers. A dataset without times
    (augmenting drops them) gives a log without ``timestamp``.
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
    frame = pl.DataFrame(columns)
    codes, n_users = _user_codes(frame)
    if (codes[1:] < codes[:-1]).any():
        frame = frame[_grouped(codes, n_users)]
    names = tuple((name, name) for name in frame.columns)
    summary = Summary("the dataset", "dataset", names, 0, 0, 0, n_ties=_ties(frame))
    return Interactions(frame, _counted(summary, frame))


# --- from a file to a frame of columns -----------------------------------------------------------


@contextmanager
def _uncompressed(file: Path) -> Iterator[Path]:
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if not packed:
        if file.suffix.lower() == ".gz" and file.stat().st_size:
            raise DataError(f"{file.name} is named .gz but holds no gzip data: rename it")
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="diffuserec-") as folder:
        plain = Path(folder) / "log"
        try:
            with gzip.open(file, "rb") as stream, plain.open("wb") as copy:
                shutil.copyfileobj(stream, copy, _BLOCK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{file.name} is truncated or damaged gzip data ({error}): fetch it again"
            ) from error
        yield plain


def _read(
    file: Path, plain: Path, format: str | None, named: dict[str, str | None]
) -> Interactions:
    with plain.open("rb") as stream:
        head = stream.read(1 << 16)
    if head[:4] == b"PAR1" or format == "parquet" or _suffix(file) == ".parquet":
        return _read_parquet(file, plain, head, format, named)
    for magic, meaning in _NOT_TEXT.items():
        if head.startswith(magic):
            raise DataError(f"{file.name} is not text but {meaning}")
    first = _first_line(head, file.name)
    format = format or _detect(file, first)
    if format == "jsonl":
        return _read_jsonl(file, plain, named)
    if format in ("csv", "tsv", "inter"):
        return _read_table(file, plain, format, first, named)
    for role, option in _OPTIONS.items():
        untimed = option == "time" and named[role] == "none" and format != "movielens"
        if named[role] is not None and not untimed:
            raise DataError(
                f"{file.name} is read as {format}, which has no column names: leave out "
                f"{option}= (--{option}) or name another format (--format)"
            )
    if format == "movielens":
        return _read_movielens(file, plain)
    return _read_lines(file, plain, format)


def _detect(file: Path, first: str) -> str:
    known = _SUFFIXES.get(_suffix(file))
    if known is not None:
        return known
    if first.lstrip().startswith(("{", "[")):
        return "jsonl"
    names, separator = _header(first)
    if ":token" in first:
        return "inter"
    if sum(bool(_matches(names, role)) for role in _ALIASES) >= 2:
        return "tsv" if separator == "\t" else "csv"
    if "::" in first:
        return "movielens"
    if "," in first or ";" in first:
        return "csv"
    return "lines"


def _suffix(file: Path) -> str:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _first_line(head: bytes, name: str) -> str:
    for number, line in enumerate(head.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        _check_text(line, name, number)
        line = line.removesuffix(b"\r")
        if b"\r" in line:
            raise DataError(
                f"{name}, line {number}: carriage returns within the line: end lines with line "
                "feeds"
            )
        if line.strip():
            return line.decode()
    raise DataError(f"{name} is empty: there is nothing to read")


def _header(first: str, separators: str = ",\t;| ") -> tuple[list[str], str]:
    """Column names of a header line, and the separator that explains it best."""

    def split(separator: str) -> list[str]:
        (fields,) = csv.reader(io.StringIO(first), delimiter=separator)
        return [field.strip() for field in fields]

    def fitness(separator: str) -> tuple[int, int]:
        names = split(separator)
        return sum(bool(_matches(names, role)) for role in _ALIASES), len(names)

    best = max(separators, key=fitness)
    return split(best), best


def _read_table(
    file: Path, plain: Path, format: str, first: str, named: dict[str, str | None]
) -> Interactions:
    names, separator = _header(first, {"csv": ",\t;| "}.get(format, "\t"))
    names = [name or f"column_{number}" for number, name in enumerate(names, 1)]
    where = _Source(file.name, str)
    if format == "inter":
        names = [_without_type(name, where) for name in names]
        named = {role: name and name.partition(":")[0] for role, name in named.items()}
    for name in names:
        if names.count(name) > 1:
            first_at, second_at = [n for n, other in enumerate(names, 1) if other == name][:2]
            raise where.fail(
                f"the header names {name!r} twice (columns {first_at} and {second_at}): "
                "rename or remove one"
            )
    roles = _roles(names, named, where)
    table, source = _columns(file, plain, separator, len(names), quoted=format != "inter", skip=1)
    if not table.height:
        raise source.fail("there is a header but no interaction")
    table.columns = names
    return _assemble(table, roles, source, format, parse=True)


def _without_type(name: str, source: _Source) -> str:
    base, _, kind = name.partition(":")
    if base == "item_id_list" or (kind.endswith("_seq") and base == "item_id"):
        raise source.fail(
            f"column {name!r} holds whole histories: give the .inter file with one interaction a "
            "line, or one line a user (format sequences)"
        )
    return base


def _read_movielens(file: Path, plain: Path) -> Interactions:
    # '::' is two separators with nothing between: 4 values in 7 fields
    table, source = _columns(file, plain, ":", 7, quoted=False, hint="user::item::rating::time")
    for between in (1, 3, 5):
        row = _first(table.to_series(between).is_not_null())
        if row is not None:
            raise source.fail("expected user::item::rating::time", row)
    table = table.select(pl.nth(0, 2, 4, 6))
    table.columns = ["field 1", "field 2", "rating", "field 4"]
    roles = {"user_id": "field 1", "item_id": "field 2", "timestamp": "field 4"}
    return _assemble(table, roles, source, "movielens", parse=True)


def _read_lines(file: Path, plain: Path, format: str) -> Interactions:
    table, source = _columns(file, plain, None, 1, quoted=False)
    lines = table.to_series().str.strip_chars()
    if lines.str.contains(r"\t|\s\s").any():
        lines = lines.str.replace_all(r"\s+", " ")
    fields = lines.str.split(" ")
    lengths = fields.list.len()
    row = _first(lengths < 2)
    if row is not None:
        raise source.fail(
            "expected a user and at least one item, separated by blanks; for a table name its "
            "format with format= (--format)",
            row,
        )
    users = fields.list.first()
    repeated = users.is_duplicated()
    if format == "lines":
        pairs = bool((lengths == 2).all()) and bool(repeated.any())
        format = "pairs" if pairs else "sequences"
    if format == "pairs":
        row = _first(lengths != 2)
        if row is not None:
            raise source.fail(f"expected a user and one item, got {lengths[row]} fields", row)
        table = pl.DataFrame({"field 1": users, "field 2": fields.list.last()})
        roles = {"user_id": "field 1", "item_id": "field 2"}
        return _assemble(table, roles, source, format, parse=True)
    row = _first(repeated)
    if row is not None:
        again = int((users == users[row]).arg_true()[1])
        raise source.fail(
            f"user {users[row]!r} has a second line ({source.place(again)}), where sequences have "
            "one line a user: join them; for a table name its format with format= (--format) and "
            "give it a header such as user_id,item_id,timestamp",
            row,
        )
    # from here a row is an interaction; a message about one must find its line again
    ends = lengths.cast(pl.Int64).cum_sum() - np.arange(1, len(lengths) + 1)
    place = source.place
    source = replace(
        source, place=lambda at: place(int(np.searchsorted(ends.to_numpy(), at, side="right")))
    )
    items = fields.list.slice(1)
    table = pl.DataFrame({"first field": users, "other fields": items}).explode("other fields")
    roles = {"user_id": "first field", "item_id": "other fields"}
    return _assemble(table, roles, source, "sequences", parse=True)


def _read_jsonl(file: Path, plain: Path, named: dict[str, str | None]) -> Interactions:
    n_records, blank = _scan(file.name, plain, None, 1, False, "")
    source = _Source(file.name, _line_finder(plain, blank, False, 0))
    try:
        with plain.open("rb") as stream:  # a path would be taken for a pattern of names
            table = pl.read_ndjson(stream, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise _bad_json(plain, source, error) from error
    if table.height != n_records - len(blank):
        raise _bad_json(plain, source, None)
    roles = _roles(table.columns, named, source)
    return _assemble(table, roles, source, "jsonl", parse=False)


def _bad_json(plain: Path, source: _Source, error: Exception | None) -> DataError:
    with plain.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            what = "is not a JSON object"
            try:
                if isinstance(json.loads(line), dict):
                    continue
            except ValueError as problem:
                what = f"is not JSON ({problem})"
            return DataError(
                f"{source.name}, line {number}: {what}: write one object a line, such as "
                '{"user_id": 1, "item_id": 2, "timestamp": 3}'
            )
    reason = str(error).partition("\n")[0] if error else "lines and objects differ in number"
    return source.fail(f"the objects do not make a table ({reason}): give a key one type")


def _read_parquet(
    file: Path, plain: Path, head: bytes, format: str | None, named: dict[str, str | None]
) -> Interactions:
    source = _Source(file.name, lambda row: f"row {row}")
    if not head:
        raise source.fail("is empty: there is nothing to read")
    if head[:4] != b"PAR1":
        raise source.fail("is not a Parquet file: name its format with format= (--format)")
    if format not in (None, "parquet"):
        raise source.fail(f"is a Parquet file, not {format}: leave out format= (--format)")
    try:
        table = pl.read_parquet(plain, glob=False)
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise source.fail(f"is a damaged Parquet file ({reason}): write it again") from error
    if not table.height:
        raise source.fail("there are columns but no interaction")
    roles = _roles(table.columns, named, source)
    return _assemble(table, roles, source, "parquet", parse=False)


def _columns(
    file: Path,
    plain: Path,
    separator: str | None,
    n_fields: int,
    quoted: bool,
    skip: int = 0,
    hint: str = "",
) -> tuple[pl.DataFrame, _Source]:
    """Every record of a text file but the first `skip`, as strings, and where they stand."""
    n_records, blank = _scan(file.name, plain, separator, n_fields, quoted, hint)
    leading = sum(record == number for number, record in enumerate(blank))
    try:
        table = pl.read_csv(
            plain,
            glob=False,
            has_header=False,
            skip_lines=leading,
            schema={f"column_{number}": pl.String for number in range(1, n_fields + 1)},
            separator=separator or "\x00",
            quote_char='"' if quoted else None,
        )
    except pl.exceptions.NoDataError:
        raise DataError(f"{file.name} is empty: there is nothing to read") from None
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{file.name} cannot be read as a table: {reason}") from error
    if table.height != n_records - leading:
        raise DataError(
            f"{file.name}: {n_records:,} lines give {table.height:,} rows, so a quote is out of "
            'place: double the quotes inside fields ("")'
        )
    if len(blank) > leading:
        keep = np.ones(n_records, dtype=bool)
        keep[blank] = False
        table = table.filter(pl.Series(keep[leading:]))
    return table.slice(skip), _Source(file.name, _line_finder(plain, blank, quoted, skip))


# --- the lines of a text file: what Polars does not check or does not tell ------------------------


@dataclass(frozen=True)
class _Block:
    """Some whole records of a text file."""

    text: bytes
    data: UInt8[np.ndarray, " bytes"]
    line: int
    record: int
    starts: Int64[np.ndarray, " R"]
    ends: Int64[np.ndarray, " R"]
    quotes: Int64[np.ndarray, " Q"]

    def line_of(self, position: int) -> int:
        return self.line + self.text.count(b"\n", 0, position)


def _blocks(plain: Path, quoted: bool) -> Iterator[_Block]:
    line, record, rest = 1, 0, b""
    with plain.open("rb") as stream:
        while True:
            more = stream.read(_BLOCK)
            text = rest + more
            if not text:
                return
            data = np.frombuffer(text, dtype=np.uint8)
            none = np.zeros(0, dtype=np.int64)
            quotes = np.flatnonzero(data == ord('"')) if quoted and b'"' in text else none
            ends = np.flatnonzero(data == ord("\n"))
            if len(quotes):
                ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
            if not more and (not len(ends) or ends[-1] != len(text) - 1):
                ends = np.append(ends, len(text))
            if not len(ends):
                rest = text
                continue
            stop = min(int(ends[-1]) + 1, len(text))
            starts = np.concatenate([[0], ends[:-1] + 1])
            quotes = quotes[quotes < stop]
            yield _Block(text[:stop], data[:stop], line, record, starts, ends, quotes)
            line += text.count(b"\n", 0, stop)
            record += len(ends)
            rest = text[stop:]
            if not more:
                return


def _check_text(text: bytes, name: str, line: int) -> None:
    """Refuses what is not UTF-8 text; it begins on that line of the file."""
    zero = text.find(b"\x00")
    if zero >= 0:
        line += text.count(b"\n", 0, zero)
        raise DataError(
            f"{name}, line {line}: a zero byte, so this is a binary file: give a text or Parquet "
            "file"
        )
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line += text.count(b"\n", 0, error.start)
        raise DataError(
            f"{name}, line {line}: byte 0x{text[error.start]:02x} is not UTF-8: "
            "save the file as UTF-8"
        ) from error


def _scan(
    name: str, plain: Path, separator: str | None, n_fields: int, quoted: bool, hint: str
) -> tuple[int, list[int]]:
    """Checks encoding and field counts; returns the number of records and which are blank."""
    n_records, blank = 0, []
    for block in _blocks(plain, quoted):
        _check_text(block.text, name, block.line)
        if len(block.quotes) % 2:
            raise DataError(
                f"{name}, line {block.line_of(int(block.starts[-1]))}: a quote is opened and never "
                'closed: close it, or double the quotes inside fields ("")'
            )
        lengths = block.ends - block.starts
        empty = lengths == 0
        single = np.flatnonzero(lengths == 1)
        empty[single] = block.data[block.starts[single]] == ord("\r")
        if separator is not None:
            at = np.flatnonzero(block.data == ord(separator))
            if len(block.quotes):
                at = at[np.searchsorted(block.quotes, at) % 2 == 0]
            counts = np.diff(np.searchsorted(at, block.ends), prepend=0) + 1
            wrong = (counts != n_fields) & ~empty
            if wrong.any():
                row = int(wrong.argmax())
                expected = f"expected {hint}" if hint else f"{n_fields} fields expected"
                quote = b'"' in block.text[int(block.starts[row]) : int(block.ends[row])]
                mend = "close its quote" if quote else "mend the line"
                got = "" if hint else f", {counts[row]} found (separator {separator!r})"
                raise DataError(
                    f"{name}, line {block.line_of(int(block.starts[row]))}: {expected}{got}: "
                    f"{mend}, or name another format with format= (--format)"
                )
        blank.extend((np.flatnonzero(empty) + block.record).tolist())
        n_records = block.record + len(block.ends)
    return n_records, blank


def _line_finder(plain: Path, blank: list[int], quoted: bool, skip: int) -> Callable[[int], str]:
    def place(row: int) -> str:
        record = row + skip
        for skipped in blank:  # ascending
            record += skipped <= record
        for block in _blocks(plain, quoted):
            if record < block.record + len(block.ends):
                start = int(block.starts[record - block.record])
                return f"line {block.line_of(start)}"
        raise AssertionError(f"row {row} lies beyond the file")

    return place


# --- from columns to interactions ----------------------------------------------------------------


def _as_polars(frame: Any, what: str) -> tuple[pl.DataFrame, str]:
    try:
        wrapped = nw.from_native(frame)
        eager = wrapped.collect() if isinstance(wrapped, nw.LazyFrame) else wrapped
        return eager.to_polars(), str(wrapped.implementation.value)
    except TypeError as error:
        raise DataError(
            f"{what} must be a pandas, Polars or pyarrow frame, got {type(frame).__name__}"
        ) from error
    except ModuleNotFoundError as error:
        raise DataError(f"{what} cannot be converted without {error.name}: install it") from error
    except (nw.exceptions.DuplicateError, pl.exceptions.DuplicateError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{what} has two columns of one name ({reason}): rename one") from error


def _plain_name(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def _matches(names: Sequence[str], role: str) -> list[str]:
    usual = {_plain_name(alias) for alias in _ALIASES[role]}
    return [name for name in names if _plain_name(name.partition(":")[0]) in usual]


def _roles(names: list[str], named: dict[str, str | None], source: _Source) -> dict[str, str]:
    """Which column is the user, the item, the time; the time may be told to be absent."""
    listed = ", ".join(names)
    roles: dict[str, str] = {}
    for role, name in named.items():
        option = _OPTIONS[role]
        if name is None or (role == "timestamp" and name == "none" and name not in names):
            continue
        if name not in names:
            raise source.fail(
                f"no column {name!r}{_nearest(name, names)} for {option}= (--{option}); "
                f"there are: {listed}"
            )
        if name in roles.values():
            raise source.fail(
                f"column {name!r} is named twice: give {option}= (--{option}) its own"
            )
        roles[role] = name
    for role, name in named.items():
        if name is not None:
            continue
        option = _OPTIONS[role]
        found = [match for match in _matches(names, role) if match not in roles.values()]
        if len(found) > 1:
            both = " and ".join(repr(match) for match in found)
            raise source.fail(
                f"columns {both} could each be the {option}: name one with {option}= (--{option})"
            )
        if not found:
            looks_headless = any(_is_number(name) for name in names)
            hint = (
                "the first line looks like data, so add a header such as user_id,item_id,timestamp"
                if looks_headless
                else f"name it with {option}= (--{option})"
            )
            if role == "timestamp" and not looks_headless:
                hint += ", or say 'none' there if the rows are in time order"
            raise source.fail(f"no {option} column among: {listed}; {hint}")
        roles[role] = found[0]
    return {role: roles[role] for role in _ALIASES if role in roles}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _assemble(
    table: pl.DataFrame, roles: dict[str, str], source: _Source, format: str, parse: bool
) -> Interactions:
    """Checks and converts the columns, and sorts the rows by user and time.

    Args:
        table: one interaction a row.
        roles: our name of a column to its name in the table.
        source: for messages.
        format: for the summary.
        parse: the values are text, whose types are to be found out.
    """
    if not table.height:
        raise source.fail("there is no interaction")
    table = table.clone()  # columns are taken out as they are converted, to save memory
    notes: list[str] = []
    columns: list[pl.Series] = []
    mapping = [(name, role) for role, name in roles.items()]
    for role in ("user_id", "item_id"):
        ids, note = _ids(table.drop_in_place(roles[role]), source, parse)
        columns.append(ids.alias(role))
        if note:
            notes.append(f"{role}: {note}")
    if "timestamp" in roles:
        times, note = _times(table.drop_in_place(roles["timestamp"]), source)
        columns.append(times.alias("timestamp"))
        if note:
            notes.append(f"timestamp: {note}")
    else:
        notes.append("no times: the order of the source is the order in time")
    if "synthetic" in table.columns:
        columns.append(_flags(table.drop_in_place("synthetic"), source))
        mapping.append(("synthetic", "synthetic"))
    for values in table:
        name = values.name
        while name in _ALIASES or (name != values.name and name in table.columns):
            name = f"file_{name}"
        columns.append((_typed(values) if parse else values).alias(name))
        mapping.append((values.name, name))
    frame = pl.DataFrame(columns)
    del table, columns
    frame, n_reordered = _sorted(frame)
    summary = Summary(
        source=source.name,
        format=format,
        columns=tuple(mapping),
        n_interactions=0,
        n_users=0,
        n_items=0,
        n_reordered=n_reordered,
        n_ties=_ties(frame),
        notes=tuple(notes),
    )
    return Interactions(frame, _counted(summary, frame, hint="so there is nothing to recommend"))


def _ids(values: pl.Series, source: _Source, parse: bool) -> tuple[pl.Series, str]:
    """Ids as int64 or strings, and what was made of them, if anything."""
    name, dtype = values.name, values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    row = _first(values.is_null())
    if row is not None:
        raise source.fail(f"column {name!r} is empty: give the id or remove the row", row)
    if dtype.is_float():
        row = _first(~(values == values.round()) | ~values.is_finite())
        if row is not None:
            raise source.fail(
                f"{values[row]!r} in column {name!r} is no id: give an integer or a string", row
            )
    if dtype.is_integer() or dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        row = _first(whole.is_null())
        if row is not None:
            raise source.fail(
                f"{values[row]!r} in column {name!r} is beyond 64 bits: make the ids strings", row
            )
        return whole, "whole floats taken for integers" if dtype.is_float() else ""
    if values.dtype != pl.String:
        raise source.fail(f"column {name!r} holds {dtype}; ids are integers or strings")
    if parse:
        integers = _canonical(values)
        if integers is not None:
            return integers, ""
        if values.str.contains(r"^\s|\s$").any():
            integers = _canonical(values.str.strip_chars())
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


def _canonical(values: pl.Series) -> pl.Series | None:
    """The strings as integers if each is written just as that integer is, else None."""
    if not _is_canonical(values.head(1000)):
        return None
    whole = values.cast(pl.Int64, strict=False)
    return whole if whole.cast(pl.String).eq_missing(values).all() else None


def _is_canonical(values: pl.Series) -> bool:
    return bool(values.cast(pl.Int64, strict=False).cast(pl.String).eq_missing(values).all())


def _times(values: pl.Series, source: _Source) -> tuple[pl.Series, str]:
    """Times as int64, and what was made of them, if anything."""
    name, dtype = values.name, values.dtype
    row = _first(values.is_null())
    if row is not None:
        raise source.fail(f"column {name!r} is empty: give the time or remove the row", row)
    if dtype.is_integer():
        whole = values.cast(pl.Int64, strict=False)
        row = _first(whole.is_null())
        if row is not None:
            raise source.fail(f"{values[row]!r} in column {name!r} is beyond 64 bits", row)
        return whole, ""
    if dtype == pl.Date:
        values = values.cast(pl.Datetime("us"))
    if dtype in (pl.Date, pl.Datetime):
        return values.dt.cast_time_unit("us").to_physical(), "dates stored as microseconds"
    if dtype.is_float() or dtype.is_decimal():
        return _from_floats(values.cast(pl.Float64), values, source)
    if dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    if values.dtype != pl.String:
        raise source.fail(f"column {name!r} holds {dtype}; times are numbers or ISO dates")
    whole = values.cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole, ""
    values = values.str.strip_chars()
    numbers = values.cast(pl.Float64, strict=False)
    if numbers[0] is None:
        return _from_dates(values, source)
    row = _first(numbers.is_null())
    if row is not None:
        raise _not_a_time(values, row, source)
    whole = values.cast(pl.Int64, strict=False)
    return (whole, "") if not whole.null_count() else _from_floats(numbers, values, source)


def _from_floats(numbers: pl.Series, values: pl.Series, source: _Source) -> tuple[pl.Series, str]:
    row = _first(~numbers.is_finite())
    if row is not None:
        raise _not_a_time(values, row, source)
    fraction = not (numbers == numbers.round()).all()
    scaled = (numbers * 1e6).round() if fraction else numbers
    row = _first(scaled.abs() >= 2.0**63)
    if row is not None:
        raise source.fail(f"{values[row]!r} in column {values.name!r} is beyond 64 bits", row)
    note = "times with fractions taken for seconds, stored as microseconds" if fraction else ""
    return scaled.cast(pl.Int64), note


def _from_dates(values: pl.Series, source: _Source) -> tuple[pl.Series, str]:
    text = values.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.to_uppercase()
    moments = pl.Series(values.name, [None], dtype=pl.Datetime("us")).new_from_index(0, len(text))
    for pattern in (_MOMENT, _MOMENT + "%#z", "%Y-%m-%d", "%Y-%m-%dT%H:%M"):
        if not moments.null_count():
            break
        parsed = text.str.to_datetime(pattern, time_unit="us", strict=False)
        moments = moments.zip_with(moments.is_not_null(), parsed.dt.replace_time_zone(None))
    row = _first(moments.is_null())
    if row is not None:
        raise _not_a_time(values, row, source)
    return moments.to_physical(), "dates stored as microseconds"


def _not_a_time(values: pl.Series, row: int, source: _Source) -> DataError:
    return source.fail(
        f"{values[row]!r} in column {values.name!r} is not a time: use numbers throughout, or ISO "
        "dates such as 2024-05-31 or 2024-05-31T12:00:00Z",
        row,
    )


def _flags(values: pl.Series, source: _Source) -> pl.Series:
    words = values.cast(pl.String).str.strip_chars().str.to_lowercase().str.strip_suffix(".0")
    row = _first(~words.is_in(["true", "false", "1", "0"]).fill_null(False))
    if row is not None:
        raise source.fail(
            f"{values[row]!r} in column 'synthetic' is neither true nor false (1 nor 0)", row
        )
    return words.is_in(["true", "1"]).alias("synthetic")


def _typed(values: pl.Series) -> pl.Series:
    """A column that only travels along: numbers where all its values are."""
    present = values.drop_nulls()
    if _is_canonical(present.head(1000)) and _is_canonical(present):
        return values.cast(pl.Int64)
    numbers = present.cast(pl.Float64, strict=False)
    if numbers.null_count() or present.str.contains(r"^[+-]?0\d|^\+").any():
        return values
    return values.cast(pl.Float64)


def _sorted(frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """The rows by user, then time, then as they stood; and how many were out of time order."""
    users, user_ids = _codes(frame["user_id"])
    n_reordered = 0
    order: np.ndarray | None = None
    if (users[1:] < users[:-1]).any():
        order = _grouped(users, len(user_ids))
    if "timestamp" in frame.columns:
        times = frame["timestamp"].to_numpy()
        by_user = users if order is None else users[order]
        in_time = times if order is None else times[order]
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
    if not len(users):
        return np.zeros(0, dtype=np.int64)
    return np.append(0, (users.slice(1) != users.head(-1)).arg_true().to_numpy() + 1).astype(
        np.int64
    )


def _user_codes(frame: pl.DataFrame) -> tuple[Int32[np.ndarray, " N"], int]:
    codes, user_ids = _codes(frame["user_id"])
    return codes, len(user_ids)


def _ties(frame: pl.DataFrame) -> int:
    if "timestamp" not in frame.columns:
        return 0
    same_time = frame["timestamp"].slice(1) == frame["timestamp"].head(-1)
    same_user = frame["user_id"].slice(1) == frame["user_id"].head(-1)
    return int((same_time & same_user).sum())


def _counted(summary: Summary, frame: pl.DataFrame, hint: str | None = None) -> Summary:
    """The summary with the frame's counts; with a hint, two users and two items are demanded."""
    n_users, n_items = len(_starts(frame)), frame["item_id"].n_unique()
    for n, what in ((n_users, "user"), (n_items, "item")):
        if hint is not None and n < 2:
            raise DataError(
                f"{summary.source}: only one {what} in {frame.height:,} interactions, {hint}"
            )
    return replace(summary, n_interactions=frame.height, n_users=n_users, n_items=n_items)


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
    source = _Source("the attributes", lambda row: f"row {row}")
    found = _matches(table.columns, "item_id")
    name = "item_id" if "item_id" in found else found[0] if len(found) == 1 else None
    if name is None:
        raise source.fail(
            f"no column 'item_id' among: {', '.join(table.columns)}: rename one to it"
        )
    table = table.with_columns(pl.col(name).cast(item_ids.dtype, strict=False))
    row = _first(table[name].is_duplicated() & table[name].is_not_null())
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


def _writable(frame: pl.DataFrame, format: str, name: str) -> pl.DataFrame:
    """The frame as its file shall hold it."""
    text = format != "parquet"
    for column in ("user_id", "item_id"):
        ids = frame[column]
        if ids.dtype == pl.String and format in ("sequences", "inter"):
            pattern, what = (
                (r"\s", "a blank")
                if format == "sequences"
                else (r"[\t\n\r]", "a tab or line break")
            )
            row = _first(ids.str.contains(pattern))
            if row is not None:
                raise DataError(
                    f"{name}: {format} cannot hold the {column} {ids[row]!r}, which contains "
                    f"{what}: write csv or parquet"
                )
    if format == "sequences":
        return (
            frame.group_by("user_id", maintain_order=True)
            .agg(pl.col("item_id").cast(pl.String).str.join(" "))
            .select(pl.concat_str("user_id", "item_id", separator=" "))
        )
    if "timestamp" not in frame.columns:
        starts = _starts(frame)
        lengths = np.diff(np.append(starts, frame.height))
        position = np.arange(frame.height) - np.repeat(starts, lengths)
        frame = frame.select(
            "user_id", "item_id", pl.Series("timestamp", position), pl.exclude("user_id", "item_id")
        )
    if text:
        for values in frame:
            if values.dtype.is_nested() or values.dtype in (pl.Object, pl.Binary):
                raise DataError(
                    f"{name}: {format} cannot hold column {values.name!r} ({values.dtype}): drop "
                    "it or write parquet"
                )
    if format == "inter":
        frame = frame.with_columns(pl.col(pl.Boolean).cast(pl.Int8))
        kinds = {
            column: "token"
            if column in ("user_id", "item_id") or not dtype.is_numeric()
            else "float"
            for column, dtype in frame.schema.items()
        }
        frame = frame.rename({column: f"{column}:{kind}" for column, kind in kinds.items()})
    return frame


def _first(mask: pl.Series) -> int | None:
    """Position of the first true value."""
    return int(mask.arg_max() or 0) if mask.any() else None


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
