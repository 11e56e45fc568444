"""MCLRec: next-item training plus a contrast with learned views, trained in turns with the encoder.

Source: Qin, Yuan, Zhao, Fang, Zhuang, Liu, Liu & Sheng, "Meta-optimized Contrastive Learning for
Sequential Recommendation", SIGIR 2023 (arXiv 2304.07763), and its released code.

Two cropped, masked or reordered views of a sequence are encoded to z1 and z2, and two small
networks make learned views g1(z1) and g2(z2) of them. ``C`` is NT-Xent between z1 and g2(z2),
between z2 and g1(z1), and between the learned two, plus 0.1 times a regularizer that narrows the
spread of similarities, so that the learned views do not become all alike. Each batch makes three
updates: the encoder on ``next item + contrast_weight · NT-Xent(z1, z2) + learned_weight · C``; g1
and g2 on C; the encoder again, now with the new g.

Departures and options:
- The alternation is the code's: no gradient flows through an update, as the paper's name promises.
  ``joint`` makes one update of everything.
- Each update draws its views anew; the code keeps a batch's views for all three.
- The networks' widths follow ``dim`` (64, 32, 16, 64 at width 64) and are saved with the model.
- ``mask_with="padding"`` is the code's; a ``[mask]`` token the alternative.
- All positions of a user train in one example, of which the views are made
  (``examples="prefixes"``: one example and its views for each prefix).
- ``encoder`` may be any; the paper's is the causal transformer.
"""

from functools import partial
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.data import PAD, Batch, Catalog, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search
from diffuserec.models.encoders import last_states
from diffuserec.models.recommender import Contrastive, View
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import (
    LearnedView,
    Ragged,
    concat_views,
    crop,
    encode_with_views,
    mask,
    reorder,
    sample_two_views,
)
from diffuserec.training import EncoderRecommender, Update, next_item_loss, train_next_item

_REGULARIZER = 0.1


class MCLRec(EncoderRecommender, Contrastive):
    """Any encoder with NT-Xent between augmented and learned views."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of MCLRec."""

        contrast_weight: float = Field(0.0, ge=0)
        """lambda, weight of the contrast of the augmented views; the authors have 0 for Beauty and
        ML-1M, .01 to .04 elsewhere."""
        learned_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.05, ge=0)
        """beta, weight of the contrast with learned views; the authors have .05 for Beauty, .01 for
        ML-1M, .1 to .4 elsewhere."""
        crop_ratio: float = Field(0.5, gt=0, le=1)
        """Share of the items that is kept."""
        mask_ratio: float = Field(0.5, gt=0, le=1)
        """Share of the items that is masked."""
        reorder_ratio: float = Field(0.8, gt=0, le=1)
        """Share of the items that is shuffled."""
        mask_with: Literal["padding", "token"] = "padding"
        """Whether padding or ``[mask]`` takes the place of a masked item."""
        joint: bool = False
        """Whether one update moves everything, instead of three in turns."""

        @model_validator(mode="after")
        def _is_wide(self) -> Self:
            if self.dim < 4:
                raise ValueError(
                    f"dim {self.dim} leaves the learned views no width: 4 is the least"
                )
            return self

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.table, self.encoder = self.config.build_encoder(catalog.vocab_size, n_special=1)
        self.learned = torch.nn.ModuleList(LearnedView(self.config.dim) for _ in range(2))

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        next_item = next_item_loss(c, train)

        def loss(batch: Batch) -> Tensor:
            original = batch.items, batch.lengths
            views = self._two_views(*original)
            states, first, second = encode_with_views(self.encode, original, *views)
            total = next_item(batch, states, self.table)
            if c.contrast_weight:
                total = total + c.contrast_weight * c.contrast(first, second)
            return total + c.learned_weight * self._contrast(first, second)

        def learned_loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                items, lengths = concat_views(*self._two_views(batch.items, batch.lengths))
                states = last_states(self.encode(items, lengths), lengths)
            return self._contrast(*states.split(len(batch.items)))

        encoder = [*self.table.parameters(), *self.encoder.parameters()]
        updates = [
            Update(loss, encoder),
            Update(learned_loss, list(self.learned.parameters())),
            Update(loss, encoder),
        ]
        return train_next_item(self, loss if c.joint else updates, train, valid, runtime)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        first, second = self._two_views(batch.items, batch.lengths)
        return [View("first view", *first), View("second view", *second)]

    def _two_views(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> tuple[Ragged, Ragged]:
        c = self.config
        mask_id = PAD if c.mask_with == "padding" else self.table.mask_token
        operators = [
            partial(crop, ratio=c.crop_ratio),
            partial(mask, ratio=c.mask_ratio, mask_id=mask_id),
            partial(reorder, ratio=c.reorder_ratio),
        ]
        return sample_two_views(items, lengths, operators)

    def _contrast(
        self, first: Float[Tensor, "B D"], second: Float[Tensor, "B D"]
    ) -> Float[Tensor, ""]:
        """Contrast C with the learned views."""
        learned_first, learned_second = self.learned[0](first), self.learned[1](second)
        total = torch.zeros((), device=first.device)
        for pair in (
            (first, learned_second),
            (second, learned_first),
            (learned_first, learned_second),
        ):
            total = total + self.config.contrast(*pair)
            total = total + _REGULARIZER * spread(*pair)
        return total


def spread(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Distance of the similarities, as dot products, from their bounds: MCLRec's regularizer.

    With p an anchor's similarity to its positive and n its hardest negative's, positives lie above
    min(p, n) by mean relu(p - min(p, n)) and negatives below max(p, n) by mean relu(max(p, n) - ·).
    """
    both = torch.cat([first, second]).float()
    with torch.autocast(both.device.type, enabled=False):
        similarities = both @ both.T
    count = len(first)
    anchor = torch.arange(2 * count, device=both.device)
    other = (anchor + count) % (2 * count)
    positive = similarities[anchor, other]
    if count < 2:
        return positive.sum() * 0
    is_negative = torch.ones_like(similarities, dtype=torch.bool)
    is_negative[anchor, anchor] = is_negative[anchor, other] = False
    negatives = similarities[is_negative].view(2 * count, -1)
    hardest = negatives.amax(1)
    low, high = torch.minimum(positive, hardest), torch.maximum(positive, hardest)
    return (positive - low).relu().mean() + (high[:, None] - negatives).relu().mean()
