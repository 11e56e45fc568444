"""Values of a log: ids, times and other columns, read strictly and never by way of a float.

Ids are integers or strings. In a text file they are integers if every one of them is written as
an integer (``7``, not ``007`` or ``+7``) or as a whole decimal (``7.0``), else they are strings;
blanks around them do not count. A float has room for integers below 2^53 (float32: 2^24) alone, so
larger ones are refused: they have lost digits already, and two ids may have become one.

Times are int64. Integers stay as they are, and so do floats without a fraction; floats with one
are taken for seconds, dates for UTC where they name no zone, and both become microseconds.
"""

import datetime as dt
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from diffuserec.data.columns import Source, first_true
from diffuserec.data.ids import as_integer, exact_below
from diffuserec.errors import DataError

_MISSING = ("nan", "null", "none", "<na>", "\\n")
"""Strings, in lower case, that a program wrote in place of an absent id."""

_WHOLE = r"^(-?[1-9]\d*|0)(\.0+)?$"
"""An integer, or a decimal without a fraction."""

_NUMBER = r"^[+-]?\d+(\.\d+)?([eE]\+\d+)?$"
"""A number that a program may have written from a float."""

_PADDED = r"^[+-]?0\d|^\+"
"""What begins like a number that no program writes: zeros in front, or a plus."""

_DECIMAL_WHOLE = "decimals without a fraction, such as 7.0, taken for integers"


def parse_ids(
    values: pl.Series,
    source: Source,
    text: bool,
    literal: bool = False,
    typed: bool = True,
    n_rows: pl.Series | None = None,
) -> tuple[pl.Series, str]:
    """Ids as int64 or strings, and a note on a conversion, if any.

    Args:
        text: True for strings of a text file, which may stand for integers.
        literal: True to leave blanks around strings, to take words such as ``null`` for ids, and
            not to take ``7.0`` for 7.
        typed: False to leave strings of a text file as strings, for a catalog to read each by its
            own rule.
        n_rows: rows that each of the values stands for, if they are distinct ones; by default one.

    Raises:
        DataError: a value is no id; names the column and the row.
    """
    name, dtype = values.name, values.dtype
    if dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    row = first_true(values.is_null())
    if row is not None:
        raise source.fail(f"column {name!r} is empty: give the id or remove the row", row)
    if dtype.is_numeric():
        return _whole_numbers(values, source)
    if values.dtype != pl.String:
        raise source.fail(f"column {name!r} holds {dtype}; ids are integers or strings")
    notes = []
    integers = _integers(values) if text and typed else None
    if integers is not None:
        return integers, ""
    if not literal:
        bare, n_blank = _without_blanks(values, n_rows)
        if n_blank and not text:
            notes.append(f"ids with blanks around them, which belong to them: {n_blank:,}")
        elif n_blank:
            notes.append(f"blanks around the ids left out: {n_blank:,}")
            values = bare
            integers = _integers(values) if typed else None
        if text and typed and integers is None:
            integers, note = _from_decimals(values, source)
            notes.append(note)
        if integers is not None:
            return integers, "; ".join(filter(None, notes))
    words = [""] if literal else ["", *_MISSING]
    short = values.str.len_bytes() <= max(map(len, _MISSING))
    missing = values.filter(short).str.strip_chars().str.to_lowercase().is_in(words)
    if missing.any():
        row = int(short.arg_true()[int(missing.arg_true()[0])])
        what, advice = "an empty value", "give the id or remove the row"
        if values[row].strip():
            what = repr(values[row])
            advice += ", or keep such ids with literal_ids=True (--literal-ids)"
        raise source.fail(f"{what} in column {name!r} stands for no id: {advice}", row)
    return values, "; ".join(filter(None, notes))


def parse_times(values: pl.Series, source: Source) -> tuple[pl.Series, str]:
    """Times as int64, and a note on a conversion, if any.

    Raises:
        DataError: a value is no time; names the column and the row.
    """
    reader = TimeReader()
    reader.look(values)
    return reader.read(values, source), reader.note


class TimeReader:
    """Times in pieces: all were looked at before the first is read, for one rule holds for all.

    Attributes:
        dates: whether they are dates, which the first says; None before it was seen.
        fraction: whether one of them has a fraction, so that all are seconds.
    """

    def __init__(self) -> None:
        self.dates: bool | None = None
        self.fraction = False
        self._n_inexact = 0
        self._exact_below = 0

    def look(self, values: pl.Series) -> None:
        """Takes a piece into account; wrong values pass."""
        if values.dtype in (pl.Date, pl.Datetime):
            self.dates = True
        elif values.dtype.is_numeric() and not values.dtype.is_integer():
            self._look_at_numbers(values.cast(pl.Float64))
        elif values.dtype == pl.String and len(values):
            if self.dates is None:
                # an empty one is refused when it is read
                first = values.head(1).str.strip_chars().cast(pl.Float64, strict=False)
                self.dates = first[0] is None
            if not self.dates and values.cast(pl.Int64, strict=False).null_count():
                bare = values.str.strip_chars()
                if bare.cast(pl.Int64, strict=False).null_count():
                    self._look_at_numbers(bare.cast(pl.Float64, strict=False))

    def _look_at_numbers(self, numbers: pl.Series) -> None:
        self.dates = False
        self.fraction |= bool(((numbers != numbers.round()) & numbers.is_finite()).any())

    def read(self, values: pl.Series, source: Source) -> pl.Series:
        """The times of a piece as int64.

        Raises:
            DataError: a value is no time; names the column and the row.
        """
        name, dtype = values.name, values.dtype
        row = first_true(values.is_null())
        if row is not None:
            raise source.fail(f"column {name!r} is empty: give the time or remove the row", row)
        if dtype in (pl.Date, pl.Datetime):
            return values.cast(pl.Datetime("us")).to_physical()
        if dtype.is_numeric():
            whole = values.cast(pl.Int64, strict=False)
            if dtype.is_integer() and not whole.null_count():
                return whole
            return self._from_floats(values.cast(pl.Float64), whole, values, source)
        if dtype != pl.String:
            raise source.fail(f"column {name!r} holds {dtype}; times are numbers or ISO dates")
        if self.dates:
            return _from_dates(values.str.strip_chars(), source)
        whole = values.cast(pl.Int64, strict=False)
        if whole.null_count():
            values = values.str.strip_chars()
            whole = values.cast(pl.Int64, strict=False)
        if not whole.null_count() and not self.fraction:
            return whole
        numbers = values.cast(pl.Float64, strict=False)
        row = first_true(numbers.is_null())
        if row is not None:
            raise _not_a_time(values, row, source)
        return self._from_floats(numbers, whole, values, source)

    @property
    def note(self) -> str:
        """What was converted, in the pieces read so far; empty if nothing was."""
        if self.dates:
            return "dates stored as microseconds"
        if self.fraction:
            return "times with fractions taken for seconds, stored as microseconds"
        if not self._n_inexact:
            return ""
        return (
            f"{self._n_inexact:,} kept as floats, which have lost digits of integers from "
            f"{self._exact_below} on, so that times close together may have become one: export "
            "them again as integers"
        )

    def _from_floats(
        self, numbers: pl.Series, whole: pl.Series, values: pl.Series, source: Source
    ) -> pl.Series:
        """Times out of floats; those that are integers in `whole` keep all their digits."""
        row = first_true(~numbers.is_finite())
        if row is not None:
            raise _not_a_time(values, row, source)
        scaled = (numbers * 1e6).round() if self.fraction else numbers
        row = first_true(scaled.abs() >= 2.0**63)
        if row is not None:
            raise source.fail(f"{values[row]!r} in column {values.name!r} is beyond 64 bits", row)
        if self.fraction:
            return scaled.cast(pl.Int64)
        self._count_inexact(whole, values)
        return whole.fill_null(scaled.cast(pl.Int64))

    def _count_inexact(self, whole: pl.Series, values: pl.Series) -> None:
        """Counts whole times that were kept as floats too large to be exact."""
        limit, beyond = exact_below(float), whole.is_null()
        if values.dtype.is_float():
            limit = exact_below(values.head(0).to_numpy().dtype)
            beyond = values.abs() >= float(limit)
        elif values.dtype != pl.String:
            return
        elif beyond.any():
            beyond &= values.cast(pl.Float64, strict=False).abs() >= float(limit)
        self._n_inexact += int(beyond.sum())
        self._exact_below = limit


def parse_flags(values: pl.Series, source: Source) -> pl.Series:
    """A column of marks, such as ``synthetic``, as booleans.

    Raises:
        DataError: a value is neither true nor false; names the row.
    """
    words = values.cast(pl.String).str.strip_chars().str.to_lowercase().str.strip_suffix(".0")
    row = first_true(~words.is_in(["true", "false", "1", "0"]).fill_null(False))
    if row is not None:
        raise source.fail(
            f"{values[row]!r} in column {values.name!r} is neither true nor false (1 nor 0)", row
        )
    return words.is_in(["true", "1"]).alias(values.name)


def parse_other(values: pl.Series) -> pl.Series:
    """Another column of a text file: numbers if all its values are, else the strings.

    Blanks around numbers do not count.
    """
    bare = values.str.strip_chars()
    integers = _integers(bare)
    if integers is not None:
        return integers
    numbers = bare.cast(pl.Float64, strict=False)
    padded = bare.str.contains(_PADDED).any()
    return values if padded or numbers.null_count() > values.null_count() else numbers


def scan_other(frame: pl.LazyFrame, names: Sequence[str]) -> list[pl.Expr]:
    """Columns of a text file that is larger than memory, each as :func:`parse_other` reads it."""
    if not names:
        return []
    facts = []
    for name in names:
        bare = pl.col(name).str.strip_chars()
        whole = bare.cast(pl.Int64, strict=False)
        number = bare.cast(pl.Float64, strict=False)
        facts += [
            (~whole.cast(pl.String).eq_missing(bare)).any().alias(f"{name} no integers"),
            ((number.is_null() & bare.is_not_null()) | bare.str.contains(_PADDED))
            .any()
            .alias(f"{name} no numbers"),
        ]
    found = frame.select(facts).collect(engine="streaming").row(0, named=True)
    columns = []
    for name in names:
        column = pl.col(name)
        if not found[f"{name} no integers"]:
            column = column.str.strip_chars().cast(pl.Int64)
        elif not found[f"{name} no numbers"]:
            column = column.str.strip_chars().cast(pl.Float64)
        columns.append(column)
    return columns


def ids_of_objects(name: str, values: Sequence[Any], source: Source) -> tuple[pl.Series, str]:
    """Ids out of Python objects, as int64 or strings, and a note on a conversion, if any.

    Raises:
        DataError: a value is no id, or integers and strings are mixed; names the column and row.
    """
    ids: list[int | str] = []
    floats = 0
    for row, value in enumerate(values):
        if is_missing(value):
            raise source.fail(f"column {name!r} is empty: give the id or remove the row", row)
        if isinstance(value, float | np.floating):
            limit = exact_below(type(value))
            number = float(value)
            if abs(number) >= limit and math.isfinite(number) and number == math.floor(number):
                raise _lost_digits(name, value, row, source, limit)
            floats += 1
        raw = value if isinstance(value, str) else as_integer(value)
        if raw is None:
            raise _no_id(name, value, row, source)
        if ids and isinstance(raw, str) != isinstance(ids[0], str):
            raise source.fail(
                f"{raw!r} in column {name!r} stands beside {ids[0]!r}: integers and strings are "
                "different ids, so make all of them strings",
                row,
            )
        ids.append(raw)
    dtype = pl.String if isinstance(ids[0], str) else pl.Int64
    return _strict_series(name, ids, dtype, source), _DECIMAL_WHOLE if floats else ""


def times_of_objects(name: str, values: Sequence[Any], source: Source) -> pl.Series:
    """Times out of Python objects: integers, floats, strings or dates, for :func:`parse_times`.

    Raises:
        DataError: a value is no time, or their kinds are mixed; names the column and row.
    """
    kinds: set[type] = set()
    values = [value.item() if _is_number_of_numpy(value) else value for value in values]
    for row, value in enumerate(values):
        if is_missing(value):
            raise source.fail(f"column {name!r} is empty: give the time or remove the row", row)
        known = (str, dt.date) if isinstance(value, bool) else (str, dt.date, int, float)
        kind = next((kind for kind in known if isinstance(value, kind)), None)
        finite = not isinstance(value, float) or math.isfinite(value)
        if kind is None or not finite or (kinds and (kind in (str, dt.date)) and kind not in kinds):
            raise _not_a_time(pl.Series(name, [str(value)]), 0, source, row)
        if kind is int and not -(2**63) <= value < 2**63:
            raise source.fail(f"{value!r} in column {name!r} is beyond 64 bits", row)
        kinds.add(kind)
        if kinds & {str, dt.date} and kinds & {int, float}:
            raise _not_a_time(pl.Series(name, [str(value)]), 0, source, row)
    if str in kinds:
        return _strict_series(name, list(values), pl.String, source)
    if dt.date in kinds:
        return pl.Series(name, [_in_utc(value) for value in values], dtype=pl.Datetime("us"))
    if all(value == int(value) for value in values):
        whole = [int(value) for value in values]
        if all(-(2**63) <= value < 2**63 for value in whole):
            return pl.Series(name, whole, dtype=pl.Int64)
    return pl.Series(name, [float(value) for value in values], dtype=pl.Float64)


def other_of_objects(name: str, values: Sequence[Any]) -> pl.Series | None:
    """Another column out of Python objects, or None if they are not of one type.

    Floats that are not finite become null; arrays of NumPy, as pandas keeps lists, become lists.
    """

    def is_null(value: Any) -> bool:
        return is_missing(value) or (isinstance(value, float) and not math.isfinite(value))

    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray) else value

    try:
        series = pl.Series(name, [None if is_null(value) else plain(value) for value in values])
    except Exception:  # whatever a library says of objects that it does not know
        return None
    return None if series.dtype == pl.Object else series


def is_missing(value: Any) -> bool:
    """True for None, a float that is no number, and pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float | np.floating) and math.isnan(value)


def _is_number_of_numpy(value: Any) -> bool:
    return isinstance(value, np.integer | np.floating)


def _integers(values: pl.Series) -> pl.Series | None:
    """The strings as integers if each is written just as that integer is, else None."""
    for part in (values.head(1000), values):  # most that fail, fail at once
        whole = part.cast(pl.Int64, strict=False)
        if not whole.cast(pl.String).eq_missing(part).all():
            return None
    return whole


def _without_blanks(values: pl.Series, n_rows: pl.Series | None) -> tuple[pl.Series, int]:
    """The strings without blanks around them, and how many rows had any."""
    bare = values.str.strip_chars()
    had = bare.str.len_bytes() != values.str.len_bytes()
    return bare, int((had if n_rows is None else n_rows.filter(had)).sum())


def _from_decimals(values: pl.Series, source: Source) -> tuple[pl.Series | None, str]:
    """Integers out of integers and whole decimals, and a note; None if others are among them.

    Raises:
        DataError: all are numbers, and one was written from a float that had lost digits.
    """
    if not all(part.str.contains(_NUMBER).all() for part in (values.head(1000), values)):
        return None, ""
    row = first_true(values.str.contains(r"[eE]"))
    if row is not None:
        raise _lost_digits(values.name, values[row], row, source)
    decimal = values.str.contains(".", literal=True)
    if not decimal.any() or not values.str.contains(_WHOLE).all():
        return None, ""
    whole = values.str.replace(r"\..*", "").cast(pl.Int64, strict=False)
    limit = exact_below(float)
    beyond = (whole >= limit) | (whole <= -limit)
    row = first_true(decimal & beyond.fill_null(True))
    if row is not None:
        raise _lost_digits(values.name, values[row], row, source)
    return (None, "") if whole.null_count() else (whole, _DECIMAL_WHOLE)


def _whole_numbers(values: pl.Series, source: Source) -> tuple[pl.Series, str]:
    whole = values.cast(pl.Int64, strict=False)
    row = first_true(whole.is_null() | (whole.cast(values.dtype, strict=False) != values))
    if row is not None:
        raise _no_id(values.name, values[row], row, source)
    if not values.dtype.is_float():
        return whole, ""
    limit = exact_below(values.head(0).to_numpy().dtype)
    row = first_true(values.abs() >= float(limit))
    if row is not None:
        raise _lost_digits(values.name, values[row], row, source, limit)
    return whole, "whole floats taken for integers"


def _from_dates(values: pl.Series, source: Source) -> pl.Series:
    text = values.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.to_uppercase()
    text = text.str.replace(r"([+-]\d\d:?\d\d) UTC$", "${1}")  # as Go writes it
    text = text.str.replace(r"\s*(?:UTC|GMT)$", "Z").str.replace(r"\s+([Z+-])", "${1}")
    text = text.str.replace(r"^(\d{4}-\d\d-\d\d)T?(Z|[+-]\d\d:?\d\d)$", "${1}T00:00${2}")
    moments = pl.Series([None], dtype=pl.Datetime("us")).new_from_index(0, len(text))
    patterns = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%a, %d %b %Y %H:%M:%S")
    zoned = [pattern + zone for pattern in patterns for zone in ("", "%#z")]
    for pattern in (*zoned, "%Y-%m-%d"):
        if not moments.null_count():
            break
        parsed = text.str.to_datetime(pattern, time_unit="us", strict=False)
        moments = moments.zip_with(moments.is_not_null(), parsed.dt.replace_time_zone(None))
    row = first_true(moments.is_null())
    if row is not None:
        raise _not_a_time(values, row, source)
    return moments.to_physical()


def _in_utc(value: dt.date) -> dt.datetime:
    if not isinstance(value, dt.datetime):
        return dt.datetime.combine(value, dt.time())
    return value.astimezone(dt.UTC).replace(tzinfo=None) if value.tzinfo else value


def _strict_series(name: str, values: list[Any], dtype: Any, source: Source) -> pl.Series:
    """The values as a series.

    Raises:
        DataError: a string holds half of a surrogate pair; names the row.
    """
    try:
        return pl.Series(name, values, dtype=dtype)
    except UnicodeEncodeError as error:
        row = next(row for row, value in enumerate(values) if not _is_text(value))
        raise source.fail(
            f"{values[row]!r} in column {name!r} holds half of a surrogate pair, which is no "
            "character: mend the text",
            row,
        ) from error


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_id(name: str, value: Any, row: int, source: Source) -> DataError:
    return source.fail(
        f"{value!r} in column {name!r} is no id: give an integer or a string "
        "(strings where 64 bits are too few)",
        row,
    )


def _lost_digits(name: str, value: Any, row: int, source: Source, limit: int = 2**53) -> DataError:
    return source.fail(
        f"{value} in column {name!r} was kept as a float, which has lost digits of integers from "
        f"{limit} on, so that two ids may have become one: export the ids again as integers or "
        "strings",
        row,
    )


def _not_a_time(values: pl.Series, row: int, source: Source, at: int | None = None) -> DataError:
    return source.fail(
        f"{values[row]!r} in column {values.name!r} is not a time: use numbers throughout (with a "
        "decimal point), or ISO dates such as 2024-05-31 or 2024-05-31T12:00:00Z",
        row if at is None else at,
    )
