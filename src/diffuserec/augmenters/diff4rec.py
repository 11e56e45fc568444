"""Diff4Rec: a latent diffusion model proposes items; variants of each sequence teach beside it.

Source: Wu, Wang, Chen, Li, Han, Sun & Zhu, "Diff4Rec: Sequential Recommendation with
Curriculum-scheduled Diffusion Augmentation", MM 2023. No code was published.

A variational autoencoder compresses the set of a user's items to a latent vector z, and a network
learns to predict the noise in a noised z, both at once (eq. 8, signs resolved):

    KL(q(z|x) ‖ N(0, I)) · w  -  log p(x | z)  +  noise_weight · ‖ε - ε_θ(√ᾱ_t z + √(1-ᾱ_t) ε, t)‖²

To propose items, the mean of q(z|x) is noised to a step T' < T, restored in a few steps and decoded
to a score for every item, x̂; a user's best items that he does not have are his pool. K variants of
his sequence are made: `ratio` of the items are replaced by items of the pool and all are shuffled.
A recommender trains on the original and its variants, those most like the original first.

What the paper leaves open, and its misprints:

- x holds the training part alone. Equations 7 and 8 mean ᾱ where they say α; the likelihood is the
  multinomial of Mult-VAE (Liang et al., WWW 2018), which it cites (``likelihood="bernoulli"``); the
  weight w of the KL rises from 0 to `kl_weight`, as there.
- "Corrupted with the forward process" to its end would leave nothing of the user: `corruption` is
  T'/T. At 0, and with ``noise_weight=0``, the model is a plain Mult-VAE.
- What is decoded in training is z (eq. 8); ``decode_from="z_0"`` decodes its restored estimate,
  noised to T' at most.
- All of x̂ is "generated behavior", so that a rule is needed: the `pool_size` best items
  (``pool="topk"``), the same drawn by their probability (``softmax``), or those of them that are
  likelier than an item in general, or else the best (``threshold``).
- Algorithm 1 takes the least similar variant first, the text the most similar, which is the
  default; ``order="hard_first"`` is the algorithm's. "Embed" is taken as the decoder's vectors.
- One variant is popped at each iteration "until converged": here a stage is `stage_epochs` epochs
  and keeps the variants of those before it; ``curriculum="one_pass"`` drops them. After the last
  stage all are in use either way.
- With `aug_weight` 1 and K = 10 the variants outweigh the original by ten to one, as in eq. 10. By
  default all of them weigh together what the original does, and those of the first stages less.
- A step shows one variant of each sequence, drawn from those of the stage, with the weight of all
  of them: of a loss that is a mean over targets the same in expectation, for a fifth of the price
  (``each_step="all"``: the exact sum). Contrastive recommenders tell a user's variants apart there.
- `noise_weight` (lambda), not in the paper, and `learning_rate` were chosen on Amazon Beauty's
  validation part: docs/methods/diff4rec.md.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec.training import loop as training
from diffuserec.models.base import Run, Settings, VaryingAugmenter
from diffuserec.data import (
    Catalog,
    Histories,
    Queries,
    Schedule,
    SequenceDataset,
    Variants,
    histories_of,
)
from diffuserec.models.diffusion import KeyedNoise, NoiseSchedule, Sampler, denoise_with
from diffuserec.errors import DataError
from diffuserec.models.losses import kl_to_standard, set_likelihood
from diffuserec.models.step_embeddings import sinusoidal

_STEP_DIM = 32
"""Width of a step's sinusoid."""

_OTHER_NOISE = 2**40
"""Added to a seed, so that variants do not have the noise of any seed's proposals."""

_AT_ONCE = 2**24
"""Numbers held at once in each table of scores or of variants."""


class Diff4Rec(VaryingAugmenter):
    """Latent diffusion over users' sets of items; K variants of each sequence, easiest first."""

    class Config(Settings):
        """Hyper-parameters of Diff4Rec."""

        latent_dim: int = Field(64, ge=1)
        """Width of z."""
        hidden_dim: int = Field(256, ge=1)
        """Width of the one hidden layer of encoder, decoder and denoiser."""
        dropout: float = Field(0.5, ge=0, lt=1)
        """Share of a user's items that the encoder does not see in training."""
        likelihood: Literal["multinomial", "bernoulli"] = "multinomial"
        decode_from: Literal["z", "z_0"] = "z"
        """What is decoded in training: the sampled latent, or its estimate restored from noise."""
        kl_weight: float = Field(0.2, ge=0)
        """What the weight of the KL rises to."""
        kl_annealing_steps: int = Field(500, ge=1)
        """Updates until it is there."""
        noise_weight: float = Field(0.1, ge=0)
        """lambda of equation 8."""
        noise_moves_encoder: bool = True
        """Whether the noise loss reaches the encoder, as in equation 8."""

        num_train_timesteps: int = Field(100, ge=2)
        beta_schedule: Literal[
            "linear", "quad", "cosine", "sqrt", "sigmoid", "exp", "trunc_linear"
        ] = "cosine"
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
        corruption: float = Field(0.25, ge=0, le=1)
        """T'/T: how far a user's latent is noised before it is restored; 0 leaves it as it is."""
        num_inference_steps: int = Field(5, ge=1)
        """Steps from T' back to 0."""

        learning_rate: float = Field(3e-3, gt=0)
        batch_size: int = Field(256, ge=1)
        epochs: int = Field(60, ge=1)
        patience: int = Field(10, ge=1)
        """Epochs without a better validation NDCG@10 of x̂ before training stops."""

        n_variants: int = Field(10, ge=1)
        """K."""
        ratio: float = Field(0.2, gt=0, le=1)
        """Share of a sequence's items that is replaced; at least one is."""
        pool: Literal["topk", "softmax", "threshold"] = "topk"
        pool_size: int | None = Field(None, ge=1)
        """Best items of x̂ to choose from; by default 20, or twice a longer sequence's length."""
        exclude_history: bool = True
        """Whether the pool is without the user's own items, which are x̂'s best."""
        fresh_pools: bool = False
        """Whether each variant has its own noise in x̂ (paper: one x̂ for all)."""
        reorder: Literal["full", "local", "none"] = "full"
        """Whether all items of a variant are shuffled (paper), those near each other, or none."""
        reorder_window: int = Field(3, ge=2)
        """Items that ``local`` shuffles among themselves."""

        order: Literal["easy_first", "hard_first"] = "easy_first"
        curriculum: Literal["cumulative", "one_pass", "none"] = "cumulative"
        stage_epochs: int = Field(1, ge=1)
        aug_weight: float | None = Field(None, ge=0)
        """Of a variant's loss against the original's; by default 1/K. The paper: 1."""
        each_step: Literal["one", "all"] = "one"

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            NoiseSchedule.named(self.beta_schedule, self.num_train_timesteps)
            steps = round(self.corruption * self.num_train_timesteps)
            if 0 < steps < self.num_inference_steps:
                raise ValueError(
                    f"corruption {self.corruption} of {self.num_train_timesteps} steps leaves "
                    f"{steps} to restore from, fewer than num_inference_steps "
                    f"{self.num_inference_steps}"
                )
            if self.decode_from == "z_0" and not self.noise_moves_encoder:
                raise ValueError(
                    "decode_from z_0 teaches the encoder by what is restored: leave "
                    "noise_moves_encoder true"
                )
            if steps and not self.noise_weight and self.decode_from == "z":
                raise ValueError(
                    "noise_weight 0 leaves what restores from noise untrained: set corruption 0 too"
                )
            if self.fresh_pools and steps == 0:
                raise ValueError("fresh_pools needs noise: set corruption above 0")
            return self

    config: Config
    n_updates: Tensor

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.schedule = NoiseSchedule.named(c.beta_schedule, c.num_train_timesteps)
        self.bag = nn.EmbeddingBag(catalog.vocab_size, c.hidden_dim, mode="sum", padding_idx=0)
        self.bag_bias = nn.Parameter(torch.zeros(c.hidden_dim))
        self.posterior = nn.Linear(c.hidden_dim, 2 * c.latent_dim)
        self.decoder = nn.Linear(c.latent_dim, c.hidden_dim)
        self.items = nn.Embedding(catalog.vocab_size, c.hidden_dim, padding_idx=0)
        bound = c.hidden_dim**-0.5
        self.item_bias = nn.Parameter(torch.empty(catalog.vocab_size).uniform_(-bound, bound))
        self.denoiser = nn.Sequential(
            nn.Linear(c.latent_dim + _STEP_DIM, c.hidden_dim),
            nn.SiLU(),
            nn.Linear(c.hidden_dim, c.hidden_dim),
            nn.SiLU(),
            nn.Linear(c.hidden_dim, c.latent_dim),
        )
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))
        nn.init.xavier_normal_(self.bag.weight)
        nn.init.xavier_normal_(self.items.weight)

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        """Learns the autoencoder and the denoiser on the sets of the users' items.

        `valid` decides when to stop, by how x̂ ranks the item that was held out.

        Raises:
            DataError: no user has an item.
        """
        run, c = run or Run(), self.config
        train = train.real().without_variants()
        users = np.flatnonzero(train.lengths > 0)
        if not len(users):
            raise DataError("Diff4Rec learns from users' items, and no user has one")
        self.begin(train, run)

        def batches(epoch: int) -> Iterator[_Sets]:
            generator = np.random.Generator(np.random.Philox(key=[run.seed, epoch]))
            shuffled = generator.permutation(users)
            for start in range(0, len(shuffled), c.batch_size):
                yield _sets(histories_of(train, shuffled[start : start + c.batch_size]).items)

        self.curve = training.train(
            self,
            self._loss,
            batches,
            n_batches=training.next_item_batches(len(users), c.batch_size),
            optimizer=torch.optim.Adam(self.parameters(), c.learning_rate, fused=True),
            epochs=c.epochs,
            run=run,
            data=train,
            validate=None
            if valid is None
            else training.validation(self, lambda histories: self.proposals(histories), valid),
            patience=c.patience,
        )
        return self

    def _loss(self, sets: "_Sets") -> Tensor:
        c = self.config
        kept = torch.rand(len(sets.items), device=sets.items.device) >= c.dropout
        mean, log_variance = self._encode(sets, kept)
        z = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        kl = kl_to_standard(mean, log_variance).mean()

        z_0 = z if c.noise_moves_encoder else z.detach()
        n_steps = c.num_train_timesteps
        if c.decode_from == "z_0":  # beyond T' an estimate is mostly the error in the noise
            n_steps = max(1, round(c.corruption * n_steps))
        t = torch.randint(n_steps, (len(z),), device=z.device)
        noise = torch.randn_like(z)
        z_t = self.schedule.add_noise(z_0, noise, t)
        predicted = self._predict(z_t, t)
        wanted = self.schedule.target(z_0, noise, t, c.prediction_type)
        noise_loss = ((predicted - wanted) ** 2).sum(1).mean()

        decoded = z
        if c.decode_from == "z_0":
            decoded = self.schedule.x_0_from(predicted, z_t, t, c.prediction_type)
        likelihood = set_likelihood(*self._decoder(decoded), sets.items, sets.offsets, c.likelihood)
        self.n_updates += 1
        kl_weight = c.kl_weight * (self.n_updates / c.kl_annealing_steps).clamp(max=1)
        return kl_weight * kl - likelihood + c.noise_weight * noise_loss

    def _encode(
        self, sets: "_Sets", kept: Tensor | None = None
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
        """Mean and log variance of q(z|x); the set, without what is not kept, has length 1."""
        weights = torch.ones(len(sets.items), device=sets.items.device)
        if kept is not None:
            weights = weights * kept
        n_kept = torch.zeros(len(sets.offsets), device=weights.device)
        n_kept.index_add_(0, sets.owners, weights)
        weights = weights / n_kept.clamp(min=1).sqrt()[sets.owners]
        bags = self.bag(sets.items, sets.offsets, per_sample_weights=weights)
        hidden = torch.tanh(bags + self.bag_bias)
        mean, log_variance = self.posterior(hidden).float().chunk(2, dim=1)
        return mean, log_variance

    def _decoder(self, z: Float[Tensor, "B H"]) -> tuple[Tensor, Tensor]:
        """States and table whose products are the logits of p(x|z), biases included."""
        hidden = torch.tanh(self.decoder(z))
        states = torch.cat([hidden, torch.ones_like(hidden[:, :1])], dim=1)
        return states, torch.cat([self.items.weight, self.item_bias[:, None]], dim=1)

    def _predict(self, z_t: Float[Tensor, "B H"], t: Int[Tensor, " B"]) -> Float[Tensor, "B H"]:
        predicted: Tensor = self.denoiser(torch.cat([z_t, sinusoidal(t, _STEP_DIM)], dim=1))
        return predicted.float()

    @torch.no_grad()
    def proposals(self, histories: Histories, seed: int = 0, draw: int = 0) -> Float[Tensor, "B V"]:
        """x̂: the logits of every item for these users, their own items not left out.

        Args:
            histories: on this method's device.
            seed: of the noise, which is drawn for each user from (seed, user).
            draw: number of the draw of noise.
        """
        c = self.config
        z, _ = self._encode(_sets(histories.items))
        steps = round(c.corruption * c.num_train_timesteps)
        if steps:
            source = KeyedNoise(seed, histories.users)
            for _ in range(draw + 1):
                noise = source.normal(c.latent_dim)
            t = torch.full((len(z),), steps - 1, device=z.device)
            denoise = denoise_with(self._predict, self.schedule, c.prediction_type)
            z = Sampler(c.num_inference_steps)(
                denoise, self.schedule.add_noise(z, noise, t), self.schedule, from_step=steps
            )
        states, table = self._decoder(z)
        return states @ table.T

    @torch.no_grad()
    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The same sequences with K variants of each beside them.

        Raises:
            DataError: items were put in front of them.
        """
        self.require_fitted()
        if dataset.synthetic.any():
            raise DataError(
                "Diff4Rec varies real sequences, and these have generated items in front: use one "
                "augmenter or the other"
            )
        c = self.config
        lengths = dataset.lengths
        items = np.tile(dataset.items, (c.n_variants, 1))
        difficulty = np.zeros((c.n_variants, len(dataset)), dtype=np.float32)
        waiting = np.argsort(-lengths, kind="stable")[: int((lengths > 0).sum())]
        while len(waiting):
            width = max(
                self.catalog.vocab_size, c.hidden_dim, c.n_variants * int(lengths[waiting[0]])
            )
            rows, waiting = np.split(waiting, [max(1, _AT_ONCE // width)])
            histories = histories_of(dataset, rows).to(self.device)
            made = self._variants(histories, seed)
            similarity = self._similarity(histories, made)
            ranked = similarity.argsort(dim=0, descending=c.order == "easy_first", stable=True)
            made = made.gather(0, ranked[:, :, None].expand_as(made))
            difficulty[:, rows] = 1 - similarity.gather(0, ranked).cpu().numpy()
            inside = (histories.items > 0).cpu().numpy()
            where = (dataset.offsets[rows][:, None] + np.arange(inside.shape[1]))[inside]
            items[:, where] = made.cpu().numpy()[:, inside]
        variants = Variants(items, difficulty, self._schedule())
        return replace(dataset, variants=variants)

    def require_epochs(self, epochs: int) -> None:
        self._schedule().require_epochs(epochs, self.config.n_variants)

    def _schedule(self) -> Schedule:
        c = self.config
        weight = 1 / c.n_variants if c.aug_weight is None else c.aug_weight
        return Schedule(c.curriculum, c.stage_epochs, weight, c.each_step)

    def _variants(self, histories: Histories, seed: int) -> Int64[Tensor, "K B L"]:
        """K variants of each history, in the order they were drawn in."""
        c = self.config
        source = KeyedNoise(seed + _OTHER_NOISE, histories.users)
        lengths, n_places = histories.lengths, histories.items.shape[1]
        inside = histories.items > 0
        n_replaced = (c.ratio * lengths.double() + 0.5).floor().long().clamp(min=1)
        made = []
        pool = chances = None
        for number in range(c.n_variants):
            if pool is None or chances is None or c.fresh_pools:
                pool, chances = self._pool(histories, seed, number if c.fresh_pools else 0)
            # the best of perturbed log-probabilities: draws without replacement (Gumbel's trick)
            gumbel = -torch.log(-torch.log(source.uniform(pool.shape[1]).clamp(min=1e-10)))
            n = min(int(n_replaced.max()), pool.shape[1])
            best, chosen = (chances + gumbel).topk(n, dim=1)
            n_here = torch.minimum(n_replaced, (best > -torch.inf).sum(1))
            places = source.uniform(n_places).masked_fill(~inside, 2.0).argsort(dim=1)[:, :n]
            used = torch.arange(n, device=pool.device) < n_here[:, None]
            new = torch.where(used, pool.gather(1, chosen), histories.items.gather(1, places))
            variant = histories.items.scatter(1, places, new)
            if c.reorder != "none":
                keys = source.uniform(n_places)
                if c.reorder == "local":
                    keys = keys + torch.arange(n_places, device=keys.device) // c.reorder_window
                shuffled = keys.masked_fill(~inside, torch.inf).argsort(dim=1, stable=True)
                variant = variant.gather(1, shuffled)
            made.append(variant)
        return torch.stack(made)

    def _pool(
        self, histories: Histories, seed: int, draw: int
    ) -> tuple[Int64[Tensor, "B P"], Float[Tensor, "B P"]]:
        """Items that may come into each user's variants, and the logarithms of their chances."""
        c = self.config
        logits = self.proposals(histories, seed, draw)
        logits[:, 0] = -torch.inf
        log_p = torch.log_softmax(logits, dim=1)
        if c.exclude_history:
            log_p.scatter_(1, histories.items, -torch.inf)
        sizes = (2 * histories.lengths).clamp(min=20)
        if c.pool_size is not None:
            sizes = torch.full_like(sizes, c.pool_size)
        log_p, pool = log_p.topk(min(int(sizes.max()), self.catalog.n_items), dim=1)
        outside = torch.arange(pool.shape[1], device=pool.device) >= sizes[:, None]
        if c.pool == "threshold":
            outside[:, 1:] |= log_p[:, 1:] < -math.log(self.catalog.n_items)
        outside |= log_p == -torch.inf
        chances = log_p if c.pool == "softmax" else torch.zeros_like(log_p)
        # by number: what is drawn does not hang on the last digit of two scores; and what is
        # outside last: nor does it hang on how wide the others' pools are
        order = pool.masked_fill(outside, self.catalog.vocab_size).argsort(dim=1, stable=True)
        return pool.gather(1, order), chances.masked_fill(outside, -torch.inf).gather(1, order)

    def _similarity(
        self, histories: Histories, made: Int64[Tensor, "K B L"]
    ) -> Float[Tensor, "K B"]:
        """Cosine of the mean item vectors of each variant and its original (eq. 11)."""
        inside = histories.items > 0
        starts = torch.cumsum(histories.lengths, 0) - histories.lengths

        def mean(items: Int64[Tensor, "B L"]) -> Float[Tensor, "B H"]:
            return F.embedding_bag(items[inside], self.items.weight, starts, mode="mean")

        original = mean(histories.items)
        return torch.stack([F.cosine_similarity(mean(variant), original) for variant in made])


class _Sets(NamedTuple):
    """The items of some users, each once, one user after another."""

    items: Int64[Tensor, " N"]
    offsets: Int64[Tensor, " B"]
    owners: Int64[Tensor, " N"]

    def to(self, device: torch.device) -> "_Sets":
        return _Sets(*(tensor.to(device) for tensor in self))


def _sets(items: Int64[Tensor, "B L"]) -> _Sets:
    """The sets of padded sequences, whose items may come more than once."""
    ordered = items.sort(dim=1).values
    first = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True) & (ordered > 0)
    n = first.sum(1)
    owners = torch.arange(len(n), device=n.device).repeat_interleave(n)
    return _Sets(ordered[first], torch.cumsum(n, 0) - n, owners)
