"""FMLP: learnable filters in the frequency domain instead of self-attention.

Source: Zhou, Yu, Zhao & Wen, "Filter-enhanced MLP is All You Need for Sequential Recommendation",
WWW 2022 (arXiv 2202.13556).

A layer multiplies the discrete Fourier transform of the sequence with learned complex weights. A
product of spectra is a circular convolution: every position sees all others, so that the encoder
trains on prefixes alone.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.config import Settings
from diffuserec.models.encoders import SequenceEncoder, align_left, align_right


class FMLPEncoder(SequenceEncoder):
    """Positions, and layers of a filter and a feed-forward network."""

    class Config(Settings):
        """Settings of the filters' own."""

        n_layers: int = Field(2, ge=1)
        """Layers."""

    sees = "both"

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__()
        self.max_len = max_len
        self.positions = nn.Embedding(max_len, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(FilterLayer(dim, max_len, dropout) for _ in range(own.n_layers))

    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        # filters have one weight for each frequency, and so a fixed length
        states = align_right(embeddings, lengths, self.max_len) + self.positions.weight
        states = self.dropout(self.norm(states))
        for layer in self.layers:
            states = layer(states)
        return align_left(states, lengths, embeddings.shape[1])


class FilterLayer(nn.Module):
    """A filter and a feed-forward network of four times the width, each post-normed."""

    def __init__(self, dim: int, length: int, dropout: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(length // 2 + 1, dim, 2) * 0.02)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm_filter, self.norm_forward = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        with torch.autocast(states.device.type, enabled=False):
            spectrum = torch.fft.rfft(states.float(), dim=1, norm="ortho")
            filtered = spectrum * torch.view_as_complex(self.weight)
            mixed = torch.fft.irfft(filtered, n=states.shape[1], dim=1, norm="ortho")
        states = self.norm_filter(states + self.dropout(mixed))
        widened = self.narrow(F.gelu(self.widen(states)))
        normed: Tensor = self.norm_forward(states + self.dropout(widened))
        return normed
