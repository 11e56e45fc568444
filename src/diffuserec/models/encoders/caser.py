"""Convolutional encoder of Caser: filters over a window of newest items (Tang & Wang, WSDM 2018).

Each position has its own window, which ends there. Horizontal filters read whole items, some at a
time, and keep their largest response in the window; vertical ones are weighted sums of the window.
No window is ever made: a horizontal filter runs once along the sequence, and a maximum slides over
its responses, so that all positions cost about what one costs for each of them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.models.config import Settings
from diffuserec.models.encoders import SequenceEncoder


class CaserEncoder(SequenceEncoder):
    """Horizontal and vertical filters and a linear layer.

    Before a sequence's first item there is nothing: no filter is placed where it would read no
    item, and one that begins earlier reads zeros there. Dropout is on the responses; there is no
    greatest length.
    """

    class Config(Settings):
        """Settings of Caser's convolutions."""

        window: int = Field(5, ge=1)
        """Newest items that a state sees; filters have every height from 1 to this."""
        n_horizontal: int = Field(16, ge=1)
        """Filters of each height."""
        n_vertical: int = Field(4, ge=1)
        """Weighted sums of the window's items."""
        relu_output: bool = False
        """Whether a state is a ReLU, without negative components, or a LayerNorm."""

    def __init__(
        self, dim: int, max_len: int, dropout: float, own: Config, causal: bool = True
    ) -> None:
        super().__init__()
        self.window = own.window
        self.norm_in = nn.LayerNorm(dim)
        self.horizontal = nn.ModuleList(
            nn.Conv1d(dim, own.n_horizontal, height) for height in range(1, own.window + 1)
        )
        self.vertical = nn.Linear(own.window, own.n_vertical)
        self.dropout = nn.Dropout(dropout)
        n_responses = own.n_horizontal * own.window + own.n_vertical * dim
        self.out = nn.Linear(n_responses, dim)
        self.last = nn.ReLU() if own.relu_output else nn.LayerNorm(dim)

    def reset_parameters(self) -> None:
        """Keeps the weights that torch drew for filters and layers."""

    def forward(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        channels = F.pad(self.norm_in(embeddings).transpose(1, 2), (self.window - 1, 0))
        responses = []
        for height, filters in enumerate(self.horizontal, 1):
            n_earlier = self.window - height  # further positions of the filter in a window
            found = F.relu(filters(channels[:, :, n_earlier:]))
            # in two dimensions, which graphs take with any length
            padded = F.pad(found, (n_earlier, 0))[:, :, None]
            largest = F.max_pool2d(padded, (1, n_earlier + 1), stride=1)[:, :, 0]
            responses.append(largest.transpose(1, 2))
        sums = self.vertical(channels.unfold(2, self.window, 1))
        responses.append(sums.permute(0, 2, 3, 1).flatten(2))
        states: Tensor = self.last(self.out(self.dropout(torch.cat(responses, dim=2))))
        return states
