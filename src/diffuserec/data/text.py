"""Text files of records: encoding, headers, fields, and the line of each row.

Polars reads the values. The encoding, the number of fields and the line of a row, which it does
not report, are found in the bytes, a block at a time.
"""

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int64, UInt8

from diffuserec.data.columns import Columns, Source, find_roles, n_usual_roles
from diffuserec.data.log_format import LogFile
from diffuserec.errors import DataError

SEPARATORS = ",\t;| "
"""Separators among which a header line decides."""

BLOCK = 1 << 24
"""Bytes read at a time."""


def first_line(file: Path) -> str:
    """First line that is not blank, without a byte order mark.

    Raises:
        DataError: the file is empty, not UTF-8, or ends its lines with carriage returns.
    """
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
    source = log.source
    fields, separator = header(log.first_line, separators)
    names = [plain(name or f"column_{number}") for number, name in enumerate(fields, 1)]
    for at, name in enumerate(names):
        if name in names[:at]:
            raise source.fail(
                f"the header names {name!r} twice (columns {names.index(name) + 1} and {at + 1}): "
                "rename or remove one"
            )
    roles = find_roles(
        names, {role: name and plain(name) for role, name in log.named.items()}, source
    )
    table, source = read_records(log.path, separator, len(names), quoted, skip=1)
    if not table.height:
        raise source.fail("there is a header but no interaction")
    table.columns = names
    return Columns(table, roles, source, format, text=True)


def read_records(
    file: Path, separator: str | None, n_fields: int, quoted: bool, skip: int = 0
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
    n_records, blank = scan(file, separator, n_fields, quoted)
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
        raise DataError(f"{file.name} cannot be read as a table: {reason(error)}") from error
    if table.height != n_records - leading:
        raise DataError(
            f"{file.name}: {n_records:,} lines give {table.height:,} rows, so a quote is out of "
            'place: double the quotes inside fields ("")'
        )
    if len(blank) > leading:
        keep = np.ones(n_records, dtype=bool)
        keep[blank] = False
        table = table.filter(pl.Series(keep[leading:]))
    return table.slice(skip), Source(file.name, line_finder(file, blank, quoted, skip))


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


def blocks(file: Path, quoted: bool, size: int = BLOCK) -> Iterator[Block]:
    """The records of a file, about `size` bytes at a time; a quoted line feed ends no record."""
    line, record, rest = 1, 0, b""
    with file.open("rb") as stream:
        while True:
            more = stream.read(size)
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


def scan(file: Path, separator: str | None, n_fields: int, quoted: bool) -> tuple[int, list[int]]:
    """The number of records, and which of them are blank.

    Raises:
        DataError: not UTF-8, an open quote, or another number of fields; names the line.
    """
    n_records, blank = 0, []
    for block in blocks(file, quoted):
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
                first = int(wrong.argmax())
                quote = b'"' in block.text[int(block.starts[first]) : int(block.ends[first])]
                raise DataError(
                    f"{file.name}, line {block.line_of(first)}: {n_fields} fields expected, "
                    f"{counts[first]} found (separator {separator!r}): "
                    f"{'close its quote' if quote else 'mend the line'}, or name another format "
                    "with format= (--format)"
                )
        blank.extend((np.flatnonzero(empty) + block.record).tolist())
        n_records = block.record + len(block.ends)
    return n_records, blank


def line_finder(file: Path, blank: list[int], quoted: bool, skip: int) -> Callable[[int], str]:
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
        block = next(b for b in blocks(file, quoted) if record < b.record + len(b.ends))
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
            what = f"byte 0x{text[at]:02x} is not UTF-8: save the file as UTF-8"
    line += text.count(b"\n", 0, at)
    raise DataError(f"{name}, line {line}: {what}")
