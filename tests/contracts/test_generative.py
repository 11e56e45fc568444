"""Promises of every generative recommender: draws, their mean and spread, diversity."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from diffuserec.data import Histories, Split
from diffuserec.data.histories import encode_histories
from diffuserec.errors import ConfigError
from diffuserec.models.recommender import StateRecommender

from .suite import GENERATIVE, RECOMMENDERS, all_histories, fitted, items_of


def draws_of(
    model: StateRecommender, histories: Histories, seed: int, n_draws: int
) -> Iterator[Tensor]:
    """Probabilities of all items by each draw."""
    scorer = model.scorer(histories, seed, n_draws)
    return (draw.clone() for draw in scorer.draws(slice(0, scorer.shape[1])))


def raw_histories(split: Split, n: int) -> list[list[Any]]:
    return [split.train.catalog.decode(split.test.histories[row]) for row in range(n)]


def rankings(frame: pl.DataFrame, n: int) -> list[list[Any]]:
    return [items_of(frame, query) for query in range(n)]


def drawn(model: StateRecommender, raw: list[list[Any]], seed: int, n_draws: int):
    """The draws for these histories as ``recommend`` keys their noise, shape (draws, B, V)."""
    dataset, _ = encode_histories(model.catalog, raw, "refuse")
    with torch.no_grad():
        return (
            torch.stack([*draws_of(model, all_histories(dataset), seed, n_draws)]).double().numpy()
        )


@torch.no_grad()
def test_draws_are_distributions_over_the_items(generative, split: Split) -> None:
    histories = all_histories(split.test.histories)
    draws = torch.stack([*draws_of(generative, histories, 0, 5)])
    assert draws.shape == (5, len(histories.users), 21)
    assert (draws >= 0).all()
    assert not draws[:, :, 0].any()
    torch.testing.assert_close(draws.sum(2), torch.ones(5, len(histories.users)))
    assert (draws[0] != draws[1]).any()
    # a draw is the same whatever number of them is asked for
    torch.testing.assert_close(
        torch.stack([*draws_of(generative, histories, 0, 2)]), draws[:2], rtol=1e-4, atol=1e-6
    )


def test_shows_the_mean_of_the_draws_and_their_spread(generative, split: Split) -> None:
    raw = raw_histories(split, 8)
    frame = generative.recommend(raw, k=20, n_draws=6, filter_seen=False, seed=4)
    draws = drawn(generative, raw, 4, 6)
    for query in range(len(raw)):
        shown = frame.filter(pl.col("query") == query)
        items = generative.catalog.encode(shown["item_id"].to_list())
        mean, std = draws[:, query, items].mean(0), draws[:, query, items].std(0, ddof=1)
        np.testing.assert_allclose(shown["score"], mean, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(shown["spread"], std, rtol=1e-3, atol=1e-6)
        assert (np.diff(shown["score"]) <= 0).all()
    assert (frame["spread"] >= 0).all()
    assert (frame["spread"] > 0).any()
    alone = generative.recommend(raw, k=20, n_draws=1, filter_seen=False, seed=4)
    assert alone["spread"].to_list() == [0.0] * len(alone)


def test_the_number_of_draws_is_its_own_unless_asked_for(generative, split: Split) -> None:
    raw = raw_histories(split, 4)
    own = generative.recommend(raw, k=20)
    assert own.equals(generative.recommend(raw, k=20, n_draws=generative.config.n_draws))
    assert not own.equals(generative.recommend(raw, k=20, n_draws=generative.config.n_draws + 1))


def test_diversity_ranks_from_the_mean_to_the_first_draw(generative, split: Split) -> None:
    raw = raw_histories(split, 30)
    by_seed = []
    for seed in (1, 2):
        frame = generative.recommend(raw, k=20, filter_seen=False, seed=seed, diversity=1.0)
        n_draws = generative.config.n_draws
        draws = drawn(generative, raw, seed, n_draws)
        half = generative.recommend(raw, k=20, filter_seen=False, seed=seed, diversity=0.5)
        for query in range(len(raw)):
            for shown, value in (
                (frame, draws[0, query]),
                (half, (draws[:, query].mean(0) + draws[0, query]) / 2),
            ):
                items = generative.catalog.encode(items_of(shown, query))
                # descending but for rounding
                assert (np.diff(value[items]) <= 1e-6).all()
            items = generative.catalog.encode(items_of(frame, query))
            shown = frame.filter(pl.col("query") == query)["score"]  # still the mean
            np.testing.assert_allclose(shown, draws[:, query, items].mean(0), rtol=1e-4, atol=1e-7)
        by_seed.append(rankings(frame, len(raw)))
    assert by_seed[0] != by_seed[1]
    none = generative.recommend(raw, k=20, filter_seen=False, seed=1, diversity=0.0)
    assert rankings(none, len(raw)) != by_seed[0]
    assert none.equals(generative.recommend(raw, k=20, filter_seen=False, seed=1))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"n_draws": 0}, "n_draws must be at least 1, got 0"),
        ({"n_draws": -3}, "n_draws must be at least 1, got -3"),
        ({"diversity": 2.0}, "diversity must be between 0 and 1, got 2.0"),
        ({"diversity": -0.1}, "diversity must be between 0 and 1, got -0.1"),
        ({"diversity": float("nan")}, "diversity must be between 0 and 1, got nan"),
    ],
    ids=str,
)
def test_impossible_draws_are_refused(generative, wrong, message) -> None:
    with pytest.raises(ConfigError) as refusal:
        generative.recommend([[1000]], **wrong)
    assert str(refusal.value) == message


@pytest.mark.parametrize("asked", [{"n_draws": 3}, {"diversity": 0.5}], ids=str)
@pytest.mark.parametrize("name", sorted(set(RECOMMENDERS) - set(GENERATIVE)))
def test_draws_of_a_method_without_noise_are_refused(name: str, asked, split: Split) -> None:
    with pytest.raises(ConfigError) as refusal:
        fitted("recommender", name, split).recommend([[1000]], **asked)
    assert str(refusal.value) == (
        f"{name} draws no noise, its lists are always the same: leave out n_draws and diversity"
    )


def test_an_empty_history_among_others_has_no_spread(generative, split: Split) -> None:
    raw = raw_histories(split, 2)
    frame = generative.recommend([raw[0], [], raw[1]], k=20, diversity=1.0, seed=3)
    counts = np.bincount(split.train.items, minlength=21)
    order = sorted(range(1, 21), key=lambda item: (-counts[item], item))
    empty = frame.filter(pl.col("query") == 1)
    assert generative.catalog.encode(empty["item_id"].to_list()).tolist() == order
    assert empty["spread"].to_list() == [0.0] * 20
    np.testing.assert_allclose(empty["score"], counts[order] / counts.sum(), rtol=1e-6)
    # the others are answered as if it were not there
    without = generative.recommend(raw, k=20, diversity=1.0, seed=3)
    for query, other in ((0, 0), (2, 1)):
        assert items_of(frame, query) == items_of(without, other)
        assert (frame.filter(pl.col("query") == query)["spread"] > 0).any()
