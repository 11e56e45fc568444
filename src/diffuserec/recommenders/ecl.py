"""ECL-SR: next-item training with states that ignore dropout and reveal replaced items.

Source: Zhou, Gao, Xie, Ye, Hua, Kim, Wang & Kim, "Equivariant Contrastive Learning for Sequential
Recommendation", RecSys 2023 (arXiv 2211.05290), and its released code.

Beside the next item (a), a causal encoder is trained so that two dropout passes of a sequence are
near each other, by one-way InfoNCE between the means of its newest states (b). A bidirectional
generator fills masked positions with its likeliest items, and a discriminator that also reads the
encoder's states has to find the replaced ones (c): the states must hold what changed. The
generator learns the masked items (d). All share the item table.

Departures and options:
- ``discriminator="shared"``: the discriminator is the encoder itself with a linear layer, as in the
  released commands; ``"own"`` gives it its own weights.
- ``encoder`` may be any, and generator and discriminator are of its kind; the paper's is the
  transformer. The generator of one that cannot look ahead fills a position from those before it.
- The mean is over the newest states there are; the code's has padding in it for short sequences.
- Padding is no target; the released softmax over all positions learns it.
- The authors give weights for Sports, Toys, Yelp and ML-1M; the defaults are those for Toys.
- All positions of a user train in one example (``examples="prefixes"``: one for each item).
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search
from diffuserec.models.encoders import ENCODERS, SequenceEncoder, mean_of_last
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.parts import by_rows
from diffuserec.models.recommender import Contrastive, View
from diffuserec.models.retrieval import Products, top_k
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import random_positions
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item


class ECL(EncoderRecommender, Contrastive):
    """Any encoder with a dropout contrast and a replaced-item discriminator."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of ECL-SR."""

        similarity: Literal["dot", "cosine"] = "cosine"
        temperature: Annotated[float, Search(0.03, 1.0, log=True)] = Field(0.05, gt=0)
        contrast_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.1, ge=0)
        """Weight of the dropout contrast (b)."""
        discriminator_weight: Annotated[float, Search(1e-3, 0.3, log=True)] = Field(0.01, ge=0)
        """Weight of the discriminator's loss (c)."""
        generator_weight: Annotated[float, Search(1e-3, 0.3, log=True)] = Field(0.02, ge=0)
        """Weight of the generator's loss (d)."""
        mask_ratio: Annotated[float, Search(0.1, 0.6)] = Field(0.2, gt=0, le=1)
        """floor(ratio · length) + 1 positions are masked."""
        n_last: int = Field(10, ge=1)
        """Newest states whose mean represents a sequence."""
        discriminator: Literal["shared", "own"] = "shared"
        """Whether the discriminator is the encoder itself or has its own weights."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, self.encoder = c.build_encoder(catalog.vocab_size, n_special=1)
        self.generator = self._encoder(causal=ENCODERS.find(c.encoder).sees == "before")
        self.discriminator = self._encoder() if c.discriminator == "own" else None
        self.replaced = nn.Linear(c.dim, 1)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        next_item = next_item_loss(c, train)

        def loss(batch: Batch) -> Tensor:
            items, lengths = batch.items, batch.lengths
            states, again = self.encode(items.repeat(2, 1), lengths.repeat(2)).split(len(items))
            contrast = c.contrast(
                mean_of_last(states, lengths, c.n_last),
                mean_of_last(again, lengths, c.n_last),
                two_way=False,
            )
            filled, masked, restored = self._fill(batch)
            generated = softmax_cross_entropy(restored, self.table.weight(), items[masked])
            return (
                next_item(batch, states, self.table)
                + c.contrast_weight * contrast
                + c.discriminator_weight * self._discriminate(batch, filled, states)
                + c.generator_weight * generated
            )

        return train_next_item(self, loss, train, valid, runtime)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        filled, masked, _ = self._fill(batch)
        return [
            View("dropout view", batch.items, batch.lengths),
            View("replaced items", filled, batch.lengths, changed=masked),
        ]

    def _encoder(self, causal: bool = True) -> SequenceEncoder:
        """Another encoder of the chosen kind, which reads embeddings of the same table."""
        encoder = self.config.make_encoder(causal)
        encoder.reset_parameters()
        return encoder

    def _fill(
        self, batch: Batch
    ) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Float[Tensor, "P D"]]:
        """Sequences with masked positions filled, those positions, and the generator's states."""
        items, lengths = batch.items, batch.lengths
        n = (lengths.cpu().double() * self.config.mask_ratio + 1e-9).long() + 1
        masked = random_positions(lengths, items.shape[1], n.to(lengths.device)) & batch.real
        shown = self.table.embed(items.masked_fill(masked, self.table.mask_token))
        restored = by_rows(self.generator, shown, lengths)[masked]
        _, best = top_k(Products(restored.detach(), self.table.weight()), 1)
        return items.masked_scatter(masked, best), masked, restored

    def _discriminate(
        self, batch: Batch, filled: Int[Tensor, "B L"], states: Float[Tensor, "B L D"]
    ) -> Float[Tensor, ""]:
        """Binary cross entropy of the replaced positions; a filled-in original is not replaced."""
        discriminator = self.encoder if self.discriminator is None else self.discriminator
        seen = by_rows(discriminator, self.table.embed(filled) + states, batch.lengths)
        logits: Tensor = self.replaced(seen)[:, :, 0][batch.real].float()
        replaced = (filled != batch.items)[batch.real]
        if not len(logits):  # every item is synthetic, or what synthetic ones were made from
            return logits.sum()
        return F.binary_cross_entropy_with_logits(logits, replaced.float())
