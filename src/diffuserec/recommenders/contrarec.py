"""ContraRec: sequences with the same next item are versions of each other.

Source: Wang, Ma, Zhang, Chen, Liu & Ma, "Sequential Recommendation with Multiple Contrast
Signals", ACM TOIS 41(1), 2023, and its released code in ReChorus.

Context-target contrast is the next-item loss, -tau_1 log softmax of scores / tau_1. For
context-context contrast two views of each sequence are masked or reordered by shares drawn from
Beta(3, 3); all views of a batch whose sequences have the same next item are positives of each other
(Khosla et al., NeurIPS 2020), the representations are normalized, and the loss is scaled by tau_2.

Departures and options:
- ``loss="softmax"`` has all items as negatives; the released command has a single one, which is
  little more than ``bce``.
- ``encoder`` may be any, as in the paper: the causal transformer, ``gru`` or ``caser``;
  ``bidirectional`` makes the transformer the released command's, for ``rows="prefixes"`` alone.
- ``rows="users"``: all positions of a user train in one row, and one prefix of it, drawn at random,
  has two views in each epoch.
"""

from typing import Literal, Self

import torch
from jaxtyping import Float, Float64, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.training import loop as training
from diffuserec.models.base import ContrastiveRecommender, Run, View
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.encoders import last_states
from diffuserec.models.settings import AnyEncoderSettings, ContrastSettings, LossSettings
from diffuserec.models.views import Ragged, joined, mask, random_prefix, reorder, two_of


class ContraRec(ContrastiveRecommender):
    """Any encoder, with supervised contrast between sequences of the same next item."""

    class Config(ContrastSettings, LossSettings, AnyEncoderSettings):
        """Hyper-parameters of ContraRec."""

        similarity: Literal["dot", "cosine"] = "cosine"
        temperature: float = Field(0.2, gt=0)
        """tau_2, which similarities of sequences are divided by."""
        score_temperature: float = Field(1.0, gt=0)
        """tau_1, which scores of items are divided by."""
        contrast_weight: float = Field(1.0, ge=0)
        """gamma."""
        bidirectional: bool = False
        """Whether a position of the transformer sees what comes after it."""

        @model_validator(mode="after")
        def _sees_no_target(self) -> Self:
            if self.bidirectional and self.encoder != "transformer":
                raise ValueError(
                    f"encoder {self.encoder!r} reads forward only: leave out bidirectional"
                )
            if self.bidirectional and self.rows != "prefixes":
                raise ValueError(
                    "a bidirectional encoder would see the targets of a row: set rows to 'prefixes'"
                )
            return self

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.encoder = c.chosen(catalog.vocab_size, causal=not c.bidirectional, n_extra=1)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        next_item = training.next_item(c, train)

        def loss(batch: Batch) -> Tensor:
            n, length = batch.items.shape
            prefix, targets = random_prefix(batch.items, batch.targets)
            items, lengths = joined((batch.items, batch.lengths), *self._two_views(*prefix))
            states = self.encoder(items, lengths)
            _, first, second = last_states(states, lengths).split(n)
            contrast = c.temperature * c.contrast(first, second, labels=targets)
            scaled = states[:n, :length] / c.score_temperature
            predicted = c.score_temperature * next_item(batch, scaled, self.encoder.table)
            return predicted + c.contrast_weight * contrast

        self.curve = training.train_next_item(
            self, loss, train, valid, run, score=self.score, rows=c.rows
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        scores = self.encoder.scores(newest.items, newest.lengths)
        return scores / self.config.score_temperature

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        prefix, _ = random_prefix(batch.items, batch.targets)
        first, second = self._two_views(*prefix)
        return [View("first view", *first), View("second view", *second)]

    def _two_views(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> tuple[Ragged, Ragged]:
        def masked(items: Tensor, lengths: Tensor) -> Ragged:
            return mask(items, lengths, beta_shares(lengths), self.encoder.vocab_size)

        def reordered(items: Tensor, lengths: Tensor) -> Ragged:
            return reorder(items, lengths, beta_shares(lengths))

        return two_of(items, lengths, [masked, reordered], distinct=False)


def beta_shares(lengths: Int[Tensor, " B"]) -> Float64[Tensor, " B"]:
    """A draw from Beta(3, 3), the median of five uniform ones, for each sequence."""
    drawn = torch.rand(5, len(lengths), dtype=torch.float64, device=lengths.device)
    return drawn.median(0).values.clamp(min=1e-9)
