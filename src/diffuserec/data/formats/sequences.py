"""``sequences``: one line a user, the user and then the items, oldest first.

The format of any text that no other recognizes. A file that was not said to be of it is taken for
``pairs`` if every line has two fields and a user comes back.
"""

from dataclasses import replace
from typing import BinaryIO

import numpy as np
import polars as pl

from diffuserec.data.columns import Columns, Source, first_true
from diffuserec.data.log_format import LogFile, LogFormat, require_flat
from diffuserec.data.text import read_records

_BLANKS = " \t\r\f\v"
"""What separates fields. A no-break space does not: it is a character of an id."""

_NUMBERS = r"^[-+]?[\d.]+([ \t\f\v\r]+[-+]?[\d.]+)*$"


class Sequences(LogFormat):
    """Lines of blank-separated fields, a user's whole history on each."""

    name = "sequences"
    written_suffixes = (".txt",)

    def certainty(self, first_line: str) -> int:
        return 1

    def read(self, log: LogFile) -> Columns:
        return read_lines(log, self.name if log.explicit else None)

    def write(self, frame: pl.DataFrame, stream: BinaryIO, source: Source) -> None:
        frame = frame.select("user_id", "item_id")
        require_flat(frame, self.name, source, forbidden=r"\s")
        users = frame.group_by("user_id", maintain_order=True)
        lines = users.agg(pl.col("item_id").cast(pl.String).str.join(" "))
        lines = lines.select(pl.concat_str("user_id", "item_id", separator=" "))
        lines.write_csv(stream, include_header=False, separator="\t", quote_style="never")


def read_lines(log: LogFile, format: str | None) -> Columns:
    """Interactions of lines of blank-separated fields, in time order.

    Args:
        format: ``sequences``, ``pairs``, or None for the one that the lines look like.

    Raises:
        DataError: a line has too few fields, or too many, or a user a second line.
    """
    log.refuse_named_columns(format or "lines")
    table, source = read_records(log, None, 1, quoted=False)
    lines = table.to_series()
    if format is None:
        _refuse_table(lines, log)
    lines = lines.str.strip_chars(_BLANKS)
    notes, n_headers = log.notes, int(_is_header(lines))
    if n_headers:
        where, line = source.locate(0), source.locate
        notes = (*notes, f"{where} left out: it holds no digit, and the others hold only numbers")
        lines, source = lines.slice(1), replace(source, locate=lambda row: line(row + 1))
    if lines.str.contains(r"[\t\f\v\r]|  ").any():
        lines = lines.str.replace_all(r"[ \t\f\v\r]+", " ")
    fields = lines.str.split(" ")
    lengths = fields.list.len()
    row = first_true(lengths < 2)
    if row is not None:
        raise source.fail(
            "expected a user and at least one item, separated by blanks; for a table name its "
            "format with format= (--format)",
            row,
        )
    users = fields.list.first()
    repeated = users.is_duplicated()
    if format is None:
        format = "pairs" if (lengths == 2).all() and repeated.any() else "sequences"
    if format == "pairs":
        row = first_true(lengths != 2)
        if row is not None:
            raise source.fail(f"expected a user and one item, got {lengths[row]} fields", row)
    elif repeated.any():
        row, again = (users == users[int(repeated.arg_true()[0])]).arg_true().head(2)
        raise source.fail(
            f"user {users[row]!r} has a second line ({source.locate(again)}), where sequences have "
            "one line a user: join them; for a table name its format with format= (--format) and "
            "give it a header such as user_id,item_id,timestamp",
            row,
        )
    # from here a row is an interaction; a message about one must find its line again
    ends = (lengths.cast(pl.Int64) - 1).cum_sum().to_numpy()
    line = source.locate
    source = replace(source, locate=lambda at: line(int(np.searchsorted(ends, at, side="right"))))
    table = pl.DataFrame({"first field": users, "other fields": fields.list.slice(1)})
    roles = {"user_id": "first field", "item_id": "other fields"}
    return Columns(table.explode("other fields"), roles, source, format, text=True, notes=notes)


def _refuse_table(lines: pl.Series, log: LogFile) -> None:
    """Raises DataError if all lines have the same number of tabs, and more than one."""
    n_tabs = lines.str.count_matches("\t", literal=True)
    if n_tabs[0] >= 2 and (n_tabs == n_tabs[0]).all():
        example = ["user", "item", "rating", "time", "other"]
        example += [f"column_{number}" for number in range(6, n_tabs[0] + 2)]
        raise log.source.fail(
            f"every line has {n_tabs[0] + 1} fields between tabs, so this is a table without a "
            f"usual header: name its columns with columns= (--columns "
            f"{','.join(example[: n_tabs[0] + 1])}) or, if each line is a user and then items, "
            "say format='sequences' (--format sequences)"
        )


def _is_header(lines: pl.Series) -> bool:
    """True if the first line holds no digit and all the others are of numbers."""
    others = lines.slice(1)
    return (
        len(others) > 0
        and not lines.head(1).str.contains(r"\d").any()
        and all(part.str.contains(_NUMBERS).all() for part in (others.head(100), others))
    )
