"""ACVAE: a recurrent variational autoencoder with an adversarial and a contrastive loss.

Source: Xie, Liu, Zhang, Lu, Wang & Ding, "Adversarial and Contrastive Variational Autoencoder for
Sequential Recommendation", WWW 2021 (arXiv 2103.10693), and its released code.

Gated recurrent units read the items; a causal convolution over their newest states, with noise
added to its input, makes a latent z at each position. Its distribution q(z | history) has no
formula, only draws. A decoder turns z into a state, whose products with the item table are scores.
The loss is ``next item + kl_weight · KL + contrast_weight · C``:

- KL of q from N(0, 1) is the mean of T(x, z) over draws, where the adversary T learns by logistic
  regression to distinguish drawn z from N(0, 1) (adversarial variational Bayes); x is the newest
  item's embedding. T is a network plus |z|²/2, the part of the log density ratio that is known.
- C is the Jensen-Shannon bound of the mutual information of items and z: a critic D learns to
  distinguish a user's own z from another's, mean softplus(-D(x, z)) + softplus(D(x, z')); encoder
  and critic minimize it together. z' are those of the previous sequence of the batch.

Each batch makes two updates: of the model with its critic, then of the adversary.

Departures and options:
- Recommendations average the softmaxes of ``n_draws`` draws of noise, drawn for each user. The
  released code scores with one draw of noise that depends on the batch.
- One AdamW for all, with a learning rate and weight decay of the adversary's own; the code moves
  adversary and critic by SGD, and the encoder by that as well.
- The adversary maps (x, z) to one number; the code averages one for each dimension of z, all of
  which answer the same question, so that its |z|²/2 is a mean over dimensions where ours is a sum.
  KL does not move x, which would be a way to fool the adversary.
- GELU, a normed decoder, normed units and no dropout on z: with the code's softplus, tanh and
  dropout it learned several times slower. Before the first item the convolution reads zeros.
- ``tied``: z is decoded to the table that the encoder reads; the code has a second one.
- All means are over positions with a target. The code sums over a user's.
"""

from typing import Annotated, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.parts import by_rows
from diffuserec.models.settings import EncoderName, EncoderSettings
from diffuserec.training import EncoderRecommender, Update, real_positions, train_next_item

_KERNEL = 5
"""Positions that the convolution sees: the newest and those before it."""


class ACVAE(EncoderRecommender):
    """Gated recurrent units and a causal convolution with injected noise."""

    class Config(EncoderSettings):
        """Hyper-parameters of ACVAE."""

        encoder: EncoderName = "gru"
        """Name of the sequence encoder."""
        hidden_dim: Annotated[int, OnlyIf(encoder="gru")] = Field(128, ge=1)
        """Units."""
        batch_size: int = Field(64, ge=2)
        """Training examples a batch, on average; at least 2, for another's z."""
        kl_weight: Annotated[float, Search(1e-4, 1.0, log=True)] = Field(0.001, ge=0)
        """The code: .05 of a |z|²/2 that is averaged over dimensions, about the same."""
        contrast_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.1, ge=0)
        weight_decay: float = Field(0.01, ge=0)
        adversary_learning_rate: float = Field(1e-3, gt=0)
        """The authors have .0005, for SGD."""
        adversary_weight_decay: float = Field(0.1, ge=0)
        tied: bool = True
        """Whether z is decoded to the table that the encoder reads, or to one of its own."""
        n_draws: int = Field(3, ge=1)
        """Noise draws whose probabilities are averaged."""

        @model_validator(mode="after")
        def _reads_forward(self) -> Self:
            self.require_no_lookahead("choose one that reads forward")
            return self

    config: Config
    combine = "mixture"

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.table, self.encoder = c.build_encoder(catalog.vocab_size)
        self.output = None if c.tied else ItemTable(catalog.vocab_size, c.dim)
        if self.output is not None:
            self.output.reset_parameters(c.init_std)
        self.posterior = Posterior(c.dim)
        self.decoder = nn.Sequential(nn.Linear(c.dim, c.dim), nn.LayerNorm(c.dim))
        self.adversary = Adversary(c.dim)
        self.critic = Critic(c.dim)

    def item_weight(self) -> Float[Tensor, "V D"]:
        return (self.output or self.table).weight()

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        adversary = list(self.adversary.parameters())
        model = [
            parameter
            for name, parameter in self.named_parameters()
            if not name.startswith("adversary.")
        ]
        optimizer = torch.optim.AdamW(
            [
                {"params": model, "lr": c.learning_rate, "weight_decay": c.weight_decay},
                {
                    "params": adversary,
                    "lr": c.adversary_learning_rate,
                    "weight_decay": c.adversary_weight_decay,
                },
            ],
            fused=True,
        )
        return train_next_item(
            self,
            [Update(self._loss, model), Update(self._adversary_loss, adversary)],
            train,
            valid,
            runtime,
            optimizer=optimizer,
        )

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B K D"]:
        c = self.config
        newest = histories.truncate(c.max_len)
        states = _after_zeros(self.encode(newest.items, newest.lengths))
        # with the zeros in front, the window of the newest position begins at that position
        offsets = torch.arange(_KERNEL, device=self.device)
        positions = (newest.lengths[:, None] - 1).clamp(min=0) + offsets
        real = offsets >= _KERNEL - newest.lengths[:, None]
        window = states.gather(1, positions[:, :, None].expand(-1, -1, c.dim))
        noise = KeyedNoise(seed, histories.users)
        latents = [
            self.posterior(window, noise.normal(_KERNEL, 2, c.dim), real)[:, 0]
            for _ in range(c.n_draws if n_draws is None else n_draws)
        ]
        return torch.stack([self.decoder(z) for z in latents], dim=1)

    def _loss(self, batch: Batch) -> Tensor:
        c = self.config
        real = batch.targets > 0
        x, z = self.draw_latents(batch)
        states, targets, _ = real_positions(batch, self.decoder(z))
        loss = softmax_cross_entropy(states, self.item_weight(), targets)
        if c.kl_weight:
            loss = loss + c.kl_weight * self.adversary(x[real].detach(), z[real]).mean()
        if c.contrast_weight:
            loss = loss + c.contrast_weight * self._contrast(x, z, real)
        return loss

    def _adversary_loss(self, batch: Batch) -> Tensor:
        """Logistic regression: drawn z against N(0, 1)."""
        real = batch.targets > 0
        with torch.no_grad():
            x, z = (values[real] for values in self.draw_latents(batch))
        of_prior = self.adversary(x, torch.randn_like(z))
        return (F.softplus(-self.adversary(x, z)) + F.softplus(of_prior)).mean()

    def _contrast(
        self, x: Float[Tensor, "B L D"], z: Float[Tensor, "B L D"], real: Bool[Tensor, "B L"]
    ) -> Float[Tensor, ""]:
        """C; another's z counts at positions where both have a target. It is 0 for one sequence."""
        if len(z) < 2:
            return z.new_zeros(())
        both = real & real.roll(1, 0)
        pairs = x.repeat(2, 1, 1), torch.cat([z, z.roll(1, 0)])
        own, other = by_rows(self.critic, *pairs).chunk(2)
        others = F.softplus(other[both])
        return F.softplus(-own[real]).mean() + others.sum() / max(1, len(others))

    def draw_latents(self, batch: Batch) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        """Embeddings of the items, and a draw of z at each position."""
        x = self.table.embed(batch.items)
        states = _after_zeros(by_rows(self.encoder, x, batch.lengths))
        noise = torch.randn(*states.shape[:2], 2, states.shape[2], device=states.device)
        real = torch.arange(states.shape[1], device=states.device) >= _KERNEL - 1
        return x, self.posterior(states, noise, real.expand(len(states), -1)).float()


class Posterior(nn.Module):
    """z at each position, from the newest states there and noise that is added in two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.noise = nn.Linear(dim, dim)
        self.mix = nn.Linear(dim, dim)
        self.convolution = nn.Linear(_KERNEL * dim, 2 * dim)
        self.narrow = nn.Linear(2 * dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        states: Float[Tensor, "B M D"],
        noise: Float[Tensor, "B M 2 D"],
        real: Bool[Tensor, "B M"],
    ) -> Float[Tensor, "B L D"]:
        first, second = torch.tanh(self.noise(noise)).unbind(2)
        mixed = (F.gelu(self.mix(states + first)) + second) * real[:, :, None]
        near = F.gelu(self.convolution(mixed.unfold(1, _KERNEL, 1).flatten(2)))
        z: Tensor = self.out(states[:, _KERNEL - 1 :] + F.gelu(self.narrow(near)))
        return z


class Adversary(nn.Module):
    """T, which at its best is log q(z | x) - log p(z)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim),
            nn.ELU(),
            nn.Linear(2 * dim, 2 * dim),
            nn.ELU(),
            nn.Linear(2 * dim, 1),
        )

    def forward(self, x: Float[Tensor, "P D"], z: Float[Tensor, "P D"]) -> Float[Tensor, " P"]:
        learned: Tensor = self.layers(torch.cat([x, z], dim=1))[:, 0]
        return learned.float() + z.square().sum(1) / 2


class Critic(nn.Module):
    """D at each position, from all items and z up to there."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.units = nn.GRU(2 * dim, 2 * dim, batch_first=True)
        self.out = nn.Linear(2 * dim, 1)

    def forward(self, x: Float[Tensor, "B L D"], z: Float[Tensor, "B L D"]) -> Float[Tensor, "B L"]:
        with torch.autocast(x.device.type, enabled=False):
            hidden, _ = self.units(torch.cat([x, z], dim=2))
        judged: Tensor = self.out(F.gelu(hidden))[:, :, 0]
        return judged.float()


def _after_zeros(states: Float[Tensor, "B L D"]) -> Float[Tensor, "B M D"]:
    """The states after as many zero states as the convolution reads before the first."""
    return F.pad(states, (0, 0, _KERNEL - 1, 0))
