"""Flat arrays on disk: NumPy's .npy files of one dimension and one known type.

The first 128 bytes say so; they follow from type and length alone, so that a file is either what
was written, byte for byte, or refused.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import numpy as np

TYPES = {
    "items": "<i4",
    "offsets": "<i8",
    "users": "<i8",
    "synthetic": "|b1",
    "context_only": "|b1",
    "timestamps": "<i8",
}
"""Types of the arrays of a dataset, by name."""

_HEADER = 128
_AT_ONCE = 2**20
"""Numbers that are converted or looked at together."""


def blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in pieces of a few megabytes; mapped ones are read as they come."""
    return (array[start : start + _AT_ONCE] for start in range(0, len(array), _AT_ONCE))


def write_array(path: Path, array: np.ndarray, kind: str) -> None:
    """Writes an array as a .npy file."""
    with path.open("wb") as file:
        file.write(_header(kind, len(array)))
        for block in blocks(array):
            file.write(np.ascontiguousarray(block, dtype=kind).data)


class ArrayWriter:
    """Writes an array as a .npy file in pieces, so that its length need not be known.

    The file is complete at the end of a ``with`` block.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self._kind, self._length = path, kind, 0

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        self._file.write(bytes(_HEADER))
        return self

    def add(self, array: np.ndarray) -> None:
        """Writes the next entries."""
        self._file.write(np.ascontiguousarray(array, dtype=self._kind).data)
        self._length += len(array)

    def __exit__(self, *error: object) -> None:
        with self._file as file:
            file.seek(0)
            file.write(_header(self._kind, self._length))


def read_part(path: Path, kind: str, first: int, last: int) -> np.ndarray:
    """Entries [first, last) of the array in a file, in memory of their own."""
    size = np.dtype(kind).itemsize
    return np.fromfile(path, dtype=kind, count=last - first, offset=_HEADER + first * size)


def array_sha256(array: np.ndarray, kind: str) -> str:
    """The checksum that the file of an array would have."""
    return blocks_sha256(blocks(array), len(array), kind)


def blocks_sha256(blocks: Iterable[np.ndarray], length: int, kind: str) -> str:
    """The checksum that the file of an array in pieces would have."""
    digest = hashlib.sha256(_header(kind, length))
    for block in blocks:
        digest.update(np.ascontiguousarray(block, dtype=kind).data)
    return digest.hexdigest()


def nth_smallest(pieces: Callable[[], Iterable[np.ndarray]], n: int) -> np.int64:
    """Entry n of the sorted values of a large array of int64, found 16 bits at a time.

    Args:
        pieces: gives the array in pieces, and is called four times.
        n: from 0, below the number of values.
    """
    sign, found = np.uint64(2**63), np.uint64(0)  # with the sign's bit turned, they sort unsigned
    for shift in (np.uint64(bits) for bits in (48, 32, 16, 0)):
        counts = np.zeros(2**16, dtype=np.int64)
        for piece in pieces():
            keys = np.ascontiguousarray(piece, dtype=np.int64).view(np.uint64) ^ sign
            if shift < 48:
                keys = keys[keys >> (shift + np.uint64(16)) == found]
            digits = (keys >> shift & np.uint64(2**16 - 1)).astype(np.int64)
            counts += np.bincount(digits, minlength=2**16)
        until = np.cumsum(counts)
        digit = int(np.searchsorted(until, n, side="right"))
        n -= int(until[digit] - counts[digit])
        found = found << np.uint64(16) | np.uint64(digit)
    return np.int64((found ^ sign).view(np.int64))


def map_array(path: Path, kind: str) -> np.ndarray:
    """The array in a file, mapped; read as it is used.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not of that type, or of no whole number of entries.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER)
    length, rest = divmod(path.stat().st_size - _HEADER, np.dtype(kind).itemsize)
    if rest or length < 0 or header != _header(kind, length):
        raise ValueError(f"it is not an array of {np.dtype(kind).name} of one dimension")
    if not length:
        return np.zeros(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r", offset=_HEADER, shape=(length,))


def _header(kind: str, length: int) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({length},), }}"
    room = _HEADER - 10
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1).encode() + b"\n"
