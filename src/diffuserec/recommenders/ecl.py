"""ECL-SR: insensitive to dropout, sensitive to replaced items.

Source: Zhou, Gao, Xie, Ye, Hua, Kim, Wang & Kim, "Equivariant Contrastive Learning for Sequential
Recommendation", RecSys 2023 (arXiv 2211.05290), and its released code.

Beside the next item (a), a causal encoder is trained so that two dropout passes of a sequence are
near each other, by one-way InfoNCE between the means of its newest states (b). A bidirectional
generator fills masked positions with its likeliest items, and a discriminator that is told the
encoder's states has to find the replaced ones (c): the states must hold what changed. The
generator learns the masked items (d). All share the item table.

Departures and options:
- ``discriminator="shared"``: the discriminator is the encoder itself with a linear layer, as in the
  released commands; ``"own"`` gives it its own blocks.
- The mean is over the newest states there are; the code's has padding in it for short sequences.
- Padding is no target; the released softmax over all positions learns it.
- The authors give weights for Sports, Toys, Yelp and ML-1M; the defaults are those for Toys.
- All positions of a user train in one row (``rows="prefixes"``: a row for each item).
"""

from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.training import loop as training
from diffuserec.models.base import ContrastiveRecommender, Run, View
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.encoders import mean_of_last
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import random_positions, top_items


class ECL(ContrastiveRecommender):
    """Causal transformer with a dropout contrast and a replaced-item discriminator."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of ECL-SR."""

        similarity: Literal["dot", "cosine"] = "cosine"
        temperature: float = Field(0.05, gt=0)
        contrast_weight: float = Field(0.1, ge=0)
        discriminator_weight: float = Field(0.01, ge=0)
        generator_weight: float = Field(0.02, ge=0)
        mask_ratio: float = Field(0.2, gt=0, le=1)
        """floor(ratio · length) + 1 positions are masked."""
        n_last: int = Field(10, ge=1)
        """Newest states whose mean represents a sequence."""
        discriminator: Literal["shared", "own"] = "shared"

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.encoder = c.transformer(catalog.vocab_size, n_extra=1)
        # these are given embeddings of the encoder's table
        self.generator = c.transformer(0, causal=False)
        self.discriminator = c.transformer(0) if c.discriminator == "own" else None
        self.replaced = nn.Linear(c.dim, 1)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        next_item = training.next_item(c, train)

        def loss(batch: Batch) -> Tensor:
            items, lengths = batch.items, batch.lengths
            states, again = self.encoder(items.repeat(2, 1), lengths.repeat(2)).split(len(items))
            contrast = c.contrast(
                mean_of_last(states, lengths, c.n_last),
                mean_of_last(again, lengths, c.n_last),
                two_way=False,
            )
            filled, masked, restored = self._fill(batch)
            generated = softmax_cross_entropy(restored, self.encoder.table, items[masked])
            return (
                next_item(batch, states, self.encoder.table)
                + c.contrast_weight * contrast
                + c.discriminator_weight * self._discriminate(batch, filled, states)
                + c.generator_weight * generated
            )

        self.curve = training.train_next_item(
            self, loss, train, valid, run, score=self.score, rows=c.rows
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        return self.encoder.scores(newest.items, newest.lengths)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        filled, masked, _ = self._fill(batch)
        return [
            View("dropout view", batch.items, batch.lengths),
            View("replaced items", filled, batch.lengths, changed=masked),
        ]

    def _fill(
        self, batch: Batch
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Float[Tensor, "P D"]]:
        """The sequences with masked positions filled, which they are, and the states there."""
        items, lengths = batch.items, batch.lengths
        n = (lengths.double() * self.config.mask_ratio + 1e-9).long() + 1
        masked = random_positions(lengths, items.shape[1], n) & batch.real
        shown = self.encoder.items(items.masked_fill(masked, self.encoder.vocab_size))
        restored = self.generator.encode(shown, lengths)[masked]
        with torch.no_grad():
            best = top_items(restored, self.encoder.table, 1)
        return items.masked_scatter(masked, best), masked, restored

    def _discriminate(
        self, batch: Batch, filled: Int[Tensor, "B L"], states: Float[Tensor, "B L D"]
    ) -> Float[Tensor, ""]:
        """Binary cross entropy of what was replaced; a filled-in original counts as original."""
        discriminator = self.encoder if self.discriminator is None else self.discriminator
        seen = discriminator.encode(self.encoder.items(filled) + states, batch.lengths)
        logits = self.replaced(seen)[:, :, 0][batch.real].float()
        replaced = (filled != batch.items)[batch.real]
        return F.binary_cross_entropy_with_logits(logits, replaced.float())
