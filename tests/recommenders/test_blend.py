"""Blends: probabilities pooled, weights chosen on validation, one saved model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import diffuserec as dr
from diffuserec.data import Store, histories_of
from diffuserec.models.methods import find_recommender, preset_of
from diffuserec.models.retrieval import memory_budget
from diffuserec.studies.runner import run_study
from diffuserec.studies.study import read
from diffuserec.training import validation

from ..contracts.suite import assert_same_state
from .oracles import assert_refused

QUICK = {"dim": 8, "n_layers": 1, "epochs": 2, "max_len": 10}


@pytest.fixture(scope="module")
def split() -> dr.Split:
    return dr.leave_one_out(Store(n_users=150, n_items=50, seed=0).dataset())


@pytest.fixture(scope="module")
def blend(split: dr.Split) -> dr.Blend:
    parts = ("sasrec", "markov", "popularity")
    return dr.Blend(parts=parts, settings={"sasrec": QUICK}).fit(split.train, split.valid)


def distributions(blend: dr.Blend, histories) -> list[torch.Tensor]:
    """Of SASRec, Markov and popularity, by their definitions."""
    sasrec, markov, popularity = (blend.models[name] for name in blend.config.parts)
    logits = sasrec.score(histories)[:, 1:].double()
    each = [logits.exp() / logits.exp().sum(1, keepdim=True)]
    for model in (markov, popularity):
        counts = model.score(histories)[:, 1:].double()
        each.append(counts / counts.sum(1, keepdim=True))
    return each


def test_scores_are_the_logarithmic_pool_of_the_parts_probabilities(blend, split) -> None:
    histories = histories_of(split.test.histories, np.arange(9))
    sasrec, markov, popularity = distributions(blend, histories)
    often = torch.from_numpy(np.bincount(split.train.items, minlength=51)[1:] + 1.0)
    prior = often / often.sum()
    pooled = torch.ones_like(sasrec)
    each = (sasrec, (markov + prior) / 2, (popularity + prior) / 2)
    for weight, p in zip((0.5, 0.3, 0.2), each, strict=True):
        pooled *= p**weight
    blend.weights, kept = torch.tensor([0.5, 0.3, 0.2]), blend.weights
    found = blend.score(histories)[:, 1:].double()
    blend.weights = kept
    expected = pooled / pooled.sum(1, keepdim=True)
    torch.testing.assert_close(found.softmax(1), expected, rtol=1e-4, atol=1e-7)


def test_scores_are_the_linear_pool_if_that_is_wanted(split) -> None:
    parts = ("sasrec", "markov", "popularity")
    linear = dr.Blend(parts=parts, settings={"sasrec": QUICK}, pool="linear")
    linear.fit(split.train, split.valid)
    histories = histories_of(split.test.histories, np.arange(9))
    each = distributions(linear, histories)
    expected = sum(w * p for w, p in zip(linear.weights.tolist(), each, strict=True))
    found = linear.score(histories)[:, 1:].double().exp()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("pool", ["logarithmic", "linear"])
def test_the_weights_are_the_best_of_the_last_round(split, pool) -> None:
    parts = ("sasrec", "markov", "popularity")
    blend = dr.Blend(parts=parts, settings={"sasrec": QUICK}, pool=pool)
    blend.fit(split.train, split.valid)
    assert blend.weights.sum().item() == pytest.approx(1)
    assert (blend.weights >= 0).all()
    reached = validation(blend, blend.scorer, split.valid)()
    for model in blend.models.values():
        assert reached >= validation(model, model.scorer, split.valid)() - 1e-9
    kept = blend.weights.clone()
    for number in range(3):
        for value in (0.0, 0.3, 0.6, 1.0):
            others = kept.clone()
            others[number] = 0
            if not others.any():
                continue
            blend.weights = others / others.sum() * (1 - value)
            blend.weights[number] = value
            assert validation(blend, blend.scorer, split.valid)() <= reached + 1e-9
    blend.weights = kept


def test_weights_stay_equal_where_every_target_is_hidden() -> None:
    rounds = np.random.default_rng(0).permuted(np.tile(np.arange(1, 7), (40, 1)), axis=1)
    split = dr.leave_one_out(dr.SequenceDataset.from_lists(np.tile(rounds, 2).tolist()))
    assert (split.valid.targets == rounds[:, -2]).all()  # which stands in the history, too
    blend = dr.Blend(parts=("markov", "popularity")).fit(split.train, split.valid)
    assert blend.weights.tolist() == [0.5, 0.5]


def test_choosing_weights_keeps_to_the_memory_there_is(split, monkeypatch) -> None:
    parts, held = ("markov", "itemgraph", "popularity"), []
    markov = find_recommender("markov")
    own = markov.all_scores

    def all_scores(self, histories):
        held.append(len(parts) * len(histories.users) * self.catalog.vocab_size)
        return own(self, histories)

    monkeypatch.setattr(markov, "all_scores", all_scores)
    with memory_budget(4 * 2000):
        few = dr.Blend(parts=parts).fit(split.train, split.valid).weights
    assert held
    assert max(held) <= 2000
    assert torch.equal(few, dr.Blend(parts=parts).fit(split.train, split.valid).weights)


def test_the_preset_is_the_best_row_of_the_study() -> None:
    preset, _ = preset_of(dr.Blend, None, "with_diffusion")
    study = read(Path(__file__).parents[2] / "experiments/blend.toml")
    (row,) = (row for row in study.rows if row.name == "BSARec, twice, and MaskDiffRec")
    measured, ours = dr.Blend(**row.settings).config, dr.Blend(**preset).config
    assert ours.parts == measured.parts
    budget = {"epochs": 60, "patience": 5}
    assert {part: {**ours.settings_of(part), **budget} for part in ("bsarec", "maskdiffrec")} == {
        part: measured.settings_of(part) for part in ("bsarec", "maskdiffrec")
    }


def test_a_part_of_another_version_makes_another_blend(monkeypatch) -> None:
    config = dr.Blend(parts=("sasrec", "markov")).config
    before = config.identity()
    assert "versions" not in before
    monkeypatch.setattr(find_recommender("markov"), "version", 2)
    assert config.identity() == before | {"versions": {"markov": 2}}


def test_it_is_saved_as_one_model(blend, split, tmp_path: Path) -> None:
    blend.save(tmp_path / "model")
    again = dr.load(tmp_path / "model")
    history = [split.train.catalog.decode(split.test.histories[0])]
    assert again.recommend(history).equals(blend.recommend(history))


def test_without_validation_the_weights_are_equal(split) -> None:
    model = dr.Blend(parts=("markov", "popularity")).fit(split.train)
    assert model.weights.tolist() == [0.5, 0.5]
    assert model.curve == []


def test_a_part_of_no_use_gets_no_weight(split) -> None:
    model = dr.Blend(parts=("markov", "popularity")).fit(split.train, split.valid)
    assert model.weights[0] > model.weights[1]


def test_a_second_part_of_a_kind_is_trained_from_another_seed(split) -> None:
    own = {"sasrec": QUICK, "sasrec:3": QUICK | {"n_layers": 2}}
    model = dr.Blend(parts=("sasrec", "sasrec:2", "sasrec:3"), settings=own)
    model.fit(split.train, split.valid, dr.Runtime(seed=4))
    assert [r.phase for r in model.curve] == [f"{p}: fit" for p in model.config.parts for _ in "12"]
    first, second, third = (model.models[part] for part in model.config.parts)
    alone = dr.SASRec(**QUICK).fit(split.train, split.valid, dr.Runtime(seed=4))
    assert_same_state(first, alone)
    assert not torch.equal(first.table.weight(), second.table.weight())
    assert (second.config.n_layers, third.config.n_layers) == (1, 2)


def test_blends_that_share_a_part_train_it_once(split, tmp_path: Path) -> None:
    phases: list[str] = []
    runtime = dr.Runtime(shared=tmp_path, on_epoch=lambda epoch: phases.append(epoch.phase))
    one = dr.Blend(parts=("sasrec", "markov"), settings={"sasrec": QUICK})
    other = dr.Blend(parts=("sasrec", "sasrec:2"), settings={"sasrec": QUICK})
    for model in (one, other):
        model.fit(split.train, split.valid, runtime)
    assert phases == ["sasrec: fit"] * 2 + ["sasrec:2: fit"] * 2
    assert_same_state(one.models["sasrec"], other.models["sasrec"])


def test_a_row_of_a_study_and_a_part_of_a_blend_are_trained_once(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(
        """
        title = "shared"
        data = ["store"]
        seeds = [3]
        [settings]
        sasrec = { dim = 8, n_layers = 1, epochs = 2 }
        blend.parts = ["sasrec", "markov"]
        blend.settings.sasrec = { dim = 8, n_layers = 1, epochs = 2 }
        [[rows]]
        model = ["sasrec", "blend"]
        """,
        encoding="utf-8",
    )
    Store(n_users=150, n_items=50, seed=0).dataset().save(tmp_path / "store")
    out = tmp_path / "out"
    run_study(read(file), out, tmp_path, dr.Runtime(device="cpu", progress=False), workers=1)
    kept = [path.name.split("-")[0] for path in (out / "pretrained").glob("*.safetensors")]
    assert kept.count("sasrec") == kept.count("markov") == 1
    (alone,) = (out / "runs").glob("sasrec-*")
    (blend,) = (out / "runs").glob("blend-*")
    assert_same_state(dr.load(blend).models["sasrec"], dr.load(alone))
    curve = json.loads((alone / "curve.json").read_text(encoding="utf-8"))
    assert all(epoch["validation_seconds"] > 0 for epoch in curve)
    trained = sum(epoch["seconds"] + epoch["validation_seconds"] for epoch in curve)
    for cell in (out / "cells").iterdir():  # whoever was first, both would have had to train it
        found = json.loads(cell.read_text(encoding="utf-8"))
        if found["model"] in ("sasrec", "blend"):
            assert found["seconds"]["fit_model"] >= trained > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": ("markov",)}, "two or more recommenders"),
        ({"parts": ("markov", "markov")}, "each once"),
        ({"parts": ("markov", "markov:1")}, "must be a name, or name:2"),
        ({"parts": ("markov", "markov:2", "markov:02")}, "must be a name, or name:2"),
        ({"parts": ("markov", "markov:two")}, "must be a name, or name:2"),
        ({"parts": ("markov", "blend:2")}, "a blend is no part of a blend"),
        ({"parts": ("markov", "blend")}, "a blend is no part of a blend"),
        ({"parts": ("markov", "sasrek")}, "did you mean 'sasrec'"),
        ({"settings": {"gru4rec": {}}}, "which is no part"),
        ({"settings": {"markov": {"decai": 0.3}}}, "did you mean 'decay'"),
    ],
)
def test_what_is_refused(settings, message) -> None:
    assert_refused(dr.Blend, settings, message)
