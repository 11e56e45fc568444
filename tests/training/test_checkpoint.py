"""Exact resume after any kind of death, and checkpoints that are refused."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from diffuserec.data import (
    AugmentedCopies,
    Catalog,
    CurriculumSchedule,
    SequenceDataset,
    leave_one_out,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Runtime
from diffuserec.models.recommender import Recommender
from diffuserec.recommenders.acvae import ACVAE
from diffuserec.recommenders.bert4rec import BERT4Rec
from diffuserec.recommenders.bpr import BPR
from diffuserec.recommenders.neumf import NeuMF
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.recommenders.simdiffrec import SimDiffRec
from diffuserec.training import (
    Update,
    checkpoint_files,
    next_item_loss,
    train,
    train_next_item,
)

from .suite import (
    SETTINGS,
    TWO_USERS,
    assert_equal,
    assert_same_fit,
    checkpoint,
    counted_steps,
    fit,
    interrupted_after,
    pair,
    state,
    steps_before,
    without_seconds,
)

# --- killed, interrupted, finished --------------------------------------------------------------


KILLED = """
import sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook
from diffuserec.data import leave_one_out, load_dataset
from diffuserec.models.base import Runtime
from diffuserec.recommenders.sasrec import SASRec
left = int(sys.argv[4])
def count(*_):
    global left
    left -= 1
    if left == 0:
        print("in the third epoch", flush=True)
        time.sleep(120)
register_optimizer_step_post_hook(count)
split = leave_one_out(load_dataset(sys.argv[1]))
runtime = Runtime(seed=3, checkpoint=Path(sys.argv[2]))
SASRec(**eval(sys.argv[3])).fit(split.train, split.valid, runtime)
"""


def test_sigkill_in_the_middle_of_an_epoch(random_log, whole, tmp_path) -> None:
    random_log.save(tmp_path / "data")
    folder, step = tmp_path / "fit", steps_before(random_log, 2) + 1
    arguments = [str(tmp_path / "data"), str(folder), repr(SETTINGS), str(step)]
    command = [sys.executable, "-c", KILLED, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert said == b"in the third epoch\n"
    assert process.returncode == -signal.SIGKILL
    assert len(json.loads(checkpoint(folder)[1]["records"])) == 2
    resumed = fit(random_log, Runtime(seed=3, checkpoint=folder, resume=True))
    assert_same_fit(resumed, whole[0], folder, whole[1])
    assert [path.name for path in folder.iterdir()] == ["fit.safetensors"]


@pytest.mark.parametrize("at_epoch", [0, 1, 3])
def test_ctrl_c_in_any_epoch(random_log, whole, tmp_path, at_epoch) -> None:
    with interrupted_after(steps_before(random_log, at_epoch) + 1):
        fit(random_log, Runtime(seed=3, checkpoint=tmp_path))
    assert [path.name for path in checkpoint_files(tmp_path)] == ["fit.safetensors"][: at_epoch > 0]
    torch.manual_seed(at_epoch)  # whatever the process did in between
    resumed = fit(random_log, Runtime(seed=3, checkpoint=tmp_path, resume=True))
    assert_same_fit(resumed, whole[0], tmp_path, whole[1])


def test_only_epochs_that_are_missing_are_trained_again(random_log, whole, tmp_path) -> None:
    with interrupted_after(steps_before(random_log, 3) + 1):
        fit(random_log, Runtime(seed=3, checkpoint=tmp_path))
    with counted_steps() as n_steps:
        resumed = fit(random_log, Runtime(seed=3, checkpoint=tmp_path, resume=True))
    assert n_steps() == steps_before(random_log, 4) - steps_before(random_log, 3)
    assert_equal(state(resumed), state(whole[0]))


def test_resuming_a_finished_fit_changes_nothing(random_log, whole) -> None:
    before = (whole[1] / "fit.safetensors").read_bytes()
    again = fit(random_log, Runtime(seed=3, checkpoint=whole[1], resume=True))
    assert_equal(state(again), state(whole[0]))
    assert again.curve == whole[0].curve
    assert (whole[1] / "fit.safetensors").read_bytes() == before


def test_without_resume_a_fit_starts_anew(random_log, whole, tmp_path) -> None:
    fit(random_log, Runtime(seed=9, checkpoint=tmp_path), epochs=1)
    fresh = fit(random_log, Runtime(seed=3, checkpoint=tmp_path))
    assert_same_fit(fresh, whole[0], tmp_path, whole[1])


def test_a_checkpoint_changes_nothing_that_is_learned(random_log, whole) -> None:
    assert_equal(state(fit(random_log, Runtime(seed=3))), state(whole[0]))


def test_without_a_directory_there_is_nothing_to_resume(random_log) -> None:
    with pytest.raises(ConfigError) as caught:
        fit(random_log, Runtime(resume=True))
    assert str(caught.value) == "resume needs the checkpoint directory of the interrupted run"


# --- refused ------------------------------------------------------------------------------------


def larger_catalog(log: SequenceDataset) -> SequenceDataset:
    more = Catalog(pl.Series("item_id", np.arange(1, 40)), log.catalog.n_users)
    return SequenceDataset.from_offsets(log.items, log.offsets, more)


def other_items(log: SequenceDataset) -> SequenceDataset:
    items = log.items.copy()
    items[0] = items[0] % 25 + 1
    return SequenceDataset.from_offsets(items, log.offsets, log.catalog)


@pytest.mark.parametrize(
    "settings, surroundings, change, what",
    [
        ({"dim": 16}, {}, None, "config"),
        ({"epochs": 5}, {}, None, "config"),
        ({}, {"seed": 4}, None, "seed"),
        ({}, {"precision": "bf16"}, None, "precision"),
        ({}, {}, other_items, "data"),
        ({}, {}, larger_catalog, "data"),
    ],
)
def test_the_checkpoint_of_another_fit_is_refused(
    random_log, whole, settings, surroundings, change, what
) -> None:
    log = random_log if change is None else change(random_log)
    before = (whole[1] / "fit.safetensors").read_bytes()
    given = {"seed": 3, "checkpoint": whole[1], "resume": True} | surroundings
    with pytest.raises(ConfigError, match=rf"another run \(its {what} differs\).*without --resume"):
        fit(log, Runtime(**given), **settings)
    assert (whole[1] / "fit.safetensors").read_bytes() == before


def test_the_checkpoint_of_another_method_is_refused(random_log, whole) -> None:
    runtime = Runtime(seed=3, checkpoint=whole[1], resume=True)
    with pytest.raises(ConfigError, match=r"another run \(its method differs\)"):
        BPR(dim=8).fit(random_log, runtime=runtime)


def test_other_flags_are_other_data(random_log, tmp_path) -> None:
    train = leave_one_out(random_log).train.compact()
    runtime = Runtime(checkpoint=tmp_path)
    SASRec(**SETTINGS | {"epochs": 1}).fit(train, runtime=runtime)
    flags = np.zeros(len(train.items), dtype=bool)
    flags[train.offsets[:-1]] = True
    flagged = SequenceDataset.from_offsets(
        train.items, train.offsets, train.catalog, synthetic=flags
    )
    with pytest.raises(ConfigError, match="its data differs"):
        SASRec(**SETTINGS | {"epochs": 1}).fit(flagged, runtime=replace(runtime, resume=True))


def test_a_view_and_a_copy_of_it_are_the_same_data(random_log, tmp_path) -> None:
    train = leave_one_out(random_log).train
    first = SASRec(**SETTINGS | {"epochs": 1})
    first.fit(train, runtime=Runtime(checkpoint=tmp_path))
    resumed = SASRec(**SETTINGS | {"epochs": 1})
    resumed.fit(train.compact(), runtime=Runtime(checkpoint=tmp_path, resume=True))
    assert resumed.curve == first.curve


def test_a_checkpoint_of_another_curriculum_is_not_resumed(tmp_path) -> None:
    data = SequenceDataset.from_lists([[1, 2], [3, 4]])
    items = np.tile(data.items, (2, 1))
    plain, weighted = (
        data.with_copies(AugmentedCopies(items, np.zeros((2, 2), dtype=np.float32), schedule))
        for schedule in (CurriculumSchedule(), CurriculumSchedule(weight=0.5))
    )
    SASRec(**SETTINGS).fit(plain, runtime=Runtime(checkpoint=tmp_path))
    with pytest.raises(ConfigError, match="its data differs"):
        SASRec(**SETTINGS).fit(weighted, runtime=Runtime(checkpoint=tmp_path, resume=True))


@pytest.mark.parametrize("harm", ["truncated", "empty", "noise"])
def test_a_damaged_checkpoint_is_refused(random_log, whole, tmp_path, harm) -> None:
    good = (whole[1] / "fit.safetensors").read_bytes()
    bad = {"truncated": good[:-100], "empty": b"", "noise": os.urandom(5000)}[harm]
    (tmp_path / "fit.safetensors").write_bytes(bad)
    with pytest.raises(DataError, match=r"damaged .*start without --resume"):
        fit(random_log, Runtime(seed=3, checkpoint=tmp_path, resume=True))


def test_nothing_half_written_is_left_where_a_checkpoint_was(
    random_log, whole, tmp_path, monkeypatch
) -> None:
    fit(random_log, Runtime(seed=3, checkpoint=tmp_path), epochs=1)
    before = (tmp_path / "fit.safetensors").read_bytes()

    def fails(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(DataError, match=r"fit\.safetensors cannot be written: disk full"):
        fit(random_log, Runtime(seed=4, checkpoint=tmp_path), epochs=1)
    assert (tmp_path / "fit.safetensors").read_bytes() == before
    assert [path.name for path in checkpoint_files(tmp_path)] == ["fit.safetensors"]


def test_checkpoints_of_all_phases_are_listed(tmp_path) -> None:
    for name in ("b/fit.safetensors", "a/fit.safetensors", "a/.fit.partial", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [path.relative_to(tmp_path).as_posix() for path in checkpoint_files(tmp_path)]
    assert found == ["a/fit.safetensors", "b/fit.safetensors"]


# --- what else is put back ----------------------------------------------------------------------


def fit_positions(log: SequenceDataset, runtime: Runtime) -> SASRec:
    """Two updates a batch: all by the next item, then the distances alone by their size."""
    model = SASRec(**SETTINGS | {"epochs": 3})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.take(log.catalog)
    predict = next_item_loss(model.config, log)
    positions = model.encoder.distances.weight

    def loss(batch: Any) -> torch.Tensor:
        return predict(batch, model.encode(batch.items, batch.lengths), model.table)

    updates = [
        Update(loss, [p for p in model.parameters() if p is not positions]),
        Update(lambda batch: loss(batch) + positions.square().sum(), [positions]),
    ]
    model.curve = train_next_item(model, updates, log, None, runtime, scorer=model.scorer)
    return model


def test_several_updates_resume_to_the_same_parameters(random_log, tmp_path) -> None:
    uninterrupted = fit_positions(random_log, Runtime())
    n_steps = 2 * 3 + 1  # two updates of each batch of the first epoch, one of the second
    with interrupted_after(n_steps):
        fit_positions(random_log, Runtime(checkpoint=tmp_path))
    assert len(json.loads(checkpoint(tmp_path)[1]["records"])) == 1
    resumed = fit_positions(random_log, Runtime(checkpoint=tmp_path, resume=True))
    assert_equal(state(resumed), state(uninterrupted))
    assert without_seconds(resumed.curve) == without_seconds(uninterrupted.curve)


@pytest.mark.parametrize("method", [ACVAE, BERT4Rec, BPR, NeuMF])
def test_pairs_and_several_updates_resume_to_the_same_parameters(
    random_log, tmp_path, method
) -> None:
    split = leave_one_out(random_log)

    def fitted(**surroundings: Any) -> Recommender:
        settings = {"dim": 8, "batch_size": 32, "learning_rate": 0.02, "epochs": 3}
        runtime = Runtime(seed=3, **surroundings)
        return method(**settings).fit(split.train, split.valid, runtime)

    with counted_steps() as n_steps:
        uninterrupted = fitted(checkpoint=tmp_path / "whole")
    with interrupted_after(n_steps() // 2 + 1):
        fitted(checkpoint=tmp_path / "cut")
    resumed = fitted(checkpoint=tmp_path / "cut", resume=True)
    assert_same_fit(resumed, uninterrupted, tmp_path / "cut", tmp_path / "whole")


SIMDIFFREC = {
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "dropout": 0.4,
    "batch_size": 16,
    "learning_rate": 0.02,
    "epochs": 2,
    "k_noise": 2,
    "k_sample": 2,
    "num_train_timesteps": 40,
}


def test_what_is_prepared_is_prepared_again_after_a_resume(random_log, tmp_path) -> None:
    def fitted(runtime: Runtime) -> SimDiffRec:
        split = leave_one_out(random_log)
        return SimDiffRec(**SIMDIFFREC).fit(split.train, split.valid, runtime)

    uninterrupted = fitted(Runtime(seed=3))
    with interrupted_after(steps_before(random_log, 1) + 1):
        fitted(Runtime(seed=3, checkpoint=tmp_path))
    resumed = fitted(Runtime(seed=3, checkpoint=tmp_path, resume=True))
    assert_equal(state(resumed), state(uninterrupted))
    assert without_seconds(resumed.curve) == without_seconds(uninterrupted.curve)
    assert uninterrupted.neighbors[1:].all()
    assert torch.equal(resumed.neighbors, uninterrupted.neighbors)


def test_what_a_prepared_number_was_is_found_again(tmp_path) -> None:
    def trained(stop: int | None = None, **surroundings: Any) -> tuple[float, float]:
        model, double = pair(), [0.0]

        def prepare() -> None:
            double[0] = 2 * model.a.item()

        def batches(epoch: int) -> list[torch.Tensor]:
            if epoch == stop:
                raise KeyboardInterrupt
            return [torch.zeros(1)]

        train(
            model,
            lambda batch: model.a * double[0] + model.b,
            batches,
            n_batches=1,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.25),
            epochs=3,
            runtime=Runtime(**surroundings),
            data=TWO_USERS,
            prepare=prepare,
        )
        return model.a.item(), model.b.item()

    # a halves in every epoch: a - 2 a / 4
    assert trained() == (0.125, 1.25)
    with pytest.raises(KeyboardInterrupt):
        trained(2, checkpoint=tmp_path)
    assert trained(checkpoint=tmp_path, resume=True) == (0.125, 1.25)


def test_a_rate_that_falls_to_nothing_goes_on_where_it_was(tmp_path) -> None:
    said = []

    def trained(stop: int | None = None, **surroundings: Any) -> float:
        model = pair()

        def batches(epoch: int) -> list[torch.Tensor]:
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
            runtime=Runtime(**surroundings),
            data=TWO_USERS,
            rate=lambda epoch, batch: 1 - epoch / 4,
        )
        return model.a.item()

    assert trained() == 1 - 2 * (0.5 + 0.375 + 0.25 + 0.125)
    assert said == [1.0, 0.0, -0.75, -1.25]
    with pytest.raises(KeyboardInterrupt):
        trained(2, checkpoint=tmp_path)
    said.clear()
    assert trained(checkpoint=tmp_path, resume=True) == -1.5
    assert said == [-0.75, -1.25]


def test_early_stopping_goes_on_counting_after_a_resume(tmp_path) -> None:
    metrics = [0.1, 0.3, 0.2, 0.2, 0.9]

    def trained(stop: int | None = None, **surroundings: Any) -> tuple[list[float | None], float]:
        model, now = pair(), [0]

        def batches(epoch: int) -> list[torch.Tensor]:
            now[0] = epoch
            if epoch == stop:
                raise KeyboardInterrupt
            return [torch.zeros(1)]

        records = train(
            model,
            lambda batch: model.a * 1.0,
            batches,
            n_batches=1,
            optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
            epochs=5,
            runtime=Runtime(**surroundings),
            data=TWO_USERS,
            validate=lambda: metrics[now[0]],
            patience=2,
        )
        return [record.valid for record in records], model.a.item()

    # a is 1 less after every epoch; the second is the best
    assert trained() == ([0.1, 0.3, 0.2, 0.2], -1.0)
    with pytest.raises(KeyboardInterrupt):
        trained(3, checkpoint=tmp_path)
    assert trained(checkpoint=tmp_path, resume=True) == ([0.1, 0.3, 0.2, 0.2], -1.0)
