"""BSARec: self-attention beside a low-pass filter.

Source: Shin, Choi, Wi & Park, "An Attentive Inductive Bias for Sequential Recommendation beyond
the Self-Attention", AAAI 2024 (arXiv 2312.10325). ``--preset as_published`` is the authors'
released recipe for Amazon Beauty.

Departures:
- By default the layers are causal (encoder ``bsarec_causal``), and all positions of a user train in
  one pass, where the paper trains on one prefix and its next item at a time, at several times the
  cost (docs/methods/bsarec.md).
- The padding item is no candidate in the softmax of the loss, as everywhere here.
- Training stops by validation NDCG@10 with seen items hidden; the authors' by NDCG@20, with the
  scores of seen items set to 0.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from diffuserec.models.config import OnlyIf
from diffuserec.models.settings import (
    ControlSettings,
    EncoderName,
    NextItemSettings,
    PlainSettings,
    has_heads,
)
from diffuserec.training import NextItemRecommender


class BSARec(NextItemRecommender):
    """Frequency filters and attention with tied item embeddings."""

    class Config(PlainSettings, NextItemSettings, ControlSettings):
        """Hyper-parameters of BSARec; its encoder explains alpha and n_low."""

        encoder: EncoderName = "bsarec_causal"
        n_heads: Annotated[int, OnlyIf(encoder=has_heads)] = Field(1, ge=1)
        alpha: Annotated[float, OnlyIf(encoder=("bsarec", "bsarec_causal"))] = Field(
            0.7, ge=0, le=1
        )
        n_low: Annotated[int, OnlyIf(encoder=("bsarec", "bsarec_causal"))] = Field(3, ge=1)

    config: Config
    as_published: ClassVar[Mapping[str, Any]] = {
        "encoder": "bsarec",
        "attention_dropout": 0.5,
        "examples": "newest_prefixes",
        "first_items": True,
        "by_length": False,
        "learning_rate": 5e-4,
        "batch_size": 256,
        "epochs": 200,
        "average_epochs": 0.0,
    }
