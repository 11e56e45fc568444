"""The metric that chooses an epoch, by hand on a few queries: what is hidden, ties, rank 10."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from diffuserec.data import Catalog, Queries, SequenceDataset, histories_of, leave_one_out
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.recommender import ScoreRecommender
from diffuserec.models.retrieval import memory_budget
from diffuserec.recommenders.sasrec import SASRec
from diffuserec.training import validation

from .suite import SETTINGS

N_ITEMS = 15


class Fixed(ScoreRecommender):
    """Every user's scores are given; by default item 1 is best, 2 next, and 15 last."""

    def build(self, catalog: Catalog) -> None:
        self.asked: list[int] = []
        self.scores = -torch.arange(catalog.vocab_size, dtype=torch.float32).repeat(20, 1)

    def learn(self, train: Any, valid: Any, runtime: Any) -> list[Any]:
        raise NotImplementedError

    def all_scores(self, histories: Any) -> torch.Tensor:
        assert (histories.lengths > 0).all()
        assert torch.is_inference_mode_enabled()
        self.asked += histories.users.tolist()
        return self.scores[histories.users]


def fixed(scores: dict[int, list[float]] | None = None) -> Fixed:
    """The method, with other scores of items 1 to 15 for some users."""
    model = Fixed()
    model.take(Catalog(pl.Series("item_id", np.arange(1, N_ITEMS + 1)), n_users=20))
    for user, row in (scores or {}).items():
        model.scores[user, 1:] = torch.tensor(row)
    # padding would be the best item of all, were it one
    model.scores[:, 0] = 1000.0
    return model


def measured(model: Fixed, asked: list[tuple[list[int], int]], **more: Any) -> float:
    """The metric over histories, each with the item that came next."""
    histories = SequenceDataset.from_lists([history for history, _ in asked], model.catalog)
    queries = Queries(histories, np.array([target for _, target in asked], dtype=np.int64))
    return validation(model, model.scorer, queries, **more)()


def gain(rank: float) -> float:
    return 1 / math.log2(rank + 2)


@pytest.mark.parametrize(
    "history, target, rank",
    [
        ([15], 1, 0),
        ([15], 2, 1),
        ([1], 2, 0),  # what was seen is hidden
        ([3, 1, 2, 2], 4, 0),
        ([1, 2, 3, 5], 6, 1),  # 4 alone is above
        ([4, 5], 3, 2),  # what is below changes nothing
        ([15], 10, 9),  # the tenth place counts
        ([1, 15], 11, 9),
    ],
)
def test_one_query_by_hand(history, target, rank) -> None:
    assert measured(fixed(), [(history, target)]) == pytest.approx(gain(rank), rel=1e-6)


@pytest.mark.parametrize("history, target", [([15], 11), ([1], 12), ([2, 15], 14)])
def test_the_eleventh_place_and_what_follows_is_worth_nothing(history, target) -> None:
    assert measured(fixed(), [(history, target)]) == 0


def test_a_target_that_was_seen_is_worth_nothing() -> None:
    assert measured(fixed(), [([1, 2], 1)]) == 0


@pytest.mark.parametrize(
    "scores, target, rank",
    [
        # 14 items may be shown and all tie: places 0 to 13
        ([0] * 15, 7, 6.5),
        # two at the top
        ([9, 9] + [0] * 13, 2, 0.5),
        # eight above, and three on places 8 to 10: their middle is 9
        ([9] * 8 + [5] * 3 + [0] * 4, 10, 9),
        # nine above, two on places 9 and 10: 9.5 is within the first ten
        ([9] * 9 + [5] * 2 + [0] * 4, 10, 9.5),
        # nine above, three on places 9 to 11: 10 is not
        ([9] * 9 + [5] * 3 + [0] * 3, 10, None),
        # ten above, two on places 10 and 11
        ([9] * 10 + [5] * 2 + [0] * 3, 11, None),
    ],
)
def test_ties_are_worth_their_middle(scores, target, rank) -> None:
    expected = 0 if rank is None else gain(rank)
    found = measured(fixed({0: scores}), [([15], target)])
    assert found == pytest.approx(expected, rel=1e-6)


FEW = [([15], 1), ([1, 2], 4), ([15, 3], 11), ([15], 11), ([6, 5], 5)]


def test_a_metric_is_the_mean_over_all_queries_and_more_is_better() -> None:
    expected = (gain(0) + gain(1) + gain(9) + 0 + 0) / 5
    assert measured(fixed(), FEW) == pytest.approx(expected, rel=1e-6)
    # with all targets on top it is 1, the most there is
    assert measured(fixed(), [([15], 1), ([1], 2), ([2, 1], 3)]) == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("n_scores", [None, 7])
def test_batches_and_blocks_change_nothing(batch_size, n_scores) -> None:
    model, expected = fixed(), measured(fixed(), FEW)
    if n_scores is None:
        found = measured(model, FEW, batch_size=batch_size)
    else:
        with memory_budget(4 * n_scores):
            found = measured(model, FEW, batch_size=batch_size)
    assert found == pytest.approx(expected, rel=1e-6)
    assert sorted(model.asked) == [0, 1, 2, 3, 4]


def test_every_user_is_ranked_by_scores_of_their_own() -> None:
    # lengths differ, so that batches are not in the order of the queries
    rows = {user: np.roll(np.arange(15), user).tolist() for user in range(4)}
    asked = [([3, 4, 5], 15), ([9], 1), ([6, 7], 2), ([10, 11, 12, 13], 3)]
    # of user u the best item is 15 rolled on by u: each of the targets is on top
    assert measured(fixed(rows), asked) == pytest.approx(1)
    wrong = {user: rows[(user + 1) % 4] for user in rows}
    assert measured(fixed(wrong), asked) < 0.9


def test_an_empty_history_is_answered_by_popularity() -> None:
    model = fixed()
    model.popularity[:] = torch.tensor([0, 3, 1, 9, 3, *[0] * 11])
    # counts 9, 3, 3, 1 of items 3, 1, 4, 2: the method would put 1 first
    asked = [([15], 1), ([], 3), ([], 1), ([], 2)]
    expected = (gain(0) + gain(0) + gain(1.5) + gain(3)) / 4
    assert measured(model, asked) == pytest.approx(expected, rel=1e-6)
    assert model.asked == [0]
    model.asked.clear()
    assert measured(model, asked[1:]) == pytest.approx((1 + gain(1.5) + gain(3)) / 3, rel=1e-6)
    assert model.asked == []
    assert measured(model, asked, batch_size=2) == pytest.approx(expected, rel=1e-6)


def test_synthetic_items_are_not_hidden() -> None:
    model = fixed()
    histories = SequenceDataset.from_lists([[15], [1]], model.catalog)
    longer = histories.prepend(np.array([[1, 2]], dtype=np.int32), np.array([0]))
    queries = Queries(longer, np.array([1, 2]))
    assert validation(model, model.scorer, queries)() == pytest.approx(1)


def test_a_metric_is_that_of_the_method_as_it_is_now() -> None:
    model = fixed()
    histories = SequenceDataset.from_lists([[15]], model.catalog)
    metric = validation(model, model.scorer, Queries(histories, np.array([11])))
    assert metric() == 0
    model.scores[0, 11] = 100.0
    assert metric() == pytest.approx(1)


@pytest.mark.parametrize("item", [1, 15])
def test_scores_that_are_not_numbers_are_refused(item) -> None:
    model = fixed()
    model.scores[1, item] = torch.nan
    with pytest.raises(ConfigError, match=r"^the model's scores are not numbers: try a smaller"):
        measured(model, [([2], 3), ([2], 4)])


def test_an_epoch_is_not_chosen_by_nothing(random_log) -> None:
    split = leave_one_out(random_log)
    nobody = Queries(split.valid.histories.select(np.arange(0)), np.zeros(0, dtype=np.int64))
    with pytest.raises(DataError, match=r"no validation queries.*leave valid out"):
        SASRec(**SETTINGS).fit(split.train, nobody)


def test_the_epoch_that_is_kept_is_the_best_of_a_fit(random_log) -> None:
    split = leave_one_out(random_log)
    model = SASRec(**SETTINGS | {"epochs": 8, "patience": 8}).fit(split.train, split.valid)
    metrics = [record.valid for record in model.curve]
    assert max(metrics) > min(metrics)
    # by a full sort of each user's unseen items, for the model that was kept
    total = 0.0
    for user, target in enumerate(split.valid.targets):
        history = split.valid.histories[user].tolist()
        if not history:
            scores = model.popularity.float()
        else:
            alone = SequenceDataset.from_lists([history], random_log.catalog)
            scores = model.score(histories_of(alone, np.array([0])))[0]
        unseen = [item for item in range(1, 26) if item not in history]
        if target in unseen:
            above = sum(bool(scores[item] > scores[target]) for item in unseen)
            equal = sum(bool(scores[item] == scores[target]) for item in unseen) - 1
            rank = above + equal / 2
            total += gain(rank) if rank < 10 else 0
    assert total / len(split.valid) == pytest.approx(max(metrics), rel=1e-5)


def test_of_more_queries_than_there_is_time_for_a_sample_is_measured() -> None:
    asked = [([14, 15], 1 + user % 5) for user in range(20)]
    whole, sampled, again = (fixed() for _ in range(3))
    assert measured(whole, asked, most_scores=20 * (N_ITEMS + 1)) == measured(fixed(), asked)
    assert sorted(whole.asked) == list(range(20))
    found = measured(sampled, asked, most_scores=7 * (N_ITEMS + 1) + 1)
    assert measured(again, asked, most_scores=7 * (N_ITEMS + 1)) == found
    assert sampled.asked == again.asked
    assert len(set(sampled.asked)) == 7
    assert found == pytest.approx(sum(gain(user % 5) for user in sampled.asked) / 7)
