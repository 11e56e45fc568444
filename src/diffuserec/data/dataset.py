"""The ragged store of interaction sequences that everything else reads.

A log of N interactions of U users is one flat array of items and, for each sequence, where it
starts and ends there. It can be mapped from disk and takes 4 bytes an interaction. A split, a
subset of users or a prefix of every history is a view: other starts and ends over the same array,
so that it costs O(U) whatever N. Item numbers are 1..V-1; 0 is padding and never appears here.
Raw ids stay in the :class:`Catalog`.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32, Int64

from diffuserec.data.arrays import TYPES, array_sha256, blocks_sha256
from diffuserec.data.catalog import Catalog
from diffuserec.data.copies import AugmentedCopies
from diffuserec.data.use import Use
from diffuserec.errors import DataError
from diffuserec.tables import format_facts

_AT_ONCE = 2**20
"""Interactions held in memory together while a whole log is gone through."""


@dataclass(frozen=True, eq=False)
class FlatLog:
    """The flat arrays that the sequences of a dataset are cut from; views share them.

    Attributes:
        items: item numbers, int32, shape (N,).
        synthetic: which items were generated, bool, shape (N,); None if none was.
        timestamps: time of each interaction, int64 microseconds or the log's own numbers, shape
            (N,); None if the log has none.
        context_only: real items that are never targets, because synthetic items before them were
            made from them, bool, shape (N,); None if there are none.
    """

    items: Int32[np.ndarray, " N"]
    synthetic: Bool[np.ndarray, " N"] | None = None
    timestamps: Int64[np.ndarray, " N"] | None = None
    context_only: Bool[np.ndarray, " N"] | None = None

    @property
    def non_targets(self) -> list[Bool[np.ndarray, " N"]]:
        """Marks of items that may not be learned as the next one: one of them is enough."""
        return [flags for flags in (self.synthetic, self.context_only) if flags is not None]

    def take(self, where: Any) -> "FlatLog":
        """Another log of the interactions at these positions (a slice, a mask or indices)."""
        return FlatLog(
            self.items[where],
            None if self.synthetic is None else self.synthetic[where],
            None if self.timestamps is None else self.timestamps[where],
            None if self.context_only is None else self.context_only[where],
        )


@dataclass(frozen=True, eq=False)
class SequenceDataset:
    """Sequences of items, oldest first, ragged; a view of a flat log.

    A synthetic item is one that an augmenter generated: context, never a target, never "seen". The
    real items that it was generated from are never targets behind it.

    Attributes:
        log: the flat arrays. They may hold more than these sequences (of a training part, the
            held-out items), so they may be read from a start to its end only.
        starts: position of each sequence's first item in `log`, int64, shape (U,).
        ends: position after its last, int64, shape (U,).
        catalog: raw ids and attributes of the items.
        users: user number of each sequence, int64, shape (U,). A subset of the users keeps its
            numbers, so that noise drawn for a user stays that user's.
        copies: alternative copies of the sequences, made by an augmenter; or None. They stay with
            a subset of the users and are not saved.
        use: how training and scoring use the synthetic items, if not as they stand; or None. It
            stays with a subset of the users and is not saved.

    Raises:
        DataError: the copies are not as long as the log.
    """

    log: FlatLog
    starts: Int64[np.ndarray, " U"]
    ends: Int64[np.ndarray, " U"]
    catalog: Catalog
    users: Int64[np.ndarray, " U"]
    copies: AugmentedCopies | None = None
    use: Use | None = None

    def __post_init__(self) -> None:
        if self.copies is not None and self.copies.items.shape[1] != len(self.log.items):
            raise DataError(
                f"augmented copies of {self.copies.items.shape[1]:,} interactions do not fit a log "
                f"of {len(self.log.items):,}: attach them with with_copies()"
            )

    @staticmethod
    def from_offsets(
        items: Int32[np.ndarray, " N"],
        offsets: Int64[np.ndarray, " U_plus_1"],
        catalog: Catalog,
        users: Int64[np.ndarray, " U"] | None = None,
        synthetic: Bool[np.ndarray, " N"] | None = None,
        timestamps: Int64[np.ndarray, " N"] | None = None,
        context_only: Bool[np.ndarray, " N"] | None = None,
    ) -> "SequenceDataset":
        """A dataset of sequences that follow one another without gaps.

        Args:
            items: item numbers 1..V-1 of all sequences.
            offsets: start of each sequence, and N at the end.
            users: user numbers; by default 0..U-1.
            synthetic: which items were generated; None if none was.
            context_only: real items that are never targets; None if all may be.
        """
        if users is None:
            users = np.arange(len(offsets) - 1, dtype=np.int64)
        log = FlatLog(items, synthetic, timestamps, context_only)
        return SequenceDataset(log, offsets[:-1], offsets[1:], catalog, users)

    @staticmethod
    def from_lists(
        sequences: Sequence[Sequence[int]],
        catalog: Catalog | None = None,
        users: Sequence[int] | None = None,
    ) -> "SequenceDataset":
        """A dataset from lists of item numbers (not raw ids); for small data and tests.

        Args:
            sequences: one list of numbers 1..V-1 a user.
            catalog: raw ids of the items; by default the numbers up to the largest.
        """
        lengths = [len(sequence) for sequence in sequences]
        items = np.fromiter((i for s in sequences for i in s), dtype=np.int32, count=sum(lengths))
        if catalog is None:
            largest = int(items.max()) if items.size else 0
            n_users = max(len(sequences), 1 + max([] if users is None else users, default=-1))
            catalog = Catalog(pl.Series("item_id", np.arange(1, largest + 1)), n_users)
        numbers = None if users is None else np.asarray(users, dtype=np.int64)
        return SequenceDataset.from_offsets(items, offsets_of(lengths), catalog, numbers)

    def __repr__(self) -> str:
        """Sizes as a table."""
        return format_facts(self.sizes(), title="SequenceDataset").rstrip()

    def _repr_html_(self) -> str:
        """Sizes as a table for notebooks."""
        return format_facts(self.sizes(), "html", title="SequenceDataset")

    def sizes(self) -> dict[str, int | str]:
        """Sizes under their names, for people. O(U)."""
        lengths = self.lengths
        found: dict[str, int | str] = {
            "sequences": len(self),
            "interactions": int(lengths.sum()),
            "items of the catalog": self.catalog.n_items,
        }
        if len(self):
            found["length, median"] = f"{np.median(lengths):g}"
            found["length, least to most"] = f"{lengths.min():,} to {lengths.max():,}"
        found["timestamps"] = "no" if self.log.timestamps is None else "yes"
        if self.has_synthetic:
            found["synthetic items"] = int(lengths.sum() - self.real_lengths.sum())
        if self.copies is not None:
            found["augmented copies"] = len(self.copies)
        return found

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: SupportsIndex) -> Int32[np.ndarray, " L"]:
        """Items of one sequence, shared with the log; -1 is the last sequence.

        Raises:
            IndexError: the dataset has fewer sequences.
        """
        items: np.ndarray = self.log.items[self.starts[index] : self.ends[index]]
        return items

    def __iter__(self) -> Iterator[Int32[np.ndarray, " L"]]:
        return (self[index] for index in range(len(self)))

    @property
    def vocab_size(self) -> int:
        """V: items of the catalog and the padding number 0."""
        return self.catalog.vocab_size

    @property
    def lengths(self) -> Int64[np.ndarray, " U"]:
        """Items of each sequence, synthetic ones included; shape (U,)."""
        lengths: np.ndarray = np.subtract(self.ends, self.starts)
        return lengths

    @property
    def has_synthetic(self) -> bool:
        """True if the log marks synthetic items, even if none of these sequences has one."""
        return self.log.synthetic is not None

    @cached_property
    def real_lengths(self) -> Int64[np.ndarray, " U"]:
        """Items of each sequence that are not synthetic; shape (U,)."""
        if self.log.synthetic is None:
            return self.lengths
        kept = [np.diff(offsets_of(~part.synthetic)[part.offsets]) for part in self.parts()]
        return np.concatenate([np.zeros(0, dtype=np.int64), *kept])

    @property
    def offsets(self) -> Int64[np.ndarray, " U_plus_1"]:
        """Start of each sequence in `items`, and the length of `items` at the end."""
        return offsets_of(self.lengths)

    @cached_property
    def items(self) -> Int32[np.ndarray, " N"]:
        """Items of all sequences, one after another; a view with gaps copies them once. O(N)."""
        return self.log.items[self._positions]

    @cached_property
    def synthetic(self) -> Bool[np.ndarray, " N"]:
        """True for each of `items` that was generated."""
        if self.log.synthetic is None:
            return np.broadcast_to(np.zeros((), dtype=bool), (int(self.lengths.sum()),))
        return self.log.synthetic[self._positions]

    @cached_property
    def timestamps(self) -> Int64[np.ndarray, " N"] | None:
        """Time of each of `items`, or None."""
        return None if self.log.timestamps is None else self.log.timestamps[self._positions]

    @property
    def context_only(self) -> Bool[np.ndarray, " N"] | None:
        """True for each of `items` that is real and never a target; None if all may be."""
        flags = self.log.context_only
        return None if flags is None else flags[self._positions]

    @property
    def log_positions(self) -> Int64[np.ndarray, " N"]:
        """Position in the flat log of each of `items`. O(N), computed at every call."""
        where = self._positions
        return np.arange(where.start, where.stop) if isinstance(where, slice) else where

    @property
    def _positions(self) -> slice | Int64[np.ndarray, " N"]:
        """Positions of all sequences in the flat log; a slice if there is no gap."""
        if not len(self):
            return slice(0, 0)
        if bool(np.all(self.starts[1:] == self.ends[:-1])):
            return slice(int(self.starts[0]), int(self.ends[-1]))
        offsets = self.offsets
        return np.repeat(self.starts - offsets[:-1], self.lengths) + np.arange(offsets[-1])

    def item_counts(self) -> Int64[np.ndarray, " V"]:
        """Occurrences of each item in these sequences, synthetic ones left out.

        Needs memory for a few million interactions at a time, however many there are.
        """
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for part in self.parts():
            items = part.items[~part.synthetic] if self.has_synthetic else part.items
            counts += np.bincount(items, minlength=self.vocab_size)
        return counts

    def parts(self) -> Iterator["SequenceDataset"]:
        """The sequences in views of a million interactions or sequences, or one that has more.

        What goes through a log part by part takes memory for a part alone.
        """
        for begin in range(0, len(self), _AT_ONCE):
            until = min(begin + _AT_ONCE, len(self))
            offsets = offsets_of(self.ends[begin:until] - self.starts[begin:until])
            full = np.arange(_AT_ONCE, offsets[-1], _AT_ONCE)
            cuts = np.unique([0, *np.searchsorted(offsets[1:], full), until - begin])
            for first, last in itertools.pairwise((cuts + begin).tolist()):
                yield self.select(np.arange(first, last))

    def select(self, index: Int[np.ndarray, " S"] | Bool[np.ndarray, " U"]) -> "SequenceDataset":
        """A view of some sequences (indices or a mask), in that order. O(their number)."""
        index = np.flatnonzero(index) if index.dtype == np.bool_ else np.asarray(index)
        return self.view(self.starts[index], self.ends[index], index)

    def view(
        self,
        starts: Int[np.ndarray, " S"],
        ends: Int[np.ndarray, " S"],
        index: Int[np.ndarray, " S"] | None = None,
    ) -> "SequenceDataset":
        """Other sequences of the flat log, from each start to its end. O(their number).

        Args:
            starts: position in `log` of each sequence's first item.
            ends: position after its last item.
            index: index of the sequence of this dataset from which each is cut; by default one
                of each, in order.
        """
        copies = self.copies
        if copies is not None and index is not None:
            copies = replace(copies, difficulty=copies.difficulty[:, index])
        users = self.users if index is None else self.users[index]
        use = self.use
        if use is not None and index is not None:
            use = use.of(users)
        return SequenceDataset(
            self.log,
            np.asarray(starts, dtype=np.int64),
            np.asarray(ends, dtype=np.int64),
            self.catalog,
            users,
            copies,
            use,
        )

    def compact(self) -> "SequenceDataset":
        """The sequences in a flat log that holds nothing else; itself if that is already so."""
        where, offsets = self._positions, self.offsets
        if isinstance(where, slice) and len(self.log.items) == offsets[-1]:
            return self
        copies = self.copies
        if copies is not None:
            copies = replace(copies, items=np.ascontiguousarray(copies.items[:, where]))
        use = None if self.use is None else self.use.take(where)
        return SequenceDataset(
            self.log.take(where), offsets[:-1], offsets[1:], self.catalog, self.users, copies, use
        )

    def with_items(
        self,
        items: Int32[np.ndarray, " N"],
        lengths: Int64[np.ndarray, " U"],
        synthetic: Bool[np.ndarray, " N"] | None,
        timestamps: Int64[np.ndarray, " N"] | None = None,
        context_only: Bool[np.ndarray, " N"] | None = None,
    ) -> "SequenceDataset":
        """New sequences for these users: the result of an augmenter that inserts or deletes.

        Args:
            items: item numbers of all sequences, one after another.
            lengths: items of each sequence, in the order of `users`.
            synthetic: which items were generated; None if none was.
            context_only: real items that are never targets; None if all may be.
        """
        return SequenceDataset.from_offsets(
            items,
            offsets_of(lengths),
            self.catalog,
            self.users,
            synthetic,
            timestamps,
            context_only,
        )

    def prepend(
        self,
        generated: Int32[np.ndarray, "S M"],
        index: Int[np.ndarray, " S"],
        n_context: int = 0,
        before: int = 0,
    ) -> "SequenceDataset":
        """The dataset with synthetic items in front of some sequences, or inside them.

        Args:
            generated: item numbers, oldest first, at most M for each of the chosen sequences: 0 is
                no item.
            index: indices of the chosen sequences, each at most once; the others are unchanged.
            n_context: so many of the first real items of the chosen sequences were what the items
                were generated from: behind them, these are marked as never targets.
            before: number of the real item that they stand in front of, which each chosen sequence
                has; with 0, in front of all.

        Returns:
            A new dataset of the same users. The added items are marked synthetic and have the
            time of the first interaction after them.

        Raises:
            DataError: the sequences have augmented copies, which would become too short, or say how
                their synthetic items are used.
        """
        if self.copies is not None:
            raise DataError(
                "these sequences have augmented copies, and items can't be put in front of those: "
                "use one of the two augmenters"
            )
        if self.use is not None:
            raise DataError(
                "these sequences were augmented with use_... settings, and more items would have "
                "none: augment real histories"
            )
        given = generated > 0
        number = given.sum(1)
        extra = np.zeros(len(self), dtype=np.int64)
        extra[index] = number
        lengths = self.lengths + extra
        offsets = offsets_of(lengths)
        after = self.offsets[:-1][index]  # the item that they stand in front of
        if before:
            places = np.flatnonzero(~self.synthetic)
            after = places[offsets_of(~self.synthetic)[after] + before]
        start = offsets[:-1][index] + after - self.offsets[:-1][index]
        new = (start[:, None] + np.cumsum(given, axis=1) - 1)[given]
        synthetic = np.zeros(offsets[-1], dtype=bool)
        synthetic[new] = True
        old = ~synthetic
        items = np.empty(offsets[-1], dtype=np.int32)
        items[new], items[old] = generated[given], self.items
        if self.has_synthetic:
            synthetic[old] = self.synthetic
        context = None
        if n_context or self.context_only is not None:
            context = np.zeros(offsets[-1], dtype=bool)
            given_any = index[number > 0]
            first = self._first_real(given_any, n_context)
            context[old] = first & ~self._first_real(given_any, before)
            if self.context_only is not None:
                context[old] |= self.context_only
        times = None
        if self.timestamps is not None:
            times = np.zeros(offsets[-1], dtype=np.int64)
            times[old] = self.timestamps
            if len(self.timestamps):
                times[new] = np.repeat(
                    self.timestamps[np.minimum(after, len(self.timestamps) - 1)], number
                )
        return self.with_items(items, lengths, synthetic, times, context)

    def _first_real(self, index: Int[np.ndarray, " S"], n: int) -> Bool[np.ndarray, " N"]:
        """True for the first n real items of some sequences, of all `items`."""
        real, owners = ~self.synthetic, np.repeat(np.arange(len(self)), self.lengths)
        before = offsets_of(real)
        chosen = np.zeros(len(self), dtype=bool)
        chosen[index] = True
        number = before[:-1] - before[self.offsets[owners]]
        first: np.ndarray = real & chosen[owners] & (number < n)
        return first

    def with_use(self, use: Use | None) -> "SequenceDataset":
        """The sequences, compact, their synthetic items used in this way."""
        return replace(self.compact(), use=use)

    def joined(self, others: "SequenceDataset | None") -> "SequenceDataset":
        """These sequences and others of the same users after them, as they stand."""
        if others is None:
            return self if self.use is None else replace(self, use=None)
        both = (self, others)
        times = [part.timestamps for part in both if part.timestamps is not None]
        return SequenceDataset.from_offsets(
            np.concatenate([part.items for part in both]),
            offsets_of(np.concatenate([part.lengths for part in both])),
            self.catalog,
            np.concatenate([part.users for part in both]),
            np.concatenate([part.synthetic for part in both]),
            np.concatenate(times) if len(times) == len(both) else None,
            np.concatenate([_marked(part.context_only, part) for part in both]),
        )

    def with_new_users(
        self,
        items: Int32[np.ndarray, " N"],
        lengths: Int64[np.ndarray, " S"],
        synthetic: Bool[np.ndarray, " N"] | None = None,
    ) -> "SequenceDataset":
        """The dataset with further users: the result of an augmenter that makes whole users.

        Items that an augmenter puts into a history are context; items of a new user are targets,
        unless they are marked synthetic.

        Args:
            items: item numbers 1..V-1 of all new users, one after another, oldest first.
            lengths: items of each new user.
            synthetic: which of `items` are context alone; None if none is.

        Returns:
            A new dataset: the same sequences, then the new ones. Their user numbers begin at the
            catalog's `n_users`, which grows; where raw ids are known, theirs occur nowhere else.
            Timestamps are left out, because the new interactions have none.

        Raises:
            DataError: lengths that do not sum to the number of items, an item outside the catalog,
                or augmented copies or a use of synthetic items, of which the new users have none.
        """
        if self.use is not None:
            raise DataError(
                "these sequences were augmented with use_... settings, and new users would have "
                "none: add the users first"
            )
        if self.copies is not None:
            raise DataError(
                "these sequences have augmented copies, and new users would have none: add the "
                "users first"
            )
        if len(items) != lengths.sum() or (lengths < 0).any():
            raise DataError(
                f"new users of {lengths.sum():,} items in all need as many item numbers, got "
                f"{len(items):,}"
            )
        if len(items) and not 1 <= items.min() <= items.max() < self.vocab_size:
            raise DataError(
                f"items of new users must lie in 1..{self.vocab_size - 1}, got "
                f"{items.min()}..{items.max()}"
            )
        catalog = self.catalog.with_new_users(len(lengths))
        marks = None
        if self.has_synthetic or synthetic is not None:
            theirs = np.zeros(len(items), dtype=bool) if synthetic is None else synthetic
            marks = np.concatenate([self.synthetic, theirs])
        context = self.context_only
        if context is not None:
            context = np.concatenate([context, np.zeros(len(items), dtype=bool)])
        return SequenceDataset.from_offsets(
            np.concatenate([self.items, items]),
            offsets_of(np.concatenate([self.lengths, lengths])),
            catalog,
            np.concatenate([self.users, np.arange(self.catalog.n_users, catalog.n_users)]),
            marks,
            context_only=context,
        )

    def with_copies(self, copies: AugmentedCopies) -> "SequenceDataset":
        """The sequences, compact, with augmented copies of them.

        Args:
            copies: alternatives to `items`, in that order, of all sequences.

        Raises:
            DataError: the copies are not as long as `items`.
        """
        return replace(self.without_copies().compact(), copies=copies)

    def without_copies(self) -> "SequenceDataset":
        """The sequences without their augmented copies."""
        return self if self.copies is None else replace(self, copies=None)

    def with_all_copies(self) -> "SequenceDataset":
        """The sequences with all their augmented copies in use from the start."""
        if self.copies is None:
            return self
        schedule = replace(self.copies.schedule, pacing="none")
        return replace(self, copies=replace(self.copies, schedule=schedule))

    def real(self) -> "SequenceDataset":
        """The sequences without their synthetic items, and how those are used; itself if the log
        marks none."""
        if not self.has_synthetic:
            return self if self.use is None else replace(self, use=None)
        kept = ~self.synthetic
        times = None if self.timestamps is None else self.timestamps[kept]
        return self.with_items(self.items[kept], self.real_lengths, None, times)

    @cached_property
    def alone(self) -> "SequenceDataset":
        """:meth:`real`, made once."""
        return self.real()

    @property
    def readings(self) -> tuple["SequenceDataset", ...]:
        """The sequences as they are scored: once, or with and without their synthetic items, where
        the mean of both is taken."""
        both = self.use is not None and self.use.average and self.has_synthetic
        return (self, self.alone) if both else (self,)

    @property
    def trained_on(self) -> "SequenceDataset":
        """The sequences that batches are made of; others are trained on beside them."""
        return self.alone if self.use is not None and self.use.weight is not None else self

    def arrays(self) -> dict[str, np.ndarray]:
        """The sequences as flat arrays by name, as they are saved: items, offsets, users, ...

        A view with gaps copies its items once.
        """
        arrays = {"items": self.items, "offsets": self.offsets, "users": self.users}
        if self.has_synthetic:
            arrays["synthetic"] = self.synthetic
        if self.context_only is not None:
            arrays["context_only"] = self.context_only
        if self.timestamps is not None:
            arrays["timestamps"] = self.timestamps
        return arrays

    @cached_property
    def fingerprint(self) -> str:
        """What the sequences hold, as 32 hexadecimal digits: equal for equal data, wherever it is.

        Counted in are the items, users, times and marks of these sequences, the raw ids
        and attributes of the catalog, augmented copies, and how synthetic items are used. O(N),
        computed once.
        """
        n, names = int(self.lengths.sum()), ["items"]
        names += ["synthetic"] * self.has_synthetic
        names += ["context_only"] * (self.log.context_only is not None)
        names += ["timestamps"] * (self.log.timestamps is not None)
        sums = {
            name: blocks_sha256((getattr(part, name) for part in self.parts()), n, TYPES[name])
            for name in names
        }
        sums |= {
            name: array_sha256(getattr(self, name), TYPES[name]) for name in ("offsets", "users")
        }
        if self.copies is not None:
            sums["copies"] = array_sha256(self.copies.items.reshape(-1), TYPES["items"])
            sums["schedule"] = f"{len(self.copies)} {self.copies.schedule}"
        if self.use is not None:
            use = self.use
            sums["use"] = f"{use.weight} {use.dropout} {use.average}"
            if use.rows is not None:
                sums["rows"] = use.rows.fingerprint
            if use.soft is not None:
                where = self._positions
                sums["soft"] = array_sha256(use.soft.items[where].reshape(-1), TYPES["items"])
                sums["soft weight"] = f"{use.soft.weight}"
        return fingerprint_of(self.catalog, sums)

    def save(
        self, path: Path | str, note: dict[str, Any] | None = None, *, overwrite: bool = False
    ) -> None:
        """Writes the dataset as a directory that :func:`load_dataset` maps back.

        Args:
            path: the directory to make.
            note: a JSON object to keep with the dataset (source, filters, …).
            overwrite: replace the prepared dataset at that path, if there is one, in one step;
                whoever has it open keeps the old one.

        Raises:
            DataError: the directory exists already, or holds something else; the sequences have
                augmented copies, which cannot be saved; or nothing can be written there.
        """
        from diffuserec.data.storage import save_dataset  # storage builds datasets

        save_dataset(self, path, note, overwrite)


def _marked(
    marks: Bool[np.ndarray, " N"] | None, dataset: SequenceDataset
) -> Bool[np.ndarray, " N"]:
    """Marks of a dataset's items; none where they are None."""
    return np.zeros(len(dataset.items), dtype=bool) if marks is None else marks


def offsets_of(lengths: Sequence[int] | np.ndarray) -> Int64[np.ndarray, " n_plus_1"]:
    """Cumulative sums with a 0 in front: the start of each sequence in a flat array."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def fingerprint_of(catalog: Catalog, sums: Mapping[str, str]) -> str:
    """Fingerprint of sequences, from their catalog and the checksums of their arrays."""
    digest = hashlib.sha256(f"{catalog.n_users} {sorted(sums.items())}".encode())
    for ids in (catalog.item_ids, catalog.user_ids):
        digest.update(f"|{None if ids is None else ids.dtype}".encode())
        for part in () if ids is None else ids.to_frame().iter_slices(2**16):
            digest.update(json.dumps(part.to_series().to_list()).encode())
    if catalog.attributes is not None:
        digest.update(str(catalog.attributes.schema).encode())
        vectors = [n for n, t in catalog.attributes.schema.items() if isinstance(t, pl.Array)]
        for part in catalog.attributes.iter_slices(2**16):
            digest.update(part.drop(vectors).write_ndjson().encode())
            for name in vectors:
                digest.update(np.ascontiguousarray(part[name].to_numpy(), dtype="<f4").tobytes())
    return digest.hexdigest()[:32]
