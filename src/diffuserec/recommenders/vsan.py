"""VSAN: a variational autoencoder of self-attention: each position has a latent Gaussian.

Source: Zhao, Zhao, Zhao, Liu, Sheng & Zhou, "Variational Self-attention Network for Sequential
Recommendation", ICDE 2021. No code of its authors was found.

A causal inference encoder gives each position a mean and a log variance; ``z = mean + deviation ·
noise`` (the mean itself when scoring) passes through causal generative blocks to a state, whose
products with the item table are the scores. The loss is the next-item loss plus a weight times
``KL(N(mean, variance) || N(0, 1))``, summed over the width and averaged over the positions that
hold an item. The weight rises from 0 to ``kl_weight`` in ``kl_annealing_steps`` updates.

Departures and options:
- ``n_targets=1``: the next item; the paper's next k items are more, the loss a mean over all pairs
  of a position and one of them.
- ``encoder``: of inference, any; the paper's is the transformer. Generation is always attention.
- ``kl_weight=0.01``: a latent has one next item to tell, which far smaller weights than those of
  autoencoders of whole histories already cut short.
- Means begin as large as the states, deviations at e^-2; by torch's defaults noise hides the means.
- Scores are products with the item table, without a matrix of their own.
- Blocks are this project's (models.encoders.transformer); the generative ones have no positions.
"""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.encoders import initialize, last_states
from diffuserec.models.encoders.transformer import TransformerBlock
from diffuserec.models.losses import kl_to_standard
from diffuserec.models.parts import by_rows
from diffuserec.models.settings import HeadsSettings, TargetsSettings, has_layers
from diffuserec.training import EncoderRecommender, adam, next_item_loss, train_next_item

_LOG_VARIANCE = -4.0
"""Log variance with which training begins."""


class VSAN(EncoderRecommender):
    """Any encoder with a latent Gaussian at each position, and generative attention blocks."""

    class Config(TargetsSettings, HeadsSettings):
        """Hyper-parameters of VSAN."""

        n_layers: Annotated[int, OnlyIf(encoder=has_layers)] = Field(1, ge=1)
        """Layers of the inference encoder."""
        n_generative_layers: int = Field(1, ge=1)
        """Generative blocks."""
        kl_weight: Annotated[float, Search(1e-4, 1.0, log=True)] = Field(0.01, ge=0)
        """beta, highest weight of the divergence."""
        kl_annealing_steps: int = Field(10_000, ge=1)
        """Updates until the weight is at its highest."""

    config: Config
    n_updates: Tensor

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, self.encoder = c.build_encoder(catalog.vocab_size)
        self.mean = nn.Linear(c.dim, c.dim)
        self.log_variance = nn.Linear(c.dim, c.dim)
        nn.init.normal_(self.mean.weight, std=c.dim**-0.5)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, _LOG_VARIANCE)
        self.generative = nn.ModuleList(
            TransformerBlock(c.dim, c.n_heads, c.dropout, causal=True)
            for _ in range(c.n_generative_layers)
        ).apply(initialize)
        # a buffer, so that a resumed run goes on with the weight of the divergence where it was
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        next_item = next_item_loss(c, train)
        optimizer = adam(c, self.parameters())
        optimizer.register_step_post_hook(self._count)

        def loss(batch: Batch) -> Tensor:
            mean, log_variance = self._latent(batch.items, batch.lengths)
            z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
            predicted = next_item(batch, by_rows(self._generate, z), self.table)
            divergence = kl_to_standard(mean, log_variance)[batch.items > 0].mean()
            return predicted + self._beta() * divergence

        return train_next_item(self, loss, train, valid, runtime, optimizer=optimizer)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B 1 D"]:
        newest = histories.truncate(self.config.max_len)
        mean, _ = self._latent(newest.items, newest.lengths)
        return last_states(self._generate(mean), newest.lengths)[:, None]

    def _beta(self) -> Float[Tensor, ""]:
        """Weight of the divergence in the next update."""
        c = self.config
        return c.kl_weight * (self.n_updates / c.kl_annealing_steps).clamp(max=1)

    def _count(self, *_: object) -> None:
        self.n_updates += 1

    def _latent(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        """Means and log variances."""
        states = self.encode(items, lengths)
        return self.mean(states).float(), self.log_variance(states).float()

    def _generate(self, z: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        for block in self.generative:
            z = block(z)
        return z
