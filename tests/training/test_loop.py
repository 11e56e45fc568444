"""The loop: early stopping, several updates, what is recorded, and what it leaves alone."""

import re
import time
from typing import Any

import numpy as np
import pytest
import torch

from diffuserec.data import SequenceDataset, leave_one_out, training_batches
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.training import Update, real_positions, train

from .suite import SETTINGS, TWO_USERS, assert_equal, fit, pair, pair_after, state


def run_loop(
    log: SequenceDataset,
    metrics: list[float] | None,
    *,
    epochs: int,
    patience: int | None = None,
    runtime: Runtime | None = None,
    poison: int | None = None,
    **more: Any,
) -> tuple[SASRec, list[Epoch]]:
    """The loop itself, with validation metrics made up: one for each epoch."""
    runtime = runtime or Runtime()
    model = SASRec(**SETTINGS)
    with torch.random.fork_rng():
        torch.manual_seed(runtime.seed)
        model.take(log.catalog)
    epoch_now = 0

    def batches(epoch: int) -> Any:
        nonlocal epoch_now
        epoch_now = epoch
        return training_batches(log, 16, 50, runtime.seed, epoch)

    def loss(batch: Any) -> torch.Tensor:
        states, targets, _ = real_positions(batch, model.encode(batch.items, batch.lengths))
        value = softmax_cross_entropy(states, model.table.weight(), targets)
        return value * float("nan") if epoch_now == poison else value

    given = {"optimizer": torch.optim.Adam(model.parameters(), lr=0.01, fused=True)}
    records = train(
        model,
        loss,
        batches,
        n_batches=3,
        epochs=epochs,
        runtime=runtime,
        data=log,
        validate=None if metrics is None else lambda: metrics[epoch_now],
        patience=patience,
        **given | more,
    )
    return model, records


# --- stopping -----------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_epoch(random_log) -> None:
    model, records = run_loop(random_log, [0.1, 0.3, 0.2, 0.3, 0.9], epochs=5, patience=2)
    assert [record.valid for record in records] == [0.1, 0.3, 0.2, 0.3]  # an equal one is no better
    assert [record.epoch for record in records] == [0, 1, 2, 3]
    after_two, _ = run_loop(random_log, None, epochs=2)
    assert_equal(state(model), state(after_two))
    assert not model.training


def test_without_patience_every_epoch_is_run_and_the_best_kept(random_log) -> None:
    model, records = run_loop(random_log, [0.5, 0.1, 0.1, 0.1, 0.1], epochs=5)
    assert len(records) == 5
    assert_equal(state(model), state(run_loop(random_log, None, epochs=1)[0]))


def test_without_validation_all_epochs_are_run_and_the_last_kept(random_log) -> None:
    model, records = run_loop(random_log, None, epochs=5, patience=1)
    assert [record.valid for record in records] == [None] * 5
    four, _ = run_loop(random_log, None, epochs=4)
    assert any(
        not torch.equal(a, b) for a, b in zip(model.parameters(), four.parameters(), strict=True)
    )


@pytest.mark.parametrize("least, n_epochs", [(0, 3), (1, 4), (3, 6), (50, 10)])
def test_patience_begins_to_count_after_the_least_epochs(least, n_epochs) -> None:
    # no epoch is better than the first
    _, _, records = pair_after(
        lambda model: lambda batch: model.a * 1.0,
        epochs=10,
        validate=lambda: 0.0,
        patience=2,
        least_epochs=least,
    )
    assert len(records) == n_epochs


def test_a_validation_sees_the_method_as_it_is_used() -> None:
    seen = []

    def losses(model: Any) -> Any:
        seen.append(model)
        return lambda batch: model.a * 1.0

    pair_after(losses, epochs=2, validate=lambda: seen.append(seen[0].training) or 0.0)
    assert seen[1:] == [False, False]


def test_nothing_to_learn_from_is_said_with_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"^pair has nothing to learn from: .*histories of 4$"):
        pair_after(lambda model: lambda batch: model.a * 1.0, n_batches=0)


# --- losses that are not finite -----------------------------------------------------------------


def test_a_loss_that_is_not_a_number_stops_with_advice(random_log, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"became nan in epoch 3: try a smaller learning_rate"):
        run_loop(random_log, None, epochs=5, poison=2, runtime=Runtime(checkpoint=tmp_path))
    # what was good is still there
    resumed = Runtime(checkpoint=tmp_path, resume=True)
    _, records = run_loop(random_log, None, epochs=2, runtime=resumed)
    assert len(records) == 2
    assert all(np.isfinite(record.loss) for record in records)


def test_a_learning_rate_far_too_large_is_named(random_log) -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        SASRec(dim=8, learning_rate=1e30, epochs=30).fit(random_log)


# --- what is recorded and shown -----------------------------------------------------------------


def test_the_recorded_loss_is_the_mean_over_batches() -> None:
    _, _, records = pair_after(
        lambda model: lambda batch: model.a * batch.sum(),
        batches=lambda epoch: [torch.full((1,), x) for x in (1.0, 2.0, 6.0)],
        n_batches=3,
        learning_rate=0.5,
    )
    # a is 1, then 1 - 1/2, then 1/2 - 2/2: losses 1, 1, -3
    assert records[0].loss == pytest.approx(-1 / 3, rel=1e-6)


def test_records_name_phase_and_epoch_and_hold_what_is_watched() -> None:
    _, _, records = pair_after(
        lambda model: lambda batch: model.a * 1.0,
        epochs=2,
        phase="warm-up",
        watch=lambda: {"answer": 42.0},
    )
    assert [(r.phase, r.epoch, r.valid, r.watched) for r in records] == [
        ("warm-up", 0, None, {"answer": 42.0}),
        ("warm-up", 1, None, {"answer": 42.0}),
    ]
    assert all(record.seconds > 0 for record in records)


def test_training_and_validation_are_timed_apart() -> None:
    def slow() -> dict[str, float]:
        time.sleep(0.5)
        return {}

    _, _, records = pair_after(lambda model: lambda batch: model.a * 1.0, epochs=2, watch=slow)
    assert all(record.seconds < 0.5 <= record.validation_seconds for record in records)


def test_progress_is_quiet_where_nobody_watches(random_log, capfd, monkeypatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    run_loop(random_log, [0.5, 0.6], epochs=2)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_progress_is_a_line_an_epoch_without_a_terminal(random_log, capfd, monkeypatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    run_loop(random_log, [0.5, 0.6, 0.2], epochs=3, runtime=Runtime(progress=True))
    captured = capfd.readouterr()
    assert captured.out == ""
    first, second, third = captured.err.splitlines()
    start = r"fit: epoch {} of 3, loss 3\.\d{{4}}, valid {}, \d\.\d s, at most {} left"
    assert re.fullmatch(start.format(1, r"0.5000 \(best\)", r"\d s"), first)
    assert re.fullmatch(start.format(2, r"0.6000 \(best\)", r"\d s"), second)
    assert re.fullmatch(start.format(3, r"0.2000", r"0 s"), third)


def test_progress_is_a_bar_on_a_terminal(random_log, capfd, monkeypatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    run_loop(random_log, [0.5, 0.6], epochs=2)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "fit 2/2" in captured.err
    assert "valid 0.5000 (best 0.5000)" in captured.err
    assert "loss 3." in captured.err
    assert re.search(r"at most \d s left", captured.err)


def test_a_function_is_told_every_epoch_and_may_end_the_fit(random_log) -> None:
    seen: list[Epoch] = []

    def told(record: Epoch) -> bool:
        seen.append(record)
        return len(seen) == 2

    _, records = run_loop(random_log, [0.5, 0.6, 0.7], epochs=3, runtime=Runtime(on_epoch=told))
    assert records == seen
    assert [record.valid for record in seen] == [0.5, 0.6]


# --- random numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_callers_random_numbers_are_left_alone(random_log, tmp_path, checkpointed) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    fit(random_log, Runtime(checkpoint=tmp_path if checkpointed else None), epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_the_callers_random_numbers_have_no_say(random_log) -> None:
    torch.manual_seed(1)
    first = state(fit(random_log, Runtime(), epochs=1))
    torch.manual_seed(2)
    assert_equal(state(fit(random_log, Runtime(), epochs=1)), first)


def test_seeds(random_log) -> None:
    first = state(fit(random_log, Runtime(seed=1), epochs=1))
    assert_equal(state(fit(random_log, Runtime(seed=1), epochs=1)), first)
    other = fit(random_log, Runtime(seed=2), epochs=1)
    assert not torch.equal(first["table.vectors.weight"], other.table.embeddings())


def test_every_phase_draws_numbers_of_its_own() -> None:
    def numbers(phase: str) -> list[float]:
        drawn = []

        def loss(model: Any) -> Any:
            return lambda batch: (drawn.append(float(torch.rand(()))), model.a * 1.0)[1]

        pair_after(loss, phase=phase, epochs=3)
        return drawn

    first = numbers("first")
    assert len({*first, *numbers("second")}) == 6
    assert numbers("first") == first


def test_nothing_is_learned_from_the_last_two_items(random_log) -> None:
    items = random_log.items.copy()
    generator = np.random.default_rng(0)
    for end in random_log.offsets[1:]:
        items[end - 2 : end] = generator.integers(1, 26, 2)
    assert (items != random_log.items).sum() > 40
    changed = SequenceDataset.from_offsets(items, random_log.offsets, random_log.catalog)
    first, second = (
        SASRec(**SETTINGS | {"epochs": 2}).fit(leave_one_out(log).train)
        for log in (random_log, changed)
    )
    assert_equal(state(first), state(second))


# --- several updates ----------------------------------------------------------------------------


def test_several_updates_are_made_one_after_the_other_on_each_batch() -> None:
    def updates(model: Any) -> list[Update]:
        return [
            Update(lambda batch: model.a * model.b, [model.a]),
            Update(lambda batch: model.a * model.b, [model.b]),
        ]

    # a = 1 - 0.1 · 2 = 0.8, then b = 2 - 0.1 · 0.8 = 1.92
    # a = 0.8 - 0.1 · 1.92 = 0.608, then b = 1.92 - 0.1 · 0.608 = 1.8592
    model, _, records = pair_after(updates, n_batches=2)
    assert model.a.item() == pytest.approx(0.608, rel=1e-6)
    assert model.b.item() == pytest.approx(1.8592, rel=1e-6)
    # the first update's loss: 1 · 2, then 0.8 · 1.92
    assert records[0].loss == pytest.approx((2 + 1.536) / 2, rel=1e-6)


def test_an_update_that_names_no_parameters_moves_all() -> None:
    # both by the other's value: a = 1 - 0.2, b = 2 - 0.1
    for losses in (
        lambda model: lambda batch: model.a * model.b,
        lambda model: [Update(lambda batch: model.a * model.b)],
    ):
        model, _, _ = pair_after(losses)
        assert (model.a.item(), model.b.item()) == pytest.approx((0.8, 1.9), rel=1e-6)


def test_gradients_of_one_update_do_not_reach_the_next() -> None:
    def updates(model: Any) -> list[Update]:
        return [
            Update(lambda batch: 3 * model.a + 5 * model.b, [model.a]),
            Update(lambda batch: 7 * model.b),
        ]

    model, _, _ = pair_after(updates)
    assert (model.a.item(), model.b.item()) == pytest.approx((1 - 0.3, 2 - 0.7), rel=1e-6)


def test_parameters_that_no_update_moves_stay_and_have_no_moments() -> None:
    model, optimizer, _ = pair_after(
        lambda model: [Update(lambda batch: model.a * model.b, [model.a])],
        epochs=3,
        optimizer=torch.optim.Adam,
    )
    assert model.b.item() == 2
    assert model.a.item() < 1
    assert list(optimizer.state) == [model.a]


def test_what_is_moved_once_a_batch_takes_one_step_of_adam_a_batch() -> None:
    def updates(model: Any) -> list[Update]:
        return [
            Update(lambda batch: model.a.square() + model.b, [model.a]),
            Update(lambda batch: model.b.square() + model.a, [model.b]),
        ]

    model, optimizer, _ = pair_after(updates, n_batches=4, optimizer=torch.optim.Adam)
    assert [int(optimizer.state[p]["step"]) for p in (model.a, model.b)] == [4, 4]
    alone, _, _ = pair_after(
        lambda model: [Update(lambda batch: model.b.square(), [model.b])],
        n_batches=4,
        optimizer=torch.optim.Adam,
    )
    assert torch.equal(model.b, alone.b)


def test_an_update_leaves_every_other_parameter_bit_for_bit(random_log) -> None:
    model = SASRec(**SETTINGS)
    model.take(random_log.catalog)
    before = state(model)
    moved = model.encoder.layers[0].narrow.weight
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)

    def loss(batch: Any) -> torch.Tensor:
        states, targets, _ = real_positions(batch, model.encode(batch.items, batch.lengths))
        return softmax_cross_entropy(states, model.table.weight(), targets)

    train(
        model,
        [Update(loss, [moved])],
        lambda epoch: training_batches(random_log, 16, 50, 0, epoch),
        n_batches=3,
        optimizer=optimizer,
        epochs=2,
        runtime=Runtime(),
        data=random_log,
    )
    changed = [name for name, value in state(model).items() if not torch.equal(value, before[name])]
    assert changed == ["encoder.blocks.0.narrow.weight"]
    assert list(optimizer.state) == [moved]


# --- preparation and rates ----------------------------------------------------------------------


def test_what_an_epoch_needs_is_prepared_before_it_without_gradients_or_dropout() -> None:
    said = []
    model = pair()
    model.train()

    def say(what: str) -> None:
        said.append((what, model.training, torch.is_grad_enabled(), model.a.item()))

    def loss(batch: Any) -> torch.Tensor:
        say("batch")
        return model.a * 1.0

    train(
        model,
        loss,
        lambda epoch: [torch.zeros(1)] * 2,
        n_batches=2,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.25),
        epochs=2,
        runtime=Runtime(),
        data=TWO_USERS,
        prepare=lambda: say("prepare"),
    )
    assert said == [
        ("prepare", False, False, 1.0),
        ("batch", True, True, 1.0),
        ("batch", True, True, 0.75),
        ("prepare", False, False, 0.5),
        ("batch", True, True, 0.5),
        ("batch", True, True, 0.25),
    ]


def test_a_rate_multiplies_the_learning_rate_of_an_epoch() -> None:
    model, _, _ = pair_after(
        lambda model: lambda batch: model.a * 1.0,
        epochs=3,
        n_batches=2,
        learning_rate=0.5,
        rate=lambda epoch, batch: [1.0, 0.5, 0.0][epoch],
    )
    assert model.a.item() == 1 - 2 * 0.5 - 2 * 0.25
