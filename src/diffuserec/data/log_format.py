"""The contract of a log format: how a file is recognized, read, and written.

A new format is one file with a subclass of :class:`LogFormat`, registered in
:data:`diffuserec.data.formats.FORMATS` or declared as an entry point of the group
``diffuserec.formats``::

    class Arff(LogFormat):
        name = "arff"
        suffixes = (".arff",)

        def read(self, log: LogFile) -> Columns:
            table = my_reader(log.path)
            source = log.source
            return Columns(table, find_roles(table.columns, log.named, source), source, self.name)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar

import polars as pl

from diffuserec.data.columns import OPTIONS, Columns, Scan, Source, first_true
from diffuserec.files import telling


@dataclass(frozen=True)
class LogFile:
    """A file to read as a log.

    Attributes:
        path: the file, decompressed if it was gzipped; named as the original.
        named: for each role (``user_id``, ``item_id``, ``timestamp``) the name of its column, or
            None for a usual one.
        first_line: first line that holds something; empty for a binary format.
        explicit: True if the caller named the format, False if it was recognized.
        columns: names of the columns by their position, for a file without a header.
        skip: lines before the first one: blank lines, comments and Excel's ``sep=;``.
        separator: of fields, if the file says it.
        notes: one line for each remark on what was left out.
    """

    path: Path
    named: Mapping[str, str | None]
    first_line: str
    explicit: bool
    columns: Sequence[str] | None = None
    skip: int = 0
    separator: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> Source:
        """The file as a source of messages."""
        return Source(self.path.name)

    def refuse_named_columns(self, format: str, always_timed: bool = False) -> None:
        """Raises DataError if columns were named, for a format that has no column names.

        Args:
            always_timed: True if the format has times, so that not even ``none`` may be said.
        """
        for role, name in self.named.items():
            untimed = (role, name) == ("timestamp", "none") and not always_timed
            if name is not None and not untimed:
                option = OPTIONS[role]
                raise self.source.fail(
                    f"read as {format}, which has no column names: leave out {option}= "
                    f"(--{option}) or name another format (--format)"
                )
        self.refuse_positions(format)

    def refuse_positions(self, format: str) -> None:
        """Raises DataError if columns were named by position, for a format of other rules."""
        if self.columns:
            raise self.source.fail(
                f"read as {format}, whose columns have no positions to name: leave out columns= "
                "(--columns) or name another format (--format)"
            )


@dataclass(frozen=True)
class Spool:
    """Where a log's columns wait as Parquet files, if Polars cannot scan the log itself.

    Attributes:
        out: what the log is read for, named where nothing can be written.
        folder: an empty one.
        wanted: whether a column is needed beside those of users, items and times.
        size: bytes of text to read at a time.
        files: written so far, in order.
    """

    out: Path
    folder: Path
    wanted: Callable[[str], bool]
    size: int
    files: list[Path] = field(default_factory=list)

    def add(self, table: pl.DataFrame) -> None:
        """Writes the next rows; tables without any are passed over but for the first."""
        if table.height or not self.files:
            self.files.append(self.folder / f"{len(self.files):06}.parquet")
            with telling(self.out):
                table.write_parquet(self.files[-1], compression="lz4", statistics=False)

    def frame(self) -> pl.LazyFrame:
        """All rows that were added."""
        return pl.scan_parquet(self.files, glob=False)


class LogFormat(ABC):
    """One format of interaction logs. A file of it may be gzipped.

    A file is recognized by its first bytes (`magic`), else by the end of its name (`suffixes`),
    else by its first line: the format that is most certain of it reads the file.

    Attributes:
        name: under which it is registered.
        title: name within a sentence; by default `name`.
        suffixes: ends of file names, in lower case, such as ``.csv``.
        written_suffixes: further ends of names of files that are written in this format.
        binary: True if files are not UTF-8 text, so that no first line is read.
        magic: first bytes of every file; empty if they vary.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]] = ()
    written_suffixes: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = False
    magic: ClassVar[bytes] = b""

    @property
    def writable(self) -> bool:
        """True if the format can be written."""
        return type(self).write is not LogFormat.write

    def certainty(self, first_line: str) -> int:
        """Certainty that a text file with this first line is of the format, 0 to 100.

        Among the formats of this package, 90 marks syntax that nothing else has, 70 a header of
        usual column names, 50 a separator, and 1 that anything is taken.
        """
        return 0

    @abstractmethod
    def read(self, log: LogFile) -> Columns:
        """Reads the columns, and leaves checks and conversions of values to the caller.

        Raises:
            DataError: the file is empty, damaged or not of this format; names the line if it can.
        """

    def scan(self, log: LogFile, spool: Spool) -> Scan | None:
        """The columns of a file that may be larger than memory; None if the format is only read.

        Raises:
            DataError: as for :meth:`read`.
        """
        return None

    def write(self, frame: pl.DataFrame, stream: BinaryIO, source: Source) -> None:
        """Writes the frame of an ``Interactions``; a format that does not define it only reads.

        Args:
            frame: ``user_id`` and ``item_id``, perhaps ``timestamp``, ``synthetic`` and others.

        Raises:
            DataError: the format cannot hold a column or a value.
        """
        raise NotImplementedError(f"{self.name} cannot be written")


def with_times(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with a ``timestamp``: if it has none, the position in the user's history."""
    if "timestamp" in frame.columns:
        return frame
    position = pl.int_range(pl.len(), dtype=pl.Int64).over("user_id").alias("timestamp")
    return frame.select("user_id", "item_id", position, pl.exclude("user_id", "item_id"))


def require_flat(frame: pl.DataFrame, format: str, source: Source, forbidden: str = "") -> None:
    """Raises DataError if a text file cannot hold a column or a string.

    Args:
        forbidden: pattern of characters that no string may contain.
    """
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
