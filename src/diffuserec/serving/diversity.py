"""Diverse lists of one answer; see :func:`diffuserec.models.retrieval.mmr_order`."""

from jaxtyping import Float
from torch import Tensor

from diffuserec.models import retrieval

CANDIDATES_PER_PLACE = 5
"""Candidates that are reordered for each place of a list."""


def mmr_order(
    scores: Float[Tensor, " C"], vectors: Float[Tensor, "C D"], k: int, weight: float
) -> list[int]:
    """Positions of the k items of a diverse list among its candidates, best first.

    Args:
        scores: of the candidates, by any scale.
        vectors: of the candidates.
        k: length of the list, at most.
        weight: 0 keeps the order of the scores, 1 looks at similarity alone after the first item.
    """
    if not len(scores):
        return []
    found: list[int] = retrieval.mmr_order(scores[None], vectors[None], k, weight)[0].tolist()
    return found
