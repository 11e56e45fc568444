"""Columns of a log: which one is the user, the item, the time, and how their values are read.

Ids in a text file are integers only if every one of them is written as an integer is (``7``, not
``007`` or ``7.0``); otherwise all stay the strings they were. Elsewhere they keep their type.

Times are int64. Integers stay as they are, and so do floats without a fraction; floats with one
are taken for seconds, dates for UTC where they name no zone, and both become microseconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from diffuserec.errors import DataError, did_you_mean

ALIASES = {
    "user_id": "user uid query_id reviewer_id customer_id visitor_id",
    "item_id": "item iid asin parent_asin movie_id product_id article_id book_id business_id",
    "timestamp": "time datetime ts date unix_review_time unix_time event_time",
}
"""Usual column names of each role; case, underscores, hyphens and blanks do not count."""

OPTIONS = {"user_id": "user", "item_id": "item", "timestamp": "time"}
"""Name of the option that names the column of each role."""

_MISSING = ("nan", "null", "none", "<na>", "\\n")
"""Strings, in lower case, that a program wrote in place of an absent id."""


@dataclass(frozen=True)
class Source:
    """Origin of a table's values, for messages.

    Attributes:
        name: of the file or frame.
        locate: describes the position of row i (from 0), such as ``line 7``.
    """

    name: str
    locate: Callable[[int], str] = "row {}".format

    def fail(self, message: str, row: int | None = None) -> DataError:
        """An error to raise that names the source and, if given, the row."""
        return DataError(f"{self.name}{'' if row is None else ', ' + self.locate(row)}: {message}")


@dataclass(frozen=True, eq=False)
class Columns:
    """A log as it was read, its values neither checked nor converted.

    Attributes:
        table: one interaction a row.
        roles: column name of ``user_id``, ``item_id`` and, if there are times, ``timestamp``.
        source: for messages about values.
        format: name of the log format, or ``frame``.
        text: True if every value is a string whose type is to be found out.
    """

    table: pl.DataFrame
    roles: dict[str, str]
    source: Source
    format: str
    text: bool = False


def find_roles(
    names: Sequence[str], named: Mapping[str, str | None], source: Source
) -> dict[str, str]:
    """Column name of the user, the item and, unless declared absent, the time.

    Args:
        named: for each role the name of its column, or None for a usual one; ``none`` declares
            that there are no times.

    Raises:
        DataError: a column is missing, named twice, or ambiguous.
    """
    listed = ", ".join(names)
    roles: dict[str, str] = {}
    for role, name in named.items():
        option = OPTIONS[role]
        if name is None or (role == "timestamp" and name == "none" and name not in names):
            continue
        if name not in names:
            raise source.fail(
                f"no column {name!r}{did_you_mean(name, names)} for {option}= (--{option}); "
                f"there are: {listed}"
            )
        if name in roles.values():
            raise source.fail(
                f"column {name!r} is named twice: give {option}= (--{option}) its own"
            )
        roles[role] = name
    for role in (role for role, name in named.items() if name is None):
        option = OPTIONS[role]
        found = [match for match in usual_names(names, role) if match not in roles.values()]
        if len(found) > 1:
            both = " and ".join(map(repr, found))
            raise source.fail(
                f"columns {both} could each be the {option}: name one with {option}= (--{option})"
            )
        if not found:
            hint = f"name it with {option}= (--{option})"
            if role == "timestamp":
                hint += ", or say 'none' there if the rows are in time order"
            if pl.Series(names).cast(pl.Float64, strict=False).count():
                hint = "the first line looks like data: add a header: user_id,item_id,timestamp"
            raise source.fail(f"no {option} column among: {listed}; {hint}")
        roles[role] = found[0]
    return {role: roles[role] for role in ALIASES if role in roles}


def usual_names(names: Sequence[str], role: str) -> list[str]:
    """Members of `names` that are usual for the role."""

    def plain(name: str) -> str:
        return name.lower().replace("_", "").replace("-", "").replace(" ", "")

    usual = {plain(alias) for alias in (role, *ALIASES[role].split())}
    return [name for name in names if plain(name.partition(":")[0]) in usual]


def n_usual_roles(names: Sequence[str]) -> int:
    """Number of roles for which one of the names is usual: evidence that a line is a header."""
    return sum(bool(usual_names(names, role)) for role in ALIASES)


def first_true(mask: pl.Series) -> int | None:
    """Index of the first true value, or None."""
    return int(mask.arg_max() or 0) if mask.any() else None


def parse_ids(values: pl.Series, source: Source, text: bool) -> tuple[pl.Series, str]:
    """Ids as int64 or strings, and a note on a conversion, if any.

    Raises:
        DataError: a value is no id; names the column and the row.
    """
    name, dtype = values.name, values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    row = first_true(values.is_null())
    if row is not None:
        raise source.fail(f"column {name!r} is empty: give the id or remove the row", row)
    if dtype.is_integer() or dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        row = first_true(whole.is_null() | (whole != values))
        if row is not None:
            raise source.fail(
                f"{values[row]!r} in column {name!r} is no id: give an integer or a string "
                "(strings where 64 bits are too few)",
                row,
            )
        return whole, "whole floats taken for integers" if dtype.is_float() else ""
    if values.dtype != pl.String:
        raise source.fail(f"column {name!r} holds {dtype}; ids are integers or strings")
    if text:
        integers = _integers(values)
        if integers is not None:
            return integers, ""
        if values.str.contains(r"^\s|\s$").any():
            integers = _integers(values.str.strip_chars())
            if integers is not None:
                return integers, "blanks around the integers left out"
    short = values.str.len_bytes() <= max(map(len, _MISSING))
    bare = values.filter(short).str.strip_chars().str.to_lowercase()
    missing = bare.is_in(["", *_MISSING])
    if missing.any():
        row = int(short.arg_true()[int(missing.arg_true()[0])])
        what = repr(values[row]) if values[row].strip() else "an empty value"
        raise source.fail(
            f"{what} in column {name!r} stands for no id: give the id or remove the row", row
        )
    return values, ""


def parse_times(values: pl.Series, source: Source) -> tuple[pl.Series, str]:
    """Times as int64, and a note on a conversion, if any.

    Raises:
        DataError: a value is no time; names the column and the row.
    """
    name, dtype = values.name, values.dtype
    row = first_true(values.is_null())
    if row is not None:
        raise source.fail(f"column {name!r} is empty: give the time or remove the row", row)
    if dtype in (pl.Date, pl.Datetime):
        return values.cast(pl.Datetime("us")).to_physical(), "dates stored as microseconds"
    if dtype.is_numeric():
        whole = values.cast(pl.Int64, strict=False)
        if dtype.is_integer() and not whole.null_count():
            return whole, ""
        return _from_floats(values.cast(pl.Float64), values, source)
    if dtype != pl.String:
        raise source.fail(f"column {name!r} holds {dtype}; times are numbers or ISO dates")
    whole = values.cast(pl.Int64, strict=False)
    if whole.null_count():
        values = values.str.strip_chars()
        whole = values.cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole, ""
    numbers = values.cast(pl.Float64, strict=False)
    if numbers[0] is None:
        return _from_dates(values, source)
    row = first_true(numbers.is_null())
    if row is not None:
        raise _not_a_time(values, row, source)
    return _from_floats(numbers, values, source)


def parse_flags(values: pl.Series, source: Source) -> pl.Series:
    """The column ``synthetic`` as booleans.

    Raises:
        DataError: a value is neither true nor false; names the row.
    """
    words = values.cast(pl.String).str.strip_chars().str.to_lowercase().str.strip_suffix(".0")
    row = first_true(~words.is_in(["true", "false", "1", "0"]).fill_null(False))
    if row is not None:
        raise source.fail(
            f"{values[row]!r} in column 'synthetic' is neither true nor false (1 nor 0)", row
        )
    return words.is_in(["true", "1"]).alias("synthetic")


def parse_other(values: pl.Series) -> pl.Series:
    """Another column of a text file: numbers if all its values are, else the strings."""
    integers = _integers(values)
    if integers is not None:
        return integers
    numbers = values.cast(pl.Float64, strict=False)
    padded = values.str.contains(r"^[+-]?0\d|^\+").any()
    return values if padded or numbers.null_count() > values.null_count() else numbers


def _integers(values: pl.Series) -> pl.Series | None:
    """The strings as integers if each is written just as that integer is, else None."""
    for part in (values.head(1000), values):  # most that fail, fail at once
        whole = part.cast(pl.Int64, strict=False)
        if not whole.cast(pl.String).eq_missing(part).all():
            return None
    return whole


def _from_floats(numbers: pl.Series, values: pl.Series, source: Source) -> tuple[pl.Series, str]:
    row = first_true(~numbers.is_finite())
    if row is not None:
        raise _not_a_time(values, row, source)
    fraction = not (numbers == numbers.round()).all()
    scaled = (numbers * 1e6).round() if fraction else numbers
    row = first_true(scaled.abs() >= 2.0**63)
    if row is not None:
        raise source.fail(f"{values[row]!r} in column {values.name!r} is beyond 64 bits", row)
    note = "times with fractions taken for seconds, stored as microseconds" if fraction else ""
    return scaled.cast(pl.Int64), note


def _from_dates(values: pl.Series, source: Source) -> tuple[pl.Series, str]:
    text = values.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.to_uppercase()
    moments = pl.Series([None], dtype=pl.Datetime("us")).new_from_index(0, len(text))
    moment = "%Y-%m-%dT%H:%M:%S%.f"
    for pattern in (moment, moment + "%#z", "%Y-%m-%d", "%Y-%m-%dT%H:%M"):
        if not moments.null_count():
            break
        parsed = text.str.to_datetime(pattern, time_unit="us", strict=False)
        moments = moments.zip_with(moments.is_not_null(), parsed.dt.replace_time_zone(None))
    row = first_true(moments.is_null())
    if row is not None:
        raise _not_a_time(values, row, source)
    return moments.to_physical(), "dates stored as microseconds"


def _not_a_time(values: pl.Series, row: int, source: Source) -> DataError:
    return source.fail(
        f"{values[row]!r} in column {values.name!r} is not a time: use numbers throughout, or ISO "
        "dates such as 2024-05-31 or 2024-05-31T12:00:00Z",
        row,
    )
