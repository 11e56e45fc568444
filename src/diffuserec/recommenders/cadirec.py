"""CaDiRec: contrast between two versions that a context-aware denoiser fills in.

Source: Cui, Wu, He, Cheng & Ma, "Context Matters: Enhancing Sequential Recommendation with
Context-aware Diffusion-based Contrastive Learning", CIKM 2024 (arXiv 2405.09369), and its released
code.

At a random share of positions the items' embeddings are noised to some step; a bidirectional
denoiser, which sees the others clean, restores them in one pass. It learns by the cross entropy of
the items there. Of the ten likeliest items at each noised position two are drawn at random: they
make two views, and NT-Xent tells the two of a sequence from those of others. No reverse chain is
ever walked: in effect this is a masked-item model whose mask is noise.

Departures and options:
- ``loss="softmax"``; the authors have ``"bce"``.
- ``normalize``: noise is scaled by the deviation of the item embeddings, which are fifty times
  smaller than unit noise; the authors' embeddings drown in it.
- The denoiser has learned absolute positions, not DeBERTa's relative ones, a feed-forward width of
  4·dim, and the step's network adds to every position. The authors' added noise on clean embeddings
  is left out.
- The views' embeddings are a detached copy, as in the code: the contrast trains the encoder.
- ``mse_weight`` is 0 in the authors' settings.
- The denoiser's cross entropy is a mean over noised positions. The authors' is one over sequences,
  those without a noised position counting 0: less than half of ours on short sequences.
"""

from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.training import loop as training
from diffuserec.models.base import ContrastiveRecommender, Run, View
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.diffusion import NoiseSchedule
from diffuserec.errors import ConfigError
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.encoders import SequenceDenoiser, last_states
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import top_items


class CaDiRec(ContrastiveRecommender):
    """Causal transformer with NT-Xent between two denoised versions of a sequence."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of CaDiRec."""

        contrast_weight: float = Field(0.1, ge=0)
        """alpha."""
        diffusion_weight: float = Field(0.2, ge=0)
        """beta; the authors have 0.1 for ML-1M."""
        mse_weight: float = Field(0.0, ge=0)
        """gamma."""
        noise_ratio: float = Field(0.1, gt=0, le=1)
        """rho: the chance of a position to be noised."""
        n_best: int = Field(10, ge=1)
        """Likeliest items that a view's are drawn from."""
        normalize: bool = True
        num_train_timesteps: int = Field(1000, ge=2)
        beta_schedule: Literal["sqrt", "linear", "cosine"] = "sqrt"
        n_denoiser_layers: int = Field(2, ge=1)
        """The authors have 1 for ML-1M."""
        denoiser_dropout: float = Field(0.2, ge=0, lt=1)

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.dim % 2 or self.dim < 4:
                raise ValueError(
                    f"dim {self.dim} must be even and at least 4, for the step's sinusoid"
                )
            NoiseSchedule.named(self.beta_schedule, self.num_train_timesteps)
            return self

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        if c.n_best > catalog.n_items:
            raise ConfigError(
                f"n_best {c.n_best} is more than the {catalog.n_items} items of this catalog: "
                "choose a smaller one"
            )
        self.encoder = c.transformer(catalog.vocab_size)
        self.denoiser = SequenceDenoiser(
            c.dim, c.n_denoiser_layers, c.n_heads, c.max_len, c.denoiser_dropout
        )
        self.schedule = NoiseSchedule.named(c.beta_schedule, c.num_train_timesteps)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        next_item = training.next_item(c, train)

        def loss(batch: Batch) -> Tensor:
            items, lengths, table = batch.items, batch.lengths, self.encoder.table
            noised, restored = self._restore(batch)
            denoising = c.diffusion_weight * softmax_cross_entropy(restored, table, items[noised])
            if c.mse_weight:
                error = (restored.float() - table[items[noised]]).square().mean(1)
                denoising = denoising + c.mse_weight * error.sum() / max(1, len(error))
            versions = torch.cat(self._two_versions(items, noised, restored))
            embedded = torch.cat([self.encoder.items(items), table.detach()[versions]])
            states = self.encoder.encode(embedded, lengths.repeat(3))
            _, first, second = last_states(states, lengths.repeat(3)).split(len(items))
            contrast = c.contrast(first, second)
            predicted = next_item(batch, states[: len(items)], table)
            return predicted + c.contrast_weight * contrast + denoising

        self.curve = training.train_next_item(
            self, loss, train, valid, run, score=self.score, rows=c.rows
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        return self.encoder.scores(newest.items, newest.lengths)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        noised, restored = self._restore(batch)
        first, second = self._two_versions(batch.items, noised, restored)
        return [
            View("first view", first, batch.lengths, changed=noised),
            View("second view", second, batch.lengths, changed=noised),
        ]

    def _restore(self, batch: Batch) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "P D"]]:
        """Noises some positions to one step a sequence: which they are, what is restored there."""
        c = self.config
        items, lengths = batch.items, batch.lengths
        noised = (torch.rand(items.shape, device=items.device) < c.noise_ratio) & batch.real
        x_0 = self.encoder.items(items)
        noise = torch.randn_like(x_0)
        if c.normalize:
            noise = noise * self.encoder.table[1:].detach().std()
        t = torch.randint(c.num_train_timesteps, lengths.shape, device=items.device)
        x_t = torch.where(noised[:, :, None], self.schedule.add_noise(x_0, noise, t), x_0)
        return noised, self.denoiser(x_t, t, lengths)[noised]

    @torch.no_grad()
    def _two_versions(
        self,
        items: Int[Tensor, "B L"],
        noised: Bool[Tensor, "B L"],
        restored: Float[Tensor, "P D"],
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        best = top_items(restored, self.encoder.table, self.config.n_best)
        drawn = torch.randint(self.config.n_best, (2, len(best), 1), device=items.device)
        first, second = (best.gather(1, ranks)[:, 0] for ranks in drawn)
        return items.masked_scatter(noised, first), items.masked_scatter(noised, second)
