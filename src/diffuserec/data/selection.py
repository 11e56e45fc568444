"""Rows of a log that a condition keeps."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from diffuserec.data.columns import Columns, first_true
from diffuserec.data.values import other_of_objects, parse_other
from diffuserec.errors import DataError, did_you_mean


def select(columns: Columns, where: str | None) -> tuple[Columns, list[str]]:
    """The rows for which an SQL expression is true, and the notes with one on the others.

    Args:
        where: expression in terms of the source's columns, or None to keep all. Where it is null,
            because a value is missing, the row goes.

    Raises:
        DataError: the expression cannot be understood, names no column, or keeps nothing.
    """
    notes = list(columns.notes)
    if where is None:
        return columns, notes
    mask = _mask(columns, where)
    n_null, keep = mask.null_count(), mask.fill_null(False)
    rows = keep.arg_true().to_numpy()
    if not len(rows):
        raise _fail(columns, where, f"it is true for none of {len(mask):,} rows")
    note = f"rows left out because not ({where}): {len(mask) - len(rows):,}"
    notes.append(note + (f", {n_null:,} of them for a missing value" if n_null else ""))
    locate = columns.source.locate
    kept = replace(
        columns,
        table=columns.table.filter(keep) if columns.table.width else columns.table,
        source=replace(columns.source, locate=lambda row: locate(int(rows[row]))),
        objects={name: [values[row] for row in rows] for name, values in columns.objects.items()},
    )
    return kept, notes


def _mask(columns: Columns, where: str) -> pl.Series:
    """The expression's value for each row: true, false or null."""
    table = columns.table
    n_rows = table.height or max(map(len, columns.objects.values()), default=0)
    try:
        expression = pl.sql_expr(where)
        names = sorted(set(expression.meta.root_names()))
    except Exception as error:  # of Polars' parser, of several kinds
        raise _fail(columns, where, str(error).partition("\n")[0]) from error
    known = [*table.columns, *columns.objects]
    series = []
    for name in names:
        if name not in known:
            raise _fail(
                columns,
                where,
                f"there is no column {name!r}{did_you_mean(name, known)}, but: {', '.join(known)} "
                "(text stands in single quotes)",
            )
        values = (
            other_of_objects(name, columns.objects[name])
            if name in columns.objects
            else table[name]
        )
        if values is None:
            raise _fail(columns, where, f"the values of column {name!r} are not of one type")
        values = parse_other(values) if columns.text else values
        # Polars takes NaN for the greatest number, and a missing value is not that
        series.append(values.fill_nan(None) if values.dtype.is_float() else values)
    try:
        found = pl.DataFrame(series).select(expression).to_series()
    except (Exception, pl.exceptions.PanicException) as error:
        why = str(error).partition("\n")[0] + _no_number(columns, series)
        raise _fail(columns, where, why) from error
    if found.dtype != pl.Boolean or len(found) != n_rows:
        raise _fail(columns, where, "it must be true or false for each row")
    return found


def _no_number(columns: Columns, series: Sequence[pl.Series]) -> str:
    """The first value that keeps each column of text from being one of numbers, and its place."""
    said = ""
    for values in series:
        if values.dtype == pl.String:
            numbers = values.str.strip_chars().cast(pl.Float64, strict=False)
            row = first_true(numbers.is_null() & values.is_not_null())
            why = "is no number" if row is not None else "is text (CAST(... AS DOUBLE) reads it)"
            row = first_true(values.is_not_null()) if row is None else row
            if row is not None:
                place = columns.source.locate(row)
                said += f"; in column {values.name!r} {values[row]!r} ({place}) {why}"
    return said


def _fail(columns: Columns, where: str, why: str) -> DataError:
    return columns.source.fail(
        f"where= (--where) {where!r}: {why}; write it as in SQL, such as rating >= 4 or "
        "event_type = 'purchase'"
    )
