"""SimDiffRec: contrast with what a denoiser restores where it is most confident.

Source: Choi, Noh & Park, "Similarity-Guided Diffusion for Contrastive Sequential Recommendation",
2025. Equations below are its.

A causal transformer learns the next item (eq. 3). A second, bidirectional one restores items from
embeddings that were moved towards the mean of their ``k_noise`` most similar items: that mean is
the noise (eq. 6-9), and there is no chance in it. Where the restored distribution is most
confident (eq. 14-16), its likeliest item makes a positive view of the sequence and its
``k_sample``-th a hard negative one; InfoNCE tells the two apart (eq. 17). The loss is
``next item + contrast_weight · InfoNCE + diffusion_weight · denoising`` (eq. 18).

Options, with the paper's and its released code's readings (the code replaces the restored
distribution by random numbers and cannot evaluate; docs/methods/simdiffrec.md has more):
- ``forward="convex"`` is eq. 8 with alpha_t = 1 - beta_t: the weights of item and noise always sum
  to 1. ``"vp"`` is the code's one jump with square roots and a last step without signal.
  ``"gaussian"`` is the ablation without similarity: chance with the embeddings' own deviation, with
  the weights of ``"vp"``, whose last step shows nothing of the sequence.
- ``loss="bce"`` is eq. 3; the code has the softmax, which is the default here.
- ``augment_step``: confidences come from the fully noised sequence, in a pass of their own without
  dropout; ``"random"`` takes them from the training pass, as the code does.
- ``augment_count``: ceil(ratio · length) positions; ``"max_len"`` is the code's
  floor(ratio · max_len) whatever the length, here never more than there are.
- ``positions="random"`` and ``k_sample=0`` are the paper's other two ablations.
- ``exclude_original``: the item that stands there is left out of the restored ones. Otherwise the
  positive often equals the original, which the paper allows.
- ``mse_weight``: of eq. 13's squared error, averaged over real positions and the width (code: 0).
- ``share_encoder``: the denoiser uses the recommender's blocks (the code) instead of its own.
- ``num_inference_steps`` above 1 walks the fully noised sequence back in steps, moving from the
  noise towards what is restored; the forward process has no chance whose posterior eq. 10 could be.
- The views' losses reach all parameters (no detaching), as in the code.

Departures: the step is told by a network of its sinusoid, not a table of 1000 rows; similarities
are recomputed before each epoch, for noise depends on the item alone; pads are neither neighbors
nor restored; all positions of a user train in one row (``rows="prefixes"``: one each, with the
next item as its only target).
"""

import math
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.training import loop as training
from diffuserec.models.base import ContrastiveRecommender, Run, View
from diffuserec.data import Batch, Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.diffusion import NoiseSchedule, timesteps
from diffuserec.errors import ConfigError
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.encoders import SequenceDenoiser, last_states
from diffuserec.models.settings import ContrastiveSettings
from diffuserec.models.views import (
    confidences,
    most_confident,
    nearest_items,
    random_positions,
    top_items,
)


class SimDiffRec(ContrastiveRecommender):
    """Causal transformer, and a denoiser that makes the views it is contrasted with."""

    class Config(ContrastiveSettings):
        """Hyper-parameters of SimDiffRec."""

        similarity: Literal["dot", "cosine"] = "cosine"
        temperature: float = Field(0.05, gt=0)
        contrast_weight: float = Field(0.02, ge=0)
        """alpha of eq. 18; the paper has 0.4 for Beauty, 0.1 for Toys and Sports."""
        diffusion_weight: float = Field(0.1, ge=0)
        """beta of eq. 18; likewise."""
        mse_weight: float = Field(1.0, ge=0)
        k_noise: int = Field(25, ge=1)
        """Similar items whose mean is the noise."""
        k_sample: int = Field(5, ge=0)
        """Rank of the hard negative among the restored items; 1 is the positive itself, 0 makes no
        hard negatives."""
        augment_ratio: float = Field(0.2, gt=0, le=1)
        """Share of a sequence's positions that are replaced."""
        augment_count: Literal["length", "max_len"] = "length"
        positions: Literal["confident", "random"] = "confident"
        exclude_original: bool = False
        augment_step: Literal["last", "random"] = "last"
        num_inference_steps: int = Field(1, ge=1)
        """Steps from the fully noised sequence back."""
        forward_process: Literal["convex", "vp", "gaussian"] = "convex"
        num_train_timesteps: int = Field(1000, ge=2)
        beta_schedule: Literal["linear", "cosine", "sqrt"] = "linear"
        n_denoiser_layers: int = Field(1, ge=1)
        share_encoder: bool = False

        @model_validator(mode="after")
        def _fits(self) -> Self:
            if self.num_inference_steps > self.num_train_timesteps:
                raise ValueError(
                    f"num_inference_steps {self.num_inference_steps} is more than the "
                    f"{self.num_train_timesteps} steps there are"
                )
            if self.num_inference_steps > 1 and self.augment_step == "random":
                raise ValueError("num_inference_steps above 1 works with augment_step='last' only")
            if self.dim % 2 or self.dim < 4:
                raise ValueError(
                    f"dim {self.dim} must be even and at least 4, for the step's sinusoid"
                )
            NoiseSchedule.named(self.beta_schedule, self.num_train_timesteps)
            return self

    config: Config
    signal: Tensor
    noise: Tensor
    neighbors: Tensor

    def build(self, catalog: Catalog) -> None:
        c = self.config
        if c.k_noise > catalog.n_items - 1 and c.forward_process != "gaussian":
            raise ConfigError(
                f"k_noise {c.k_noise} is more than the {catalog.n_items - 1} other items of this "
                "catalog: choose a smaller one"
            )
        n_ranks = catalog.n_items - c.exclude_original
        if c.k_sample > n_ranks:
            raise ConfigError(
                f"k_sample {c.k_sample} is more than the {n_ranks} ranks that there are in this "
                "catalog: choose a smaller one"
            )
        self.encoder = c.transformer(catalog.vocab_size)
        self.denoiser = SequenceDenoiser(
            c.dim, 0 if c.share_encoder else c.n_denoiser_layers, c.n_heads, c.max_len, c.dropout
        )
        schedule = NoiseSchedule.named(c.beta_schedule, c.num_train_timesteps)
        signal, noise = forward_weights(c.forward_process, schedule)
        neighbors = torch.zeros(catalog.vocab_size, c.k_noise, dtype=torch.int64)
        self.register_buffer("signal", signal.float(), persistent=False)
        self.register_buffer("noise", noise.float(), persistent=False)
        self.register_buffer("neighbors", neighbors, persistent=False)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        run = run or Run()
        c = self.config
        self.begin(train, run)
        next_item = training.next_item(c, train)

        def loss(batch: Batch) -> Tensor:
            items, lengths = batch.items, batch.lengths
            denoising, restored = self._denoising_loss(batch)
            if c.augment_step == "last":
                restored = self._restored(items, lengths)
            positive, *negative = self._views(items, lengths, restored)
            seen = torch.cat([items, positive.items, *(view.items for view in negative)])
            states = self.encoder(seen, lengths.repeat(len(negative) + 2))
            own, other, *hard = last_states(states, lengths.repeat(len(negative) + 2)).split(
                len(items)
            )
            contrast = c.contrast(own, other, two_way=False, negatives=hard[0] if hard else None)
            predicted = next_item(batch, states[: len(items)], self.encoder.table)
            return predicted + c.contrast_weight * contrast + c.diffusion_weight * denoising

        self.curve = training.train_next_item(
            self,
            loss,
            train,
            valid,
            run,
            score=self.score,
            rows=c.rows,
            prepare=self._find_neighbors,
        )
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        return self.encoder.scores(newest.items, newest.lengths)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        self._find_neighbors()
        if self.config.augment_step == "random":
            _, restored = self._denoising_loss(batch)
        else:
            restored = self._restored(batch.items, batch.lengths)
        return self._views(batch.items, batch.lengths, restored)

    def _find_neighbors(self) -> None:
        if self.config.forward_process == "gaussian":
            return
        self.neighbors = nearest_items(self.encoder.table.detach(), self.config.k_noise)

    def _noise(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        table = self.encoder.table
        if self.config.forward_process == "gaussian":
            deviation = table[1:].detach().std()
            return deviation * torch.randn(*items.shape, table.shape[1], device=items.device)
        mean = F.embedding_bag(self.neighbors[items].flatten(0, 1), table, mode="mean")
        return mean.view(*items.shape, -1)

    def _denoising_loss(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, "B L D"]]:
        """Eq. 13 at a uniform step for each sequence, and what was restored."""
        items, lengths, real = batch.items, batch.lengths, batch.real
        z_0 = self.encoder.items(items)
        t = torch.randint(self.config.num_train_timesteps, lengths.shape, device=items.device)
        z_t = self.signal[t, None, None] * z_0 + self.noise[t, None, None] * self._noise(items)
        restored = self._denoise(z_t, t, lengths)
        error = F.mse_loss(restored[real].float(), z_0[real])
        loss = softmax_cross_entropy(restored[real], self.encoder.table, items[real])
        return loss + self.config.mse_weight * error, restored

    @torch.no_grad()
    def _restored(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        """What the denoiser makes of the fully noised sequence, without dropout."""
        c = self.config
        was_training = self.training
        self.eval()
        noise = self._noise(items)
        steps = timesteps(c.num_inference_steps, c.num_train_timesteps)
        z_t = self.signal[steps[0]] * self.encoder.items(items) + self.noise[steps[0]] * noise
        for number, step in enumerate(steps):
            restored = self._denoise(z_t, lengths.new_full(lengths.shape, step), lengths)
            if number + 1 < len(steps):
                after = steps[number + 1]
                z_t = z_t + (self.signal[after] - self.signal[step]) * restored
                z_t = z_t + (self.noise[after] - self.noise[step]) * noise
        self.train(was_training)
        return restored

    def _denoise(
        self, z_t: Float[Tensor, "B L D"], t: Int[Tensor, " B"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        blocks = self.encoder.layers if self.config.share_encoder else None
        restored: Tensor = self.denoiser(z_t, t, lengths, blocks)
        return restored

    @torch.no_grad()
    def _views(
        self,
        items: Int[Tensor, "B L"],
        lengths: Int[Tensor, " B"],
        restored: Float[Tensor, "B L D"],
    ) -> list[View]:
        """The positive and, if there is to be one, the hard negative."""
        c = self.config
        table = self.encoder.table
        real = items > 0
        confidence = torch.zeros(items.shape, device=items.device)
        confidence[real] = confidences(restored[real], table)
        n = torch.ceil(lengths.double() * c.augment_ratio - 1e-9).long()
        if c.augment_count == "max_len":
            n = torch.full_like(lengths, max(1, math.floor(c.max_len * c.augment_ratio + 1e-9)))
        if c.positions == "confident":
            where = most_confident(confidence, lengths, n)
        else:
            where = random_positions(lengths, items.shape[1], n)
        best = top_items(
            restored[where],
            table,
            max(1, c.k_sample),
            excluded=items[where] if c.exclude_original else None,
        )
        ranks = {"positive": 0} | ({"hard negative": c.k_sample - 1} if c.k_sample else {})
        return [
            View(
                name,
                items.masked_scatter(where, best[:, rank]),
                lengths,
                changed=where,
                confidence=confidence,
            )
            for name, rank in ranks.items()
        ]


def forward_weights(
    process: Literal["convex", "vp", "gaussian"], schedule: NoiseSchedule
) -> tuple[Float64[Tensor, " T"], Float64[Tensor, " T"]]:
    """What an item's embedding and its noise weigh after each step.

    ``convex``: repeated z ← (1 - beta_t) z + beta_t · noise. Otherwise the square roots of
    alpha_bar and what is missing to 1, alpha_bar's root being moved so that the last is 0 and the
    first unchanged (Lin, Liu, Li & Yang, WACV 2024, algorithm 1).
    """
    if process == "convex":
        return schedule.alpha_bars, 1 - schedule.alpha_bars
    root = schedule.alpha_bars.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root, (1 - root.square()).sqrt()
