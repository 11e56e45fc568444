"""FMLP-Rec: learned filters of frequencies, trained on one prefix and target at a time.

Source: Zhou, Yu, Zhao & Wen, "Filter-enhanced MLP is All You Need for Sequential Recommendation",
WWW 2022 (arXiv 2202.13556); the recipe is the authors' released one for Amazon Beauty.

Departures:
- The default loss is the full softmax; the paper's, with one negative, is ``loss="bce"``.
- Running averages of the parameters are kept, as everywhere here by default.
- Training stops by validation NDCG@10 over all items; the authors' by MRR among 100.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from diffuserec.models.config import OnlyIf
from diffuserec.models.settings import EncoderName, ExampleForm, NextItemSettings, PlainSettings
from diffuserec.training import NextItemRecommender


class FMLPRec(NextItemRecommender):
    """Frequency filters with tied item embeddings."""

    class Config(PlainSettings, NextItemSettings):
        """Hyper-parameters of FMLP-Rec."""

        encoder: EncoderName = "fmlp"
        examples: ExampleForm = "newest_prefixes"
        first_items: Annotated[bool, OnlyIf(examples=("prefixes", "newest_prefixes"))] = True
        by_length: bool = False
        batch_size: int = Field(256, ge=1)
        epochs: int = Field(200, ge=1)

    config: Config
    as_published: ClassVar[Mapping[str, Any]] = {"loss": "bce", "average_epochs": 0.0}
