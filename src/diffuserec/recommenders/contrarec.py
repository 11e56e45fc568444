"""ContraRec: next-item training plus a contrast that draws sequences of one next item together.

Source: Wang, Ma, Zhang, Chen, Liu & Ma, "Sequential Recommendation with Multiple Contrast
Signals", ACM TOIS 41(1), 2023, and its released code in ReChorus.

Context-target contrast is the next-item loss, -tau_1 log softmax of scores / tau_1. For
context-context contrast two views of each sequence are masked or reordered by shares drawn from
Beta(3, 3); all views of a batch whose sequences have the same next item are positives of each other
(Khosla et al., NeurIPS 2020), the states are normalized, and the loss is scaled by tau_2.

Departures and options:
- ``loss="softmax"`` has all items as negatives; the released command has a single one, which is
  little more than ``bce``.
- ``encoder`` may be any, as in the paper, by default a causal transformer; ``bidirectional`` makes
  it the released command's, for ``examples="prefixes"`` alone.
- ``examples="per_user"``: all positions of a user train in one example, and one prefix of it, drawn
  at random, has two views in each epoch.
"""

from typing import Annotated, Literal, Self

import torch
from jaxtyping import Float, Float64, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.encoders import ENCODERS
from diffuserec.models.recommender import Contrastive, View
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import (
    Ragged,
    encode_with_views,
    mask,
    random_prefix,
    reorder,
    sample_two_views,
)
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item


def _may_look_ahead(encoder: str) -> bool:
    """an encoder that can look ahead or not"""
    return ENCODERS.find(encoder).sees == "either"


class ContraRec(EncoderRecommender, Contrastive):
    """Any encoder, with supervised contrast between sequences of the same next item."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of ContraRec."""

        similarity: Literal["dot", "cosine"] = "cosine"
        temperature: Annotated[float, Search(0.03, 1.0, log=True)] = Field(0.2, gt=0)
        """tau_2, divisor of the similarities of sequences."""
        score_temperature: Annotated[float, Search(0.03, 1.0, log=True)] = Field(1.0, gt=0)
        """tau_1, divisor of the scores of items."""
        contrast_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(1.0, ge=0)
        """gamma, weight of the contrast in the loss."""
        bidirectional: Annotated[bool, OnlyIf(encoder=_may_look_ahead)] = False
        """Whether a position of the encoder also sees the items after it."""

        @model_validator(mode="after")
        def _sees_no_target(self) -> Self:
            if self.bidirectional and self.examples != "prefixes":
                raise ValueError(
                    "a bidirectional encoder would see the targets of an example: set examples to "
                    "'prefixes'"
                )
            return self

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, self.encoder = c.build_encoder(
            catalog.vocab_size, causal=not c.bidirectional, n_special=1
        )

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        next_item = next_item_loss(c, train)

        def loss(batch: Batch) -> Tensor:
            prefix, targets = random_prefix(batch.items, batch.targets)
            original = batch.items, batch.lengths
            views = self._two_views(*prefix)
            states, first, second = encode_with_views(self.encode, original, *views)
            contrast = c.temperature * c.contrast(first, second, labels=targets)
            scaled = states / c.score_temperature
            predicted = c.score_temperature * next_item(batch, scaled, self.table)
            return predicted + c.contrast_weight * contrast

        return train_next_item(self, loss, train, valid, runtime)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B 1 D"]:
        return super().states(histories) / self.config.score_temperature

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        prefix, _ = random_prefix(batch.items, batch.targets)
        first, second = self._two_views(*prefix)
        return [View("first view", *first), View("second view", *second)]

    def _two_views(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> tuple[Ragged, Ragged]:
        def masked(items: Tensor, lengths: Tensor) -> Ragged:
            return mask(items, lengths, beta_shares(lengths), self.table.mask_token)

        def reordered(items: Tensor, lengths: Tensor) -> Ragged:
            return reorder(items, lengths, beta_shares(lengths))

        return sample_two_views(items, lengths, [masked, reordered], distinct=False)


def beta_shares(lengths: Int[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """A draw from Beta(3, 3), the median of five uniform ones, for each sequence; on the CPU."""
    drawn = torch.rand(5, len(lengths), dtype=torch.float64)
    return drawn.median(0).values.clamp(min=1e-9)
