"""DiffuASR: a diffusion model imagines what a user took before the first item on record.

Source: Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023. Users with
long histories show how it goes on from M items: their first M items, as embeddings, are x_0 and
what follows is the condition. For every other user the model then samples M items that could have
come before, and they are put in front of the history as context.

Where the paper and its released code differ or do not work, the default is the working reading and
the others are options of :class:`DiffuASR.Config`; docs/methods/diffuasr.md has the whole list.
Departures of the defaults:

- Guidance steers sampling only. The paper and the code also put the guided noise into the training
  loss, where the network learns to undo it (``guidance_in_training=True``).
- The null condition is trained, by dropping a tenth of the conditions (``cond_dropout=0``: never).
- Item embeddings are those of the pretrained recommender, frozen (``item_embedding="scratch"`` as
  in the code: trained by the noise loss alone, which embeddings that are all equal minimize).
- Classifier guidance moves towards the label, with the factor that equation 9 asks for at each
  step. The released code has the opposite sign and a constant factor of 0.01.
- Sampling starts at the noisiest step. The released code starts at step 800 of 1000.
- The condition is the history that `augment` is given; no item held out for testing is in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from diffuserec.training import loop as training
from diffuserec.models.base import Augmenter, PrependingSettings, Run
from diffuserec.data import (
    Batch,
    Catalog,
    Histories,
    Queries,
    SequenceDataset,
    histories_of,
    trainable_rows,
    training_batches,
)
from diffuserec.models.diffusion import (
    Denoise,
    DPMSolver,
    KeyedNoise,
    NoiseSchedule,
    Sampler,
    antithetic,
    classifier_free_network,
    classifier_guidance,
    denoise_with,
    nearest_rows,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.encoders import TransformerEncoder, last_states
from diffuserec.models.unet import SUNet, image_side

_VISITS = 10
"""How often an epoch shows each long user, every time at another step and with other noise."""

_FEWEST = 10
"""Long users that are needed, so that one can be held out."""

_CHECKS = 1024
"""(user, step, noise) triples of which the validation figure is the mean."""

_CHUNK = 512
"""Users sampled at once: the activations of a layer then stay in the cache."""


class DiffuASR(Augmenter):
    """Diffusion in the embedding space of M items, conditioned on the history that follows."""

    class Config(PrependingSettings):
        """Hyper-parameters of DiffuASR."""

        dim: int = Field(64, ge=1)
        """Width D of items: the square of a multiple of 8."""

        condition_on: Literal["train", "train+valid"] = "train"
        """``train+valid`` (code): a training history is completed by the user's validation item,
        which `fit` must be given; validation figures of what is trained on it are too good."""
        cond_pool: Literal["mean", "sum"] = "mean"
        """How a history becomes one vector: mean of its embeddings (paper) or sum (code)."""
        cond_dropout: float = Field(0.1, ge=0, lt=1)
        """Share of training conditions replaced by the learned null vector (paper and code: 0)."""
        min_condition: int = Field(3, ge=1)
        """Items that a long user must have after the first M: 3 (code) or 1 (paper)."""
        item_embedding: Literal["frozen", "init", "scratch"] = "frozen"
        """The pretrained table, frozen or as a start; or a random one, trained (code)."""
        centered: bool = True
        """Whether the pretrained items' mean is taken off before noising and rounding."""

        guidance: Literal["classifier_free", "classifier", "none"] = "classifier_free"
        guidance_scale: float = Field(1.0, ge=0)
        """γ of the paper; 0 samples from the conditional model as it is."""
        guidance_in_training: bool = False
        """Whether the guided prediction also enters the training loss (paper and code)."""
        guidance_at: Literal["x_t", "x_0"] = "x_t"
        """Where the classifier looks: at the noisy vectors (paper) or at their clean estimate."""
        label: Literal["first", "last"] = "first"
        """The item of the history that a classifier is to expect after the generated ones: its
        first (paper) or its last (what the code does when it augments)."""
        classifier_loss: Literal["softmax", "bce"] = "softmax"
        """log p of the label: over the catalog, or log-sigmoid of its own score (code)."""

        num_train_timesteps: int = Field(1000, ge=2)
        beta_schedule: Literal[
            "linear", "quad", "cosine", "sqrt", "sigmoid", "exp", "trunc_linear"
        ] = "linear"
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
        sampler: Literal["ddim", "dpm_solver"] = "ddim"
        num_inference_steps: int = Field(50, ge=1)
        eta: float = Field(0.0, ge=0, le=1)
        """Fresh noise of ddim: 0 is DDIM, 1 is DDPM."""

        learning_rate: float = Field(1e-3, gt=0)
        batch_size: int = Field(512, ge=1)
        epochs: int = Field(40, ge=1)
        """An epoch shows each long user ten times, with other steps and noise."""
        patience: int = Field(5, ge=1)
        """Epochs without a smaller error on held-out long users before training stops."""

        pretrain_learning_rate: float = Field(1e-3, gt=0)
        pretrain_batch_size: int = Field(64, ge=1)
        pretrain_epochs: int = Field(12, ge=1)
        pretrain_patience: int = Field(3, ge=1)
        """Epochs without a better validation NDCG@10, where `fit` is given validation queries."""
        max_len: int = Field(50, ge=1)
        n_layers: int = Field(2, ge=1)
        n_heads: int = Field(2, ge=1)
        dropout: float = Field(0.5, ge=0, lt=1)
        """Of the pretrained transformer."""

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            image_side(self.dim)
            NoiseSchedule.named(self.beta_schedule, self.num_train_timesteps)
            if self.num_inference_steps > self.num_train_timesteps:
                raise ValueError(
                    f"num_inference_steps {self.num_inference_steps} is more than "
                    f"num_train_timesteps {self.num_train_timesteps}"
                )
            if self.dim % self.n_heads:
                raise ValueError(f"dim {self.dim} is not divisible by n_heads {self.n_heads}")
            if self.n_items > self.max_len:
                raise ValueError(f"n_items {self.n_items} is more than max_len {self.max_len}")
            untrained = self.cond_dropout == 0 and not self.guidance_in_training
            if self.guidance == "classifier_free" and self.guidance_scale > 0 and untrained:
                raise ValueError(
                    "classifier_free guidance needs a trained null condition: set cond_dropout "
                    "above 0, or guidance_in_training=True as the paper"
                )
            trained = self.guidance_in_training and self.guidance == "classifier"
            if trained and self.prediction_type != "epsilon":
                raise ValueError(
                    "guidance_in_training with a classifier is defined on predicted noise: set "
                    "prediction_type='epsilon' as the paper"
                )
            return self

    config: Config
    center: Tensor
    scale: Tensor
    valid_items: Tensor
    train_keys: Tensor

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.schedule = NoiseSchedule.named(c.beta_schedule, c.num_train_timesteps)
        self.encoder = TransformerEncoder(
            catalog.vocab_size, c.dim, c.n_layers, c.n_heads, c.max_len, c.dropout
        )
        self.network = SUNet(c.n_items, c.dim)
        self.null = nn.Parameter(torch.zeros(c.dim))
        self.items = (
            None
            if c.item_embedding == "frozen"
            else nn.Embedding(catalog.vocab_size, c.dim, padding_idx=0)
        )
        self.register_buffer("center", torch.zeros(c.dim))
        self.register_buffer("scale", torch.ones(()))
        if c.condition_on == "train+valid":
            self.register_buffer("valid_items", torch.zeros(catalog.n_users, dtype=torch.int64))
            self.register_buffer("train_keys", torch.zeros(catalog.n_users, dtype=torch.int64))

    @property
    def table(self) -> Float[Tensor, "V D"]:
        """The item embeddings; row 0 is padding."""
        own: Tensor | None = None if self.items is None else self.items.weight
        return self.encoder.table.detach() if own is None else own

    @property
    def vectors(self) -> Float[Tensor, "V D"]:
        """The embeddings as x_0 holds them, centered and of unit variance; row 0 means nothing."""
        return (self.table - self.center) / self.scale

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        """Pretrains a transformer, then trains the diffusion model on users with long histories.

        `valid` decides when pretraining stops. The diffusion model stops by its error on a tenth
        of the long users, held out; they too are of the training part.

        Raises:
            DataError: too few users have long histories; says what `n_items` would do.
            ConfigError: ``condition_on="train+valid"`` without `valid`.
        """
        run = run or Run()
        train = train.real()
        chosen, held_out = self._long_users(train, run.seed)
        self.begin(train, run)
        if self.config.condition_on == "train+valid":
            self._remember(train, valid)
        self.curve = self._pretrain(train, valid, run) if self._pretrained else []
        if self.config.item_embedding != "scratch":
            table = self.encoder.table[1:].detach()
            if self.config.centered:
                self.center.copy_(table.mean(0))
            self.scale.copy_((table - self.center).std())
        if self.items is not None and self.config.item_embedding == "init":
            self.items.load_state_dict(self.encoder.items.state_dict())
        self.curve += self._learn_to_denoise(train, chosen, held_out, run)
        return self

    @property
    def _pretrained(self) -> bool:
        return self.config.item_embedding != "scratch" or self.config.guidance == "classifier"

    def _pretrain(
        self, train: SequenceDataset, valid: Queries | None, run: Run
    ) -> list[training.Epoch]:
        c = self.config

        def loss(batch: Batch) -> Tensor:
            states, targets, _ = training.real_positions(
                batch, self.encoder(batch.items, batch.lengths)
            )
            return softmax_cross_entropy(states, self.encoder.table, targets)

        return training.train(
            self,
            loss,
            lambda epoch: training_batches(
                train, c.pretrain_batch_size, c.max_len, run.seed, epoch
            ),
            n_batches=training.next_item_batches(len(trainable_rows(train)), c.pretrain_batch_size),
            optimizer=torch.optim.Adam(
                self.encoder.parameters(), lr=c.pretrain_learning_rate, fused=True
            ),
            epochs=c.pretrain_epochs,
            run=run,
            data=train,
            validate=None if valid is None else training.validation(self, self._next_items, valid),
            patience=c.pretrain_patience,
            phase="pretrain",
        )

    def _next_items(self, histories: Histories) -> Float[Tensor, "B V"]:
        newest = histories.newest(self.config.max_len)
        states = self.encoder(newest.items, newest.lengths)
        return last_states(states, newest.lengths) @ self.encoder.table.T

    def _learn_to_denoise(
        self,
        train: SequenceDataset,
        chosen: Int64[np.ndarray, " R"],
        held_out: Int64[np.ndarray, " H"],
        run: Run,
    ) -> list[training.Epoch]:
        c = self.config
        parameters: list[nn.Parameter] = [*self.network.parameters(), self.null]
        if self.items is not None:
            parameters += self.items.parameters()

        def batches(epoch: int) -> Iterator["_Pairs"]:
            generator = np.random.Generator(np.random.Philox(key=[run.seed, epoch]))
            order = np.concatenate([generator.permutation(chosen) for _ in range(_VISITS)])
            for first in range(0, len(order), c.batch_size):
                yield _pairs(train, order[first : first + c.batch_size], c.n_items)

        def loss(pairs: "_Pairs") -> Tensor:
            t = antithetic(len(pairs.items), c.num_train_timesteps, torch.default_generator)
            x_0 = F.embedding(pairs.items, self.vectors)
            condition = self._condition(pairs.after)
            dropped = torch.rand(len(condition), 1, device=condition.device) < c.cond_dropout
            condition = torch.where(dropped, self.null, condition)
            noise = torch.randn_like(x_0)
            return self._error(x_0, noise, t.to(x_0.device), condition, pairs.after)

        # the same users, steps and noise every time
        generator = torch.Generator().manual_seed(run.seed)
        shown = np.resize(held_out, max(_CHECKS, len(held_out)))
        fixed_t = torch.randint(c.num_train_timesteps, (len(shown),), generator=generator)
        fixed_noise = torch.randn(len(shown), c.n_items, c.dim, generator=generator)

        @torch.no_grad()
        def figure() -> float:
            total = 0.0
            for first in range(0, len(shown), c.batch_size):
                part = slice(first, first + c.batch_size)
                pairs = _pairs(train, shown[part], c.n_items).to(self.device)
                x_0 = F.embedding(pairs.items, self.vectors)
                noise, t = fixed_noise[part].to(self.device), fixed_t[part].to(self.device)
                error = self._error(x_0, noise, t, self._condition(pairs.after), pairs.after)
                total -= float(error) * len(x_0)
            return total / len(shown)

        return training.train(
            self,
            loss,
            batches,
            n_batches=training.next_item_batches(_VISITS * len(chosen), c.batch_size),
            optimizer=torch.optim.Adam(parameters, lr=c.learning_rate, fused=True),
            epochs=c.epochs,
            run=run,
            data=train,
            validate=figure,
            patience=c.patience,
            phase="diffusion",
        )

    def _error(
        self,
        x_0: Float[Tensor, "B M D"],
        noise: Float[Tensor, "B M D"],
        t: Int[Tensor, " B"],
        condition: Float[Tensor, "B D"],
        histories: Histories,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the prediction from x_0 noised to step t."""
        c = self.config
        x_t = self.schedule.add_noise(x_0, noise, t)

        def network(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
            embedded = self.network.embed_step(t) + self.network.embed_condition(condition)
            prediction: Tensor = self.network(x_t, embedded)
            return prediction

        if c.guidance_in_training and c.guidance == "classifier_free":
            guided = classifier_free_network(network, condition, self.null, c.guidance_scale)
            prediction = guided(x_t, t)
        else:
            prediction = network(x_t, t, condition)
        if c.guidance_in_training and c.guidance == "classifier":
            self.encoder.eval()
            with torch.enable_grad():
                at = x_t.detach().requires_grad_()
                log_p = self._log_prob(at, self._labels(histories))
                (gradient,) = torch.autograd.grad(log_p.sum(), at)
            _, noise_scale = self.schedule.signal_and_noise(t, x_t)
            prediction = prediction - c.guidance_scale * noise_scale * gradient
        target = self.schedule.target(x_0, noise, t, c.prediction_type)
        return F.mse_loss(prediction, target)

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The same users with M generated items, oldest first, in front of their histories.

        Generated from the user's real items and noise that is drawn for (seed, user). Synthetic
        items that are there already stay and are not looked at. Empty histories stay empty.

        Args:
            dataset: histories as they are allowed to be seen.
            seed: of the noise.

        Raises:
            ConfigError: not fitted.
            DataError: the dataset is of another catalog.
        """
        self.require_fitted()
        c = self.config
        if dataset.vocab_size != self.catalog.vocab_size:
            raise DataError(
                f"this DiffuASR knows {self.catalog.n_items} items and the dataset has "
                f"{dataset.catalog.n_items}: fit one on this data"
            )
        self.eval()
        real = dataset.real()
        rows = c.rows(real)
        generated = np.empty((len(rows), c.n_items), dtype=np.int32)
        by_length = np.argsort(real.lengths[rows], kind="stable")
        starts = range(0, len(rows), _CHUNK)
        console = Console(stderr=True)
        for first in track(
            starts, "augment", console=console, disable=not console.is_terminal, transient=True
        ):
            part = by_length[first : first + _CHUNK]
            generated[part] = self._generate(self._conditions(real, rows[part]), seed)
        return dataset.prepend(generated, rows)

    @torch.no_grad()
    def _generate(self, histories: Histories, seed: int) -> Int[np.ndarray, "B M"]:
        """M items for each of some users."""
        c = self.config
        histories = histories.to(self.device)
        noise = KeyedNoise(seed, histories.users)
        sampler = (
            Sampler(c.num_inference_steps, c.eta)
            if c.sampler == "ddim"
            else DPMSolver(c.num_inference_steps)
        )
        x_T = noise.normal(c.n_items, c.dim)
        x_0 = sampler(self.denoiser(histories), x_T, self.schedule, noise.normal)
        items = nearest_rows(x_0.flatten(0, 1), self.vectors)
        return items.view(-1, c.n_items).cpu().numpy()

    def denoiser(self, histories: Histories) -> Denoise:
        """The guided estimate of x_0 for these users, as a function of x_t and one common step."""
        c = self.config

        def network(x_t: Tensor, t: Tensor, embedded: Tensor) -> Tensor:
            prediction: Tensor = self.network(x_t, self.network.embed_step(t[:1]) + embedded)
            return prediction

        embedded = self.network.embed_condition(self._condition(histories))
        null = self.network.embed_condition(self.null[None])
        scale = c.guidance_scale if c.guidance == "classifier_free" else 0.0
        guided = classifier_free_network(network, embedded, null, scale)
        denoise = denoise_with(guided, self.schedule, c.prediction_type)
        if c.guidance != "classifier":
            return denoise
        labels = self._labels(histories)
        return classifier_guidance(
            denoise,
            # cloned where it is used: a tensor of inference mode may not enter a gradient
            lambda x, t: self._log_prob(x, labels.clone()),
            self.schedule,
            c.guidance_scale,
            c.guidance_at,
        )

    def _log_prob(
        self, x: Float[Tensor, "B M D"], labels: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """log p(label | x): what the transformer expects after M items with these embeddings."""
        lengths = torch.full((len(x),), x.shape[1], device=x.device)
        state = self.encoder.encode(x * self.scale + self.center, lengths)[:, -1]
        if self.config.classifier_loss == "bce":
            return F.logsigmoid((state * self.encoder.table[labels]).sum(1))
        logits = state @ self.encoder.table[1:].T
        return -F.cross_entropy(logits, labels - 1, reduction="none")

    def _condition(self, histories: Histories) -> Float[Tensor, "B D"]:
        return F.embedding_bag(
            histories.items, self.vectors, mode=self.config.cond_pool, padding_idx=0
        )

    def _labels(self, histories: Histories) -> Int[Tensor, " B"]:
        if self.config.label == "first":
            return histories.items[:, 0]
        return histories.items.gather(1, (histories.lengths - 1)[:, None])[:, 0]

    def _long_users(
        self, train: SequenceDataset, seed: int
    ) -> tuple[Int64[np.ndarray, " R"], Int64[np.ndarray, " H"]]:
        """Rows to train the diffusion model on, and those held out."""
        c = self.config
        rows = np.flatnonzero(train.lengths >= c.n_items + c.min_condition)
        if len(rows) < _FEWEST:
            longest = np.sort(train.lengths)[::-1]
            fits = int(longest[_FEWEST - 1]) - c.min_condition if len(longest) >= _FEWEST else 0
            raise DataError(
                f"DiffuASR learns from users with at least n_items + {c.min_condition} = "
                f"{c.n_items + c.min_condition} training items, and {len(rows)} have them; it "
                f"needs {_FEWEST}: "
                + (f"use n_items={fits} or less" if fits > 0 else "use a log with longer histories")
            )
        order = np.random.Generator(np.random.Philox(key=[seed, 2**40])).permutation(rows)
        n_held_out = max(1, len(rows) // 10)
        return order[n_held_out:], order[:n_held_out]

    def _remember(self, train: SequenceDataset, valid: Queries | None) -> None:
        if valid is None:
            raise ConfigError(
                "condition_on='train+valid' needs validation queries: fit(train, valid)"
            )
        self.train_keys[torch.from_numpy(train.users)] = torch.from_numpy(_keys(train))
        self.valid_items[torch.from_numpy(valid.histories.users)] = torch.from_numpy(valid.targets)

    def _conditions(self, real: SequenceDataset, rows: Int64[np.ndarray, " B"]) -> Histories:
        """The histories to condition on; with ``train+valid``, a training history completed."""
        histories = histories_of(real, rows)
        if self.config.condition_on == "train":
            return histories
        known = np.flatnonzero(histories.users.numpy() < len(self.valid_items))
        users = histories.users[known]
        same = self.train_keys.cpu()[users] == torch.from_numpy(_keys(real.select(rows[known])))
        extra = torch.zeros_like(histories.lengths)
        extra[known] = self.valid_items.cpu()[users] * same
        items = F.pad(histories.items, (0, 1))
        items.scatter_(1, histories.lengths[:, None], extra[:, None])
        return Histories(histories.users, items, histories.lengths + (extra > 0))


@dataclass(frozen=True, eq=False)
class _Pairs:
    """What the diffusion model learns from: the first M items of users, and what follows them.

    Attributes:
        items: shape (B, M).
        after: the items after those.
    """

    items: Int[Tensor, "B M"]
    after: Histories

    def to(self, device: torch.device) -> "_Pairs":
        return _Pairs(self.items.to(device), self.after.to(device))


def _pairs(train: SequenceDataset, rows: Int64[np.ndarray, " B"], n_items: int) -> _Pairs:
    starts, ends = train.offsets[rows], train.offsets[rows + 1]
    first = train.items[starts[:, None] + np.arange(n_items)].astype(np.int64)
    rest = train.slice(starts + n_items, ends, rows)
    return _Pairs(torch.from_numpy(first), histories_of(rest, np.arange(len(rows))))


def _keys(dataset: SequenceDataset) -> Int64[np.ndarray, " U"]:
    """A number for each sequence that another sequence has with a chance of about 2^-64."""
    lengths = dataset.lengths
    places = np.arange(len(dataset.items)) - np.repeat(dataset.offsets[:-1], lengths)
    with np.errstate(over="ignore"):
        powers = np.cumprod(
            np.full(int(lengths.max(initial=0)), 0x9E3779B97F4A7C15, dtype=np.uint64)
        )
        sums = np.cumsum(powers[places] * dataset.items.astype(np.uint64), dtype=np.uint64)
        sums = np.concatenate([np.zeros(1, dtype=np.uint64), sums])
        keys: np.ndarray = (sums[dataset.offsets[1:]] - sums[dataset.offsets[:-1]]).view(np.int64)
    return keys
