"""Frames of other libraries as Polars frames."""

from collections.abc import Sequence
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from diffuserec.data.ids import exact_array
from diffuserec.errors import DataError


def to_polars(frame: Any, what: str) -> tuple[pl.DataFrame, dict[str, Sequence[Any]], str]:
    """A frame's columns, those that hold Python objects as they are, and the kind of frame.

    Args:
        frame: pandas, Polars (eager or lazy), pyarrow, or another of narwhals.
        what: the frame is, for messages.

    Raises:
        DataError: it is no frame, or two columns have one name.
    """
    if nw.dependencies.is_pandas_dataframe(frame):
        return *_from_pandas(frame, what), "pandas"
    try:
        wrapped = nw.from_native(frame)
        eager = wrapped.collect() if isinstance(wrapped, nw.LazyFrame) else wrapped
        return eager.to_polars(), {}, str(wrapped.implementation.value)
    except TypeError as error:
        raise DataError(
            f"{what} must be a pandas, Polars or pyarrow frame, got {type(frame).__name__}"
        ) from error
    except ImportError as error:
        raise DataError(f"{what} cannot be read: {error}") from error
    except (nw.exceptions.DuplicateError, pl.exceptions.DuplicateError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{what} has two columns of one name ({reason}): rename one") from error


def _from_pandas(frame: Any, what: str) -> tuple[pl.DataFrame, dict[str, Sequence[Any]]]:
    """Columns of NumPy's types as a Polars frame, the others as lists; pyarrow is not needed."""
    names = [str(name) for name in frame.columns]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{what} has two columns of one name ({name}): rename one")
    series: list[pl.Series] = []
    objects: dict[str, Sequence[Any]] = {}
    for place, name in enumerate(names):
        column = frame.iloc[:, place]
        if getattr(column.dtype, "tz", None) is not None:
            column = column.dt.tz_convert("UTC").dt.tz_localize(None)
        values = exact_array(column)  # of a sparse column, too
        if values.dtype.kind in "iufb":
            series.append(pl.Series(name, values, nan_to_null=True))
        elif values.dtype.kind == "M":
            unit = np.datetime_data(values.dtype)[0]
            known = values.dtype if unit in ("ms", "us", "ns") else "datetime64[us]"
            series.append(pl.Series(name, values.astype(known)))
        else:
            objects[name] = values.tolist()
    return pl.DataFrame(series), objects
