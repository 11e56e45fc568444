"""From ragged sequences to tensors: the only place where padding exists.

Batches are padded on the right and bucketed by length. A causal encoder then needs no mask at all,
because a real position never sees what comes after it, and padding is a few percent.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from diffuserec.data.dataset import PAD, SequenceDataset, Variants

Rows = Literal["users", "windows", "prefixes", "last"]
"""What a training row is: see :func:`training_rows`."""

_BUCKETS = 32
"""Batches that are sorted by length together: enough to leave little padding, few enough that the
composition of a batch stays random."""


@dataclass(frozen=True, eq=False)
class Histories:
    """What a recommender is shown of a batch of users.

    Attributes:
        users: user numbers, shape (B,).
        items: item numbers, oldest first, zeros after the end, shape (B, L).
        lengths: how many items are real positions, shape (B,); 0 for an empty history.
    """

    users: Int[Tensor, " B"]
    items: Int[Tensor, "B L"]
    lengths: Int[Tensor, " B"]

    def to(self, device: torch.device) -> "Histories":
        return Histories(self.users.to(device), self.items.to(device), self.lengths.to(device))

    def newest(self, max_len: int) -> "Histories":
        """The same users with at most their newest `max_len` items."""
        if self.items.shape[1] <= max_len:
            return self
        first = (self.lengths - max_len).clamp(min=0)
        columns = first[:, None] + torch.arange(max_len, device=self.items.device)
        inside = columns < self.lengths[:, None]
        items = self.items.gather(1, columns.clamp(max=self.items.shape[1] - 1))
        return Histories(
            self.users, items.masked_fill(~inside, PAD), self.lengths.clamp(max=max_len)
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Histories with the item that follows each position.

    Attributes:
        users: user numbers, shape (B,).
        items: item numbers, oldest first, zeros after the end, shape (B, L).
        lengths: real positions, shape (B,).
        targets: the next item at each position, shape (B, L); 0 where there is none to learn
            (padding, and wherever the next item is synthetic).
        places: where in the dataset's flat items the item after the newest history item stands,
            which is the newest target unless it is synthetic, shape (B,).
        real: the positions whose item is no padding and not synthetic, shape (B, L); by default
            all that hold an item.
        variants: other versions of the same rows, to be trained on beside them; or None.
        variants_weight: what the loss of these weighs against that of the rows.
    """

    users: Int[Tensor, " B"]
    items: Int[Tensor, "B L"]
    lengths: Int[Tensor, " B"]
    targets: Int[Tensor, "B L"]
    places: Int[Tensor, " B"]
    real: Bool[Tensor, "B L"] = None  # type: ignore[assignment]
    variants: "Batch | None" = None
    variants_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.real is None:
            object.__setattr__(self, "real", self.items > 0)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What there is of the rows themselves, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def whole(self) -> Histories:
        """The rows with their newest item, which ``items`` leaves out, where it is a target."""
        newest = self._newest()
        items = torch.cat([self.items, torch.zeros_like(self.items[:, :1])], dim=1)
        items = items.scatter(1, self.lengths[:, None], newest)
        return Histories(self.users, items, self.lengths + (newest[:, 0] > 0))

    def whole_real(self) -> Bool[Tensor, "B M"]:
        """The positions of the whole rows whose item is no padding and not synthetic."""
        real = torch.cat([self.real, torch.zeros_like(self.real[:, :1])], dim=1)
        return real.scatter(1, self.lengths[:, None], self._newest() > 0)

    def _newest(self) -> Int[Tensor, "B 1"]:
        return self.targets.gather(1, (self.lengths - 1).clamp(min=0)[:, None])

    def to(self, device: torch.device) -> "Batch":
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        variants = None if self.variants is None else self.variants.to(device)
        return Batch(**moved, variants=variants, variants_weight=self.variants_weight)


@dataclass(frozen=True, eq=False)
class Pairs:
    """Interactions, for models that know nothing of their order.

    Attributes:
        users: user numbers, shape (P,).
        items: what each had, shape (P,).
        variants: what they might have had instead, to be trained on beside it; or None.
        variants_weight: what the loss of these weighs.
    """

    users: Int[Tensor, " P"]
    items: Int[Tensor, " P"]
    variants: "Pairs | None" = None
    variants_weight: float = 0.0

    def to(self, device: torch.device) -> "Pairs":
        variants = None if self.variants is None else self.variants.to(device)
        return Pairs(self.users.to(device), self.items.to(device), variants, self.variants_weight)


def training_batches(
    dataset: SequenceDataset,
    batch_size: int,
    max_len: int,
    seed: int,
    epoch: int,
    rows: Rows = "users",
) -> Iterator[Batch]:
    """One epoch of next-item batches, in an order fixed by (seed, epoch).

    Where the dataset has variants, each batch has those of its own rows with it. All batches have
    about as many targets: a loss that averages over the targets of a batch would
    otherwise give those of long histories, which share batches, less weight.

    Args:
        dataset: sequences; those with fewer than two items teach nothing and are left out.
        batch_size: rows a batch, on average: fewer long ones, more short ones.
        max_len: positions of a row.
        seed: of the run.
        epoch: from 0.
        rows: what a row is, see :func:`training_rows`.
    """
    owners, all_ends = training_rows(dataset, max_len, rows)
    starts = np.maximum(dataset.offsets[owners], all_ends - max_len - 1)
    one_target = rows in ("prefixes", "last")
    weights = np.ones_like(starts) if one_target else _n_targets(dataset, starts, all_ends)
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    for chosen in length_buckets(all_ends - starts - 1, batch_size, generator, weights):
        windows = owners[chosen], starts[chosen], all_ends[chosen]
        batch = _batch(dataset, *windows)
        if dataset.variants is not None:
            others = _variants_of(dataset, dataset.variants, windows, epoch, generator)
            batch = replace(batch, variants=others[0], variants_weight=others[1])
        for part in (batch, batch.variants):
            if one_target and part is not None:
                places = torch.arange(part.items.shape[1])
                part.targets[places != part.lengths[:, None] - 1] = PAD
        yield batch


def batch_of(dataset: SequenceDataset, rows: Int64[np.ndarray, " B"], max_len: int) -> Batch:
    """These sequences of two items or more as one batch, as ``rows="users"`` trains on them."""
    ends = dataset.offsets[rows + 1]
    return _batch(dataset, rows, np.maximum(dataset.offsets[rows], ends - max_len - 1), ends)


def _batch(
    dataset: SequenceDataset,
    owners: Int64[np.ndarray, " B"],
    starts: Int64[np.ndarray, " B"],
    ends: Int64[np.ndarray, " B"],
) -> Batch:
    window = padded(dataset.items, starts, ends)
    targets = window[:, 1:].copy()
    items = window[:, :-1].copy()
    lengths = ends - starts - 1
    items[np.arange(items.shape[1]) >= lengths[:, None]] = PAD
    real = items > 0
    if dataset.synthetic.strides != (0,):
        synthetic = padded(dataset.synthetic, starts, ends) != 0
        targets[synthetic[:, 1:]] = PAD
        real &= ~synthetic[:, :-1]
    return Batch(
        users=torch.from_numpy(np.asarray(dataset.users[owners])),
        items=torch.from_numpy(items),
        lengths=torch.from_numpy(lengths),
        targets=torch.from_numpy(targets),
        places=torch.from_numpy(ends - 1),
        real=torch.from_numpy(real),
    )


def _variants_of(
    dataset: SequenceDataset,
    variants: Variants,
    windows: tuple[np.ndarray, np.ndarray, np.ndarray],
    epoch: int,
    generator: np.random.Generator,
) -> tuple[Batch, float]:
    """The same windows of the epoch's variants, and the weight of their loss."""
    rows, numbers, weight = _drawn_variants(variants, len(windows[0]), epoch, generator)
    owners, starts, ends = (array[rows] for array in windows)
    n = len(dataset.items)
    flat = SequenceDataset(
        variants.items.reshape(-1), dataset.offsets, dataset.catalog, dataset.users
    )
    batch = _batch(flat, owners, starts + numbers * n, ends + numbers * n)
    return replace(batch, places=torch.from_numpy(ends - 1)), weight


def _drawn_variants(
    variants: Variants, n_rows: int, epoch: int, generator: np.random.Generator
) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"], float]:
    """Rows, which variant of each is trained on beside them, and the weight of their loss."""
    schedule = variants.schedule
    stage = np.array(schedule.stage(epoch, len(variants)))
    rows, weight = np.arange(n_rows), schedule.weight * len(stage)
    if schedule.each_step == "all":
        return np.tile(rows, len(stage)), np.repeat(stage, n_rows), weight
    return rows, generator.choice(stage, n_rows), weight


def training_rows(
    dataset: SequenceDataset, max_len: int, rows: Rows = "users"
) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """Which sequence each training row is of, and the flat position after its newest target.

    Only real items that something precedes are targets; rows without one are left out.

    Args:
        dataset: sequences.
        max_len: positions of a row.
        rows: ``users``: one row each, every one of its newest `max_len` positions a target.
            ``windows``: as many such rows as it takes for every item to be a target once, counted
            from the newest; the first targets of a window see little of what came before.
            ``prefixes``: a row for every item, that item its only target. ``last``: a row for
            each user, the newest item its only target.
    """
    if rows == "users":
        owners = trainable_rows(dataset)
        return owners, dataset.offsets[owners + 1]
    if rows == "windows":
        n_windows = -(-np.maximum(dataset.lengths - 1, 0) // max_len)
        owners = np.repeat(np.arange(len(dataset)), n_windows)
        first = np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
        ends = dataset.offsets[owners + 1] - (np.arange(len(owners)) - first) * max_len
    elif rows == "prefixes":
        owners = np.repeat(np.arange(len(dataset)), dataset.lengths)
        ends = np.arange(1, len(owners) + 1)
        preceded = ends > dataset.offsets[owners] + 1
        owners, ends = owners[preceded], ends[preceded]
    else:
        owners = np.flatnonzero(dataset.lengths >= 2)
        ends = dataset.offsets[owners + 1]
    starts = np.maximum(dataset.offsets[owners], ends - max_len - 1)
    if rows in ("prefixes", "last"):
        starts = ends - 2
    useful = _n_targets(dataset, starts, ends) > 0
    return owners[useful], ends[useful]


def _n_targets(
    dataset: SequenceDataset, starts: Int64[np.ndarray, " R"], ends: Int64[np.ndarray, " R"]
) -> Int64[np.ndarray, " R"]:
    """Real items in [start + 1, end)."""
    if dataset.synthetic.strides == (0,):
        return np.asarray(ends - starts - 1)
    real = np.concatenate([[0], np.cumsum(~dataset.synthetic)])
    counted: np.ndarray = np.subtract(real[ends], real[starts + 1])
    return counted


def pair_batches(
    dataset: SequenceDataset, batch_size: int, seed: int, epoch: int
) -> Iterator[Pairs]:
    """Every real interaction once, shuffled by (seed, epoch), in batches of about one size.

    Where the dataset has variants, each batch has those of its own interactions with it.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    owners = np.repeat(np.asarray(dataset.users), dataset.lengths)
    order = generator.permutation(np.flatnonzero(~dataset.synthetic))
    n_batches = -(-len(order) // batch_size)
    for places in np.array_split(order, n_batches) if n_batches else []:
        pairs = _pairs(owners[places], dataset.items[places])
        variants = dataset.variants
        if variants is not None:
            rows, numbers, weight = _drawn_variants(variants, len(places), epoch, generator)
            others = _pairs(owners[places[rows]], variants.items[numbers, places[rows]])
            pairs = replace(pairs, variants=others, variants_weight=weight)
        yield pairs


def _pairs(users: Int64[np.ndarray, " P"], items: Int[np.ndarray, " P"]) -> Pairs:
    return Pairs(torch.from_numpy(users), torch.from_numpy(items.astype(np.int64)))


def trainable_rows(dataset: SequenceDataset) -> Int64[np.ndarray, " R"]:
    """Rows that hold at least one (item, next real item) pair."""
    return np.flatnonzero((dataset.lengths >= 2) & (dataset.real_lengths >= 1))


def history_batches(
    dataset: SequenceDataset, batch_size: int, max_len: int | None = None
) -> Iterator[tuple[Int64[np.ndarray, " B"], Histories]]:
    """All sequences once, shortest first, with the rows that each batch holds.

    Args:
        dataset: sequences, empty ones allowed.
        batch_size: sequences a batch.
        max_len: positions kept, the newest ones; None keeps all.

    Yields:
        Rows of the dataset, shape (B,), and their histories.
    """
    order = np.argsort(dataset.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        yield rows, histories_of(dataset, rows, max_len)


def histories_of(
    dataset: SequenceDataset, rows: Int64[np.ndarray, " B"], max_len: int | None = None
) -> Histories:
    """The histories of these rows as one padded batch; the newest `max_len` items of each."""
    ends = dataset.offsets[rows + 1]
    starts = dataset.offsets[rows]
    if max_len is not None:
        starts = np.maximum(starts, ends - max_len)
    return Histories(
        users=torch.from_numpy(np.asarray(dataset.users[rows])),
        items=torch.from_numpy(padded(dataset.items, starts, ends)),
        lengths=torch.from_numpy(ends - starts),
    )


def length_buckets(
    lengths: Int64[np.ndarray, " N"],
    batch_size: int,
    generator: np.random.Generator,
    weights: Int64[np.ndarray, " N"] | None = None,
) -> Iterator[Int64[np.ndarray, " B"]]:
    """Shuffled batches of indices whose members have nearly the same length.

    The indices are shuffled, sorted by length within groups of a few dozen batches, cut, and the
    batches shuffled again.

    Args:
        lengths: what to sort by.
        batch_size: indices a batch, on average.
        generator: of the shuffles.
        weights: the batches of a group get about equal sums of these; by default all count the
            same.
    """
    order = generator.permutation(len(lengths))
    batches: list[np.ndarray] = []
    group = batch_size * _BUCKETS
    for first in range(0, len(order), group):
        part = order[first : first + group]
        part = part[np.argsort(lengths[part], kind="stable")]
        if weights is None:
            cuts = np.arange(batch_size, len(part), batch_size)
        else:
            share = _share(weights[part], -(-len(part) // batch_size))
            capped = np.minimum(weights[part], share)
            # a row belongs to the batch in which it begins
            which = ((np.cumsum(capped) - capped) / share + 1e-9).astype(np.int64)
            cuts = np.flatnonzero(np.diff(which)) + 1
        batches.extend(np.split(part, cuts))
    for position in generator.permutation(len(batches)):
        yield batches[position]


def _share(weights: Int64[np.ndarray, " N"], n: int) -> float:
    """What each of n batches is to weigh, rows that weigh more being batches of their own."""
    ordered = np.sort(weights)[::-1]
    heavier = np.arange(min(n, len(ordered)))
    rest = ordered.sum() - np.concatenate([[0], np.cumsum(ordered)])[heavier]
    shares = rest / (n - heavier)
    return float(max(1.0, shares[np.argmax(shares >= ordered[heavier])]))


def padded(
    flat: np.ndarray, starts: Int64[np.ndarray, " B"], ends: Int64[np.ndarray, " B"]
) -> Int64[np.ndarray, "B L"]:
    """The values from each start to its end as one array, zeros after the ends."""
    lengths = ends - starts
    width = max(1, int(lengths.max(initial=0)))
    columns = np.arange(width)
    inside = columns < lengths[:, None]
    where = np.where(inside, starts[:, None] + columns, 0)
    if not len(flat):
        return np.full(where.shape, PAD, dtype=np.int64)
    return np.where(inside, flat[where], PAD).astype(np.int64)
