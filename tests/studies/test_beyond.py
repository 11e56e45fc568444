"""Beyond the next item: one command over real runs, its tables, pictures and refusals."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import diffuserec as dr
from diffuserec.data import Catalog
from diffuserec.errors import ConfigError
from diffuserec.evaluation import ranks_in
from diffuserec.reports.beyond import beyond_tables
from diffuserec.studies.beyond import attribute_vectors, beyond, write_beyond
from diffuserec.studies.ledger import looks, n_looks
from diffuserec.studies.run_directory import Plan, open_run
from diffuserec.studies.train_run import train_run

QUICK = {"dim": 8, "epochs": 1, "max_len": 10}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("beyond")
    dr.Store(n_users=80, n_items=40, n_categories=4, seed=1).dataset().save(folder / "store")
    plans = {
        "sasrec": ("sasrec", QUICK, "maskdiff", {**QUICK, "n_items": 2}),
        "diffrec": ("diffrec", {**QUICK, "n_draws": 3}, None, None),
        "itemgraph": ("itemgraph", {}, None, None),
    }
    for name, (model, settings, augment, theirs) in plans.items():
        plan = Plan(
            str(folder / "store"), model, settings, augment, theirs, "leave-last:k=2", seed=0
        )
        runtime = dr.Runtime(device="cpu", progress=False)
        train_run(plan, folder / name, runtime, report=False)
    return {name: folder / name for name in plans}


@pytest.fixture(scope="module")
def document(runs: dict[str, Path]) -> dict:
    return beyond([runs["sasrec"], runs["diffrec"], runs["itemgraph"]], users=50)


def test_every_way_stands_beside_the_plain_answer(document: dict, runs: dict[str, Path]) -> None:
    lists = {row["method"]: row["metrics"] for row in document["lists"]["rows"]}
    assert list(lists) == [
        "sasrec + maskdiff, 2 best",
        "sasrec + maskdiff, rollout",
        "MaskDiff of sasrec + maskdiff, jointly in 1 step",
        "MaskDiff of sasrec + maskdiff, jointly in 2 steps",
        "diffrec, 2 best",
        "diffrec, rollout",
        "itemgraph, 2 best",
        "itemgraph, rollout",
        "popularity, 2 best",
        "markov, 2 best",
    ]
    assert "p_holm" in lists["diffrec, rollout"]["NDCG"]
    ways = {(p["method"], p["way"], p["setting"]) for p in document["diversity"]["points"]}
    assert {way for method, way, _ in ways if method == "sasrec + maskdiff"} == {
        "list", "MMR", "draws of dropout",
    }  # fmt: skip
    assert {way for method, way, _ in ways if method == "diffrec"} == {
        "list", "MMR", "draws of noise",
    }  # fmt: skip
    assert {way for method, way, _ in ways if method == "itemgraph"} == {"list", "MMR"}
    assert [row["method"] for row in document["calibration"]] == ["sasrec + maskdiff", "diffrec"]
    assert document["left_out"] == {"probabilities": ["itemgraph"], "draws": ["itemgraph"]}
    assert "users 50 of" in document["line"]
    assert n_looks(looks(runs["diffrec"]), "test") == 1


def test_the_numbers_are_those_of_the_model_alone(document: dict, runs: dict[str, Path]) -> None:
    run = open_run(runs["itemgraph"])
    index = np.sort(np.random.default_rng(0).permutation(len(run.split.test))[:50])
    queries = run.split.test.select(index)
    top = run.model.recommend(
        [run.model.catalog.decode(history) for history in queries.histories], k=10
    )
    lists = np.full((50, 10), -1)
    numbers = run.model.catalog.encode(top["item_id"])
    lists[top["query"].to_numpy(), top["rank"].to_numpy() - 1] = numbers
    hits = np.isfinite(ranks_in(lists, queries.targets)).mean()
    (own,) = (
        p
        for p in document["diversity"]["points"]
        if (p["method"], p["way"]) == ("itemgraph", "list")
    )
    assert own["metrics"]["HR@10"]["value"] == pytest.approx(hits)
    both = document["lists"]["rows"]
    (best,) = (r for r in both if r["method"] == "itemgraph, 2 best")
    assert queries.following is not None
    recall = (lists[:, :2, None] == queries.following[:, None]).any(1).mean()
    assert best["metrics"]["Recall"]["value"] == pytest.approx(recall, abs=0.02)


def test_what_is_of_equal_accuracy_is_chosen_on_validation(
    document: dict, runs: dict[str, Path]
) -> None:
    points, run = document["diversity"]["points"], open_run(runs["itemgraph"])
    index = np.random.default_rng(0).permutation(len(run.split.valid))[:50]
    hits = run.evaluate("valid").per_user["HR@10"].to_numpy()[index].mean()
    every = [p for p in points if (p["method"], p["way"]) == ("itemgraph", "list")]
    assert every[0]["valid"]["HR@10"] == pytest.approx(hits)
    enough = 0.95 * points[0]["valid"]["NDCG@10"]
    expected = []
    for way in dict.fromkeys((p["method"], p["way"]) for p in points):
        good = [
            p for p in points if (p["method"], p["way"]) == way and p["valid"]["NDCG@10"] >= enough
        ]
        expected += [max(good, key=lambda p: p["valid"]["Diversity"])] if good else []
    assert document["diversity"]["best"] == expected
    assert len(expected) > 1


def test_tables_and_pictures_are_written(document: dict, tmp_path: Path) -> None:
    write_beyond(document, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "beyond.json").read_text("utf-8")) == document
    for name in ("pareto.svg", "reliability.svg"):
        assert "diffrec" in (tmp_path / "out" / name).read_text("utf-8")
    text = beyond_tables(document, "markdown")
    for word in ("The next 2 items", "Most diverse", "draws of noise, 5", "calibration error"):
        assert word in text


def test_what_cannot_be_measured_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="users must be at least 1"):
        beyond([runs["itemgraph"]], users=0)
    with pytest.raises(ConfigError, match="none of these methods has item vectors"):
        beyond([runs["itemgraph"]])
    with pytest.raises(ConfigError, match=r"no attribute 'colour'; there are: .*category"):
        beyond([runs["itemgraph"]], attribute="colour")


def test_vectors_of_an_attribute() -> None:
    frame = pl.DataFrame({"kind": [["a"], ["b", "a"], None], "n": [3, 1, 3], "x": [0.5, 1.0, 2.0]})
    catalog = Catalog(pl.Series("item_id", [7, 8, 9]), 1, attributes=frame)
    assert attribute_vectors(catalog, "kind").tolist() == [[0, 0], [1, 0], [1, 1], [0, 0]]
    assert attribute_vectors(catalog, "n").tolist() == [[0, 0], [0, 1], [1, 0], [0, 1]]
    vectors = pl.Series("v", [[1.0, 0.0], [3.0, 2.0], None], dtype=pl.Array(pl.Float32, 2))
    catalog = Catalog(catalog.item_ids, 1, attributes=frame.with_columns(vectors))
    assert attribute_vectors(catalog, "v").tolist() == [[0, 0], [-1, -1], [1, 1], [0, 0]]
    with pytest.raises(ConfigError, match="number with fractions"):
        attribute_vectors(catalog, "x")
