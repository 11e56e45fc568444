"""Dropout whose random numbers are cheap on a CPU.

Torch draws one random number of full width for every element and takes a good part of a training
step for it. Here an element gets 16 bits, four elements share a draw, and its chance to be dropped
is a multiple of 2⁻¹⁶: 0.5 exactly, others to 0.00001.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffuserec.models.parts import drawn, in_part

_LEVELS = 2**16


class Dropout(nn.Module):
    """Zeroes each element by chance `p` in training and divides the others by 1 - p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def forward(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return dropout(x, self.p) if self.training else x


def dropout(x: Float[Tensor, "*n"], p: float) -> Float[Tensor, "*n"]:
    """The elements of `x`, each zeroed by chance `p` or else divided by 1 - p."""
    if not p:
        return x
    if x.device.type != "cpu":
        return full_dropout(x, p)

    def bits(n_rows: int) -> Tensor:
        n = n_rows * math.prod(x.shape[1:])
        words = torch.randint(-(2**63), 2**63 - 1, (-(-n // 4),), dtype=torch.int64)
        return words.view(torch.int16)[:n].view(n_rows, *x.shape[1:])

    # one level at least is kept: the next threshold is no number of 16 bits
    kept = drawn(bits, len(x)) >= min(round(p * _LEVELS), _LEVELS - 1) - _LEVELS // 2
    return x * kept.to(x.dtype).mul_(1 / (1 - p))


class FullDropout(nn.Dropout):
    """Torch's dropout, with a draw of full width for every element, which knows parts of rows."""

    def forward(self, x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        return full_dropout(x, self.p) if self.training else x


def full_dropout(x: Float[Tensor, "*n"], p: float) -> Float[Tensor, "*n"]:
    """:func:`dropout` with torch's own draws."""
    if not in_part():
        return F.dropout(x, p, True)

    def factors(n_rows: int) -> Tensor:
        return F.dropout(x.new_ones(n_rows, *x.shape[1:]), p, True)

    return x * drawn(factors, len(x))
