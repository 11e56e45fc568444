"""CL4SRec: SASRec that also tells two cropped, masked or reordered versions of a sequence apart.

Source: Xie et al., "Contrastive Learning for Sequential Recommendation", ICDE 2022 (arXiv
2010.14395). Its authors published no code; ratios, dot products and temperature are those of the
port that DuoRec's authors published.

A sequence's two views come from different operators. NT-Xent over the 2B views of a batch is added
to the next-item loss with weight ``contrast_weight``.

Departures and options:
- The views are new tensors. The port writes them into the training data, where masks pile up from
  epoch to epoch.
- ``loss="softmax"`` instead of the paper's sampled softmax.
- ``mask_with``: a ``[mask]`` token of its own, or padding, as other ports have it.
- ``operators`` may include ``substitute`` and ``insert`` (CoSeRec, arXiv 2108.06479), with the ten
  items whose embeddings are nearest before each epoch; its short-sequence rule and its counted
  similarities are left out.
- Two views of each user's row, not of each prefix (``rows="prefixes"``).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from diffuserec.training import loop as training
from diffuserec.models.base import ContrastiveRecommender, Run, View
from diffuserec.data import PAD, Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.encoders import last_states
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import (
    Ragged,
    crop,
    insert,
    joined,
    mask,
    nearest_items,
    reorder,
    substitute,
    two_of,
)

_N_SIMILAR = 10


class CL4SRec(ContrastiveRecommender):
    """Causal transformer with NT-Xent between two augmented versions of a sequence."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of CL4SRec."""

        contrast_weight: float = Field(0.1, ge=0)
        operators: tuple[Literal["crop", "mask", "reorder", "substitute", "insert"], ...] = Field(
            ("crop", "mask", "reorder"), min_length=1
        )
        crop_ratio: float = Field(0.6, gt=0, le=1)
        """Share of the items that is kept."""
        mask_ratio: float = Field(0.3, gt=0, le=1)
        reorder_ratio: float = Field(0.6, gt=0, le=1)
        substitute_ratio: float = Field(0.1, gt=0, le=1)
        insert_ratio: float = Field(0.4, gt=0, le=1)
        mask_with: Literal["token", "padding"] = "token"

    config: Config
    similar: Tensor

    def build(self, catalog: Catalog) -> None:
        self.encoder = self.config.transformer(catalog.vocab_size, n_extra=1)
        similar = torch.zeros(catalog.vocab_size, 1, dtype=torch.int64)
        self.register_buffer("similar", similar, persistent=False)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        self.begin(train, run)
        next_item = training.next_item(self.config, train)

        def loss(batch: Batch) -> Tensor:
            original = batch.items, batch.lengths
            n, length = batch.items.shape
            items, lengths = joined(original, *self._two_views(*original))
            states = self.encoder(items, lengths)
            _, first, second = last_states(states, lengths).split(n)
            contrast = self.config.contrast(first, second)
            predicted = next_item(batch, states[:n, :length], self.encoder.table)
            return predicted + self.config.contrast_weight * contrast

        self.curve = training.train_next_item(
            self,
            loss,
            train,
            valid,
            run,
            score=self.score,
            rows=self.config.rows,
            prepare=self._find_similar,
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        return self.encoder.scores(newest.items, newest.lengths)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        self._find_similar()
        first, second = self._two_views(batch.items, batch.lengths)
        return [View("first view", *first), View("second view", *second)]

    def _find_similar(self) -> None:
        if not {"substitute", "insert"}.isdisjoint(self.config.operators):
            table = self.encoder.table.detach()
            self.similar = nearest_items(table, min(_N_SIMILAR, max(1, len(table) - 2)))

    def _two_views(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> tuple[Ragged, Ragged]:
        c = self.config
        mask_id = PAD if c.mask_with == "padding" else self.encoder.vocab_size
        make: dict[str, Callable[[Tensor, Tensor], Ragged]] = {
            "crop": partial(crop, ratio=c.crop_ratio),
            "mask": partial(mask, ratio=c.mask_ratio, mask_id=mask_id),
            "reorder": partial(reorder, ratio=c.reorder_ratio),
            "substitute": partial(substitute, ratio=c.substitute_ratio, similar=self.similar),
            "insert": partial(
                insert, ratio=c.insert_ratio, similar=self.similar, max_len=c.max_len
            ),
        }
        return two_of(items, lengths, [make[operator] for operator in c.operators])
