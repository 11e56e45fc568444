"""A recurrent sequence encoder: gated recurrent units (Cho et al., EMNLP 2014).

Item embeddings are normed as in the transformer, and so is what comes out.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuserec.nn.encoders import SequenceEncoder, initialize


class GRUEncoder(SequenceEncoder):
    """Item table, one layer of gated recurrent units, a linear layer back to the table's width.

    Args:
        vocab_size: V rows of the item table.
        dim: width D of items and states.
        hidden_dim: units.
        dropout: on what the units are given.
        n_extra: rows after the catalog's, for tokens that are no items (``[mask]`` is row V).
    """

    def __init__(
        self, vocab_size: int, dim: int, hidden_dim: int, dropout: float, n_extra: int = 0
    ) -> None:
        super().__init__(vocab_size, dim, n_extra)
        self.norm_in = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.units = nn.GRU(dim, hidden_dim, batch_first=True)
        self.out = nn.Linear(hidden_dim, dim)
        self.norm_out = nn.LayerNorm(dim)
        self.items.apply(initialize)

    def encode(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        entered: Tensor = self.dropout(self.norm_in(embeddings))
        # in float32: what is rounded in one step goes into all later ones
        with torch.autocast(entered.device.type, enabled=False):
            hidden, _ = self.units(entered.float())
        states: Tensor = self.norm_out(self.out(hidden))
        return states
