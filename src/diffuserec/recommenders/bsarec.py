"""BSARec: self-attention beside a low-pass filter, trained on one prefix and target at a time.

Source: Shin, Choi, Wi & Park, "An Attentive Inductive Bias for Sequential Recommendation beyond
the Self-Attention", AAAI 2024 (arXiv 2312.10325); the recipe is the authors' released one for
Amazon Beauty.

Departures:
- The padding item is no candidate in the softmax of the loss, as everywhere here.
- Training stops by validation NDCG@10 with seen items hidden; the authors' by NDCG@20, with the
  scores of seen items set to 0.
"""

from typing import Annotated, Literal

from pydantic import Field

from diffuserec.models.config import OnlyIf
from diffuserec.models.settings import (
    EncoderName,
    FirstItemSettings,
    NextItemSettings,
    has_attention_dropout,
    has_heads,
)
from diffuserec.training import NextItemRecommender


class BSARec(NextItemRecommender):
    """Frequency filters and attention with tied item embeddings."""

    class Config(NextItemSettings, FirstItemSettings):
        """Hyper-parameters of BSARec; its encoder explains alpha and n_low."""

        encoder: EncoderName = "bsarec"
        n_heads: Annotated[int, OnlyIf(encoder=has_heads)] = Field(1, ge=1)
        attention_dropout: Annotated[float, OnlyIf(encoder=has_attention_dropout)] = Field(
            0.5, ge=0, lt=1
        )
        alpha: Annotated[float, OnlyIf(encoder=("bsarec", "bsarec_causal"))] = Field(
            0.7, ge=0, le=1
        )
        n_low: Annotated[int, OnlyIf(encoder=("bsarec", "bsarec_causal"))] = Field(3, ge=1)
        examples: Literal["per_user", "windows", "prefixes", "newest_prefixes"] = "newest_prefixes"
        first_items: Annotated[bool, OnlyIf(examples=("prefixes", "newest_prefixes"))] = True
        by_length: bool = False
        learning_rate: float = Field(5e-4, gt=0)
        batch_size: int = Field(256, ge=1)
        epochs: int = Field(200, ge=1)

    config: Config
