"""gSASRec: SASRec with many negatives and a loss that corrects for their share.

Source: Petrov & Macdonald, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained
with Negative Sampling", RecSys 2023 (arXiv 2308.07192). ``--preset as_published`` is the authors'
released recipe for MovieLens-1M; by default width and length are this project's common ones.

Departures: the item table is tied, where the released code has a second one for scores by default;
the blocks are those of :class:`~diffuserec.recommenders.sasrec.SASRec`; an epoch passes over all
users, where the authors count 100 batches; scores count from where a constant is best
(``gbce_offset``).
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from diffuserec.models.config import OnlyIf
from diffuserec.models.encoders.transformer import PositionEncoding
from diffuserec.models.losses import takes_negatives
from diffuserec.models.settings import (
    LossName,
    NextItemSettings,
    PlainSettings,
    has_heads,
    has_position_encoding,
)
from diffuserec.training import NextItemRecommender


class GSASRec(NextItemRecommender):
    """Causal transformer trained by generalized binary cross entropy."""

    class Config(PlainSettings, NextItemSettings):
        """Hyper-parameters of gSASRec."""

        loss: LossName = "gbce"
        """Of the next item; see diffuserec.models.losses."""
        n_negatives: Annotated[int | None, OnlyIf(loss=takes_negatives)] = Field(256, ge=1)
        """For the sampled losses."""
        n_heads: Annotated[int, OnlyIf(encoder=has_heads)] = Field(1, ge=1)
        """Attention heads; a divisor of dim."""
        position_encoding: Annotated[PositionEncoding, OnlyIf(encoder=has_position_encoding)] = (
            "from_newest"
        )
        """How the encoder knows positions; see diffuserec.models.encoders.transformer."""
        batch_size: int = Field(128, ge=1)
        """Training examples a batch, on average."""

    config: Config
    as_published: ClassVar[Mapping[str, Any]] = {
        "dim": 128,
        "max_len": 200,
        "gbce_offset": False,
        "epochs": 21_000,
        "patience": 425,
        "average_epochs": 0.0,
    }
