"""Rows of a log on the disk, divided by user, each part in the order in which it came."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from diffuserec.data.arrays import TYPES


class Partitions:
    """Parts of consecutive users that fit into memory one at a time.

    A user's rows are in one part, however many they are. Iterating gives each part once and removes
    its file: its first user, the one after its last, and its columns.

    Args:
        folder: where the files are.
        n_rows: of each user, shape (U,).
        limit: rows of a part, but for those of its last user.
        timed: whether there is a column ``timestamp``.
        marks: further columns, of truth values.

    Attributes:
        names: of the columns beside ``users``.
    """

    def __init__(
        self,
        folder: Path,
        n_rows: Int64[np.ndarray, " U"],
        limit: int,
        timed: bool,
        marks: Sequence[str],
    ) -> None:
        self.folder = folder
        self.names = ["items", *["timestamp"] * timed, *marks]
        kinds = {"users": "<i4", "items": "<i4", "timestamp": TYPES["timestamps"]}
        kinds |= {name: TYPES[name] for name in marks}
        self._record = np.dtype([(name, kinds[name]) for name in ("users", *self.names)])
        part = (np.cumsum(n_rows) - n_rows) // limit
        self._first_users = np.flatnonzero(np.diff(part, prepend=-1))
        self._n_users = len(n_rows)

    def add(self, columns: dict[str, np.ndarray]) -> None:
        """Puts rows behind those that their parts have."""
        records = np.empty(len(columns["users"]), dtype=self._record)
        for name, values in columns.items():
            records[name] = values
        n_parts = len(self._first_users)
        ends = np.array([len(records)])
        if n_parts > 1:
            part = np.searchsorted(self._first_users, records["users"], side="right") - 1
            # numbers of 16 bits are sorted in linear time
            order = np.argsort(part.astype(np.min_scalar_type(n_parts)), kind="stable")
            records, ends = records[order], np.cumsum(np.bincount(part, minlength=n_parts))
        begin = 0
        for number, end in enumerate(ends.tolist()):
            if end > begin:
                with self._file(number).open("ab") as file:
                    file.write(records[begin:end].view(np.uint8).data)
            begin = end

    def __iter__(self) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
        after = [*self._first_users[1:].tolist(), self._n_users]
        for number, (first, last) in enumerate(zip(self._first_users.tolist(), after, strict=True)):
            file = self._file(number)
            records = np.fromfile(file, dtype=self._record)
            file.unlink()
            yield (
                first,
                last,
                {name: np.ascontiguousarray(records[name]) for name in self._record.names or ()},
            )

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06}.rows"
