"""Recurrent encoder: gated recurrent units (Cho et al., EMNLP 2014).

Embeddings are normed before the units, as in the transformer, and states after them.
"""

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.config import Settings
from diffuserec.models.encoders import SequenceEncoder


class GRUEncoder(SequenceEncoder):
    """One layer of gated recurrent units, and a linear layer back to the embeddings' width.

    Args:
        dim: width D of embeddings and states.
        max_len: not read: units go on for as long as there are items.
        dropout: on the units' input.
        hidden_dim: units.
        causal: always; units read forward.
    """

    class Config(Settings):
        """Settings of gated recurrent units' own."""

        hidden_dim: int = Field(128, ge=1)
        """Units."""

    def __init__(
        self, dim: int, max_len: int, dropout: float, hidden_dim: int = 128, causal: bool = True
    ) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.units = nn.GRU(dim, hidden_dim, batch_first=True)
        self.out = nn.Linear(hidden_dim, dim)
        self.norm_out = nn.LayerNorm(dim)

    def reset_parameters(self) -> None:
        """Keeps the weights that torch drew for units and layers."""

    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        entered: Tensor = self.dropout(self.norm_in(embeddings))
        # in float32: what is rounded in one step goes into all later ones
        with torch.autocast(entered.device.type, enabled=False):
            hidden, _ = self.units(entered.float())
        states: Tensor = self.norm_out(self.out(hidden))
        return states
