"""Dropout whose random numbers are cheap on a CPU.

Torch draws one random number of full width for every element and takes a good part of a training
step for it. Here an element gets 16 bits, four elements share a draw, and its chance to be dropped
is a multiple of 2⁻¹⁶: 0.5 exactly, others to 0.00001.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

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
        return F.dropout(x, p, True)
    n = x.numel()
    drawn = torch.randint(-(2**63), 2**63 - 1, (-(-n // 4),), dtype=torch.int64)
    kept = drawn.view(torch.int16)[:n].view(x.shape) >= round(p * _LEVELS) - _LEVELS // 2
    return x * kept.to(x.dtype).mul_(1 / (1 - p))
