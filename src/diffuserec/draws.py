"""Draws of a distribution over items, put together without keeping them."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffuserec.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Averaged:
    """Draws of a distribution over items, put together without keeping them.

    Attributes:
        mean: probability of each item, averaged over the draws, shape (B, V).
        std: its standard deviation over the draws (0 for one draw), shape (B, V).
        first: the first draw, shape (B, V).
        entropy: of the mean, in nats, shape (B,).
        disagreement: entropy of the mean less the mean of the draws' entropies (the mutual
            information of item and noise), in nats: 0 when all draws say the same, shape (B,).
    """

    mean: Float[Tensor, "B V"]
    std: Float[Tensor, "B V"]
    first: Float[Tensor, "B V"]
    entropy: Float[Tensor, " B"]
    disagreement: Float[Tensor, " B"]

    @staticmethod
    def of(draws: Iterable[Float[Tensor, "B V"]]) -> "Averaged":
        """Goes through the draws once, holding one at a time (Welford's recurrence)."""
        n = 0
        for draw in draws:
            n += 1
            if n == 1:
                first, mean = draw.clone(), draw.clone()
                squares, entropy = torch.zeros_like(draw), entropies(draw)
                continue
            off = draw - mean
            mean += off / n
            squares += off * (draw - mean)
            entropy += entropies(draw)
        if n == 0:
            raise ConfigError("there are no draws to average")
        of_mean = entropies(mean)
        disagreement = (of_mean - entropy / n).clamp(min=0)
        return Averaged(mean, (squares / max(1, n - 1)).sqrt(), first, of_mean, disagreement)


def entropies(probabilities: Float[Tensor, "B V"]) -> Float[Tensor, " B"]:
    """Entropy of each row, in nats."""
    summed: Tensor = torch.special.entr(probabilities).sum(1)
    return summed
