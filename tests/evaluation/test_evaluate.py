"""The protocol is kept: every user, whatever the batch, seen items hidden or not."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from diffuserec.data import (
    Catalog,
    Queries,
    SequenceDataset,
    leave_one_out,
    load_dataset,
    read_log,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import (
    check_consistency,
    evaluate,
    list_metrics,
    load_evaluation,
    rank,
    rank_metric,
    uniform_candidates,
)
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.config import Settings
from diffuserec.models.methods import find_recommender
from diffuserec.models.recommender import ScoreRecommender
from diffuserec.models.retrieval import seen_items


class LastItem(ScoreRecommender):
    """Scores every item by a fixed table, looked up by the newest item."""

    class Config(Settings):
        kind: str = "random"
        max_len: int = 7

    config: Config

    def build(self, catalog: Catalog) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (catalog.vocab_size, catalog.vocab_size)
        self.register_buffer("table", torch.randint(-9, 9, shape, generator=generator).float())
        if self.config.kind == "equal":
            self.table = torch.zeros(shape)
        if self.config.kind == "impossible":
            self.table = torch.full(shape, -torch.inf)
        if self.config.kind == "nan":
            self.table[3, 2] = torch.nan

    def learn(self, train: Any, valid: Any, runtime: Any) -> list[Any]:
        return []

    def all_scores(self, histories: Any) -> torch.Tensor:
        assert not self.training
        newest = histories.items[torch.arange(len(histories.users)), histories.lengths - 1]
        return self.table[newest]


class AddItem(Augmenter):
    """Puts item 1 in front of every history."""

    def build(self, catalog: Catalog) -> None:
        """Nothing to make."""

    def learn(self, train: Any, valid: Any, runtime: Any) -> list[Any]:
        return []

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        index = np.arange(len(dataset))
        return dataset.prepend(np.ones((len(index), 1), dtype=np.int32), index)


@pytest.fixture(scope="module")
def split():
    generator = np.random.default_rng(1)
    sequences = [generator.integers(1, 51, n).tolist() for n in generator.integers(3, 30, 150)]
    items = pl.Series("item_id", [f"B{number:03}" for number in range(1, 51)])
    users = pl.Series("user_id", [f"u{number}" for number in range(150)])
    return leave_one_out(SequenceDataset.from_lists(sequences, Catalog(items, 150, users)))


@pytest.fixture(scope="module")
def model(split):
    return LastItem().fit(split.train)


def by_hand(model, queries, filter_seen):
    """Ranks one user at a time, by sorting."""
    ranks = []
    for number, target in enumerate(queries.targets):
        history = queries.histories[number]
        scores = model.table[int(history[-1])].numpy().copy()
        scores[0] = -np.inf
        if filter_seen:
            scores[history] = -np.inf
        if scores[target] == -np.inf:
            ranks.append(np.inf)
            continue
        ranks.append(stats.rankdata(-scores, method="average")[target] - 1)
    return np.array(ranks, dtype=float)


@pytest.mark.parametrize("filter_seen", [True, False])
def test_ranks_are_those_of_sorting_user_by_user(model, split, filter_seen):
    found = evaluate(model, split.test, filter_seen=filter_seen)
    ranks = found.per_user["target_rank"].to_numpy()
    np.testing.assert_array_equal(ranks, by_hand(model, split.test, filter_seen))
    assert found.metrics["HR@10"] == np.mean(ranks < 10)
    assert found.metrics["MRR"] == pytest.approx(np.mean(1 / (ranks + 1)))
    assert check_consistency({"model": found.metrics}, decimals=None) == []


@pytest.mark.parametrize("candidates", ["full", "uniform:10"])
def test_nothing_depends_on_the_batch(model, split, candidates):
    one, *others = (
        evaluate(model, split.test, candidates=candidates, batch_size=size) for size in (1, 7, 999)
    )
    for other in others:
        assert one.per_user.equals(other.per_user)
        assert one.metrics == other.metrics


@pytest.mark.parametrize("candidates", ["full", "uniform:10"])
def test_nothing_depends_on_the_order_of_users(model, split, candidates):
    order = np.random.default_rng(0).permutation(len(split.test))
    permuted = Queries(split.test.histories.select(order), split.test.targets[order])
    one = evaluate(model, split.test, candidates=candidates)
    other = evaluate(model, permuted, candidates=candidates)
    assert one.per_user[order.tolist()].equals(other.per_user)
    assert one.metrics == pytest.approx(other.metrics)


def test_equal_scores_put_everyone_in_the_middle(split):
    model = LastItem(kind="equal").fit(split.train)
    found = evaluate(model, split.test, filter_seen=False)
    assert set(found.per_user["target_rank"]) == {24.5}
    # and their top lists are the first items, whoever asks
    assert found.metrics["Coverage@10"] == pytest.approx(10 / 50)


def test_an_impossible_item_stays_apart_from_a_hidden_one(split):
    model = LastItem(kind="impossible").fit(split.train)
    found = evaluate(model, split.test)
    ranks = found.per_user["target_rank"].to_numpy()
    for number, target in enumerate(split.test.targets):
        seen = set(split.test.histories[number].tolist())
        expected = np.inf if target in seen else (50 - len(seen) - 1) / 2
        assert ranks[number] == expected


def test_seen_targets_miss_when_hidden_and_the_result_says_so(model, split):
    found = evaluate(model, split.test)
    repeats = found.per_user.filter(pl.col("target_rank").is_infinite())
    for metric in ("HR@20", "NDCG@20", "MRR"):
        assert repeats[metric].sum() == 0
    assert len(repeats) == round(split.test.repeat_share * len(split.test)) > 0
    assert "of the targets are already in their own history" in found.repeat_note
    assert evaluate(model, split.test, filter_seen=False).repeat_note is None


def test_top_lists_hold_nothing_seen(model, split):
    ranking = rank(model, split.test, list_length=20)
    found = seen_items(split.test.histories, np.arange(len(split.test)))
    seen = set(zip(found.owner.tolist(), found.items.tolist(), strict=True))
    assert seen == {
        (number, int(item))
        for number, history in enumerate(split.test.histories)
        for item in history
    }
    lists = ranking.top_items.tolist()
    shown = {(number, item) for number, top in enumerate(lists) for item in top}
    assert not seen & shown


def test_synthetic_items_are_context_and_not_seen(model, split):
    augmenter = AddItem().fit(split.train)
    plain = evaluate(model, split.test)
    found = evaluate(model, split.test, augmenter=augmenter)
    assert found.method == "lastitem + additem"
    # the newest item is the same, and item 1 stays recommendable
    assert plain.per_user.equals(found.per_user)


def test_empty_histories_are_answered_by_popularity(split):
    model = LastItem().fit(split.train)
    histories = SequenceDataset.from_lists([[], [4]], split.train.catalog, users=[5, 6])
    best = int(model.popularity[1:].argmax()) + 1
    found = evaluate(model, Queries(histories, np.array([best, 4])), filter_seen=False)
    assert found.per_user["target_rank"][0] == 0
    assert found.per_user["user_id"].to_list() == ["u5", "u6"]
    augmented = evaluate(
        model, Queries(histories, np.array([best, 4])), augmenter=AddItem().fit(split.train)
    )
    assert augmented.per_user["history_length"].to_list() == [0, 1]


def test_nan_scores_name_method_and_user(split):
    model = LastItem(kind="nan").fit(split.train)
    histories = SequenceDataset.from_lists([[4], [9, 3]], split.train.catalog, users=[5, 6])
    queries = Queries(histories, np.array([7, 8]))
    with pytest.raises(DataError, match="lastitem gives user 'u6' scores that are not num"):
        evaluate(model, queries)


def test_per_user_frame(model, split):
    found = evaluate(model, split.test, cutoffs=[10]).per_user
    assert found.columns == [
        "user",
        "user_id",
        "history_length",
        "history_group",
        "target",
        "target_count",
        "popularity_group",
        "target_rank",
        "HR@10",
        "NDCG@10",
        "MRR",
    ]
    first = found.row(0, named=True)
    assert first["user_id"] == "u0"
    assert first["target"] == f"B{split.test.targets[0]:03}"
    assert first["history_length"] == len(split.test.histories[0])
    assert first["target_count"] == np.sum(split.train.items == split.test.targets[0])


def test_further_metrics_are_measured_by_name(model, split):
    @rank_metric("TestDecile", has_cutoff=False)
    def decile(ranks, k):
        return np.floor(np.minimum(ranks, 50) / 5)

    found = evaluate(model, split.test, metrics=["testdecile", "hr@3", "Gini@4"], list_length=6)
    ranks = found.per_user["target_rank"].to_numpy()
    deciles = np.floor(np.minimum(ranks, 50) / 5)
    np.testing.assert_array_equal(found.per_user["TestDecile"], deciles)
    assert found.metrics["TestDecile"] == pytest.approx(deciles.mean())
    assert found.metrics["HR@3"] == np.mean(ranks < 3)
    top_items = rank(model, split.test, list_length=6).top_items[:, :4]
    popularity = model.popularity.numpy()
    assert found.metrics["Gini@4"] == list_metrics(top_items, popularity)["Gini@4"]
    assert "Gini@4" not in found.per_user.columns
    with pytest.raises(ConfigError, match="no metric 'hrr@3'"):
        evaluate(model, split.test, metrics=["hrr@3"])


def test_groups_add_up(model, split):
    found = evaluate(model, split.test)
    for _, part in found.groups.filter(metric="HR@10").group_by("grouping"):
        assert part["n_users"].sum() == 150
        mean = (part["n_users"] * part["value"]).sum() / 150
        assert mean == pytest.approx(found.metrics["HR@10"])


def test_protocol_line(model, split):
    facts = {"split": "leave-one-out test", "filters": "5-core", "n_too_short": 3}
    found = evaluate(model, split.test, dataset_name="toy", seed=4, facts=facts)
    assert str(found.protocol) == (
        "dataset toy · split leave-one-out test · candidates full of 50 items · "
        "seen items hidden · ties mid-rank · users 150, too short 3 · filters 5-core · "
        f"max_len 7 · seed 4 · repeats {split.test.repeat_share:.1%}"
    )
    bare = str(evaluate(model, split.test, filter_seen=False, candidates="uniform:5").protocol)
    assert "split leave-one-out, test · candidates uniform:5 of 50 items · seen items kept" in bare
    made = Queries(split.test.histories, split.test.targets)
    assert "split not stated" in str(evaluate(model, made).protocol)


def test_a_result_in_python_says_how_it_was_measured(tmp_path):
    frame = pl.DataFrame({"user_id": ["a", "b"] * 12, "item_id": [*range(4)] * 6})
    frame.write_csv(tmp_path / "clicks.csv")
    log = read_log(tmp_path / "clicks.csv", time="none").filter(min_user=2)
    dataset = log.to_dataset()
    dataset.save(tmp_path / "data", note={"source": "clicks.csv", "filters": "user>=2"})
    for name, data in (("clicks.csv", dataset), ("data", load_dataset(tmp_path / "data"))):
        part = leave_one_out(data)
        line = str(evaluate(find_recommender("popularity")().fit(part.train), part.valid).protocol)
        assert line.startswith(f"dataset {name} · split leave-one-out, valid · ")
        assert "users 2, too short 0 · filters user>=2 · " in line


def test_json(model, split):
    found = evaluate(model, split.test)
    document = json.loads(found.to_json())
    assert document["metrics"] == found.metrics
    assert document["protocol"]["line"] == str(found.protocol)
    assert document["protocol"]["filter_seen"] is True
    short = document["groups"]["history"]["short"]
    assert short["n_users"] == len(found.per_user.filter(history_group="short"))
    assert 0 <= short["HR@10"] <= 1


def test_save_and_load(model, split, tmp_path):
    found = evaluate(model, split.test, dataset_name="toy", cutoffs=(3,))
    found.save(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "metrics.json",
        "per_user.parquet",
    }
    again = load_evaluation(tmp_path / "run")
    assert again.protocol == found.protocol
    assert again.metrics == found.metrics
    assert again.per_user.equals(found.per_user)
    assert again.groups.equals(found.groups)
    assert again.to_json() == found.to_json()


def test_loading_refuses_what_does_not_belong_together(model, split, tmp_path):
    with pytest.raises(DataError, match="holds no saved evaluation"):
        load_evaluation(tmp_path)
    evaluate(model, split.test).save(tmp_path)
    evaluate(model, split.valid).per_user.write_parquet(tmp_path / "per_user.parquet")
    with pytest.raises(DataError, match="does not belong to metrics"):
        load_evaluation(tmp_path)
    (tmp_path / "metrics.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="not a saved evaluation"):
        load_evaluation(tmp_path)


def test_candidates_are_new_distinct_and_each_users_own(split):
    index = np.arange(len(split.test))
    drawn = uniform_candidates(split.test, index, 10, seed=0)
    assert drawn.min() >= 1
    assert drawn.max() <= 50
    for number in index:
        own = {*split.test.histories[number].tolist(), int(split.test.targets[number])}
        assert len(set(drawn[number])) == 10
        assert not own & set(drawn[number].tolist())
    some = index[[100, 3, 77]]
    np.testing.assert_array_equal(uniform_candidates(split.test, some, 10, seed=0), drawn[some])
    assert not np.array_equal(uniform_candidates(split.test, index, 10, seed=1), drawn)


def test_candidates_are_uniform():
    n_users = 20_000
    catalog = Catalog(pl.Series("item_id", np.arange(1, 31)), n_users)
    histories = SequenceDataset.from_lists([[1, 2]] * n_users, catalog)
    queries = Queries(histories, np.full(n_users, 3))
    drawn = uniform_candidates(queries, np.arange(n_users), 5, seed=0)
    counts = np.bincount(drawn.reshape(-1), minlength=31)
    assert counts[:4].sum() == 0
    # 5 of 27 without replacement: the variance of a count is below the binomial one
    assert stats.chisquare(counts[4:]).pvalue > 0.001
    assert stats.chisquare(np.bincount(drawn[:, 0], minlength=31)[4:]).pvalue > 0.001
    pairs = np.bincount(drawn[:, 0] * 31 + drawn[:, 1], minlength=31 * 31).reshape(31, 31)[4:, 4:]
    assert stats.chisquare(pairs[~np.eye(27, dtype=bool)]).pvalue > 0.001


def test_every_free_item_can_be_drawn(split):
    queries = Queries(SequenceDataset.from_lists([[1, 2, 2]], split.train.catalog), np.array([3]))
    drawn = uniform_candidates(queries, np.array([0]), 47, seed=0)
    assert sorted(drawn[0]) == list(range(4, 51))


def test_sampled_ranks_count_only_the_candidates(model, split):
    found = evaluate(model, split.test, candidates="uniform:10", seed=3, filter_seen=False)
    drawn = uniform_candidates(split.test, np.arange(150), 10, seed=3)
    for number, target in enumerate(split.test.targets):
        scores = model.table[int(split.test.histories[number][-1])]
        mine, others = scores[target], scores[drawn[number]]
        expected = (others > mine).sum() + (others == mine).sum() / 2
        assert found.per_user["target_rank"][number] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": "uniform"}, "must be 'full' or 'uniform:N', got 'uniform'"),
        ({"candidates": "popular:10"}, "must be 'full' or 'uniform:N'"),
        ({"candidates": "uniform:0"}, "must be 'full' or 'uniform:N'"),
        ({"candidates": "uniform:49"}, "uniform:49 needs 49 items that a user does not have"),
        ({"cutoffs": ()}, "cutoffs must be positive"),
        ({"cutoffs": (0, 5)}, "cutoffs must be positive"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"facts": {"kcore": 5}}, "no protocol fact 'kcore'; there are: split, filters"),
    ],
)
def test_options_are_checked(model, split, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(model, split.test, **options)


def test_a_model_of_another_catalog_or_none_is_refused(model):
    queries = leave_one_out(SequenceDataset.from_lists([[1, 2, 3]])).test
    with pytest.raises(ConfigError, match=r"fitted to another catalog \(50 items\)"):
        evaluate(model, queries)
    with pytest.raises(ConfigError, match="not fitted"):
        evaluate(LastItem(), queries)
    with pytest.raises(DataError, match="no queries"):
        evaluate(
            LastItem().fit(queries.histories),
            Queries(queries.histories.select(np.zeros(0, dtype=np.int64)), np.zeros(0, int)),
        )
