"""FMLP-Rec's encoder: learned filters of frequencies instead of attention.

Source: Zhou, Yu, Zhao & Wen, "Filter-enhanced MLP is All You Need for Sequential Recommendation",
WWW 2022 (arXiv 2202.13556), and its authors' released code.

A layer multiplies the discrete Fourier transform of its input along the sequence with learned
complex weights, one for each frequency and column, and passes the result through a feed-forward
network; both have a residual and a norm after it.

As in the released code, sequences have one length, `max_len`, with padding in front that takes
part: its embedding is a fixed vector, drawn like the items', and its position's. A product of
spectra is a circular convolution: every position sees all others, so that the encoder trains on one
target an example alone.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.config import Settings
from diffuserec.models.dropout import Dropout
from diffuserec.models.encoders import EPS, PaddedInFront, align_left


class FMLPEncoder(PaddedInFront):
    """Positions counted from the newest item, and layers of a filter and a network."""

    class Config(Settings):
        """Settings of the filters' own."""

        n_layers: int = Field(2, ge=1)
        """Layers."""

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__(dim, max_len, dropout)
        self.layers = nn.ModuleList(FilterLayer(dim, max_len, dropout) for _ in range(own.n_layers))

    def reset_parameters(self) -> None:
        """Draws initial weights: N(0, init_std²), the filters' too; biases zero."""
        super().reset_parameters()
        for layer in self.layers:
            assert isinstance(layer, FilterLayer)
            nn.init.normal_(layer.spectrum, std=self.init_std)

    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        states, _ = self.enter(embeddings, lengths)
        for layer in self.layers:
            states = layer(states)
        return align_left(states, lengths, embeddings.shape[1])

    def newest(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """State at the newest item, for which the last layer computes one position alone."""
        states, _ = self.enter(embeddings, lengths)
        *others, last = self.layers
        for layer in others:
            states = layer(states)
        assert isinstance(last, FilterLayer)
        return last.newest(states)


class FilterLayer(nn.Module):
    """A filter and a feed-forward network of four times the width, each post-normed."""

    def __init__(self, dim: int, length: int, dropout: float) -> None:
        super().__init__()
        self.length = length
        self.spectrum = nn.Parameter(torch.zeros(length // 2 + 1, dim, 2))
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm_filter = nn.LayerNorm(dim, eps=EPS)
        self.norm_forward = nn.LayerNorm(dim, eps=EPS)
        self.dropout = Dropout(dropout)

    def forward(self, states: Float[Tensor, "B W D"]) -> Float[Tensor, "B W D"]:
        with torch.autocast(states.device.type, enabled=False):
            spectrum = torch.fft.rfft(states.float(), dim=1) * torch.view_as_complex(self.spectrum)
            filtered = torch.fft.irfft(spectrum, n=self.length, dim=1)
        return self._after(states, filtered)

    def newest(self, states: Float[Tensor, "B W D"]) -> Float[Tensor, "B D"]:
        """The last position of :meth:`forward`: the filter is a convolution with its transform."""
        with torch.autocast(states.device.type, enabled=False):
            weights = torch.fft.irfft(torch.view_as_complex(self.spectrum), n=self.length, dim=0)
            filtered = (states.float() * weights.flip(0)).sum(1)
        return self._after(states[:, -1], filtered)

    def _after(
        self, states: Float[Tensor, "*n D"], filtered: Float[Tensor, "*n D"]
    ) -> Float[Tensor, "*n D"]:
        states = self.norm_filter(states + self.dropout(filtered))
        widened = self.narrow(F.gelu(self.widen(states)))
        passed: Tensor = self.norm_forward(states + self.dropout(widened))
        return passed
