"""Raw ids: the one rule by which a value that someone gives is an id of the log.

Every value is read on its own, so that it means the same whatever else is in the call:

* where the log's ids are integers: an integer; a whole float that is small enough to be exact
  (pandas keeps an integer column with a gap as floats); a whole ``Decimal``; a text that is
  written as Python writes that integer, or so followed by ``.0``. ``"007"``, ``"+7"`` and ``7.9``
  are no ids;
* where they are strings: that very string, or an integer, which stands for its decimal digits.

Booleans, bytes, None and everything else are never an id. No integer passes through a float.
Look-ups use NumPy and plain Python alone: Polars waits for threads that a forked process lacks.
"""

import contextlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Int64

from diffuserec.errors import DataError

RawId = int | str
if TYPE_CHECKING:
    RawIds = Iterable[RawId]
else:
    RawIds = Any  # of any type: as_list refuses what is no list, and find what is no id

_PLAIN = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
_INT64 = range(-(2**63), 2**63)


class IdIndex:
    """Positions of raw ids in a series; made once, then a look-up costs O(ids · log V) at most.

    Args:
        ids: distinct integers or strings.
    """

    def __init__(self, ids: pl.Series) -> None:
        self.ids = ids

    def find(self, raw: Any) -> Int64[np.ndarray, " N"]:
        """Position in the series of each raw id; -1 where it holds no such id.

        Args:
            raw: a list, tuple, array or series of values.
        """
        if self.ids.dtype == pl.String:
            texts = _texts(raw)
            places = map(self._by_text.get, texts, itertools.repeat(-1))
            return np.fromiter(places, dtype=np.int64, count=len(texts))
        numbers, valid = _integers(raw)
        if not len(self.ids):
            return np.full(len(numbers), -1)
        ordered, order = self._ordered
        at = np.minimum(np.searchsorted(ordered, numbers), len(ordered) - 1)
        return np.where(valid & (ordered[at] == numbers), order[at], -1)

    @cached_property
    def _by_text(self) -> dict[str | None, int]:
        return {text: place for place, text in enumerate(self.ids.to_list())}

    @cached_property
    def _ordered(self) -> tuple[Int64[np.ndarray, " I"], Int64[np.ndarray, " I"]]:
        """The ids in ascending order, and the position of each."""
        ids = self.ids.to_numpy().astype(np.int64, copy=False)
        order = np.argsort(ids, kind="stable")
        return ids[order], order


def as_list(what: str, raw: Any, ordered: bool = False) -> Sequence[Any]:
    """The values of a list, tuple, set, flat array or series, one by one.

    Args:
        what: name of the list, for the message.
        ordered: whether their order means something, so that a set is refused.

    Raises:
        DataError: anything else, a string above all, whose characters would be taken for ids.
    """
    is_array = hasattr(raw, "__array__")
    if (
        not isinstance(raw, Iterable)
        or isinstance(raw, str | bytes | bytearray | Mapping | pl.DataFrame)
        or (ordered and isinstance(raw, set | frozenset))
        or (is_array and getattr(raw, "ndim", 1) != 1)
    ):
        raise DataError(f"{what} must be a list of item ids, got {_shown(raw)}")
    if isinstance(raw, torch.Tensor):
        raw = list(raw)
    if isinstance(raw, list | tuple):
        tensors = any(isinstance(value, torch.Tensor) for value in raw)
        return [_plain(value) for value in raw] if tensors else raw
    if isinstance(raw, pl.Series):
        return list(raw.to_numpy()) if raw.dtype == pl.Float32 else raw.to_list()
    return raw.to_pylist() if hasattr(raw, "to_pylist") else list(raw)  # of pyarrow, or others


def _plain(value: Any) -> Any:
    """A number of NumPy in place of a tensor that holds one."""
    is_number = isinstance(value, torch.Tensor) and value.ndim == 0
    return value.detach().cpu().numpy()[()] if is_number else value


def _shown(raw: Any) -> str:
    text = repr(raw) if isinstance(raw, str | bytes | int | float) else f"a {type(raw).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_integer(value: object) -> int | None:
    """The integer id that a value stands for, of 64 bits; None if for none."""
    number = None
    if isinstance(value, str):
        head, dot, decimals = value.partition(".")
        if not dot or (decimals and not decimals.strip("0")):
            try:
                number = int(head)
            except ValueError:
                return None
            # as a float is written: beyond 2^53 it may have been another integer
            if str(number) != head or (dot and abs(number) >= 2**53):
                return None
    elif isinstance(value, float | np.floating):
        exact = abs(float(value)) < exact_below(type(value))
        number = int(value) if exact and value == int(value) else None
    elif isinstance(value, Decimal):
        # a large exponent would make an integer of that many digits
        whole = value.is_finite() and value.adjusted() < 20 and value == value.to_integral_value()
        number = int(value) if whole else None
    elif isinstance(value, int | np.integer) and not isinstance(value, bool):
        number = int(value)
    return number if number is not None and number in _INT64 else None


def exact_array(values: Any) -> np.ndarray:
    """A NumPy array of a column of pandas or pyarrow, of objects where NumPy would make floats.

    A column of integers with a gap, nullable or categorical, keeps every digit.
    """
    array = np.asarray(values)
    kept = getattr(values, "dtype", None)
    if array.dtype.kind != "f" or isinstance(kept, np.dtype) or getattr(kept, "kind", "") == "f":
        return array
    listed = values.to_pylist() if hasattr(values, "to_pylist") else values.tolist()
    return np.array(listed, dtype=object)


def exact_below(kind: Any) -> int:
    """The integer from which on a float of this type stands for more than one: 2^53 for 64 bits."""
    return 1 << (int(np.finfo(kind).nmant) + 1)


def as_text(value: object) -> str | None:
    """The string id that a value stands for; None if for none."""
    if isinstance(value, str):
        return str(value)
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return str(value) if is_integer else None


def _integers(raw: Any) -> tuple[Int64[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """The integer ids that values stand for, and which of them stand for one."""
    raw = _array_or_list(raw)
    if isinstance(raw, list) and set(map(type, raw)) == {int}:
        with contextlib.suppress(OverflowError):
            raw = np.array(raw, dtype=np.int64)
    if isinstance(raw, np.ndarray):
        if raw.dtype.kind == "i":
            return raw.astype(np.int64), np.ones(len(raw), dtype=bool)
        if raw.dtype.kind == "u":
            return raw.astype(np.int64), raw < 2**63
        if raw.dtype.kind == "f":
            valid = (np.abs(raw) < exact_below(raw.dtype)) & (np.floor(raw) == raw)
            return np.where(valid, raw, 0).astype(np.int64), valid
        raw = _values(raw)
    found = [as_integer(value) for value in raw]
    valid = np.array([number is not None for number in found], dtype=bool)
    return np.array([number or 0 for number in found], dtype=np.int64), valid


def _texts(raw: Any) -> list[str | None]:
    """The string ids that values stand for, None for those that stand for none."""
    raw = _array_or_list(raw)
    values = raw if isinstance(raw, list) else _values(raw)
    if set(map(type, values)) <= {str, type(None)}:
        return values
    return [as_text(value) for value in values]


def _array_or_list(raw: Any) -> Any:
    """A NumPy array or a list of the values."""
    if isinstance(raw, pl.Series):
        if raw.dtype in (pl.Categorical, pl.Enum):
            raw = raw.cast(pl.String)
        exact = raw.dtype.is_float() or (raw.dtype in _PLAIN and not raw.null_count())
        return raw.to_numpy() if exact else raw.to_list()
    return exact_array(raw) if hasattr(raw, "__array__") else list(raw)


def _values(array: np.ndarray) -> list[Any]:
    """Values of an array; ``tolist`` would make integers of moments."""
    return list(array) if array.dtype.kind in "mM" else array.tolist()
