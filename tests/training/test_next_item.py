"""Next-item training: positions, copies and their curriculum, batches, and what is refused."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from diffuserec.data import (
    AugmentedCopies,
    Batch,
    Catalog,
    CurriculumSchedule,
    SequenceDataset,
    histories_of,
    leave_one_out,
    training_batches,
    training_examples,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Runtime
from diffuserec.models.items import ItemTable
from diffuserec.models.settings import (
    EncoderSettings,
    NextItemSettings,
    TargetsSettings,
)
from diffuserec.recommenders.diffrec import DiffRec
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.recommenders.simdiffrec import SimDiffRec
from diffuserec.training import (
    EncoderRecommender,
    Update,
    encoder_loss,
    next_item_loss,
    real_positions,
    train_next_item,
)
from diffuserec.training.next_item import warn_of_full_softmax

from .suite import SETTINGS, counted_steps, fit, state

# --- positions ----------------------------------------------------------------------------------


def a_batch() -> Batch:
    """Users 7 and 4; the second target of user 4 is none (it would be synthetic)."""
    return Batch(
        users=torch.tensor([7, 4]),
        items=torch.tensor([[1, 2, 3], [5, 6, 0]]),
        lengths=torch.tensor([3, 2]),
        targets=torch.tensor([[2, 3, 4], [6, 0, 0]]),
        last_target_index=torch.tensor([3, 6]),
    )


def test_positions_that_have_a_target() -> None:
    states = torch.arange(12.0).view(2, 3, 2)
    chosen, targets, users = real_positions(a_batch(), states)
    assert targets.tolist() == [2, 3, 4, 6]
    assert users.tolist() == [7, 7, 7, 4]
    assert torch.equal(
        chosen, torch.stack([states[0, 0], states[0, 1], states[0, 2], states[1, 0]])
    )


def test_a_batch_on_a_device_knows_its_positions_until_it_is_changed() -> None:
    batch, states = a_batch().to(torch.device("cpu")), torch.arange(12.0).view(2, 3, 2)
    assert batch.with_target.tolist() == [0, 1, 2, 3]
    for found, expected in zip(
        real_positions(batch, states), real_positions(a_batch(), states), strict=True
    ):
        assert torch.equal(found, expected)
    changed = replace(batch, targets=torch.tensor([[0, 3, 0], [0, 7, 0]]))
    chosen, targets, users = real_positions(changed, states)
    assert (targets.tolist(), users.tolist()) == ([3, 7], [7, 4])
    assert torch.equal(chosen, torch.stack([states[0, 1], states[1, 1]]))


def test_positions_with_each_of_their_next_items() -> None:
    states = torch.arange(6.0).view(2, 3, 1)
    chosen, targets, users = real_positions(a_batch(), states, n_targets=2)
    assert targets.tolist() == [2, 3, 3, 4, 4, 6]
    assert chosen[:, 0].tolist() == [0, 0, 1, 1, 2, 3]
    assert users.tolist() == [7, 7, 7, 7, 7, 4]
    _, targets, _ = real_positions(a_batch(), states, n_targets=5)
    assert targets.tolist() == [2, 3, 4, 3, 4, 4, 6]


def test_the_loss_is_that_of_the_settings_at_these_positions(random_log) -> None:
    class Several(TargetsSettings, EncoderSettings):
        """For each position its next two."""

    states, table = torch.randn(2, 3, 5), ItemTable(26, 5)
    for settings, n_targets in ((NextItemSettings(), 1), (Several(n_targets=2), 2)):
        chosen, targets, _ = real_positions(a_batch(), states, n_targets)
        expected = torch.nn.functional.cross_entropy(chosen @ table.weight()[1:].T, targets - 1)
        loss = next_item_loss(settings, random_log)
        torch.testing.assert_close(loss(a_batch(), states, table), expected)


class Biased(EncoderRecommender):
    """An encoder with a bias for every item."""

    class Config(NextItemSettings):
        """Settings."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        self.table, self.encoder = self.config.build_encoder(catalog.vocab_size, bias=True)

    def learn(self, train: Any, valid: Any, runtime: Runtime) -> list[Any]:
        loss = encoder_loss(self, self.config, train)
        return train_next_item(self, loss, train, valid, runtime, scorer=self.scorer)


def test_states_of_an_encoder_meet_the_bias_of_their_table(random_log) -> None:
    split = leave_one_out(random_log)
    model = Biased(**SETTINGS | {"loss": "softmax", "dropout": 0.0}).fit(split.train, split.valid)
    assert model.table.bias.abs().max() > 0.01
    histories = histories_of(random_log, np.array([1, 2]))
    hidden = model.encode(histories.items, histories.lengths)
    newest = torch.stack([hidden[row, length - 1] for row, length in enumerate(histories.lengths)])
    expected = newest @ model.table.embeddings().T + model.table.bias
    torch.testing.assert_close(model.score(histories)[:, 1:], expected[:, 1:])


def test_only_the_newest_items_are_seen(random_log) -> None:
    model = SASRec(**SETTINGS | {"epochs": 1}, max_len=4).fit(random_log)
    long = SequenceDataset.from_lists([[9, 8, 7, 1, 2, 3, 4], [1, 2, 3, 4]], random_log.catalog)
    first, second = model.score(histories_of(long, np.array([0, 1])))
    assert torch.equal(first, second)


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", ["per_user", "windows", "prefixes", "last"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_as_many_batches_as_are_announced(random_log, examples, batch_size) -> None:
    n_examples = len(training_examples(random_log, 5, examples)[0])
    made = list(training_batches(random_log, batch_size, 5, 0, 0, examples))
    assert sum(len(batch.users) for batch in made) == n_examples
    announced = -(-n_examples // batch_size)
    assert abs(len(made) - announced) <= max(2, 0.05 * announced)


@pytest.mark.parametrize("examples", ["per_user", "windows", "prefixes"])
def test_an_epoch_is_one_step_for_each_batch_of_these_examples(random_log, examples) -> None:
    settings = SETTINGS | {"epochs": 1, "max_len": 5, "examples": examples}
    with counted_steps() as n_steps:
        SASRec(**settings).fit(random_log)
    assert n_steps() == len(list(training_batches(random_log, 16, 5, 0, 0, examples)))


def test_epochs_and_optimizer_may_be_others_than_in_the_settings(random_log) -> None:
    model = SASRec(**SETTINGS | {"loss": "softmax", "dropout": 0.0})
    model.take(random_log.catalog)
    frozen = state(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    records = train_next_item(
        model,
        [Update(encoder_loss(model, model.config, random_log))],
        random_log,
        None,
        Runtime(),
        scorer=model.scorer,
        epochs=2,
        optimizer=optimizer,
        phase="still",
    )
    assert [record.phase for record in records] == ["still", "still"]
    assert records[0].loss == pytest.approx(records[1].loss, rel=1e-3)
    for name, value in state(model).items():
        assert torch.equal(value, frozen[name]), name


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rate_decay": "linear"}, [1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]),
        ({"rate_decay": "cosine"}, [1, 1, 0.853553, 0.853553, 0.5, 0.5, 0.146447, 0.146447]),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (
            {"warmup_steps": 4, "rate_decay": "linear"},
            [0.25, 0.5, 0.5625, 0.75, 0.5, 0.5, 0.25, 0.25],
        ),
    ],
)
def test_the_learning_rate_rises_and_falls(settings: dict[str, Any], expected: list[float]) -> None:
    rate = SASRec(epochs=4, **settings).config.rate(4, 2)
    assert rate is not None
    found = [rate(epoch, batch) for epoch in range(4) for batch in range(2)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_constant_rate_is_none() -> None:
    assert SASRec().config.rate(4, 2) is None


def test_weights_decay_apart_from_the_gradient(random_log) -> None:
    # AdamW by hand (Loshchilov & Hutter, ICLR 2019): one step moves a weight by the rate, up to a
    # hair, and takes away rate * decay of it
    before = state(fit(random_log, Runtime(seed=3), epochs=1, batch_size=10**6, learning_rate=1e-9))
    settings = {"epochs": 1, "batch_size": 10**6, "learning_rate": 0.01, "dropout": 0.0}
    plain = state(fit(random_log, Runtime(seed=3), **settings))
    decayed = state(fit(random_log, Runtime(seed=3), weight_decay=0.5, **settings))
    for name in ("table.vectors.weight", "encoder.distances.weight"):
        expected = plain[name] - 0.01 * 0.5 * before[name]
        torch.testing.assert_close(decayed[name], expected, rtol=1e-4, atol=1e-6)


# --- contrasts ----------------------------------------------------------------------------------

SIMDIFFREC = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "batch_size": 16,
    "epochs": 1,
    "k_noise": 1,
    "k_sample": 2,
    "num_train_timesteps": 40,
}


def test_a_contrast_of_one_sequence_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^SimDiffRec: .*batch_size 1 leaves.*needs 2") as caught:
        SimDiffRec(batch_size=1)
    assert "\n" not in str(caught.value)
    assert SimDiffRec(batch_size=2).config.batch_size == 2


@pytest.mark.parametrize("sequences, n", [([[1, 2, 3, 4], [5]], 1), ([[1], [2], [], [3]], 0)])
def test_a_contrast_needs_two_users_with_a_next_item(sequences, n) -> None:
    log = SequenceDataset.from_lists(sequences)
    with pytest.raises(DataError, match=rf"^simdiffrec .*needs 2 .*got {n}: give it more users$"):
        SimDiffRec(**SIMDIFFREC).fit(log)
    two = SequenceDataset.from_lists([[1, 2, 3], [3, 1]])
    assert len(SimDiffRec(**SIMDIFFREC).fit(two).curve) == 1


def test_nothing_to_learn_from() -> None:
    with pytest.raises(DataError, match=r"^sasrec has nothing to learn from: no user .* 2 items"):
        SASRec(**SETTINGS).fit(SequenceDataset.from_lists([[1], [2], [], [3]]))


# --- augmented copies ---------------------------------------------------------------------------


def with_copies(n_copies: int, schedule: CurriculumSchedule) -> SequenceDataset:
    data = SequenceDataset.from_lists([[1, 2], [3, 4]])
    items = np.tile(data.items, (n_copies, 1))
    return data.with_copies(
        AugmentedCopies(items, np.zeros((n_copies, 2), dtype=np.float32), schedule)
    )


class Line(SASRec):
    """One parameter w, whose loss on a batch is w times the mean of its first items."""

    def build(self, catalog: Catalog) -> None:
        super().build(catalog)
        self.w = torch.nn.Parameter(torch.ones(()))
        self.seen: list[list[int]] = []
        self.after: list[float] = []

    def learn(self, train: SequenceDataset, valid: Any, runtime: Runtime) -> list[Any]:
        def loss(batch: Batch) -> torch.Tensor:
            self.seen.append(sorted(batch.items[:, 0].tolist()))
            return self.w * batch.items[:, 0].float().mean()

        return train_next_item(
            self,
            loss,
            train,
            None,
            runtime,
            scorer=self.scorer,
            optimizer=torch.optim.SGD([self.w], lr=1.0),
            watch=lambda: self.after.append(self.w.item()) or {},
        )


def test_the_loss_of_copies_is_added_by_their_weight() -> None:
    schedule = CurriculumSchedule(weight=0.5, copies_per_step="all")
    data = with_copies(2, schedule)
    items = np.array([[5, 6, 7, 8], [9, 9, 9, 9]], dtype=np.int32)
    catalog = SequenceDataset.from_lists([[*range(1, 10)]]).catalog
    data = replace(data, copies=replace(data.copies, items=items), catalog=catalog)
    model = Line(epochs=2, n_layers=1, average_epochs=0).fit(data)
    # the first epoch has the first copy, the second both with the weight of two
    first = 2 + 0.5 * 6
    assert model.after == [1 - first, 1 - first - (2 + 2 * 0.5 * 7.5)]
    assert model.seen == [[1, 3], [5, 7], [1, 3], [5, 7, 9, 9]]


@pytest.mark.parametrize("pacing, n_epochs", [("none", 3), ("cumulative", 6), ("one_pass", 7)])
def test_no_early_stop_before_every_copy_was_in_use(pacing, n_epochs) -> None:
    class Still(SASRec):
        """Never better than in its first epoch."""

        def learn(self, train: SequenceDataset, valid: Any, runtime: Runtime) -> list[Any]:
            loss = encoder_loss(self, self.config, train)
            frozen = torch.optim.SGD(self.parameters(), lr=0.0)
            return train_next_item(
                self, loss, train, valid, runtime, scorer=self.scorer, optimizer=frozen
            )

    data = with_copies(4, CurriculumSchedule(pacing))
    valid = leave_one_out(SequenceDataset.from_lists([[1, 2, 3, 4]], data.catalog)).valid
    model = Still(dim=4, n_layers=1, epochs=50, patience=2).fit(data, valid)
    assert len(model.curve) == n_epochs


def test_epochs_that_end_before_all_copies_are_in_use_are_refused() -> None:
    data = with_copies(4, CurriculumSchedule())
    model = SASRec(**SETTINGS | {"epochs": 3})
    with pytest.raises(ConfigError, match=r"3 epochs end before all 4 copies .* takes 4: raise"):
        model.fit(data)
    SASRec(**SETTINGS | {"epochs": 1}).fit(data.with_all_copies())
    assert data.without_copies().copies is None


def test_copies_that_weigh_nothing_change_nothing(random_log) -> None:
    train = leave_one_out(random_log).train.compact()
    items = np.tile(train.items[::-1], (1, 1))
    nothing = CurriculumSchedule("none", weight=0.0, copies_per_step="all")
    copies = AugmentedCopies(items, np.zeros((1, len(train)), dtype=np.float32), nothing)
    settings = SETTINGS | {"loss": "softmax", "dropout": 0.0, "epochs": 1}
    plain = SASRec(**settings).fit(train)
    weightless = SASRec(**settings).fit(train.with_copies(copies))
    for name, value in state(plain).items():
        assert torch.equal(value, state(weightless)[name]), name


def test_every_epoch_learns(random_log) -> None:
    losses = [e.loss for e in fit(random_log, Runtime(), loss="softmax", dropout=0.0).curve]
    assert losses == sorted(losses, reverse=True)


def test_a_softmax_over_too_many_items_is_warned_of_once() -> None:
    n_items, positions = 1_000_000, 64 * 20

    def warned(
        vocab_size: int = n_items + 1,
        n_positions: float = 1.1 * positions,
        n_batches: float = 100.0,
    ) -> str | None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warn_of_full_softmax(vocab_size, n_positions, 64, n_batches, Runtime(device="cpu"))
        return str(caught[0].message) if caught else None

    # 6 · 1408 · 10⁶ · 64 operations at 5·10¹⁰ a second: 10.8 s, a hundred times 18 min
    assert warned() == (
        "the softmax over all 1,000,000 items will take about 11 s a step and 18 min an epoch: "
        "loss='sampled_softmax' (--set loss=sampled_softmax) draws a thousand of them instead"
    )
    assert warned(vocab_size=900_000) is None
    assert warned(n_positions=1000.0) is None
    # a tenth of the items: 1.08 s a step, and an hour for 3,330 of them
    assert warned(vocab_size=100_001, n_batches=3300.0) is None
    assert "1 s a step and 60 min an epoch" in str(warned(vocab_size=100_001, n_batches=3340.0))


def test_the_loss_that_the_warning_names_is_not_warned_of() -> None:
    n_items = 3_000_000
    lists = [[1 + user, *range(2 + user, 500_000, 2000)] for user in range(8)]
    data = SequenceDataset.from_lists(lists, Catalog(pl.Series("item_id", range(n_items)), 8))
    small = {"dim": 4, "n_layers": 1, "n_heads": 1, "max_len": 200, "epochs": 1}

    class Stopped(Exception):
        """Nothing has to be trained to see the warning."""

    def stopped(**settings: Any) -> None:
        def batch_loss(batch: object) -> None:
            raise Stopped

        method = SASRec if settings else DiffRec
        model = method(**small, batch_size=4096, **settings)
        model.take(data.catalog)
        with pytest.raises(Stopped):
            train_next_item(model, batch_loss, data, None, Runtime(device="cpu"))

    with pytest.warns(UserWarning, match="sampled_softmax"):
        stopped(loss="softmax")
    with pytest.warns(UserWarning, match="diffrec has no loss that draws negatives; sasrec has"):
        stopped()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stopped(loss="sampled_softmax")
