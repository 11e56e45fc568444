"""Files of logs: what format one has, its columns as a frame, and the way back.

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

Polars reads the values. What it neither checks nor tells (the encoding, the number of fields, the
line on which a row stands) is found in the bytes, a block at a time.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64, UInt8

from diffuserec.errors import ConfigError, DataError

FORMATS = ("csv", "tsv", "parquet", "jsonl", "inter", "movielens", "sequences", "pairs")
WRITABLE = ("csv", "parquet", "sequences", "inter")

ALIASES = {
    "user_id": "user uid query_id reviewer_id customer_id visitor_id",
    "item_id": "item iid asin parent_asin movie_id product_id article_id book_id business_id",
    "timestamp": "time datetime ts date unix_review_time unix_time event_time",
}
"""Usual column names of each role; case, underscores, hyphens and blanks do not count."""

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
_SEPARATORS = ",\t;| "
_BLOCK = 1 << 24


@dataclass(frozen=True)
class Source:
    """Where values come from, for messages.

    Attributes:
        name: of the file or frame.
        place: where row i (from 0) stands, such as ``line 7``.
    """

    name: str
    place: Callable[[int], str] = "row {}".format

    def fail(self, message: str, row: int | None = None) -> DataError:
        return DataError(f"{self.name}{'' if row is None else ', ' + self.place(row)}: {message}")


@dataclass(frozen=True, eq=False)
class Columns:
    """A log whose values nobody has looked at yet.

    Attributes:
        table: one interaction a row.
        roles: ``user_id``, ``item_id`` and, where there are times, ``timestamp``, each with the
            name of its column.
        source: for messages about values.
        format: one of :data:`FORMATS`, or ``frame``.
        text: every value is a string whose type is to be found out.
    """

    table: pl.DataFrame
    roles: dict[str, str]
    source: Source
    format: str
    text: bool = False


@contextmanager
def read_columns(
    path: Path | str, format: str | None, named: Mapping[str, str | None]
) -> Iterator[Columns]:
    """The columns of a file, which is held open because messages look up the line of a row.

    Args:
        path: the file.
        format: one of :data:`FORMATS`, or None for what the name and the content say.
        named: for each role the name of its column, or None for a usual one.

    Raises:
        DataError: the file is missing, empty, damaged, or not what the format says.
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
            yield _read(plain, format, named)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def find_roles(
    names: Sequence[str], named: Mapping[str, str | None], source: Source
) -> dict[str, str]:
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
    for role in (role for role, name in named.items() if name is None):
        option = _OPTIONS[role]
        found = [match for match in usual_names(names, role) if match not in roles.values()]
        if len(found) > 1:
            both = " and ".join(map(repr, found))
            raise source.fail(
                f"columns {both} could each be the {option}: name one with {option}= (--{option})"
            )
        if not found:
            hint = f"name it with {option}= (--{option})"
            if role == "timestamp":
                hint += ", or say 'none' there if the rows are in time order"
            if pl.Series(names).cast(pl.Float64, strict=False).count():
                hint = "the first line looks like data: add a header: user_id,item_id,timestamp"
            raise source.fail(f"no {option} column among: {listed}; {hint}")
        roles[role] = found[0]
    return {role: roles[role] for role in ALIASES if role in roles}


def usual_names(names: Sequence[str], role: str) -> list[str]:
    """Those of the names that are usual for the role."""

    def plain(name: str) -> str:
        return name.lower().replace("_", "").replace("-", "").replace(" ", "")

    usual = {plain(alias) for alias in (role, *ALIASES[role].split())}
    return [name for name in names if plain(name.partition(":")[0]) in usual]


def first_true(mask: pl.Series) -> int | None:
    """Position of the first true value."""
    return int(mask.arg_max() or 0) if mask.any() else None


def writable_format(path: Path | str, format: str | None) -> str:
    """The format that a log would be written in there, so that hours of work may ask first.

    Raises:
        ConfigError: no format that can be written.
        DataError: the path exists, or its folder does not.
    """
    target = Path(path)
    format = format or {**_SUFFIXES, ".txt": "sequences"}.get(target.suffix.lower(), target.suffix)
    if format not in WRITABLE:
        raise ConfigError(
            f"{target.name}: no format {format!r} to write{_nearest(format, WRITABLE)}; "
            f"name one with format= (--format): {', '.join(WRITABLE)}"
        )
    if target.exists():
        raise DataError(f"{target} exists already: choose another path or remove it")
    if not target.parent.is_dir():
        raise DataError(f"{target} cannot be written: there is no folder {target.parent}")
    return format


def write_log(frame: pl.DataFrame, path: Path | str, format: str | None) -> None:
    """Writes the frame of a log, complete or not at all; see ``Interactions.write``."""
    format, target = writable_format(path, format), Path(path)
    frame = _writable(frame, format, Source(target.name))
    work = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        with work.open("wb") as file:
            if format == "parquet":
                frame.write_parquet(file)
            elif format == "csv":
                frame.write_csv(file)
            else:
                header = format == "inter"
                frame.write_csv(file, include_header=header, separator="\t", quote_style="never")
            file.flush()
            os.fsync(file.fileno())
        work.rename(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        work.unlink(missing_ok=True)


def _writable(frame: pl.DataFrame, format: str, source: Source) -> pl.DataFrame:
    """The frame as its file shall hold it."""
    if format == "sequences":
        frame = frame.select("user_id", "item_id")
    elif "timestamp" not in frame.columns:
        position = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id").alias("timestamp")
        frame = frame.select("user_id", "item_id", position, pl.exclude("user_id", "item_id"))
    if format == "parquet":
        return frame
    forbidden = {"sequences": r"\s", "inter": r"[\t\n\r]", "csv": None}[format]
    for values in frame:
        name, dtype = values.name, values.dtype
        if dtype.is_nested() or dtype in (pl.Object, pl.Binary):
            raise source.fail(
                f"{format} cannot hold column {name!r} ({dtype}): drop it or write parquet"
            )
        if forbidden and dtype == pl.String:
            row = first_true(values.str.contains(forbidden))
            if row is not None:
                raise source.fail(
                    f"{format} cannot hold the {name} {values[row]!r}, which contains a blank, a "
                    "tab or a line break: write csv or parquet"
                )
    if format == "sequences":
        users = frame.group_by("user_id", maintain_order=True)
        lines = users.agg(pl.col("item_id").cast(pl.String).str.join(" "))
        return lines.select(pl.concat_str("user_id", "item_id", separator=" "))
    if format == "inter":
        frame = frame.with_columns(pl.col(pl.Boolean).cast(pl.Int8))
        numbers = {name for name, dtype in frame.schema.items() if dtype.is_numeric()}
        numbers -= {"user_id", "item_id"}
        return frame.rename(lambda name: f"{name}:{'float' if name in numbers else 'token'}")
    return frame


@contextmanager
def _uncompressed(file: Path) -> Iterator[Path]:
    """The file, or a temporary one of the same name with what it holds."""
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if not packed:
        if file.suffix.lower() == ".gz":
            raise DataError(f"{file.name} is named .gz but holds no gzip data: rename it")
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="diffuserec-") as folder:
        plain = Path(folder) / file.name
        try:
            with gzip.open(file, "rb") as stream, plain.open("wb") as copy:
                shutil.copyfileobj(stream, copy, _BLOCK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{file.name} is truncated or damaged gzip data ({error}): fetch it again"
            ) from error
        yield plain


def _read(file: Path, format: str | None, named: Mapping[str, str | None]) -> Columns:
    source = Source(file.name)
    with file.open("rb") as stream:
        head = stream.read(8)
    is_parquet = head.startswith(b"PAR1")
    if is_parquet and format not in (None, "parquet"):
        raise source.fail(f"this is a Parquet file, not {format}: leave out format= (--format)")
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    format = format or ("parquet" if is_parquet else _SUFFIXES.get(suffix))
    if head and format == "parquet":
        if not is_parquet:
            raise source.fail("not a Parquet file: name its format with format= (--format)")
        return _read_parquet(file, source, named)
    for magic, meaning in _NOT_TEXT.items():
        if head.startswith(magic):
            raise source.fail(f"not text but {meaning}")
    first = _first_line(file)
    format = format or _detect(first)
    if format == "jsonl":
        return _read_jsonl(file, named)
    if format in ("csv", "tsv", "inter"):
        return _read_table(file, format, first, named)
    for role, name in named.items():
        untimed = (role, name) == ("timestamp", "none") and format != "movielens"
        if name is not None and not untimed:
            option = _OPTIONS[role]
            raise source.fail(
                f"read as {format}, which has no column names: leave out {option}= (--{option}) "
                "or name another format (--format)"
            )
    return _read_movielens(file) if format == "movielens" else _read_lines(file, format)


def _first_line(file: Path) -> str:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            _check_text(line, file.name, number)
            line = line.removeprefix(b"\xef\xbb\xbf").strip(b"\r\n")
            if b"\r" in line:
                raise DataError(
                    f"{file.name}, line {number}: carriage returns within the line: end lines "
                    "with line feeds"
                )
            if line.strip():
                return line.decode()
    raise DataError(f"{file.name} is empty: there is nothing to read")


def _detect(first: str) -> str:
    if first.lstrip().startswith(("{", "[")):
        return "jsonl"
    if ":token" in first:
        return "inter"
    names, separator = _header(first, _SEPARATORS)
    if sum(bool(usual_names(names, role)) for role in ALIASES) >= 2:
        return "tsv" if separator == "\t" else "csv"
    if "::" in first:
        return "movielens"
    return "csv" if "," in first or ";" in first else "lines"


def _header(first: str, separators: str) -> tuple[list[str], str]:
    """Column names of a header line, and the separator that explains it best."""

    def split(separator: str) -> list[str]:
        (fields,) = csv.reader(io.StringIO(first), delimiter=separator)
        return [field.strip() for field in fields]

    def fitness(separator: str) -> tuple[int, int]:
        names = split(separator)
        return sum(bool(usual_names(names, role)) for role in ALIASES), len(names)

    best = max(separators, key=fitness)
    return split(best), best


def _read_parquet(file: Path, source: Source, named: Mapping[str, str | None]) -> Columns:
    try:
        table = pl.read_parquet(file, glob=False)
    except pl.exceptions.PolarsError as error:
        raise source.fail(f"damaged Parquet file ({_reason(error)}): write it again") from error
    return Columns(table, find_roles(table.columns, named, source), source, "parquet")


def _read_jsonl(file: Path, named: Mapping[str, str | None]) -> Columns:
    n_records, blank = _scan(file, None, 1, quoted=False)
    source = Source(file.name, _line_finder(file, blank, quoted=False, skip=0))
    try:
        with file.open("rb") as stream:  # a path would be taken for a pattern of names
            table = pl.read_ndjson(stream, infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise _bad_json(file, _reason(error)) from error
    if table.height != n_records - len(blank):
        raise _bad_json(file, "lines and objects differ in number")
    return Columns(table, find_roles(table.columns, named, source), source, "jsonl")


def _bad_json(file: Path, reason: str) -> DataError:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            what = "is not a JSON object"
            try:
                if not line.strip() or isinstance(json.loads(line), dict):
                    continue
            except ValueError as problem:
                what = f"is not JSON ({problem})"
            return DataError(
                f"{file.name}, line {number}: {what}: write one object a line, such as "
                '{"user_id": 1, "item_id": 2, "timestamp": 3}'
            )
    return DataError(
        f"{file.name}: the objects do not make a table ({reason}): give a key one type"
    )


def _read_table(file: Path, format: str, first: str, named: Mapping[str, str | None]) -> Columns:
    source = Source(file.name)
    names, separator = _header(first, _SEPARATORS if format == "csv" else "\t")
    names = [name or f"column_{number}" for number, name in enumerate(names, 1)]
    if format == "inter":
        if any(name.startswith("item_id") and name.endswith("_seq") for name in names):
            raise source.fail(
                "this holds whole histories: give the .inter file with one interaction a line, or "
                "one line a user (format sequences)"
            )
        names = [name.partition(":")[0] for name in names]
        named = {role: name and name.partition(":")[0] for role, name in named.items()}
    for at, name in enumerate(names):
        if name in names[:at]:
            raise source.fail(
                f"the header names {name!r} twice (columns {names.index(name) + 1} and {at + 1}): "
                "rename or remove one"
            )
    roles = find_roles(names, named, source)
    table, source = _records(file, separator, len(names), quoted=format != "inter", skip=1)
    if not table.height:
        raise source.fail("there is a header but no interaction")
    table.columns = names
    return Columns(table, roles, source, format, text=True)


def _read_movielens(file: Path) -> Columns:
    table, source = _records(file, None, 1, quoted=False)
    lines = table.to_series()
    row = first_true(lines.str.count_matches("::", literal=True) != 3)
    if row is not None:
        raise source.fail("expected user::item::rating::time", row)
    table = lines.str.split_exact("::", 3).struct.unnest()
    table.columns = ["field 1", "field 2", "rating", "field 4"]
    roles = {"user_id": "field 1", "item_id": "field 2", "timestamp": "field 4"}
    return Columns(table, roles, source, "movielens", text=True)


def _read_lines(file: Path, format: str) -> Columns:
    table, source = _records(file, None, 1, quoted=False)
    lines = table.to_series().str.strip_chars()
    if lines.str.contains(r"\t|\s\s").any():
        lines = lines.str.replace_all(r"\s+", " ")
    fields = lines.str.split(" ")
    lengths = fields.list.len()
    row = first_true(lengths < 2)
    if row is not None:
        raise source.fail(
            "expected a user and at least one item, separated by blanks; for a table name its "
            "format with format= (--format)",
            row,
        )
    users = fields.list.first()
    repeated = users.is_duplicated()
    if format == "lines":
        format = "pairs" if (lengths == 2).all() and repeated.any() else "sequences"
    if format == "pairs":
        row = first_true(lengths != 2)
        if row is not None:
            raise source.fail(f"expected a user and one item, got {lengths[row]} fields", row)
    elif repeated.any():
        row, again = (users == users[int(repeated.arg_true()[0])]).arg_true().head(2)
        raise source.fail(
            f"user {users[row]!r} has a second line ({source.place(again)}), where sequences have "
            "one line a user: join them; for a table name its format with format= (--format) and "
            "give it a header such as user_id,item_id,timestamp",
            row,
        )
    # from here a row is an interaction; a message about one must find its line again
    ends = (lengths.cast(pl.Int64) - 1).cum_sum().to_numpy()
    line = source.place
    source = replace(source, place=lambda at: line(int(np.searchsorted(ends, at, side="right"))))
    table = pl.DataFrame({"first field": users, "other fields": fields.list.slice(1)})
    roles = {"user_id": "first field", "item_id": "other fields"}
    return Columns(table.explode("other fields"), roles, source, format, text=True)


def _records(
    file: Path, separator: str | None, n_fields: int, quoted: bool, skip: int = 0
) -> tuple[pl.DataFrame, Source]:
    """Every record of a text file but the first `skip`, as strings, and where they stand."""
    n_records, blank = _scan(file, separator, n_fields, quoted)
    leading = sum(record == number for number, record in enumerate(blank))
    try:
        table = pl.read_csv(
            file,
            glob=False,
            has_header=False,
            skip_lines=leading,
            schema={f"column_{number}": pl.String for number in range(1, n_fields + 1)},
            separator=separator or "\x00",
            quote_char='"' if quoted else None,
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{file.name} cannot be read as a table: {_reason(error)}") from error
    if table.height != n_records - leading:
        raise DataError(
            f"{file.name}: {n_records:,} lines give {table.height:,} rows, so a quote is out of "
            'place: double the quotes inside fields ("")'
        )
    if len(blank) > leading:
        keep = np.ones(n_records, dtype=bool)
        keep[blank] = False
        table = table.filter(pl.Series(keep[leading:]))
    return table.slice(skip), Source(file.name, _line_finder(file, blank, quoted, skip))


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

    def line_of(self, record: int) -> int:
        return self.line + self.text.count(b"\n", 0, int(self.starts[record]))


def _blocks(file: Path, quoted: bool) -> Iterator[_Block]:
    line, record, rest = 1, 0, b""
    with file.open("rb") as stream:
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


def _scan(file: Path, separator: str | None, n_fields: int, quoted: bool) -> tuple[int, list[int]]:
    """Checks encoding and field counts; returns the number of records and which are blank."""
    n_records, blank = 0, []
    for block in _blocks(file, quoted):
        _check_text(block.text, file.name, block.line)
        if len(block.quotes) % 2:
            raise DataError(
                f"{file.name}, line {block.line_of(-1)}: a quote is opened and never closed: "
                'close it, or double the quotes inside fields ("")'
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
                quote = b'"' in block.text[int(block.starts[row]) : int(block.ends[row])]
                raise DataError(
                    f"{file.name}, line {block.line_of(row)}: {n_fields} fields expected, "
                    f"{counts[row]} found (separator {separator!r}): "
                    f"{'close its quote' if quote else 'mend the line'}, or name another format "
                    "with format= (--format)"
                )
        blank.extend((np.flatnonzero(empty) + block.record).tolist())
        n_records = block.record + len(block.ends)
    return n_records, blank


def _check_text(text: bytes, name: str, line: int) -> None:
    """Refuses what is not UTF-8 text; it begins on that line of the file."""
    at, what = text.find(b"\x00"), "a zero byte, so this is a binary file: give a text file"
    if at < 0:
        try:
            text.decode()
            return
        except UnicodeDecodeError as error:
            at = error.start
            what = f"byte 0x{text[at]:02x} is not UTF-8: save the file as UTF-8"
    line += text.count(b"\n", 0, at)
    raise DataError(f"{name}, line {line}: {what}")


def _line_finder(file: Path, blank: list[int], quoted: bool, skip: int) -> Callable[[int], str]:
    def place(row: int) -> str:
        record = row + skip
        for skipped in blank:  # ascending
            record += skipped <= record
        blocks = _blocks(file, quoted)
        block = next(some for some in blocks if record < some.record + len(some.ends))
        return f"line {block.line_of(record - block.record)}"

    return place


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
