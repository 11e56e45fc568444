"""HSTU's encoder: pointwise gated attention without a softmax.

Source: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for
Generative Recommendations", ICML 2024 (arXiv 2402.17152), in the form of the released code for
public logs. A layer adds to its input X

    U, V, Q, K = silu(norm(X) W),    A = silu(Q Kᵀ + bias) / max_len,    out(drop(U · norm(A V))),

where norms have no parameters and A is 0 for later positions. The bias is learned for each distance
of two positions, in each layer, and shared by the heads. Learned positions, counted from the newest
item, are added to the embeddings, and states are normed at the end.

With ``time_bias``, a learned number for each range of the time between two items is added to that
bias: the range floor(ln(max(1, t)) / 0.301) of t units of time, of a position's own item and an
earlier one.

Departures:
- The released code takes for the time of a position that of the *next* item, which nobody knows who
  recommends.
- Histories without times are read with the mean of the bias at each distance, over the training
  examples.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.config import Settings
from diffuserec.models.dropout import Dropout, dropout
from diffuserec.models.encoders import SequenceEncoder, check_heads, places_from_newest
from diffuserec.models.parts import summed

_EPS = 1e-6
_N_RANGES = 128


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
        time_bias: bool = False
        """Whether the time between two items matters, where the log has times."""

    pairs: Int64[Tensor, "W R"]

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
        self.reads_times = own.time_bias
        if own.time_bias:
            self.register_buffer("pairs", torch.zeros(max_len, _N_RANGES, dtype=torch.int64))

    @classmethod
    def check(cls, own: Settings, dim: int) -> None:
        assert isinstance(own, HSTUEncoder.Config)
        check_heads(dim, own.n_heads)

    def forward(
        self,
        embeddings: Float[Tensor, "B L D"],
        lengths: Int[Tensor, " B"],
        times: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """States of embeddings; `times` of the items are read with ``time_bias`` alone."""
        place = places_from_newest(lengths, embeddings.shape[1], self.max_len)
        scale = embeddings.shape[2] ** 0.5
        states: Tensor = self.dropout(embeddings * scale + self.positions(place))
        ranges, shares = self._of_times(times, lengths)
        for layer in self.layers:
            states = layer(states, ranges, shares)
        normed: Tensor = self.norm(states)
        return normed

    def _of_times(
        self, times: Int[Tensor, "B L"] | None, lengths: Int[Tensor, " B"]
    ) -> tuple[Int[Tensor, "B L L"] | None, Float[Tensor, "W R"] | None]:
        """The range of time between each position and each other one, or else the share of each
        range at each distance in training; neither if times don't matter."""
        if not self.reads_times:
            return None, None
        if not self.training and (times is None or not bool(self.pairs.any())):
            return None, self.pairs / self.pairs.sum(1, keepdim=True).clamp(min=1)
        if times is None:
            return None, None
        ranges = ranges_of_time(times)
        if self.training:  # counts the pairs of each example's newest position
            distance = lengths[:, None] - 1 - torch.arange(times.shape[1], device=times.device)
            real = distance >= 0
            of_newest = ranges[torch.arange(len(times)), (lengths - 1).clamp(min=0)][real]
            found = distance[real] * _N_RANGES + of_newest
            counts = torch.bincount(found, minlength=self.pairs.numel())
            self.pairs += summed(counts).view_as(self.pairs)
        return ranges, None


class HSTULayer(nn.Module):
    """Pointwise attention whose result is normed, gated and added to the input."""

    def __init__(self, dim: int, max_len: int, dropout: float, own: HSTUEncoder.Config) -> None:
        super().__init__()
        self.max_len, self.n_heads = max_len, own.n_heads
        self.attention_dropout = own.attention_dropout
        self.project = nn.Linear(dim, 4 * dim, bias=False)
        self.distances = nn.Embedding(max_len, 1)
        self.times = nn.Embedding(_N_RANGES, 1) if own.time_bias else None
        self.out = nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        states: Float[Tensor, "B L D"],
        ranges: Int[Tensor, "B L L"] | None = None,
        shares: Float[Tensor, "W R"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """The next states.

        Args:
            ranges: of the time between each position (row) and each other one.
            shares: of the ranges at each distance, where times are not known.
        """
        _, length, dim = states.shape
        projected = F.silu(self.project(F.layer_norm(states, (dim,), eps=_EPS)))
        gate, *others = projected.chunk(4, dim=2)
        value, query, key = (
            part.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for part in others
        )
        position = torch.arange(length, device=states.device)
        distance = position[:, None] - position
        bias = self.distances(distance.clamp(min=0))[:, :, 0]
        if self.times is not None and shares is not None:
            bias = bias + (shares @ self.times.weight)[distance.clamp(min=0), 0]
        if self.times is not None and ranges is not None:
            bias = (bias + self.times(ranges)[:, :, :, 0])[:, None]
        weights = F.silu(query @ key.transpose(2, 3) + bias) / self.max_len
        weights = weights.masked_fill(distance < 0, 0)
        if self.training:
            weights = dropout(weights, self.attention_dropout)
        attended = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        gated = gate * F.layer_norm(attended, (dim,), eps=_EPS)
        added: Tensor = states + self.out(self.dropout(gated))
        return added


def ranges_of_time(times: Int[Tensor, "B L"]) -> Int[Tensor, "B L L"]:
    """Number of the range in which the time from each position (column) to each other one lies.

    A range is 1.35 times as long as the one before it; 0 holds the same time, and what is later.
    """
    between = (times[:, :, None] - times[:, None, :]).clamp(min=1)
    return (between.float().log() / 0.301).long().clamp(max=_N_RANGES - 1)
