"""``movielens``: ``user::item::rating::time`` on every line, without a header.

Other columns can be named by their position.
"""

from diffuserec.data.columns import Columns, find_roles, first_true
from diffuserec.data.log_format import LogFile, LogFormat
from diffuserec.data.text import read_records


class MovieLens(LogFormat):
    """Files of ratings as MovieLens-1M and MovieLens-10M publish them."""

    name = "movielens"

    def certainty(self, first_line: str) -> int:
        return 60 if "::" in first_line else 0

    def read(self, log: LogFile) -> Columns:
        names = list(log.columns or ("user", "item", "rating", "time"))
        if not log.columns:
            log.refuse_named_columns(self.name, always_timed=True)
        table, source = read_records(log, None, 1, quoted=False)
        lines = table.to_series()
        row = first_true(lines.str.count_matches("::", literal=True) != len(names) - 1)
        if row is not None:
            raise source.fail(f"expected {'::'.join(names)}", row)
        table = lines.str.split_exact("::", len(names) - 1).struct.unnest()
        if len(set(names)) < len(names):
            raise source.fail(f"columns= (--columns) names one twice: {', '.join(names)}")
        table.columns = names
        roles = find_roles(names, log.named, source)
        return Columns(table, roles, source, self.name, text=True, notes=log.notes)
