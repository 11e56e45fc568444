"""``sequences``: one line a user, the user and then the items, oldest first.

The format of any text that no other recognizes. A file that was not said to be of it is taken for
``pairs`` if every line has two fields and a user comes back.
"""

from dataclasses import replace
from typing import BinaryIO

import numpy as np
import polars as pl

from diffuserec.data.columns import Columns, Source, first_true, usual_names
from diffuserec.data.log_format import LogFile, LogFormat, require_flat
from diffuserec.data.text import read_records

_BLANKS = " \t\r\f\v"
"""What separates fields. A no-break space does not: it is a character of an id."""

_NUMBERS = r"^[-+]?[\d.]+([ \t\f\v\r]+[-+]?[\d.]+)*$"

_WITH_DIGITS = r"^[^ \t\f\v\r\d]*\d[^ \t\f\v\r]*([ \t\f\v\r]+[^ \t\f\v\r\d]*\d[^ \t\f\v\r]*)*$"
"""Fields that each hold a digit."""


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
    if log.first_line.startswith("%%MatrixMarket"):
        raise log.source.fail(
            "a Matrix Market file, which says its size first: write it as a table with a header "
            "such as user_id,item_id,timestamp"
        )
    table, source = read_records(log, None, 1, quoted=False)
    lines = table.to_series()
    if format is None:
        _refuse_table(lines, log, source)
    lines = lines.str.strip_chars(_BLANKS)
    notes, why = log.notes, _why_header(lines, source if format is None else None)
    if why:
        where, line = source.locate(0), source.locate
        notes = (*notes, f"{where} left out: {why}")
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
    elif format == "sequences" and not log.explicit:
        notes = (*notes, *_on_equal_lines(lines, lengths))
    # from here a row is an interaction; a message about one must find its line again
    ends = (lengths.cast(pl.Int64) - 1).cum_sum().to_numpy()
    line = source.locate
    source = replace(source, locate=lambda at: line(int(np.searchsorted(ends, at, side="right"))))
    table = pl.DataFrame({"first field": users, "other fields": fields.list.slice(1)})
    roles = {"user_id": "first field", "item_id": "other fields"}
    return Columns(table.explode("other fields"), roles, source, format, text=True, notes=notes)


def _refuse_table(lines: pl.Series, log: LogFile, source: Source) -> None:
    """Raises DataError if all lines but a few have the same number of tabs, and more than one."""
    n_tabs = lines.str.count_matches("\t", literal=True)
    usual = int(n_tabs.mode().max())  # type: ignore[arg-type]
    odd = n_tabs != usual
    if usual < 2 or int(odd.sum()) > (max(1, len(lines) // 10) if len(lines) > 2 else 0):
        return
    row = first_true(odd)
    but = f" but {int(odd.sum()):,} (first {source.locate(row)})" if row is not None else ""
    example = ["user", "item", "rating", "time", "other"]
    example += [f"column_{number}" for number in range(6, usual + 2)]
    raise log.source.fail(
        f"every line{but} has {usual + 1} fields between tabs, so this is a table without a "
        f"usual header: name its columns with columns= (--columns "
        f"{','.join(example[: usual + 1])}) or, if each line is a user and then items, "
        "say format='sequences' (--format sequences)"
    )


def _why_header(lines: pl.Series, source: Source | None) -> str:
    """Why the first line is a header to leave out; empty if it is none.

    Raises:
        DataError: it may be one, and there is a source, for the format was not said.
    """
    first, others = lines[0], lines.slice(1)
    if not len(others) or any(map(str.isdigit, first)):
        return ""
    if _all_match(others, _NUMBERS):
        return "it holds no digit, and the others hold only numbers"
    user, *items = first.split() or [""]
    if usual_names([user], "user_id") and usual_names(
        [i.removesuffix("s") for i in items], "item_id"
    ):
        return "it holds names of columns"
    if source is not None and _all_match(others, _WITH_DIGITS):
        raise source.fail(
            f"{first!r} holds no digit, and every field below does, so this may be a header: "
            "remove the line or, if it is a user and items, name the format with format= "
            "(--format sequences or pairs)",
            0,
        )
    return ""


def _all_match(lines: pl.Series, pattern: str) -> bool:
    """Whether all lines match; most files that do not, do not at once."""
    return all(part.str.contains(pattern).all() for part in (lines.head(100), lines))


def _on_equal_lines(lines: pl.Series, lengths: pl.Series) -> list[str]:
    """A note if all lines have the same three numbers or more, as those of a table have."""
    if len(lines) < 2 or lengths[0] < 3 or (lengths != lengths[0]).any():
        return []
    if not _all_match(lines, _NUMBERS):
        return []
    return [
        f"EVERY LINE HAS {lengths[0]} NUMBERS, taken for a user and {lengths[0] - 1} items: if "
        "they are a user, an item, a rating or a time, name the columns with columns= (--columns "
        "user,item,rating,time); format='sequences' (--format sequences) says that they are items"
    ]
