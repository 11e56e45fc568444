"""eSASRec: SASRec with gated LiGR layers and a sampled softmax.

Source: Tikhonovich, Kuzmin, Klenitskiy, Vasilev et al., "eSASRec: Enhancing Transformer-based
Recommendations in a Modular Fashion", RecSys 2025 (arXiv 2508.06450). ``--preset as_published`` is
the authors' released recipe for Amazon Beauty.

Departures:
- Negatives are uniform and shared by a batch, with the correction that makes the sampled softmax an
  estimate of the full one.
- By default width, layers and length are this project's common ones (64, 2, 50), and 2 heads.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from diffuserec.models.config import OnlyIf
from diffuserec.models.losses import takes_negatives
from diffuserec.models.settings import (
    EncoderName,
    LossName,
    NextItemSettings,
    PlainSettings,
)
from diffuserec.training import NextItemRecommender


class ESASRec(NextItemRecommender):
    """Gated attention and SwiGLU layers with tied item embeddings."""

    class Config(PlainSettings, NextItemSettings):
        """Hyper-parameters of eSASRec; its encoder explains widening."""

        encoder: EncoderName = "ligr"
        """Name of the sequence encoder."""
        widening: Annotated[int, OnlyIf(encoder="ligr")] = Field(4, ge=1)
        """Width of the networks, in widths of the states."""
        loss: LossName = "sampled_softmax"
        """Of the next item; see diffuserec.models.losses."""
        n_negatives: Annotated[int | None, OnlyIf(loss=takes_negatives)] = Field(256, ge=1)
        """For the sampled losses."""
        dropout: float = Field(0.2, ge=0, lt=1)
        """Share of values that training sets to zero."""
        batch_size: int = Field(128, ge=1)
        """Training examples a batch, on average."""

    config: Config
    as_published: ClassVar[Mapping[str, Any]] = {
        "dim": 256,
        "n_layers": 1,
        "n_heads": 1,
        "epochs": 200,
        "average_epochs": 0.0,
    }
