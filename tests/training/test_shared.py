"""A fit that several methods begin with is made once, and only a whole one is kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import diffuserec as dr
from diffuserec.errors import DataError
from diffuserec.models.base import Epoch, Runtime
from diffuserec.training import fit_shared

from .suite import SETTINGS, assert_equal, counted_steps, state


def fitted(log, runtime: Runtime, **settings) -> tuple[dr.SASRec, int]:
    split = dr.leave_one_out(log)
    model = dr.SASRec(**SETTINGS | {"epochs": 2} | settings)
    with counted_steps() as count:
        records = fit_shared(model, split.train, split.valid, runtime)
    assert records == model.curve
    return model, count()


def test_the_second_takes_what_the_first_has_made(random_log, tmp_path: Path) -> None:
    alone, n_steps = fitted(random_log, Runtime(seed=3))
    shared = Runtime(seed=3, shared=tmp_path)
    first, made = fitted(random_log, shared)
    second, more = fitted(random_log, shared)
    assert (made, more) == (n_steps, 0)
    for model in (first, second):
        assert_equal(state(model), state(alone))
        assert not model.training
    assert second.curve == first.curve
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("other", [{"seed": 4}, {"precision": "bf16"}, {"dim": 16}])
def test_whatever_differs_is_fitted_anew(random_log, tmp_path: Path, other: dict) -> None:
    runtime = Runtime(seed=3, shared=tmp_path)
    fitted(random_log, runtime)
    settings = {k: v for k, v in other.items() if k == "dim"}
    runtime = replace(runtime, **{k: v for k, v in other.items() if k != "dim"})
    assert fitted(random_log, runtime, **settings)[1] > 0


def test_other_data_is_fitted_anew(random_log, tmp_path: Path) -> None:
    runtime = Runtime(seed=3, shared=tmp_path)
    fitted(random_log, runtime)
    assert fitted(random_log.select(np.arange(20)), runtime)[1] > 0


def test_a_method_without_counts_is_kept(random_log, tmp_path: Path) -> None:
    runtime = Runtime(seed=3, shared=tmp_path)
    settings = {"window": 0, "dim": 8, "epochs": 1, "max_len": 8}
    models = [dr.MaskDiffRec(**settings) for _ in range(2)]
    for model in models:
        fit_shared(model, random_log, None, runtime)
    assert_equal(*map(state, models))


def test_a_fit_that_was_stopped_is_not_kept(random_log, tmp_path: Path) -> None:
    def stop(epoch: Epoch) -> bool:
        return True

    stopped, few = fitted(random_log, Runtime(seed=3, shared=tmp_path, on_epoch=stop))
    assert len(stopped.curve) == 1
    assert fitted(random_log, Runtime(seed=3, shared=tmp_path))[1] == 2 * few


def test_a_damaged_file_is_named(random_log, tmp_path: Path) -> None:
    runtime = Runtime(seed=3, shared=tmp_path)
    fitted(random_log, runtime)
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1  # a bit of a weight
    for damaged in (whole[:100], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"\.safetensors is damaged: remove it"):
            fitted(random_log, runtime)


def test_augmenters_that_differ_later_share_their_pretraining(random_log, tmp_path: Path) -> None:
    split = dr.leave_one_out(random_log)
    settings = {
        "dim": 64,
        "n_layers": 1,
        "n_heads": 2,
        "epochs": 1,
        "pretrain_epochs": 1,
        "n_items": 2,
    }
    tables = []
    for guidance_scale in (0.0, 1.0):
        augmenter = dr.DiffuASR(**settings, guidance_scale=guidance_scale)
        augmenter.fit(split.train, split.valid, Runtime(seed=3, shared=tmp_path))
        tables.append(augmenter.pretrained.table.embeddings())
    assert torch.equal(*tables)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
