"""Hyper-parameters that methods share: what each has of its own stands in its ``Config``.

One class says what belongs to one thing (training, an encoder, the next-item loss, a contrast), and
the settings of a method put them together.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float, Int
from pydantic import AfterValidator, Field, field_validator, model_validator
from torch import Tensor

from diffuserec.data import SequenceDataset, n_training_examples
from diffuserec.data.batches import ONE_TARGET
from diffuserec.errors import ConfigError
from diffuserec.models.config import ByLog, Later, OnlyIf, Search, Settings, parse_settings
from diffuserec.models.diffusion import NoiseSchedule
from diffuserec.models.encoders import ENCODERS, SequenceEncoder, check_heads
from diffuserec.models.encoders.transformer import PositionEncoding
from diffuserec.models.items import INIT_STD, ItemTable
from diffuserec.models.losses import LOSSES, NegativesName, info_nce, takes_negatives

_MANY_ACTIONS = 100
"""Actions an item from which on less dropout is the default."""

MANY_ITEMS = 100_000
"""Items above which negatives are the default: a softmax over all would take seconds a step."""

_BATCHES = 300
"""Batches an epoch below which smaller ones are the default."""


def _known_loss(name: str) -> str:
    LOSSES.find(name)
    return name


def _known_encoder(name: str) -> str:
    ENCODERS.find(name)
    return name


LossName = Annotated[str, AfterValidator(_known_loss)]
EncoderName = Annotated[str, AfterValidator(_known_encoder)]


def has_layers(encoder: str) -> bool:
    """an encoder of several layers"""
    return "n_layers" in ENCODERS.find(encoder).Config.model_fields


def has_heads(encoder: str) -> bool:
    """an encoder with attention heads"""
    return "n_heads" in ENCODERS.find(encoder).Config.model_fields


def has_attention_dropout(encoder: str) -> bool:
    """an encoder that can drop attention weights"""
    return "attention_dropout" in ENCODERS.find(encoder).Config.model_fields


def has_position_encoding(encoder: str) -> bool:
    """an encoder with a choice of position encodings"""
    return "position_encoding" in ENCODERS.find(encoder).Config.model_fields


def several(n: int) -> bool:
    """more than 1"""
    return n > 1


def positive(weight: float) -> bool:
    """a number above 0"""
    return weight > 0


class TrainingSettings(Settings):
    """Hyper-parameters of training by gradient steps."""

    learning_rate: Annotated[float, Search(2e-4, 5e-3, log=True)] = Field(1e-3, gt=0)
    """Of Adam."""
    batch_size: Annotated[int, Search(choices=(32, 64, 128, 256))] = Field(64, ge=1)
    """Training examples a batch, on average."""
    epochs: int = Field(100, ge=1)
    """Passes over the training examples, at most."""
    patience: int = Field(10, ge=1)
    """Epochs without a better validation NDCG@10 before training stops."""
    item_features: Annotated[bool, Later()] = False
    """Whether an item's vector is its own and a learned one of its attributes (prepare --items)."""
    id_dropout: Annotated[float, OnlyIf(item_features=True), Later()] = Field(0.2, ge=0, lt=1)
    """Chance that an item's own vector is left out in training, so that attributes learn to say all
    of an item that has no interaction."""

    @property
    def heeds_use(self) -> bool:
        return True


class SequenceSettings(TrainingSettings):
    """Hyper-parameters of a model of sequences, whatever its encoder, and of its training."""

    min_examples: ClassVar[int] = 1
    """Training examples without which it has nothing to learn."""

    dim: Annotated[int, Search(choices=(32, 64, 128))] = Field(64, ge=1)
    """Width D of items and states."""
    max_len: Annotated[int, ByLog()] = Field(50, ge=1)
    """Newest items that the model sees."""
    dropout: Annotated[float, Search(0.1, 0.7), ByLog()] = Field(0.5, ge=0, lt=1)
    """Share of values that training sets to zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Share of every parameter, times the learning rate, that each step takes away (AdamW)."""
    warmup_steps: int = Field(0, ge=0)
    """First steps, over which the learning rate rises in a straight line."""
    rate_decay: Literal["none", "linear", "cosine"] = "none"
    """How the learning rate falls, to 0 after ``epochs``: in a straight line or as half a wave."""
    max_norm: float | None = Field(None, gt=0)
    """Length to which longer gradients are cut; None cuts none."""
    average_epochs: float = Field(3.0, ge=0)
    """What is validated and kept are running averages of the parameters over the steps of about so
    many epochs; 0 keeps the parameters themselves."""

    @property
    def full_softmaxes(self) -> int:
        """Softmaxes over all items that every target costs in training."""
        return 0

    def defaults_for(self, log: SequenceDataset, names: Collection[str]) -> dict[str, Any]:
        """Defaults by the lengths of the log's histories and its actions an item.

        - `max_len` holds nine of ten histories whole if 200 items can: from 50 to 200, by 50.
        - `dropout` is .2 where items have a hundred actions each on average, or more; else .5.
        - `examples` are windows where the newest `max_len` would leave a tenth of the actions out.
        - `batch_size` is 64, or 32, or 16: the first with 300 batches an epoch, or the last.
        - `loss` is sampled_softmax above 100,000 items, and then its `negatives` are mixed.
        """
        found: dict[str, Any] = {}
        if isinstance(self, LossSettings) and log.catalog.n_items > MANY_ITEMS:
            loss = found["loss"] = "sampled_softmax" if "loss" in names else self.loss
            if "negatives" in names and loss == "sampled_softmax":
                found["negatives"] = "mixed"
        if "max_len" in names:
            longest = float(np.quantile(log.lengths, 0.9))
            found["max_len"] = int(np.clip(50 * math.ceil(longest / 50), 50, 200))
        if "dropout" in names:
            often = log.lengths.sum() >= _MANY_ACTIONS * log.catalog.n_items
            found["dropout"] = 0.2 if often else 0.5
        if "examples" in names:
            kept = np.minimum(log.lengths, found.get("max_len", self.max_len) + 1).sum()
            found["examples"] = "windows" if kept < 0.9 * log.lengths.sum() else "per_user"
        if "batch_size" in names:
            now = self.model_copy(update=found)
            examples = now.examples if isinstance(now, ExampleSettings) else "per_user"
            n_examples, _ = n_training_examples(log, now.max_len, examples)
            enough = (size for size in (64, 32) if n_examples >= _BATCHES * size)
            found["batch_size"] = next(enough, 16)
        return found

    def rate(self, epochs: int, n_batches: int) -> Callable[[int, int], float] | None:
        """Factor of the learning rate by number of the epoch and of the batch; None if it is 1."""
        if not self.warmup_steps and self.rate_decay == "none":
            return None

        def factor(epoch: int, batch: int) -> float:
            step = 1 + batch + epoch * n_batches
            risen = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
            if self.rate_decay == "linear":
                return risen * (1 - epoch / epochs)
            if self.rate_decay == "cosine":
                return risen * (1 + math.cos(math.pi * epoch / epochs)) / 2
            return risen

        return factor


class EncoderSettings(SequenceSettings):
    """Hyper-parameters of a method that works with any encoder.

    A field is given to the encoder if it is annotated ``OnlyIf(encoder=…)``, here or in a base.
    """

    encoder: EncoderName = "transformer"
    """Name of the sequence encoder."""
    encoder_settings: Mapping[str, Any] = Field({}, validate_default=False)
    """Settings of the encoder's own, beside those that stand here."""
    init_std: float = Field(INIT_STD, gt=0)
    """Standard deviation of the normal from which item vectors and the encoder's weights are drawn;
    gru and caser keep torch's draws of theirs."""
    gives_times: ClassVar[bool] = False
    """Whether the method gives its encoder the times of items."""
    masks_targets: ClassVar[bool] = False
    """Whether the method hides its targets from the encoder, which may then look ahead."""

    def encoder_config(self) -> Settings:
        """All settings of the encoder's own: those that stand here and `encoder_settings`."""
        schema = ENCODERS.find(self.encoder).Config
        # a setting is the encoder's where it is declared to depend on it, here or in a base
        ours = {
            name
            for base in type(self).__mro__
            if issubclass(base, EncoderSettings)
            for name, field in base.model_fields.items()
            if any(isinstance(rule, OnlyIf) and rule.asks("encoder") for rule in field.metadata)
        }
        here = {name: getattr(self, name) for name in schema.model_fields if name in ours}
        doubled = here.keys() & self.encoder_settings.keys()
        if doubled:
            name = min(doubled)
            raise ConfigError(
                f"encoder_settings has {name!r}, a setting of the method: set {name} itself"
            )
        return parse_settings(
            schema, {**here, **self.encoder_settings}, f"encoder_settings of {self.encoder}"
        )

    @model_validator(mode="after")
    def _encoder_fits(self) -> Self:
        own = self.encoder_config()
        ENCODERS.find(self.encoder).check(own, self.dim)
        if getattr(own, "time_bias", False) and not self.gives_times:
            raise ValueError("time_bias has no effect: of the methods, hstu alone reads times")
        of_sequences = isinstance(self, ExampleSettings) and self.examples not in ONE_TARGET
        if of_sequences and not self.masks_targets:
            self.require_no_lookahead("set examples to 'prefixes'")
        return self

    def require_no_lookahead(self, remedy: str) -> None:
        """Raises ValueError if a state always sees later items, which are targets."""
        if ENCODERS.find(self.encoder).sees == "both":
            raise ValueError(
                f"encoder {self.encoder!r} looks ahead and would see the targets of a sequence: "
                f"{remedy}"
            )

    def make_encoder(self, causal: bool = True, extra_positions: int = 0) -> SequenceEncoder:
        """The chosen encoder, its initial weights not drawn yet; see :meth:`build_encoder`."""
        make: Callable[..., SequenceEncoder] = ENCODERS.find(self.encoder)
        if not causal and ENCODERS.find(self.encoder).sees == "before":
            raise ConfigError(
                f"encoder {self.encoder!r} reads forward only: choose one that sees both ways"
            )
        length = self.max_len + extra_positions
        encoder = make(self.dim, length, self.dropout, self.encoder_config(), causal)
        encoder.init_std = self.init_std
        return encoder

    def build_encoder(
        self,
        vocab_size: int,
        causal: bool = True,
        n_special: int = 0,
        extra_positions: int = 0,
        bias: bool = False,
    ) -> tuple[ItemTable, SequenceEncoder]:
        """An item table and the chosen encoder, their initial weights drawn.

        Args:
            causal: whether a position sees only itself and what came before.
            n_special: tokens of the table that are no items.
            extra_positions: positions beyond max_len.

        Raises:
            ConfigError: the encoder cannot look ahead and is to.
        """
        table = ItemTable(vocab_size, self.dim, bias=bias, n_special=n_special)
        encoder = self.make_encoder(causal, extra_positions)
        table.reset_parameters(self.init_std)
        encoder.reset_parameters()
        return table, encoder


class AttentiveSettings(EncoderSettings):
    """Hyper-parameters of a method that works with any encoder and has a transformer by default."""

    n_layers: Annotated[int, OnlyIf(encoder=has_layers), Search(1, 3)] = Field(2, ge=1)
    """Layers of the encoder."""
    n_heads: Annotated[int, OnlyIf(encoder=has_heads)] = Field(2, ge=1)
    """Attention heads; a divisor of dim."""
    attention_dropout: Annotated[float, OnlyIf(encoder=has_attention_dropout)] = Field(
        0.0, ge=0, lt=1
    )
    """Chance that a weight of the encoder's attention is dropped in training."""
    position_encoding: Annotated[PositionEncoding, OnlyIf(encoder=has_position_encoding)] = (
        "relative"
    )
    """How the encoder knows positions; see diffuserec.models.encoders.transformer."""

    def require_whole_attention(self, reason: str) -> None:
        """Raises ValueError if attention weights are to be dropped where they cannot be."""
        if {**self.model_dump(), **self.encoder_settings}["attention_dropout"]:
            raise ValueError(
                f"attention_dropout = {self.attention_dropout!r} has no effect: {reason}"
            )


ExampleForm = Literal["per_user", "windows", "prefixes", "newest_prefixes", "whole_prefixes"]
"""Ways to cut sequences into training examples that a method of the next item may be given."""


class ExampleSettings(Settings):
    """Settings of how sequences become training examples."""

    examples: ExampleForm = "per_user"
    """A training example: a user's newest max_len items, every one a target; as many such windows
    as it takes for every item to be a target; one for every item, its only target; one for every
    item of the newest max_len; or those, with every one of their items a target."""
    by_length: bool = True
    """Whether a batch has examples of like length, which leaves little padding, or any."""


class PlainSettings(ExampleSettings, TrainingSettings):
    """Settings of a model that learns the next item alone, of every position or prefix."""

    examples: Annotated[ExampleForm, ByLog()] = "per_user"
    batch_size: Annotated[int, Search(choices=(16, 32, 64, 128, 256)), ByLog()] = Field(64, ge=1)
    """Training examples a batch, on average."""
    first_items: Annotated[bool, OnlyIf(examples=("prefixes", "newest_prefixes"))] = False
    """Whether a user's first item is a target too, of an empty history."""


class LossSettings(ExampleSettings):
    """Hyper-parameters of a model that predicts each next item, whatever its encoder."""

    loss: Annotated[LossName, ByLog()] = "softmax"
    """Of the next item; see diffuserec.models.losses."""
    n_negatives: Annotated[int | None, OnlyIf(loss=takes_negatives)] = Field(None, ge=1)
    """For the sampled losses; by default 1 for bce, 256 for gbce, 1000 for the other two."""
    negatives: Annotated[NegativesName, OnlyIf(loss="sampled_softmax"), ByLog()] = "uniform"
    """Of sampled_softmax, shared by a batch: uniform over the items, by their popularity, the
    batch's own targets, or a quarter of these and the rest uniform; each is corrected for its
    chance."""
    gbce_t: Annotated[float, OnlyIf(loss="gbce")] = Field(0.75, ge=0, le=1)
    """Calibration of gbce; 0, and no offset, is plain bce."""
    gbce_offset: Annotated[bool, OnlyIf(loss="gbce"), Later(was=False)] = True
    """Whether gbce counts scores from where a constant is best, which no ranking sees; without, as
    published, learning begins late."""

    @property
    def full_softmaxes(self) -> int:
        return int(self.loss == "softmax")

    @property
    def scores_are_logits(self) -> bool:
        return LOSSES.find(self.loss).scores_are_logits


class ControlSettings(Settings):
    """What a plain next-item model may share with others, so that their gains can be told apart."""

    tie_head: bool = True
    """Whether scores come from the item table, or from a second one with biases."""
    input_noise: float = Field(0.0, ge=0)
    """Standard deviation of normal noise on the items' embeddings in training, in units of the
    embeddings' own."""


class TargetsSettings(LossSettings):
    """Loss settings of a model whose positions may each predict several following items."""

    n_targets: int = Field(1, ge=1)
    """Next items that each position predicts."""

    @model_validator(mode="after")
    def _has_targets(self) -> Self:
        if self.n_targets > 1 and self.examples in ONE_TARGET:
            raise ValueError(
                f"n_targets {self.n_targets} needs examples of several targets: 'per_user', "
                "'windows' or 'whole_prefixes'"
            )
        return self


class NextItemSettings(LossSettings, AttentiveSettings):
    """Hyper-parameters of a model that predicts each next item, a transformer by default."""


class HeadsSettings(NextItemSettings):
    """Hyper-parameters of a next-item model that has attention beside its encoder."""

    n_heads: int = Field(2, ge=1)
    """Attention heads of the method's own blocks and, if it has any, of the encoder; a divisor of
    dim."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        check_heads(self.dim, self.n_heads)
        return self


class ContrastiveSettings(NextItemSettings):
    """Hyper-parameters of a next-item model that also contrasts a batch's sequences."""

    min_examples: ClassVar[int] = 2

    similarity: Literal["dot", "cosine"] = "dot"
    """Of two sequences' states, whose norm is about the square root of dim."""
    temperature: Annotated[float, Search(0.03, 1.0, log=True)] = Field(1.0, gt=0)
    """Divisor of the similarities of sequences."""

    def contrast(
        self,
        anchors: Float[Tensor, "B D"],
        positives: Float[Tensor, "B D"],
        two_way: bool = True,
        labels: Int[Tensor, " B"] | None = None,
        negatives: Float[Tensor, "N D"] | None = None,
    ) -> Float[Tensor, ""]:
        """:func:`diffuserec.models.losses.info_nce` with these settings."""
        return info_nce(
            anchors,
            positives,
            two_way=two_way,
            labels=labels,
            negatives=negatives,
            similarity=self.similarity,
            temperature=self.temperature,
        )

    @model_validator(mode="after")
    def _has_negatives(self) -> Self:
        if self.batch_size < 2:
            raise ValueError(
                "batch_size 1 leaves a sequence nothing to be contrasted with: "
                "a contrast needs 2 or more"
            )
        return self


class PairSettings(TrainingSettings):
    """Hyper-parameters of a model of users and items that knows nothing of sequences."""

    dim: int = Field(64, ge=1)
    """Width D of users and items."""
    batch_size: int = Field(1024, ge=1)
    """Interactions a batch."""

    @property
    def heeds_use(self) -> bool:
        return False


class NoiseSettings(Settings):
    """Hyper-parameters of noising: a method lists the schedules it allows as ``beta_schedule``."""

    num_train_timesteps: int = Field(1000, ge=2)
    """Diffusion steps T."""
    beta_schedule: str = "linear"
    """Name of the noise schedule."""

    @model_validator(mode="after")
    def _schedule_exists(self) -> Self:
        self.noise_schedule()
        return self

    def noise_schedule(self) -> NoiseSchedule:
        """The schedule of these settings; ValueError if it does not have so many steps."""
        return NoiseSchedule.named(self.beta_schedule, self.num_train_timesteps)


class DiffusionSettings(NoiseSettings):
    """Hyper-parameters of noising and of sampling in at most as many steps."""

    num_inference_steps: int = Field(50, ge=1)
    """Steps of sampling."""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.num_inference_steps > self.num_train_timesteps:
            raise ValueError(
                f"num_inference_steps {self.num_inference_steps} is more than the "
                f"{self.num_train_timesteps} steps there are"
            )
        return self


def is_given(value: float | None) -> bool:
    """a number as use_weight"""
    return value is not None


def puts_some(value: bool) -> bool:
    """use_place = front or middle, or a number as use_short"""
    return value


class UseSettings(Settings):
    """How recommenders use the items that an augmenter puts into histories.

    None of it changes what an augmenter learns.
    """

    gives_probabilities: ClassVar[bool] = False
    """Whether the augmenter says how probable its items are."""
    writes_inside: ClassVar[bool] = False
    """Whether it can put items between those of a history."""

    use_weight: Annotated[
        float | None, OnlyIf(puts_items=puts_some), Search(choices=(None, 0.1, 0.3, 1.0))
    ] = Field(None, gt=0, le=1)
    """With a number, training reads every history as it was, too: this is what a target behind
    generated items weighs against the same one without. None: it reads histories with their
    generated items alone."""
    use_dropout: Annotated[float, OnlyIf(puts_items=puts_some), Search(0.0, 0.8)] = Field(
        0.0, ge=0, lt=1
    )
    """Chance that an epoch of training reads a user's history without generated items."""
    use_average: Annotated[
        bool, OnlyIf(use_place=("front", "middle")), Search(choices=(False, True))
    ] = False
    """Whether scores are the mean of those with and without generated items."""
    use_threshold: Annotated[float, OnlyIf(puts_items=puts_some)] = Field(0.0, ge=0, lt=1)
    """Generated items that are less probable are left out; for augmenters that say how probable
    they are."""
    use_soft: float = Field(0.0, ge=0, lt=1)
    """Share of the epochs in which another item is learned in a target's place, drawn by what the
    augmenter expects after the items before it; for augmenters that say how probable items are."""
    use_short: Annotated[int | None, OnlyIf(use_weight=is_given)] = Field(None, ge=2)
    """With a number, users with more items also count as if they had so few: their newest ones,
    behind generated items, are trained on beside them."""
    use_place: Literal["front", "middle", "nowhere"] = "front"
    """Where generated items stand in a history: in front; in the middle of the first n_condition
    items, from which they are made; nowhere, so that they serve use_soft and use_short alone."""

    @property
    def puts_items(self) -> bool:
        """Whether generated items stand in any sequence, if only in those of training."""
        return self.use_place != "nowhere" or self.use_short is not None

    @field_validator("use_threshold", "use_soft")
    @classmethod
    def _is_known(cls, value: float) -> float:
        if value and not cls.gives_probabilities:
            raise ValueError(
                "must be 0: this augmenter says nothing of how probable its items are (maskdiff "
                "does)"
            )
        return value

    @field_validator("use_place")
    @classmethod
    def _is_possible(cls, value: str) -> str:
        if value == "middle" and not cls.writes_inside:
            raise ValueError(
                "can't be 'middle': this augmenter writes in front alone (maskdiff both)"
            )
        return value

    @model_validator(mode="after")
    def _is_used(self) -> Self:
        if self.use_place == "nowhere" and not (self.use_soft or self.use_short):
            raise ValueError(
                "use_place = 'nowhere' leaves nothing to do: set use_soft or use_short"
            )
        return self


TRAINING_USES = frozenset({"use_weight", "use_dropout", "use_soft", "use_short"})
"""Settings of use that say how a recommender is trained."""


def without_use(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an augmenter that decide what it learns: those of its use are left out."""
    return {k: v for k, v in settings.items() if k not in UseSettings.model_fields}


def use_of(settings: Settings) -> dict[str, Any]:
    """Settings of the use of an augmenter's items that aren't the defaults, as JSON values."""
    fields = UseSettings.model_fields
    given = settings.model_dump(mode="json")
    return {k: v for k, v in given.items() if k in fields and v != fields[k].get_default()}


class PrependingSettings(UseSettings):
    """Hyper-parameters of an augmenter that puts items in front of histories."""

    n_items: Annotated[int, Search(1, 15)] = Field(10, ge=1)
    """M, the items put in front of a history."""
    condition: Literal["causal", "published"] = "causal"
    """What they are generated from: the first items of a history, which are never targets then; or
    all of it (paper), so that in training they have seen the targets they stand in front of."""
    n_condition: Annotated[int, OnlyIf(condition="causal")] = Field(1, ge=1)
    """k, the first items of a history that others are generated from. The first has nothing before
    it to predict it from; each further one is a target less."""
    max_history: Annotated[int | None, OnlyIf(use_place=("front", "middle"))] = Field(None, ge=1)
    """Only users with at most so many real items in training are given any, at inference too, and
    users that training does not know; None means all."""

    @property
    def before(self) -> int:
        """Number of the item that generated ones stand in front of."""
        return self.n_condition // 2 if self.use_place == "middle" else 0

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        causal = self.condition == "causal"
        if self.use_place == "middle" and (not causal or self.n_condition < 2):
            raise ValueError(
                "use_place = 'middle' needs condition = 'causal' and n_condition of 2 or more: "
                "generated items stand between those"
            )
        if causal and self.use_short is not None and self.use_short <= self.n_condition:
            raise ValueError(
                f"use_short = {self.use_short} leaves no target: n_condition is {self.n_condition}"
            )
        return self
