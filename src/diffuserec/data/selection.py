"""Rows of a log that a condition keeps."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from diffuserec.data.columns import Columns, Scan, Source
from diffuserec.data.values import other_of_objects, parse_other, scan_other
from diffuserec.errors import DataError, did_you_mean

_EACH_ROW = "it must be true or false for each row"
_NONE_OF = "it is true for none of {:,} rows"


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
        raise _fail(columns.source, where, _NONE_OF.format(len(mask)))
    notes.append(_left_out(where, len(mask) - len(rows), n_null))
    locate = columns.source.locate
    kept = replace(
        columns,
        table=columns.table.filter(keep) if columns.table.width else columns.table,
        source=replace(columns.source, locate=lambda row: locate(int(rows[row]))),
        objects={name: [values[row] for row in rows] for name, values in columns.objects.items()},
    )
    return kept, notes


def names_in(where: str | None) -> frozenset[str]:
    """Columns that an expression names; none if it cannot be understood, which is told later."""
    try:
        return frozenset(() if where is None else pl.sql_expr(where).meta.root_names())
    except Exception:  # of Polars' parser, of several kinds
        return frozenset()


def select_in_scan(frame: pl.LazyFrame, scan: Scan, where: str) -> tuple[pl.LazyFrame, str]:
    """The rows of a frame for which an expression is true, and a note on the others.

    Args:
        frame: of a scan, perhaps with further columns, which stay as they are; those that the
            expression names may change their types.

    Raises:
        DataError: as for :func:`select`.
    """
    expression, names = _parsed(where, scan.names, scan.source)
    schema = frame.collect_schema()
    typed = scan_other(frame, names) if scan.text else [pl.col(name) for name in names]
    if scan.text:
        schema = frame.select(typed).collect_schema()
    typed = [
        column.fill_nan(None) if schema[name].is_float() else column
        for name, column in zip(names, typed, strict=True)
    ]
    mask = "true for the row"
    chosen = frame.with_columns(typed).with_columns(expression.alias(mask))
    try:
        some = frame.head(2).with_columns(typed).collect()
        each = some.select(expression).height == some.height
        if not each or chosen.collect_schema()[mask] != pl.Boolean:
            raise _fail(scan.source, where, _EACH_ROW)
        counts = chosen.select(
            pl.len(), pl.col(mask).sum().alias("kept"), pl.col(mask).null_count().alias("null")
        )
        n, n_kept, n_null = counts.collect(engine="streaming").row(0)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        why = str(error).partition("\n")[0]
        why += _no_number_in(frame.select(typed), scan.source)
        raise _fail(scan.source, where, why) from error
    if not n_kept:
        raise _fail(scan.source, where, _NONE_OF.format(n))
    return chosen.filter(pl.col(mask)).drop(mask), _left_out(where, n - n_kept, n_null)


def _parsed(where: str, known: Sequence[str], source: Source) -> tuple[pl.Expr, list[str]]:
    """The expression, and the columns that it names, all of which are there."""
    try:
        expression = pl.sql_expr(where)
        names = sorted(set(expression.meta.root_names()))
    except Exception as error:  # of Polars' parser, of several kinds
        raise _fail(source, where, str(error).partition("\n")[0]) from error
    for name in names:
        if name not in known:
            raise _fail(
                source,
                where,
                f"there is no column {name!r}{did_you_mean(name, known)}, but: {', '.join(known)} "
                "(text stands in single quotes)",
            )
    return expression, names


def _mask(columns: Columns, where: str) -> pl.Series:
    """The expression's value for each row: true, false or null."""
    table = columns.table
    n_rows = table.height or max(map(len, columns.objects.values()), default=0)
    known = [*table.columns, *columns.objects]
    expression, names = _parsed(where, known, columns.source)
    series = []
    for name in names:
        values = (
            other_of_objects(name, columns.objects[name])
            if name in columns.objects
            else table[name]
        )
        if values is None:
            raise _fail(columns.source, where, f"the values of column {name!r} are not of one type")
        values = parse_other(values) if columns.text else values
        # Polars takes NaN for the greatest number, and a missing value is not that
        series.append(values.fill_nan(None) if values.dtype.is_float() else values)
    try:
        found = pl.DataFrame(series).select(expression).to_series()
    except (Exception, pl.exceptions.PanicException) as error:
        why = str(error).partition("\n")[0] + _no_number(columns, series)
        raise _fail(columns.source, where, why) from error
    if found.dtype != pl.Boolean or len(found) != n_rows:
        raise _fail(columns.source, where, _EACH_ROW)
    return found


def _no_number(columns: Columns, series: Sequence[pl.Series]) -> str:
    """The first value that keeps each column of text from being one of numbers, and its place."""
    return _no_number_in(pl.DataFrame(series).lazy(), columns.source)


def _no_number_in(frame: pl.LazyFrame, source: Source) -> str:
    said = ""
    for name, dtype in frame.collect_schema().items():
        if dtype == pl.String:
            values = frame.select(pl.col(name).alias("value")).with_row_index("row")
            values = values.filter(pl.col("value").is_not_null())
            number = pl.col("value").str.strip_chars().cast(pl.Float64, strict=False)
            for some, why in (
                (values.filter(number.is_null()), "is no number"),
                (values, "is text (CAST(... AS DOUBLE) reads it)"),
            ):
                found = some.head(1).collect(engine="streaming")
                if found.height:
                    row, value = found.row(0)
                    said += f"; in column {name!r} {value!r} ({source.locate(row)}) {why}"
                    break
    return said


def _left_out(where: str, n: int, n_null: int) -> str:
    note = f"rows left out because not ({where}): {n:,}"
    return note + (f", {n_null:,} of them for a missing value" if n_null else "")


def _fail(source: Source, where: str, why: str) -> DataError:
    return source.fail(
        f"where= (--where) {where!r}: {why}; write it as in SQL, such as rating >= 4 or "
        "event_type = 'purchase'"
    )
