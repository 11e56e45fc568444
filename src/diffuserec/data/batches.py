"""From ragged sequences to tensors: the only place where padding exists.

Batches are padded on the right and bucketed by length. A causal encoder then needs no mask at all,
because a real position never sees what comes after it, and padding is a few percent.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64
from torch import Tensor

from diffuserec.data.catalog import PAD
from diffuserec.data.copies import AugmentedCopies
from diffuserec.data.dataset import SequenceDataset, offsets_of
from diffuserec.data.use import Use

Examples = Literal["per_user", "windows", "prefixes", "newest_prefixes", "whole_prefixes", "last"]
"""Ways to cut sequences into training examples: see :func:`training_examples`."""

ONE_TARGET = ("prefixes", "newest_prefixes", "last")
"""Those whose examples have one target each, the item after the last input item."""

_OF_NEWEST = ("newest_prefixes", "whole_prefixes")
"""Those that see nothing of a sequence but its newest items."""

_BUCKETS = 32
"""Batches that are sorted by length together: enough to leave little padding, few enough that the
composition of a batch stays random."""


_USE = 2**40
"""Added to the number of an epoch for the random numbers of :class:`Use`."""

_BESIDE = 8
"""Examples that are trained on beside a batch at least, or none: for losses that contrast them."""

_TOGETHER = 2**19
"""Training examples that are shuffled together."""

_BLOCK = 2**13
"""Examples of consecutive sequences that stay together where there are more."""

_CELLS = 2**20
"""Cells of a padded batch of histories: 8 MiB, so that a long history cannot fill the memory."""


@dataclass(frozen=True, eq=False)
class Histories:
    """Items of a batch of users, as a recommender is given them.

    Attributes:
        users: user numbers, shape (B,).
        items: item numbers, oldest first, zeros after the end, shape (B, L).
        lengths: number of items of each history, shape (B,); 0 if it is empty.
        times: time of each item, zeros after the end, shape (B, L); None if they are not known or
            nobody asked for them.
    """

    users: Int[Tensor, " B"]
    items: Int[Tensor, "B L"]
    lengths: Int[Tensor, " B"]
    times: Int[Tensor, "B L"] | None = None

    def to(self, device: torch.device) -> "Histories":
        """The histories on a device."""
        times = None if self.times is None else moved(self.times, device)
        return Histories(
            moved(self.users, device), moved(self.items, device), moved(self.lengths, device), times
        )

    def select(self, which: Bool[Tensor, " B"]) -> "Histories":
        """Some of the histories."""
        times = None if self.times is None else self.times[which]
        return Histories(self.users[which], self.items[which], self.lengths[which], times)

    def aligned_right(self, width: int) -> Int[Tensor, "B W"]:
        """Newest `width` items of each history, the last one in the last column, zeros in front.

        Encoders of a fixed length take this form.
        """
        columns = self.lengths[:, None] - width + torch.arange(width, device=self.items.device)
        items = self.items.gather(1, columns.clamp(0, max(0, self.items.shape[1] - 1)))
        return items.masked_fill(columns < 0, PAD)

    def truncate(self, max_len: int) -> "Histories":
        """The histories cut to their newest `max_len` items."""
        if self.items.shape[1] <= max_len:
            return self
        first = (self.lengths - max_len).clamp(min=0)
        columns = first[:, None] + torch.arange(max_len, device=self.items.device)
        outside = columns >= self.lengths[:, None]
        columns = columns.clamp(max=self.items.shape[1] - 1)
        items = self.items.gather(1, columns).masked_fill(outside, PAD)
        times = None
        if self.times is not None:
            times = self.times.gather(1, columns).masked_fill(outside, 0)
        return Histories(self.users, items, self.lengths.clamp(max=max_len), times)


@dataclass(frozen=True, eq=False)
class Batch:
    """Histories with the item that follows each position.

    Attributes:
        users: user numbers, shape (B,).
        items: item numbers, oldest first, zeros after the end, shape (B, L).
        lengths: number of input items, shape (B,).
        targets: the next item at each position, shape (B, L); 0 if there is none to learn (padding,
            and positions before an item that is synthetic or never a target).
        last_target_index: position in the dataset's flat log (not in its `items`) of the item
            after the last input item, which is the last target if it may be one, shape (B,).
        real: True for positions whose item may be predicted: no padding, not synthetic and not one
            that synthetic items were made from, shape (B, L); by default for all that hold an item.
        copies: augmented copies of these sequences, or augmented sequences of any users, trained on
            with them; or None.
        copies_weight: weight of their loss against that of these.
        times: time of each input item, shape (B, L), zeros after the end; None if they are not
            known or nobody asked for them.
        last_item: the item after the last input item, where another one may be learned in its
            place; None where none is, shape (B,).
        with_target: numbers of the positions that have a target, of B·L, shape (P,); None before
            the batch is moved to a device. A GPU that had to count them would make the program wait
            for all that it has been told to do.
    """

    users: Int[Tensor, " B"]
    items: Int[Tensor, "B L"]
    lengths: Int[Tensor, " B"]
    targets: Int[Tensor, "B L"]
    last_target_index: Int[Tensor, " B"]
    real: Bool[Tensor, "B L"] = None  # type: ignore[assignment]
    copies: "Batch | None" = None
    copies_weight: float = 0.0
    times: Int[Tensor, "B L"] | None = None
    last_item: Int[Tensor, " B"] | None = None
    with_target: Int[Tensor, " P"] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.real is None:
            object.__setattr__(self, "real", self.items > 0)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the batch by name, those of its copies and ``with_target`` left out."""
        return {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name != "with_target"
        }

    @property
    def newest_targets(self) -> Int[Tensor, " B"]:
        """The target of each sequence's newest item; of an empty one's first position."""
        return self._last_target()[:, 0]

    def with_last_target(self) -> Histories:
        """The sequences with the item of their last target, which ``items`` leaves out, at the
        end, whatever is learned in its place."""
        last = self._last_target()
        if self.last_item is not None:
            last = torch.where(last > 0, self.last_item[:, None], PAD)
        items = torch.cat([self.items, torch.zeros_like(self.items[:, :1])], dim=1)
        items = items.scatter(1, self.lengths[:, None], last)
        return Histories(self.users, items, self.lengths + (last[:, 0] > 0))

    def learned_with_last_target(self) -> Int[Tensor, "B M"]:
        """What is learned at each position of :meth:`with_last_target`: its item, or another."""
        items = self.with_last_target().items
        learned = torch.where(self.targets > 0, self.targets, items[:, 1:])
        return torch.cat([items[:, :1], learned], dim=1)

    def real_with_last_target(self) -> Bool[Tensor, "B M"]:
        """True for positions of :meth:`with_last_target` whose item may be predicted."""
        real = torch.cat([self.real, torch.zeros_like(self.real[:, :1])], dim=1)
        return real.scatter(1, self.lengths[:, None], self._last_target() > 0)

    def _last_target(self) -> Int[Tensor, "B 1"]:
        return self.targets.gather(1, (self.lengths - 1).clamp(min=0)[:, None])

    def to(self, device: torch.device) -> "Batch":
        """The batch and its copies on a device."""
        tensors = {name: moved(tensor, device) for name, tensor in self.tensors.items()}
        copies = None if self.copies is None else self.copies.to(device)
        batch = Batch(**tensors, copies=copies, copies_weight=self.copies_weight)
        with_target = self.targets.flatten().nonzero()[:, 0]
        object.__setattr__(batch, "with_target", moved(with_target, device))
        return batch


@dataclass(frozen=True, eq=False)
class Pairs:
    """Interactions of a batch, for models that ignore their order.

    Attributes:
        users: user numbers, shape (P,).
        items: the item of each interaction, shape (P,).
        copies: interactions of augmented copies, trained on with these; or None.
        copies_weight: weight of their loss against that of the originals.
    """

    users: Int[Tensor, " P"]
    items: Int[Tensor, " P"]
    copies: "Pairs | None" = None
    copies_weight: float = 0.0

    def to(self, device: torch.device) -> "Pairs":
        """The interactions and their copies on a device."""
        copies = None if self.copies is None else self.copies.to(device)
        users, items = moved(self.users, device), moved(self.items, device)
        return Pairs(users, items, copies, self.copies_weight)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device.

    On the way to a GPU it goes through pinned memory, so that the program does not wait for the
    copy: it makes the next batch meanwhile.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def training_batches(
    dataset: SequenceDataset,
    batch_size: int,
    max_len: int,
    seed: int,
    epoch: int,
    examples: Examples = "per_user",
    first_items: bool = False,
    by_length: bool = True,
    with_times: bool = False,
) -> Iterator[Batch]:
    """One epoch of next-item batches, in an order fixed by (seed, epoch).

    If the dataset has augmented copies, each batch comes with copies of its own examples; if real
    and augmented sequences are both trained on, each comes with some of the augmented ones. All
    batches have about as many targets: a loss that averages over the targets of a batch would
    otherwise give less weight to the targets of long histories, which share batches.

    Args:
        dataset: sequences; any with fewer than two items are left out.
        batch_size: examples a batch, on average: fewer long ones, more short ones.
        max_len: positions of an example.
        examples, first_items: what an example is: see :func:`training_examples`.
        by_length: whether a batch has examples of like length, so that little is padded, or any.
        with_times: give the times of items, where the dataset has them.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    n_of = partial(_n_examples, max_len=max_len, examples=examples, first_items=first_items)
    for main, beside in _read_together(dataset, n_of, seed, epoch, generator):
        own = _Windows.of(main.sequences, max_len, examples, first_items)
        buckets = list(
            length_buckets(own.lengths, batch_size, generator, own.n_targets, by_length=by_length)
        )
        others = None if beside is None else _Windows.of(beside.sequences, max_len, examples)
        parts = [] if others is None else _divided(others, len(buckets), generator, by_length)
        weight_beside = 0.0 if dataset.use is None else dataset.use.weight or 0.0
        for number, chosen in enumerate(buckets):
            windows = own.users[chosen], own.starts[chosen], own.ends[chosen]
            batch = _batch(main.sequences, *windows, with_times, main)
            if dataset.copies is not None:
                copies, weight = _copies_of(dataset.copies, windows, epoch, generator, batch.times)
                batch = replace(batch, copies=copies, copies_weight=weight)
            if others is not None and beside is not None and len(parts[number]):
                part = parts[number]
                windows = others.users[part], others.starts[part], others.ends[part]
                copies = _batch(beside.sequences, *windows, with_times, beside)
                # both losses are means over the targets of their own
                share = float(others.n_targets[part].sum() / own.n_targets[chosen].sum())
                batch = replace(batch, copies=copies, copies_weight=weight_beside * share)
            for batch_part in (batch, batch.copies):
                if examples in ONE_TARGET and batch_part is not None:
                    positions = torch.arange(batch_part.items.shape[1])
                    last = (batch_part.lengths[:, None] - 1).clamp(min=0)
                    batch_part.targets[positions != last] = PAD
            yield batch


def _read_together(
    dataset: SequenceDataset,
    n_of: Callable[[SequenceDataset], Int64[np.ndarray, " U"]],
    seed: int,
    epoch: int,
    generator: np.random.Generator,
) -> Iterator[tuple["_Epoch", "_Epoch | None"]]:
    """What is shuffled together of what an epoch's batches are made of, and of what is beside."""
    if dataset.use is not None:
        yield _of_use(dataset, dataset.use, seed, epoch)
        return
    for part in _shuffled(dataset, n_of, generator):
        yield _Epoch(part), None


def _shuffled(
    dataset: SequenceDataset,
    n_of: Callable[[SequenceDataset], Int64[np.ndarray, " U"]],
    generator: np.random.Generator,
) -> Iterator[SequenceDataset]:
    """The sequences in parts, the examples of each of which are shuffled together.

    A part is all of them, or, where they have more than half a million examples, 32 to 64 blocks
    of consecutive sequences, drawn at random: memory is needed for one part, and the disk is read a
    block at a time.

    Args:
        n_of: examples of each sequence of a dataset.
    """
    begins, total, n_sequences = [np.zeros(0, dtype=np.int64)], 0, 0
    for part in dataset.parts():
        n_examples = n_of(part)
        before = total + np.cumsum(n_examples) - n_examples
        previous = np.concatenate([[total - 1 if total else -_BLOCK], before[:-1]])
        block = before // _BLOCK
        begins.append(np.flatnonzero(block != previous // _BLOCK) + n_sequences)
        total += int(n_examples.sum())
        n_sequences += len(part)
    if total <= _TOGETHER:
        yield dataset
        return
    cuts = np.append(np.concatenate(begins), n_sequences)
    order = generator.permutation(len(cuts) - 1)
    for chosen in np.array_split(order, -(-len(order) * _BLOCK // _TOGETHER)):
        yield dataset.select(
            np.concatenate([np.arange(cuts[number], cuts[number + 1]) for number in chosen])
        )


@dataclass(frozen=True, eq=False)
class _Windows:
    """Training examples as windows of the flat log.

    Attributes:
        users: user number of each, shape (R,).
        starts: position of its first item.
        ends: position after its last target.
        n_targets: targets in it.
    """

    users: Int64[np.ndarray, " R"]
    starts: Int64[np.ndarray, " R"]
    ends: Int64[np.ndarray, " R"]
    n_targets: Int64[np.ndarray, " R"]

    @property
    def lengths(self) -> Int64[np.ndarray, " R"]:
        """Input items of each."""
        lengths: np.ndarray = np.subtract(self.ends, self.starts) - 1
        return lengths

    @staticmethod
    def of(
        dataset: SequenceDataset, max_len: int, examples: Examples, first_items: bool = False
    ) -> "_Windows":
        """The examples of :func:`training_examples`."""
        index, ends = training_examples(dataset, max_len, examples, first_items)
        starts = np.maximum(dataset.starts[index], ends - max_len - 1)
        if examples in _OF_NEWEST:
            starts = np.maximum(starts, dataset.ends[index] - max_len)
        one = examples in ONE_TARGET
        n_targets = np.ones_like(starts) if one else _n_targets(dataset, starts, ends)
        return _Windows(np.asarray(dataset.users[index]), starts, ends, n_targets)


@dataclass(frozen=True, eq=False)
class _Epoch:
    """Sequences that an epoch reads.

    Attributes:
        sequences: the dataset itself, or a compact one.
        learned: what is learned at each position of their flat log, if not the item there.
        positions: of the items of their flat log in that of the dataset, if they are another's.
    """

    sequences: SequenceDataset
    learned: Int[np.ndarray, " N"] | None = None
    positions: Int64[np.ndarray, " N"] | None = None

    def joined(self, other: "_Epoch") -> "_Epoch":
        """These sequences, and others after them."""
        pairs = (self.learned, other.learned), (self.positions, other.positions)
        learned, positions = (
            None if one is None or two is None else np.concatenate([one, two]) for one, two in pairs
        )
        return _Epoch(self.sequences.joined(other.sequences), learned, positions)


def _of_use(
    dataset: SequenceDataset, use: Use, seed: int, epoch: int
) -> tuple[_Epoch, _Epoch | None]:
    """What an epoch's batches are made of, and what is trained on beside them; see :class:`Use`."""
    generator = np.random.Generator(np.random.Philox(key=[seed, _USE + epoch]))
    whole, positions = dataset.compact(), dataset.log_positions
    dropped = generator.random(len(whole)) < use.dropout
    learned = whole.items
    if whole.use is not None and whole.use.soft is not None:
        learned = whole.use.soft.drawn(whole.items, generator)
    owners = np.repeat(np.arange(len(whole)), whole.lengths)
    if use.weight is None:
        kept = ~(whole.synthetic & dropped[owners])
        context = whole.context_only
        read = whole.with_items(
            whole.items[kept],
            np.where(dropped, whole.real_lengths, whole.lengths),
            whole.synthetic[kept],
            None if whole.timestamps is None else whole.timestamps[kept],
            None if context is None else (context & ~dropped[owners])[kept],
        )
        return _Epoch(read, learned[kept], positions[kept]), None
    real = ~whole.synthetic
    main = _Epoch(dataset.alone, learned[real], positions[real])
    chosen = (whole.real_lengths < whole.lengths) & ~dropped
    beside = _Epoch(
        replace(whole, use=None).select(chosen).compact(),
        learned[chosen[owners]],
        positions[chosen[owners]],
    )
    if use.rows is not None:
        order = np.argsort(whole.users, kind="stable")
        owner = order[np.searchsorted(whole.users[order], use.rows.users)]
        kept = ~dropped[owner]
        rows = use.rows.select(kept).compact()
        # a sequence of these ends where its user's does
        ahead = np.repeat(dataset.ends[owner[kept]] - rows.ends, rows.lengths)
        rows_at = np.maximum(np.arange(len(rows.items)) + ahead, 0)
        beside = beside.joined(_Epoch(rows, rows.items, rows_at))
    return main, beside


def _divided(
    windows: _Windows, n: int, generator: np.random.Generator, by_length: bool
) -> list[Int64[np.ndarray, " B"]]:
    """Indices of examples in n parts of about one size and of like lengths; some are empty where
    there are few examples."""
    parts = [np.zeros(0, dtype=np.int64)] * n
    number = len(windows.users)
    n_filled = min(n, -(-number // _BESIDE))
    if n_filled:
        size = -(-number // n_filled)
        buckets = length_buckets(windows.lengths, size, generator, by_length=by_length)
        filled = np.array_split(np.concatenate(list(buckets)), n_filled)
        for at, part in zip(np.arange(n_filled) * n // n_filled, filled, strict=True):
            parts[at] = part
    return parts


def batch_of(dataset: SequenceDataset, index: Int64[np.ndarray, " B"], max_len: int) -> Batch:
    """Chosen sequences, of two items or more, as one batch of an example each."""
    ends = dataset.ends[index]
    starts = np.maximum(dataset.starts[index], ends - max_len - 1)
    return _batch(dataset, np.asarray(dataset.users[index]), starts, ends)


def _batch(
    dataset: SequenceDataset,
    users: Int64[np.ndarray, " B"],
    starts: Int64[np.ndarray, " B"],
    ends: Int64[np.ndarray, " B"],
    with_times: bool = False,
    read: _Epoch | None = None,
) -> Batch:
    learned = None if read is None else read.learned
    items, targets, lengths = _shifted(dataset.log.items, starts, ends, learned)
    real = items > 0
    for never in dataset.log.non_targets:
        context = padded(never, starts, ends, 2) != 0
        targets[context[:, 1:]] = PAD
        real &= ~context[:, :-1]
    last = ends - 1
    if read is not None and read.positions is not None:
        last = read.positions[last]
    return Batch(
        users=torch.from_numpy(np.asarray(users)),
        items=torch.from_numpy(items),
        lengths=torch.from_numpy(lengths),
        targets=torch.from_numpy(targets),
        last_target_index=torch.from_numpy(last),
        real=torch.from_numpy(real),
        # a window ends with its last target, whose time nobody knows beforehand
        times=_times(dataset, starts, ends - 1) if with_times else None,
        last_item=None if learned is None else torch.from_numpy(dataset.log.items[ends - 1]).long(),
    )


def _times(
    dataset: SequenceDataset, starts: Int64[np.ndarray, " B"], ends: Int64[np.ndarray, " B"]
) -> Int[Tensor, "B L"] | None:
    times = dataset.log.timestamps
    return None if times is None else torch.from_numpy(padded(times, starts, ends))


def _shifted(
    flat: Int[np.ndarray, " N"],
    starts: Int64[np.ndarray, " B"],
    ends: Int64[np.ndarray, " B"],
    learned: Int[np.ndarray, " N"] | None = None,
) -> tuple[Int64[np.ndarray, "B L"], Int64[np.ndarray, "B L"], Int64[np.ndarray, " B"]]:
    """Padded inputs, the item that follows each of them, and the inputs' lengths.

    A window of one item has no input; the item is the target of the first position.

    Args:
        learned: what is learned at each position of `flat`; None takes the items themselves.
    """
    window = padded(flat, starts, ends, 2)
    items = window[:, :-1].copy()
    if learned is not None:
        window = padded(learned, starts, ends, 2)
    targets = window[:, 1:].copy()
    lengths = ends - starts - 1
    targets[lengths == 0, 0] = window[lengths == 0, 0]
    items[np.arange(items.shape[1]) >= lengths[:, None]] = PAD
    return items, targets, lengths


def _copies_of(
    copies: AugmentedCopies,
    windows: tuple[np.ndarray, np.ndarray, np.ndarray],
    epoch: int,
    generator: np.random.Generator,
    times: Int[Tensor, "B L"] | None,
) -> tuple[Batch, float]:
    """Windows of the epoch's copies, at the originals' times, and the weight of their loss."""
    originals, numbers, weight = _drawn_copies(copies, len(windows[0]), epoch, generator)
    users, starts, ends = (array[originals] for array in windows)
    shift = numbers * copies.items.shape[1]
    items, targets, lengths = _shifted(copies.items.reshape(-1), starts + shift, ends + shift)
    batch = Batch(
        users=torch.from_numpy(users),
        items=torch.from_numpy(items),
        lengths=torch.from_numpy(lengths),
        targets=torch.from_numpy(targets),
        last_target_index=torch.from_numpy(ends - 1),
        times=None if times is None else times[torch.from_numpy(originals)],
    )
    return batch, weight


def _drawn_copies(
    copies: AugmentedCopies, n_examples: int, epoch: int, generator: np.random.Generator
) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"], float]:
    """Indices of examples, number of the copy of each to train on, and the weight of the loss."""
    schedule = copies.schedule
    stage = np.array(schedule.stage(epoch, len(copies)))
    originals, weight = np.arange(n_examples), schedule.weight * len(stage)
    if schedule.copies_per_step == "all":
        return np.tile(originals, len(stage)), np.repeat(stage, n_examples), weight
    return originals, generator.choice(stage, n_examples), weight


def training_examples(
    dataset: SequenceDataset,
    max_len: int,
    examples: Examples = "per_user",
    first_items: bool = False,
) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " R"]]:
    """Index of each training example's sequence, and the position after its last target.

    Positions are counted in the flat log. Every item with another before it is a target unless the
    log says that it never is; examples without a target are left out.

    Args:
        examples: ``per_user``: one example a sequence, with a target at each of the newest
            `max_len` positions. ``windows``: as many such examples as it takes for every item to
            be a target once, counted from the newest; the first targets of a window have little
            context. ``prefixes``: an example for every item, its only target.
            ``newest_prefixes``: the same for a sequence's newest `max_len` items alone, as if it
            had no others. ``whole_prefixes``: those, with a target at each of their positions.
            ``last``: one example a sequence, the newest item its only target.
        first_items: whether the first item of two or more is a target too, of an empty history;
            for prefixes.
    """
    n_of = _n_examples(dataset, max_len, examples, first_items)
    index = np.repeat(np.arange(len(dataset)), n_of)
    number = np.arange(len(index)) - np.repeat(offsets_of(n_of)[:-1], n_of)
    ends = dataset.ends[index]
    if examples == "windows":
        ends -= number * max_len
    elif examples in ("prefixes", *_OF_NEWEST):
        ends += 1 + number - n_of[index]
    starts = np.maximum(dataset.starts[index], ends - max_len - 1)
    if examples in ONE_TARGET:
        starts = ends - 2
    useful = _n_targets(dataset, starts, ends) > 0
    return index[useful], ends[useful]


def n_training_examples(
    dataset: SequenceDataset,
    max_len: int,
    examples: Examples = "per_user",
    first_items: bool = False,
) -> tuple[int, int]:
    """Number of the examples of :func:`training_examples`, and of all their targets."""
    n = n_targets = 0
    for part in dataset.parts():
        found = _Windows.of(part, max_len, examples, first_items)
        n += len(found.n_targets)
        n_targets += int(found.n_targets.sum())
    return n, n_targets


def _n_examples(
    dataset: SequenceDataset, max_len: int, examples: Examples, first_items: bool
) -> Int64[np.ndarray, " U"]:
    """Examples of each sequence, those without a target that may be one included."""
    lengths = dataset.lengths
    if examples == "windows":
        return np.asarray(-(-np.maximum(lengths - 1, 0) // max_len))
    if examples in ("prefixes", *_OF_NEWEST):
        kept = np.minimum(lengths, max_len) if examples in _OF_NEWEST else lengths
        with_first = first_items and examples in ONE_TARGET
        return np.where(kept >= 2, kept if with_first else kept - 1, 0)
    return (lengths >= 2).astype(np.int64)


def _n_targets(
    dataset: SequenceDataset, starts: Int64[np.ndarray, " R"], ends: Int64[np.ndarray, " R"]
) -> Int64[np.ndarray, " R"]:
    """Number of items in [start + 1, end) that may be targets."""
    counted: np.ndarray = np.asarray(ends - starts - 1)
    if not dataset.log.non_targets:
        return counted
    for rows in bounded_batches(ends - starts, _TOGETHER):
        marks = [padded(flags, starts[rows], ends[rows], 2) for flags in dataset.log.non_targets]
        counted[rows] -= np.any(marks, axis=0)[:, 1:].sum(1)
    return counted


def pair_batches(
    dataset: SequenceDataset, batch_size: int, seed: int, epoch: int
) -> Iterator[Pairs]:
    """Every real interaction once, shuffled by (seed, epoch), in batches of about one size.

    If the dataset has augmented copies, each batch comes with copies of its own interactions.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    for part in _shuffled(dataset, attrgetter("real_lengths"), generator):
        owners = np.repeat(np.asarray(part.users), part.lengths)
        order = generator.permutation(np.flatnonzero(~part.synthetic))
        n_batches = -(-len(order) // batch_size)
        copies = part.copies
        in_log = None if copies is None else part.log_positions
        for chosen in np.array_split(order, n_batches) if n_batches else []:
            pairs = _pairs(owners[chosen], part.items[chosen])
            if copies is not None and in_log is not None:
                originals, numbers, weight = _drawn_copies(copies, len(chosen), epoch, generator)
                again = chosen[originals]
                others = _pairs(owners[again], copies.items[numbers, in_log[again]])
                pairs = replace(pairs, copies=others, copies_weight=weight)
            yield pairs


def _pairs(users: Int64[np.ndarray, " P"], items: Int[np.ndarray, " P"]) -> Pairs:
    return Pairs(torch.from_numpy(users), torch.from_numpy(items.astype(np.int64)))


def trainable_sequences(dataset: SequenceDataset) -> Int64[np.ndarray, " S"]:
    """Indices of sequences with an item after the first that may be a target."""
    index = np.flatnonzero(dataset.lengths >= 2)
    return index[_n_targets(dataset, dataset.starts[index], dataset.ends[index]) > 0]


def history_batches(
    dataset: SequenceDataset,
    batch_size: int,
    max_len: int | None = None,
    with_times: bool = False,
) -> Iterator[tuple[Int64[np.ndarray, " B"], Histories]]:
    """All sequences once, shortest first, in batches with their indices.

    Args:
        batch_size: sequences a batch; fewer where they are very long.
        max_len: newest items kept of each; None keeps all.
        with_times: give the times of items, where the dataset has them.

    Yields:
        Indices of the sequences, shape (B,), and their histories.
    """
    for index in index_batches(dataset, batch_size, max_len):
        yield index, histories_of(dataset, index, max_len, with_times)


def index_batches(
    dataset: SequenceDataset, batch_size: int, max_len: int | None = None
) -> Iterator[Int64[np.ndarray, " B"]]:
    """Indices of all sequences once, shortest first, so that batches hold little padding.

    Args:
        batch_size: sequences a batch; fewer where they are very long.
        max_len: newest items kept of each; None keeps all.
    """
    order = np.argsort(dataset.lengths, kind="stable")
    for part in bounded_batches(dataset.lengths[order], batch_size, max_len):
        yield order[part]


def bounded_batches(
    lengths: Int64[np.ndarray, " N"], batch_size: int, max_len: int | None = None
) -> Iterator[slice]:
    """Consecutive sequences in batches whose padded cells are bounded, whatever the lengths.

    Args:
        lengths: of the sequences, in their order.
        batch_size: sequences a batch at most.
        max_len: newest items kept of each; None keeps all.

    Yields:
        Batches of up to `batch_size` sequences and 2²⁰ cells; a longer sequence is one alone.
    """
    if max_len is not None:
        lengths = np.minimum(lengths, max_len)
    first = 0
    while first < len(lengths):
        width = np.maximum.accumulate(lengths[first : first + batch_size])
        n = max(1, int((width * np.arange(1, len(width) + 1) <= _CELLS).sum()))
        yield slice(first, first + n)
        first += n


def histories_of(
    dataset: SequenceDataset,
    index: Int64[np.ndarray, " B"],
    max_len: int | None = None,
    with_times: bool = False,
) -> Histories:
    """Chosen sequences as one padded batch of histories, cut to their newest `max_len` items.

    Args:
        with_times: give the times of items, where the dataset has them.
    """
    starts, ends = dataset.starts[index], dataset.ends[index]
    if max_len is not None:
        starts = np.maximum(starts, ends - max_len)
    return Histories(
        users=torch.from_numpy(np.asarray(dataset.users[index])),
        items=torch.from_numpy(padded(dataset.log.items, starts, ends)),
        lengths=torch.from_numpy(ends - starts),
        times=_times(dataset, starts, ends) if with_times else None,
    )


def length_buckets(
    lengths: Int64[np.ndarray, " N"],
    batch_size: int,
    generator: np.random.Generator,
    weights: Int64[np.ndarray, " N"] | None = None,
    by_length: bool = True,
) -> Iterator[Int64[np.ndarray, " B"]]:
    """Shuffled batches of indices whose members have nearly the same length.

    The indices are shuffled, sorted by length within groups of a few dozen batches, cut, and the
    batches shuffled again.

    Args:
        batch_size: indices a batch, on average.
        weights: the batches of a group get about equal sums of weights; by default all weigh 1.
        by_length: False leaves out the sorting.
    """
    order = generator.permutation(len(lengths))
    batches: list[np.ndarray] = []
    group = batch_size * _BUCKETS
    for first in range(0, len(order), group):
        part = order[first : first + group]
        if by_length:
            part = part[np.argsort(lengths[part], kind="stable")]
        if weights is None:
            cuts = np.arange(batch_size, len(part), batch_size)
        else:
            share = _share(weights[part], -(-len(part) // batch_size))
            capped = np.minimum(weights[part], share)
            # an index belongs to the batch in which it begins
            which = ((np.cumsum(capped) - capped) / share + 1e-9).astype(np.int64)
            cuts = np.flatnonzero(np.diff(which)) + 1
        batches.extend(np.split(part, cuts))
    for position in generator.permutation(len(batches)):
        yield batches[position]


def _share(weights: Int64[np.ndarray, " N"], n: int) -> float:
    """Weight that each of n batches should have; a heavier index is a batch alone."""
    ordered = np.sort(weights)[::-1]
    heavier = np.arange(min(n, len(ordered)))
    rest = ordered.sum() - np.concatenate([[0], np.cumsum(ordered)])[heavier]
    shares = rest / (n - heavier)
    return float(max(1.0, shares[np.argmax(shares >= ordered[heavier])]))


def padded(
    flat: np.ndarray,
    starts: Int64[np.ndarray, " B"],
    ends: Int64[np.ndarray, " B"],
    least: int = 1,
) -> Int64[np.ndarray, "B L"]:
    """Values from each start to its end as one array of `least` columns or more, zeros after."""
    lengths = ends - starts
    width = max(least, int(lengths.max(initial=0)))
    columns = np.arange(width)
    inside = columns < lengths[:, None]
    where = np.where(inside, starts[:, None] + columns, 0)
    if not len(flat):
        return np.full(where.shape, PAD, dtype=np.int64)
    return np.where(inside, flat[where], PAD).astype(np.int64)
