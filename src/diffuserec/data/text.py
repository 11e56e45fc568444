"""Text files of records: encoding, headers, fields, and the line of each row.

Polars reads the values. The encoding, the number of fields and the line of a row, which it does
not report, are found in the bytes, a block at a time.
"""

import csv
import io
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Int64, UInt8

from diffuserec.data.columns import Columns, Scan, Source, find_roles, n_usual_roles
from diffuserec.data.log_format import LogFile, Spool
from diffuserec.errors import DataError

SEPARATORS = ",\t;| "
"""Separators among which a header line decides."""

BLOCK = 1 << 24
"""Bytes read at a time."""

BOM = b"\xef\xbb\xbf"
"""The byte order mark that some programs write at the beginning of a UTF-8 file."""


_QUOTING = (
    'a field in quotes begins and ends with one, and quotes inside it are doubled (""); where '
    "quotes are plain characters, name format='inter' (--format inter)"
)


@dataclass(frozen=True)
class Opening:
    """What a text file begins with.

    Attributes:
        line: first line that holds something, without a byte order mark.
        skip: lines before it: blank lines, comments and Excel's ``sep=;``.
        separator: of fields, if such a line says it.
        notes: one line for each remark on what was left out.
    """

    line: str
    skip: int = 0
    separator: str | None = None
    notes: tuple[str, ...] = ()


def opening(file: Path) -> Opening:
    """Finds a text file's first line.

    Raises:
        DataError: the file is empty, not UTF-8, or ends its lines with carriage returns.
    """
    separator, comments = None, 0
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            _check_text(raw, file.name, number)
            line = raw.removeprefix(BOM if number == 1 else b"").strip(b"\r\n").decode()
            if "\r" in line:
                raise DataError(
                    f"{file.name}, line {number}: carriage returns within the line: end lines "
                    "with line feeds"
                )
            said = re.fullmatch(r"\s*sep=(.)\s*", line, re.IGNORECASE)
            if said and separator is None:
                separator = said[1]
            elif re.match(r"#(\s|$)", line) and not _is_header(line.lstrip("# \t")):
                comments += 1
            elif line.strip():
                notes = (f"comment lines at the beginning left out: {comments}",) * bool(comments)
                return Opening(line, number - 1, separator, notes)
    raise DataError(f"{file.name} is empty: there is nothing to read")


def _is_header(line: str) -> bool:
    return bool(line.strip()) and n_usual_roles(header(line)[0]) > 1


def header(line: str, separators: str = SEPARATORS) -> tuple[list[str], str]:
    """Column names of a header line, and the separator that explains it best."""

    def split(separator: str) -> list[str]:
        try:
            (fields,) = csv.reader(io.StringIO(line), delimiter=separator)
        except csv.Error:  # a field beyond the module's limit: a long history, not a header
            fields = [line]
        return [field.strip() for field in fields]

    def fitness(separator: str) -> tuple[int, int]:
        names = split(separator)
        return n_usual_roles(names), len(names)

    best = max(separators, key=fitness)
    return split(best), best


def read_table(
    log: LogFile,
    format: str,
    separators: str,
    quoted: bool = True,
    plain: Callable[[str], str] = str,
) -> Columns:
    """A table with a header line.

    Args:
        separators: among which the header decides.
        quoted: True if fields may be quoted, and then span lines.
        plain: column name of a field of the header.

    Raises:
        DataError: the header or a line is wrong.
    """
    names, separator, roles = _heading(log, separators, plain)
    table, source = read_records(log, separator, len(names), quoted, 0 if log.columns else 1)
    if not table.height:
        raise source.fail("there is a header but no interaction")
    table.columns = names
    return Columns(table, roles, source, format, text=True, notes=log.notes)


def scan_table(
    log: LogFile,
    spool: Spool,
    format: str,
    separators: str,
    quoted: bool = True,
    plain: Callable[[str], str] = str,
) -> Scan:
    """What :func:`read_table` reads, a piece at a time, to files that Polars scans.

    Raises:
        DataError: the header or a line is wrong.
    """
    names, separator, roles = _heading(log, separators, plain)
    blank = array("q")
    skip, n_rows = 0 if log.columns else 1, 0
    source = Source(log.path.name, line_finder(log, blank, quoted, skip))
    kept = [name for name in names if name in roles.values() or spool.wanted(name)]
    batches = record_batches(log, separator, len(names), quoted, skip, blank, spool.size)
    for table in batches:
        table.columns = names
        spool.add(table.select(kept))
        n_rows += table.height
    if not n_rows:
        raise source.fail("there is a header but no interaction")
    return Scan(spool.frame(), names, roles, source, format, text=True, notes=log.notes)


def _heading(
    log: LogFile, separators: str, plain: Callable[[str], str]
) -> tuple[list[str], str, dict[str, str]]:
    """Column names of a table, the separator of its fields, and the column of each role."""
    source, separators = log.source, log.separator or separators
    if log.columns:
        fields, separator = list(log.columns), _separator_of(log, separators)
    else:
        marked = log.first_line.lstrip("# \t")
        line = marked if _is_header(marked) else log.first_line
        fields, separator = header(line, separators)
    names = [plain(name or f"column_{number}") for number, name in enumerate(fields, 1)]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise source.fail(
                f"the header names {name!r} twice (columns {names.index(name) + 1} and {at + 1}): "
                "rename or remove one"
            )
    if len(names) == 1 and "user_id" in log.named:
        _refuse_other_separator(log)
    roles = find_roles(
        names, {role: name and plain(name) for role, name in log.named.items()}, source
    )
    return names, separator, roles


def _refuse_other_separator(log: LogFile) -> None:
    """Raises DataError if the header has usual names between characters that divide no fields."""
    line, where = log.first_line, f"line {log.skip + 1}"
    if "::" in line and n_usual_roles([name.strip() for name in line.split("::")]) > 1:
        raise log.source.fail(
            f"{where}: its fields are separated by '::': remove this line and name its columns "
            f"with format='movielens' (--format movielens) and columns= (--columns "
            f"{','.join(line.split('::'))})"
        )
    for mark in dict.fromkeys(re.findall(r"[^\w\s.\"'-]|[\x00-\x1f]", line)):
        if mark not in SEPARATORS and mark.isascii() and n_usual_roles(header(line, mark)[0]) > 1:
            shown = mark if mark.isprintable() else "and that character"
            raise log.source.fail(
                f"{where}: its fields seem to be separated by {mark!r}: put a line in front that "
                f"says so, sep={shown}, or write the table with commas"
            )


def _separator_of(log: LogFile, separators: str) -> str:
    """The separator that divides the first line into as many fields as columns were named.

    Raises:
        DataError: none does, or the first line is a header.
    """
    names = list(log.columns or ())
    if _is_header(log.first_line):
        raise log.source.fail(
            f"line {log.skip + 1} is a header: leave out columns= (--columns), or remove the line"
        )
    for separator in separators:
        with log.path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            for _ in range(log.skip):
                stream.readline()
            with suppress(csv.Error):  # a field beyond the module's limit
                if len(next(csv.reader(stream, delimiter=separator))) == len(names):
                    return separator
    found, separator = header(log.first_line, separators)
    raise log.source.fail(
        f"line {log.skip + 1} has {len(found)} fields (separator {separator!r}), but columns= "
        f"(--columns) names {len(names)}: {', '.join(names)}"
    )


def read_records(
    log: LogFile, separator: str | None, n_fields: int, quoted: bool, skip: int = 0
) -> tuple[pl.DataFrame, Source]:
    """All records of a text file but the first `skip`, as strings, and their source.

    Args:
        separator: of the fields, or None for whole lines.
        n_fields: fields that every record must have.
        quoted: True if fields may be quoted, and then span lines.
        skip: records left out at the beginning, such as a header.

    Raises:
        DataError: not UTF-8, a quote out of place, or another number of fields; names the line.
    """
    blank = array("q")
    tables = list(record_batches(log, separator, n_fields, quoted, skip, blank))
    source = Source(log.path.name, line_finder(log, blank, quoted, skip))
    return pl.concat(tables, rechunk=True), source


def record_batches(
    log: LogFile,
    separator: str | None,
    n_fields: int,
    quoted: bool,
    skip: int,
    blank: "array[int]",
    size: int = BLOCK,
) -> Iterator[pl.DataFrame]:
    """What :func:`read_records` reads, in pieces of about `size` bytes; at least one, even empty.

    Args:
        blank: takes the numbers of the blank records, which are no rows.

    Raises:
        DataError: as for :func:`read_records`, when its piece is read.
    """
    schema = {f"column_{number}": pl.String for number in range(1, n_fields + 1)}
    file, before = log.path, skip
    yield pl.DataFrame(schema=schema)
    for block in blocks(file, quoted, size, log.skip):
        empty = _checked(block, separator, n_fields, file.name)
        text, n_rows = block.text, len(empty)
        if empty.any():
            blank.extend((np.flatnonzero(empty) + block.record).tolist())
            widths = np.diff(block.starts, append=len(text))
            text = block.data[np.repeat(~empty, widths)].tobytes()
            n_rows -= int(empty.sum())
        if not text:
            continue
        try:
            table = pl.read_csv(
                text,
                has_header=False,
                schema=schema,
                separator=separator or "\x00",
                quote_char='"' if quoted else None,
            )
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{file.name} cannot be read as a table: {reason(error)}") from error
        if table.height != n_rows:
            raise DataError(
                f"{file.name}: {n_rows:,} lines give {table.height:,} rows, so a quote is out of "
                f"place: {_QUOTING}"
            )
        left = max(0, before - table.height)
        yield table.slice(before - left)
        before = left


@dataclass(frozen=True)
class Block:
    """Some whole records of a text file.

    Attributes:
        text: their bytes.
        data: the bytes as an array.
        line: number of the first line, from 1.
        record: number of the first record, from 0.
        starts: position of each record's first byte in `text`.
        ends: position of each record's line feed, or after its last byte.
        quotes: positions of quotation marks.
    """

    text: bytes
    data: UInt8[np.ndarray, " bytes"]
    line: int
    record: int
    starts: Int64[np.ndarray, " R"]
    ends: Int64[np.ndarray, " R"]
    quotes: Int64[np.ndarray, " Q"]

    def line_of(self, record: int) -> int:
        """Line on which a record of the block begins; the record is counted from the block's."""
        return self.line + self.text.count(b"\n", 0, int(self.starts[record]))


def blocks(file: Path, quoted: bool, size: int = BLOCK, skip: int = 0) -> Iterator[Block]:
    """The records of a file, about `size` bytes at a time; a quoted line feed ends no record.

    Args:
        skip: lines left out at the beginning.
    """
    line, record, rest = skip + 1, 0, b""
    with file.open("rb") as stream:
        for _ in range(skip):
            stream.readline()
        if not skip and stream.read(len(BOM)) != BOM:
            stream.seek(0)
        while True:
            # as much again where no record ended, so that a long one is not scanned over and over
            more = stream.read(max(size, len(rest)))
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
            yield Block(text[:stop], data[:stop], line, record, starts, ends, quotes)
            line += text.count(b"\n", 0, stop)
            record += len(ends)
            rest = text[stop:]


def scan(
    log: LogFile, separator: str | None, n_fields: int, quoted: bool
) -> "tuple[int, array[int]]":
    """The number of records, and which of them are blank.

    Raises:
        DataError: not UTF-8, a quote out of place, or another number of fields; names the line.
    """
    n_records, blank = 0, array("q")
    for block in blocks(log.path, quoted, skip=log.skip):
        empty = _checked(block, separator, n_fields, log.path.name)
        blank.extend((np.flatnonzero(empty) + block.record).tolist())
        n_records = block.record + len(block.ends)
    return n_records, blank


def _checked(
    block: Block, separator: str | None, n_fields: int, name: str
) -> Bool[np.ndarray, " R"]:
    """Which records of a block are blank.

    Raises:
        DataError: not UTF-8, a quote out of place, or another number of fields; names the line.
    """
    _check_text(block.text, name, block.line)
    if len(block.quotes) % 2:
        raise DataError(
            f"{name}, line {block.line_of(-1)}: a quote is opened and never closed: {_QUOTING}"
        )
    empty = _blank_records(block, separator)
    if separator is None:
        return empty
    at = np.flatnonzero(block.data == ord(separator))
    _check_quotes(block, separator, name)
    if len(block.quotes):
        at = at[np.searchsorted(block.quotes, at) % 2 == 0]
    counts = np.diff(np.searchsorted(at, block.ends), prepend=0) + 1
    wrong = (counts != n_fields) & ~empty
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f"{name}, line {block.line_of(first)}: {n_fields} fields expected, "
            f"{counts[first]} found (separator {separator!r}): mend the line, or name "
            "another format with format= (--format)"
        )
    return empty


def _blank_records(block: Block, separator: str | None) -> Bool[np.ndarray, " R"]:
    """Which records hold nothing: no character, DOS' end of file, or blanks.

    A blank that separates fields is something, for it stands between empty fields.
    """
    lengths = block.ends - block.starts
    empty: Bool[np.ndarray, " R"] = lengths == 0
    first = np.zeros(len(lengths), dtype=np.uint8)
    first[~empty] = block.data[block.starts[~empty]]
    empty |= (lengths == 1) & (first == ord("\r"))
    blank = bytes(set(b"\x1a\r \t") - set((separator or "").encode()))
    perhaps = np.isin(first, np.frombuffer(blank, dtype=np.uint8))
    for number in np.flatnonzero(perhaps):
        text = block.text[int(block.starts[number]) : int(block.ends[number])]
        empty[number] = not text.strip(blank)
    return empty


def _check_quotes(block: Block, separator: str, name: str) -> None:
    """Raises DataError if a quote is not where it means something to every reader.

    A field in quotes begins and ends with one and doubles those inside. Where a field does not
    begin with a quote, quotes are characters like others.
    """
    if not len(block.quotes):
        return
    data, opened, closed = block.data, block.quotes[::2], block.quotes[1::2]

    def is_edge(at: Int64[np.ndarray, " Q"]) -> Bool[np.ndarray, " Q"]:
        """Whether the bytes at these positions are outside of fields."""
        byte = data[np.clip(at, 0, len(data) - 1)]
        edge: Bool[np.ndarray, " Q"] = (byte == ord(separator)) | (byte == ord("\n"))
        return edge | (at < 0) | (at >= len(data))

    doubled = np.zeros(len(opened), dtype=bool)
    doubled[1:] = opened[1:] == closed[:-1] + 1
    # a doubled quote belongs to what the quote before it belongs to
    owner = np.maximum.accumulate(np.where(doubled, 0, np.arange(len(opened))))
    in_quotes = is_edge(opened - 1)[owner]
    after = closed + 1
    returns = (data[np.minimum(after, len(data) - 1)] == ord("\r")) & (
        (after + 1 >= len(data)) | (data[np.minimum(after + 1, len(data) - 1)] == ord("\n"))
    )
    wrong = in_quotes & ~(is_edge(after) | returns)
    wrong[:-1] &= ~doubled[1:]
    for pair in np.flatnonzero(~in_quotes):
        inside = block.text[opened[pair] : closed[pair]]
        field_begins = data[opened[pair] - 1] == ord(" ") and is_edge(opened[pair : pair + 1] - 2)
        wrong[pair] = separator.encode() in inside or b"\n" in inside or bool(field_begins)
    if wrong.any():
        at = int(opened[int(wrong.argmax())])
        line = block.line + block.text.count(b"\n", 0, at)
        raise DataError(f"{name}, line {line}: a quote is out of place: {_QUOTING}")


def line_finder(log: LogFile, blank: "array[int]", quoted: bool, skip: int) -> Callable[[int], str]:
    """A function that names the line of a row; it reads the file again.

    Args:
        blank: numbers of the blank records, ascending, which are no rows.
        quoted: True if fields may be quoted, and then span lines.
        skip: records before the first row, blank ones not counted.
    """

    def locate(row: int) -> str:
        record = row + skip
        for skipped in blank:
            record += skipped <= record
        all_blocks = blocks(log.path, quoted, skip=log.skip)
        block = next(b for b in all_blocks if record < b.record + len(b.ends))
        return f"line {block.line_of(record - block.record)}"

    return locate


def reason(error: Exception) -> str:
    """First line of a library's message."""
    return str(error).partition("\n")[0]


def _check_text(text: bytes, name: str, line: int) -> None:
    """Raises DataError if the text, which begins on that line of the file, is not UTF-8."""
    at, what = text.find(b"\x00"), "a zero byte, so this is a binary file: give a text file"
    if at < 0:
        try:
            text.decode()
            return
        except UnicodeDecodeError as error:
            at = error.start
            what = f"byte 0x{text[at]:02x} is not UTF-8: name the file's encoding with "
            what += "encoding= (--encoding), such as latin-1, or save it as UTF-8"
    line += text.count(b"\n", 0, at)
    raise DataError(f"{name}, line {line}: {what}")
