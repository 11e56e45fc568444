"""An encoder without attention: what came before fades, at a rate learned for each column.

With x the embeddings, a position's memory is h[t] = a h[t - 1] + x[t], where 0 < a < 1; its state
is a small network's of it. Nothing of later positions enters, so that all positions of a user train
at once.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.config import Settings
from diffuserec.models.encoders import SequenceEncoder


class FadingEncoder(SequenceEncoder):
    """Sums of the embeddings so far, the older the less, and a feed-forward network."""

    class Config(Settings):
        """Settings of this encoder's own."""

        widening: int = Field(4, ge=1)
        """Width of the network, in widths of the states."""

    sees = "before"

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(dim))
        self.norm_memory, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, own.widening * dim)
        self.narrow = nn.Linear(own.widening * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def reset_parameters(self) -> None:
        """Draws initial weights as all encoders do, and a between .27 and .95."""
        super().reset_parameters()
        nn.init.uniform_(self.logits, -1, 3)

    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        position = torch.arange(embeddings.shape[1], device=embeddings.device)
        distance = (position[:, None] - position)[:, :, None]
        left = self.logits.sigmoid() ** distance.clamp(min=0)
        left = left.masked_fill(distance < 0, 0)
        memory = torch.einsum("qkd,bkd->bqd", left, embeddings)
        memory = self.dropout(self.norm_memory(memory))
        passed = self.dropout(self.narrow(F.gelu(self.widen(memory))))
        states: Tensor = self.norm(memory + passed)
        return states
