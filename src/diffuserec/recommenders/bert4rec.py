"""BERT4Rec: a bidirectional transformer that fills in masked items; the next one is a mask.

Source: Sun, Liu, Wu, Pei, Lin, Ou & Jiang, "BERT4Rec: Sequential Recommendation with Bidirectional
Encoder Representations from Transformer", CIKM 2019 (arXiv 1904.06690).

Items of a row are replaced by a ``[mask]`` token, each with chance ``mask_ratio`` and at least one,
and the states there are to tell which they were: cross entropy over all items of
``LayerNorm(GELU(W h + b)) · table + bias``. In a share of the rows, ``last_item_ratio``, the newest
item alone is masked. To recommend, ``[mask]`` is appended to a history and its state scored.

Departures and options:
- Masks are drawn anew in every epoch. The released code writes ten copies of each row with fixed
  masks and one with the newest item masked, which is a ``last_item_ratio`` of 1/11.
- Every chosen item becomes ``[mask]``, as with the code's settings; none stays or is exchanged.
- There is a position more than ``max_len``, so that the appended mask drops no item, and a training
  row holds ``max_len`` items and the one after them.
- A user's newest ``max_len + 1`` items are a row. The code slides a window over longer histories;
  ``rows="windows"`` has windows that overlap by an item, ``"prefixes"`` a row for each item.
- Adam's rate falls in a straight line, as in the paper, from 0.001 (paper 0.0001), without warm-up
  or weight decay. A constant one (``decay="none"``) held it back (docs/methods/bert4rec.md).
- A dropout of 0.2: with 0.5, as other methods have it, it learned more slowly on Amazon Beauty.
- ``loss``: those of SASRec; the one that DiffuASR trains is ``"bce"``.
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from diffuserec import training
from diffuserec.contracts import Recommender, Run
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.nn.encoders import last_states
from diffuserec.settings import NextItemSettings
from diffuserec.views import random_share


class BERT4Rec(Recommender):
    """Bidirectional transformer with a masked-item head on the tied item table."""

    class Config(NextItemSettings):
        """Hyper-parameters of BERT4Rec."""

        mask_ratio: float = Field(0.2, gt=0, le=1)
        """Chance of an item to be masked; at least one of a row is."""
        last_item_ratio: float = Field(0.1, ge=0, le=1)
        """Share of the rows in which the newest item alone is masked."""
        decay: Literal["linear", "none"] = "linear"
        """Whether the learning rate falls in a straight line, to 0 after ``epochs`` (paper)."""
        dropout: float = Field(0.2, ge=0, lt=1)
        epochs: int = Field(200, ge=1)
        patience: int = Field(20, ge=1)
        """Epochs without a better validation NDCG@10 before training stops."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.encoder = c.transformer(catalog.vocab_size, causal=False, n_extra=1, n_more=1)
        self.head = nn.Sequential(nn.Linear(c.dim, c.dim), nn.GELU(), nn.LayerNorm(c.dim))
        self.bias = nn.Parameter(torch.zeros(catalog.vocab_size))

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        self.begin(train, run)
        c = self.config
        item_loss = training.item_loss(c, train)

        def loss(batch: Batch) -> Tensor:
            whole, masked = batch.whole(), self._masked(batch)
            shown = whole.items.masked_fill(masked, self.encoder.vocab_size)
            found = self.head(self.encoder(shown, whole.lengths)[masked])
            # the bias is one more column of the table, and 1 what it is multiplied with
            states = torch.cat([found, found.new_ones(len(found), 1)], dim=1)
            table = torch.cat([self.encoder.table, self.bias[:, None]], dim=1)
            users = whole.users[:, None].expand_as(masked)[masked]
            return item_loss(states, whole.items[masked], users, table)

        self.curve = training.train_next_item(
            self,
            loss,
            train,
            valid,
            run,
            score=self.score,
            rows=c.rows,
            rate=training.linear_decay(c.epochs) if c.decay == "linear" else None,
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        mask = torch.full_like(newest.lengths, self.encoder.vocab_size)[:, None]
        items = F.pad(newest.items, (0, 1)).scatter(1, newest.lengths[:, None], mask)
        lengths = newest.lengths + 1
        found: Tensor = self.head(last_states(self.encoder(items, lengths), lengths))
        return found @ self.encoder.table.T + self.bias

    def _masked(self, batch: Batch) -> Bool[Tensor, "B M"]:
        """The positions of the whole rows that are to be filled in."""
        c = self.config
        real, lengths = batch.whole_real(), batch.whole().lengths
        place = torch.arange(real.shape[1], device=real.device)
        newest = real & (place == lengths[:, None] - 1)
        alone = torch.rand(len(real), 1, device=real.device) < c.last_item_ratio
        return torch.where(
            alone & newest.any(1, keepdim=True), newest, random_share(real, c.mask_ratio)
        )
