"""DuoRec: next-item training plus a contrast of sequences seen twice, by dropout and by next item.

Source: Qiu, Huang, Yin & Wang, "Contrastive Learning for Representation Degeneration Problem in
Sequential Recommendation", WSDM 2022 (arXiv 2110.05730), and its released code.

A history's first view is a second pass with other dropout; its second is another training history
with the same next item. NT-Xent between the two is added to the next-item loss.

Departures and options:
- ``examples="per_user"``: all positions of a user train in one example, and one prefix of it, drawn
  at random, is contrasted in each epoch. ``examples="prefixes"`` is the paper's: an example for
  each prefix, all contrasted.
- ``positive="dropout"`` contrasts two dropout passes alone, the code's unsupervised form. Its
  supervised form takes the next-item pass for the first view; that differs from the paper's form by
  nothing but one draw of dropout.
- The index of histories by next item takes linear time and memory; the code compares all pairs.
- As in the paper, other histories of a batch with the same next item count as negatives.
- ``encoder`` may be any; the paper's is the causal transformer.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffuserec.data import Batch, Catalog, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search
from diffuserec.models.encoders import newest_states
from diffuserec.models.recommender import Contrastive, View
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import Ragged, SameTarget, encode_with_views, random_prefix
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item


class DuoRec(EncoderRecommender, Contrastive):
    """Any encoder with NT-Xent between dropout and same-target views."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of DuoRec."""

        contrast_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.1, ge=0)
        """Weight of the contrast in the loss."""
        positive: Literal["same_target", "dropout"] = "same_target"
        """Positive of the dropout view: another history, or a second dropout view."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.table, self.encoder = self.config.build_encoder(catalog.vocab_size)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        next_item = next_item_loss(c, train)
        same_target = SameTarget(train, c.max_len)

        def loss(batch: Batch) -> Tensor:
            prefix, other = self._two_views(batch, same_target)
            original = batch.items, batch.lengths
            states, first = encode_with_views(self.encode, original, prefix)
            contrast = c.contrast(first, newest_states(self.encode, *other))
            predicted = next_item(batch, states, self.table)
            return predicted + c.contrast_weight * contrast

        return train_next_item(self, loss, train, valid, runtime)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        first, second = self._two_views(batch, SameTarget(train, self.config.max_len))
        names = {"same_target": "same next item", "dropout": "another dropout view"}
        return [View("dropout view", *first), View(names[self.config.positive], *second)]

    def _two_views(self, batch: Batch, same_target: SameTarget) -> tuple[Ragged, Ragged]:
        prefix, targets = random_prefix(batch.items, batch.targets)
        if self.config.positive == "dropout":
            return prefix, prefix
        # the prefix's target comes as many positions before the last one as the prefix is shorter
        positions = batch.last_target_index - batch.lengths + prefix[1]
        return prefix, same_target.sample(positions, targets)[0]
