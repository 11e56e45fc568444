"""Popularity, Markov and ItemKNN against cases worked by hand and against two public logs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuserec import Recommender, load
from diffuserec.data import SequenceDataset, histories_of, history_batches, leave_one_out
from diffuserec.models.retrieval import rank_of, seen_items
from diffuserec.recommenders.itemknn import ItemKNN
from diffuserec.recommenders.markov import Markov
from diffuserec.recommenders.popularity import Popularity

from .oracles import assert_refused

LOG = [[1, 2, 3], [1, 2, 4], [2, 3], [5]]
BASELINES = [
    Popularity(),
    Markov(),
    Markov(decay=0),
    ItemKNN(),
    ItemKNN(k=2, decay=0.5),
    ItemKNN(max_len=None),
]


def scores_of(model: Recommender, *sequences: list[int]) -> np.ndarray:
    queries = SequenceDataset.from_lists(sequences, model.catalog)
    return model.score(histories_of(queries, np.arange(len(queries)))).numpy()


def random_log(seed: int = 0) -> SequenceDataset:
    generator = np.random.default_rng(seed)
    return SequenceDataset.from_lists(
        [generator.integers(1, 30, n).tolist() for n in generator.integers(1, 80, 200)]
    )


def test_popularity_counts_occurrences() -> None:
    model = Popularity().fit(SequenceDataset.from_lists(LOG))
    assert scores_of(model, [4], [1, 3]).tolist() == [[0, 2, 3, 2, 1, 1]] * 2


def test_markov_of_order_one_is_the_shares_of_the_newest_item() -> None:
    # out of 1: 2 twice; out of 2: 3 twice, 4 once; out of 3, 4, 5: nothing
    model = Markov(decay=0).fit(SequenceDataset.from_lists(LOG))
    popularity = 1e-3 * np.array([0, 2, 3, 2, 1, 1]) / 9
    scores = scores_of(model, [1, 2], [5, 3, 1], [4])
    np.testing.assert_allclose(scores[0], np.add([0, 0, 0, 2 / 3, 1 / 3, 0], popularity), rtol=1e-6)
    np.testing.assert_allclose(scores[1], np.add([0, 0, 1, 0, 0, 0], popularity), rtol=1e-6)
    np.testing.assert_allclose(scores[2], popularity, rtol=1e-6)


def test_markov_decays_over_the_history_and_adds_up_repeats() -> None:
    model = Markov(decay=0.5).fit(SequenceDataset.from_lists(LOG))
    popularity = 1e-3 * np.array([0, 2, 3, 2, 1, 1]) / 9
    # newest 2 (weight 1), then 1 (0.5), then 2 (0.25)
    expected = np.add([0, 0, 0.5, 1.25 * 2 / 3, 1.25 / 3, 0], popularity)
    np.testing.assert_allclose(scores_of(model, [2, 1, 2])[0], expected, rtol=1e-6)


def test_markov_never_connects_two_users() -> None:
    model = Markov(decay=0).fit(SequenceDataset.from_lists([[], [1], [2], [], [3, 1], []]))
    table = scores_of(model, [1], [2], [3]) > 0.5
    assert np.argwhere(table).tolist() == [[2, 1]]


def test_itemknn_is_the_cosine_of_binary_columns() -> None:
    # users of 1: {0, 1}; 2: {0, 1, 2}; 3: {0, 2}; 4: {1}; 5: {3}
    model = ItemKNN().fit(SequenceDataset.from_lists([[1, 2, 3, 1], *LOG[1:]]))
    scores = scores_of(model, [1], [5], [3, 1])
    cosine_1 = [0, 0, 2 / 6**0.5, 1 / 2, 1 / 2**0.5, 0]
    cosine_3 = [0, 1 / 2, 2 / 6**0.5, 0, 0, 0]
    np.testing.assert_allclose(scores[0], cosine_1, rtol=1e-6)
    assert not scores[1].any()
    np.testing.assert_allclose(scores[2], np.add(cosine_1, cosine_3), rtol=1e-6)


def test_itemknn_keeps_the_k_most_similar_and_fades_older_items() -> None:
    model = ItemKNN(k=1, decay=0.5).fit(SequenceDataset.from_lists(LOG))
    # the nearest of 1 is 2 (2/√6); the nearest of 3 is 2 (2/√6), of 4 is 1 (1/√2)
    assert np.argmax(scores_of(model, [1], [3], [4]), axis=1).tolist() == [2, 2, 1]
    expected = [0, 0.5 / 2**0.5, 2 / 6**0.5, 0, 0, 0]
    np.testing.assert_allclose(scores_of(model, [4, 1])[0], expected, rtol=1e-6)


def test_itemknn_window_forgets_the_oldest() -> None:
    model = ItemKNN(max_len=2).fit(SequenceDataset.from_lists(LOG))
    np.testing.assert_array_equal(scores_of(model, [4, 1, 3]), scores_of(model, [1, 3]))


@pytest.mark.parametrize("model", BASELINES, ids=repr)
def test_synthetic_items_are_never_counted(model: Recommender) -> None:
    plain = random_log()
    generated = np.random.default_rng(1).integers(1, 30, (50, 7)).astype(np.int32)
    before = {n: t.clone() for n, t in model.fit(plain).state_dict().items()}
    after = model.fit(plain.prepend(generated, np.arange(50))).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("model", BASELINES, ids=repr)
def test_nothing_is_trained(model: Recommender) -> None:
    assert not model.trained
    assert model.fit(random_log()).curve == []


@pytest.mark.parametrize("model", BASELINES, ids=repr)
def test_fitting_again_forgets_the_other_log(model: Recommender) -> None:
    histories = histories_of(random_log(), np.arange(20))
    expected = model.fit(random_log(1)).score(histories)
    model.fit(random_log(2)).score(histories)
    assert torch.equal(model.fit(random_log(1)).score(histories), expected)


@pytest.mark.parametrize("model", BASELINES, ids=repr)
def test_scores_do_not_depend_on_the_batch(model: Recommender) -> None:
    log = random_log()
    model.fit(log)
    together = model.score(histories_of(log, np.arange(len(log))))
    for row in (0, 17, 199):
        alone = model.score(histories_of(log, np.array([row])))
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("model", BASELINES, ids=repr)
def test_a_saved_baseline_scores_the_same(model: Recommender, tmp_path: Path) -> None:
    log = random_log()
    model.fit(log).save(tmp_path / "model")
    histories = histories_of(log, np.arange(20))
    assert torch.equal(load(tmp_path / "model").score(histories), model.score(histories))


@pytest.mark.parametrize("model", BASELINES, ids=repr)
def test_scores_may_be_changed_without_harm(model: Recommender) -> None:
    log = random_log()
    histories = histories_of(log, np.arange(4))
    first = model.fit(log).score(histories)
    kept = first.clone()
    first.fill_(-1)
    assert torch.equal(model.score(histories), kept)


@pytest.mark.parametrize("model", BASELINES, ids=repr)
@pytest.mark.parametrize("log", [[[1]], [[1], [1], []], [[2, 2, 2]]], ids=str)
def test_a_log_of_next_to_nothing(model: Recommender, log: list[list[int]]) -> None:
    model.fit(SequenceDataset.from_lists(log))
    assert np.isfinite(scores_of(model, [1])).all()


@pytest.mark.parametrize(
    "method, setting, value",
    [
        (Markov, "decay", 1.5),
        (Markov, "decay", -0.1),
        (Markov, "decay", float("nan")),
        (ItemKNN, "decay", 2),
        (ItemKNN, "k", 0),
        (ItemKNN, "max_len", 0),
    ],
)
def test_a_setting_out_of_range_is_refused(
    method: type[Recommender], setting: str, value: float
) -> None:
    assert_refused(method, {setting: value}, f"{method.__name__}: {setting}: .* got {value}")


# HR@5, HR@10, HR@20, NDCG@5, NDCG@10, NDCG@20, computed beforehand by an independent program
PUBLIC_LOGS = {
    "beauty": [
        (Popularity(), [0.0081, 0.0120, 0.0204, 0.0044, 0.0056, 0.0076]),
        (Markov(decay=0), [0.0517, 0.0670, 0.0824, 0.0390, 0.0440, 0.0479]),
        (Markov(), [0.0525, 0.0721, 0.0950, 0.0394, 0.0456, 0.0514]),
        (ItemKNN(), [0.0395, 0.0570, 0.0809, 0.0270, 0.0326, 0.0386]),
        (ItemKNN(decay=0.7), [0.0466, 0.0652, 0.0876, 0.0336, 0.0395, 0.0452]),
    ],
    "ml-1m": [
        (Popularity(), [0.0219, 0.0394, 0.0699, 0.0138, 0.0194, 0.0270]),
        (Markov(decay=0), [0.1359, 0.1917, 0.2606, 0.0942, 0.1122, 0.1295]),
        (Markov(), [0.1675, 0.2474, 0.3318, 0.1166, 0.1423, 0.1637]),
        (ItemKNN(), [0.0551, 0.0856, 0.1293, 0.0349, 0.0447, 0.0557]),
        (ItemKNN(decay=0.7), [0.1224, 0.1776, 0.2434, 0.0840, 0.1018, 0.1185]),
    ],
}


@pytest.mark.skipif("DIFFUSEREC_DATA" not in os.environ, reason="DIFFUSEREC_DATA is not set")
@pytest.mark.parametrize("name", PUBLIC_LOGS)
def test_public_logs_give_the_known_metrics(name: str) -> None:
    lines = (
        (Path(os.environ["DIFFUSEREC_DATA"]) / f"{name}.txt")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    log = SequenceDataset.from_lists([[int(item) for item in line.split()[1:]] for line in lines])
    split = leave_one_out(log)
    for model, expected in PUBLIC_LOGS[name]:
        model.fit(split.train)
        rank = np.empty(len(split.test))
        for index, histories in history_batches(split.test.histories, 512):
            seen = seen_items(split.test.histories, index)
            targets = torch.from_numpy(split.test.targets[index])
            rank[index] = rank_of(model.scorer(histories), targets, seen).numpy()
        hit = [np.mean(rank < k) for k in (5, 10, 20)]
        gain = [np.mean((rank < k) / np.log2(rank + 2)) for k in (5, 10, 20)]
        np.testing.assert_allclose(hit + gain, expected, atol=5e-4, err_msg=str(model))
