"""Formulas against hand-worked cases, scikit-learn and ranx."""

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from diffuserec.errors import ConfigError
from diffuserec.evaluation import (
    METRICS,
    Metric,
    list_metric,
    list_metrics,
    parse_metric,
    rank_metric,
    rank_metrics,
)

RANKS = np.array([0.0, 0.5, 4.0, 4.5, 9.5, 10.0, 5000.0])


def test_hand_worked():
    found = rank_metrics(RANKS, cutoffs=(5, 10))
    assert list(found) == ["HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR"]
    assert found["HR@5"].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert found["HR@10"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    np.testing.assert_allclose(
        found["NDCG@5"], [1, 1 / np.log2(2.5), 1 / np.log2(6), 1 / np.log2(6.5), 0, 0, 0]
    )
    np.testing.assert_allclose(found["MRR"], 1 / (RANKS + 1))


@pytest.fixture
def rankings():
    """Random scores of 60 users over 40 items without ties, targets, and their ranks."""
    generator = np.random.default_rng(0)
    scores = generator.random((60, 40))
    targets = generator.integers(0, 40, 60)
    ranks = (scores > scores[np.arange(60), targets][:, None]).sum(1).astype(float)
    return scores, targets, ranks


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_ndcg_is_that_of_scikit_learn(rankings, k):
    scores, targets, ranks = rankings
    relevant = np.eye(40)[targets]
    expected = ndcg_score(relevant, scores, k=k)
    assert rank_metrics(ranks, [k])[f"NDCG@{k}"].mean() == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_all_are_those_of_ranx(rankings, monkeypatch):
    numba = pytest.importorskip("numba")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)  # compiling takes half a minute
    ranx = pytest.importorskip("ranx")
    scores, targets, ranks = rankings
    qrels = ranx.Qrels({f"q{u}": {f"i{t}": 1} for u, t in enumerate(targets)})
    run = ranx.Run(
        {f"q{u}": {f"i{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)}
    )
    names = {"hit_rate@5": "HR@5", "recall@10": "HR@10", "ndcg@10": "NDCG@10", "mrr": "MRR"}
    expected = ranx.evaluate(qrels, run, list(names))
    found = rank_metrics(ranks, [5, 10])
    for theirs, ours in names.items():
        assert found[ours].mean() == pytest.approx(expected[theirs], abs=1e-9), ours


def test_list_metrics_by_hand():
    popularity = np.array([0, 4, 2, 1, 1, 0])
    top_items = np.array([[1, 2], [1, 3], [1, -1], [-1, -1]])
    # exposures 3, 1, 1, 0, 0; surprises 1, 2, 3 bits; lists of 1.5, 2, 1 bits and an empty one
    found = list_metrics(top_items, popularity)
    assert found == pytest.approx({"Coverage@2": 0.6, "Gini@2": 14 / 25, "Novelty@2": 1.5})


def test_an_item_never_trained_on_surprises_like_one_seen_once():
    popularity = np.array([0, 7, 1, 0])
    assert list_metrics(np.array([[2]]), popularity)["Novelty@1"] == pytest.approx(3.0)
    assert list_metrics(np.array([[3]]), popularity)["Novelty@1"] == pytest.approx(3.0)


def test_gini_has_its_ends():
    popularity = np.ones(101, dtype=np.int64)
    even = np.arange(1, 101).reshape(50, 2)
    same = np.ones((50, 1), dtype=np.int64)
    assert list_metrics(even, popularity)["Gini@2"] == pytest.approx(0.0)
    assert list_metrics(same, popularity)["Gini@1"] == pytest.approx(0.99)
    assert list_metrics(np.full((3, 2), -1), popularity)["Gini@2"] == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HR@10", Metric("HR", 10)),
        ("hit@5", Metric("HR", 5)),
        ("HitRate@10", Metric("HR", 10)),
        ("hit_rate@10", Metric("HR", 10)),
        ("RECALL@20", Metric("HR", 20)),
        ("ndcg@10", Metric("NDCG", 10)),
        ("mrr", Metric("MRR")),
        ("gini@10", Metric("Gini", 10)),
    ],
)
def test_parse_metric(text, expected):
    assert parse_metric(text) == expected
    assert parse_metric(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("precision@10", "no metric 'precision@10'; there are: .*HR@k, MRR, NDCG@k"),
        ("NDGC@10", "did you mean 'ndcg'"),
        ("HR", "'HR' needs a list length of at least 1, such as 'HR@10'"),
        ("HR@0", "needs a list length"),
        ("MRR@10", "write 'MRR', not 'MRR@10'"),
        ("@10", "no metric '@10'"),
    ],
)
def test_unknown_metrics_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_metric(text)


def test_a_metric_of_lists_is_not_one_of_ranks():
    with pytest.raises(ConfigError, match="Gini@10 is not a metric of the target's rank"):
        Metric("Gini", 10).per_user(RANKS)


def test_a_metric_of_ones_own_is_found_by_its_name():
    @rank_metric("TestPrecision")
    def precision(ranks, k):
        return (ranks < k) / k

    @list_metric("TestShown")
    def shown(top_items, popularity):
        return float((top_items > 0).sum())

    assert parse_metric("testprecision@4") == Metric("TestPrecision", 4)
    found = Metric("TestPrecision", 4).per_user(RANKS)
    np.testing.assert_allclose(found, [0.25, 0.25, 0, 0, 0, 0, 0])
    top_items = np.array([[1, 2, 3], [2, -1, -1]])
    assert (
        Metric("TestShown", 2).of_lists(top_items, np.ones(4, dtype=np.int64)) == 3
    )  # cut to two items
    assert (Metric("TestPrecision", 1).is_per_user, Metric("TestShown", 1).is_per_user) == (
        True,
        False,
    )
    with pytest.raises(
        ConfigError, match="TestPrecision@1 is a metric of the target's rank, not of"
    ):
        Metric("TestPrecision", 1).of_lists(top_items, np.ones(4, dtype=np.int64))
    with pytest.raises(ConfigError, match="'HR' is taken"):
        rank_metric("HR")(precision.of_ranks)
    with pytest.raises(ConfigError, match="a metric is a Formula"):
        METRICS.register("TestNothing", precision.of_ranks)
