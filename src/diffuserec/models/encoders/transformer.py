"""Transformer encoder of the BERT lineage: self-attention blocks with learned positions.

LayerNorm on the embedding sum and after each residual (post-norm), GELU, weights drawn from
N(0, 0.02²). On sparse logs that recipe learned several times faster than pre-norm
(docs/methods/sasrec.md).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.errors import ConfigError
from diffuserec.models.attention import attend
from diffuserec.models.config import Settings
from diffuserec.models.encoders import (
    ReadSlots,
    SequenceEncoder,
    check_heads,
    places_from_newest,
    real_keys,
)

PositionEncoding = Literal["from_oldest", "from_newest", "relative", "alibi", "rotary", "none"]
"""How a transformer knows positions: by a learned vector of each, counted from the oldest item or
from the newest; or by the distance of two, as a learned bias of their attention (Raffel et al.,
JMLR 2020), as one that falls with it (ALiBi: Press, Smith & Lewis, ICLR 2022), or as a rotation of
queries and keys (Su et al., 2021); or not at all."""


class TransformerEncoder(SequenceEncoder):
    """Positions and self-attention blocks.

    Dropout is on the embedding sum and both residual branches, and by `attention_dropout` on the
    attention weights; without that and without biases by distance, the fused attention kernel runs.
    With right-padded batches a causal encoder needs no mask of the padding.
    """

    class Config(Settings):
        """Settings of a transformer's own."""

        n_layers: int = Field(2, ge=1)
        """Blocks."""
        n_heads: int = Field(2, ge=1)
        """Attention heads; a divisor of dim."""
        attention_dropout: float = Field(default=0.0, ge=0, lt=1)
        """Chance that an attention weight is dropped."""
        position_encoding: PositionEncoding = "relative"
        """How positions are known."""
        activation: Literal["gelu", "relu", "silu"] = "gelu"
        """Of the feed-forward networks."""

    sees = "either"
    takes_slots = True

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__()
        self.kind = own.position_encoding
        self.max_len, self.n_heads = max_len, own.n_heads
        if self.is_absolute:
            self.positions = nn.Embedding(max_len, dim)
        elif self.kind == "relative":
            self.distances = nn.Embedding(2 * max_len - 1, own.n_heads)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim, own.n_heads, dropout, causal, own.attention_dropout, own.activation
            )
            for _ in range(own.n_layers)
        )
        self.causal = causal

    @classmethod
    def check(cls, own: Settings, dim: int) -> None:
        assert isinstance(own, TransformerEncoder.Config)
        check_heads(dim, own.n_heads)
        if own.position_encoding == "rotary" and (dim // own.n_heads) % 2:
            raise ValueError(
                f"position_encoding 'rotary' needs heads of an even width, and dim {dim} divided "
                f"by n_heads {own.n_heads} is {dim // own.n_heads}"
            )

    @property
    def is_absolute(self) -> bool:
        """Whether positions are vectors that are added to the embeddings."""
        return self.kind in ("from_oldest", "from_newest")

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
        states, seen, rotation = self._begin(embeddings, lengths, both_ways)
        for block in self.layers:
            states = block(states, seen, rotation)
        return states

    def newest(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """State at the newest item, for which the last block computes one position alone."""
        states, seen, rotation = self._begin(embeddings, lengths, both_ways=False)
        *others, last = self.layers
        for block in others:
            states = block(states, seen, rotation)
        at = (lengths - 1).clamp(min=0)
        distance = at[:, None, None] - torch.arange(states.shape[1], device=states.device)
        real = real_keys(at + 1, states.shape[1])
        return last.newest(states, at, self._seen(distance, real), rotation)

    def beside(self, embeddings: Float[Tensor, "B L D"]) -> ReadSlots:
        history = self._keys_and_values(embeddings)

        def read(slots: Tensor, n_before: Tensor) -> Tensor:
            alone = torch.eye(slots.shape[1], dtype=torch.bool, device=slots.device)
            return self._read(history, slots, n_before, n_before, alone[None])

        return read

    def blocks_beside(
        self,
        embeddings: Float[Tensor, "B L D"],
        slots: Float[Tensor, "B S D"],
        n_before: Int[Tensor, "B S"],
        place: Int[Tensor, "B S"],
    ) -> Float[Tensor, "B S D"]:
        """States of slots in blocks: those with as many positions before them see one another.

        Args:
            n_before: first positions of the sequence that a slot sees.
            place: where it stands, counted as the sequence's positions are.
        """
        together = n_before[:, :, None] == n_before[:, None]
        return self._read(self._keys_and_values(embeddings), slots, n_before, place, together)

    def _keys_and_values(
        self, embeddings: Float[Tensor, "B L D"]
    ) -> list[tuple[Float[Tensor, "B H L E"], Float[Tensor, "B H L E"]]]:
        """What slots beside a sequence see of it in each block."""
        if self.kind == "from_newest":
            raise ConfigError(
                "position_encoding 'from_newest' has no slots beside a sequence: an item would "
                "have another place for each"
            )
        lengths = torch.full(embeddings.shape[:1], embeddings.shape[1], device=embeddings.device)
        states, seen, rotation = self._begin(embeddings, lengths, both_ways=False)
        found = []
        *others, last = self.layers
        for block in others:
            query, key, value = block.heads(states, rotation)
            found.append((key, value))
            states = block.after(states, block.attend(query, key, value, seen))
        found.append(last.heads(states, rotation)[1:])
        return found

    def _read(
        self,
        history: list[tuple[Float[Tensor, "B H L E"], Float[Tensor, "B H L E"]]],
        slots: Float[Tensor, "B S D"],
        n_before: Int[Tensor, "#B S"],
        place: Int[Tensor, "#B S"],
        together: Bool[Tensor, "#B S S"],
    ) -> Float[Tensor, "B S D"]:
        """States of slots that see first positions of a sequence, and one another as told."""
        position = torch.arange(history[0][0].shape[2], device=slots.device)
        others = torch.cat([position.expand(len(place), -1), place], dim=1)
        visible = torch.cat(
            [position < n_before[:, :, None], together.expand(len(place), -1, -1)], dim=2
        )
        seen = self._seen(place[:, :, None] - others[:, None], visible[:, None])
        rotation = self._rotation(place[:, None])
        if self.kind == "from_oldest":
            slots = slots + F.embedding(place, self.positions.weight)
        states = self.enter(slots)
        for block, (key, value) in zip(self.layers, history, strict=True):
            query, own_key, own_value = block.heads(states, rotation)
            keys, values = (
                torch.cat([key, own_key], dim=2),
                torch.cat([value, own_value], dim=2),
            )
            states = block.after(states, block.attend(query, keys, values, seen))
        return states

    def _begin(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"], both_ways: bool
    ) -> "tuple[Tensor, Tensor | None, Rotation | None]":
        """Input of the first block, what every position sees there, and the turns of positions."""
        length = embeddings.shape[1]
        if self.kind == "from_oldest":
            embeddings = embeddings + self.positions.weight[:length]
        elif self.kind == "from_newest":
            place = places_from_newest(lengths, length, self.max_len)
            embeddings = embeddings + self.positions(place)
        position = torch.arange(length, device=embeddings.device)
        distance = position[:, None] - position
        forward = self.causal and not both_ways
        seen = None if forward else real_keys(lengths, length)
        if self.kind in ("relative", "alibi"):
            seen = self._seen(distance[None], distance >= 0 if seen is None else seen)
        return self.enter(embeddings), seen, self._rotation(position)

    def _rotation(self, positions: Int[Tensor, "*b L"]) -> "Rotation | None":
        """The turns of positions, if they are known by turns."""
        if self.kind != "rotary":
            return None
        return rotations(positions, self.norm.normalized_shape[0] // self.n_heads)

    def _seen(
        self, distance: Int[Tensor, "#B Q L"], real: Bool[Tensor, "*m"]
    ) -> Bool[Tensor, "*m"] | Float[Tensor, "#B #H Q L"]:
        """The keys that queries see, with the biases of how far before a query each stands."""
        if self.kind not in ("relative", "alibi"):
            return real
        if self.kind == "relative":
            bias = self.distances(distance + self.max_len - 1).permute(0, 3, 1, 2)
        else:
            head = torch.arange(1, self.n_heads + 1, device=real.device)
            slopes = torch.exp2(-8 * head / self.n_heads)
            bias = -slopes[:, None, None] * distance.abs()[:, None]
        seen: Tensor = bias.masked_fill(~real, -torch.inf)
        return seen


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class TransformerBlock(nn.Module):
    """Self-attention and a feed-forward network of four times the width, each post-normed."""

    def __init__(
        self,
        dim: int,
        n_heads: int,
        dropout: float,
        causal: bool,
        attention_dropout: float = 0.0,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.causal = causal
        self.attention_dropout = attention_dropout
        self.activation = _ACTIVATIONS[activation]
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.widen = nn.Linear(dim, 4 * dim)
        self.narrow = nn.Linear(4 * dim, dim)
        self.norm_attention = nn.LayerNorm(dim)
        self.norm_forward = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        states: Float[Tensor, "B L D"],
        seen: Bool[Tensor, "#B #H #L L"] | Float[Tensor, "#B #H #L L"] | None = None,
        rotation: "Rotation | None" = None,
    ) -> Float[Tensor, "B L D"]:
        """The next states.

        Args:
            seen: the keys that every position sees, in a causal block too; or biases.
            rotation: turns of queries and keys by their position.
        """
        return self.after(states, self.attend(*self.heads(states, rotation), seen))

    def newest(
        self,
        states: Float[Tensor, "B L D"],
        at: Int[Tensor, " B"],
        seen: Bool[Tensor, "B 1 1 L"] | Float[Tensor, "B #H 1 L"],
        rotation: "Rotation | None" = None,
    ) -> Float[Tensor, "B D"]:
        """The next state at one position of each sequence."""
        dim = states.shape[2]
        chosen = states.gather(1, at[:, None, None].expand(-1, 1, dim))
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        (query,) = self._split(F.linear(chosen, weight[:dim], bias[:dim]))
        key, value = self._split(F.linear(states, weight[dim:], bias[dim:]))
        if rotation is not None:
            cosines, sines = rotation
            query = rotate(query, (cosines[at][:, None, None], sines[at][:, None, None]))
            key = rotate(key, rotation)
        return self.after(chosen, self.attend(query, key, value, seen))[:, 0]

    def heads(
        self, states: Float[Tensor, "B L D"], rotation: "Rotation | None" = None
    ) -> tuple[Float[Tensor, "B H L E"], Float[Tensor, "B H L E"], Float[Tensor, "B H L E"]]:
        """Queries, keys and values of H heads of width E = D / H."""
        query, key, value = self._split(self.query_key_value(states))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return query, key, value

    def attend(
        self,
        query: Float[Tensor, "B H Q E"],
        key: Float[Tensor, "B H L E"],
        value: Float[Tensor, "B H L E"],
        seen: Bool[Tensor, "#B #H #Q L"] | Float[Tensor, "#B #H #Q L"] | None,
    ) -> Float[Tensor, "B H Q E"]:
        """Means of the values seen: by `seen`, or in a causal block those up to each query."""
        chance = self.attention_dropout if self.training else 0.0
        return attend(query, key, value, seen, self.causal and seen is None, chance)

    def after(
        self, states: Float[Tensor, "B L D"], attended: Float[Tensor, "B H L E"]
    ) -> Float[Tensor, "B L D"]:
        """The rest of the block after attention: projection, feed-forward, residuals and norms."""
        attended = self.out(attended.transpose(1, 2).flatten(2))
        states = self.norm_attention(states + self.dropout(attended))
        widened = self.activation(self.widen(states))
        states = self.norm_forward(states + self.dropout(self.narrow(widened)))
        return states

    def _split(self, x: Float[Tensor, "B L N"]) -> Float[Tensor, "n B H L E"]:
        width = self.out.in_features // self.n_heads
        return x.view(*x.shape[:2], -1, self.n_heads, width).permute(2, 0, 3, 1, 4)


Rotation = tuple[Float[Tensor, "*b L F"], Float[Tensor, "*b L F"]]
"""Cosines and sines of the angles of positions, F = E / 2 of each."""


def rotations(positions: Int[Tensor, "*b L"], width: int) -> Rotation:
    """The turns of positions: position p turns pair f by p / 10000^(2f / width)."""
    pairs = torch.arange(0, width, 2, device=positions.device)
    angles = positions[..., None] * torch.exp(pairs * (-math.log(10000.0) / width))
    return angles.cos(), angles.sin()


def rotate(x: Float[Tensor, "B H L E"], rotation: Rotation) -> Float[Tensor, "B H L E"]:
    """Vectors with their first and second half turned against each other, as pairs of a plane."""
    cosines, sines = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, dim=3)
    return torch.cat([a * cosines - b * sines, a * sines + b * cosines], dim=3)
