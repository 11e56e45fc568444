"""``csv``: a header line, then one interaction a line; quoted fields may span lines.

The separator (comma, tab, semicolon, bar or blank) is the one that explains the header best.
"""

from typing import BinaryIO

import polars as pl

from diffuserec.data.columns import Columns, Scan, Source, n_usual_roles
from diffuserec.data.log_format import LogFile, LogFormat, Spool, require_flat, with_times
from diffuserec.data.text import SEPARATORS, header, read_table, scan_table


class Csv(LogFormat):
    """Tables of separated fields."""

    name = "csv"
    suffixes = (".csv",)

    def certainty(self, first_line: str) -> int:
        names, separator = header(first_line)
        if n_usual_roles(names) >= 2 and separator != "\t":
            return 70
        return 50 if "," in first_line or ";" in first_line else 0

    def read(self, log: LogFile) -> Columns:
        return read_table(log, self.name, SEPARATORS)

    def scan(self, log: LogFile, spool: Spool) -> Scan:
        return scan_table(log, spool, self.name, SEPARATORS)

    def write(self, frame: pl.DataFrame, stream: BinaryIO, source: Source) -> None:
        frame = with_times(frame)
        require_flat(frame, self.name, source)
        frame.write_csv(stream)
