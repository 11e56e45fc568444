"""DiffuASR: a diffusion model generates items that could have come before a user's history.

Source: Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023. Users with
long histories are the examples: the embeddings of their first M items are x_0, and the items after
them are the condition. For every other user the model then samples M items that could have come
before the first, and they are put in front of the history as context.

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
- That condition is its first items, which are never targets behind what is generated. The paper and
  the code condition on whole training histories (``condition="published"``): the items have seen
  the targets that they stand in front of.
- The network has as many channels as it takes to tell M items apart from noise; those of the code
  are 8, which leave a share 1 - 8/M of the noise unknown (``channels``).
- The pretrained recommender may have any encoder (``encoder``); the paper's is SASRec's.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int32, Int64
from pydantic import Field, model_validator
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from diffuserec import training
from diffuserec.data import (
    Catalog,
    Histories,
    Queries,
    SequenceDataset,
    bounded_batches,
    histories_of,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.augmenter import PrependingAugmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.completion import HistoryCompletion
from diffuserec.models.config import OnlyIf, Search
from diffuserec.models.diffusion import (
    Denoise,
    DPMSolver,
    KeyedNoise,
    Sampler,
    antithetic,
    classifier_free_network,
    classifier_guidance,
    denoise_with,
    nearest_rows,
)
from diffuserec.models.items import ItemTable
from diffuserec.models.parts import by_rows
from diffuserec.models.retrieval import log_prob
from diffuserec.models.settings import (
    AttentiveSettings,
    DiffusionSettings,
    NextItemSettings,
    PrependingSettings,
)
from diffuserec.models.unet import SUNet, image_side

_VISITS = 10
"""Times that an epoch shows each long user, each at another step and with other noise."""

_FEWEST = 10
"""Long users that are needed, so that one can be held out."""

_ENOUGH = 100
"""Long users that a chosen M leaves, or a tenth of the users where that is less."""

_USUAL = 10
"""M, unless histories are too short for it."""

_CHECKS = 1024
"""(user, step, noise) triples that the validation metric is the mean of."""

_CHUNK = 512
"""Users sampled at once: the activations of a layer then stay in the cache."""

_WHOLE = OnlyIf(condition="published")
_GUIDED = OnlyIf(guidance=("classifier_free", "classifier"))
_CLASSIFIED = OnlyIf(guidance="classifier")


class DiffuASR(PrependingAugmenter):
    """Diffusion in the embedding space of M items, conditioned on the history that follows."""

    class Config(PrependingSettings, DiffusionSettings, AttentiveSettings):
        """Hyper-parameters of DiffuASR."""

        n_items: int | None = Field(None, ge=1)  # type: ignore[assignment]
        """M, the items put in front of a history; by default 10, or as many as leave 100 users (or
        a tenth of them) whose histories are long enough to learn from: `fit` chooses and says."""
        dim: int = Field(64, ge=1)
        """Width D of items: the square of a multiple of 8."""

        condition_on: Annotated[Literal["train", "train+valid"], _WHOLE] = "train"
        """``train+valid`` (code): a training history is completed by the user's validation item,
        which `fit` must be given; validation metrics of what is trained on it are too good."""
        cond_pool: Literal["mean", "sum"] = "mean"
        """How a history becomes one vector: mean of its embeddings (paper) or sum (code)."""
        cond_dropout: float = Field(0.1, ge=0, lt=1)
        """Share of training conditions replaced by the learned null vector (paper and code: 0)."""
        min_condition: Annotated[int, _WHOLE] = Field(3, ge=1)
        """Items that a long user must have after the first M: 3 (code) or 1 (paper)."""
        item_embedding: Literal["frozen", "init", "scratch"] = "frozen"
        """The pretrained table, frozen or as a start; or a random one, trained (code)."""
        centered: Annotated[bool, OnlyIf(item_embedding=("frozen", "init"))] = True
        """Whether the pretrained items' mean is taken off before noising and rounding."""

        channels: int | None = Field(None, ge=8, multiple_of=8)
        """Channels of the U-Net's first level, through which M items must pass: of the noise it can
        know a share of channels/M at most. By default M rounded up to a multiple of 8, and at least
        16; the code has 8."""
        multipliers: tuple[int, ...] = Field((1, 2, 2, 2), min_length=1)
        """Channels of each of its levels as multiples of that; each level but the last halves the
        image."""

        guidance: Literal["classifier_free", "classifier", "none"] = "classifier_free"
        guidance_scale: Annotated[float, _GUIDED, Search(0.1, 10.0, log=True)] = Field(1.0, ge=0)
        """γ of the paper; 0 samples from the conditional model as it is."""
        guidance_in_training: Annotated[bool, _GUIDED] = False
        """Whether the guided prediction also enters the training loss (paper and code)."""
        guidance_at: Annotated[Literal["x_t", "x_0"], _CLASSIFIED] = "x_t"
        """Where the classifier looks: at the noisy vectors (paper) or at their clean estimate."""
        label: Annotated[Literal["first", "last"], _CLASSIFIED] = "first"
        """The item of the history that a classifier is to expect after the generated ones: its
        first (paper) or its last (as the code augments)."""
        classifier_loss: Annotated[Literal["softmax", "bce"], _CLASSIFIED] = "softmax"
        """log p of the label: over the catalog, or log-sigmoid of its own score (code)."""

        beta_schedule: Literal[
            "linear", "quad", "cosine", "sqrt", "sigmoid", "exp", "trunc_linear"
        ] = "linear"
        prediction_type: Literal["epsilon", "sample", "v_prediction"] = "v_prediction"
        sampler: Literal["ddim", "dpm_solver"] = "ddim"
        eta: Annotated[float, OnlyIf(sampler="ddim")] = Field(0.0, ge=0, le=1)
        """Fresh noise of ddim: 0 is DDIM, 1 is DDPM."""

        batch_size: int = Field(512, ge=1)
        """Visits of long users a batch."""
        epochs: int = Field(40, ge=1)
        """An epoch shows each long user ten times, with other steps and noise."""
        patience: int = Field(5, ge=1)
        """Epochs without a smaller error on held-out long users before training stops."""

        pretrain_learning_rate: float = Field(1e-3, gt=0)
        pretrain_batch_size: int = Field(64, ge=1)
        pretrain_epochs: int = Field(12, ge=1)
        pretrain_patience: int = Field(3, ge=1)
        """Epochs without a better validation NDCG@10, where `fit` is given validation queries."""

        @model_validator(mode="after")
        def _consistent(self) -> Self:
            if min(self.multipliers) < 1:
                raise ValueError(f"multipliers must be 1 or more, got {self.multipliers}")
            image_side(self.dim, len(self.multipliers))
            if self.n_items is not None and self.n_items > self.max_len:
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

        @property
        def n_after(self) -> int:
            """Items that a long user must have after the first M."""
            return self.n_condition if self.condition == "causal" else self.min_condition

        @property
        def is_pretrained(self) -> bool:
            """Whether a recommender is trained first, for its item table or as the classifier."""
            return self.item_embedding != "scratch" or self.guidance == "classifier"

        def of_pretraining(self) -> NextItemSettings:
            """Settings of the pretrained recommender."""
            values, prefix = dict(self), "pretrain_"
            shared = {k: v for k, v in values.items() if k in AttentiveSettings.model_fields}
            own = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
            return NextItemSettings(**shared | own)

    config: Config
    version: ClassVar[int] = 2
    as_published: ClassVar[Mapping[str, Any]] = {
        "condition": "published",
        "channels": 8,
        "prediction_type": "epsilon",
        "item_embedding": "scratch",
        "condition_on": "train+valid",
        "min_condition": 1,
        "cond_dropout": 0.0,
        "guidance_in_training": True,
        "num_inference_steps": 1000,
        "eta": 1.0,
        "average_epochs": 0.0,
        "position_encoding": "from_oldest",
    }
    center: Tensor
    scale: Tensor

    def build(self, catalog: Catalog) -> None:
        c = self.config
        self.schedule = c.noise_schedule()
        self.pretrained = _Pretrained(**dict(c.of_pretraining()))
        self.pretrained.take(catalog)
        self.network = self._network(self.n_generated)
        self.null = nn.Parameter(torch.zeros(c.dim))
        frozen = c.item_embedding == "frozen"
        self.items = None if frozen else ItemTable(catalog.vocab_size, c.dim)
        self.register_buffer("center", torch.zeros(c.dim))
        self.register_buffer("scale", torch.ones(()))
        as_is = c.condition_on == "train"
        self.completion = None if as_is else HistoryCompletion(catalog.n_users)

    def chosen_settings(self) -> dict[str, Any]:
        found = super().chosen_settings()
        found.pop("condition_on", None)  # there is nothing beside what it is trained on
        return found

    @property
    def n_generated(self) -> int:
        """M, the items put in front of a history; ``config.n_items`` once it is fitted."""
        chosen = self.config.n_items
        return min(_USUAL, self.config.max_len) if chosen is None else chosen

    def _network(self, n_items: int) -> SUNet:
        """A network for M items, with channels for all of them unless settings say otherwise."""
        c = self.config
        channels = max(16, 8 * math.ceil(n_items / 8)) if c.channels is None else c.channels
        return SUNet(n_items, c.dim, channels, c.multipliers)

    @property
    def noise_floor(self) -> float:
        """Least mean squared error of predicted noise that the network can reach at the last step.

        Its first layer sees channels · D of the M · D numbers of noise; each unseen one costs 1.
        """
        return max(0.0, 1 - self.network.channels / self.n_generated)

    @property
    def vectors(self) -> Float[Tensor, "V D"]:
        """Item vectors as x_0 holds them, centered and of unit variance; row 0 means nothing."""
        if self.items is None:
            return (self.pretrained.table.embeddings().detach() - self.center) / self.scale
        return (self.items.embeddings() - self.center) / self.scale

    def learn_to_generate(
        self, train: SequenceDataset, valid: Queries | None, runtime: Runtime
    ) -> list[Epoch]:
        """Pretrains a recommender, then trains the diffusion model on users with long histories.

        `valid` decides when pretraining stops. The diffusion model stops by its error on a tenth
        of the long users, held out; they too are of the training part.

        Raises:
            DataError: too few users have long histories for `n_items`, or for any; says which would
                do.
            ConfigError: ``condition_on="train+valid"`` without `valid`.
        """
        c = self.config
        if c.n_items is None:
            c = self._choose_n_items(train, runtime)
        if self.noise_floor > 0 and runtime.progress is not False:
            print(
                f"diffuasr: {self.network.channels} channels for {self.n_generated} items: the "
                f"error of predicted noise cannot fall below {self.noise_floor:.2f}",
                file=sys.stderr,
            )
        long = self._long_users(train)
        if self.completion is not None:
            if valid is None:
                raise ConfigError(
                    "condition_on='train+valid' needs validation queries: fit(train, valid)"
                )
            self.completion.remember(train, valid)
        records = []
        if c.is_pretrained:
            records = training.fit_shared(self.pretrained, train, valid, runtime)
        if c.item_embedding != "scratch":
            table = self.pretrained.table.embeddings()[1:].detach()
            center = table.mean(0) if c.centered else torch.zeros_like(table[0])
            self.center.copy_(center)
            self.scale.copy_((table - center).std())
        if self.items is not None and c.item_embedding == "init":
            self.items.load_state_dict(self.pretrained.table.state_dict())
        return records + self._learn_to_denoise(long, runtime)

    def _learn_to_denoise(self, long: SequenceDataset, runtime: Runtime) -> list[Epoch]:
        """Trains the network on these users, but for a tenth of them, held out."""
        c = self.config
        parameters: list[nn.Parameter] = [*self.network.parameters(), self.null]
        if self.items is not None:
            parameters += self.items.parameters()
        first = long.view(long.starts, long.starts + self.n_generated)
        begin, end = long.starts + self.n_generated, long.ends
        if c.condition == "causal":  # as much as it will be shown when it generates
            end = begin + c.n_condition
        after = long.view(begin, end)
        order = np.random.Generator(np.random.Philox(key=[runtime.seed, 2**40]))
        held_out, chosen = np.split(order.permutation(len(long)), [max(1, len(long) // 10)])

        def examples_of(index: Int64[np.ndarray, " B"]) -> _Examples:
            return _Examples(histories_of(first, index), histories_of(after, index))

        def batches(epoch: int) -> Iterator[_Examples]:
            generator = np.random.Generator(np.random.Philox(key=[runtime.seed, epoch]))
            order = np.concatenate([generator.permutation(chosen) for _ in range(_VISITS)])
            for start in range(0, len(order), c.batch_size):
                yield examples_of(order[start : start + c.batch_size])

        def loss(examples: _Examples) -> Tensor:
            n, device = len(examples.after.users), self.device
            t = antithetic(n, c.num_train_timesteps, torch.default_generator).to(device)
            dropped = torch.rand(n, 1, device=device) < c.cond_dropout
            condition = torch.where(dropped, self.null, self.condition(examples.after))
            noise = torch.randn(n, self.n_generated, c.dim, device=device)
            return self._error(examples, noise, t, condition)

        # the same users, steps and noise every time
        generator = torch.Generator().manual_seed(runtime.seed)
        shown = np.resize(held_out, max(_CHECKS, len(held_out)))
        fixed_t = torch.randint(c.num_train_timesteps, (len(shown),), generator=generator)
        fixed_noise = torch.randn(len(shown), self.n_generated, c.dim, generator=generator)

        @torch.no_grad()
        def metric() -> float:
            total = 0.0
            for start in range(0, len(shown), c.batch_size):
                part = slice(start, start + c.batch_size)
                examples = examples_of(shown[part]).to(self.device)
                noise, t = fixed_noise[part].to(self.device), fixed_t[part].to(self.device)
                error = self._error(examples, noise, t, self.condition(examples.after))
                total -= float(error) * len(t)
            return total / len(shown)

        n_batches = math.ceil(_VISITS * len(chosen) / c.batch_size)
        return training.train(
            self,
            loss,
            batches,
            n_batches=n_batches,
            optimizer=training.adam(c, parameters),
            epochs=c.epochs,
            runtime=runtime,
            data=long,
            validate=metric,
            patience=c.patience,
            phase="diffusion",
            rate=c.rate(c.epochs, n_batches),
            max_norm=c.max_norm,
            average_epochs=c.average_epochs,
        )

    def _error(
        self,
        examples: "_Examples",
        noise: Float[Tensor, "B M D"],
        t: Int[Tensor, " B"],
        condition: Float[Tensor, "B D"],
    ) -> Float[Tensor, ""]:
        """Mean squared error of the prediction from first items that are noised to step t."""
        c = self.config
        x_0 = F.embedding(examples.first.items, self.vectors)
        x_t = self.schedule.add_noise(x_0, noise, t)
        embedded = self.network.embed_condition(condition)
        if c.guidance_in_training and c.guidance == "classifier_free":
            null = self.network.embed_condition(self.null[None])
            guided = classifier_free_network(self._predict, embedded, null, c.guidance_scale)
            prediction = guided(x_t, t)
        else:
            prediction = self._predict(x_t, t, embedded)
        if c.guidance_in_training and c.guidance == "classifier":
            self.pretrained.eval()
            with torch.enable_grad():
                at = x_t.detach().requires_grad_()
                log_p = self.label_log_prob(at, self.labels(examples.after))
                (gradient,) = torch.autograd.grad(log_p.sum(), at)
            _, noise_scale = self.schedule.signal_and_noise(t, x_t)
            prediction = prediction - c.guidance_scale * noise_scale * gradient
        target = self.schedule.target(x_0, noise, t, c.prediction_type)
        return F.mse_loss(prediction, target)

    def _predict(
        self, x_t: Float[Tensor, "B M D"], t: Int[Tensor, " S"], embedded: Float[Tensor, "B E"]
    ) -> Float[Tensor, "B M D"]:
        """The network's prediction at steps t, one each or one for all."""
        prediction: Tensor = by_rows(self.network, x_t, self.network.embed_step(t) + embedded)
        return prediction

    def generate(self, conditions: SequenceDataset, seed: int) -> Int32[np.ndarray, "S M"]:
        """M items, oldest first, that could have come before each of these sequences.

        Raises:
            DataError: the dataset is of another catalog.
        """
        if conditions.vocab_size != self.catalog.vocab_size:
            raise DataError(
                f"this DiffuASR knows {self.catalog.n_items} items and the dataset has "
                f"{conditions.catalog.n_items}: fit one on this data"
            )
        self.eval()
        generated = np.empty((len(conditions), self.n_generated), dtype=np.int32)
        by_length = np.argsort(conditions.lengths, kind="stable")
        batches = list(bounded_batches(conditions.lengths[by_length], _CHUNK))
        console = Console(stderr=True)
        for batch in track(
            batches, "augment", console=console, disable=not console.is_terminal, transient=True
        ):
            part = by_length[batch]
            generated[part] = self._generate(histories_of(conditions, part), seed)
        return generated

    @torch.no_grad()
    def _generate(self, histories: Histories, seed: int) -> Int[np.ndarray, "B M"]:
        """M items for each of some users."""
        c = self.config
        histories = self.complete(histories).to(self.device)
        noise = KeyedNoise(seed, histories.users)
        n_steps = c.num_inference_steps
        sampler = Sampler(n_steps, c.eta) if c.sampler == "ddim" else DPMSolver(n_steps)
        x_T = noise.normal(self.n_generated, c.dim)
        x_0 = sampler(self.denoiser(histories), x_T, self.schedule, noise.normal)
        items = nearest_rows(x_0.flatten(0, 1), self.vectors)
        return items.view(-1, self.n_generated).cpu().numpy()

    def denoiser(self, histories: Histories) -> Denoise:
        """The guided estimate of x_0 for these users, as a function of x_t and one common step."""
        c = self.config
        embedded = self.network.embed_condition(self.condition(histories))
        null = self.network.embed_condition(self.null[None])
        scale = c.guidance_scale if c.guidance == "classifier_free" else 0.0
        guided = classifier_free_network(
            lambda x_t, t, embedded: self._predict(x_t, t[:1], embedded), embedded, null, scale
        )
        denoise = denoise_with(guided, self.schedule, c.prediction_type)
        if c.guidance != "classifier":
            return denoise
        labels = self.labels(histories)
        return classifier_guidance(
            denoise,
            # cloned where it is used: a tensor of inference mode may not enter a gradient
            lambda x, t: self.label_log_prob(x, labels.clone()),
            self.schedule,
            c.guidance_scale,
            c.guidance_at,
        )

    def label_log_prob(
        self, x: Float[Tensor, "B M D"], labels: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """log p(label | x) of the pretrained recommender after M items with these vectors."""
        lengths = torch.full((len(x),), x.shape[1], device=x.device)
        states = self.pretrained.encoder(x * self.scale + self.center, lengths)[:, -1]
        weight = self.pretrained.table.weight()
        if self.config.classifier_loss == "bce":
            return F.logsigmoid((states * weight[labels]).sum(1))
        return log_prob(states, weight, labels)

    def condition(self, histories: Histories) -> Float[Tensor, "B D"]:
        """Vectors of histories, as the network is conditioned on."""
        return F.embedding_bag(
            histories.items, self.vectors, mode=self.config.cond_pool, padding_idx=0
        )

    def labels(self, histories: Histories) -> Int[Tensor, " B"]:
        """Item of each history that a classifier is to expect after the generated ones."""
        if self.config.label == "first":
            return histories.items[:, 0]
        return histories.items.gather(1, (histories.lengths - 1)[:, None])[:, 0]

    def _choose_n_items(self, train: SequenceDataset, runtime: Runtime) -> Config:
        """Settings with an M that these histories allow, with which the network is made anew."""
        usual = self.n_generated
        n_users = max(_FEWEST, min(_ENOUGH, len(train) // 10))
        fitting = max(1, min(usual, self._longest(train, n_users)))
        self.config = self.config.model_copy(update={"n_items": fitting})
        if fitting < usual:
            with torch.random.fork_rng():
                torch.manual_seed(runtime.seed)
                self.network = self._network(fitting).to(self.device)
            if runtime.progress is not False:
                print(
                    f"diffuasr: n_items {fitting} instead of {usual}, for few histories are longer",
                    file=sys.stderr,
                )
        return self.config

    def _longest(self, train: SequenceDataset, n_users: int) -> int:
        """The greatest M for which so many users have enough items; 0 or less if none is."""
        if len(train) < n_users:
            return 0
        return int(np.sort(train.lengths)[-n_users]) - self.config.n_after

    def _long_users(self, train: SequenceDataset) -> SequenceDataset:
        """Users with enough items for an example of the diffusion model."""
        needed = self.n_generated + self.config.n_after
        long = np.flatnonzero(train.lengths >= needed)
        if len(long) < _FEWEST:
            fits = self._longest(train, _FEWEST)
            raise DataError(
                f"DiffuASR learns from users with at least n_items + {self.config.n_after} = "
                f"{needed} training items, and {len(long)} have them; it needs {_FEWEST}: "
                + (
                    f"set n_items to {fits} or less (--augment-set n_items={fits}), or leave it out"
                    if fits > 0
                    else "use a log with longer histories"
                )
            )
        return train.select(long)

    def complete(self, histories: Histories) -> Histories:
        """The histories; with ``train+valid``, those of training and their validation items."""
        return histories if self.completion is None else self.completion(histories)


class _Pretrained(training.NextItemRecommender):
    """The recommender that gives item vectors and the classifier: an encoder, full softmax."""

    class Config(NextItemSettings):
        """Hyper-parameters of the pretrained recommender."""

    config: Config

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        loss = training.encoder_loss(self, self.config, train)
        return training.train_next_item(self, loss, train, valid, runtime, phase="pretrain")


class _Examples(NamedTuple):
    """Examples of the diffusion model: the first M items of users, and the items after them."""

    first: Histories
    after: Histories

    def to(self, device: torch.device) -> "_Examples":
        return _Examples(self.first.to(device), self.after.to(device))
