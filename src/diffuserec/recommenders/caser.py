"""Caser: convolutions over the newest few items, read as an image, predict the next ones.

Source: Tang & Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence
Embedding", WSDM 2018 (arXiv 1809.07426), and its authors' released code.

The window of the ``window`` newest items is an image of that many rows and ``dim`` columns.
``n_horizontal`` filters of each height, all columns wide, are passed over it and keep their largest
response (ReLU); ``n_vertical`` filters of one column are weighted sums of its rows. A linear layer
of all that is the state, and its product with an item's embedding the score.

Departures and options:
- No vector of the user: whoever has a history can be recommended to. The paper joins one to the
  state.
- The item table is tied; the released code has one of its own for scores, with a bias.
- The state is normed. ``relu_output=True`` is the paper's ReLU instead, with no negative component.
- All positions of a user train in one pass, each with the window that ends there. In a window that
  reaches beyond the first item, filters are not placed where they would read padding alone.
- ``loss="softmax"``; the released command is ``bce`` with ``n_negatives=3``.
- ``n_targets=3`` predicts the next three items from each position, as the paper does.
"""

from typing import Annotated

from pydantic import Field

from diffuserec.models.config import OnlyIf
from diffuserec.models.settings import EncoderName, EncoderSettings, TargetsSettings
from diffuserec.training import NextItemRecommender


class Caser(NextItemRecommender):
    """Horizontal and vertical convolutions with tied item embeddings."""

    class Config(TargetsSettings, EncoderSettings):
        """Hyper-parameters of Caser."""

        encoder: EncoderName = "caser"
        """Name of the sequence encoder."""
        window: Annotated[int, OnlyIf(encoder="caser")] = Field(5, ge=1)
        """Newest items that a state sees; filters have every height from 1 to this."""
        n_horizontal: Annotated[int, OnlyIf(encoder="caser")] = Field(16, ge=1)
        """Filters of each height."""
        n_vertical: Annotated[int, OnlyIf(encoder="caser")] = Field(4, ge=1)
        """Weighted sums of the window's items."""
        relu_output: Annotated[bool, OnlyIf(encoder="caser")] = False
        """Whether a state is a ReLU, without negative components, or a LayerNorm."""

    config: Config
