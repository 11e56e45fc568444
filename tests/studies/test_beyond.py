"""Beyond the next item: one command over real runs, its tables, pictures and refusals."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import diffuserec as dr
from diffuserec.data import Catalog
from diffuserec.errors import ConfigError
from diffuserec.evaluation import fitted_temperature, ranks_in
from diffuserec.reports.beyond import beyond_tables
from diffuserec.studies.beyond import attribute_vectors, beyond, undominated, write_beyond
from diffuserec.studies.ledger import looks, n_looks
from diffuserec.studies.run_directory import Plan, open_run
from diffuserec.studies.train_run import train_run

QUICK = {"dim": 8, "epochs": 1, "max_len": 10}


def trained(folder: Path, split: str, orders: bool, **plans: tuple) -> dict[str, Path]:
    store = dr.Store(n_users=80, n_items=40, n_categories=4, seed=1, orders=orders)
    store.dataset().save(folder / "store")
    for name, (model, settings, augment, theirs) in plans.items():
        plan = Plan(str(folder / "store"), model, settings, augment, theirs, split, seed=0)
        runtime = dr.Runtime(device="cpu", progress=False)
        train_run(plan, folder / name, runtime, report=False)
    return {name: folder / name for name in plans}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return trained(
        tmp_path_factory.mktemp("beyond"),
        "leave-last:k=2",
        orders=False,
        sasrec=("sasrec", QUICK, "maskdiff", {**QUICK, "n_items": 2}),
        diffrec=("diffrec", {**QUICK, "n_draws": 3}, None, None),
        itemgraph=("itemgraph", {}, None, None),
    )


@pytest.fixture(scope="module")
def document(runs: dict[str, Path]) -> dict:
    return beyond([runs["sasrec"], runs["diffrec"], runs["itemgraph"]], users=50)


def test_every_way_stands_beside_the_plain_answer(document: dict, runs: dict[str, Path]) -> None:
    lists = {row["method"]: row["metrics"] for row in document["lists"]["rows"]}
    assert list(lists) == [
        "sasrec + maskdiff, best items",
        "sasrec + maskdiff, rollout",
        "MaskDiff of sasrec + maskdiff, jointly, 1 step",
        "MaskDiff of sasrec + maskdiff, jointly, a step an item",
        "diffrec, best items",
        "diffrec, rollout",
        "itemgraph, best items",
        "itemgraph, rollout",
        "popularity, best items",
        "markov, best items",
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
    (best,) = (r for r in both if r["method"] == "itemgraph, best items")
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
    best = document["diversity"]["best"]
    for point, own in zip(best, expected, strict=True):
        means = {m: (cell["value"], cell["margin"]) for m, cell in point["metrics"].items()}
        assert means == {m: (cell["value"], cell["margin"]) for m, cell in own["metrics"].items()}
        assert {**point, "metrics": None} == {**own, "metrics": None}
    # and held against the plain answer
    assert document["diversity"]["against"] == "sasrec + maskdiff"
    against = next(point for point in best if point["way"] == "MMR")
    others = [point for point in best if point is not against]
    for metric in ("NDCG@10", "Diversity"):
        assert "p_holm" not in against["metrics"][metric]
        for point in others:
            found = point["metrics"][metric]["value"] - against["metrics"][metric]["value"]
            assert point["metrics"][metric]["difference"] == pytest.approx(found)
            assert 0 <= point["metrics"][metric]["p_holm"] <= 1


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_front_has_all_that_nothing_is_better_than(points: list[tuple[int, int]]) -> None:
    expected = [
        not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points
    ]
    assert undominated(np.array(points, dtype=float)).tolist() == expected


def test_the_front_is_of_accuracy_and_diversity(document: dict) -> None:
    points = document["diversity"]["points"]
    both = [[p["metrics"][m]["value"] for m in ("NDCG@10", "Diversity")] for p in points]
    assert [p["front"] for p in points] == undominated(np.array(both)).tolist()


def test_the_temperature_is_that_of_validation(document: dict, runs: dict[str, Path]) -> None:
    run = open_run(runs["diffrec"])
    index = np.sort(np.random.default_rng(0).permutation(len(run.split.valid))[:50])
    (row,) = (row for row in document["calibration"] if row["method"] == "diffrec")
    found = fitted_temperature(run.model, run.split.valid.select(index))
    assert row["temperature"] == pytest.approx(found)
    assert row["temperature"] != pytest.approx(fitted_temperature(run.model, run.split.test))


def test_a_log_without_baskets_says_so(document: dict) -> None:
    assert document["baskets"] is None
    text = beyond_tables(document)
    assert "No baskets: no user of this log ends with two items or more at one time." in text
    words = "No baskets: train the runs with --split leave-basket, which 7 users have."
    assert words in beyond_tables(document | {"n_baskets": 7})


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return trained(
        tmp_path_factory.mktemp("orders"),
        "leave-basket",
        orders=True,
        itemgraph=("itemgraph", {}, None, None),
        sasrec=("sasrec", QUICK, "maskdiff", {**QUICK, "n_items": 2}),
    )


def test_baskets_are_measured_as_sets(orders: dict[str, Path]) -> None:
    document = beyond([orders["itemgraph"], orders["sasrec"]], attribute="category")
    assert document["lists"] is None
    run, baskets = open_run(orders["itemgraph"]), document["baskets"]
    queries = run.split.test
    assert queries.following is not None
    wanted = [{item for item in row if item} for row in queries.following.tolist()]
    assert baskets["mean_size"] == pytest.approx(np.mean([len(basket) for basket in wanted]))
    assert document["n_baskets"] == len(queries)
    histories = [run.model.catalog.decode(history) for history in queries.histories]
    top = run.model.recommend(histories, k=10)
    for table, length in (("as_long", None), ("longer", 10)):
        rows = {row["method"]: row["metrics"] for row in baskets[table]["rows"]}
        assert list(rows) == [
            "itemgraph, best items",
            "itemgraph, rollout",
            "sasrec + maskdiff, best items",
            "sasrec + maskdiff, rollout",
            "MaskDiff of sasrec + maskdiff, jointly, 1 step",
            "MaskDiff of sasrec + maskdiff, jointly, a step an item",
            "popularity, best items",
            "markov, best items",
        ]
        found: dict[str, list[float]] = {name: [] for name in ("Recall", "F1", "Hit", "Jaccard")}
        for user, basket in enumerate(wanted):
            ids = top.filter(pl.col("query") == user)["item_id"][: length or len(basket)]
            made = set(run.model.catalog.encode(ids).tolist())
            both = len(made & basket)
            found["Recall"].append(both / len(basket))
            found["F1"].append(2 * both / (len(made) + len(basket)))
            found["Hit"].append(float(both > 0))
            found["Jaccard"].append(both / len(made | basket))
        for name, values in found.items():
            assert rows["itemgraph, best items"][name]["value"] == pytest.approx(np.mean(values))
            margin = 1.96 * np.std(values, ddof=1) / len(values) ** 0.5
            assert rows["itemgraph, best items"][name]["margin"] == pytest.approx(margin)
        joint = rows["MaskDiff of sasrec + maskdiff, jointly, a step an item"]
        assert {"Recall", "Jaccard"} == {name for name in joint if "p_holm" in joint[name]}
    # ten places do not fit beside an item that is seen
    assert document["left_out"]["room for more than 9 joint places"] == ["sasrec + maskdiff"]
    text = beyond_tables(document)
    assert "The last basket, by lists as long as it, against itemgraph, best items" in text
    assert f"A basket has {baskets['mean_size']:.1f} items on average." in text
    assert "No lists" not in text


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
