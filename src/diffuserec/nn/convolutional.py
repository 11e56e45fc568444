"""Caser's sequence encoder: convolutions over the window of newest items (Tang & Wang, WSDM 2018).

Each position has its own window, which ends there. Horizontal filters read whole items, some at a
time, and keep their largest response in the window; vertical ones are weighted sums of the window.
No window is ever made: a horizontal filter runs once along the sequence, and a maximum slides over
its responses, so that all positions cost about what one costs for each of them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffuserec.nn.encoders import SequenceEncoder, initialize


class CaserEncoder(SequenceEncoder):
    """Item table, horizontal and vertical filters, a linear layer.

    Before a sequence's first item there is nothing: no filter is placed where it would read no
    item, and one that begins earlier reads zeros there.

    Args:
        vocab_size: V rows of the item table.
        dim: width D of items and states.
        window: newest items that a state sees, itself included.
        n_horizontal: filters of each height from 1 to `window`.
        n_vertical: weighted sums.
        dropout: on the responses.
        rectified: whether a state is the linear layer's ReLU, none of whose components is
            negative, or its LayerNorm.
        n_extra: rows after the catalog's, for tokens that are no items (``[mask]`` is row V).
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        window: int,
        n_horizontal: int,
        n_vertical: int,
        dropout: float,
        rectified: bool = False,
        n_extra: int = 0,
    ) -> None:
        super().__init__(vocab_size, dim, n_extra)
        self.window = window
        self.norm_in = nn.LayerNorm(dim)
        self.horizontal = nn.ModuleList(
            nn.Conv1d(dim, n_horizontal, height) for height in range(1, window + 1)
        )
        self.vertical = nn.Linear(window, n_vertical)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(n_horizontal * window + n_vertical * dim, dim)
        self.last = nn.ReLU() if rectified else nn.LayerNorm(dim)
        self.items.apply(initialize)

    def encode(
        self, embeddings: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        channels = F.pad(self.norm_in(embeddings).transpose(1, 2), (self.window - 1, 0))
        responses = []
        for height, filters in enumerate(self.horizontal, 1):
            n_earlier = self.window - height  # places for the filter in a window, but one
            found = F.relu(filters(channels[:, :, n_earlier:]))
            largest = F.max_pool1d(F.pad(found, (n_earlier, 0)), n_earlier + 1, stride=1)
            responses.append(largest.transpose(1, 2))
        sums = self.vertical(channels.unfold(2, self.window, 1))
        responses.append(sums.permute(0, 2, 3, 1).flatten(2))
        states: Tensor = self.last(self.out(self.dropout(torch.cat(responses, dim=2))))
        return states
