"""SimDiffRec: next-item training plus a contrast with items restored where a denoiser is confident.

Source: Choi, Noh & Park, "Similarity-Guided Diffusion for Contrastive Sequential Recommendation",
2025. Equations below are of that paper.

A causal transformer learns the next item (eq. 3). A second, bidirectional one restores items from
embeddings that were moved towards the mean of their ``k_noise`` most similar items: that mean is
the noise (eq. 6-9), and there is no chance in it. Where the restored distribution is most
confident (eq. 14-16), its likeliest item makes a positive view of the sequence and its
``k_sample``-th a hard negative one; InfoNCE distinguishes the two (eq. 17). The loss is
``next item + contrast_weight · InfoNCE + diffusion_weight · denoising`` (eq. 18).

Options, with the paper's and its released code's readings (the code replaces the restored
distribution by random numbers and cannot evaluate; docs/methods/simdiffrec.md has more):
- ``forward_process="convex"`` is eq. 8 with alpha_t = 1 - beta_t: the weights of item and noise
  always sum to 1. ``"vp"`` is the code's one jump with square roots and a last step without signal.
  ``"gaussian"`` is the ablation without similarity: chance with the embeddings' own deviation, with
  the weights of ``"vp"``, whose last step shows nothing of the sequence.
- ``loss="bce"`` is eq. 3; the code has the softmax, which is the default here.
- ``augment_step``: confidences come from the fully noised sequence, in a pass of their own without
  dropout; ``"random"`` takes them from the training pass, as the code does.
- ``augment_count``: ceil(ratio · length) positions; ``"max_len"`` is the code's
  floor(ratio · max_len) whatever the length, here never more than there are.
- ``positions="random"`` and ``k_sample=0`` are the paper's other two ablations.
- ``exclude_original``: a position's own item is left out of the restored ones. Otherwise the
  positive often equals the original, which the paper allows.
- ``augment_ratio=0`` with ``k_sample=0`` replaces nothing: sequences are contrasted with themselves
  under other dropout. Without the denoising loss no other views can be made, and are refused.
- ``mse_weight``: of eq. 13's squared error, averaged over real positions and the width (code: 0).
  Restored embeddings are compared with the items' divided by their standard deviation, for they are
  normed and the items' are many times smaller; walking back in steps multiplies by it.
- ``share_encoder``: the denoiser uses the recommender's blocks (the code) instead of its own.
- ``num_inference_steps`` above 1 walks the fully noised sequence back in steps, moving from the
  noise towards the restored embeddings; the forward process has no chance whose posterior eq. 10
  could be.
- ``encoder``: of the next item, any; the denoiser is always a transformer.
- The views' losses reach all parameters (no detaching), as in the code.

Departures: the step enters by a network of its sinusoid, not a table of 1000 vectors; similarities
are recomputed before each epoch, for noise depends on the item alone; padding is no neighbor and is
not restored; all positions of a user train in one example (``examples="prefixes"``: one for each
item, its only target).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from pydantic import Field, model_validator
from torch import Tensor

from diffuserec.data import Batch, Catalog, Queries, SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.denoiser import DenoiserSettings, SequenceDenoiser
from diffuserec.models.diffusion import NoiseSchedule, timesteps
from diffuserec.models.encoders import last_states
from diffuserec.models.encoders.transformer import TransformerEncoder
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.parts import by_rows
from diffuserec.models.recommender import Contrastive, View
from diffuserec.models.retrieval import ItemSets, Products, max_prob, nearest_items, top_k
from diffuserec.models.settings import DiffusionSettings
from diffuserec.models.views import encode_with_views, most_confident, random_positions
from diffuserec.training import EncoderRecommender, next_item_loss, train_next_item


class SimDiffRec(EncoderRecommender, Contrastive):
    """Any encoder, and a denoiser that makes the views it is contrasted with."""

    class Config(DenoiserSettings, DiffusionSettings):
        """Hyper-parameters of SimDiffRec."""

        similarity: Literal["dot", "cosine"] = "cosine"
        temperature: Annotated[float, Search(0.03, 1.0, log=True)] = Field(0.05, gt=0)
        contrast_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.02, ge=0)
        """alpha of eq. 18; the paper has 0.4 for Beauty, 0.1 for Toys and Sports."""
        diffusion_weight: Annotated[float, Search(1e-3, 1.0, log=True)] = Field(0.1, ge=0)
        """beta of eq. 18; likewise."""
        mse_weight: float = Field(0.0, ge=0)
        """Weight of the squared error in the denoising loss; 1 in eq. 13."""
        k_noise: Annotated[int, OnlyIf(forward_process=("convex", "vp"))] = Field(25, ge=1)
        """Similar items whose mean is the noise."""
        k_sample: Annotated[int, Search(2, 100, log=True)] = Field(5, ge=0)
        """Rank of the hard negative among the restored items, from 2 on; 0 makes no hard
        negatives."""
        augment_ratio: Annotated[float, Search(0.05, 0.6)] = Field(0.2, ge=0, le=1)
        """Share of a sequence's positions that are replaced; at 0 dropout alone makes views."""
        augment_count: Literal["length", "max_len"] = "length"
        """Whether the share is one of the sequence's length or of max_len."""
        positions: Literal["confident", "random"] = "confident"
        """Positions that are replaced."""
        exclude_original: bool = False
        """Whether a position's own item is left out of the restored ones."""
        augment_step: Literal["last", "random"] = "last"
        """Diffusion step from which views are restored."""
        num_inference_steps: Annotated[int, OnlyIf(augment_step="last")] = Field(1, ge=1)
        """Steps from the fully noised sequence back."""
        forward_process: Literal["convex", "vp", "gaussian"] = "convex"
        """Weights of item and noise, and the kind of noise."""
        n_denoiser_layers: Annotated[int, OnlyIf(share_encoder=False)] = Field(1, ge=1)
        """Blocks of the denoiser's own."""
        share_encoder: Annotated[bool, OnlyIf(encoder="transformer")] = False
        """Whether the denoiser uses the encoder's blocks."""

        @model_validator(mode="after")
        def _views_differ(self) -> Self:
            if self.k_sample == 1:
                raise ValueError(
                    "k_sample 1 is the positive itself as its own hard negative: choose 2 or more, "
                    "or 0 for no hard negatives"
                )
            if self.augment_ratio == 0 and self.k_sample:
                raise ValueError(
                    "augment_ratio 0 makes a hard negative of the sequence itself: set k_sample to "
                    "0, too"
                )
            if self.augment_ratio and self.contrast_weight and not self.diffusion_weight:
                raise ValueError(
                    "diffusion_weight 0 leaves the denoiser as it was drawn, and its views would "
                    "be chance: set contrast_weight to 0, too, or augment_ratio and k_sample"
                )
            return self

    config: Config
    as_published: ClassVar[Mapping[str, Any]] = {
        "loss": "bce",
        "batch_size": 256,
        "contrast_weight": 0.4,  # of Beauty; 0.1 for Toys and Sports
        "diffusion_weight": 0.4,
        "mse_weight": 1.0,
        "average_epochs": 0.0,
        "position_encoding": "from_oldest",
    }
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
        self.table, self.encoder = c.build_encoder(catalog.vocab_size)
        n_layers = 0 if c.share_encoder else c.n_denoiser_layers
        self.denoiser = SequenceDenoiser(c.dim, n_layers, c.n_heads, c.max_len, c.dropout)
        signal, noise = forward_weights(c.forward_process, c.noise_schedule())
        neighbors = torch.zeros(catalog.vocab_size, c.k_noise, dtype=torch.int64)
        self.register_buffer("signal", signal.float(), persistent=False)
        self.register_buffer("noise", noise.float(), persistent=False)
        self.register_buffer("neighbors", neighbors, persistent=False)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        next_item = next_item_loss(c, train)

        def loss(batch: Batch) -> Tensor:
            original = batch.items, batch.lengths
            of_denoising = of_contrast = restored = None
            if c.diffusion_weight:
                of_denoising, restored = self._denoising_loss(batch)
            views = []
            if c.contrast_weight:
                made = self._views(batch, restored, certain=c.positions == "confident")
                views = [(view.items, view.lengths) for view in made]
            states, *others = encode_with_views(self.encode, original, *views)
            if others:
                own, positive, *hard = last_states(states, batch.lengths), *others
                negatives = hard[0] if hard else None
                of_contrast = c.contrast(own, positive, two_way=False, negatives=negatives)
            total = next_item(batch, states, self.table)
            if of_contrast is not None:
                total = total + c.contrast_weight * of_contrast
            if of_denoising is not None:
                total = total + c.diffusion_weight * of_denoising
            return total

        prepare = self._find_neighbors if c.diffusion_weight else None
        return train_next_item(self, loss, train, valid, runtime, prepare=prepare)

    @torch.no_grad()
    def views(self, batch: Batch, train: SequenceDataset) -> list[View]:
        self._find_neighbors()
        restored = None
        if self.config.augment_step == "random":
            _, restored = self._denoising_loss(batch)
        return self._views(batch, restored)

    def _find_neighbors(self) -> None:
        if self.config.forward_process != "gaussian":
            self.neighbors = nearest_items(self.table.embeddings().detach(), self.config.k_noise)

    def _noise(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        vectors = self.table.embeddings()
        if self.config.forward_process == "gaussian":
            noise = torch.randn(*items.shape, vectors.shape[1], device=items.device)
            return self.table.deviation() * noise
        mean = F.embedding_bag(self.neighbors[items].flatten(0, 1), vectors, mode="mean")
        return mean.view(*items.shape, -1)

    def _denoising_loss(self, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, "B L D"]]:
        """Eq. 13 at a uniform step for each sequence, and the restored embeddings."""
        items, lengths, real = batch.items, batch.lengths, batch.real
        z_0 = self.table.embed(items)
        t = torch.randint(self.config.num_train_timesteps, lengths.shape, device=items.device)
        z_t = self.signal[t, None, None] * z_0 + self.noise[t, None, None] * self._noise(items)
        restored = self._denoise(z_t, t, lengths)
        loss = softmax_cross_entropy(restored[real], self.table.weight(), items[real])
        if not bool(real.any()):  # all are synthetic, or what synthetic ones were made from
            return loss, restored
        error = F.mse_loss(restored[real].float(), z_0[real] / self._scale())
        return loss + self.config.mse_weight * error, restored

    def _scale(self) -> Float[Tensor, ""]:
        """Divisor of the items' embeddings that restored ones are compared with."""
        return self.table.deviation()

    @torch.no_grad()
    def _restored(
        self, items: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        """Embeddings restored from the fully noised sequence, without dropout."""
        c = self.config
        was_training = self.training
        self.eval()
        noise = self._noise(items)
        steps = timesteps(c.num_inference_steps, c.num_train_timesteps)
        z_t = self.signal[steps[0]] * self.table.embed(items) + self.noise[steps[0]] * noise
        for number, step in enumerate(steps):
            restored = self._denoise(z_t, lengths.new_full(lengths.shape, step), lengths)
            if number + 1 < len(steps):
                after = steps[number + 1]
                z_t = z_t + (self.signal[after] - self.signal[step]) * self._scale() * restored
                z_t = z_t + (self.noise[after] - self.noise[step]) * noise
        self.train(was_training)
        return restored

    def _denoise(
        self, z_t: Float[Tensor, "B L D"], t: Int[Tensor, " B"], lengths: Int[Tensor, " B"]
    ) -> Float[Tensor, "B L D"]:
        blocks = None
        if self.config.share_encoder and isinstance(self.encoder, TransformerEncoder):
            blocks = self.encoder.layers
        restored: Tensor = by_rows(self.denoiser, z_t, t, lengths, blocks=blocks)
        return restored

    @torch.no_grad()
    def _views(
        self, batch: Batch, restored: Float[Tensor, "B L D"] | None, certain: bool = True
    ) -> list[View]:
        """The positive and, if there is to be one, the hard negative.

        Args:
            restored: by the training pass, used if views are not of the last step.
            certain: whether confidences are needed.
        """
        c, items, lengths = self.config, batch.items, batch.lengths
        weight = self.table.weight()
        real = items > 0
        if not c.augment_ratio:
            return [View("positive", items, lengths, changed=torch.zeros_like(real))]
        if restored is None or c.augment_step == "last":
            restored = self._restored(items, lengths)
        confidence = torch.zeros(items.shape, device=items.device)
        if certain:
            confidence[real] = max_prob(restored[real], weight)
        n = torch.ceil(lengths.cpu().double() * c.augment_ratio - 1e-9).long().to(lengths.device)
        if c.augment_count == "max_len":
            n = torch.full_like(lengths, max(1, math.floor(c.max_len * c.augment_ratio + 1e-9)))
        if c.positions == "confident":
            where = most_confident(confidence, lengths, n)
        else:
            where = random_positions(lengths, items.shape[1], n)
        original = items[where]
        own = ItemSets(torch.arange(len(original), device=items.device), original)
        _, best = top_k(
            Products(restored[where], weight),
            max(1, c.k_sample),
            hidden=own if c.exclude_original else None,
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
    """Weights of an item's embedding and of its noise after each step.

    ``convex``: repeated z ← (1 - beta_t) z + beta_t · noise. Otherwise the square roots of
    alpha_bar and of the rest to 1, where alpha_bar's root is moved so that the last is 0 and the
    first unchanged (Lin, Liu, Li & Yang, WACV 2024, algorithm 1).
    """
    if process == "convex":
        return schedule.alpha_bars, 1 - schedule.alpha_bars
    root = schedule.alpha_bars.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return root, (1 - root.square()).sqrt()
