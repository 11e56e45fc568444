"""``baskets``: a line a user, ``user: item, item, item``, oldest first."""

import polars as pl

from diffuserec.data.columns import Columns
from diffuserec.data.log_format import LogFile, LogFormat
from diffuserec.data.text import read_records


class Baskets(LogFormat):
    """Lines of a user, a colon, and items with commas between."""

    name = "baskets"
    suffixes = (".baskets",)

    def read(self, log: LogFile) -> Columns:
        log.refuse_named_columns(self.name)
        table, source = read_records(log, None, 1, quoted=False)
        fields = table.to_series().str.split_exact(":", 1).struct.unnest()
        items = fields["field_1"].str.split(",").list.eval(pl.element().str.strip_chars())
        table = pl.DataFrame({"user": fields["field_0"].str.strip_chars(), "item": items})
        roles = {"user_id": "user", "item_id": "item"}
        return Columns(table.explode("item"), roles, source, self.name, text=True)


FORMAT = Baskets
