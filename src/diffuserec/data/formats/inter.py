"""``inter``: RecBole's atomic file, with a header of typed names such as ``user_id:token``.

Fields are separated by tabs, or by what explains the header better, for RecBole can be told so.
"""

from typing import BinaryIO

import polars as pl

from diffuserec.data.columns import Columns, Scan, Source
from diffuserec.data.log_format import LogFile, LogFormat, Spool, require_flat, with_times
from diffuserec.data.text import SEPARATORS, header, read_table, scan_table

_SEPARATORS = "\t" + SEPARATORS.replace("\t", "")  # of equally good ones the first is taken


class Inter(LogFormat):
    """RecBole's interactions, one a line."""

    name = "inter"
    suffixes = (".inter", ".item")

    def certainty(self, first_line: str) -> int:
        return 80 if ":token" in first_line else 0

    def read(self, log: LogFile) -> Columns:
        self._refuse_histories(log)
        return read_table(log, self.name, _SEPARATORS, quoted=False, plain=_without_type)

    def scan(self, log: LogFile, spool: Spool) -> Scan:
        self._refuse_histories(log)
        return scan_table(log, spool, self.name, _SEPARATORS, quoted=False, plain=_without_type)

    def _refuse_histories(self, log: LogFile) -> None:
        names, _ = header(log.first_line, _SEPARATORS)
        if any(name.startswith("item_id") and name.endswith("_seq") for name in names):
            raise log.source.fail(
                "this holds whole histories: give the .inter file with one interaction a line, or "
                "one line a user (format sequences)"
            )

    def write(self, frame: pl.DataFrame, stream: BinaryIO, source: Source) -> None:
        frame = with_times(frame)
        require_flat(frame, self.name, source, forbidden=r"[\t\n\r]")
        frame = frame.with_columns(pl.col(pl.Boolean).cast(pl.Int8))
        numbers = {name for name, dtype in frame.schema.items() if dtype.is_numeric()}
        numbers -= {"user_id", "item_id"}
        frame = frame.rename(lambda name: f"{name}:{'float' if name in numbers else 'token'}")
        frame.write_csv(stream, separator="\t", quote_style="never")


def _without_type(name: str) -> str:
    return name.partition(":")[0]
