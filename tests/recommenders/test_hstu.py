"""HSTU with the times of items: learned from, measured and served alike, and no target's."""

import numpy as np
import polars as pl
import pytest
import torch

from diffuserec.data import Catalog, SequenceDataset, leave_one_out
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import evaluate, rank
from diffuserec.models.base import Runtime
from diffuserec.models.methods import find_recommender, load
from diffuserec.recommenders.hstu import HSTU
from diffuserec.serving.lists import recommend_from

QUICK = {
    "dim": 16,
    "n_layers": 1,
    "max_len": 4,
    "dropout": 0.0,
    "learning_rate": 0.02,
    "batch_size": 16,
    "epochs": 20,
    "init_std": 0.2,
}


def paced(n_users: int = 300, seed: int = 0) -> SequenceDataset:
    """Two of four items, then item 5, then again the oldest item of the last hour.

    The first was chosen a minute or a day before the others.
    """
    draw = np.random.default_rng(seed)
    first, second = draw.integers(1, 5, (2, n_users))
    wait = draw.choice([60, 86_400], n_users)
    last = np.where(wait == 60, first, second)
    items = np.stack([first, second, np.full(n_users, 5), last], axis=1)
    times = np.stack([0 * wait, wait, wait + 60, wait + 120], axis=1) + 1_700_000_000
    return SequenceDataset.from_offsets(
        items.astype(np.int32).reshape(-1),
        np.arange(n_users + 1) * 4,
        Catalog(pl.Series("item_id", list("abcde")), n_users),
        timestamps=times.reshape(-1),
    )


@pytest.fixture(scope="module")
def fitted() -> HSTU:
    return HSTU(**QUICK, time_bias=True).fit(paced(), runtime=Runtime(seed=1))


def hits(model: HSTU, log: SequenceDataset) -> float:
    found = evaluate(model, leave_one_out(log).test, filter_seen=False, metrics=["HR@1"])
    return found.metrics["HR@1"]


def test_times_tell_what_comes_next(fitted: HSTU) -> None:
    others = paced(seed=1)
    assert hits(fitted, others) > 0.9
    blind = HSTU(**QUICK).fit(paced(), runtime=Runtime(seed=1))
    assert hits(blind, others) < 0.7


def test_what_is_measured_is_served(fitted: HSTU, tmp_path) -> None:
    test = leave_one_out(paced(seed=2)).test.histories.compact()
    fitted.save(tmp_path / "model")
    again = load(tmp_path / "model")
    raw = [test.catalog.decode(items) for items in test]
    times = np.split(test.timestamps, test.offsets[1:-1])
    served = again.recommend(raw, k=1, filter_seen=False, times=[t.tolist() for t in times])
    measured = rank(fitted, leave_one_out(paced(seed=2)).test, filter_seen=False)
    shown = test.catalog.encode(served["item_id"].to_list())
    assert shown.tolist() == measured.top_items[:, 0].tolist()
    unknown = again.recommend(raw, k=1, filter_seen=False)
    assert unknown["item_id"].to_list() != served["item_id"].to_list()


def test_a_log_of_histories_is_answered_by_its_times(fitted: HSTU, tmp_path) -> None:
    fitted.save(tmp_path / "model")
    lines = ["user,item,time", "u,a,100", "u,b,86500", "u,e,86560", "v,a,100", "v,b,160", "v,e,220"]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = {"k": 1, "filter_seen": False}
    served = recommend_from(tmp_path / "model", None, tmp_path / "log.csv", **given)
    assert served["item_id"].to_list() == ["b", "a"]  # the oldest of the last hour
    alone = fitted.recommend([list("abe")] * 2, **given)
    assert alone["item_id"].n_unique() == 1


def test_unknown_items_lose_their_times_too(fitted: HSTU) -> None:
    known = fitted.recommend([["a", "b"]], filter_seen=False, times=[[5, 65]])
    more = fitted.recommend([["a", "x", "b"]], filter_seen=False, times=[[5, 7, 65]])
    assert known["score"].to_list() == more["score"].to_list()


def test_a_log_without_times_is_trained_on_as_without_the_setting(cycle: SequenceDataset) -> None:
    torch.manual_seed(0)
    model = HSTU(**QUICK, time_bias=True).fit(cycle)
    assert not model.encoder.get_buffer("pairs").any()
    found = model.recommend([[3, 4, 5]], k=1, times=[[1, 2, 3]])
    assert found.equals(model.recommend([[3, 4, 5]], k=1))


def test_a_blend_hands_times_on(fitted: HSTU) -> None:
    blend = find_recommender("blend")(
        parts=("hstu", "popularity"), settings={"hstu": {**QUICK, "time_bias": True}}
    ).fit(paced(), runtime=Runtime(seed=1))
    assert hits(blend, paced(seed=1)) > 0.9


@pytest.mark.parametrize(
    "times, message",
    [
        ([[1, 2]], "as long as those of the histories"),
        ([[1, 2, 3], [4]], "as long as those of the histories"),
        ([[1, 2, 3.5]], "whole numbers as dataset.timestamps has them .*, got 3.5"),
        ([[1, 2, True]], "got True"),
        ([[1, 2, 2**63]], "got 9223372036854775808"),
    ],
)
def test_wrong_times_are_refused(fitted: HSTU, times, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fitted.recommend([["a", "b", "a"]], times=times)


def test_who_reads_no_times_is_given_none(cycle: SequenceDataset) -> None:
    for model in (HSTU(**QUICK | {"epochs": 1}), find_recommender("popularity")()):
        with pytest.raises(ConfigError, match="reads no times"):
            model.fit(cycle).recommend([[1, 2]], times=[[1, 2]])
    for name in ("sasrec", "cl4srec"):
        with pytest.raises(
            ConfigError, match="time_bias has no effect: of the methods, hstu alone"
        ):
            find_recommender(name)(encoder="hstu", encoder_settings={"time_bias": True})
