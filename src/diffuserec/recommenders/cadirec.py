"""CaDiRec: next-item training plus a contrast of two views that a context-aware denoiser fills in.

Source: Cui, Wu, He, Cheng & Ma, "Context Matters: Enhancing Sequential Recommendation with
Context-aware Diffusion-based Contrastive Learning", CIKM 2024 (arXiv 2405.09369), and its released
code.

At a random share of positions the items' embeddings are noised to some step; a bidirectional
denoiser, which sees the others clean, restores them in one pass. It learns by the cross entropy of
the items there. Of the ten likeliest items at each noised position two are drawn at random: they
make two views, and NT-Xent contrasts the two of a sequence with other sequences'. No reverse chain
is ever walked: in effect this is a masked-item model whose mask is noise.

Departures and options:
- ``loss="softmax"``; the authors have ``"bce"``. ``encoder`` may be any.
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

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from diffuserec.data import Batch, Catalog, Queries, SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search
from diffuserec.models.denoiser import DenoiserSettings, SequenceDenoiser
from diffuserec.models.encoders import last_states
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.parts import by_rows
from diffuserec.models.recommender import Contrastive, View
from diffuserec.models.retrieval import Products, top_k
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item


class CaDiRec(EncoderRecommender, Contrastive):
    """Any encoder with NT-Xent between two denoised views of a sequence."""

    class Config(DenoiserSettings):
        """Hyper-parameters of CaDiRec."""

        contrast_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.1, ge=0)
        """alpha, weight of the contrast in the loss."""
        diffusion_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.2, ge=0)
        """beta, weight of the denoiser's cross entropy; the authors have 0.1 for ML-1M."""
        mse_weight: float = Field(0.0, ge=0)
        """gamma, weight of the denoiser's squared error."""
        noise_ratio: Annotated[float, Search(0.05, 0.5)] = Field(0.1, gt=0, le=1)
        """rho, chance of a position to be noised."""
        n_best: int = Field(10, ge=1)
        """Likeliest items that a view's are drawn from."""
        normalize: bool = True
        """Whether noise is scaled by the deviation of the item embeddings."""
        beta_schedule: Literal["sqrt", "linear", "cosine"] = "sqrt"
        n_denoiser_layers: int = Field(2, ge=1)
        """Blocks of the denoiser; the authors have 1 for ML-1M."""
        denoiser_dropout: float = Field(0.2, ge=0, lt=1)

    config: Config

    def build(self, catalog: Catalog) -> None:
        c = self.config
        if c.n_best > catalog.n_items:
            raise ConfigError(
                f"n_best {c.n_best} is more than the {catalog.n_items} items of this catalog: "
                "choose a smaller one"
            )
        self.table, self.encoder = c.build_encoder(catalog.vocab_size)
        self.denoiser = SequenceDenoiser(
            c.dim, c.n_denoiser_layers, c.n_heads, c.max_len, c.denoiser_dropout
        )
        self.schedule = c.noise_schedule()

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        next_item = next_item_loss(c, train)

        def loss(batch: Batch) -> Tensor:
            items, lengths, weight = batch.items, batch.lengths, self.table.weight()
            noised, restored = self._restore(batch)
            denoising = c.diffusion_weight * softmax_cross_entropy(restored, weight, items[noised])
            if c.mse_weight:
                error = (restored.float() - self.table.embed(items[noised])).square().mean(1)
                denoising = denoising + c.mse_weight * error.sum() / max(1, len(error))
            views = torch.cat(self._two_views(items, noised, restored))
            embedded = torch.cat([self.table.embed(items), self.table.embed(views).detach()])
            states = by_rows(self.encoder, embedded, lengths.repeat(3))
            _, first, second = last_states(states, lengths.repeat(3)).split(len(items))
            predicted = next_item(batch, states[: len(items)], self.table)
            return predicted + c.contrast_weight * c.contrast(first, second) + denoising

        return train_next_item(self, loss, train, valid, runtime)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        noised, restored = self._restore(batch)
        first, second = self._two_views(batch.items, noised, restored)
        return [
            View("first view", first, batch.lengths, changed=noised),
            View("second view", second, batch.lengths, changed=noised),
        ]

    def _restore(self, batch: Batch) -> tuple[Bool[Tensor, "B L"], Float[Tensor, "P D"]]:
        """Positions noised to one step a sequence, and the embeddings restored there."""
        c = self.config
        items, lengths = batch.items, batch.lengths
        noised = (torch.rand(items.shape, device=items.device) < c.noise_ratio) & batch.real
        x_0 = self.table.embed(items)
        noise = torch.randn_like(x_0)
        if c.normalize:
            noise = noise * self.table.deviation()
        t = torch.randint(c.num_train_timesteps, lengths.shape, device=items.device)
        x_t = torch.where(noised[:, :, None], self.schedule.add_noise(x_0, noise, t), x_0)
        return noised, by_rows(self.denoiser, x_t, t, lengths)[noised]

    @torch.no_grad()
    def _two_views(
        self,
        items: Int[Tensor, "B L"],
        noised: Bool[Tensor, "B L"],
        restored: Float[Tensor, "P D"],
    ) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        _, best = top_k(Products(restored, self.table.weight()), self.config.n_best)
        drawn = torch.randint(self.config.n_best, (2, len(best), 1), device=items.device)
        first, second = (best.gather(1, ranks)[:, 0] for ranks in drawn)
        return items.masked_scatter(noised, first), items.masked_scatter(noised, second)
