"""``movielens``: ``user::item::rating::time`` on every line, without a header."""

from diffuserec.data.columns import Columns, first_true
from diffuserec.data.log_format import LogFile, LogFormat
from diffuserec.data.text import read_records


class MovieLens(LogFormat):
    """Files of ratings as MovieLens-1M and MovieLens-10M publish them."""

    name = "movielens"

    def certainty(self, first_line: str) -> int:
        return 60 if "::" in first_line else 0

    def read(self, log: LogFile) -> Columns:
        log.refuse_named_columns(self.name, always_timed=True)
        table, source = read_records(log.path, None, 1, quoted=False)
        lines = table.to_series()
        row = first_true(lines.str.count_matches("::", literal=True) != 3)
        if row is not None:
            raise source.fail("expected user::item::rating::time", row)
        table = lines.str.split_exact("::", 3).struct.unnest()
        table.columns = ["field 1", "field 2", "rating", "field 4"]
        roles = {"user_id": "field 1", "item_id": "field 2", "timestamp": "field 4"}
        return Columns(table, roles, source, self.name, text=True)
