"""S3Rec: next-item training of an encoder that first learned, both ways, to restore masked items.

Source: Zhou, Wang, Zhao, Zhu, Wang, Zhang, Wang & Wen, "S3-Rec: Self-Supervised Learning for
Sequential Recommendation with Mutual Information Maximization", CIKM 2020 (arXiv 2008.07873), and
its released code; here the two of its four tasks that need no attributes.

Stage 1 sees sequences both ways. Masked items (MIP): at each masked position t with item i and a
negative j, the state h_t is to satisfy ``(W h_t) · e_i > (W h_t) · e_j``. Segments (SP): with a
segment masked, the newest state c is to satisfy ``(U c) · s > (U c) · n``, where s is the newest
state of a sequence that holds the segment and masks elsewhere, and n that of one with another
segment in its place. Each costs -log sigmoid of the difference. Stage 2 trains the same weights on
the next item, each position seeing only the items before it; only this stage is validated.

Departures and options:
- One sigmoid. The released code takes sigmoids of the products before it takes that of their
  difference, which leaves hardly a gradient.
- Both losses are means; the code adds up a batch's masked items and segments.
- Other segments come from all training sequences put together. In the code they hold the
  validation and test items too, and a user's negatives leave these out.
- ``pretrain_examples="per_user"``: the newest items of each user are an example; ``"prefixes"``, as
  in the paper, one for each item.
- ``loss="softmax"`` in stage 2, ``"bce"`` in the paper.
- ``encoder`` may be any that can see both ways; the paper's is the transformer.
- No attributes: their two tasks are left out.
"""

from collections.abc import Callable
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search
from diffuserec.models.encoders import ENCODERS, initialize, last_states
from diffuserec.models.losses import seen_keys, uniform_negatives
from diffuserec.models.parts import by_rows
from diffuserec.models.settings import NextItemSettings
from diffuserec.models.views import random_below, random_share
from diffuserec.training import EncoderRecommender, device_of, encoder_loss, train_next_item


class S3Rec(EncoderRecommender):
    """Causal encoder, pretrained both ways on masked items and segments."""

    class Config(NextItemSettings):
        """Hyper-parameters of S3Rec."""

        pretrain_epochs: int = Field(100, ge=0)
        """Epochs of stage 1; 0 leaves it out."""
        pretrain_examples: Literal["per_user", "windows", "prefixes"] = "per_user"
        """A training example of stage 1, as ``examples`` is one of stage 2."""
        mask_ratio: Annotated[float, Search(0.1, 0.6)] = Field(0.2, gt=0, le=1)
        """Chance of an item to be masked; the newest always is."""
        item_weight: Annotated[float, Search(0.1, 3.0, log=True)] = Field(1.0, ge=0)
        """Weight of masked items in the loss of stage 1."""
        segment_weight: Annotated[float, Search(0.1, 3.0, log=True)] = Field(0.5, ge=0)
        """Weight of segments in the loss of stage 1."""

        @model_validator(mode="after")
        def _sees_both_ways(self) -> Self:
            if ENCODERS.find(self.encoder).sees == "before":
                raise ValueError(
                    f"encoder {self.encoder!r} reads forward only, and stage 1 both ways: choose "
                    "another"
                )
            return self

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, self.encoder = c.build_encoder(
            catalog.vocab_size, n_special=1, extra_positions=1
        )
        self.of_item, self.of_segment = nn.Linear(c.dim, c.dim), nn.Linear(c.dim, c.dim)
        self.of_item.apply(initialize)
        self.of_segment.apply(initialize)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        pretrained = []
        if c.pretrain_epochs:
            pretrained = train_next_item(
                self,
                self._restoration_loss(train, device_of(runtime)),
                train.with_all_copies(),
                None,
                runtime,
                examples=c.pretrain_examples,
                phase="pretrain",
                epochs=c.pretrain_epochs,
            )
        loss = encoder_loss(self, c, train)
        return pretrained + train_next_item(self, loss, train, valid, runtime)

    def _restoration_loss(
        self, train: SequenceDataset, device: torch.device
    ) -> Callable[[Batch], Float[Tensor, ""]]:
        """Loss of stage 1."""
        c, table = self.config, self.table
        seen = seen_keys(train).to(device)
        all_items = torch.from_numpy(train.real().items.copy()).to(device)
        way = {"both_ways": True} if self.encoder.sees == "either" else {}

        def loss(batch: Batch) -> Tensor:
            whole, real = batch.with_last_target(), batch.real_with_last_target()
            items, lengths, n = whole.items, whole.lengths, len(whole.items)
            position = torch.arange(items.shape[1], device=items.device)
            masked = random_share(real, c.mask_ratio) | (real & (position == lengths[:, None] - 1))
            segment, other = _segments(real, lengths, all_items)
            hidden = items.masked_fill(items > 0, table.mask_token)
            versions = [
                items.masked_fill(masked, table.mask_token),
                items.masked_fill(segment, table.mask_token),
                torch.where(segment, items, hidden),
                torch.where(segment, other, hidden),
            ]
            embedded = table.embed(torch.cat(versions))
            states = by_rows(self.encoder, embedded, lengths.repeat(4), **way)
            restored = self.of_item(states[:n][masked])
            users = whole.users[:, None].expand_as(masked)[masked]
            negatives = uniform_negatives(users, 1, table.vocab_size, seen)[:, 0]
            context, own, foreign = last_states(states[n:], lengths.repeat(3)).split(n)
            of_items = _pairwise_loss(restored, table.embed(items[masked]), table.embed(negatives))
            of_segments = _pairwise_loss(self.of_segment(context), own, foreign)
            return c.item_weight * of_items + c.segment_weight * of_segments

        return loss


def _pairwise_loss(
    states: Float[Tensor, "P D"], positives: Float[Tensor, "P D"], negatives: Float[Tensor, "P D"]
) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(state · positive - state · negative)."""
    return F.softplus((states.float() * (negatives - positives).float()).sum(1)).mean()


def _segments(
    real: Bool[Tensor, "B M"], lengths: Int[Tensor, " B"], all_items: Int[Tensor, " N"]
) -> tuple[Bool[Tensor, "B M"], Int[Tensor, "B M"]]:
    """A run of up to half of each sequence's real items, its newest ones, and another run for it.

    Args:
        all_items: items that other runs are taken from, at least as many as the longest run.
    """
    n = real.sum(1)
    size = 1 + random_below((n // 2).clamp(min=1))
    first = lengths - n + random_below(n - size + 1)
    from_there = torch.arange(real.shape[1], device=real.device) - first[:, None]
    segment = real & (from_there >= 0) & (from_there < size[:, None])
    begin = random_below(len(all_items) - size + 1)
    where = (begin[:, None] + from_there).masked_fill(~segment, 0)
    return segment, all_items[where].long()
