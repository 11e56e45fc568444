"""Diverse lists: maximal marginal relevance, and lists whose places take turns among draws.

Source of the first: Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking", SIGIR
1998. Relevance is the model's score, scaled to 0 to 1 over the candidates; similarity is the cosine
of two items' vectors.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def mmr_order(
    scores: Float[Tensor, "B C"], vectors: Float[Tensor, "B C D"], k: int, weight: float
) -> Int64[Tensor, "B K"]:
    """Positions of the k items of a diverse list among its candidates, best first.

    The next item is the one with the highest (1 - weight) · relevance - weight · (greatest cosine
    to the items that are already in the list).

    Args:
        scores: of the candidates of each history, by any scale; minus infinity is no candidate.
        vectors: of the candidates.
        k: length of the list, at most.
        weight: 0 keeps the order of the scores, 1 looks at similarity alone after the first item.

    Returns:
        At most C positions a list; -1 where there are fewer candidates.
    """
    left = scores > -torch.inf
    least = scores.masked_fill(~left, torch.inf).amin(1, keepdim=True)
    span = scores.amax(1, keepdim=True) - least
    relevance = torch.where(left & (span > 0), (scores - least) / span, 0.0)
    units = F.normalize(vectors.float(), dim=2)
    closest = torch.full_like(relevance, -1.0)
    row = torch.arange(len(scores), device=scores.device)
    order = []
    for place in range(min(k, scores.shape[1])):
        gain = relevance if not place else (1 - weight) * relevance - weight * closest
        best = gain.masked_fill(~left, -torch.inf).argmax(1)
        order.append(torch.where(left.any(1), best, -1))
        left[row, best] = False
        closest = torch.maximum(closest, (units @ units[row, best, :, None])[:, :, 0])
    return torch.stack(order, dim=1)


def taking_turns(lists: Int64[Tensor, "B N K"]) -> Int64[Tensor, "B K"]:
    """Lists whose place number j takes the best item of draw j mod N that is not in it yet.

    Args:
        lists: the best items of each of N draws, each without repeats; -1 where there is none.

    Returns:
        As long as those of the draws; -1 where no draw has an item left.
    """
    n_rows, n_draws, length = lists.shape
    made = lists.new_full((n_rows, length), -1)
    row = torch.arange(n_rows, device=lists.device)
    for place in range(length):
        # whoever has nothing left is passed over
        for turn in range(n_draws):
            own = lists[:, (place + turn) % n_draws]
            free = (own > 0) & ~(own[:, :, None] == made[:, None, :]).any(2)
            first = own[row, free.int().argmax(1)]
            made[:, place] = torch.where((made[:, place] < 0) & free.any(1), first, made[:, place])
    return made
