"""The ragged store of interaction sequences that everything else reads.

A log of N interactions of U users is two flat arrays: every user's items one after another, and
the U + 1 offsets where each begins. It can be mapped from disk, takes 4 bytes an interaction, and
a slice of it is a view. Item ids are 1..V-1; id 0 is padding and never appears here. Raw ids stay
in the :class:`Catalog`.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Int, Int32, Int64

from diffuserec.errors import ConfigError, DataError

PAD = 0

RawId = int | str

_FORMAT = "diffuserec-dataset"
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Catalog:
    """The items there are, and what is known of them before any sequence is seen.

    Attributes:
        item_ids: raw ids of the items 1..V-1 in that order (integers or strings), so that item
            ``i`` is ``item_ids[i - 1]``.
        n_users: how many users the log has; user numbers are 0..n_users-1.
        user_ids: raw ids of the users by number, or None where they are not kept (a saved model
            does not carry them).
        attributes: optional frame with one row an item in the same order (``name``, ``category``,
            …), or None.
    """

    item_ids: pl.Series
    n_users: int
    user_ids: pl.Series | None = None
    attributes: pl.DataFrame | None = None

    @property
    def n_items(self) -> int:
        """Number of items, V - 1."""
        return len(self.item_ids)

    @property
    def vocab_size(self) -> int:
        """V: rows of an item table, the padding row 0 included."""
        return len(self.item_ids) + 1

    def encode(self, raw: Sequence[RawId] | pl.Series) -> Int64[np.ndarray, " N"]:
        """Item numbers of raw ids; 0 where an id is unknown.

        Integer catalogs take integers or their decimal strings; string catalogs take strings or
        integers, so that ids typed on a command line work for both.
        """
        # not strict: integers among strings become strings
        values = raw if isinstance(raw, pl.Series) else pl.Series(list(raw), strict=False)
        if len(values) == 0:
            return np.zeros(0, dtype=np.int64)
        values = values.cast(self.item_ids.dtype, strict=False)
        index = pl.DataFrame(
            {"item_id": self.item_ids, "number": np.arange(1, self.vocab_size, dtype=np.int64)}
        )
        found = pl.DataFrame({"item_id": values}).join(
            index, on="item_id", how="left", maintain_order="left"
        )
        return found["number"].fill_null(PAD).to_numpy(writable=True)

    def decode(self, items: Int[np.ndarray, "..."]) -> list[RawId]:
        """Raw ids of item numbers (flat), in the type that the log had.

        Raises:
            DataError: an item is outside 1..V-1.
        """
        flat = np.asarray(items).reshape(-1)
        if flat.size and (flat.min() < 1 or flat.max() > self.n_items):
            raise DataError(
                f"item numbers must lie in 1..{self.n_items}, got {flat.min()}..{flat.max()}"
            )
        return self.item_ids.gather(flat - 1).to_list()


@dataclass(frozen=True)
class Schedule:
    """When training uses the variants of its sequences, and how much they weigh.

    Attributes:
        pacing: ``cumulative``: stage s has the first s variants; ``one_pass``: only the s-th, and
            all of them after the last; ``none``: all from the start.
        stage_epochs: epochs a stage.
        weight: of the loss of one variant against that of the original.
        each_step: what a training step has beside an original: ``one`` of the stage's variants,
            drawn at random, which stands for all of them, or ``all``.
    """

    pacing: Literal["cumulative", "one_pass", "none"] = "cumulative"
    stage_epochs: int = 1
    weight: float = 1.0
    each_step: Literal["one", "all"] = "one"

    def stage(self, epoch: int, n_variants: int) -> range:
        """The variants that the epoch uses, numbered from 0."""
        begun = min(epoch // self.stage_epochs, n_variants) + 1
        if self.pacing == "none" or begun > n_variants:
            return range(n_variants)
        return range(begun - 1 if self.pacing == "one_pass" else 0, begun)

    def n_epochs(self, n_variants: int) -> int:
        """Epochs before all variants are in use."""
        stages = {"cumulative": n_variants - 1, "one_pass": n_variants, "none": 0}
        return stages[self.pacing] * self.stage_epochs

    def require_epochs(self, epochs: int, n_variants: int) -> None:
        """Raises a ConfigError where so many epochs end before all variants are in use."""
        least = self.n_epochs(n_variants)
        if epochs <= least:
            raise ConfigError(
                f"{epochs} epochs end before all {n_variants} variants are in use, which takes "
                f"{least + 1}: raise epochs, lower n_variants or stage_epochs, or set curriculum "
                "none"
            )


@dataclass(frozen=True, eq=False)
class Variants:
    """Other versions of every sequence of a dataset, for training beside the original.

    A variant is as long as its original and starts where that starts. All its items are targets,
    and none is "seen": they say what a user might have done.

    Attributes:
        items: item numbers of K variants, flat like those of the dataset; int32, shape (K, N). The
            first of a user is the first that training uses.
        difficulty: of each variant, float32, shape (K, U).
        schedule: when training uses which.
    """

    items: Int32[np.ndarray, "K N"]
    difficulty: Float32[np.ndarray, "K U"]
    schedule: Schedule

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, eq=False)
class SequenceDataset:
    """Sequences of items, oldest first, ragged.

    Attributes:
        items: item numbers 1..V-1 of all sequences, one after another; int32, shape (N,).
        offsets: where each sequence begins, and N at the end; int64, shape (U + 1,).
        catalog: the items there are.
        users: user number of each sequence, int64, shape (U,); by default 0..U-1. A subset of the
            users keeps its numbers, so that noise drawn for a user stays that user's.
        synthetic: which items were generated, bool, shape (N,). A synthetic item is context: never
            a target, never "seen".
        timestamps: time of each interaction, int64 microseconds or the log's own numbers, shape
            (N,), or None.
        variants: other versions of the sequences, made by an augmenter; or None. They stay with
            a subset of the users and are not saved.
    """

    items: Int32[np.ndarray, " N"]
    offsets: Int64[np.ndarray, " U_plus_1"]
    catalog: Catalog
    users: Int64[np.ndarray, " U"] = field(default=None)  # type: ignore[arg-type]
    synthetic: Bool[np.ndarray, " N"] = field(default=None)  # type: ignore[arg-type]
    timestamps: Int64[np.ndarray, " N"] | None = None
    variants: Variants | None = None

    def __post_init__(self) -> None:
        if self.users is None:
            object.__setattr__(self, "users", np.arange(len(self.offsets) - 1, dtype=np.int64))
        if self.synthetic is None:
            # one shared False, whatever N: a log without generated items pays nothing for the flag
            object.__setattr__(
                self, "synthetic", np.broadcast_to(np.zeros((), dtype=bool), self.items.shape)
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int | np.int64) -> Int32[np.ndarray, " L"]:
        return self.items[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> Int64[np.ndarray, " U"]:
        """Items of each sequence, synthetic ones included; shape (U,)."""
        return np.diff(self.offsets)

    @property
    def real_lengths(self) -> Int64[np.ndarray, " U"]:
        """Items of each sequence that the user really had; shape (U,)."""
        if self.synthetic.strides == (0,):
            return self.lengths
        cumulative = np.concatenate([[0], np.cumsum(~self.synthetic, dtype=np.int64)])
        return np.diff(cumulative[self.offsets])

    @property
    def vocab_size(self) -> int:
        return self.catalog.vocab_size

    @staticmethod
    def from_lists(
        sequences: Sequence[Sequence[int]],
        catalog: Catalog | None = None,
        users: Sequence[int] | None = None,
    ) -> "SequenceDataset":
        """A dataset from lists of item numbers (not raw ids); for small data and tests.

        Args:
            sequences: one list of numbers 1..V-1 a user.
            catalog: the items; by default the numbers up to the largest, as their own raw ids.
            users: user numbers; by default 0..U-1.
        """
        lengths = [len(sequence) for sequence in sequences]
        items = np.fromiter((i for s in sequences for i in s), dtype=np.int32, count=sum(lengths))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if catalog is None:
            largest = int(items.max()) if items.size else 0
            catalog = Catalog(pl.Series("item_id", np.arange(1, largest + 1)), len(sequences))
        numbers = None if users is None else np.asarray(users, dtype=np.int64)
        return SequenceDataset(items, offsets, catalog, users=numbers)  # type: ignore[arg-type]

    def select(self, rows: Int[np.ndarray, " R"] | Bool[np.ndarray, " U"]) -> "SequenceDataset":
        """The sequences of these rows (indices or a mask), in that order."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else np.asarray(rows)
        return self.slice(self.offsets[index], self.offsets[index + 1], index)

    def slice(
        self,
        starts: Int[np.ndarray, " R"],
        ends: Int[np.ndarray, " R"],
        rows: Int[np.ndarray, " R"] | None = None,
    ) -> "SequenceDataset":
        """New sequences from positions [start, end) of the flat arrays, one for each pair.

        Args:
            starts: first position of each sequence, absolute in ``items``.
            ends: position after the last.
            rows: the row of this dataset that each comes from; by default one each, in order.
        """
        lengths = np.asarray(ends) - np.asarray(starts)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        contiguous = len(starts) > 0 and bool(np.all(starts[1:] == ends[:-1]))
        where: Any
        variants = self.variants
        if contiguous:
            where = np.s_[int(starts[0]) : int(ends[-1])]
        else:
            where = np.repeat(np.asarray(starts) - offsets[:-1], lengths) + np.arange(offsets[-1])
        if variants is not None:
            difficulty = variants.difficulty if rows is None else variants.difficulty[:, rows]
            # in one piece, for batches to read it as a flat array
            items = np.ascontiguousarray(variants.items[:, where])
            variants = replace(variants, items=items, difficulty=difficulty)
        return SequenceDataset(
            items=self.items[where],
            offsets=offsets,
            catalog=self.catalog,
            users=self.users if rows is None else self.users[rows],
            synthetic=None if self.synthetic.strides == (0,) else self.synthetic[where],  # type: ignore[arg-type]
            timestamps=None if self.timestamps is None else self.timestamps[where],
            variants=variants,
        )

    def prepend(
        self, generated: Int32[np.ndarray, "U M"], rows: Int[np.ndarray, " U"]
    ) -> "SequenceDataset":
        """The dataset with synthetic items in front of some sequences.

        Args:
            generated: item numbers, oldest first, M for each of the rows; shape (R, M).
            rows: which sequences they belong to, each at most once; the others stay as they are.

        Returns:
            A new dataset of the same users; the additions are marked synthetic.

        Raises:
            DataError: the sequences have variants, which would be shorter than they.
        """
        if self.variants is not None:
            raise DataError(
                "these sequences have variants, and items can't be put in front of those: use one "
                "augmenter or the other"
            )
        extra = np.zeros(len(self), dtype=np.int64)
        extra[rows] = generated.shape[1]
        lengths = self.lengths + extra
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        items = np.empty(offsets[-1], dtype=np.int32)
        synthetic = np.zeros(offsets[-1], dtype=bool)
        new = (offsets[:-1][rows][:, None] + np.arange(generated.shape[1])).reshape(-1)
        synthetic[new] = True
        items[new] = generated.reshape(-1)
        old = np.ones(offsets[-1], dtype=bool)
        old[new] = False
        items[old] = self.items
        synthetic[old] = self.synthetic
        times = None
        if self.timestamps is not None:
            # what is put in front of a history stands at the time of its first interaction
            times = np.empty(offsets[-1], dtype=np.int64)
            times[old] = self.timestamps
            first = self.timestamps[np.minimum(self.offsets[:-1][rows], len(self.items) - 1)]
            times[new] = np.repeat(first, generated.shape[1])
        return SequenceDataset(items, offsets, self.catalog, self.users, synthetic, times)

    def without_variants(self) -> "SequenceDataset":
        """The sequences alone."""
        return self if self.variants is None else replace(self, variants=None)

    def with_all_variants(self) -> "SequenceDataset":
        """The sequences with all their variants in use from the start."""
        if self.variants is None:
            return self
        schedule = replace(self.variants.schedule, pacing="none")
        return replace(self, variants=replace(self.variants, schedule=schedule))

    def real(self) -> "SequenceDataset":
        """The same sequences without their synthetic items; such have no variants either."""
        if self.synthetic.strides == (0,):
            return self
        offsets = np.concatenate([[0], np.cumsum(self.real_lengths)]).astype(np.int64)
        times = None if self.timestamps is None else self.timestamps[~self.synthetic]
        return SequenceDataset(
            self.items[~self.synthetic], offsets, self.catalog, self.users, timestamps=times
        )

    def save(self, path: Path | str, note: dict[str, Any] | None = None) -> None:
        """Writes the dataset as a directory that :func:`load_dataset` maps back.

        Args:
            path: a directory to make; it must not exist.
            note: anything JSON can hold that should travel along (what was read, filtered, …).

        Raises:
            DataError: the directory exists already, or there are variants, which are not kept.
        """
        if self.variants is not None:
            raise DataError("variants are not saved: save without_variants(), and the augmenter")
        target = Path(path)
        if target.exists():
            raise DataError(f"{target} exists already: choose another --out or remove it")
        work = target.with_name(f".{target.name}.partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        np.save(work / "items.npy", self.items, allow_pickle=False)
        np.save(work / "offsets.npy", self.offsets, allow_pickle=False)
        np.save(work / "users.npy", self.users, allow_pickle=False)
        if self.synthetic.strides != (0,):
            np.save(work / "synthetic.npy", self.synthetic, allow_pickle=False)
        if self.timestamps is not None:
            np.save(work / "timestamps.npy", self.timestamps, allow_pickle=False)
        self.catalog.item_ids.rename("item_id").to_frame().write_parquet(work / "item_ids.parquet")
        if self.catalog.user_ids is not None:
            self.catalog.user_ids.rename("user_id").to_frame().write_parquet(
                work / "user_ids.parquet"
            )
        if self.catalog.attributes is not None:
            self.catalog.attributes.write_parquet(work / "attributes.parquet")
        manifest = {
            "format": _FORMAT,
            "version": _VERSION,
            "n_users": self.catalog.n_users,
            "note": note or {},
        }
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        work.rename(target)


def load_dataset(path: Path | str) -> SequenceDataset:
    """Maps a prepared dataset from disk; nothing is read until it is used.

    Raises:
        DataError: the directory is missing, incomplete, or not one of ours.
    """
    source = Path(path)
    manifest = dataset_manifest(source)
    try:
        arrays = {
            name: np.load(source / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("items", "offsets", "users", "synthetic", "timestamps")
            if name in ("items", "offsets", "users") or (source / f"{name}.npy").exists()
        }
        frames = {
            name: pl.read_parquet(source / f"{name}.parquet")
            for name in ("item_ids", "user_ids", "attributes")
            if name == "item_ids" or (source / f"{name}.parquet").exists()
        }
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{source} is damaged ({error}): prepare the log again") from error
    n = len(arrays["items"])
    if (
        len(arrays["offsets"]) != len(arrays["users"]) + 1
        or arrays["offsets"][-1] != n
        or any(len(arrays[name]) != n for name in ("synthetic", "timestamps") if name in arrays)
    ):
        raise DataError(f"{source} is damaged (its arrays do not fit): prepare the log again")
    catalog = Catalog(
        item_ids=frames["item_ids"]["item_id"],
        n_users=int(manifest["n_users"]),
        user_ids=frames["user_ids"]["user_id"] if "user_ids" in frames else None,
        attributes=frames.get("attributes"),
    )
    return SequenceDataset(catalog=catalog, **arrays)


def dataset_manifest(path: Path | str) -> dict[str, Any]:
    """What was written beside a prepared dataset: format, version, and the note of its making.

    Raises:
        DataError: the directory holds no prepared dataset of a version that this release reads.
    """
    source = Path(path)
    try:
        manifest: dict[str, Any] = json.loads((source / "manifest.json").read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{source} is not a prepared dataset: make one with 'diffuserec prepare LOG --out DATA'"
        ) from error
    if manifest.get("format") != _FORMAT:
        raise DataError(
            f"{source} holds {manifest.get('format', 'something else')}, not a prepared dataset: "
            "make one with 'diffuserec prepare LOG --out DATA'"
        )
    if manifest.get("version") != _VERSION:
        raise DataError(
            f"{source} has dataset version {manifest.get('version')}, this release reads "
            f"{_VERSION}: prepare the log again"
        )
    return manifest
