"""Diverse lists: maximal marginal relevance over the vectors that a model has of its items.

Source: Carbonell and Goldstein, "The Use of MMR, Diversity-Based Reranking", SIGIR 1998. Relevance
is the model's score, scaled to 0 to 1 over the candidates; similarity is the cosine of two items'
vectors.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CANDIDATES_PER_PLACE = 5
"""Candidates that are reordered for each place of a list."""


def mmr_order(
    scores: Float[Tensor, " C"], vectors: Float[Tensor, "C D"], k: int, weight: float
) -> list[int]:
    """Positions of the k items of a diverse list among its candidates, best first.

    The next item is the one with the highest (1 - weight) · relevance - weight · (greatest cosine
    to the items that are already in the list).

    Args:
        scores: of the candidates, by any scale.
        vectors: of the candidates.
        k: length of the list, at most.
        weight: 0 keeps the order of the scores, 1 looks at similarity alone after the first item.
    """
    n = len(scores)
    span = scores.max() - scores.min() if n else scores.sum()
    relevance = (scores - scores.min()) / span if n and span > 0 else torch.zeros(n)
    units = F.normalize(vectors.float(), dim=1)
    closest = torch.zeros(n)
    left = torch.ones(n, dtype=torch.bool)
    order: list[int] = []
    for _ in range(min(k, n)):
        gain = relevance if not order else (1 - weight) * relevance - weight * closest
        best = int(gain.masked_fill(~left, -torch.inf).argmax())
        left[best] = False
        similar = units @ units[best]
        closest = similar if not order else torch.maximum(closest, similar)
        order.append(best)
    return order
