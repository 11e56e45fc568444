"""GRU4Rec: a recurrent network that predicts each next item from those before it.

Source: Hidasi, Karatzoglou, Baltrunas & Tikk, "Session-based Recommendations with Recurrent Neural
Networks", ICLR 2016 (arXiv 1511.06939); Hidasi & Karatzoglou, CIKM 2018 (arXiv 1706.03847), for
BPR-max.

A layer of gated recurrent units reads the item embeddings; its output, brought back to their width,
is multiplied with all of them.

Departures and options:
- Trained on users' sequences, all positions of a user in one pass, by the full softmax. The
  originals put sessions side by side, begin each at the state zero and cut gradients at the batch;
  their negatives are the batch's other items and more drawn by popularity. Hidasi & Czapp (RecSys
  2023) found that versions which leave that out fall short of theirs: what is measured with this
  one is no measure of the original.
- ``loss="bpr_max"`` is their second paper's loss, with uniform negatives that all positions share.
- Embeddings and states are normed, and the item table is tied. Dropout is on the embeddings.
"""

from typing import Annotated

from pydantic import Field

from diffuserec.models.config import OnlyIf
from diffuserec.models.settings import EncoderName, EncoderSettings, LossSettings, PlainSettings
from diffuserec.training import NextItemRecommender


class GRU4Rec(NextItemRecommender):
    """Gated recurrent units with tied item embeddings."""

    class Config(PlainSettings, LossSettings, EncoderSettings):
        """Hyper-parameters of GRU4Rec."""

        encoder: EncoderName = "gru"
        """Name of the sequence encoder."""
        hidden_dim: Annotated[int, OnlyIf(encoder="gru")] = Field(128, ge=1)
        """Units."""

    config: Config
