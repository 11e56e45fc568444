"""Ranks and lists: what may be shown and how ties break, decided once.

Methods score; they never hide anything. Here padding is forbidden, seen items are hidden where
asked, a target's rank is counted (not sorted), and ties get the mean of the ranks they span.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from diffuserec.data import SequenceDataset
from diffuserec.models.retrieval.blocks import block_shape
from diffuserec.models.retrieval.scorers import Scorer


@dataclass(frozen=True, eq=False)
class ItemSets:
    """Some items for each history of a batch, one history after another.

    Attributes:
        owner: history of each item, 0..B-1, not falling, shape (P,).
        items: item numbers, shape (P,).
    """

    owner: Int64[Tensor, " P"]
    items: Int64[Tensor, " P"]

    def rows(self, part: slice) -> "ItemSets":
        """Items of some of the histories, which are counted from the first of them."""
        bounds = torch.tensor([part.start, part.stop], device=self.owner.device)
        first, last = torch.searchsorted(self.owner, bounds).tolist()
        return ItemSets(self.owner[first:last] - part.start, self.items[first:last])

    def select(self, which: Bool[Tensor, " B"]) -> "ItemSets":
        """Items of some of the histories, which are counted anew."""
        kept = which[self.owner]
        return ItemSets((torch.cumsum(which, 0) - 1)[self.owner[kept]], self.items[kept])

    def to(self, device: torch.device) -> "ItemSets":
        """The items on a device."""
        return ItemSets(self.owner.to(device), self.items.to(device))


def seen_items(dataset: SequenceDataset, index: Int64[np.ndarray, " B"]) -> ItemSets:
    """All items that these users really had; synthetic items are not seen."""
    part = dataset.select(index).real()
    owner = np.repeat(np.arange(len(index)), part.lengths)
    return ItemSets(torch.from_numpy(owner), torch.from_numpy(part.items.astype(np.int64)))


def allowed_mask(
    vocab_size: int, allow: Int64[np.ndarray, " A"] | None, deny: Int64[np.ndarray, " D"] | None
) -> Bool[Tensor, " V"]:
    """Which items may be shown at all: those allowed (all, when None) less those denied."""
    mask = torch.full((vocab_size,), allow is None)
    if allow is not None:
        mask[torch.from_numpy(allow)] = True
    if deny is not None:
        mask[torch.from_numpy(deny)] = False
    mask[0] = False
    return mask


@dataclass(frozen=True, eq=False)
class Found:
    """Result of a search.

    Attributes:
        ranks: 0-based rank of each target among all items, a half where it ties; infinite for a
            target that may not be shown, NaN where none was given. On the CPU, shape (B,).
        candidate_ranks: rank of each target among itself and its own candidates, infinite and NaN
            likewise, NaN where there are no candidates. On the CPU, shape (B,).
        items: the k best items that may be shown, best first, lower number on ties, shape (B, k);
            -1 where fewer may be.
        scores: of those items, minus infinity where there is none, shape (B, k).
        not_numbers: histories with a score that is NaN, shape (B,).
    """

    ranks: Float64[Tensor, " B"]
    candidate_ranks: Float64[Tensor, " B"]
    items: Int64[Tensor, "B K"]
    scores: Float[Tensor, "B K"]
    not_numbers: Bool[Tensor, " B"]


@torch.no_grad()
def search(
    scorer: Scorer,
    *,
    targets: Int[Tensor, " B"] | None = None,
    candidates: Int[Tensor, "B C"] | None = None,
    k: int = 0,
    hidden: ItemSets | None = None,
    allowed: Bool[Tensor, " V"] | None = None,
) -> Found:
    """Ranks of targets and lists of the best items, from the same scores, a block at a time.

    Args:
        targets: an item of each history to rank; None ranks nothing.
        candidates: items of each history to rank its target among, too.
        k: list length; at most V - 1 items come back.
        hidden: items that may not be shown to a history; padding never is.
        allowed: items that may be shown to anyone; None allows all.
    """
    n_rows, vocab_size = scorer.shape
    height, _ = block_shape(n_rows, vocab_size, scorer.device, cached=True)
    k = min(k, vocab_size - 1)
    hidden = None if hidden is None else hidden.to(scorer.device)
    allowed = None if allowed is None else allowed.to(scorer.device)
    parts = []
    for first in range(0, max(1, n_rows), height):
        part = slice(first, min(first + height, n_rows))
        parts.append(
            _search_rows(
                scorer.rows(part),
                None if targets is None else targets[part].to(scorer.device),
                None if candidates is None else candidates[part].to(scorer.device),
                k,
                None if hidden is None else hidden.rows(part),
                allowed,
            )
        )
    if len(parts) == 1:
        return parts[0]
    return Found(*(torch.cat([getattr(part, name) for part in parts]) for name in _FIELDS))


_FIELDS = tuple(Found.__dataclass_fields__)


def top_k(
    scorer: Scorer,
    k: int,
    hidden: ItemSets | None = None,
    allowed: Bool[Tensor, " V"] | None = None,
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """Scores and numbers of the k best items that may be shown; see :func:`search`."""
    found = search(scorer, k=k, hidden=hidden, allowed=allowed)
    return found.scores, found.items


def rank_of(
    scorer: Scorer, targets: Int[Tensor, " B"], hidden: ItemSets | None = None
) -> Float64[Tensor, " B"]:
    """0-based rank of each history's target, on the CPU; see :func:`search`."""
    return search(scorer, targets=targets, hidden=hidden).ranks


def _search_rows(
    scorer: Scorer,
    targets: Int[Tensor, " B"] | None,
    candidates: Int[Tensor, "B C"] | None,
    k: int,
    hidden: ItemSets | None,
    allowed: Bool[Tensor, " V"] | None,
) -> Found:
    n_rows = scorer.shape[0]
    blocks = scorer.columns()
    single = _hidden_block(scorer, blocks[0], hidden, allowed) if len(blocks) == 1 else None

    def block(columns: slice) -> Float[Tensor, "B C"]:
        # a second pass makes a block again: the same product, bit for bit
        return _hidden_block(scorer, columns, hidden, allowed) if single is None else single

    own = candidate_scores = None
    if targets is not None:
        own = _picked(block, blocks, targets[:, None])
    if candidates is not None:
        candidate_scores = _picked(block, blocks, candidates)
    above = torch.zeros(n_rows, dtype=torch.int64, device=scorer.device)
    not_below = torch.zeros_like(above)
    bad = torch.zeros(n_rows, dtype=torch.bool, device=scorer.device)
    scores = torch.zeros(n_rows, 0, device=scorer.device)
    items = torch.zeros(n_rows, 0, dtype=torch.int64, device=scorer.device)
    for columns in blocks:
        made = block(columns)
        bad |= made.amax(1).isnan()  # the greatest of a row is NaN when any of it is
        if own is not None:
            above += _count_rows(torch.gt, made, own)
            not_below += _count_rows(torch.ge, made, own)
        if k:
            numbers = _best(made, min(k, made.shape[1]))
            scores = torch.cat([scores, made.gather(1, numbers)], dim=1)
            items = torch.cat([items, numbers + columns.start], dim=1)
    if len(blocks) > 1 and k:
        order = best_of(scores, items, k)
        scores, items = scores.gather(1, order), items.gather(1, order)
    ranks = candidate_ranks = torch.full((n_rows,), torch.nan, dtype=torch.float64)
    if own is not None:
        impossible = own[:, 0] == -torch.inf
        ranks = _mid_ranks(above, not_below - 1, impossible)
        if candidate_scores is not None:
            higher, not_lower = (c(candidate_scores, own).sum(1) for c in (torch.gt, torch.ge))
            candidate_ranks = _mid_ranks(higher, not_lower, impossible)
    items = items.masked_fill(scores == -torch.inf, -1)
    return Found(ranks, candidate_ranks, items, scores, bad)


def _mid_ranks(
    above: Int64[Tensor, " B"], not_below: Int64[Tensor, " B"], impossible: Bool[Tensor, " B"]
) -> Float64[Tensor, " B"]:
    """Ranks from how many others are above and not below; infinite for what may not be shown."""
    # on the CPU, because some devices have no float64
    ranks = (above + not_below).cpu().double() / 2
    return ranks.masked_fill(impossible.cpu(), torch.inf)


def _hidden_block(
    scorer: Scorer, columns: slice, hidden: ItemSets | None, allowed: Bool[Tensor, " V"] | None
) -> Float[Tensor, "B C"]:
    """Scores of a block, with minus infinity for what may not be shown."""
    scores = scorer.block(columns).float()
    if columns.start == 0:
        scores[:, 0] = -torch.inf
    if allowed is not None:
        scores[:, ~allowed[columns]] = -torch.inf
    if hidden is not None:
        owner, items = hidden.owner, hidden.items
        if columns.stop - columns.start < scorer.shape[1]:
            inside = (items >= columns.start) & (items < columns.stop)
            owner, items = owner[inside], items[inside] - columns.start
        scores[owner, items] = -torch.inf
    return scores


def _picked(
    block: Callable[[slice], Tensor], blocks: list[slice], items: Int[Tensor, "B C"]
) -> Float[Tensor, "B C"]:
    """Scores of some items of each history, out of the blocks that hold them."""
    if len(blocks) == 1:
        return block(blocks[0]).gather(1, items)
    found = torch.zeros(items.shape, device=items.device)
    for columns in blocks:
        inside = (items >= columns.start) & (items < columns.stop)
        if bool(inside.any()):
            local = (items - columns.start).clamp(0, columns.stop - columns.start - 1)
            found = torch.where(inside, block(columns).gather(1, local), found)
    return found


@dataclass(frozen=True, eq=False)
class Certainty:
    """How certain a model is of each history, in nats where it is an entropy.

    Attributes:
        confidence: probability of the list that would be shown, hidden items left out, shape (B,).
        entropy: of the distribution over items, averaged over the draws, shape (B,).
        disagreement: entropy of the mean less the mean of the draws' entropies (the mutual
            information of item and noise): 0 when all draws say the same, shape (B,).
        of_targets: probability of each target, hidden items left out; 0 for a hidden one, NaN where
            none was given, shape (B,).
    """

    confidence: Float[Tensor, " B"]
    entropy: Float[Tensor, " B"]
    disagreement: Float[Tensor, " B"]
    of_targets: Float[Tensor, " B"]


@torch.no_grad()
def certainty(
    scorer: Scorer,
    k: int,
    hidden: ItemSets | None = None,
    targets: Int[Tensor, " B"] | None = None,
) -> Certainty:
    """Confidence, entropy and disagreement of the draws, a block at a time.

    Args:
        scorer: whose draws are probabilities.
        k: list length.
        hidden: items that may not be shown; the probability of the others is scaled up to 1.
        targets: an item of each history whose probability is wanted, too.
    """
    n_rows, vocab_size = scorer.shape
    height, _ = block_shape(n_rows, vocab_size, scorer.device, cached=True)
    hidden = None if hidden is None else hidden.to(scorer.device)
    parts = []
    for first in range(0, max(1, n_rows), height):
        part = slice(first, min(first + height, n_rows))
        mine = None if hidden is None else hidden.rows(part)
        wanted = None if targets is None else targets[part].to(scorer.device)
        parts.append(_certainty_rows(scorer.rows(part), k, mine, wanted))
    return Certainty(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _certainty_rows(
    scorer: Scorer, k: int, hidden: ItemSets | None, targets: Int[Tensor, " B"] | None
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    n_rows, _ = scorer.shape
    entropy = torch.zeros(n_rows, device=scorer.device)
    of_draws, mass = torch.zeros_like(entropy), torch.zeros_like(entropy)
    own = torch.full_like(entropy, torch.nan if targets is None else 0.0)
    best = torch.zeros(n_rows, 0, device=scorer.device)
    n_draws = 0
    for columns in scorer.columns():
        mean = torch.zeros(n_rows, columns.stop - columns.start, device=scorer.device)
        n_draws = 0
        for draw in scorer.draws(columns):
            n_draws += 1
            mean += draw
            of_draws += torch.special.entr(draw).sum(1)
        mean /= n_draws
        entropy += torch.special.entr(mean).sum(1)
        if hidden is not None:
            inside = (hidden.items >= columns.start) & (hidden.items < columns.stop)
            mean[hidden.owner[inside], hidden.items[inside] - columns.start] = 0
        if targets is not None:
            local = targets - columns.start
            inside = (local >= 0) & (local < mean.shape[1])
            own[inside] = mean[inside, local[inside]]
        mass += mean.sum(1)
        best = torch.cat([best, mean.topk(min(k, mean.shape[1]), dim=1).values], dim=1)
    shown = best.topk(min(k, best.shape[1]), dim=1).values.sum(1)
    # what is left may be ever so little; rounding may put a full list above the whole
    mass = mass.clamp(min=torch.finfo(mass.dtype).tiny)
    confidence, of_targets = (shown / mass).clamp(max=1), (own / mass).clamp(max=1)
    return confidence, entropy, (entropy - of_draws / n_draws).clamp(min=0), of_targets


@torch.no_grad()
def draw_probabilities(scorer: Scorer, items: Int[Tensor, "B K"]) -> Float[Tensor, "B N K"]:
    """Probabilities of some items of each history by each of the N draws."""
    found: Tensor | None = None
    for columns in scorer.columns():
        inside = (items >= columns.start) & (items < columns.stop)
        local = (items - columns.start).clamp(0, columns.stop - columns.start - 1)
        picked = [draw.gather(1, local).masked_fill(~inside, 0) for draw in scorer.draws(columns)]
        part = torch.stack(picked, dim=1)
        found = part if found is None else found + part
    assert found is not None
    return found


_BLOCK = 64
"""Items a block: near the square root of a usual catalog, where both passes cost the same."""

_COUNTED = 2**20
"""Scores compared at once, so that the table of answers stays small whatever the batch."""

_LARGEST = 2**32 - 1


def _best(scores: Float[Tensor, "B C"], k: int) -> Int64[Tensor, "B K"]:
    """Columns of the k greatest scores of each row, greatest first, lower column on ties.

    A wide row is cut into blocks first: a score that is among the k greatest lies in one of the k
    blocks whose greatest is greatest, so the rest need not be looked at.
    """
    n_rows, width = scores.shape
    n_blocks = width // _BLOCK
    columns = torch.arange(width, device=scores.device)
    if n_blocks < 4 * k:
        return best_of(scores, columns, k)
    even = n_blocks * _BLOCK
    maxima = scores[:, :even].reshape(n_rows, n_blocks, _BLOCK).amax(2)
    blocks = best_of(maxima, columns[:n_blocks], k)
    inside = (blocks * _BLOCK)[:, :, None] + columns[:_BLOCK]
    left = torch.cat([inside.flatten(1), columns[even:].expand(n_rows, -1)], dim=1)
    return left.gather(1, best_of(scores.gather(1, left), left, k))


def best_of(
    values: Float[Tensor, "B C"], numbers: Int[Tensor, "... C"], k: int
) -> Int64[Tensor, "B K"]:
    """Positions of the k greatest values, greatest first, the one of the lower number on ties."""
    # one integer a value that sorts as (value, -number): the bits of a float, read as an integer,
    # sort as the float does once those of negative ones are turned around; 0 + -0 is 0
    bits = (values.float() + 0.0).view(torch.int32)
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys = (order << 32) + (_LARGEST - numbers)
    return keys.topk(k, dim=1).indices


def _count_rows(
    compare: Callable[..., Tensor], scores: Float[Tensor, "B C"], own: Float[Tensor, "B 1"]
) -> Int64[Tensor, " B"]:
    """In each row, how many scores compare so with the row's own."""
    # zeros and ones as floats, added up by a matrix product: several times faster than a sum of
    # booleans, and exact because a block has at most 2^24 columns
    rows = max(1, _COUNTED // scores.shape[1])
    ones = torch.ones(scores.shape[1], device=scores.device)
    table = torch.empty_like(scores[:rows])
    counts = [
        compare(part, mine, out=table[: len(part)]).mv(ones).long()
        for part, mine in zip(torch.split(scores, rows), torch.split(own, rows), strict=True)
    ]
    return torch.cat(counts)
