"""``tsv``: a header line, then one interaction a line; fields are separated by tabs."""

from diffuserec.data.columns import Columns, Scan, n_usual_roles
from diffuserec.data.log_format import LogFile, LogFormat, Spool
from diffuserec.data.text import header, read_table, scan_table


class Tsv(LogFormat):
    """Tables of fields separated by tabs."""

    name = "tsv"
    suffixes = (".tsv",)

    def certainty(self, first_line: str) -> int:
        names, separator = header(first_line)
        return 70 if n_usual_roles(names) >= 2 and separator == "\t" else 0

    def read(self, log: LogFile) -> Columns:
        return read_table(log, self.name, "\t")

    def scan(self, log: LogFile, spool: Spool) -> Scan:
        return scan_table(log, spool, self.name, "\t")
