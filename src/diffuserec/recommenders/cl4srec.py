"""CL4SRec: next-item training plus a contrast of two cropped, masked or reordered views.

Source: Xie et al., "Contrastive Learning for Sequential Recommendation", ICDE 2022 (arXiv
2010.14395). Its authors published no code; ratios, dot products and temperature are those of the
port that DuoRec's authors published.

A sequence's two views come from different operators. NT-Xent over the 2B views of a batch is added
to the next-item loss with weight ``contrast_weight``.

Departures and options:
- The views are new tensors. The port writes them into the training data, where masks pile up from
  epoch to epoch.
- ``loss="softmax"`` instead of the paper's sampled softmax; ``encoder`` may be any.
- ``mask_with``: a ``[mask]`` token of its own, or padding, as other ports have it.
- ``operators`` may include ``substitute`` and ``insert`` (CoSeRec, arXiv 2108.06479), with the ten
  items whose embeddings are nearest before each epoch; its short-sequence rule and its counted
  similarities are left out.
- Two views of each user's newest items, not of each prefix (``examples="prefixes"``).
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from diffuserec.data import PAD, Batch, Catalog, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.recommender import Contrastive, View
from diffuserec.models.retrieval import nearest_items
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import (
    Ragged,
    crop,
    encode_with_views,
    insert,
    mask,
    reorder,
    sample_two_views,
    substitute,
)
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item

_N_SIMILAR = 10


def _used_by(operator: str) -> OnlyIf:
    """The rule of a setting that one operator alone reads."""

    def among(operators: tuple[str, ...]) -> bool:
        return operator in operators

    among.__doc__ = f"{operator!r} among the operators"
    return OnlyIf(operators=among)


class CL4SRec(EncoderRecommender, Contrastive):
    """Any encoder with NT-Xent between two augmented views of a sequence."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of CL4SRec."""

        contrast_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.1, ge=0)
        """Weight of the contrast in the loss."""
        operators: tuple[Literal["crop", "mask", "reorder", "substitute", "insert"], ...] = Field(
            ("crop", "mask", "reorder"), min_length=1
        )
        """Operators that views are made by, two drawn for each sequence."""
        crop_ratio: Annotated[float, _used_by("crop")] = Field(0.6, gt=0, le=1)
        """Share of the items that is kept."""
        mask_ratio: Annotated[float, _used_by("mask"), Search(0.1, 0.6)] = Field(0.3, gt=0, le=1)
        """Share of the items that is masked."""
        reorder_ratio: Annotated[float, _used_by("reorder")] = Field(0.6, gt=0, le=1)
        """Share of the items that is shuffled."""
        substitute_ratio: Annotated[float, _used_by("substitute")] = Field(0.1, gt=0, le=1)
        """Share of the items that is replaced by similar ones."""
        insert_ratio: Annotated[float, _used_by("insert")] = Field(0.4, gt=0, le=1)
        """Share of the items before which similar ones are put."""
        mask_with: Annotated[Literal["token", "padding"], _used_by("mask")] = "token"
        """Whether ``[mask]`` or padding takes the place of a masked item."""

    config: Config
    similar: Tensor

    def build(self, catalog: Catalog) -> None:
        self.table, self.encoder = self.config.build_encoder(catalog.vocab_size, n_special=1)
        similar = torch.zeros(catalog.vocab_size, 1, dtype=torch.int64)
        self.register_buffer("similar", similar, persistent=False)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        next_item = next_item_loss(c, train)

        def loss(batch: Batch) -> Tensor:
            original = batch.items, batch.lengths
            views = self._two_views(*original)
            states, first, second = encode_with_views(self.encode, original, *views)
            predicted = next_item(batch, states, self.table)
            return predicted + c.contrast_weight * c.contrast(first, second)

        return train_next_item(self, loss, train, valid, runtime, prepare=self._find_similar)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        self._find_similar()
        first, second = self._two_views(batch.items, batch.lengths)
        return [View("first view", *first), View("second view", *second)]

    def _find_similar(self) -> None:
        if not {"substitute", "insert"}.isdisjoint(self.config.operators):
            vectors = self.table.embeddings().detach()
            self.similar = nearest_items(vectors, min(_N_SIMILAR, max(1, len(vectors) - 2)))

    def _two_views(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> tuple[Ragged, Ragged]:
        c = self.config
        mask_id = PAD if c.mask_with == "padding" else self.table.mask_token
        make: dict[str, Callable[[Tensor, Tensor], Ragged]] = {
            "crop": partial(crop, ratio=c.crop_ratio),
            "mask": partial(mask, ratio=c.mask_ratio, mask_id=mask_id),
            "reorder": partial(reorder, ratio=c.reorder_ratio),
            "substitute": partial(substitute, ratio=c.substitute_ratio, similar=self.similar),
            "insert": partial(
                insert, ratio=c.insert_ratio, similar=self.similar, max_len=c.max_len
            ),
        }
        return sample_two_views(items, lengths, [make[operator] for operator in c.operators])
