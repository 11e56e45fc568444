"""``parquet``: one interaction a row, in columns that keep their types."""

from typing import BinaryIO

import polars as pl

from diffuserec.data.columns import Columns, Scan, Source, find_roles
from diffuserec.data.log_format import LogFile, LogFormat, Spool, with_times
from diffuserec.files import check_parquet


class Parquet(LogFormat):
    """Parquet files."""

    name = "parquet"
    title = "Parquet"
    suffixes = (".parquet", ".pq")
    binary = True
    magic = b"PAR1"

    def read(self, log: LogFile) -> Columns:
        log.refuse_positions(self.name)
        check_parquet(log.path)
        table = pl.read_parquet(log.path, glob=False)
        source = log.source
        return Columns(table, find_roles(table.columns, log.named, source), source, self.name)

    def scan(self, log: LogFile, spool: Spool) -> Scan:
        log.refuse_positions(self.name)
        check_parquet(log.path)
        frame, source = pl.scan_parquet(log.path, glob=False), log.source
        names = frame.collect_schema().names()
        return Scan(frame, names, find_roles(names, log.named, source), source, self.name)

    def write(self, frame: pl.DataFrame, stream: BinaryIO, source: Source) -> None:
        with_times(frame).write_parquet(stream)
