"""Views: altered versions of a batch of sequences, for contrastive learning.

An operator takes right-padded item numbers (B, L) and their lengths (B,) and returns new ones. Its
inputs stay unchanged, padding stays padding, and every sequence keeps an item. Random numbers are
drawn from torch's default generator, for the whole batch at once.

- Crop, mask and reorder: Xie et al., "Contrastive Learning for Sequential Recommendation", ICDE
  2022. Substitute and insert: Liu, Chen, Li, Yu, McAuley & Xiong, "Contrastive Self-supervised
  Sequential Recommendation with Robust Augmentation", 2021 (arXiv 2108.06479).
- The same target: Qiu, Huang, Yin & Wang, DuoRec, WSDM 2022 (:class:`SameTarget`).
- Learned: Qin et al., MCLRec, SIGIR 2023, a view of a state (:class:`LearnedView`).
- Denoised: items at some positions replaced by those that a denoiser restores there (SimDiffRec,
  CaDiRec); the positions come from :func:`random_positions` and :func:`most_confident`.
- Dropout needs no operator: the encoder sees the same items twice.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int, Int64
from scipy.sparse import coo_array
from torch import Tensor, nn

from diffuserec.data import PAD, SequenceDataset
from diffuserec.data.batches import padded
from diffuserec.errors import ConfigError
from diffuserec.models.encoders import last_states

Ragged = tuple[Int[Tensor, "_ _"], Int[Tensor, " _"]]
"""Item numbers, right-padded, and lengths."""

Ratio = float | Float64[Tensor, " B"]
"""One ratio for all sequences, or one for each."""


def crop(items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], ratio: Ratio) -> Ragged:
    """Keeps one contiguous run of floor(ratio · length) items, at least one."""
    kept, first = _run(lengths, ratio)
    return _cut(items, first, first + kept.clamp(min=1))


def mask(
    items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], ratio: Ratio, mask_id: int
) -> Ragged:
    """Replaces floor(ratio · length) random items, all but one at most, by `mask_id`."""
    n = torch.minimum(_share(lengths, ratio), lengths - 1)
    where = random_positions(lengths, items.shape[1], n)
    return items.masked_fill(where, mask_id), lengths.clone()


def reorder(items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], ratio: Ratio) -> Ragged:
    """Shuffles one contiguous run of floor(ratio · length) items."""
    n, first = _run(lengths, ratio)
    position = torch.arange(items.shape[1], device=items.device).expand_as(items)
    inside = (position >= first[:, None]) & (position < (first + n)[:, None])
    shuffled = first[:, None] + torch.rand(items.shape, device=items.device) * n[:, None]
    keys = torch.where(inside, shuffled, position + (position >= (first + n)[:, None]) * 1.0)
    return items.gather(1, keys.argsort(dim=1, stable=True)), lengths.clone()


def substitute(
    items: Int[Tensor, "B L"],
    lengths: Int[Tensor, " B"],
    ratio: Ratio,
    similar: Int[Tensor, "V K"],
) -> Ragged:
    """Replaces max(1, floor(ratio · length)) random items by one of their K similar ones each."""
    where = random_positions(lengths, items.shape[1], _share(lengths, ratio).clamp(min=1))
    return torch.where(where, _one_of(similar, items), items), lengths.clone()


def insert(
    items: Int[Tensor, "B L"],
    lengths: Int[Tensor, " B"],
    ratio: Ratio,
    similar: Int[Tensor, "V K"],
    max_len: int | None = None,
) -> Ragged:
    """Puts before max(1, floor(ratio · length)) random items one of their K similar ones each.

    The newest `max_len` items of the result are kept.
    """
    n = torch.minimum(_share(lengths, ratio).clamp(min=1), lengths)
    where = random_positions(lengths, items.shape[1], n)
    position = torch.arange(items.shape[1], device=items.device)
    width = items.shape[1] + int(n.max())
    # an item moves up by the insertions at or before it; padding moves behind the end and is cut
    moved = (position + where.cumsum(1)).masked_fill(position >= lengths[:, None], width)
    longer = items.new_full((len(items), width + 1), PAD).scatter_(1, moved, items)
    before = (moved - 1).masked_fill(~where, width)
    longer.scatter_(1, before, _one_of(similar, items))
    return _cut(longer, (lengths + n - (max_len or width)).clamp(min=0), lengths + n)


def sample_two_views(
    items: Int[Tensor, "B L"],
    lengths: Int[Tensor, " B"],
    operators: Sequence[Callable[[Tensor, Tensor], Ragged]],
    distinct: bool = True,
) -> tuple[Ragged, Ragged]:
    """Two views of each sequence, by operators drawn for it at random.

    Args:
        distinct: whether a sequence's two operators differ, if there is more than one.
    """
    chance = torch.rand(2, len(items), len(operators), device=items.device)
    first = chance[0].argmax(1)
    if distinct and len(operators) > 1:
        chance[1].scatter_(1, first[:, None], -1.0)
    return (
        _choose([operator(items, lengths) for operator in operators], first),
        _choose([operator(items, lengths) for operator in operators], chance[1].argmax(1)),
    )


def concat_views(*views: Ragged) -> Ragged:
    """All views as one batch, one after the other, as wide as the widest."""
    width = max(items.shape[1] for items, _ in views)
    return (
        torch.cat([F.pad(items, (0, width - items.shape[1])) for items, _ in views]),
        torch.cat([lengths for _, lengths in views]),
    )


def encode_with_views(
    encode: Callable[[Tensor, Tensor], Tensor], original: Ragged, *views: Ragged
) -> list[Tensor]:
    """States of sequences and of views of them, from one pass of the encoder.

    Returns:
        States of the original, shape (B, L, D), and each view's newest states, shape (B, D).
    """
    n, length = original[0].shape
    items, lengths = concat_views(original, *views)
    states = encode(items, lengths)
    of_views = last_states(states[n:], lengths[n:]).split(n) if views else ()
    return [states[:n, :length], *of_views]


def random_prefix(
    items: Int[Tensor, "B L"], targets: Int[Tensor, "B L"]
) -> tuple[Ragged, Int[Tensor, " B"]]:
    """Items of each sequence up to one of its targets, drawn at random, and that target."""
    chance = torch.rand(items.shape, device=items.device).masked_fill(targets == PAD, -1.0)
    newest = chance.argmax(1)
    prefix = _cut(items, torch.zeros_like(newest), newest + 1)
    return prefix, targets.gather(1, newest[:, None])[:, 0]


def random_positions(
    lengths: Int[Tensor, " B"], width: int, n: Int[Tensor, " B"]
) -> Bool[Tensor, "B L"]:
    """n random real positions of each sequence, or all of them if there are fewer."""
    return most_confident(torch.rand(len(lengths), width, device=lengths.device), lengths, n)


def random_share(eligible: Bool[Tensor, "B L"], ratio: float) -> Bool[Tensor, "B L"]:
    """Each eligible position with chance `ratio`, at least one of every sequence that has any."""
    chance = torch.rand(eligible.shape, device=eligible.device).masked_fill(~eligible, 2.0)
    return eligible & ((chance < ratio) | (chance == chance.amin(1, keepdim=True)))


def most_confident(
    confidence: Float[Tensor, "B L"], lengths: Int[Tensor, " B"], n: Int[Tensor, " B"]
) -> Bool[Tensor, "B L"]:
    """The n real positions of each sequence with the highest confidence, or all if fewer.

    Older positions come first in ties.
    """
    beyond = _beyond(confidence, lengths)
    order = confidence.masked_fill(beyond, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(confidence.shape[1], device=order.device).expand_as(order)
    )
    return (rank < n[:, None]) & ~beyond


class SameTarget:
    """Index of interactions by item: finds another history with the same next item (DuoRec).

    Time and memory grow with the number of interactions. Targets are what training takes for them:
    real items that something precedes, but those that synthetic items were made from.
    """

    def __init__(self, dataset: SequenceDataset, max_len: int) -> None:
        self.log, self.max_len = dataset.log.items, max_len
        n = len(self.log)
        positions = dataset.log_positions
        # of positions that are in no sequence, neither is read
        self.begins = np.zeros(n, dtype=np.int64)
        self.begins[positions] = np.repeat(dataset.starts, dataset.lengths)
        targets = positions[positions > self.begins[positions]]
        for never in dataset.log.non_targets:
            targets = targets[~never[targets]]
        # a sparse matrix in rows is sorted by counting: the positions that hold each item
        where = coo_array(
            (np.ones(len(targets), dtype=bool), (self.log[targets], targets)),
            shape=(dataset.vocab_size, n),
        ).tocsr()
        self.starts, self.positions = where.indptr.astype(np.int64), where.indices.astype(np.int32)
        self.ranks = np.zeros(n, dtype=np.int32)
        self.ranks[self.positions] = np.arange(len(targets)) - np.repeat(
            self.starts[:-1], np.diff(self.starts)
        )

    def sample(
        self, positions: Int[Tensor, " B"], items: Int[Tensor, " B"]
    ) -> tuple[Ragged, Int64[Tensor, " B"]]:
        """The history before another training target that is the same item, chosen at random.

        Args:
            positions: of targets in the dataset's flat log.
            items: the targets: those at the positions or, of an augmented copy, others.

        Returns:
            Item numbers and lengths of the histories, and the positions of the other targets. If
            an item is the target of no other history, the given position itself.
        """
        own, wanted = positions.cpu().numpy(), items.cpu().numpy()
        itself = self.log[own] == wanted
        n_others = self.starts[wanted + 1] - self.starts[wanted] - itself
        drawn = (torch.rand(len(own), dtype=torch.float64).numpy() * n_others).astype(np.int64)
        drawn += itself & (drawn >= self.ranks[own])
        chosen = own.astype(np.int64)
        some = n_others > 0
        chosen[some] = self.positions[(self.starts[wanted] + drawn)[some]]
        starts = np.maximum(self.begins[chosen], chosen - self.max_len)
        before = padded(self.log, starts, chosen)
        lengths = torch.from_numpy(chosen - starts)
        device = positions.device
        view = torch.from_numpy(before).to(device), lengths.to(device)
        return view, torch.from_numpy(chosen).to(device)


class LearnedView(nn.Module):
    """A view of a state, of norm 1: D → D/2 → D/4 → D with GELUs (MCLRec's augmenter).

    Args:
        dim: width D, at least 4.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, dim),
        )

    def forward(self, states: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return F.normalize(self.layers(states), dim=1)


def _choose(versions: Sequence[Ragged], which: Int[Tensor, " B"]) -> Ragged:
    items, lengths = concat_views(*versions)
    index = which * len(which) + torch.arange(len(which), device=which.device)
    return items[index], lengths[index]


def _cut(items: Int[Tensor, "B L"], starts: Int[Tensor, " B"], ends: Int[Tensor, " B"]) -> Ragged:
    lengths = ends - starts
    position = torch.arange(int(lengths.max()), device=items.device)
    found = items.gather(1, (starts[:, None] + position).clamp(max=items.shape[1] - 1))
    return found.masked_fill(position >= lengths[:, None], PAD), lengths


def _share(lengths: Int[Tensor, " B"], ratio: Ratio) -> Int64[Tensor, " B"]:
    if isinstance(ratio, float | int) and not 0 < ratio <= 1:
        raise ConfigError(f"the ratio of a view must be above 0 and at most 1, got {ratio}")
    if isinstance(ratio, Tensor):
        ratio = ratio.cpu()
    # in double precision, which not every device has
    return (lengths.cpu().double() * ratio + 1e-9).long().to(lengths.device)


def _run(
    lengths: Int[Tensor, " B"], ratio: Ratio
) -> tuple[Int64[Tensor, " B"], Int64[Tensor, " B"]]:
    """Length and start of a random run of floor(ratio · length) positions."""
    n = _share(lengths, ratio)
    room = torch.minimum(lengths - n, lengths - 1) + 1
    return n, random_below(room)


def random_below(n: Int[Tensor, " B"]) -> Int64[Tensor, " B"]:
    """A random whole number from 0 to n - 1 for each n."""
    # in double precision, so that rounding never reaches n; not every device has it
    drawn = torch.rand(len(n), dtype=torch.float64)
    return (drawn * n.cpu()).long().to(n.device)


def _one_of(similar: Int[Tensor, "V K"], items: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    drawn = torch.randint(similar.shape[1], items.shape, device=items.device)
    return similar[items, drawn]


def _beyond(values: Tensor, lengths: Int[Tensor, " B"]) -> Bool[Tensor, "B L"]:
    return torch.arange(values.shape[1], device=values.device) >= lengths[:, None]
