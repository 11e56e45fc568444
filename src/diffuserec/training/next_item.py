"""Next-item training, and the base of recommenders that learn nothing else."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diffuserec.data import (
    Batch,
    Catalog,
    Examples,
    Histories,
    Queries,
    SequenceDataset,
    n_training_examples,
    training_batches,
)
from diffuserec.data.batches import ONE_TARGET
from diffuserec.errors import DataError
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.encoders import SequenceEncoder, last_states
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import LOSSES, takes_negatives
from diffuserec.models.parts import by_rows
from diffuserec.models.recommender import Recommender, StateRecommender
from diffuserec.models.retrieval import Scorer
from diffuserec.models.settings import (
    ControlSettings,
    EncoderSettings,
    ExampleSettings,
    LossSettings,
    PlainSettings,
    SequenceSettings,
    TargetsSettings,
)
from diffuserec.training.device import device_of
from diffuserec.training.loop import Update, train
from diffuserec.training.rows import RowAdam
from diffuserec.training.validation import validation

_BY_ROW = {"cpu": 50_000, "cuda": 2_000_000}
"""Items from which on a step that draws negatives moves rows: below, moving all costs no more. The
number for GPUs follows from their memory's speed and was not measured; mps has no sparse tensors.
"""

_SLOW_STEP, _SLOW_EPOCH = 10.0, 3600.0
"""Seconds of a step and of an epoch from which on a training is warned of."""


class EncoderRecommender(StateRecommender):
    """A recommender whose state is an encoder's at the newest item of a history.

    Attributes:
        encoder: from embeddings to states.
    """

    config: SequenceSettings
    encoder: SequenceEncoder

    @property
    def head_table(self) -> ItemTable:
        """The table whose vectors score states."""
        return self.table

    def item_weight(self) -> Float[Tensor, "V E"]:
        return self.head_table.weight()

    def embed(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        """What the encoder reads of items."""
        return self.table.embed(items)

    def encode(
        self,
        items: Int[Tensor, "B L"],
        lengths: Int[Tensor, " B"],
        times: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L D"]:
        """States at every position of right-padded item numbers, of items at these times."""
        read = (lengths,) if times is None else (lengths, times)
        states: Tensor = by_rows(self.encoder, self.embed(items), *read)
        return states

    def newest(
        self,
        items: Int[Tensor, "B L"],
        lengths: Int[Tensor, " B"],
        times: Int[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B D"]:
        """States at the newest of right-padded item numbers."""
        if times is not None:
            return last_states(self.encode(items, lengths, times), lengths)
        return by_rows(self.encoder.newest, self.embed(items), lengths)

    def states(
        self, histories: Histories, seed: int = 0, n_draws: int | None = None
    ) -> Float[Tensor, "B 1 E"]:
        newest = histories.truncate(self.config.max_len)
        states = self.encode(newest.items, newest.lengths, newest.times)
        hidden = last_states(states, newest.lengths)
        return self.head_table.states(hidden)[:, None]


class NextItemRecommender(EncoderRecommender):
    """An encoder trained on the next item alone.

    A subclass chooses the encoder by its ``Config``, which combines :class:`LossSettings` and
    :class:`EncoderSettings`.
    """

    def build(self, catalog: Catalog) -> None:
        c = self.config
        assert isinstance(c, EncoderSettings)
        self.table, self.encoder = c.build_encoder(catalog.vocab_size)
        self.own_head: ItemTable | None = None
        if isinstance(c, ControlSettings) and not c.tie_head:
            self.own_head = ItemTable(catalog.vocab_size, c.dim, bias=True)
            self.own_head.reset_parameters(c.init_std)

    @property
    def head_table(self) -> ItemTable:
        return self.own_head or self.table

    def embed(self, items: Int[Tensor, "B L"]) -> Float[Tensor, "B L D"]:
        c, embedded = self.config, self.table.embed(items)
        if not (self.training and isinstance(c, ControlSettings) and c.input_noise):
            return embedded
        spread = c.input_noise * self.table.deviation()
        return embedded + spread * torch.randn_like(embedded)

    @property
    def reads_times(self) -> bool:
        return self.encoder.reads_times

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        c = self.config
        assert isinstance(c, LossSettings)
        return train_next_item(self, encoder_loss(self, c, train), train, valid, runtime)


def encoder_loss(
    method: EncoderRecommender, settings: LossSettings, data: SequenceDataset
) -> Callable[[Batch], Float[Tensor, ""]]:
    """Next-item loss of a batch, from the states of a method's encoder."""
    head = method.head_table
    if settings.examples in ONE_TARGET:
        of_items = LOSSES.find(settings.loss).make(settings, data)

        def of_newest(batch: Batch) -> Tensor:
            states = head.states(method.newest(batch.items, batch.lengths, batch.times))
            return of_items(states, head, batch.newest_targets, batch.users)

        return of_newest
    loss = next_item_loss(settings, data)

    def of_all(batch: Batch) -> Tensor:
        states = head.states(method.encode(batch.items, batch.lengths, batch.times))
        return loss(batch, states, head)

    return of_all


def next_item_loss(
    settings: LossSettings, data: SequenceDataset
) -> Callable[[Batch, Float[Tensor, "B L E"], ItemTable], Float[Tensor, ""]]:
    """Next-item loss by the settings: of a batch, its states and the table that scores them."""
    of_items = LOSSES.find(settings.loss).make(settings, data)
    n_targets = settings.n_targets if isinstance(settings, TargetsSettings) else 1

    def loss(batch: Batch, states: Tensor, table: ItemTable) -> Tensor:
        chosen, targets, users = real_positions(batch, states, n_targets)
        return of_items(chosen, table, targets, users)

    return loss


def real_positions(
    batch: Batch, states: Float[Tensor, "B L E"], n_targets: int = 1
) -> tuple[Float[Tensor, "P E"], Int[Tensor, " P"], Int[Tensor, " P"]]:
    """Each position with each of its next `n_targets` items: states, those items, user numbers.

    Positions with fewer than `n_targets` following items contribute the ones they have.
    """
    if n_targets == 1 and batch.with_target is not None:
        at = batch.with_target
        users = batch.users[at // batch.items.shape[1]]
        return states.flatten(0, 1)[at], batch.targets.flatten()[at], users
    ahead = F.pad(batch.targets, (0, n_targets - 1)).unfold(1, n_targets, 1)
    real = ahead > 0
    users = batch.users[:, None, None].expand_as(ahead)
    return states[:, :, None].expand(-1, -1, n_targets, -1)[real], ahead[real], users[real]


def train_next_item(
    method: Recommender,
    loss: Callable[[Batch], Tensor] | Sequence[Update],
    data: SequenceDataset,
    valid: Queries | None,
    runtime: Runtime,
    *,
    scorer: Callable[[Histories], Scorer] | None = None,
    examples: Examples | None = None,
    prepare: Callable[[], None] | None = None,
    watch: Callable[[], dict[str, float]] | None = None,
    phase: str = "fit",
    epochs: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> list[Epoch]:
    """:func:`train` on next-item batches, by Adam, as most recommenders do.

    Takes the settings of training, examples and steps from the method's own. If
    the data has augmented copies, the loss of a batch's copies is added to its own by the weight
    of their schedule, and training does not stop early before all of them were in use.

    Args:
        method: whose parameters are trained; its settings are :class:`SequenceSettings`.
        loss: of one batch, or several updates, as for :func:`train`.
        valid: queries that decide when to stop, by full ranking; None trains all epochs.
        scorer: what validation ranks by, if not the method's own.
        examples: what a training example is, if not as in the settings (else one per user); see
            :func:`~diffuserec.data.batches.training_examples`.
        prepare, watch, phase: as for :func:`train`.
        epochs: at most so many, if not as in the settings.
        optimizer: over the method's parameters, if not :func:`adam`, or :class:`RowAdam` where
            negatives of a large catalog are drawn.

    Raises:
        ConfigError: the epochs end before all copies are in use.
        DataError: fewer examples than the method needs, which contrasts sequences.
    """
    c = method.config
    assert isinstance(c, SequenceSettings)
    of_settings = c if isinstance(c, ExampleSettings) else ExampleSettings()
    first_items = examples is None and isinstance(c, PlainSettings) and c.first_items
    examples = examples or of_settings.examples
    n_examples, n_targets = n_training_examples(data.trained_on, c.max_len, examples, first_items)
    if n_examples < c.min_examples and c.min_examples > 1:
        raise DataError(
            f"{method.name} contrasts sequences and needs {c.min_examples} with a next item, got "
            f"{n_examples}: give it more users"
        )
    epochs = epochs or c.epochs
    if n_examples and c.full_softmaxes:
        n_positions = c.batch_size * n_targets / n_examples * c.full_softmaxes
        remedy = None if isinstance(c, LossSettings) else method.name
        n_batches = n_examples / c.batch_size
        warn_of_full_softmax(data.vocab_size, n_positions, c.dim, n_batches, runtime, remedy)

    def batches(epoch: int) -> Iterator[Batch]:
        return training_batches(
            data,
            c.batch_size,
            c.max_len,
            runtime.seed,
            epoch,
            examples,
            first_items,
            of_settings.by_length,
            method.reads_times,
        )

    if optimizer is None:
        draws = isinstance(c, LossSettings) and takes_negatives(c.loss)
        by_row = draws and data.vocab_size > _BY_ROW.get(device_of(runtime).type, math.inf)
        optimizer = (row_adam if by_row else adam)(c, method.parameters())
    updates = [Update(loss)] if callable(loss) else loss
    n_batches = math.ceil(n_examples / c.batch_size)
    return train(
        method,
        [Update(with_copies(update.loss), update.moved) for update in updates],
        batches,
        n_batches=n_batches,
        optimizer=optimizer,
        epochs=epochs,
        runtime=runtime,
        data=data,
        validate=None if valid is None else validation(method, scorer or method.scorer, valid),
        patience=c.patience,
        least_epochs=epochs_of_copies(data, epochs),
        phase=phase,
        prepare=prepare,
        watch=watch,
        rate=c.rate(epochs, n_batches),
        max_norm=c.max_norm,
        average_epochs=c.average_epochs,
    )


def adam(
    settings: SequenceSettings, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Adam with the learning rate of the settings; AdamW if they decay weights."""
    if settings.weight_decay:
        return torch.optim.AdamW(
            parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.Adam(parameters, settings.learning_rate, fused=True)


def row_adam(settings: SequenceSettings, parameters: Iterable[torch.nn.Parameter]) -> RowAdam:
    """The same as :func:`adam`; a step costs what the item vectors cost that it reads."""
    return RowAdam(parameters, settings.learning_rate, settings.weight_decay)


def warn_of_full_softmax(
    vocab_size: int,
    n_positions: float,
    dim: int,
    n_batches: float,
    runtime: Runtime,
    without_choice: str | None = None,
) -> None:
    """Warns where a step of the softmax over all items will take seconds, or an epoch an hour.

    Three products of positions, items and width are 6·P·V·D floating-point operations a step. The
    threshold, 5·10¹¹, is ten seconds of a CPU's core at 50 GFLOP/s: about a million items by 1,300
    positions by 64. A GPU is taken to be 400 times as fast.

    Args:
        n_positions: P, positions of a batch that have a target.
        n_batches: of an epoch.
        without_choice: name of a method that has no other loss.
    """
    speed = 5e10 if device_of(runtime).type == "cpu" else 2e13
    seconds = 6.0 * n_positions * vocab_size * dim / speed
    if seconds >= _SLOW_STEP or seconds * n_batches >= _SLOW_EPOCH:
        remedy = (
            "loss='sampled_softmax' (--set loss=sampled_softmax) draws a thousand of them instead"
            if without_choice is None
            else f"{without_choice} has no loss that draws negatives; sasrec has, and takes it here"
        )
        warnings.warn(
            f"the softmax over all {vocab_size - 1:,} items will take about {seconds:,.0f} s a "
            f"step and {seconds * n_batches / 60:,.0f} min an epoch: {remedy}",
            stacklevel=2,
        )


def with_copies(loss: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
    """The loss of a batch plus that of its augmented copies, by their weight."""

    def total(batch: Any) -> Tensor:
        value = loss(batch)
        if batch.copies is not None:
            value = value + batch.copies_weight * loss(batch.copies)
        return value

    return total


def epochs_of_copies(data: SequenceDataset, epochs: int) -> int:
    """Epochs before all augmented copies of a dataset are in use; 0 if it has none.

    Raises:
        ConfigError: training of so many epochs would end before that.
    """
    if data.copies is None:
        return 0
    data.copies.schedule.require_epochs(epochs, len(data.copies))
    return data.copies.schedule.n_epochs(len(data.copies))
