"""BSARec's encoder: in each layer a frequency filter beside self-attention.

Source: Shin, Choi, Wi & Park, "An Attentive Inductive Bias for Sequential Recommendation beyond
the Self-Attention", AAAI 2024 (arXiv 2312.10325), and its authors' released code.

A layer mixes two views of its input X, each with its own residual and norm,

    filtered = norm(drop(low + β² (X - low)) + X),    attended = norm(drop(attention(X)) + X),
    mixed    = α filtered + (1 - α) attended,

and passes the mix through a feed-forward network. ``low`` are the lowest frequencies of the
discrete Fourier transform of X along the sequence; β is learned for each column.

As in the released code, sequences have one length, `max_len`, with padding in front:

- The filter runs over the padding, too, and is circular: every position sees all others, so that
  the encoder trains on one target an example alone.
- Padding has an embedding: a fixed vector, drawn like the items', and its position's.
- Real positions attend to themselves and earlier real ones; padding attends to everything.

The projection on the lowest frequencies is made as a product with one matrix, which equals both
transforms.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.attention import attend
from diffuserec.models.config import Settings
from diffuserec.models.dropout import Dropout
from diffuserec.models.encoders import EPS, PaddedInFront, align_left, check_heads


class BSARecEncoder(PaddedInFront):
    """Positions counted from the newest item, and layers of a filter, attention and a network."""

    class Config(Settings):
        """Settings of BSARec's layers."""

        n_layers: int = Field(2, ge=1)
        """Layers."""
        n_heads: int = Field(1, ge=1)
        """Attention heads; a divisor of dim."""
        attention_dropout: float = Field(0.5, ge=0, lt=1)
        """Chance that an attention weight is dropped."""
        alpha: float = Field(0.7, ge=0, le=1)
        """Weight of the filter against attention."""
        n_low: int = Field(3, ge=1)
        """Lowest frequencies of the low-pass, the constant one included: c // 2 + 1 of the paper's
        c."""

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__(dim, max_len, dropout)
        self.layers = nn.ModuleList(BSARecLayer(dim, dropout, own) for _ in range(own.n_layers))
        waves = low_waves(max_len, own.n_low)
        self.register_buffer("smoothing", waves.T @ waves, persistent=False)

    @classmethod
    def check(cls, own: Settings, dim: int) -> None:
        assert isinstance(own, BSARecEncoder.Config)
        check_heads(dim, own.n_heads)

    def reset_parameters(self) -> None:
        """Draws initial weights: N(0, init_std²), biases zero, the filters' β from N(0, 1)."""
        super().reset_parameters()
        for layer in self.layers:
            assert isinstance(layer, BSARecLayer)
            nn.init.normal_(layer.beta)

    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        states, visible = self._enter(embeddings, lengths)
        for layer in self.layers:
            states = layer(states, self.get_buffer("smoothing"), visible)
        return align_left(states, lengths, embeddings.shape[1])

    def newest(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """State at the newest item, for which the last layer computes one position alone."""
        states, visible = self._enter(embeddings, lengths)
        *others, last = self.layers
        for layer in others:
            states = layer(states, self.get_buffer("smoothing"), visible)
        assert isinstance(last, BSARecLayer)
        smoothing = self.get_buffer("smoothing")[-1:]
        return last.last(states, smoothing, visible[:, :, -1:])[:, 0]

    def _enter(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B W D"], Bool[Tensor, "B 1 W W"]]:
        """Input of the first layer, and which positions (last axis) each one attends to."""
        entered, real = self.enter(embeddings, lengths)
        position = torch.arange(self.max_len, device=lengths.device)
        earlier = position <= position[:, None]
        visible = (real[:, None, :] & earlier) | ~real[:, :, None]
        return entered, visible[:, None]


class BSARecLayer(nn.Module):
    """A low-pass filter and self-attention side by side, then a feed-forward network."""

    def __init__(self, dim: int, dropout: float, own: BSARecEncoder.Config) -> None:
        super().__init__()
        self.alpha, self.n_heads = own.alpha, own.n_heads
        self.attention_dropout = own.attention_dropout
        self.beta = nn.Parameter(torch.zeros(dim))
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.widen = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)
        self.norm_filter = nn.LayerNorm(dim, eps=EPS)
        self.norm_attention = nn.LayerNorm(dim, eps=EPS)
        self.norm_forward = nn.LayerNorm(dim, eps=EPS)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        states: Float[Tensor, "B W D"],
        smoothing: Float[Tensor, "W W"],
        visible: Bool[Tensor, "B 1 W W"] | Float[Tensor, "1 H W W"],
    ) -> Float[Tensor, "B W D"]:
        """The next states.

        Args:
            smoothing: the matrix whose product with a sequence is its low frequencies.
            visible: the positions that each one attends to; or biases.
        """
        low = smooth(states, smoothing)
        query, key, value = self._heads(self.query_key_value(states), 3)
        return self._mix(states, low, self._attend(query, key, value, visible))

    def last(
        self,
        states: Float[Tensor, "B W D"],
        smoothing: Float[Tensor, "*b Q W"],
        visible: Bool[Tensor, "B 1 Q W"] | Float[Tensor, "#B H Q W"],
    ) -> Float[Tensor, "B Q D"]:
        """The last Q positions of :meth:`forward`, by their rows of what that takes."""
        last, dim = states[:, -smoothing.shape[-2] :], states.shape[2]
        low = smooth(states, smoothing)
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        (query,) = self._heads(F.linear(last, weight[:dim], bias[:dim]), 1)
        key, value = self._heads(F.linear(states, weight[dim:], bias[dim:]), 2)
        return self._mix(last, low, self._attend(query, key, value, visible))

    def _heads(self, x: Float[Tensor, "B W N"], n: int) -> tuple[Float[Tensor, "B H W E"], ...]:
        return x.view(*x.shape[:2], n, self.n_heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def _attend(
        self,
        query: Float[Tensor, "B H Q E"],
        key: Float[Tensor, "B H W E"],
        value: Float[Tensor, "B H W E"],
        visible: Bool[Tensor, "B 1 Q W"] | Float[Tensor, "#B H Q W"],
    ) -> Float[Tensor, "B Q D"]:
        chance = self.attention_dropout if self.training else 0.0
        return attend(query, key, value, visible, chance=chance).transpose(1, 2).flatten(2)

    def _mix(
        self,
        states: Float[Tensor, "B Q D"],
        low: Float[Tensor, "B Q D"],
        attended: Float[Tensor, "B Q D"],
    ) -> Float[Tensor, "B Q D"]:
        filtered = low + self.beta.square() * (states - low)
        filtered = self.norm_filter(states + self.dropout(filtered))
        attended = self.norm_attention(states + self.dropout(self.out(attended)))
        mixed = self.alpha * filtered + (1 - self.alpha) * attended
        widened = self.narrow(F.gelu(self.widen(mixed)))
        passed: Tensor = self.norm_forward(mixed + self.dropout(widened))
        return passed


def low_waves(length: int, n: int) -> Float[Tensor, "F W"]:
    """Orthonormal cosines and sines of the n lowest frequencies of `length` positions."""
    found = []
    for frequency in range(min(n, length // 2 + 1)):
        angle = 2 * math.pi * frequency / length * torch.arange(length, dtype=torch.float64)
        found.append(angle.cos())
        if 0 < 2 * frequency < length:  # the sine is zero at the lowest and the highest
            found.append(angle.sin())
    return F.normalize(torch.stack(found), dim=1).float()


def smooth(
    states: Float[Tensor, "B W D"], smoothing: Float[Tensor, "*b Q W"]
) -> Float[Tensor, "B Q D"]:
    """The product of a matrix with each sequence, in full precision."""
    with torch.autocast(states.device.type, enabled=False):
        return smoothing @ states.float()
