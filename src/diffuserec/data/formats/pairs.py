"""``pairs``: one line an interaction, ``user item``, in time order."""

from diffuserec.data.columns import Columns
from diffuserec.data.formats.sequences import read_lines
from diffuserec.data.log_format import LogFile, LogFormat


class Pairs(LogFormat):
    """Lines of two fields; recognized by ``sequences``, which reads all lines to decide."""

    name = "pairs"

    def read(self, log: LogFile) -> Columns:
        return read_lines(log, self.name)
