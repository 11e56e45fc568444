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

    Dropout is on the units' input; there is no greatest length.
    """

    class Config(Settings):
        """Settings of gated recurrent units' own."""

        hidden_dim: int = Field(128, ge=1)
        """Units."""

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.units = nn.GRU(dim, own.hidden_dim, batch_first=True)
        self.out = nn.Linear(own.hidden_dim, dim)
        self.norm_out = nn.LayerNorm(dim)

    def reset_parameters(self) -> None:
        """Keeps the weights that torch drew for units and layers."""

    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        entered: Tensor = self.dropout(self.norm_in(embeddings))
        if torch.compiler.is_exporting():
            hidden = scanned(self.units, entered.float())
        else:
            # in float32: what is rounded in one step goes into all later ones
            with torch.autocast(entered.device.type, enabled=False):
                hidden, _ = self.units(entered.float())
        states: Tensor = self.norm_out(self.out(hidden))
        return states


def scanned(units: nn.GRU, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L H"]:
    """What the units give, as a loop that a graph holds for any length."""
    from torch._higher_order_ops.scan import scan

    weights = units.all_weights[0]
    states: Tensor = scan(
        lambda hidden, read: (lambda new: (new, new.clone()))(
            torch.gru_cell(read, hidden, *weights)
        ),
        x.new_zeros(x.shape[0], units.hidden_size),
        x,
        dim=1,
    )[1]
    return states
