"""Flat arrays on disk: NumPy's .npy files of one dimension and one known type.

The first 128 bytes say so; they follow from type and length alone, so that a file is either what
was written, byte for byte, or refused.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

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
        for part in _parts(array, kind):
            file.write(part)


def array_sha256(array: np.ndarray, kind: str) -> str:
    """The checksum that the file of an array would have."""
    digest = hashlib.sha256()
    for part in _parts(array, kind):
        digest.update(part)
    return digest.hexdigest()


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


def _parts(array: np.ndarray, kind: str) -> Iterator[bytes | memoryview]:
    yield _header(kind, len(array))
    for block in blocks(array):
        yield np.ascontiguousarray(block, dtype=kind).data


def _header(kind: str, length: int) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({length},), }}"
    room = _HEADER - 10
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + text.ljust(room - 1).encode() + b"\n"
