"""HSTU's encoder: pointwise gated attention without a softmax.

Source: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
Generative Recommendations", ICML 2024 (arXiv 2402.17152), in the form of the released code for
public logs. A layer adds to its input X

    U, V, Q, K = silu(norm(X) W),    A = silu(Q Kᵀ + bias) / max_len,    out(drop(U · norm(A V))),

where norms have no parameters and A is 0 for later positions. The bias is learned for each distance
of two positions, in each layer, and shared by the heads. Learned positions, counted from the newest
item, are added to the embeddings, and states are normed at the end.

Departure: the released code also adds a bias by the time between two items, where the time of a
position is that of the *next* item, which nobody knows who recommends. Batches hold no times here,
so that the bias is of positions alone.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.config import Settings
from diffuserec.models.dropout import Dropout, dropout
from diffuserec.models.encoders import SequenceEncoder, check_heads, places_from_newest

_EPS = 1e-6


class HSTUEncoder(SequenceEncoder):
    """Learned positions and layers of pointwise attention over what came before."""

    class Config(Settings):
        """Settings of HSTU's layers."""

        n_layers: int = Field(2, ge=1)
        """Layers."""
        n_heads: int = Field(1, ge=1)
        """Attention heads; a divisor of dim."""
        attention_dropout: float = Field(default=0.0, ge=0, lt=1)
        """Chance that an attention weight is dropped."""

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__()
        self.max_len = max_len
        self.positions = nn.Embedding(max_len, dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            HSTULayer(dim, max_len, dropout, own) for _ in range(own.n_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=_EPS)

    @classmethod
    def check(cls, own: Settings, dim: int) -> None:
        assert isinstance(own, HSTUEncoder.Config)
        check_heads(dim, own.n_heads)

    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        place = places_from_newest(lengths, embeddings.shape[1], self.max_len)
        scale = embeddings.shape[2] ** 0.5
        states: Tensor = self.dropout(embeddings * scale + self.positions(place))
        for layer in self.layers:
            states = layer(states)
        normed: Tensor = self.norm(states)
        return normed


class HSTULayer(nn.Module):
    """Pointwise attention whose result is normed, gated and added to the input."""

    def __init__(self, dim: int, max_len: int, dropout: float, own: HSTUEncoder.Config) -> None:
        super().__init__()
        self.max_len, self.n_heads = max_len, own.n_heads
        self.attention_dropout = own.attention_dropout
        self.project = nn.Linear(dim, 4 * dim, bias=False)
        self.distances = nn.Embedding(max_len, 1)
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, states: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        _, length, dim = states.shape
        projected = F.silu(self.project(F.layer_norm(states, (dim,), eps=_EPS)))
        gate, *others = projected.chunk(4, dim=2)
        value, query, key = (
            part.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for part in others
        )
        position = torch.arange(length, device=states.device)
        distance = position[:, None] - position
        bias = self.distances(distance.clamp(min=0))[:, :, 0]
        weights = F.silu(query @ key.transpose(2, 3) + bias) / self.max_len
        weights = weights.masked_fill(distance < 0, 0)
        if self.training:
            weights = dropout(weights, self.attention_dropout)
        attended = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        gated = gate * F.layer_norm(attended, (dim,), eps=_EPS)
        added: Tensor = states + self.out(self.dropout(gated))
        return added
