"""From scores to ranks: what may be shown and how ties break, decided once.

Methods score; they never hide anything. Here padding is forbidden, seen items are hidden where
asked, a target's rank is counted (not sorted), and equal scores share the middle of their places.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from diffuserec.data import SequenceDataset


@dataclass(frozen=True, eq=False)
class Ranking:
    """Where each query's target came, and what stood on top: enough for every metric.

    Attributes:
        users: user number of each query, shape (Q,).
        target_rank: 0-based rank of the target among the candidates; a half where it ties; a
            target that is itself hidden ranks behind all candidates. Shape (Q,).
        top_items: the K best items, best first; -1 where fewer may be shown. Shape (Q, K).
        vocab_size: V.
    """

    users: Int64[np.ndarray, " Q"]
    target_rank: Float64[np.ndarray, " Q"]
    top_items: Int64[np.ndarray, "Q K"]
    vocab_size: int

    def __len__(self) -> int:
        return len(self.users)


def seen_pairs(
    dataset: SequenceDataset, rows: Int64[np.ndarray, " B"]
) -> tuple[Int64[Tensor, " P"], Int64[Tensor, " P"]]:
    """(position in `rows`, item) of everything that these users really had.

    Synthetic items are not seen.
    """
    part = dataset.select(rows).real()
    owner = np.repeat(np.arange(len(rows)), part.lengths)
    return torch.from_numpy(owner), torch.from_numpy(part.items.astype(np.int64))


def hide(
    scores: Float[Tensor, "B V"], pairs: tuple[Int[Tensor, " P"], Int[Tensor, " P"]] | None
) -> Float[Tensor, "B V"]:
    """The scores with padding and these (row, item) pairs at minus infinity; in place."""
    scores[:, 0] = -torch.inf
    if pairs is not None:
        scores[pairs[0], pairs[1]] = -torch.inf
    return scores


def target_ranks(scores: Float[Tensor, "B V"], targets: Int[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """0-based rank of each target by counting; ties share the middle of their places.

    Args:
        scores: hidden items at minus infinity.
        targets: item number of each row; one that is hidden ranks behind everything (V).
    """
    own = scores.gather(1, targets[:, None])
    above = _count_rows(torch.gt, scores, own)
    not_below = _count_rows(torch.ge, scores, own)
    middle = (above + not_below - 1) / 2
    return torch.where(own[:, 0] == -torch.inf, float(scores.shape[1]), middle)


def sampled_target_ranks(
    scores: Float[Tensor, "B V"],
    targets: Int[Tensor, " B"],
    candidates: Int[Tensor, "B C"],
) -> Float64[Tensor, " B"]:
    """Rank of each target among itself and its own candidates."""
    own = scores.gather(1, targets[:, None])
    other = scores.gather(1, candidates)
    above = (other > own).sum(1)
    equal = (other == own).sum(1)
    return above.double() + equal.double() / 2


def top_k(scores: Float[Tensor, "B V"], k: int) -> tuple[Float[Tensor, "B K"], Int[Tensor, "B K"]]:
    """The k best items of each row that are not hidden, best first, lower item number on ties.

    A wide row is cut into blocks first: an item that is among the k best lies in one of the k
    blocks whose best item is best, so the rest need not be looked at.

    Args:
        scores: hidden items at minus infinity; compared in single precision.
        k: list length; at most V - 1 items come back.

    Returns:
        Scores (minus infinity where fewer than k may be shown) and items (-1 there).
    """
    n_rows, width = scores.shape
    k = min(k, width - 1)
    n_blocks = width // _BLOCK
    if n_blocks < 4 * k:
        items = _best(scores, torch.arange(width, device=scores.device), k)
    else:
        even = n_blocks * _BLOCK
        maxima = scores[:, :even].reshape(n_rows, n_blocks, _BLOCK).amax(2)
        blocks = _best(maxima, torch.arange(n_blocks, device=scores.device), k)
        inside = (blocks * _BLOCK)[:, :, None] + torch.arange(_BLOCK, device=scores.device)
        rest = torch.arange(even, width, device=scores.device).expand(n_rows, -1)
        candidates = torch.cat([inside.flatten(1), rest], dim=1)
        items = _best(scores.gather(1, candidates), candidates, k)
    values = scores.gather(1, items)
    return values, items.masked_fill(values == -torch.inf, -1)


_BLOCK = 64
"""Items a block: near the square root of a usual catalog, where both passes cost the same."""

_COUNTED = 2**20
"""Scores compared at once, so that the table of answers stays small whatever the batch."""


def _count_rows(
    compare: Callable[..., Tensor], scores: Float[Tensor, "B V"], own: Float[Tensor, "B 1"]
) -> Float64[Tensor, " B"]:
    # zeros and ones as floats, added up by a matrix product: several times faster than a sum of
    # booleans, and exact as long as a row has fewer than 2^24 items
    scores, own = scores.float(), own.float()
    rows = max(1, _COUNTED // scores.shape[1])
    ones = torch.ones(scores.shape[1], device=scores.device)
    table = torch.empty_like(scores[:rows])
    counts = [
        compare(part, mine, out=table[: len(part)]).mv(ones).double()
        for part, mine in zip(torch.split(scores, rows), torch.split(own, rows), strict=True)
    ]
    return torch.cat(counts)


def _best(
    values: Float[Tensor, "B C"], numbers: Int[Tensor, "... C"], k: int
) -> Int[Tensor, "B K"]:
    """The numbers of the k greatest values, greatest first, lower number on ties."""
    # one integer a value that sorts as (value, -number): the bits of a float, read as an integer,
    # sort as the float does once those of negative ones are turned around; 0 + -0 is 0
    bits = (values.float() + 0.0).view(torch.int32)
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys = (order << 32) + (_LARGEST - numbers)
    return _LARGEST - (keys.topk(k, dim=1).values & _LARGEST)


_LARGEST = 2**32 - 1


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
