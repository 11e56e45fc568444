"""Next-K lists: measures against loops written by hand, rollouts by a chain, turns of draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diffuserec as dr
from diffuserec.errors import ConfigError
from diffuserec.evaluation import (
    best_of_draws,
    drawing_of,
    intra_list_diversity,
    list_quality,
    rank,
    ranks_in,
    rolled_out,
)
from diffuserec.models.retrieval import mmr_order, taking_turns


def looped(shown: list[int], truth: list[int]) -> dict[str, float]:
    """The definitions, an item at a time."""
    truth = [i for i in truth if i > 0]
    listed, wanted = [i for i in shown if i > 0], set(truth)
    hits = len(set(listed) & wanted)
    found, dcg = set(), 0.0
    for place, item in enumerate(shown):
        if item in wanted and item not in found:
            found.add(item)
            dcg += 1 / math.log2(place + 2)
    ideal = sum(1 / math.log2(j + 2) for j in range(min(len(wanted), len(shown))))
    return {
        "Recall": hits / len(wanted),
        "Precision": hits / len(listed) if listed else 0.0,
        "F1": 2 * hits / (len(set(listed)) + len(wanted)),
        "Hit": float(bool(wanted.intersection(listed))),
        "Jaccard": hits / len(wanted.union(listed)),
        "NDCG": dcg / ideal,
        "InPlace": sum(a == b for a, b in zip(shown, truth, strict=False)) / len(truth),
        "Repeats": 1 - len(set(listed)) / len(listed) if listed else 0.0,
    }


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 6), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_lists_are_measured_as_by_hand(n: int, k: int, n_items: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    lists = generator.integers(1, n_items + 1, (4, n))
    for row, length in enumerate(generator.integers(0, n + 1, 4)):
        lists[row, length:] = -1
    following = generator.integers(1, n_items + 1, (4, k))
    for row, came in enumerate(generator.integers(1, k + 1, 4)):
        following[row, came:] = 0
    found = list_quality(lists, following)
    for row in range(4):
        expected = looped(lists[row].tolist(), following[row].tolist())
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected)


def test_a_perfect_list_and_the_same_backwards() -> None:
    following = np.array([[1, 2, 3], [1, 2, 3]])
    found = list_quality(np.array([[1, 2, 3], [3, 2, 1]]), following)
    assert {name: values[0] for name, values in found.items()} == {
        "Recall": 1, "Precision": 1, "F1": 1, "Hit": 1, "Jaccard": 1, "NDCG": 1, "InPlace": 1,
        "Repeats": 0,
    }  # fmt: skip
    assert found["NDCG"][1] == 1  # no order among the true ones
    assert found["InPlace"][1] == pytest.approx(1 / 3)


def test_diversity_is_a_mean_over_pairs() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(9, 3))
    vectors[4] = 0
    lists = np.array([[1, 2, 3, 8], [4, 5, -1, -1], [7, -1, -1, -1], [6, 6, -1, -1]])
    cosines = [
        [
            1
            - float(
                vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
            )
            for n, i in enumerate(items)
            for j in items[n + 1 :]
        ]
        for items in ([1, 2, 3, 8],)
    ]
    found = intra_list_diversity(lists, vectors)
    assert found == pytest.approx([np.mean(cosines[0]), 1, 0, 0])


def test_places_of_targets() -> None:
    lists = np.array([[5, 6, 7], [1, -1, -1]])
    assert ranks_in(lists, np.array([7, 2])).tolist() == [2, math.inf]


def test_a_rollout_follows_the_chain() -> None:
    """In a cycle of six items the best next item is always the next of the cycle."""
    lists = [[1 + (user + place) % 6 for place in range(9)] for user in range(60)]
    split = dr.leave_last(dr.SequenceDataset.from_lists(lists), 3)
    model = dr.Markov().fit(split.train)
    queries = split.test
    made = rolled_out(model, queries, 3, filter_seen=False)
    newest = np.array([history[-1] for history in queries.histories])
    assert made.tolist() == [[1 + (int(n) + j) % 6 for j in range(3)] for n in newest]
    assert queries.following is not None
    assert made.tolist() == queries.following.tolist()
    # one list of the model holds what follows the newest item alone
    assert rank(model, queries, filter_seen=False, list_length=1).top_items.tolist() == [
        row[:1] for row in made.tolist()
    ]


def test_a_rollout_hides_what_it_holds() -> None:
    split = dr.leave_last(dr.SequenceDataset.from_lists([[1, 2, 3, 4, 5]] * 9), 2)
    model = dr.Popularity().fit(split.train)
    made = rolled_out(model, split.test, 6)
    assert sorted(made[0].tolist()) == [-1, -1, -1, -1, 4, 5]
    again = rolled_out(model, split.test, 6, filter_seen=False)
    assert len(set(again[0].tolist())) == 1
    # a set has each once, and ends where nothing is left
    different = rolled_out(model, split.test, 6, filter_seen=False, distinct=True)
    assert sorted(different[0].tolist()) == [-1, 1, 2, 3, 4, 5]


def test_a_model_of_times_rolls_nothing_out() -> None:
    log = dr.Store(n_users=20, n_items=60, seed=1).dataset()
    split = dr.leave_last(log, 2)
    model = dr.HSTU(time_bias=True, dim=8, n_layers=1, epochs=1, max_len=10).fit(split.train)
    with pytest.raises(ConfigError, match="lists cannot be rolled out"):
        rolled_out(model, split.test, 2)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_draws_take_turns(n_draws: int, length: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    draws = [
        [*(1 + generator.permutation(6)[: generator.integers(0, length + 1)])]
        for _ in range(n_draws)
    ]
    padded = torch.tensor([[[*map(int, d), *([-1] * (length - len(d)))] for d in draws]])
    expected: list[int] = []
    for place in range(length):
        for turn in range(n_draws):
            left = [i for i in draws[(place + turn) % n_draws] if i not in expected]
            if left:
                expected.append(int(left[0]))
                break
        else:
            expected.append(-1)
    assert taking_turns(padded)[0].tolist() == expected


def test_lists_of_a_batch_are_those_of_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, vectors = (
        torch.randn(5, 7, generator=generator),
        torch.randn(5, 7, 3, generator=generator),
    )
    scores[1, 3:] = -torch.inf
    whole = mmr_order(scores, vectors, 4, 0.6)
    assert whole[1].tolist().count(-1) == 1
    for row in range(5):
        n = 3 if row == 1 else 7
        alone = mmr_order(scores[row : row + 1, :n], vectors[row : row + 1, :n], 4, 0.6)
        assert alone[0].tolist() == whole[row, : alone.shape[1]].tolist()


def test_draws_of_dropout_differ_and_come_again() -> None:
    log = dr.Store(n_users=60, n_items=60, seed=1).dataset()
    split = dr.leave_one_out(log)
    model = dr.SASRec(dim=8, epochs=1, max_len=10, dropout=0.5).fit(split.train)
    assert drawing_of(model) == "dropout"
    state = torch.random.get_rng_state()
    made = best_of_draws(model, split.test, 3, 4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training
    assert (made[:, 0] != made[:, 1]).any()
    assert np.array_equal(made, best_of_draws(model, split.test, 3, 4))
    for items, history in zip(made, split.test.histories, strict=True):
        assert not set(items.reshape(-1).tolist()) & set(history.tolist())
    # without dropout the draws are the list itself
    still = dr.SASRec(dim=8, epochs=1, max_len=10, dropout=0.0).fit(split.train)
    assert drawing_of(still) is None
    with pytest.raises(ConfigError, match="no noise and has no dropout"):
        best_of_draws(still, split.test, 2, 4)


def test_draws_leave_dropout_on_and_nothing_else_of_training() -> None:
    """Of attention, too; but items are not hidden, and nothing is counted."""
    split = dr.leave_one_out(dr.Store(n_users=60, n_items=60, seed=1).dataset())
    tiny = {"dim": 8, "epochs": 1, "max_len": 10, "n_layers": 1, "dropout": 1e-6}  # drops nothing
    described = dr.SASRec(**tiny, item_features=True, id_dropout=0.5).fit(split.train)
    made = best_of_draws(described, split.test, 2, 4)
    assert np.array_equal(made[:, 0], rank(described, split.test, list_length=4).top_items)
    assert np.array_equal(made[:, 0], made[:, 1])
    attentive = dr.SASRec(**tiny, attention_dropout=0.5).fit(split.train)
    made = best_of_draws(attentive, split.test, 2, 4)
    assert (made[:, 0] != made[:, 1]).any()
    timed = dr.HSTU(**tiny | {"dropout": 0.5}, time_bias=True).fit(split.train)
    before = {name: value.clone() for name, value in timed.state_dict().items()}
    best_of_draws(timed, split.test, 2, 4)
    assert all(torch.equal(value, before[name]) for name, value in timed.state_dict().items())


def test_draws_of_noise_are_those_of_the_model() -> None:
    split = dr.leave_one_out(dr.Store(n_users=60, n_items=60, seed=1).dataset())
    model = dr.DiffRec(dim=8, epochs=1, max_len=10).fit(split.train)
    made = best_of_draws(model, split.test, 2, 4, filter_seen=False)
    users = split.test.histories
    scorer = model.scorer_of(users, np.arange(len(users)), seed=1, n_draws=1)
    expected = scorer.block(slice(0, scorer.shape[1]))
    expected[:, 0] = -1
    assert made[:, 1].tolist() == expected.topk(4, dim=1).indices.tolist()
