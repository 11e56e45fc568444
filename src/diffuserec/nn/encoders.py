"""Sequence encoders: item ids or embeddings in, one state a position out.

The transformer is the one of the BERT lineage: learned positions, LayerNorm on the embedding sum
and after each residual (post-norm), GELU, weights drawn from N(0, 0.02²). On sparse logs that
recipe learned several times faster than pre-norm (docs/methods/sasrec.md).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from diffuserec.nn.embeddings import sinusoidal

_INIT_STD = 0.02


class SequenceEncoder(nn.Module, ABC):
    """What all encoders are outside: an item table, and a state for each position.

    Args:
        vocab_size: V rows of the item table; 0 for one that is only given embeddings.
        dim: width D.
        n_extra: rows after the catalog's, for tokens that are no items (``[mask]`` is row V).
    """

    def __init__(self, vocab_size: int, dim: int, n_extra: int = 0) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        if vocab_size:
            self.items = nn.Embedding(vocab_size + n_extra, dim, padding_idx=0)

    @abstractmethod
    def encode(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        """States of embeddings, for callers that bring their own (noisy ones, for example).

        Args:
            embeddings: right-padded; what stands in the padding changes no real state.
            lengths: real positions.
        """

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The item embeddings; row 0 is zero, extra tokens are left out."""
        weight: Tensor = self.items.weight
        return weight if len(weight) == self.vocab_size else weight[: self.vocab_size]

    def forward(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        """States of right-padded item ids."""
        return self.encode(self.items(items), lengths)

    def newest(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"], n_parts: int = 4
    ) -> Float[Tensor, "B D"]:
        """Each sequence's newest state, for lengths that differ widely.

        The sequences are encoded in parts of like length: padding all to the longest would cost
        several times as much.
        """
        order = lengths.argsort()
        found = []
        for part in order.chunk(n_parts):
            width = int(lengths[part].max())
            found.append(last_states(self(items[part, :width], lengths[part]), lengths[part]))
        return torch.cat(found)[order.argsort()]

    def scores(self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Products of each history's newest state and the item embeddings."""
        return last_states(self(items, lengths), lengths) @ self.table.T


class TransformerEncoder(SequenceEncoder):
    """Item table, positions and self-attention blocks.

    Args:
        vocab_size: V rows of the item table.
        dim: width D.
        n_layers: blocks.
        n_heads: attention heads; divides `dim`.
        max_len: positions that have an embedding.
        dropout: on the embedding sum and both residual branches. Not on the attention weights: that
            changed no validation figure and keeps the fused attention kernel from running.
        causal: whether a position sees only itself and what came before. With right-padded
            batches a causal encoder needs no mask.
        n_extra: rows after the catalog's, for tokens that are no items (``[mask]`` is row V).
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        n_layers: int,
        n_heads: int,
        max_len: int,
        dropout: float,
        causal: bool = True,
        n_extra: int = 0,
    ) -> None:
        super().__init__(vocab_size, dim, n_extra)
        self.positions = nn.Embedding(max_len, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, n_heads, dropout, causal) for _ in range(n_layers)
        )
        self.causal = causal
        self.apply(initialize)

    @property
    def layers(self) -> "list[TransformerBlock]":
        """The blocks, for callers that pass through them in their own way."""
        return [block for block in self.blocks if isinstance(block, TransformerBlock)]

    def enter(self, embedded: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """What the first block is given, from a sum of embeddings."""
        entered: Tensor = self.dropout(self.norm(embedded))
        return entered

    def encode(
        self,
        embeddings: Float[Tensor, "B L D"],
        lengths: Int[Tensor, " B"],
        both_ways: bool = False,
    ) -> Float[Tensor, "B L D"]:
        """States of embeddings, for callers that bring their own (noisy ones, for example).

        With `both_ways` a position of a causal encoder, too, sees what comes after it.
        """
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
        """What follows attention: both residual branches of the states that asked."""
        attended = self.out(attended.transpose(1, 2).flatten(2))
        states = self.norm_attention(states + self.dropout(attended))
        widened = F.gelu(self.widen(states))
        states = self.norm_forward(states + self.dropout(self.narrow(widened)))
        return states


class SequenceDenoiser(nn.Module):
    """Restores clean embeddings at every position from noised ones; each position sees all others.

    The step is told as the sum of a small network of its sinusoid and the noised embeddings.

    Args:
        dim: width D, even and at least 4, for the sinusoid.
        n_layers: blocks of its own; 0 where it is always called with another encoder's.
        n_heads: attention heads; divides `dim`.
        max_len: positions that have an embedding.
        dropout: as in :class:`TransformerEncoder`.
    """

    def __init__(self, dim: int, n_layers: int, n_heads: int, max_len: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_len, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.of_step = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, n_heads, dropout, causal=False) for _ in range(n_layers)
        )
        self.apply(initialize)

    def forward(
        self,
        x_t: Float[Tensor, "B L D"],
        t: Int[Tensor, " B"],
        lengths: Int[Tensor, " B"],
        blocks: Iterable[nn.Module] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The restored embeddings; `blocks` are used instead of its own."""
        step = self.of_step(sinusoidal(t, x_t.shape[2]))[:, None]
        states: Tensor = self.norm(x_t + step + self.positions.weight[: x_t.shape[1]])
        states = self.dropout(states)
        seen = real_keys(lengths, x_t.shape[1])
        for block in self.blocks if blocks is None else blocks:
            states = block(states, seen)
        return states


def real_keys(lengths: Int[Tensor, " B"], length: int) -> Bool[Tensor, "B 1 1 L"]:
    """The mask of an attention in which every position sees all real ones."""
    return (torch.arange(length, device=lengths.device) < lengths[:, None])[:, None, None, :]


def last_states(states: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """The state at each history's newest item."""
    index = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
    return states.gather(1, index)[:, 0]


def mean_of_last(
    states: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], n: int
) -> Float[Tensor, "B D"]:
    """The mean of each sequence's newest n states, or of all if there are fewer."""
    place = torch.arange(states.shape[1], device=states.device)
    newest = (place < lengths[:, None]) & (place >= lengths[:, None] - n)
    return (states * newest[:, :, None]).sum(1) / newest.sum(1, keepdim=True)


def initialize(module: nn.Module) -> None:
    """Draws weights from N(0, 0.02²); biases and the padding row are zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INIT_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()
