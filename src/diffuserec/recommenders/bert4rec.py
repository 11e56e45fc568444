"""BERT4Rec: a bidirectional transformer that fills in masked items; the next one is a mask.

Source: Sun, Liu, Wu, Pei, Lin, Ou & Jiang, "BERT4Rec: Sequential Recommendation with Bidirectional
Encoder Representations from Transformer", CIKM 2019 (arXiv 1904.06690).

Items of a sequence are replaced by a ``[mask]`` token, each with chance ``mask_ratio`` and at least
one, and the states there predict which they were: cross entropy over all items of
``LayerNorm(GELU(W h + b)) · table + bias``. In a share of the examples, ``last_item_ratio``, the
newest item alone is masked. To recommend, ``[mask]`` is appended to a history and its state scored.

Departures and options:
- Masks are drawn anew in every epoch. The released code writes ten copies of each sequence with
  fixed masks and one with the newest item masked, which is a ``last_item_ratio`` of 1/11.
- Every chosen item becomes ``[mask]``, as with the code's settings; none stays or is exchanged.
- There is a position more than ``max_len``, so that the appended mask drops no item, and a training
  example holds ``max_len`` items and the one after them.
- A user's newest ``max_len + 1`` items are an example. The code slides a window over longer
  histories; ``examples="windows"`` has windows that overlap by an item, ``"prefixes"`` one for each
  item.
- Adam's rate falls in a straight line, as in the paper, from 0.001 (paper 0.0001), without warm-up
  or weight decay. A constant one (``rate_decay="none"``) held it back (docs/methods/bert4rec.md).
- A dropout of 0.2: with 0.5, as other methods have it, it learned more slowly on Amazon Beauty.
- ``loss``: those of SASRec; the one that DiffuASR trains is ``"bce"``.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.encoders import last_states
from diffuserec.models.encoders.transformer import PositionEncoding
from diffuserec.models.losses import LOSSES
from diffuserec.models.settings import NextItemSettings, has_position_encoding
from diffuserec.models.views import random_share
from diffuserec.training import EncoderRecommender, train_next_item


class BERT4Rec(EncoderRecommender):
    """Bidirectional transformer with a masked-item head on the tied item table."""

    class Config(NextItemSettings):
        """Hyper-parameters of BERT4Rec."""

        masks_targets = True

        mask_ratio: Annotated[float, Search(0.1, 0.6)] = Field(0.2, gt=0, le=1)
        """Chance of an item to be masked; at least one of a sequence is."""
        last_item_ratio: float = Field(0.1, ge=0, le=1)
        """Share of the training examples in which the newest item alone is masked."""
        rate_decay: Literal["none", "linear", "cosine"] = "linear"
        """How the learning rate falls, to 0 after ``epochs``: in a straight line (paper) or as half
        a wave."""
        position_encoding: Annotated[PositionEncoding, OnlyIf(encoder=has_position_encoding)] = (
            "from_oldest"
        )
        """How the encoder knows positions; see diffuserec.models.encoders.transformer."""
        dropout: float = Field(0.2, ge=0, lt=1)
        epochs: int = Field(200, ge=1)
        patience: int = Field(20, ge=1)
        """Epochs without a better validation NDCG@10 before training stops."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, self.encoder = c.build_encoder(
            catalog.vocab_size, causal=False, n_special=1, extra_positions=1, bias=True
        )
        self.head = nn.Sequential(nn.Linear(c.dim, c.dim), nn.GELU(), nn.LayerNorm(c.dim))

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        of_items = LOSSES.find(c.loss).make(c, train)

        def loss(batch: Batch) -> Tensor:
            whole, masked = batch.with_last_target(), self.masked_positions(batch)
            shown = whole.items.masked_fill(masked, self.table.mask_token)
            states = self._filled_in(self.encode(shown, whole.lengths)[masked])
            users = whole.users[:, None].expand_as(masked)[masked]
            learned = batch.learned_with_last_target()[masked]
            return of_items(states, self.table, learned, users)

        return train_next_item(self, loss, train, valid, runtime)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B 1 E"]:
        newest = histories.truncate(self.config.max_len)
        mask = torch.full_like(newest.lengths, self.table.mask_token)[:, None]
        items = F.pad(newest.items, (0, 1)).scatter(1, newest.lengths[:, None], mask)
        lengths = newest.lengths + 1
        return self._filled_in(last_states(self.encode(items, lengths), lengths))[:, None]

    def _filled_in(self, hidden: Float[Tensor, "P D"]) -> Float[Tensor, "P E"]:
        """States that are scored against the table, bias included."""
        return self.table.states(self.head(hidden))

    def masked_positions(self, batch: Batch) -> Bool[Tensor, "B M"]:
        """Positions of the sequences with their last target that are to be filled in."""
        c = self.config
        real, lengths = batch.real_with_last_target(), batch.with_last_target().lengths
        position = torch.arange(real.shape[1], device=real.device)
        newest = real & (position == lengths[:, None] - 1)
        alone = torch.rand(len(real), 1, device=real.device) < c.last_item_ratio
        return torch.where(
            alone & newest.any(1, keepdim=True), newest, random_share(real, c.mask_ratio)
        )
