"""From ragged sequences to tensors: the only place where padding exists.

Batches are padded on the right and bucketed by length. A causal encoder then needs no mask at all,
because a real position never sees what comes after it, and padding is a few percent.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from diffuserec.data.dataset import PAD, SequenceDataset

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
    """

    users: Int[Tensor, " B"]
    items: Int[Tensor, "B L"]
    lengths: Int[Tensor, " B"]
    targets: Int[Tensor, "B L"]

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.users.to(device),
            self.items.to(device),
            self.lengths.to(device),
            self.targets.to(device),
        )


def training_batches(
    dataset: SequenceDataset,
    batch_size: int,
    max_len: int,
    seed: int,
    epoch: int,
    all_targets: bool = False,
) -> Iterator[Batch]:
    """One epoch of next-item batches, in an order fixed by (seed, epoch).

    All batches of an epoch have about as many targets: a loss that averages over the targets of a
    batch would otherwise give those of long histories, which share batches, less weight.

    Args:
        dataset: sequences; those with fewer than two items teach nothing and are left out.
        batch_size: sequences a batch, on average: fewer long ones, more short ones.
        max_len: positions of a row.
        seed: of the run.
        epoch: from 0.
        all_targets: every item that something precedes is a target once, long sequences taking
            several rows (:func:`windows`); otherwise each user is one row, its newest positions.
    """
    if all_targets:
        rows, ends = windows(dataset, max_len)
    else:
        rows = trainable_rows(dataset)
        ends = dataset.offsets[rows + 1]
    starts = np.maximum(dataset.offsets[rows], ends - max_len - 1)
    n_targets = ends - starts - 1
    if dataset.synthetic.strides != (0,):
        real = np.concatenate([[0], np.cumsum(~dataset.synthetic)])
        n_targets = real[ends] - real[starts + 1]
    yield from _batches(dataset, rows, ends, n_targets, batch_size, max_len, seed, epoch)


def windows(
    dataset: SequenceDataset, max_len: int
) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """Row and flat end of windows of max_len targets each, counted from a sequence's newest item.

    Together they hold every item that something precedes as a target once; the oldest window of a
    sequence may be shorter. Windows without a real target are left out.
    """
    n_windows = -(-np.maximum(dataset.lengths - 1, 0) // max_len)
    rows = np.repeat(np.arange(len(dataset)), n_windows)
    first = np.repeat(np.cumsum(n_windows) - n_windows, n_windows)
    ends = dataset.offsets[rows + 1] - (np.arange(len(rows)) - first) * max_len
    if dataset.synthetic.strides != (0,):
        real = np.concatenate([[0], np.cumsum(~dataset.synthetic)])
        starts = np.maximum(dataset.offsets[rows], ends - max_len - 1)
        useful = real[ends] > real[starts + 1]
        rows, ends = rows[useful], ends[useful]
    return rows, ends


def prefix_batches(
    dataset: SequenceDataset, batch_size: int, max_len: int, seed: int, epoch: int
) -> Iterator[Batch]:
    """One epoch of next-item batches, a row for every (prefix, next real item) of every user.

    The rows are those of :func:`prefixes`; each has one target, at its last position.
    Arguments as for :func:`training_batches`.
    """
    rows, ends = prefixes(dataset)
    one = np.ones(len(rows), dtype=np.int64)
    for batch in _batches(dataset, rows, ends, one, batch_size, max_len, seed, epoch):
        last = torch.arange(batch.targets.shape[1]) == batch.lengths[:, None] - 1
        yield Batch(batch.users, batch.items, batch.lengths, batch.targets * last)


def prefixes(
    dataset: SequenceDataset,
) -> tuple[Int64[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
    """Row and flat position after the target of every real item that something precedes."""
    owner = np.repeat(np.arange(len(dataset)), dataset.lengths)
    position = np.arange(len(dataset.items))
    usable = position > dataset.offsets[owner]
    if dataset.synthetic.strides != (0,):
        usable &= ~dataset.synthetic
    return owner[usable], position[usable] + 1


def _batches(
    dataset: SequenceDataset,
    rows: Int64[np.ndarray, " R"],
    row_ends: Int64[np.ndarray, " R"],
    n_targets: Int64[np.ndarray, " R"],
    batch_size: int,
    max_len: int,
    seed: int,
    epoch: int,
) -> Iterator[Batch]:
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    lengths = np.minimum(row_ends - dataset.offsets[rows] - 1, max_len)
    for chosen in length_buckets(lengths, batch_size, generator, n_targets):
        index, ends = rows[chosen], row_ends[chosen]
        starts = np.maximum(dataset.offsets[index], ends - max_len - 1)
        window = _pad(dataset.items, starts, ends)
        targets = window[:, 1:].copy()
        if dataset.synthetic.strides != (0,):
            targets[_pad(dataset.synthetic, starts, ends)[:, 1:] != 0] = PAD
        items = window[:, :-1].copy()
        real = ends - starts - 1
        items[np.arange(items.shape[1]) >= real[:, None]] = PAD
        yield Batch(
            users=torch.from_numpy(np.asarray(dataset.users[index])),
            items=torch.from_numpy(items),
            lengths=torch.from_numpy(real),
            targets=torch.from_numpy(targets),
        )


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
        items=torch.from_numpy(_pad(dataset.items, starts, ends)),
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
            before = np.cumsum(weights[part]) - weights[part]
            n_batches = -(-len(part) // batch_size)
            which = before * n_batches // max(1, int(weights[part].sum()))
            cuts = np.flatnonzero(np.diff(which)) + 1
        batches.extend(np.split(part, cuts))
    for position in generator.permutation(len(batches)):
        yield batches[position]


def _pad(
    flat: np.ndarray, starts: Int64[np.ndarray, " B"], ends: Int64[np.ndarray, " B"]
) -> Int64[np.ndarray, "B L"]:
    lengths = ends - starts
    width = max(1, int(lengths.max(initial=0)))
    columns = np.arange(width)
    inside = columns < lengths[:, None]
    where = np.where(inside, starts[:, None] + columns, 0)
    if not len(flat):
        return np.full(where.shape, PAD, dtype=np.int64)
    return np.where(inside, flat[where], PAD).astype(np.int64)
