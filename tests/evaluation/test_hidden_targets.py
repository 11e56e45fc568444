"""A target that may not be shown is a miss at every list length, however few items there are."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from diffuserec.data import Catalog, Queries, SequenceDataset, leave_one_out
from diffuserec.errors import ConfigError
from diffuserec.evaluation import evaluate, load_evaluation, rank_metric
from diffuserec.models.retrieval import Matrix, allowed_mask, search
from diffuserec.recommenders.popularity import Popularity
from diffuserec.training import validation

GAINS = ["HR@1", "HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20", "NDCG@1000", "MRR"]


def log_of(n_items: int, repeats: list[bool]) -> SequenceDataset:
    """A user each, who takes the items in turn and at last one had before, or the one left over."""
    catalog = Catalog(pl.Series("item_id", range(n_items)), len(repeats))
    sequences = []
    for user, repeated in enumerate(repeats):
        items = [(user + step) % n_items + 1 for step in range(n_items)]
        # the item before the last is that of validation, and repeats or not as the last does
        sequences.append([*items, items[0], items[1]] if repeated else items)
    return SequenceDataset.from_lists(sequences, catalog)


@pytest.mark.parametrize("n_items", [3, 8, 12, 30])
@pytest.mark.parametrize("part", ["test", "valid"])
def test_only_repeats_make_every_gain_zero(n_items, part):
    split = leave_one_out(log_of(n_items, [True] * 10))
    model = Popularity().fit(split.train)
    queries = getattr(split, part)
    found = evaluate(model, queries, cutoffs=[1, 5, 10, 20, 1000])
    assert {name: found.metrics[name] for name in GAINS} == dict.fromkeys(GAINS, 0.0)
    assert found.groups.filter(pl.col("metric").is_in(GAINS))["value"].sum() == 0
    shown = evaluate(model, queries, cutoffs=[1000], filter_seen=False)
    assert shown.metrics["HR@1000"] == 1


@pytest.mark.parametrize("candidates", ["full", "uniform:1", "uniform:5", "uniform:15"])
def test_repeats_do_not_gain_beside_targets_that_can_be_shown(candidates):
    generator = np.random.default_rng(0)
    repeats = [bool(user % 2) for user in range(40)]
    catalog = Catalog(pl.Series("item_id", range(60)), 40)
    histories = [(generator.permutation(20)[:12] + 1).tolist() for _ in repeats]
    targets = np.array([h[3] if again else 30 for h, again in zip(histories, repeats, strict=True)])
    fresh = ~np.array(repeats)
    queries = Queries(SequenceDataset.from_lists(histories, catalog), targets)
    model = Popularity().fit(queries.histories)
    found = evaluate(model, queries, candidates=candidates, cutoffs=[1, 5, 10, 20, 60])
    values = found.per_user
    ranks = values["target_rank"].to_numpy()
    np.testing.assert_array_equal(np.isinf(ranks), ~fresh)
    for name in ["HR@1", "HR@60", "NDCG@60", "MRR"]:
        assert values.filter(pl.Series(~fresh))[name].sum() == 0
        assert found.metrics[name] == pytest.approx(values[name].to_numpy().sum() / 40)
    assert values.filter(pl.Series(fresh))["HR@60"].to_list() == [1.0] * int(fresh.sum())


def test_sampled_ranks_of_hidden_targets_are_infinite_at_any_number_of_candidates():
    scores = Matrix(torch.arange(6.0).repeat(3, 1))
    # item 5 is best; allowed to none but as a candidate, it stays out of reach
    allowed = allowed_mask(6, None, np.array([5]))
    targets, candidates = torch.tensor([5, 4, 1]), torch.tensor([[1, 2], [1, 2], [2, 3]])
    found = search(scores, targets=targets, candidates=candidates, allowed=allowed)
    assert found.ranks.tolist() == [float("inf"), 0.0, 3.0]
    assert found.candidate_ranks.tolist() == [float("inf"), 0.0, 2.0]
    assert found.ranks.dtype == found.candidate_ranks.dtype == torch.float64


@pytest.mark.parametrize("n_items", [3, 8, 12])
def test_validation_gives_hidden_targets_nothing(n_items):
    split = leave_one_out(log_of(n_items, [True] * 6))
    model = Popularity().fit(split.train)
    assert validation(model, model.scorer, split.valid)() == 0.0


def test_validation_counts_the_targets_that_can_be_shown():
    # the only item left over is the target of 2 of 6: NDCG 1 for each
    sequences = [[1, 2, 3, 4], [2, 3, 4, 1], *[[1, 2, 3, 3], [1, 2, 3, 1], [2, 3, 4, 2], [1, 4, 4]]]
    catalog = Catalog(pl.Series("item_id", range(4)), 6)
    queries = Queries(
        SequenceDataset.from_lists([s[:-1] for s in sequences], catalog),
        np.array([s[-1] for s in sequences]),
    )
    model = Popularity().fit(queries.histories)
    assert validation(model, model.scorer, queries)() == pytest.approx(2 / 6)


def test_saved_results_keep_infinite_ranks_and_stay_strict_json(tmp_path):
    split = leave_one_out(log_of(8, [True] * 5))
    found = evaluate(Popularity().fit(split.train), split.test)
    found.save(tmp_path)

    def refuse(text):
        raise AssertionError(text)

    for text in (found.to_json(), (tmp_path / "metrics.json").read_text(encoding="utf-8")):
        assert json.loads(text, parse_constant=refuse)["metrics"]["MRR"] == 0
    again = load_evaluation(tmp_path)
    assert again.per_user["target_rank"].is_infinite().all()
    assert again.per_user.equals(found.per_user)


def test_a_metric_that_knows_no_infinite_rank_is_refused():
    @rank_metric("TestMeanRank", has_cutoff=False)
    def mean_rank(ranks, k):
        return ranks

    split = leave_one_out(log_of(8, [True] * 5))
    model = Popularity().fit(split.train)
    with pytest.raises(ConfigError, match="TestMeanRank gives a target of rank inf the value inf"):
        evaluate(model, split.test, metrics=["TestMeanRank"])
    shown = evaluate(model, split.test, metrics=["TestMeanRank"], filter_seen=False)
    assert np.isfinite(shown.metrics["TestMeanRank"])
