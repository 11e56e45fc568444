"""The loop: exact resume after any kind of death, early stopping, and what it leaves alone."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open

from diffuserec.training import loop as training
from diffuserec.models.base import Recommender, Run, Settings
from diffuserec.data import (
    Catalog,
    Queries,
    Schedule,
    SequenceDataset,
    Variants,
    leave_one_out,
    training_batches,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.recommenders.acvae import ACVAE
from diffuserec.recommenders.bert4rec import BERT4Rec
from diffuserec.recommenders.bpr import BPR
from diffuserec.recommenders.neumf import NeuMF
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.recommenders.simdiffrec import SimDiffRec
from diffuserec.training.loop import Epoch, Update, next_item, real_positions, train, train_next_item

# dropout and drawn negatives, so that a wrong random state shows
SETTINGS = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.4,
    "loss": "bce",
    "batch_size": 16,
    "learning_rate": 0.02,
    "epochs": 4,
}


def fit(log: SequenceDataset, run: Run, **settings) -> SASRec:
    split = leave_one_out(log)
    return SASRec(**SETTINGS | settings).fit(split.train, split.valid, run)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(folder / "fit.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def without_seconds(records: list[Epoch]) -> list[dict[str, object]]:
    return [{k: v for k, v in asdict(record).items() if k != "seconds"} for record in records]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def assert_same_run(
    model: Recommender, other: Recommender, folder: Path, other_folder: Path
) -> None:
    assert_equal(state(model), state(other))
    assert without_seconds(model.curve) == without_seconds(other.curve)
    (tensors, notes), (other_tensors, other_notes) = checkpoint(folder), checkpoint(other_folder)
    assert any(name.startswith("optimizer/") for name in tensors)
    assert any(name.startswith("best/") for name in tensors)
    assert_equal(tensors, other_tensors)
    assert notes["groups"] == other_notes["groups"]


@pytest.fixture(scope="module")
def whole(random_log, tmp_path_factory) -> tuple[SASRec, Path]:
    """Four epochs without interruption."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(random_log, Run(seed=3, checkpoint=folder)), folder


KILLED = """
import sys, time
import numpy as np, torch
torch.set_num_threads(1)
from pathlib import Path
from diffuserec.models.base import Run
from diffuserec.data import leave_one_out, load_dataset
import diffuserec.training.loop as training
from diffuserec.recommenders.sasrec import SASRec
made = training.training_batches
def stopping(data, size, max_len, seed, epoch, rows):
    for n, batch in enumerate(made(data, size, max_len, seed, epoch, rows)):
        if epoch == 2 and n == 1:
            print("in the third epoch", flush=True)
            time.sleep(120)
        yield batch
training.training_batches = stopping
split = leave_one_out(load_dataset(sys.argv[1]))
run = Run(seed=3, checkpoint=Path(sys.argv[2]))
SASRec(**eval(sys.argv[3])).fit(split.train, split.valid, run)
"""


def test_sigkill_in_the_middle_of_an_epoch(random_log, whole, tmp_path) -> None:
    random_log.save(tmp_path / "data")
    folder = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "data"), str(folder), repr(SETTINGS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert said == b"in the third epoch\n"
    assert process.returncode == -signal.SIGKILL
    assert len(json.loads(checkpoint(folder)[1]["records"])) == 2
    resumed = fit(random_log, Run(seed=3, checkpoint=folder, resume=True))
    assert_same_run(resumed, whole[0], folder, whole[1])
    assert [path.name for path in folder.iterdir()] == ["fit.safetensors"]


def interrupt(monkeypatch, at_epoch: int) -> None:
    def stopping(data, size, max_len, seed, epoch, rows):
        for n, batch in enumerate(training_batches(data, size, max_len, seed, epoch, rows)):
            if epoch == at_epoch and n == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(training, "training_batches", stopping)


@pytest.mark.parametrize("at_epoch", [0, 1, 3])
def test_ctrl_c_in_any_epoch(random_log, whole, tmp_path, monkeypatch, at_epoch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, at_epoch)
        with pytest.raises(KeyboardInterrupt):
            fit(random_log, Run(seed=3, checkpoint=tmp_path))
    torch.manual_seed(at_epoch)  # whatever the process did in between
    resumed = fit(random_log, Run(seed=3, checkpoint=tmp_path, resume=True))
    assert_same_run(resumed, whole[0], tmp_path, whole[1])


def test_resuming_a_finished_run_changes_nothing(random_log, whole) -> None:
    before = (whole[1] / "fit.safetensors").read_bytes()
    again = fit(random_log, Run(seed=3, checkpoint=whole[1], resume=True))
    assert_equal(state(again), state(whole[0]))
    assert again.curve == whole[0].curve
    assert (whole[1] / "fit.safetensors").read_bytes() == before


def test_without_resume_a_run_starts_anew(random_log, whole, tmp_path) -> None:
    fit(random_log, Run(seed=9, checkpoint=tmp_path))
    fresh = fit(random_log, Run(seed=3, checkpoint=tmp_path))
    assert_same_run(fresh, whole[0], tmp_path, whole[1])


def test_a_checkpoint_changes_nothing_that_is_learned(random_log, whole) -> None:
    assert_equal(state(fit(random_log, Run(seed=3))), state(whole[0]))


def larger_catalog(log: SequenceDataset) -> SequenceDataset:
    more = Catalog(pl.Series("item_id", np.arange(1, 40)), log.catalog.n_users)
    return SequenceDataset(log.items, log.offsets, more)


def other_items(log: SequenceDataset) -> SequenceDataset:
    items = log.items.copy()
    items[0] = items[0] % 25 + 1
    return SequenceDataset(items, log.offsets, log.catalog)


@pytest.mark.parametrize(
    "settings, run, change, what",
    [
        ({"dim": 16}, {}, None, "config"),
        ({"epochs": 5}, {}, None, "config"),
        ({}, {"seed": 4}, None, "seed"),
        ({}, {"precision": "bf16"}, None, "precision"),
        ({}, {}, other_items, "data"),
        ({}, {}, larger_catalog, "data"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    random_log, whole, settings, run, change, what
) -> None:
    log = random_log if change is None else change(random_log)
    before = (whole[1] / "fit.safetensors").read_bytes()
    with pytest.raises(ConfigError, match=rf"another run \(its {what} differs\).*without --resume"):
        fit(log, Run(**{"seed": 3, "checkpoint": whole[1], "resume": True} | run), **settings)
    assert (whole[1] / "fit.safetensors").read_bytes() == before


def test_other_flags_are_other_data(random_log, tmp_path) -> None:
    split = leave_one_out(random_log)
    run = Run(checkpoint=tmp_path, resume=True)
    SASRec(**SETTINGS | {"epochs": 1}).fit(split.train, run=run)
    flags = np.zeros(len(split.train.items), dtype=bool)
    flags[split.train.offsets[:-1]] = True
    flagged = SequenceDataset(
        split.train.items, split.train.offsets, split.train.catalog, synthetic=flags
    )
    with pytest.raises(ConfigError, match="its data differs"):
        SASRec(**SETTINGS | {"epochs": 1}).fit(flagged, run=run)


@pytest.mark.parametrize("harm", ["truncated", "empty", "noise"])
def test_a_damaged_checkpoint_is_refused(random_log, whole, tmp_path, harm) -> None:
    good = (whole[1] / "fit.safetensors").read_bytes()
    bad = {"truncated": good[:-100], "empty": b"", "noise": os.urandom(5000)}[harm]
    (tmp_path / "fit.safetensors").write_bytes(bad)
    with pytest.raises(DataError, match=r"damaged .*start without --resume"):
        fit(random_log, Run(seed=3, checkpoint=tmp_path, resume=True))


def test_nothing_half_written_is_left_where_a_checkpoint_stands(
    random_log, whole, tmp_path, monkeypatch
) -> None:
    fit(random_log, Run(seed=3, checkpoint=tmp_path))
    before = (tmp_path / "fit.safetensors").read_bytes()

    def fails(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("diffuserec.training.loop.save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        fit(random_log, Run(seed=3, checkpoint=tmp_path))
    assert (tmp_path / "fit.safetensors").read_bytes() == before


def run_loop(
    log: SequenceDataset,
    figures: list[float] | None,
    *,
    epochs: int,
    patience: int | None = None,
    run: Run | None = None,
    poison: int | None = None,
) -> tuple[SASRec, list[Epoch]]:
    """The loop itself, with validation figures made up: one for each epoch."""
    run = run or Run()
    model = SASRec(**SETTINGS)
    model.begin(log, run)
    epoch_now = 0

    def batches(epoch):
        nonlocal epoch_now
        epoch_now = epoch
        return training_batches(log, 16, 50, run.seed, epoch)

    def loss(batch):
        states, targets, _ = real_positions(batch, model.encoder(batch.items, batch.lengths))
        value = softmax_cross_entropy(states, model.encoder.table, targets)
        return value * float("nan") if epoch_now == poison else value

    records = train(
        model,
        loss,
        batches,
        n_batches=3,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01, fused=True),
        epochs=epochs,
        run=run,
        data=log,
        validate=None if figures is None else lambda: figures[epoch_now],
        patience=patience,
    )
    return model, records


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


def test_early_stopping_goes_on_counting_after_a_resume(random_log, tmp_path) -> None:
    figures = [0.1, 0.3, 0.2, 0.2, 0.9]
    run = Run(checkpoint=tmp_path, resume=True)
    run_loop(random_log, figures, epochs=3, patience=2, run=run)
    model, records = run_loop(random_log, figures, epochs=5, patience=2, run=run)
    assert [record.valid for record in records] == [0.1, 0.3, 0.2, 0.2]
    assert_equal(state(model), state(run_loop(random_log, None, epochs=2)[0]))


def test_a_loss_that_is_not_a_number_stops_with_advice(random_log, tmp_path) -> None:
    run = Run(checkpoint=tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"became nan in epoch 3: try a smaller learning_rate"):
        run_loop(random_log, None, epochs=5, poison=2, run=run)
    # what was good is still there
    _, records = run_loop(random_log, None, epochs=2, run=run)
    assert len(records) == 2
    assert all(np.isfinite(record.loss) for record in records)


def test_a_learning_rate_far_too_large_is_named(random_log) -> None:
    with pytest.raises(ConfigError, match="learning_rate"):
        SASRec(dim=8, learning_rate=1e30, epochs=30).fit(random_log)


def test_the_recorded_loss_is_the_mean_over_batches(random_log) -> None:
    values = []
    model = SASRec(**SETTINGS)
    model.begin(random_log, Run())

    def loss(batch):
        states, targets, _ = real_positions(batch, model.encoder(batch.items, batch.lengths))
        value = softmax_cross_entropy(states, model.encoder.table, targets)
        values.append(value.item())
        return value

    records = train(
        model,
        loss,
        lambda epoch: training_batches(random_log, 16, 50, 0, epoch),
        n_batches=3,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        epochs=1,
        run=Run(),
        data=random_log,
    )
    assert len(values) == 3
    assert records[0].loss == pytest.approx(np.mean(values), rel=1e-6)


def test_progress_is_quiet_where_nobody_watches(random_log, capfd, monkeypatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    run_loop(random_log, [0.5, 0.6], epochs=2)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_progress_shows_epoch_loss_and_figure_when_asked(random_log, capfd) -> None:
    run_loop(random_log, [0.5, 0.6], epochs=2, run=Run(progress=True))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "fit 2/2" in captured.err
    assert "0.5000" in captured.err


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_callers_random_numbers_are_left_alone(random_log, tmp_path, checkpointed) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    fit(random_log, Run(checkpoint=tmp_path if checkpointed else None), epochs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_the_callers_random_numbers_have_no_say(random_log) -> None:
    torch.manual_seed(1)
    first = state(fit(random_log, Run(), epochs=1))
    torch.manual_seed(2)
    assert_equal(state(fit(random_log, Run(), epochs=1)), first)


def test_seeds(random_log) -> None:
    first = state(fit(random_log, Run(seed=1), epochs=1))
    assert_equal(state(fit(random_log, Run(seed=1), epochs=1)), first)
    other = state(fit(random_log, Run(seed=2), epochs=1))
    assert not torch.equal(first["encoder.items.weight"], other["encoder.items.weight"])


def test_nothing_is_learned_from_the_last_two_items(random_log) -> None:
    items = random_log.items.copy()
    generator = np.random.default_rng(0)
    for end in random_log.offsets[1:]:
        items[end - 2 : end] = generator.integers(1, 26, 2)
    assert (items != random_log.items).sum() > 40
    changed = SequenceDataset(items, random_log.offsets, random_log.catalog)
    first, second = (
        SASRec(**SETTINGS | {"epochs": 2}).fit(leave_one_out(log).train)
        for log in (random_log, changed)
    )
    assert_equal(state(first), state(second))


@pytest.mark.parametrize("rows", ["users", "windows", "prefixes", "last"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_as_many_batches_as_are_announced(random_log, rows, batch_size) -> None:
    n_rows = len(training.training_rows(random_log, 5, rows)[0])
    made = list(training_batches(random_log, batch_size, 5, 0, 0, rows))
    assert sum(len(batch.users) for batch in made) == n_rows
    announced = training.next_item_batches(n_rows, batch_size)
    assert abs(len(made) - announced) <= max(2, 0.05 * announced)


class Pair(Recommender):
    """Two numbers, a = 1 and b = 2."""

    class Config(Settings):
        """Nothing to choose."""

    def build(self, catalog):
        self.a = torch.nn.Parameter(torch.tensor(1.0))
        self.b = torch.nn.Parameter(torch.tensor(2.0))

    def fit(self, train, valid=None, run=None):
        raise NotImplementedError

    def score(self, histories, seed=0):
        raise NotImplementedError


TWO_USERS = SequenceDataset.from_lists([[1, 2], [2, 1]])


def pair_after(losses, *, n_batches=1, epochs=1, optimizer=torch.optim.SGD):
    """A pair, its optimizer and its records; `losses` makes the updates of a pair."""
    model = Pair()
    model.begin(TWO_USERS, Run())
    made = optimizer(model.parameters(), lr=0.1)
    records = train(
        model,
        losses(model),
        lambda epoch: [torch.zeros(1)] * n_batches,
        n_batches=n_batches,
        optimizer=made,
        epochs=epochs,
        run=Run(),
        data=TWO_USERS,
    )
    return model, made, records


def test_several_updates_are_made_one_after_the_other_on_each_batch() -> None:
    def updates(model):
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
    def updates(model):
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
    def updates(model):
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


def fit_positions(log: SequenceDataset, run: Run) -> SASRec:
    """Two updates a batch: all by the next item, then the positions alone by their size."""
    model = SASRec(**SETTINGS | {"epochs": 3})
    model.begin(log, run)
    predict = next_item(model.config, log)
    positions = model.encoder.positions.weight

    def loss(batch):
        return predict(batch, model.encoder(batch.items, batch.lengths), model.encoder.table)

    updates = [
        Update(loss, [p for p in model.parameters() if p is not positions]),
        Update(lambda batch: loss(batch) + positions.square().sum(), [positions]),
    ]
    model.curve = train_next_item(model, updates, log, None, run, score=model.score)
    return model


def test_several_updates_resume_to_the_same_parameters(random_log, tmp_path, monkeypatch) -> None:
    whole = fit_positions(random_log, Run())
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            fit_positions(random_log, Run(checkpoint=tmp_path))
    resumed = fit_positions(random_log, Run(checkpoint=tmp_path, resume=True))
    assert_equal(state(resumed), state(whole))
    assert without_seconds(resumed.curve) == without_seconds(whole.curve)


@pytest.mark.parametrize("method", [ACVAE, BERT4Rec, BPR, NeuMF])
def test_pairs_and_several_updates_resume_to_the_same_parameters(
    random_log, tmp_path, monkeypatch, method
) -> None:
    split, save = leave_one_out(random_log), training._Checkpoint.save

    def fitted(**run) -> Recommender:
        settings = {"dim": 8, "batch_size": 16, "learning_rate": 0.02, "epochs": 4}
        return method(**settings).fit(split.train, split.valid, Run(seed=3, **run))

    def interrupted(self, records, best):
        save(self, records, best)
        if len(records) == 2:
            raise KeyboardInterrupt

    whole = fitted(checkpoint=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(training._Checkpoint, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fitted(checkpoint=tmp_path / "cut")
    resumed = fitted(checkpoint=tmp_path / "cut", resume=True)
    assert_same_run(resumed, whole, tmp_path / "cut", tmp_path / "whole")


def test_an_update_leaves_every_other_parameter_bit_for_bit(random_log) -> None:
    model = SASRec(**SETTINGS)
    model.begin(random_log, Run())
    before = state(model)
    moved = model.encoder.layers[0].narrow.weight
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)

    def loss(batch):
        states, targets, _ = real_positions(batch, model.encoder(batch.items, batch.lengths))
        return softmax_cross_entropy(states, model.encoder.table, targets)

    train(
        model,
        [Update(loss, [moved])],
        lambda epoch: training_batches(random_log, 16, 50, 0, epoch),
        n_batches=3,
        optimizer=optimizer,
        epochs=2,
        run=Run(),
        data=random_log,
    )
    changed = [name for name, value in state(model).items() if not torch.equal(value, before[name])]
    assert changed == ["encoder.blocks.0.narrow.weight"]
    assert list(optimizer.state) == [moved]


def test_what_an_epoch_needs_is_prepared_before_it_without_gradients_or_dropout() -> None:
    said = []
    model = Pair()
    model.begin(TWO_USERS, Run())
    model.train()

    def say(what):
        said.append((what, model.training, torch.is_grad_enabled(), model.a.item()))

    def loss(batch):
        say("batch")
        return model.a * 1.0

    train(
        model,
        loss,
        lambda epoch: [torch.zeros(1)] * 2,
        n_batches=2,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.25),
        epochs=2,
        run=Run(),
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


def test_a_rate_that_falls_to_nothing_and_goes_on_where_it_was(tmp_path) -> None:
    said = []

    def trained(stop: int | None = None, **run) -> Pair:
        model = Pair()
        model.begin(TWO_USERS, Run())

        def batches(epoch: int):
            said.append(model.a.item())
            if epoch == stop:
                raise KeyboardInterrupt
            return [torch.zeros(1)] * 2

        train(
            model,
            lambda batch: model.a * 1.0,
            batches,
            n_batches=2,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
            epochs=4,
            run=Run(**run),
            data=TWO_USERS,
            rate=training.linear_decay(4),
        )
        return model

    assert trained().a.item() == 1 - 2 * (0.5 + 0.375 + 0.25 + 0.125)
    assert said == [1.0, 0.0, -0.75, -1.25]
    with pytest.raises(KeyboardInterrupt):
        trained(2, checkpoint=tmp_path)
    said.clear()
    assert trained(checkpoint=tmp_path, resume=True).a.item() == -1.5
    assert said == [-0.75, -1.25]


SIMDIFFREC = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.4,
    "batch_size": 16,
    "learning_rate": 0.02,
    "epochs": 3,
    "k_noise": 2,
    "k_sample": 2,
    "num_train_timesteps": 40,
}


def test_what_is_prepared_is_prepared_again_after_a_resume(
    random_log, tmp_path, monkeypatch
) -> None:
    def fitted(run: Run) -> SimDiffRec:
        split = leave_one_out(random_log)
        return SimDiffRec(**SIMDIFFREC).fit(split.train, split.valid, run)

    whole = fitted(Run(seed=3))
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            fitted(Run(seed=3, checkpoint=tmp_path))
    resumed = fitted(Run(seed=3, checkpoint=tmp_path, resume=True))
    assert_equal(state(resumed), state(whole))
    assert without_seconds(resumed.curve) == without_seconds(whole.curve)
    assert whole.neighbors[1:].all()
    assert torch.equal(resumed.neighbors, whole.neighbors)
    with monkeypatch.context() as patch:
        patch.setattr(SimDiffRec, "_find_neighbors", lambda self: None)
        assert not torch.equal(fitted(Run(seed=3)).encoder.table, whole.encoder.table)


def test_a_contrast_of_one_sequence_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^SimDiffRec: .*batch_size 1 leaves.*needs 2") as caught:
        SimDiffRec(batch_size=1)
    assert "\n" not in str(caught.value)
    assert SimDiffRec(batch_size=2).config.batch_size == 2


@pytest.mark.parametrize("sequences, n", [([[1, 2, 3, 4], [5]], 1), ([[1], [2], [], [3]], 0)])
def test_a_contrast_needs_two_users_with_a_next_item(sequences, n) -> None:
    log = SequenceDataset.from_lists(sequences)
    settings = SIMDIFFREC | {"k_noise": 1, "epochs": 1}
    with pytest.raises(DataError, match=rf"^simdiffrec .*needs 2 .*got {n}: give it more users$"):
        SimDiffRec(**settings).fit(log)
    two = SequenceDataset.from_lists([[1, 2, 3], [3, 1]])
    assert len(SimDiffRec(**settings).fit(two).curve) == 1


class _Line(Recommender):
    """One parameter w whose loss on a batch is w times the sum of its items; for the loop alone."""

    def build(self, catalog: Catalog) -> None:
        self.w = torch.nn.Parameter(torch.ones(()))

    def fit(self, train, valid=None, run=None):
        raise NotImplementedError

    def score(self, histories, seed=0):
        raise NotImplementedError


def test_the_loss_of_variants_is_added_by_their_weight() -> None:
    data = SequenceDataset.from_lists([[1, 2], [3, 4]])
    items = np.array([[5, 6, 7, 8], [9, 9, 9, 9]], dtype=np.int32)
    schedule = Schedule(weight=0.5, each_step="all")
    difficulty = np.zeros((2, 2), dtype=np.float32)
    data = replace(data, variants=Variants(items, difficulty, schedule))
    model = _Line()
    model.begin(data, Run())
    seen = []

    def loss(batch):
        seen.append(batch.items[:, 0].tolist())
        return model.w * batch.items[:, 0].float().mean()

    model.begin(data, Run())
    watched = []
    train(
        model,
        loss,
        lambda epoch: training_batches(data, 2, 5, 0, epoch),
        n_batches=1,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        epochs=2,
        run=Run(),
        data=data,
        watch=lambda: watched.append(float(model.w.detach())) or {},
    )
    # the first epoch has the first variant, the second both with the weight of two
    first = 2 + 0.5 * 6
    assert watched == [1 - first, 1 - first - (2 + 2 * 0.5 * 7.5)]
    assert [sorted(items) for items in seen[-2:]] == [[1, 3], [5, 7, 9, 9]]


@pytest.mark.parametrize("pacing, n_epochs", [("none", 3), ("cumulative", 6), ("one_pass", 7)])
def test_no_early_stop_before_every_variant_was_in_use(pacing, n_epochs) -> None:
    data = SequenceDataset.from_lists([[1, 2], [3, 4]])
    items = np.tile(data.items, (4, 1))
    variants = Variants(items, np.zeros((4, 2), dtype=np.float32), Schedule(pacing))
    data = replace(data, variants=variants)
    model = _Line()
    model.begin(data, Run())
    records = train(
        model,
        lambda batch: model.w * 1.0,
        lambda epoch: training_batches(data, 2, 5, 0, epoch),
        n_batches=1,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        epochs=50,
        run=Run(),
        data=data,
        validate=lambda: 0.0,  # never better than the first
        patience=2,
    )
    assert len(records) == n_epochs


def test_epochs_that_end_before_all_variants_are_in_use_are_refused() -> None:
    data = SequenceDataset.from_lists([[1, 2], [3, 4]])
    items = np.tile(data.items, (4, 1))
    variants = Variants(items, np.zeros((4, 2), dtype=np.float32), Schedule())
    data = replace(data, variants=variants)
    model = SASRec(**SETTINGS | {"epochs": 3})
    with pytest.raises(ConfigError, match=r"3 epochs end before all 4 variants .* takes 4: raise"):
        model.fit(data)
    SASRec(**SETTINGS | {"epochs": 1}).fit(data.with_all_variants())
    assert data.without_variants().variants is None


def test_a_checkpoint_of_another_curriculum_is_not_resumed(tmp_path: Path) -> None:
    data = SequenceDataset.from_lists([[1, 2], [3, 4]])
    items = np.tile(data.items, (2, 1))
    varied = [
        replace(data, variants=Variants(items, np.zeros((2, 2), dtype=np.float32), schedule))
        for schedule in (Schedule(), Schedule(weight=0.5))
    ]
    SASRec(**SETTINGS).fit(varied[0], run=Run(checkpoint=tmp_path))
    with pytest.raises(ConfigError, match="its data differs"):
        SASRec(**SETTINGS).fit(varied[1], run=Run(checkpoint=tmp_path, resume=True))


def test_an_epoch_is_not_chosen_by_nothing(random_log) -> None:
    split = leave_one_out(random_log)
    nobody = Queries(split.valid.histories.select(np.arange(0)), np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match=r"no validation queries.*leave valid out"):
        SASRec(**SETTINGS).fit(split.train, nobody)
