"""Caser: convolutions over the newest few items, read as an image, predict the next ones.

Source: Tang & Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence
Embedding", WSDM 2018 (arXiv 1809.07426), and its authors' released code.

The ``window`` newest items are an image of ``dim`` columns. ``n_horizontal`` filters of each height
keep their largest response; ``n_vertical`` ones sum its rows. A linear layer of all is the state.

Departures and options:
- No vector of the user, which the paper joins to the state.
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
from diffuserec.models.settings import (
    EncoderName,
    EncoderSettings,
    PlainSettings,
    TargetsSettings,
)
from diffuserec.training import NextItemRecommender


class Caser(NextItemRecommender):
    """Horizontal and vertical convolutions with tied item embeddings."""

    class Config(PlainSettings, TargetsSettings, EncoderSettings):
        """Hyper-parameters of Caser; its encoder explains those of the filters."""

        encoder: EncoderName = "caser"
        window: Annotated[int, OnlyIf(encoder="caser")] = Field(5, ge=1)
        n_horizontal: Annotated[int, OnlyIf(encoder="caser")] = Field(16, ge=1)
        n_vertical: Annotated[int, OnlyIf(encoder="caser")] = Field(4, ge=1)
        relu_output: Annotated[bool, OnlyIf(encoder="caser")] = False

    config: Config
