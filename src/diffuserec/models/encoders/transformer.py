"""Transformer encoder of the BERT lineage: self-attention blocks with learned positions.

LayerNorm on the embedding sum and after each residual (post-norm), GELU, weights drawn from
N(0, 0.02²). On sparse logs that recipe learned several times faster than pre-norm
(docs/methods/sasrec.md).
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.config import Settings
from diffuserec.models.encoders import SequenceEncoder, check_heads, real_keys


class TransformerEncoder(SequenceEncoder):
    """Positions and self-attention blocks.

    Dropout is on the embedding sum and both residual branches. Not on the attention weights: that
    changed no validation metric and keeps the fused attention kernel from running. With
    right-padded batches a causal encoder needs no mask.
    """

    class Config(Settings):
        """Settings of a transformer's own."""

        n_layers: int = Field(2, ge=1)
        """Blocks."""
        n_heads: int = Field(2, ge=1)
        """Attention heads; a divisor of dim."""

    sees = "either"

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_len, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, own.n_heads, dropout, causal) for _ in range(own.n_layers)
        )
        self.causal = causal

    @classmethod
    def check(cls, own: Settings, dim: int) -> None:
        assert isinstance(own, TransformerEncoder.Config)
        check_heads(dim, own.n_heads)

    @property
    def layers(self) -> "list[TransformerBlock]":
        """The blocks, for callers that pass through them in their own way."""
        return [block for block in self.blocks if isinstance(block, TransformerBlock)]

    def enter(self, embedded: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """Input of the first block, from a sum of embeddings."""
        entered: Tensor = self.dropout(self.norm(embedded))
        return entered

    def forward(
        self,
        embeddings: Float[Tensor, "B L D"],
        lengths: Int[Tensor, " B"],
        both_ways: bool = False,
    ) -> Float[Tensor, "B L D"]:
        """States of embeddings; with `both_ways`, also of a causal encoder, looking ahead too."""
        length = embeddings.shape[1]
        states = self.enter(embeddings + self.positions.weight[:length])
        seen = None if self.causal and not both_ways else real_keys(lengths, length)
        for block in self.layers:
            states = block(states, seen)
        return states


class TransformerBlock(nn.Module):
    """Self-attention and a feed-forward network of four times the width, each post-normed."""

    def __init__(self, dim: int, n_heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.causal = causal
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.widen = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_forward = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, states: Float[Tensor, "B L D"], seen: Bool[Tensor, "B 1 1 L"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """The next states; `seen` are the keys that every position sees, in a causal block too."""
        query, key, value = self.heads(states)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=self.causal and seen is None
        )
        return self.after(states, attended)

    def heads(
        self, states: Float[Tensor, "B L D"]
    ) -> tuple[Float[Tensor, "B H L E"], Float[Tensor, "B H L E"], Float[Tensor, "B H L E"]]:
        """Queries, keys and values of H heads of width E = D / H."""
        batch, length, _ = states.shape
        heads = self.query_key_value(states).view(batch, length, 3, self.n_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        return query, key, value

    def after(
        self, states: Float[Tensor, "B L D"], attended: Float[Tensor, "B H L E"]
    ) -> Float[Tensor, "B L D"]:
        """The rest of the block after attention: projection, feed-forward, residuals and norms."""
        attended = self.out(attended.transpose(1, 2).flatten(2))
        states = self.norm_attention(states + self.dropout(attended))
        widened = F.gelu(self.widen(states))
        states = self.norm_forward(states + self.dropout(self.narrow(widened)))
        return states
