"""LiGR's encoder: pre-normed attention and SwiGLU networks whose outputs are gated.

Source: Borisyuk et al., "From Features to Transformers: Redefining Ranking for Scalable Impact"
(arXiv 2502.03417), in the form that eSASRec uses (Tikhonovich et al., RecSys 2025, arXiv
2508.06450). A layer adds to its input x

    drop(attention(norm(x))) · σ(W x + b)    and then    drop(network(norm(x))) · σ(W' x + b'),

where network(x) = W₃ (silu(W₁ x) · W₂ x) without biases. Positions count from the newest item, as
in the code that its authors use; states are not normed at the end.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.attention import attend
from diffuserec.models.config import Settings
from diffuserec.models.dropout import Dropout
from diffuserec.models.encoders import SequenceEncoder, check_heads, places_from_newest


class LiGREncoder(SequenceEncoder):
    """Learned positions and gated layers; a position sees itself and what came before."""

    class Config(Settings):
        """Settings of the layers' own."""

        n_layers: int = Field(2, ge=1)
        """Layers."""
        n_heads: int = Field(2, ge=1)
        """Attention heads; a divisor of dim."""
        attention_dropout: float = Field(default=0.0, ge=0, lt=1)
        """Chance that an attention weight is dropped."""
        widening: int = Field(4, ge=1)
        """Width of the networks, in widths of the states."""

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__()
        self.max_len = max_len
        self.positions = nn.Embedding(max_len, dim)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(LiGRLayer(dim, dropout, own) for _ in range(own.n_layers))

    @classmethod
    def check(cls, own: Settings, dim: int) -> None:
        assert isinstance(own, LiGREncoder.Config)
        check_heads(dim, own.n_heads)

    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        place = places_from_newest(lengths, embeddings.shape[1], self.max_len)
        states: Tensor = self.dropout(embeddings + self.positions(place))
        for layer in self.layers:
            states = layer(states)
        return states


class LiGRLayer(nn.Module):
    """Causal attention and a SwiGLU network, each added by a gate of the input."""

    def __init__(self, dim: int, dropout: float, own: LiGREncoder.Config) -> None:
        super().__init__()
        self.n_heads, self.attention_dropout = own.n_heads, own.attention_dropout
        self.norm_attention, self.norm_network = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.gate_attention, self.gate_network = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.widen = nn.Linear(dim, own.widening * dim, bias=False)
        self.scale = nn.Linear(dim, own.widening * dim, bias=False)
        self.narrow = nn.Linear(own.widening * dim, dim, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, states: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        projected = self.query_key_value(self.norm_attention(states))
        parts = projected.view(*states.shape[:2], 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind()
        chance = self.attention_dropout if self.training else 0.0
        attended = attend(query, key, value, causal=True, chance=chance)
        attended = self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        states = states + attended * torch.sigmoid(self.gate_attention(states))
        normed = self.norm_network(states)
        passed = self.narrow(self.dropout(F.silu(self.widen(normed)) * self.scale(normed)))
        gated: Tensor = states + self.dropout(passed) * torch.sigmoid(self.gate_network(states))
        return gated
