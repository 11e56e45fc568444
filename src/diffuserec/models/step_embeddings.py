"""Embeddings of the diffusion step.

Sources: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5 (sines and cosines
in turn); Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020 (all sines
first, all cosines after them).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class StepNetwork(nn.Module):
    """Embedding of the step: two layers over the sinusoid of step · rate.

    Args:
        dim: width D, even and at least 4.
        rate: 1000 / T puts the steps of any T on the same sinusoids.
    """

    def __init__(self, dim: int, rate: float) -> None:
        super().__init__()
        self.dim, self.rate = dim, rate
        self.layers = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, t: Int[Tensor, "*n"] | Float[Tensor, "*n"]) -> Float[Tensor, "*n D"]:
        found: Tensor = self.layers(sinusoidal(t.flatten() * self.rate, self.dim))
        return found.view(*t.shape, self.dim)


def sinusoidal(t: Int[Tensor, " B"] | Float[Tensor, " B"], dim: int) -> Float[Tensor, "B dim"]:
    """Sines, then cosines, of t at dim/2 frequencies that fall geometrically from 1 to 1e-4.

    Args:
        dim: width, even and at least 4.

    Raises:
        ValueError: the width is odd or too small.
    """
    if dim % 2 or dim < 4:
        raise ValueError(f"a sinusoidal embedding needs an even width of at least 4, got {dim}")
    half = dim // 2
    positions = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.to(torch.float32)[:, None] * torch.exp(positions * (-math.log(10_000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def interleaved_sinusoidal(t: Float[Tensor, " B"], dim: int) -> Float[Tensor, "B dim"]:
    """sin(t / 10000^(2j/dim)) at dimension 2j and the cosine of the same at 2j + 1."""
    positions = torch.arange(0, dim, 2, dtype=torch.float32, device=t.device)
    angles = t[:, None] * torch.exp(positions * (-math.log(10_000) / dim))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :dim]
