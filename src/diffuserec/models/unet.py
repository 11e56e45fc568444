"""SU-Net: a U-Net for images over sequences of item embeddings.

Source: Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023, section 3.2:
the M embeddings of a sequence are the channels of an image of √D × √D pixels. The network itself
is the U-Net of Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020, at
the widths of the authors' released code (the paper gives none).

Departures: the paper adds step and condition to a block's input before the convolution; here, as
in the released code, they are added after the block's first convolution.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuserec.models.step_embeddings import sinusoidal

_GROUPS = 8
_EPS = 1e-6


class SUNet(nn.Module):
    """Network that predicts noise, velocity or clean embeddings from M noisy ones of width D.

    Step and condition enter as the sum of two embeddings, made by :meth:`embed_step` and
    :meth:`embed_condition`, so that a sampler computes the second once and not at every step.

    Args:
        n_items: M, the channels of the image.
        dim: D, the pixels; the square of a multiple of 8.
        channels: of the first level.
        multipliers: channels of each level as multiples of that; each level but the last halves
            the image.
        n_blocks: residual blocks of a level on the way down; on the way up there is one more.
        dropout: rate before the second convolution of a block.

    Raises:
        ValueError: the image cannot be halved so often, or `channels` is no multiple of 8.
    """

    def __init__(
        self,
        n_items: int,
        dim: int,
        channels: int = 8,
        multipliers: tuple[int, ...] = (1, 2, 2, 2),
        n_blocks: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.side = image_side(dim, len(multipliers))
        if channels % _GROUPS:
            raise ValueError(f"channels must be a multiple of {_GROUPS}, got {channels}")
        self.n_items = n_items
        self.channels = channels
        width = 4 * channels
        self.step = _mlp(channels, width)
        self.condition = _mlp(dim, width)
        self.first = Convolution(n_items, channels)
        blocks: list[ResidualBlock] = []

        def block(n_in: int, n_out: int) -> ResidualBlock:
            blocks.append(ResidualBlock(n_in, n_out, dropout))
            return blocks[-1]

        levels = [channels * multiplier for multiplier in multipliers]
        n_in, skips = channels, [channels]
        self.down = nn.ModuleList()
        for level, n_out in enumerate(levels):
            for _ in range(n_blocks):
                self.down.append(block(n_in, n_out))
                skips.append(n_out)
                n_in = n_out
            if level < len(levels) - 1:
                self.down.append(Downsample(n_in))
                skips.append(n_in)
        self.middle = nn.ModuleList([block(n_in, n_in), PixelAttention(n_in), block(n_in, n_in)])
        self.up = nn.ModuleList()
        for level, n_out in reversed(list(enumerate(levels))):
            for _ in range(n_blocks + 1):
                self.up.append(block(n_in + skips.pop(), n_out))
                n_in = n_out
            if level > 0:
                self.up.append(Upsample(n_in))
        self.last = nn.Sequential(
            nn.GroupNorm(_GROUPS, n_in, _EPS), nn.SiLU(), Convolution(n_in, n_items)
        )
        # one product for the shifts that all blocks add to their channels
        self.shifts = nn.Linear(width, sum(block.n_out for block in blocks))

    def embed_step(self, t: Int[Tensor, " B"]) -> Float[Tensor, "B E"]:
        """Embedding of diffusion steps; a single one serves a batch that shares its step."""
        embedded: Tensor = self.step(sinusoidal(t, self.channels))
        return embedded

    def embed_condition(self, condition: Float[Tensor, "B D"]) -> Float[Tensor, "B E"]:
        """Embedding of condition vectors."""
        embedded: Tensor = self.condition(condition)
        return embedded

    def forward(
        self, x_t: Float[Tensor, "B M D"], embedded: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B M D"]:
        """Prediction from noisy embeddings."""
        sizes = [module.n_out for module in self.modules() if isinstance(module, ResidualBlock)]
        shifts = iter(self.shifts(F.silu(embedded)).split(sizes, dim=1))
        x = self.first(x_t.unflatten(2, (self.side, self.side)))
        kept = [x]
        for module in self.down:
            x = module(x, next(shifts)) if isinstance(module, ResidualBlock) else module(x)
            kept.append(x)
        for module in self.middle:
            x = module(x, next(shifts)) if isinstance(module, ResidualBlock) else module(x)
        for module in self.up:
            if isinstance(module, ResidualBlock):
                x = module(torch.cat([x, kept.pop()], dim=1), next(shifts))
            else:
                x = module(x)
        prediction: Tensor = self.last(x)
        return prediction.flatten(2)


class ResidualBlock(nn.Module):
    """Two times norm, swish and convolution, beside a shortcut; shifted in between by step and
    condition."""

    def __init__(self, n_in: int, n_out: int, dropout: float) -> None:
        super().__init__()
        self.n_out = n_out
        self.norm_1 = nn.GroupNorm(_GROUPS, n_in, _EPS)
        self.convolution_1 = Convolution(n_in, n_out)
        self.norm_2 = nn.GroupNorm(_GROUPS, n_out, _EPS)
        self.dropout = nn.Dropout(dropout)
        self.convolution_2 = Convolution(n_out, n_out)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(
        self, x: Float[Tensor, "B C H W"], shift: Float[Tensor, "B C_out"]
    ) -> Float[Tensor, "B C_out H W"]:
        # where no gradient needs them, results are written over what they are made of
        in_place = not torch.is_grad_enabled()
        hidden = self.convolution_1(F.silu(self.norm_1(x), inplace=in_place))
        hidden += shift[:, :, None, None]
        hidden = self.dropout(F.silu(self.norm_2(hidden), inplace=in_place))
        result: Tensor = self.convolution_2(hidden)
        result += self.shortcut(x)
        return result


class Convolution(nn.Conv2d):
    """Convolution of 3 × 3 with zero padding; for images of at most 2 × 2 as one matrix product.

    On such images the product is the same sum without the zeros, and several times faster.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_out H W"]:
        side = x.shape[2]
        if side > 2:
            return super().forward(x)
        # entry (p, q): number of the weight, of 9, that leads from pixel q to pixel p
        position = torch.arange(side, device=x.device)
        offset = position[None, :] - position[:, None] + 1
        taps = (3 * offset[:, None, :, None] + offset[None, :, None, :]).flatten(0, 1).flatten(1)
        matrix = (
            self.weight.flatten(2)[:, :, taps]
            .transpose(1, 2)
            .reshape(self.out_channels * side**2, self.in_channels * side**2)
        )
        assert self.bias is not None
        flat = F.linear(x.flatten(1), matrix, self.bias.repeat_interleave(side**2))
        return flat.view(len(x), self.out_channels, side, side)


class PixelAttention(nn.Module):
    """Single-head self-attention over the pixels, beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, channels, _EPS)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = self.query_key_value(pixels).chunk(3, dim=2)
        attended = self.out(F.scaled_dot_product_attention(query, key, value))
        result: Tensor = x + attended.transpose(1, 2).reshape(x.shape)
        return result


class Downsample(nn.Module):
    """Halves the side: a convolution of stride 2, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H_2 W_2"]:
        result: Tensor = self.convolution(F.pad(x, (0, 1, 0, 1)))
        return result


class Upsample(nn.Module):
    """Doubles the side: each pixel repeated, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = Convolution(channels, channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        result: Tensor = self.convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


def image_side(dim: int, n_levels: int = 4) -> int:
    """Side of the image that an embedding of this width becomes.

    Raises:
        ValueError: the width is no perfect square, or its root cannot be halved at each level.
    """
    side, factor = math.isqrt(dim), 2 ** (n_levels - 1)
    if side * side != dim or side % factor:
        raise ValueError(
            f"dim must be the square of a multiple of {factor} "
            f"({', '.join(str((factor * k) ** 2) for k in (1, 2, 3))}, …), got {dim}"
        )
    return side


def _mlp(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_out), nn.SiLU(), nn.Linear(n_out, n_out))
