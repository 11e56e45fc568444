"""Certainty that a model states: by hand, by scipy and by drawing what it predicts."""

from typing import Any, Self

import numpy as np
import polars as pl
import pytest
import torch
from scipy import stats

from diffuserec.data import Catalog, Queries, SequenceDataset
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import (
    calibration,
    evaluate,
    expected_calibration_error,
    fitted_temperature,
    load_evaluation,
    top_chances,
    uncertainty,
)
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.methods import find_recommender
from diffuserec.models.recommender import StateRecommender

LIKELY = [0.1, 0.2, 0.3, 0.4]  # of items 1 to 4
OTHER = [0.7, 0.1, 0.1, 0.1]
AVERAGE = [0.4, 0.15, 0.2, 0.25]


def log(sequences, n_items=4):
    items = pl.Series("item_id", np.arange(1, n_items + 1))
    return SequenceDataset.from_lists(sequences, Catalog(items, len(sequences)))


def queries_of(sequences, n_items=4):
    return Queries(log(sequences, n_items), np.ones(len(sequences), dtype=np.int64))


class Given(StateRecommender):
    """States that it was given, whose products with the unit vectors are logits."""

    def build(self, catalog: Catalog) -> None:
        """Nothing to make."""

    def learn(self, train: Any, valid: Any, runtime: Any) -> list[Any]:
        return []

    @classmethod
    def of(cls, probabilities: Any, train: SequenceDataset) -> Self:
        """A model of these probabilities of the items 1, 2, …, one line or several."""
        model = cls().fit(train)
        lines = torch.atleast_2d(torch.as_tensor(probabilities, dtype=torch.float32))
        # padding scores best and every logit is off by the same: neither may matter
        model.lines = torch.cat([torch.full((len(lines), 1), 50.0), lines.log() - 3], dim=1)
        return model

    def item_weight(self) -> torch.Tensor:
        return torch.eye(self.catalog.vocab_size)


class Logits(Given):
    """The same logits whatever the history, or those of its newest item."""

    scores_are_logits = True

    def states(self, histories: Any, seed: int = 0, n_draws: int | None = None) -> torch.Tensor:
        newest = histories.items[torch.arange(len(histories.users)), histories.lengths - 1]
        return self.lines[newest - 1 if len(self.lines) > 1 else newest * 0][:, None]


class Draws(Given):
    """The same draws whatever the history."""

    combine = "mixture"

    def states(self, histories: Any, seed: int = 0, n_draws: int | None = None) -> torch.Tensor:
        return self.lines[None, :n_draws].expand(len(histories.users), -1, -1)


class AddItem(Augmenter):
    """Puts item 1 in front of every history; not while training."""

    def build(self, catalog: Catalog) -> None:
        """Nothing to make."""

    def learn(self, train: Any, valid: Any, runtime: Any) -> list[Any]:
        return []

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        assert not self.training
        index = np.arange(len(dataset))
        return dataset.prepend(np.ones((len(index), 1), dtype=np.int32), index)


TRAIN = log([[1, 1, 1, 2], [3, 4, 1]])


@pytest.mark.parametrize(
    "filter_seen, list_length, confidence",
    [
        (True, 1, 0.75),  # items 4 and 2 are hidden, which leaves .1 and .3
        (True, 2, 1.0),
        (True, 10, 1.0),
        (False, 1, 0.4),
        (False, 3, 0.9),
    ],
)
def test_confidence_is_the_probability_of_the_list(filter_seen, list_length, confidence):
    model = Logits.of(LIKELY, TRAIN)
    found = uncertainty(
        model, queries_of([[4, 2]]), filter_seen=filter_seen, list_length=list_length
    )
    assert found["confidence"].to_list() == pytest.approx([confidence], rel=1e-5)
    assert found["entropy"].to_list() == pytest.approx([stats.entropy(LIKELY)], rel=1e-5)
    assert found["disagreement"].to_list() == [0.0]


def test_each_query_hides_its_own_items():
    model = Logits.of(LIKELY, TRAIN)
    found = uncertainty(model, queries_of([[1, 2, 3], [4], [1, 1]]), list_length=1)
    assert found["confidence"].to_list() == pytest.approx([1.0, 0.3 / 0.6, 0.4 / 0.9], rel=1e-5)


def test_what_an_augmenter_made_up_is_not_hidden():
    model = Logits.of(LIKELY, TRAIN)
    augmenter = AddItem().fit(TRAIN).train()
    found = uncertainty(model, queries_of([[4, 2]]), augmenter=augmenter, list_length=1)
    assert found["confidence"].to_list() == pytest.approx([0.75], rel=1e-5)


def test_little_probability_left_is_still_shared_out():
    model = Logits.of(np.array([1.0, 1.0, 1.0, 1e20]) / 1e20, TRAIN)
    found = uncertainty(model, queries_of([[4]]), list_length=1)
    assert found["confidence"].to_list() == pytest.approx([1 / 3], rel=1e-5)


def test_no_list_is_more_than_certain():
    generator = np.random.default_rng(0)
    model = Logits.of(generator.dirichlet(np.ones(300), 300), log([[300]], 300))
    queries = queries_of([[int(i)] for i in range(1, 301)], 300)
    assert uncertainty(model, queries, list_length=299)["confidence"].max() <= 1.0


def test_draws_are_averaged_and_their_difference_is_disagreement():
    model = Draws.of([LIKELY, OTHER], TRAIN)
    found = uncertainty(model, queries_of([[4, 2], [3]]), list_length=1)
    entropy = stats.entropy(AVERAGE)
    gap = entropy - (stats.entropy(LIKELY) + stats.entropy(OTHER)) / 2
    assert gap > 0.1
    np.testing.assert_allclose(found["confidence"], [0.4 / 0.6, 0.4 / 0.8], rtol=1e-5)
    np.testing.assert_allclose(found["entropy"], [entropy] * 2, rtol=1e-5)
    np.testing.assert_allclose(found["disagreement"], [gap] * 2, rtol=1e-5)


def test_draws_that_say_the_same_agree():
    found = uncertainty(Draws.of([LIKELY] * 5, TRAIN), queries_of([[4, 2]]))
    assert found["disagreement"][0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [Logits, Draws])
def test_without_a_history_popularity_answers(kind):
    model = kind.of(LIKELY, TRAIN)
    found = uncertainty(model, queries_of([[4, 2], [], [3]]), list_length=1)
    counts = [4, 1, 1, 1]
    np.testing.assert_allclose(found["confidence"], [0.75, 4 / 7, 0.4 / 0.7], rtol=1e-5)
    entropies = [stats.entropy(p) for p in (LIKELY, counts, LIKELY)]
    np.testing.assert_allclose(found["entropy"], entropies, rtol=1e-5)
    assert found["disagreement"].to_list() == [0.0] * 3


def test_nothing_depends_on_the_batch():
    generator = np.random.default_rng(1)
    sequences = [generator.integers(1, 21, n).tolist() for n in generator.integers(0, 15, 60)]
    model = Logits.of(generator.dirichlet(np.ones(20), 20), log([[20]], 20))
    queries = queries_of(sequences, 20)
    one, *others = (uncertainty(model, queries, batch_size=size) for size in (1, 7, 999))
    assert one["confidence"].n_unique() > 20
    for other in others:
        np.testing.assert_allclose(other.to_numpy(), one.to_numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ["itemknn", "markov"])
def test_scores_that_are_no_distribution_are_refused(name, cycle):
    model = find_recommender(name)().fit(cycle)
    assert not model.has_distribution
    with pytest.raises(ConfigError) as caught:
        uncertainty(model, Queries(cycle, np.ones(len(cycle), dtype=np.int64)))
    message = str(caught.value)
    assert message.startswith(f"{name} ranks items by scores that are not probabilities")
    assert "\n" not in message


def test_another_catalog_is_refused():
    with pytest.raises(ConfigError, match="another catalog"):
        uncertainty(Logits.of(LIKELY, TRAIN), queries_of([[5]], n_items=5))


def test_an_evaluation_keeps_it(tmp_path):
    model, queries = Draws.of([LIKELY, OTHER], TRAIN), queries_of([[4, 2], [3]])
    found = evaluate(model, queries, list_length=1, with_uncertainty=True)
    np.testing.assert_allclose(found.per_user["confidence"], [0.4 / 0.6, 0.4 / 0.8], rtol=1e-5)
    found.save(tmp_path)
    assert load_evaluation(tmp_path).per_user.equals(found.per_user)
    assert "confidence" not in evaluate(model, queries).per_user.columns


def test_calibration_by_hand():
    predicted = np.array([0.9, 0.1, 0.4, 0.2, 0.8, 0.6])
    hit = np.array([True, False, True, False, True, False])
    bins = calibration(predicted, hit, n_bins=3)
    assert bins["predicted"].to_list() == pytest.approx([0.15, 0.5, 0.85])
    assert bins["observed"].to_list() == [0.0, 0.5, 1.0]
    assert bins["margin"].to_list() == pytest.approx([0, 1.96 * np.sqrt(0.25 / 2), 0])
    assert bins["n"].to_list() == [2, 2, 2]
    assert expected_calibration_error(bins) == pytest.approx((0.15 + 0 + 0.15) / 3)


def test_bins_that_are_not_equal_are_weighted():
    hit = np.array([True, False, False, True, True])
    bins = calibration(np.array([0.1, 0.2, 0.3, 0.6, 0.8]), hit, n_bins=2)
    assert bins["n"].to_list() == [3, 2]
    # 3 queries with .2 against 1/3, 2 with .7 against 1
    expected = (3 * (1 / 3 - 0.2) + 2 * (1 - 0.7)) / 5
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_fewer_queries_than_bins():
    bins = calibration(np.array([0.8, 0.3]), np.array([False, True]))
    assert bins.rows() == [(0.3, 1.0, 0.0, 1), (0.8, 0.0, 0.0, 1)]
    assert expected_calibration_error(bins) == pytest.approx(0.75)
    with pytest.raises(DataError, match="no queries"):
        calibration(np.array([]), np.array([], dtype=bool))


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("sharpness, calibrated", [(1, True), (3, False)])
def test_targets_drawn_from_the_model_are_hit_as_often_as_it_says(
    filter_seen, sharpness, calibrated
):
    generator = np.random.default_rng(2)
    n_items, n = 30, 20_000
    truth = generator.dirichlet(np.full(n_items, 0.5), n_items) + 1e-6
    truth /= truth.sum(1, keepdims=True)
    newest = generator.integers(0, n_items, n)
    left = truth[newest]
    if filter_seen:
        left[np.arange(n), newest] = 0
    drawn = (left.cumsum(1) < generator.random((n, 1)) * left.sum(1, keepdims=True)).sum(1)
    stated = truth**sharpness
    model = Logits.of(stated / stated.sum(1, keepdims=True), log([[n_items]], n_items))
    histories = log([[int(item) + 1] for item in newest], n_items)
    found = evaluate(
        model,
        Queries(histories, drawn + 1),
        filter_seen=filter_seen,
        list_length=5,
        cutoffs=(5,),
        batch_size=4096,
        with_uncertainty=True,
    ).per_user
    hit = (found["target_rank"] < 5).to_numpy()
    error = expected_calibration_error(calibration(found["confidence"].to_numpy(), hit))
    # a tenth of 2,000 queries has a standard error of at most .5 / sqrt(2000) = .011
    if calibrated:
        assert error < 0.011
    else:
        assert error > 0.05


def powered(probabilities: list[float], temperature: float) -> np.ndarray:
    found = np.array(probabilities) ** (1 / temperature)
    return found / found.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_temperature_divides_the_logits(temperature: float) -> None:
    queries = Queries(log([[1], [2], [4]]), np.array([4, 1, 3]))
    found = top_chances(Logits.of(LIKELY, log([[1]])), queries, temperature=temperature)
    for row, (seen, target) in enumerate(((1, 4), (2, 1), (4, 3))):
        chances = powered(LIKELY, temperature)
        chances[seen - 1] = 0
        chances /= chances.sum()
        assert found.probability[row] == pytest.approx(chances.max(), rel=1e-5)
        assert found.of_target[row] == pytest.approx(chances[target - 1], rel=1e-5)
        assert found.hit[row] == (chances.argmax() == target - 1)
    expected = -np.log(found.of_target).mean()
    assert found.log_loss == pytest.approx(expected)


def test_a_temperature_divides_the_logits_of_every_draw() -> None:
    model = Draws.of([LIKELY, OTHER], log([[1]]))
    queries = Queries(log([[2]]), np.array([3]))
    found = top_chances(model, queries, temperature=2.0, filter_seen=False)
    mean = (powered(LIKELY, 2.0) + powered(OTHER, 2.0)) / 2
    assert found.of_target[0] == pytest.approx(mean[2], rel=1e-5)
    assert found.probability[0] == pytest.approx(mean.max(), rel=1e-5)


def test_the_temperature_of_the_truth_is_found() -> None:
    """Targets drawn at twice the temperature that a model states."""
    generator = np.random.default_rng(0)
    targets = 1 + generator.choice(4, 4000, p=powered(LIKELY, 2.0))
    queries = Queries(log([[1]] * 4000), targets)
    model = Logits.of(LIKELY, log([[1]]))
    found = fitted_temperature(model, queries, filter_seen=False)
    losses = {
        t: top_chances(model, queries, temperature=t, filter_seen=False).log_loss
        for t in (found / 1.05, found, found * 1.05)
    }
    assert min(losses, key=lambda t: losses[t]) == found
    assert found == pytest.approx(2.0, rel=0.15)
    before, after = (
        top_chances(model, queries, temperature=t, filter_seen=False) for t in (1.0, found)
    )
    errors = [
        expected_calibration_error(calibration(chances.probability, chances.hit))
        for chances in (before, after)
    ]
    assert errors[1] < errors[0]


def test_a_target_too_unlikely_for_its_number_still_counts() -> None:
    """Else the temperature that makes the worst guesses vanish would seem the best."""
    model = Logits.of([0.97, 0.01, 0.01, 0.01], log([[1]]))
    queries = Queries(log([[2], [2]]), np.array([1, 3]))
    found = top_chances(model, queries, temperature=0.02)
    assert found.log_loss > 40
    assert found.hit.tolist() == [True, False]
    assert fitted_temperature(model, queries) > 1


def test_targets_that_may_not_be_shown_are_left_out() -> None:
    model = Logits.of(LIKELY, log([[1]]))
    queries = Queries(log([[1], [2]]), np.array([1, 1]))
    found = top_chances(model, queries)
    assert found.of_target[0] == 0
    assert found.log_loss == pytest.approx(-np.log(found.of_target[1]))
    with pytest.raises(DataError, match="keep seen items"):
        fitted_temperature(model, Queries(log([[1]]), np.array([1])))
    with pytest.raises(ConfigError, match="temperature must be above 0"):
        top_chances(model, queries, temperature=0.0)


def test_a_temperature_leaves_popularity_as_it_is() -> None:
    model = Logits.of(LIKELY, log([[1, 1, 3], [1]]))
    queries = Queries(log([[], [2]]), np.array([3, 4]))
    found = top_chances(model, queries, temperature=2.0, filter_seen=False)
    assert found.of_target == pytest.approx([1 / 4, powered(LIKELY, 2.0)[3]], rel=1e-5)
    assert found.probability == pytest.approx([3 / 4, powered(LIKELY, 2.0).max()], rel=1e-5)
