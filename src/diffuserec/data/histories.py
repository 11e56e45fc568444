"""Raw histories of a request as sequences: from ids that a service is sent to item numbers."""

import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from diffuserec.data.catalog import Catalog
from diffuserec.data.dataset import SequenceDataset, offsets_of
from diffuserec.data.ids import RawIds, as_list
from diffuserec.errors import ConfigError, DataError


def encode_histories(
    catalog: Catalog,
    histories: Any,
    on_unknown: str = "skip",
    times: Any = None,
) -> tuple[SequenceDataset, Int64[np.ndarray, " U"]]:
    """Histories of raw item ids as a dataset.

    The user number of a history is a checksum of its items, above the numbers of the catalog's
    users, so that noise drawn for a history depends on nothing else in the list.

    Args:
        histories: raw ids, oldest first, one inner list a user.
        on_unknown: ``skip`` leaves out items that the catalog does not hold.
        times: of all these items, whole numbers as :attr:`SequenceDataset.timestamps` has them; or
            None.

    Returns:
        The dataset, and the number of unknown items in each history.

    Raises:
        ConfigError: `on_unknown` is neither of its two words.
        DataError: not a list of lists; times that are no such lists of whole numbers; or an unknown
            item, if those are refused.
    """
    if on_unknown not in ("skip", "refuse"):
        raise ConfigError(f"on_unknown must be 'skip' or 'refuse', got {on_unknown!r}")
    listed = _lists(histories)
    lengths = np.array([len(history) for history in listed], dtype=np.int64)
    raw = [item for history in listed for item in history]
    numbers = catalog.encode(raw)
    owners = np.repeat(np.arange(len(listed)), lengths)
    n_unknown = np.bincount(owners[numbers == 0], minlength=len(listed))
    if on_unknown == "refuse" and n_unknown.any():
        first = int(np.argmax(numbers == 0))
        raise DataError(
            f"history {owners[first]}: the catalog does not hold item {raw[first]!r} "
            f"({int(n_unknown.sum())} unknown in all)"
        )
    items = numbers[numbers > 0].astype(np.int32)
    kept = None if times is None else _flat_times(times, lengths)[numbers > 0]
    offsets = offsets_of(lengths - n_unknown)
    keys = [zlib.crc32(items[a:b].tobytes()) for a, b in itertools.pairwise(offsets.tolist())]
    users = np.array(keys, dtype=np.int64) + catalog.n_users
    dataset = SequenceDataset.from_offsets(items, offsets, catalog, users, timestamps=kept)
    return dataset, n_unknown


def _flat_times(times: Any, lengths: Int64[np.ndarray, " U"]) -> Int64[np.ndarray, " N"]:
    """Times of all items, one after another.

    Raises:
        DataError: not whole numbers, one for each item of each history.
    """
    outer = as_list("times", times, ordered=True)
    listed = [as_list("times of a history", part, ordered=True) for part in outer]
    if [len(part) for part in listed] != lengths.tolist():
        raise DataError("times must be lists as long as those of the histories, a time for each id")
    flat = [value for part in listed for value in part]
    for value in flat:
        is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not is_whole or not -(2**63) <= int(value) < 2**63:
            raise DataError(
                "times must be whole numbers as dataset.timestamps has them (microseconds if the "
                f"log has dates), got {value!r}"
            )
    return np.array(flat, dtype=np.int64)


def _lists(histories: Any) -> list[Sequence[Any]]:
    """The histories as lists of values.

    Raises:
        DataError: not a list of lists.
    """
    rows = getattr(histories, "ndim", 1) == 2 and isinstance(histories, np.ndarray)
    try:
        outer = list(histories) if rows else as_list("histories", histories, ordered=True)
        return [as_list("a history", history, ordered=True) for history in outer]
    except DataError as error:
        raise DataError(
            "histories must be a list of lists of item ids, one inner list a user: "
            f'recommend([["B0012", "B0440"]]); {error}'
        ) from None


def encode_items(catalog: Catalog, what: str, raw: RawIds) -> Int64[np.ndarray, " I"]:
    """Item numbers of raw ids that must all be in the catalog.

    Args:
        what: name of the list, for the message.

    Raises:
        DataError: not a list, or an unknown item.
    """
    values = as_list(what, raw)
    numbers = catalog.encode(values)
    if (numbers == 0).any():
        raise DataError(
            f"{what}: the catalog does not hold item {values[int(np.argmax(numbers == 0))]!r}"
        )
    return numbers
