"""How generated items are used, through plans, runs and the cells of studies."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffuserec.data import Store
from diffuserec.errors import ConfigError
from diffuserec.models.base import Runtime
from diffuserec.models.methods import load_augmenter
from diffuserec.models.settings import UseSettings
from diffuserec.studies.cells import Cell
from diffuserec.studies.run_directory import open_run, read_curve
from diffuserec.studies.run_file import Plan
from diffuserec.studies.train_run import methods_of, train_run
from diffuserec.studies.tune import search_space

RUNTIME = Runtime(device="cpu", progress=False)
USE = {"use_weight": 0.5, "use_dropout": 0.3, "use_average": True}
TINY = {"epochs": 2, "dim": 8}
SOFT = {"use_place": "nowhere", "use_soft": 0.2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "store"
    Store(n_users=60, n_items=40, seed=0).dataset().save(path)
    return path


def cell(settings: dict[str, Any]) -> Cell:
    plan = Plan("", "sasrec", TINY, "random", settings)
    return Cell("a line", "store", plan, "fingerprint", "full", "fp32")


def test_one_fitted_augmenter_serves_all_uses_of_its_items(data: Path, tmp_path: Path) -> None:
    plain, used = cell({"n_items": 2}), cell({"n_items": 2, **USE})
    assert used.augmenter_key == plain.augmenter_key != cell({"n_items": 3}).augmenter_key
    assert used.augmenter_plan == plain.augmenter_plan
    assert len({plain.run_key, used.run_key, cell({"n_items": 2, "use_weight": 1}).run_key}) == 3
    plan = Plan(str(data), "sasrec", TINY, "random", {"n_items": 2})
    first = train_run(plan, tmp_path / "first", RUNTIME, report=False).path
    other = replace(plan, augment_settings={"n_items": 2, **USE})
    run = train_run(other, tmp_path / "other", RUNTIME, augmenter_from=first, report=False)
    augmenter = load_augmenter(run.path / "augmenter")
    assert {name: getattr(augmenter.config, name) for name in USE} == USE
    trained = {name: tensor.numpy() for name, tensor in run.model.state_dict().items()}
    alone = train_run(other, tmp_path / "alone", RUNTIME, report=False).model.state_dict()
    assert all(np.array_equal(alone[name].numpy(), trained[name]) for name in trained)
    plain_model = open_run(first).model.state_dict()
    assert not all(np.array_equal(plain_model[name].numpy(), trained[name]) for name in trained)


def test_what_is_validated_is_what_is_measured_and_served(data: Path, tmp_path: Path) -> None:
    plan = Plan(str(data), "gru4rec", TINY, "random", {"n_items": 3, "use_average": True})
    run = open_run(train_run(plan, tmp_path / "run", RUNTIME, report=False).path)
    curve = read_curve(run.path / "curve.json")
    measured = run.evaluate("valid").metrics["NDCG@10"]
    assert measured == pytest.approx(max(epoch.valid or 0 for epoch in curve), abs=1e-6)
    histories = run.split.test.histories
    shown = run.augmenter.augment_for_inference(histories, 0)
    everyone = np.arange(len(histories))
    with torch.no_grad():
        mean, one, two = (
            run.model.scorer_of(part, everyone).block(slice(None))
            for part in (shown, shown.with_use(None), histories)
        )
    assert not np.allclose(one, two, atol=1e-3)
    np.testing.assert_allclose(mean[:, 1:], ((one + two) / 2)[:, 1:], atol=1e-5)
    raw = run.split.train.catalog.decode(histories[5])
    served = run.model.recommend([raw], k=5, augmenter=run.augmenter, filter_seen=False)
    best = mean[5, 1:].topk(5)
    assert served["score"].to_list() == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("markov", {}),
        ("bpr", {}),
        ("maskdiffrec", {}),
        ("blend", {"parts": ["maskdiffrec", "bpr", "markov"]}),
    ],
)
def test_uses_that_a_recommender_would_not_notice_are_refused(
    model: str, settings: dict[str, Any]
) -> None:
    for name in ("use_weight", "use_dropout"):
        plan = Plan("", model, settings, "random", {name: 0.5})
        with pytest.raises(ConfigError, match=f"{model} is not trained on next.* and {name}"):
            methods_of(plan)
    methods_of(Plan("", model, settings, "random", {"use_average": True}))


def test_a_wrong_setting_is_told_before_uses_are_searched() -> None:
    with pytest.raises(ConfigError, match="dim") as told:
        search_space(Plan("", "sasrec", {"dim": "wide"}, "random", {}))
    assert "\n" not in str(told.value)


def test_a_blend_notices_what_one_of_its_parts_does() -> None:
    methods_of(Plan("", "blend", {"parts": ["markov", "sasrec"]}, "random", {"use_weight": 0.5}))


def test_probabilities_are_asked_for_where_there_are_some() -> None:
    with pytest.raises(ConfigError, match="says nothing of how probable its items are"):
        methods_of(Plan("", "sasrec", {}, "asrep", {"use_threshold": 0.2}))
    methods_of(Plan("", "sasrec", {}, "maskdiff", {"use_threshold": 0.2}))


@pytest.mark.parametrize(
    ("augment", "settings", "message"),
    [
        ("random", {"use_soft": 0.2}, "says nothing of how probable"),
        ("random", {"use_place": "middle"}, "writes in front alone"),
        ("maskdiff", {"use_place": "middle"}, "n_condition of 2 or more"),
        ("maskdiff", {"use_place": "nowhere"}, "set use_soft or use_short"),
        ("maskdiff", {**SOFT, "use_weight": 1}, "use_weight = 1.0 has no effect with puts_items"),
        ("maskdiff", {**SOFT, "use_dropout": 0.5}, "no effect .* or a number as use_short"),
        ("maskdiff", {**SOFT, "use_threshold": 0.5}, "use_threshold = 0.5 has no effect"),
        ("maskdiff", {**SOFT, "max_history": 5}, "max_history = 5 has no effect"),
        ("random", {"use_short": 5}, "use_short = 5 has no effect with use_weight = None"),
        ("random", {"use_short": 3, "use_weight": 1, "n_condition": 3}, "leaves no target"),
        ("random", {"use_weight": 0}, "use_weight: must be greater than 0"),
        ("diff4rec", {"use_weight": 1}, "has no setting 'use_weight'"),
    ],
)
def test_uses_that_cannot_be_are_refused(
    augment: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        methods_of(Plan("", "sasrec", {}, augment, settings))


def test_tuning_searches_the_uses() -> None:
    searched = search_space(Plan("", "sasrec", {}, "maskdiff", {}))
    names = set(UseSettings.model_fields) - {"use_short", "use_place"}  # for studies
    assert {f"augment.{name}" for name in names} <= set(searched)
    assert "augment.use_threshold" not in search_space(Plan("", "sasrec", {}, "random", {}))
    chosen = {**SOFT, "use_short": 4, "use_weight": 0.3, "use_dropout": 0.5, "use_threshold": 0.1}
    methods_of(Plan("", "sasrec", {}, "maskdiff", chosen))  # all of them have an effect
    unnoticed = search_space(Plan("", "markov", {}, "random", {}))
    assert {name for name in unnoticed if ".use_" in name} == {"augment.use_average"}
