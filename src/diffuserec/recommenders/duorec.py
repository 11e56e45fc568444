"""DuoRec: SASRec that tells apart sequences seen twice, by dropout and by their next item.

Source: Qiu, Huang, Yin & Wang, "Contrastive Learning for Representation Degeneration Problem in
Sequential Recommendation", WSDM 2022 (arXiv 2110.05730), and its released code.

A history's first view is a second pass with other dropout; its second is another training history
with the same next item. NT-Xent between the two is added to the next-item loss.

Departures and options:
- ``rows="users"``: all positions of a user train in one row, and one prefix of it, drawn at random,
  is contrasted in each epoch. ``rows="prefixes"`` is the paper's row a prefix, all contrasted.
- ``positive="dropout"`` contrasts two dropout passes alone, the code's unsupervised form. Its
  supervised form takes the next-item pass for the first view; that differs from the paper's form by
  nothing but one draw of dropout.
- The index of histories by next item takes linear time and memory; the code compares all pairs.
- As in the paper, other histories of a batch with the same next item count as negatives.
"""

from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from diffuserec.training import loop as training
from diffuserec.models.base import ContrastiveRecommender, Run, View
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.encoders import last_states
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import Ragged, SameTarget, joined, random_prefix


class DuoRec(ContrastiveRecommender):
    """Causal transformer with NT-Xent between dropout and same-target views."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of DuoRec."""

        contrast_weight: float = Field(0.1, ge=0)
        positive: Literal["same_target", "dropout"] = "same_target"
        """What the dropout view is to be near to: another history, or a second dropout view."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.encoder = self.config.transformer(catalog.vocab_size)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        self.begin(train, run)
        next_item = training.next_item(self.config, train)
        same_target = SameTarget(train, self.config.max_len)

        def loss(batch: Batch) -> Tensor:
            n, length = batch.items.shape
            prefix, other = self._two_views(batch, same_target)
            items, lengths = joined((batch.items, batch.lengths), prefix)
            states = self.encoder(items, lengths)
            first = last_states(states, lengths)[n:]
            second = self.encoder.newest(*other)
            contrast = self.config.contrast(first, second)
            predicted = next_item(batch, states[:n, :length], self.encoder.table)
            return predicted + self.config.contrast_weight * contrast

        self.curve = training.train_next_item(
            self, loss, train, valid, run, score=self.score, rows=self.config.rows
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        return self.encoder.scores(newest.items, newest.lengths)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        first, second = self._two_views(batch, SameTarget(train, self.config.max_len))
        names = {"same_target": "same next item", "dropout": "another dropout view"}
        return [View("dropout view", *first), View(names[self.config.positive], *second)]

    def _two_views(self, batch: Batch, same_target: SameTarget) -> tuple[Ragged, Ragged]:
        prefix, _ = random_prefix(batch.items, batch.targets)
        if self.config.positive == "dropout":
            return prefix, prefix
        # a row's targets end at its place, and the prefix's is so many before the newest
        places = batch.places - batch.lengths + prefix[1]
        targets = batch.targets.gather(1, prefix[1][:, None] - 1)[:, 0]
        return prefix, same_target.sample(places, targets)[0]
