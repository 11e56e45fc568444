"""Diff4Rec: a latent diffusion model proposes items for augmented copies of each sequence.

Source: Wu, Wang, Chen, Li, Han, Sun & Zhu, "Diff4Rec: Sequential Recommendation with
Curriculum-scheduled Diffusion Augmentation", MM 2023. No code was published.

A variational autoencoder compresses the set of a user's items to a latent vector z, and a network
learns to predict the noise in a noised z, both at once (eq. 8, signs resolved):

    KL(q(z|x) ‖ N(0, I)) · w  -  log p(x | z)  +  noise_weight · ‖ε - ε_θ(√ᾱ_t z + √(1-ᾱ_t) ε, t)‖²

To propose items, the mean of q(z|x) is noised to a step T' < T, restored in a few steps and decoded
to a score for every item, x̂; a user's best items that are not in the history are the pool. K copies
of the sequence are made: `ratio` of the items are replaced by items of the pool, and all are
shuffled. A recommender trains on the original and its copies, those most like the original first.

Choices where the paper leaves something open or has a misprint:

- x holds the training part alone. Equations 7 and 8 mean ᾱ where they say α; the likelihood is the
  multinomial of Mult-VAE (Liang et al., WWW 2018), which it cites (``likelihood="bernoulli"``); the
  weight w of the KL rises from 0 to `kl_weight`, as there.
- "Corrupted with the forward process" to its end would leave nothing of the user: `corruption` is
  T'/T. At 0, and with ``noise_weight=0``, the model is a plain Mult-VAE.
- In training z is decoded (eq. 8); ``decode_from="z_0"`` decodes its restored estimate, noised to
  T' at most.
- All of x̂ is "generated behavior", so that a rule is needed: the `pool_size` best items
  (``pool="topk"``), the same drawn by their probability (``softmax``), or those of them that are
  likelier than an item in general, or else the best (``threshold``).
- Algorithm 1 takes the least similar copy first, the text the most similar, which is the default;
  ``order="hard_first"`` is the algorithm's. "Embed" is taken as the decoder's vectors.
- One copy is popped at each iteration "until converged": here a stage is `stage_epochs` epochs and
  keeps the copies of those before it; ``curriculum="one_pass"`` drops them. After the last stage
  all are in use either way.
- With `aug_weight` 1 and K = 10 the copies outweigh the original by ten to one, as in eq. 10. By
  default all of them weigh together what the original does, and those of the first stages less.
- A step shows one copy of each sequence, drawn from those of the stage, with the weight of all of
  them: of a loss that is a mean over targets the same in expectation, for a fifth of the price
  (``copies_per_step="all"``: the exact sum). Contrastive recommenders contrast a user's copies with
  each other there.
- `noise_weight` (lambda), not in the paper, and `learning_rate` were chosen on Amazon Beauty's
  validation part: docs/methods/diff4rec.md.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffuserec import training
from diffuserec.data import (
    PAD,
    AugmentedCopies,
    Catalog,
    CurriculumSchedule,
    Histories,
    Queries,
    SequenceDataset,
    histories_of,
)
from diffuserec.data.advice import require_sequences
from diffuserec.data.dataset import offsets_of
from diffuserec.errors import DataError
from diffuserec.models.augmenter import ParallelAugmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.diffusion import KeyedNoise, Sampler, denoise_with
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import kl_to_standard
from diffuserec.models.parts import by_rows
from diffuserec.models.retrieval import (
    ItemSets,
    Products,
    log_partition,
    mean_set_log_prob,
    top_k,
)
from diffuserec.models.settings import NoiseSettings, TrainingSettings
from diffuserec.models.step_embeddings import sinusoidal

_STEP_DIM = 32
"""Width of a step's sinusoid."""

_OTHER_NOISE = 2**40
"""Added to a seed, so that copies do not have the noise of any seed's proposals."""

_AT_ONCE = 2**24
"""Numbers of copies, or of hidden states, held at once."""


def _is_noised(corruption: float) -> bool:
    """corruption above 0"""
    return corruption > 0


class Diff4Rec(ParallelAugmenter):
    """Latent diffusion over users' sets of items; K copies of each sequence, easiest first."""

    class Config(NoiseSettings, TrainingSettings):
        """Hyper-parameters of Diff4Rec."""

        latent_dim: int = Field(64, ge=1)
        """Width of z."""
        hidden_dim: int = Field(256, ge=1)
        """Width of the one hidden layer of encoder, decoder and denoiser."""
        dropout: float = Field(0.5, ge=0, lt=1)
        """Share of a user's items that the encoder does not see in training."""
        likelihood: Literal["multinomial", "bernoulli"] = "multinomial"
        decode_from: Literal["z", "z_0"] = "z"
        """Input of the decoder in training: the sampled latent, or its estimate restored from
        noise."""
        kl_weight: Annotated[float, Search(1e-4, 1.0, log=True)] = Field(0.2, ge=0)
        """Final weight of the KL."""
        kl_annealing_steps: int = Field(500, ge=1)
        """Updates in which the weight of the KL rises from 0."""
        noise_weight: Annotated[float, Search(1e-2, 1.0, log=True)] = Field(0.1, ge=0)
        """lambda of equation 8."""
        noise_moves_encoder: bool = True
        """Whether the noise loss reaches the encoder, as in equation 8."""

        num_train_timesteps: int = Field(100, ge=2)
        beta_schedule: Literal[
            "linear", "quad", "cosine", "sqrt", "sigmoid", "exp", "trunc_linear"
        ] = "cosine"
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
        corruption: Annotated[float, Search(0.05, 1.0)] = Field(0.25, ge=0, le=1)
        """T'/T: how far a user's latent is noised before it is restored; 0 leaves it as it is."""
        num_inference_steps: Annotated[int, OnlyIf(corruption=_is_noised)] = Field(5, ge=1)
        """Steps from T' back to 0."""

        learning_rate: Annotated[float, Search(3e-4, 1e-2, log=True)] = Field(3e-3, gt=0)
        batch_size: int = Field(256, ge=1)
        epochs: int = Field(60, ge=1)
        patience: int = Field(10, ge=1)
        """Epochs without a better validation NDCG@10 of x̂ before training stops."""

        n_copies: Annotated[int, Search(2, 20)] = Field(10, ge=1)
        """K."""
        ratio: Annotated[float, Search(0.05, 0.6)] = Field(0.2, gt=0, le=1)
        """Share of a sequence's items that is replaced; at least one is."""
        pool: Literal["topk", "softmax", "threshold"] = "topk"
        pool_size: int | None = Field(None, ge=1)
        """Best items of x̂ to choose from; by default 20, or twice a longer sequence's length."""
        exclude_history: bool = True
        """Whether the pool is without the user's own items, which are x̂'s best."""
        resample_pool: Annotated[bool, OnlyIf(corruption=_is_noised)] = False
        """Whether each copy has its own noise in x̂ (paper: one x̂ for all)."""
        reorder: Literal["full", "local", "none"] = "full"
        """Whether all items of a copy are shuffled (paper), those near each other, or none."""
        reorder_window: Annotated[int, OnlyIf(reorder="local")] = Field(3, ge=2)
        """Items that are shuffled among themselves."""

        order: Literal["easy_first", "hard_first"] = "easy_first"
        curriculum: Literal["cumulative", "one_pass", "none"] = "cumulative"
        stage_epochs: Annotated[int, OnlyIf(curriculum=("cumulative", "one_pass"))] = Field(1, ge=1)
        """Epochs of a stage of the curriculum."""
        aug_weight: float | None = Field(None, ge=0)
        """Weight of a copy's loss against the original's; by default 1/K. The paper: 1."""
        copies_per_step: Literal["one", "all"] = "one"
        """Copies that a training step uses with each original: one of the stage's, drawn at random
        to represent all of them, or all."""

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if 0 < self.corruption_steps < self.num_inference_steps:
                raise ValueError(
                    f"corruption {self.corruption} of {self.num_train_timesteps} steps leaves "
                    f"{self.corruption_steps} to restore from, fewer than num_inference_steps "
                    f"{self.num_inference_steps}"
                )
            if self.decode_from == "z_0" and not self.noise_moves_encoder:
                raise ValueError(
                    "decode_from z_0 teaches the encoder by the restored latent: leave "
                    "noise_moves_encoder true"
                )
            if self.corruption_steps and not self.noise_weight and self.decode_from == "z":
                raise ValueError(
                    "noise_weight 0 leaves the denoiser untrained: set corruption 0 too"
                )
            return self

        @property
        def corruption_steps(self) -> int:
            """T': steps of noise that proposals are restored from."""
            return round(self.corruption * self.num_train_timesteps)

    config: Config
    as_published: ClassVar[Mapping[str, Any]] = {
        "kl_weight": 1.0,
        "kl_annealing_steps": 1,
        "corruption": 1.0,
        "num_inference_steps": 100,  # back through all steps
        "aug_weight": 1.0,
        "copies_per_step": "all",
    }
    n_updates: Tensor

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.schedule = c.noise_schedule()
        self.bag = ItemTable(catalog.vocab_size, c.hidden_dim)
        self.bag_bias = nn.Parameter(torch.zeros(c.hidden_dim))
        self.posterior = nn.Linear(c.hidden_dim, 2 * c.latent_dim)
        self.decoder = nn.Linear(c.latent_dim, c.hidden_dim)
        self.items = ItemTable(catalog.vocab_size, c.hidden_dim, bias=True)
        assert self.items.bias is not None
        bound = c.hidden_dim**-0.5
        nn.init.uniform_(self.items.bias, -bound, bound)
        self.denoiser = nn.Sequential(
            nn.Linear(c.latent_dim + _STEP_DIM, c.hidden_dim),
            nn.SiLU(),
            nn.Linear(c.hidden_dim, c.hidden_dim),
            nn.SiLU(),
            nn.Linear(c.hidden_dim, c.latent_dim),
        )
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.int64))
        for table in (self.bag, self.items):
            nn.init.xavier_normal_(table.vectors.weight)
            with torch.no_grad():
                table.vectors.weight[PAD] = 0

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        """Learns the autoencoder and the denoiser on the sets of the users' items.

        `valid` decides when to stop, by the rank of the held-out item in x̂.

        Raises:
            DataError: no user has an item.
        """
        c = self.config
        train = train.real().without_copies()
        users = np.flatnonzero(train.lengths > 0)
        if not len(users):
            raise DataError("Diff4Rec learns from users' items, and no user has one")
        bags = _distinct(train)

        def batches(epoch: int) -> Iterator[Histories]:
            generator = np.random.Generator(np.random.Philox(key=[runtime.seed, epoch]))
            shuffled = generator.permutation(users)
            for start in range(0, len(shuffled), c.batch_size):
                yield histories_of(bags, shuffled[start : start + c.batch_size])

        return training.train(
            self,
            self.loss,
            batches,
            n_batches=math.ceil(len(users) / c.batch_size),
            optimizer=torch.optim.Adam(self.parameters(), c.learning_rate, fused=True),
            epochs=c.epochs,
            runtime=runtime,
            data=train,
            validate=None if valid is None else training.validation(self, self.proposals, valid),
            patience=c.patience,
        )

    def loss(self, histories: Histories) -> Float[Tensor, ""]:
        """Equation 8 for the sets of these histories' items; counts an update of the annealing."""
        c = self.config
        sets = _sets(histories.items)
        kept = torch.rand(len(sets.items), device=sets.items.device) >= c.dropout
        mean, log_variance = self._posterior(sets, kept)
        z = mean + torch.randn_like(mean) * torch.exp(log_variance / 2)
        kl = kl_to_standard(mean, log_variance).mean()

        z_0 = z if c.noise_moves_encoder else z.detach()
        n_steps = c.num_train_timesteps
        if c.decode_from == "z_0":  # beyond T' an estimate is mostly the error in the noise
            n_steps = max(1, c.corruption_steps)
        t = torch.randint(n_steps, (len(z),), device=z.device)
        noise = torch.randn_like(z)
        z_t = self.schedule.add_noise(z_0, noise, t)
        predicted = self.predict(z_t, t)
        wanted = self.schedule.target(z_0, noise, t, c.prediction_type)
        noise_loss = ((predicted - wanted) ** 2).sum(1).mean()

        decoded = z
        if c.decode_from == "z_0":
            decoded = self.schedule.x_0_from(predicted, z_t, t, c.prediction_type)
        likelihood = mean_set_log_prob(
            self._states(decoded), self.items.weight(), sets.items, sets.offsets, c.likelihood
        )
        self.n_updates += 1
        kl_weight = c.kl_weight * (self.n_updates / c.kl_annealing_steps).clamp(max=1)
        return kl_weight * kl - likelihood + c.noise_weight * noise_loss

    def latents(self, histories: Histories) -> Float[Tensor, "B H"]:
        """Mean of q(z|x) for these histories; order and repetitions in them change nothing."""
        return self._posterior(_sets(histories.items))[0]

    def _posterior(
        self, sets: "_Sets", kept: Bool[Tensor, " N"] | None = None
    ) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"]]:
        """Mean and log variance of q(z|x), where x is a set as a vector of length 1.

        Args:
            sets: the users' items.
            kept: which of them the encoder sees; by default all.
        """
        weights = torch.ones(len(sets.items), device=sets.items.device)
        if kept is not None:
            weights = weights * kept
        n_kept = torch.zeros(len(sets.offsets), device=weights.device)
        n_kept.index_add_(0, sets.owners, weights)
        weights = weights / n_kept.clamp(min=1).sqrt()[sets.owners]
        bags = F.embedding_bag(
            sets.items,
            self.bag.embeddings(),
            sets.offsets,
            mode="sum",
            per_sample_weights=weights,
            padding_idx=PAD,
        )
        hidden = torch.tanh(bags + self.bag_bias)
        mean, log_variance = self.posterior(hidden).float().chunk(2, dim=1)
        return mean, log_variance

    def _states(self, z: Float[Tensor, "B H"]) -> Float[Tensor, "B E"]:
        """States whose products with the item vectors are the logits of p(x|z)."""
        return self.items.states(torch.tanh(self.decoder(z)))

    def predict(self, z_t: Float[Tensor, "B H"], t: Int[Tensor, " B"]) -> Float[Tensor, "B H"]:
        """Prediction from latents noised to step t, of the kind that `prediction_type` says."""
        predicted: Tensor = by_rows(
            self.denoiser, torch.cat([z_t, sinusoidal(t, _STEP_DIM)], dim=1)
        )
        return predicted.float()

    @torch.no_grad()
    def proposals(self, histories: Histories, seed: int = 0, draw: int = 0) -> Products:
        """x̂: the logits of every item for these users, their own items not left out.

        Args:
            histories: on this method's device.
            seed: of the noise, which is drawn for each user from (seed, user).
            draw: number of the draw of noise.
        """
        c = self.config
        z = self.latents(histories)
        if c.corruption_steps:
            source = KeyedNoise(seed, histories.users)
            for _ in range(draw + 1):
                noise = source.normal(c.latent_dim)
            t = torch.full((len(z),), c.corruption_steps - 1, device=z.device)
            denoise = denoise_with(self.predict, self.schedule, c.prediction_type)
            z_t = self.schedule.add_noise(z, noise, t)
            sampler = Sampler(c.num_inference_steps)
            z = sampler(denoise, z_t, self.schedule, from_step=c.corruption_steps)
        return Products(self._states(z), self.items.weight())

    @torch.no_grad()
    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The same sequences with K augmented copies of each.

        Raises:
            DataError: some of their items are synthetic.
        """
        self.require_fitted()
        require_sequences("augment", dataset)
        if dataset.synthetic.any():
            raise DataError(
                "Diff4Rec makes copies of real sequences, and these hold generated items: use one "
                "augmenter or the other"
            )
        c = self.config
        dataset = dataset.without_copies().compact()
        lengths = dataset.lengths
        items = np.tile(dataset.log.items, (c.n_copies, 1))
        difficulty = np.zeros((c.n_copies, len(dataset)), dtype=np.float32)
        waiting = np.argsort(-lengths, kind="stable")[: int((lengths > 0).sum())]
        while len(waiting):
            width = max(c.hidden_dim, c.n_copies * int(lengths[waiting[0]]))
            index, waiting = np.split(waiting, [max(1, _AT_ONCE // width)])
            histories = histories_of(dataset, index).to(self.device)
            copies = self._copies(histories, seed)
            similarity = self._similarity(histories, copies)
            ranked = similarity.argsort(dim=0, descending=c.order == "easy_first", stable=True)
            copies = copies.gather(0, ranked[:, :, None].expand_as(copies))
            difficulty[:, index] = 1 - similarity.gather(0, ranked).cpu().numpy()
            inside = (histories.items > 0).cpu().numpy()
            where = (dataset.starts[index][:, None] + np.arange(inside.shape[1]))[inside]
            items[:, where] = copies.cpu().numpy()[:, inside]
        return dataset.with_copies(AugmentedCopies(items, difficulty, self._schedule()))

    def require_epochs(self, epochs: int) -> None:
        self._schedule().require_epochs(epochs, self.config.n_copies)

    def _schedule(self) -> CurriculumSchedule:
        c = self.config
        weight = 1 / c.n_copies if c.aug_weight is None else c.aug_weight
        return CurriculumSchedule(c.curriculum, c.stage_epochs, weight, c.copies_per_step)

    def _copies(self, histories: Histories, seed: int) -> Int64[Tensor, "K B L"]:
        """K augmented copies of each history, in the order they were drawn in."""
        c = self.config
        source = KeyedNoise(seed + _OTHER_NOISE, histories.users)
        lengths, width = histories.lengths, histories.items.shape[1]
        inside = histories.items > 0
        # in double precision, which not every accelerator has
        share = (c.ratio * lengths.cpu().double() + 0.5).floor().clamp(min=1)
        n_replaced = share.long().to(lengths.device)
        pool, chances = self.pools(histories, seed)
        copies = []
        for number in range(c.n_copies):
            if number and c.resample_pool:
                pool, chances = self.pools(histories, seed, number)
            # the best of perturbed log-probabilities: draws without replacement (Gumbel's trick)
            gumbel = -torch.log(-torch.log(source.uniform(pool.shape[1]).clamp(min=1e-10)))
            n = min(int(n_replaced.max()), pool.shape[1])
            best, chosen = (chances + gumbel).topk(n, dim=1)
            n_here = torch.minimum(n_replaced, (best > -torch.inf).sum(1))
            position = source.uniform(width).masked_fill(~inside, 2.0).argsort(dim=1)[:, :n]
            used = torch.arange(n, device=pool.device) < n_here[:, None]
            new = torch.where(used, pool.gather(1, chosen), histories.items.gather(1, position))
            copy = histories.items.scatter(1, position, new)
            if c.reorder != "none":
                keys = source.uniform(width)
                if c.reorder == "local":
                    keys = keys + torch.arange(width, device=keys.device) // c.reorder_window
                shuffled = keys.masked_fill(~inside, torch.inf).argsort(dim=1, stable=True)
                copy = copy.gather(1, shuffled)
            copies.append(copy)
        return torch.stack(copies)

    @torch.no_grad()
    def pools(
        self, histories: Histories, seed: int = 0, draw: int = 0
    ) -> tuple[Int64[Tensor, "B P"], Float[Tensor, "B P"]]:
        """Items that may come into each user's copies, and the logarithms of their chances.

        A pool smaller than P is filled up with entries that mean nothing, of chance 0.
        """
        c = self.config
        x_hat = self.proposals(histories, seed, draw)
        hidden = None
        if c.exclude_history:
            owner, position = (histories.items > 0).nonzero(as_tuple=True)
            hidden = ItemSets(owner, histories.items[owner, position])
        sizes = (2 * histories.lengths).clamp(min=20)
        if c.pool_size is not None:
            sizes = torch.full_like(sizes, c.pool_size)
        logits, pool = top_k(x_hat, int(sizes.max()), hidden)
        log_p = logits - log_partition(x_hat.states, x_hat.vectors)[:, None]
        outside = torch.arange(pool.shape[1], device=pool.device) >= sizes[:, None]
        if c.pool == "threshold":
            outside[:, 1:] |= log_p[:, 1:] < -math.log(self.catalog.n_items)
        outside |= log_p == -torch.inf
        chances = log_p if c.pool == "softmax" else torch.zeros_like(log_p)
        # sorted by number, so that draws depend neither on the last digit of two scores nor,
        # with what is outside at the end, on the width of the others' pools
        order = pool.masked_fill(outside, self.catalog.vocab_size).argsort(dim=1, stable=True)
        return pool.gather(1, order), chances.masked_fill(outside, -torch.inf).gather(1, order)

    def _similarity(
        self, histories: Histories, copies: Int64[Tensor, "K B L"]
    ) -> Float[Tensor, "K B"]:
        """Cosine of the mean item vectors of each copy and its original (eq. 11)."""
        inside = histories.items > 0
        starts = torch.cumsum(histories.lengths, 0) - histories.lengths
        vectors = self.items.embeddings()

        def mean(items: Int64[Tensor, "B L"]) -> Float[Tensor, "B H"]:
            return F.embedding_bag(items[inside], vectors, starts, mode="mean")

        original = mean(histories.items)
        return torch.stack([F.cosine_similarity(mean(copy), original) for copy in copies])


class _Sets(NamedTuple):
    """Items of some users, each once, one user after another."""

    items: Int64[Tensor, " N"]
    offsets: Int64[Tensor, " B"]
    owners: Int64[Tensor, " N"]


def _distinct(dataset: SequenceDataset) -> SequenceDataset:
    """The same sequences with each item once, by number: as long as the catalog at most."""
    vocab_size = dataset.vocab_size
    owners = np.repeat(np.arange(len(dataset)), dataset.lengths)
    keys = np.unique(owners * vocab_size + dataset.items)
    sizes = np.bincount(keys // vocab_size, minlength=len(dataset))
    items = (keys % vocab_size).astype(np.int32)
    return SequenceDataset.from_offsets(items, offsets_of(sizes), dataset.catalog, dataset.users)


def _sets(items: Int64[Tensor, "B L"]) -> _Sets:
    """Sets of padded sequences, whose items may come more than once."""
    ordered = items.sort(dim=1).values
    first = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0), value=True) & (ordered > 0)
    n = first.sum(1)
    owners = torch.arange(len(n), device=n.device).repeat_interleave(n)
    return _Sets(ordered[first], torch.cumsum(n, 0) - n, owners)
