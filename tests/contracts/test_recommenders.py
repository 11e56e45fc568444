"""Promises of every recommender: scores, lists, ids, hidden items, saved models."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from diffuserec.data import SequenceDataset, Split, histories_of, leave_one_out
from diffuserec.data.histories import encode_histories
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Runtime
from diffuserec.models.methods import load

from .suite import (
    RECOMMENDERS,
    WITHOUT_ORDER,
    all_histories,
    assert_same_state,
    fitted,
    items_of,
    made,
    with_ids,
)


@torch.no_grad()
def test_scores_have_their_shape_and_are_finite(recommender, split: Split) -> None:
    histories = all_histories(split.test.histories)
    scores = recommender.score(histories)
    assert scores.shape == (len(histories.users), 21)
    assert scores.is_floating_point()
    assert torch.isfinite(scores[:, 1:]).all()
    assert torch.equal(recommender.score(histories), scores)


@torch.no_grad()
def test_scores_do_not_depend_on_the_batch(recommender, split: Split) -> None:
    dataset = split.test.histories
    rows = np.arange(len(dataset))
    together = recommender.score(histories_of(dataset, rows))
    order = np.random.default_rng(0).permutation(rows)
    shuffled = recommender.score(histories_of(dataset, order))
    torch.testing.assert_close(shuffled, together[torch.from_numpy(order)], rtol=1e-4, atol=1e-5)
    for row in (0, 13, len(dataset) - 1):
        alone = recommender.score(histories_of(dataset, np.array([row])))
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scoring_does_not_change_the_histories_or_the_state(recommender, split: Split) -> None:
    histories = all_histories(split.test.histories)
    items = histories.items.clone()
    state = {name: tensor.clone() for name, tensor in recommender.state_dict().items()}
    recommender.score(histories).fill_(-7.0)  # the scores are the caller's
    assert torch.equal(histories.items, items)
    for name, tensor in recommender.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@torch.no_grad()
def test_a_history_of_one_item_and_one_longer_than_any_seen(recommender) -> None:
    queries = SequenceDataset.from_lists([[7], [1, 2, 3] * 60], recommender.catalog)
    assert torch.isfinite(recommender.score(all_histories(queries))[:, 1:]).all()


@torch.no_grad()
def test_a_history_cut_to_max_len_is_scored_as_the_whole(recommender) -> None:
    assert recommender.max_len is None or recommender.max_len < 150
    generator = np.random.default_rng(4)
    lists = [generator.integers(1, 21, n).tolist() for n in (150, 7, 149)]
    queries = SequenceDataset.from_lists(lists, recommender.catalog)
    rows = np.arange(3)
    whole = recommender.score(histories_of(queries, rows))
    cut = recommender.score(histories_of(queries, rows, recommender.max_len))
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(RECOMMENDERS) - WITHOUT_ORDER))
def test_finds_the_next_item_of_the_cycle(name: str, split: Split) -> None:
    model = fitted("recommender", name, split)
    raw = [split.train.catalog.decode(split.test.histories[n]) for n in range(len(split.test))]
    found = model.recommend(raw, k=3)
    targets = split.train.catalog.decode(split.test.targets)
    hits = [target in items_of(found, n) for n, target in enumerate(targets)]
    # at least 10 of 20 items are left to show: three of them by chance hit in 30 % at most
    assert np.mean(hits) > 0.7


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        # trained again under names by the same code: one that counts, one of states, one of draws
        *((name, "int") for name in RECOMMENDERS),
        *(
            pytest.param(
                name,
                "str",
                marks=() if name in ("markov", "sasrec", "diffrec") else pytest.mark.slow,
            )
            for name in RECOMMENDERS
        ),
    ],
)
def test_recommends_in_the_ids_of_the_log(name: str, ids: str, cycle, split: Split) -> None:
    train, model = split.train, fitted("recommender", name, split)  # its ids are integers
    if ids == "str":
        train = leave_one_out(with_ids(cycle, ids)).train
        model = made("recommender", name).fit(train, runtime=Runtime(seed=1))
    raw = {"int": [1000, 997], "str": ["B1000", "B0997"]}[ids]
    frame = model.recommend([raw], k=5)
    spread = {"spread"} if model.is_generative else set()
    columns = {"query", "rank", "item_id", "score", "source", "n_unknown"}
    assert set(frame.columns) == columns | spread
    items = items_of(frame)
    assert all(type(item) is type(raw[0]) for item in items)
    assert set(items) <= set(train.catalog.item_ids.to_list()) - set(raw)
    # numbers are learned from, names are not: the same recommendations under either
    as_numbers = fitted("recommender", name, split).recommend([[1000, 997]], k=5)
    assert (
        train.catalog.encode(items).tolist()
        == split.train.catalog.encode(items_of(as_numbers)).tolist()
    )
    scores = frame["score"].to_list()
    assert scores == sorted(scores, reverse=True)


def test_recommends_the_best_scored(recommender, split: Split) -> None:
    rows = np.arange(10)
    raw = [recommender.catalog.decode(split.test.histories[n]) for n in rows]
    with torch.no_grad():
        # the noise of a generative one belongs to the history, which has its own key there
        keyed, _ = encode_histories(recommender.catalog, raw, "refuse")
        scores = recommender.score(histories_of(keyed, rows)).double().numpy()
    frame = recommender.recommend(raw, k=20, filter_seen=False, batch_size=10)
    for n in rows:
        order = sorted(range(1, 21), key=lambda item: (-scores[n, item], item))
        assert recommender.catalog.encode(items_of(frame, n)).tolist() == order
        mine = frame.filter(pl.col("query") == n)["score"].to_numpy()
        np.testing.assert_allclose(mine, scores[n, order], rtol=1e-5, atol=1e-6)


def test_the_batch_size_of_recommend_changes_nothing(recommender, split: Split) -> None:
    raw = [recommender.catalog.decode(split.test.histories[n]) for n in range(9)] + [[]]
    one, many = (recommender.recommend(raw, k=4, batch_size=size) for size in (3, 100))
    columns = ["query", "rank", "item_id", "n_unknown"]
    assert one.select(columns).equals(many.select(columns))


def test_unknown_ids_are_skipped_and_counted_or_refused(recommender) -> None:
    known = recommender.recommend([[1000, 997], [994]], k=4)
    frame = recommender.recommend([[5, 1000, 6, 997], [994], [7]], k=4)
    assert items_of(frame, 0) == items_of(known, 0)
    assert items_of(frame, 1) == items_of(known, 1)
    counts = frame.group_by("query").agg(pl.col("n_unknown").unique()).sort("query")
    assert counts["n_unknown"].to_list() == [[2], [0], [1]]
    with pytest.raises(DataError, match=r"history 1: .*item 5 \(2 unknown in all\)"):
        recommender.recommend([[1000], [997, 5, 6]], on_unknown="refuse")


def test_an_empty_history_is_answered_by_popularity(recommender, split: Split) -> None:
    counts = np.bincount(split.train.items, minlength=21)
    order = sorted(range(1, 21), key=lambda item: (-counts[item], item))
    frame = recommender.recommend([[], [12345], [1000]], k=20)
    of_model = frame["query"] == 2
    assert set(frame.filter(of_model)["source"]) == {"model"}
    frame = frame.filter(~of_model)
    assert set(frame["source"]) == {"popularity"}
    for query in (0, 1):
        assert recommender.catalog.encode(items_of(frame, query)).tolist() == order
    if recommender.is_generative:  # which answers in probabilities
        np.testing.assert_allclose(frame["score"][:20], counts[order] / counts.sum(), rtol=1e-6)
        assert frame["spread"].to_list() == [0.0] * 40
    else:
        assert frame["score"][:20].to_list() == counts[order].tolist()


def test_seen_items_are_left_out_unless_asked_for(recommender) -> None:
    everything = set(recommender.catalog.item_ids.to_list())
    history = [1000, 997, 1000, 961]
    without = items_of(recommender.recommend([history], k=100))
    assert set(without) == everything - set(history)
    with_seen = items_of(recommender.recommend([history], k=100, filter_seen=False))
    assert set(with_seen) == everything
    assert [item for item in with_seen if item not in history] == without


def test_allow_and_deny(recommender) -> None:
    ranked = items_of(recommender.recommend([[1000]], k=100))
    allow, deny = ranked[3:8], ranked[:6]
    assert items_of(recommender.recommend([[1000]], k=9, allow=allow)) == allow
    assert items_of(recommender.recommend([[1000]], k=9, deny=deny)) == ranked[6:15]
    assert items_of(recommender.recommend([[1000]], k=9, allow=allow, deny=deny)) == ranked[6:8]
    assert recommender.recommend([[1000]], allow=[]).is_empty()
    assert recommender.recommend([[1000]], allow=[1000]).is_empty()  # seen
    assert len(recommender.recommend([[]], k=3, deny=deny)) == 3
    for listed in ({"allow": [1000, 5]}, {"deny": [5]}):
        with pytest.raises(DataError, match=f"{next(iter(listed))}: .* item 5"):
            recommender.recommend([[1000]], **listed)


def test_lists_are_no_longer_than_the_catalog(recommender) -> None:
    assert len(recommender.recommend([[1000]], k=10**6)) == 19
    assert len(recommender.recommend([[]], k=10**6)) == 20
    for k in (0, -1):
        with pytest.raises(ConfigError, match=f"k must be at least 1, got {k}"):
            recommender.recommend([[1000]], k=k)


def test_no_histories_and_histories_that_are_none(recommender) -> None:
    nothing = recommender.recommend([])
    assert nothing.is_empty()
    assert nothing.schema == recommender.recommend([[1000]]).schema
    for wrong in (["1000"], "1000"):
        with pytest.raises(DataError, match="list of lists"):
            recommender.recommend(wrong)


def test_next_items_of_follow_the_item_alone(recommender) -> None:
    frame = recommender.next_items_of([961, 1000], k=4)
    assert frame.columns == ["target_item_id", "rank", "item_id", "score"]
    for item in (961, 1000):
        mine = frame.filter(pl.col("target_item_id") == item)
        assert mine["item_id"].to_list() == items_of(recommender.recommend([[item]], k=4))
        assert item not in mine["item_id"].to_list()
    typed = recommender.next_items_of(["961"], k=4)  # as on a command line
    assert typed.drop("score").equals(frame[:4].drop("score"))
    assert recommender.next_items_of([]).is_empty()
    with pytest.raises(DataError, match="item 5"):
        recommender.next_items_of([1000, 5])


def test_a_saved_recommender_scores_the_same(recommender, split: Split, tmp_path: Path) -> None:
    recommender.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is type(recommender)
    assert loaded.config == recommender.config
    assert_same_state(loaded, recommender)
    histories = all_histories(split.test.histories)
    with torch.no_grad():
        assert torch.equal(loaded.score(histories, 3), recommender.score(histories, 3))
