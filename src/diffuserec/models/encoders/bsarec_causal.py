"""BSARec's layers where no position sees a later one, so that all targets train at once.

The layers are those of :class:`~diffuserec.models.encoders.bsarec.BSARecEncoder`. What differs:

- The low frequencies of a position are taken from itself and the positions before it. For max_len
  positions and the F lowest frequencies, the position that is n after another has the weight

      k(n) = (1 + 2 Σ_f cos(2π f n / max_len)) / max_len,    f = 1 … F - 1 < max_len / 2,

  of that other: for the newest of a full history it is exactly BSARec's filter in its first layer.
- Positions are known by their distance: a learned bias of the attention for each distance and head.
- No padding enters.

A position's state is the same however the sequence goes on, which makes an epoch over all positions
of all users several times cheaper than one over all prefixes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuserec.models.config import Settings
from diffuserec.models.dropout import Dropout
from diffuserec.models.encoders import EPS, ReadSlots, SequenceEncoder, check_heads, last_states
from diffuserec.models.encoders.bsarec import BSARecEncoder, BSARecLayer, low_waves


class CausalBSARecEncoder(SequenceEncoder):
    """Layers of a filter, attention and a network over what came before."""

    class Config(BSARecEncoder.Config):
        """Settings of the layers."""

    takes_slots = True

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__()
        self.distances = nn.Embedding(max_len, own.n_heads)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(BSARecLayer(dim, dropout, own) for _ in range(own.n_layers))
        self.register_buffer("smoothing", causal_smoothing(max_len, own.n_low), persistent=False)

    @classmethod
    def check(cls, own: Settings, dim: int) -> None:
        assert isinstance(own, CausalBSARecEncoder.Config)
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
        return self._passed(embeddings, len(self.layers))[-1]

    def newest(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B D"]:
        """State at the newest item, for which the last layer computes one position alone."""
        states = self._passed(embeddings, len(self.layers) - 1)[-1]
        position = torch.arange(embeddings.shape[1], device=embeddings.device)
        distance = (lengths.clamp(min=1) - 1)[:, None, None] - position
        # the layer reads its last position: a copy of the newest one, which that one does not see
        smoothing, visible = self._by_distance(F.pad(distance, (0, 1), value=-1))
        copied = torch.cat([states, last_states(states, lengths)[:, None]], dim=1)
        layer = self.layers[-1]
        assert isinstance(layer, BSARecLayer)
        return layer.last(copied, smoothing, visible)[:, 0]

    def beside(self, embeddings: Float[Tensor, "B L D"]) -> ReadSlots:
        inputs = self._passed(embeddings, len(self.layers) - 1)
        position = torch.arange(embeddings.shape[1], device=embeddings.device)

        def read(slots: Tensor, n_before: Tensor) -> Tensor:
            before = n_before[:, :, None] - position
            before = before.masked_fill(before == 0, -1)  # a slot stands in the next one's place
            itself = torch.eye(slots.shape[1], dtype=torch.int64, device=slots.device) - 1
            distance = torch.cat([before, itself.expand(before.shape[0], -1, -1)], dim=2)
            smoothing, visible = self._by_distance(distance)
            states: Tensor = self.dropout(self.norm(slots))
            for layer, history in zip(self.layers, inputs, strict=True):
                assert isinstance(layer, BSARecLayer)
                states = layer.last(torch.cat([history, states], dim=1), smoothing, visible)
            return states

        return read

    def _passed(
        self, embeddings: Float[Tensor, "B L D"], n_layers: int
    ) -> list[Float[Tensor, "B L D"]]:
        """The input of the first layer, and the states after each of so many."""
        position = torch.arange(embeddings.shape[1], device=embeddings.device)
        smoothing, visible = self._by_distance((position[:, None] - position)[None])
        states = [self.dropout(self.norm(embeddings))]
        for layer in self.layers[:n_layers]:
            states.append(layer(states[-1], smoothing[0], visible))
        return states

    def _by_distance(
        self, distance: Int[Tensor, "#B Q L"]
    ) -> tuple[Float[Tensor, "#B Q L"], Float[Tensor, "#B H Q L"]]:
        """Weights in the low-pass and biases of attention, by how far back another position is.

        What is a negative distance back is not seen.
        """
        hidden, distance = distance < 0, distance.clamp(min=0)
        smoothing = self.get_buffer("smoothing")[distance, 0].masked_fill(hidden, 0)
        bias: Tensor = self.distances(distance).permute(0, 3, 1, 2)
        return smoothing, bias.masked_fill(hidden[:, None], -torch.inf)


def causal_smoothing(length: int, n_low: int) -> Float[Tensor, "L L"]:
    """Weights of the low-pass: of an earlier position (column) for a later one (row), else zero."""
    waves = low_waves(length, n_low)
    weights = waves.T @ waves[:, 0]  # by distance: the projection is circular
    position = torch.arange(length)
    distance = position[:, None] - position
    return weights[distance.clamp(min=0)].masked_fill(distance < 0, 0)
