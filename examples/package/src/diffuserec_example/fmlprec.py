"""FMLP-Rec: frequency filters that predict the next item from a prefix.

Source: Zhou, Yu, Zhao & Wen, "Filter-enhanced MLP is All You Need for Sequential Recommendation",
WWW 2022 (arXiv 2202.13556). The default loss is the full softmax; the paper's is ``bce``.
"""

from typing import Literal

from pydantic import Field

from diffuserec.models.settings import EncoderName, NextItemSettings
from diffuserec.training import NextItemRecommender


class FMLPRec(NextItemRecommender):
    """Filters in the frequency domain with tied item embeddings."""

    class Config(NextItemSettings):
        """Hyper-parameters of FMLP-Rec."""

        encoder: EncoderName = "fmlp"
        examples: Literal["per_user", "windows", "prefixes"] = "prefixes"
        batch_size: int = Field(256, ge=1)

    config: Config
