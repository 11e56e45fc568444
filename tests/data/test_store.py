"""The built-in store: the log it writes and the distribution it says it was drawn from."""

import numpy as np
import polars as pl
import pytest
import torch

from diffuserec.data import (
    Histories,
    SequenceDataset,
    Store,
    histories_of,
    history_batches,
    leave_one_out,
)
from diffuserec.errors import ConfigError
from diffuserec.evaluation.oracle import Oracle
from diffuserec.models.recommender import Recommender
from diffuserec.recommenders.markov import Markov
from diffuserec.recommenders.popularity import Popularity

DEMO = Store()
SMALL = Store(n_users=20_000, n_items=40, n_categories=4, longest=20)


@pytest.fixture(scope="module")
def demo() -> SequenceDataset:
    return DEMO.dataset()


@pytest.fixture(scope="module")
def drawn() -> tuple[Histories, np.ndarray]:
    """A cut at random in every history of the small store, and the item that came there."""
    dataset = SMALL.dataset()
    cut = np.random.default_rng(0).integers(0, dataset.lengths)
    ends = dataset.starts + cut
    before = dataset.view(dataset.starts, ends)
    return histories_of(before, np.arange(len(before))), dataset.log.items[ends]


def test_same_fields_same_log(demo: SequenceDataset) -> None:
    again = Store().dataset()
    np.testing.assert_array_equal(demo.items, again.items)
    np.testing.assert_array_equal(demo.offsets, again.offsets)
    np.testing.assert_array_equal(demo.timestamps, again.timestamps)
    assert demo.catalog.attributes.equals(again.catalog.attributes)


def test_another_seed_is_another_log(demo: SequenceDataset) -> None:
    other = Store(seed=1).dataset()
    n = min(len(demo.items), len(other.items))
    assert np.mean(demo.items[:n] == other.items[:n]) < 0.02


def test_items_have_readable_names_of_their_own(demo: SequenceDataset) -> None:
    attributes = demo.catalog.attributes
    assert attributes.columns == ["name", "category"]
    assert attributes["name"].n_unique() == len(attributes) == DEMO.n_items
    assert attributes["category"].n_unique() == DEMO.n_categories
    assert attributes["name"].str.contains(r"^[A-Z][a-z]+ [A-Z][A-Za-z ]+$").all()
    assert demo.catalog.item_ids[11] == "B00012"
    # the frame's categories are those of the numbers
    pairs = pl.DataFrame({"n": DEMO.item_categories[1:], "c": attributes["category"]}).unique()
    assert len(pairs) == DEMO.n_categories


def test_names_stay_unique_in_a_large_store() -> None:
    attributes = Store(n_users=1, n_items=30_000, n_categories=50).dataset().catalog.attributes
    assert attributes["name"].n_unique() == 30_000
    assert attributes["category"].n_unique() == 50


def test_most_histories_are_short_and_some_are_long(demo: SequenceDataset) -> None:
    lengths = demo.lengths
    assert lengths.min() == 3
    assert 6 <= np.median(lengths) <= 8
    assert 0.005 < np.mean(lengths > 50) < 0.05
    assert lengths.max() <= DEMO.longest


def test_popularity_is_skewed_and_no_item_is_missing(demo: SequenceDataset) -> None:
    counts = np.sort(np.bincount(demo.items, minlength=DEMO.n_items + 1)[1:])[::-1]
    assert counts[-1] > 0
    assert 0.2 < counts[: DEMO.n_items // 10].sum() / counts.sum() < 0.6


def test_nobody_takes_an_item_twice(demo: SequenceDataset) -> None:
    owner = np.repeat(np.arange(len(demo)), demo.lengths)
    assert len(np.unique(owner * demo.vocab_size + demo.items)) == len(demo.items)
    assert demo.items.min() >= 1
    assert demo.items.max() <= DEMO.n_items


def test_time_runs_forward_for_every_customer(demo: SequenceDataset) -> None:
    same = np.diff(np.repeat(np.arange(len(demo)), demo.lengths)) == 0
    assert (np.diff(demo.timestamps)[same] > 0).all()
    first = demo.timestamps[demo.offsets[:-1]]
    assert len(np.unique(first // 86_400)) > 500


def test_visits_can_be_orders_of_one_time(demo: SequenceDataset) -> None:
    orders = Store(orders=True).dataset()
    np.testing.assert_array_equal(demo.items, orders.items)
    same = np.diff(np.repeat(np.arange(len(demo)), demo.lengths)) == 0
    gaps = np.diff(orders.timestamps)[same]
    assert (gaps >= 0).all()
    assert np.mean(gaps == 0) == pytest.approx(0.4, abs=0.01)
    assert np.median(gaps[gaps > 0]) > 86_400


def test_frame_is_the_same_log_in_order_of_time(demo: SequenceDataset) -> None:
    frame = DEMO.frame()
    assert frame.columns == ["user_id", "item_id", "timestamp"]
    assert frame["timestamp"].is_sorted()
    by_user = frame.sort("user_id", maintain_order=True)
    np.testing.assert_array_equal(demo.catalog.encode(by_user["item_id"]), demo.items)
    np.testing.assert_array_equal(by_user["timestamp"].to_numpy(), demo.timestamps)


def test_tastes_sum_to_one_and_drift() -> None:
    users = np.arange(500)
    early, late = (DEMO.tastes(users, np.full(500, at)) for at in (0, 100))
    np.testing.assert_allclose(early.sum(1), 1)
    np.testing.assert_allclose(late.sum(1), 1)
    assert np.abs(early - late).sum(1).mean() > 0.8


def test_probabilities_sum_to_one_and_leave_out_what_was_taken(
    drawn: tuple[Histories, np.ndarray],
) -> None:
    histories, _ = drawn
    chances = SMALL.next_item_probabilities(histories)
    torch.testing.assert_close(chances.sum(1), torch.ones(len(chances), dtype=torch.float64))
    assert (chances.gather(1, histories.items) == 0).all()
    assert (chances >= 0).all()
    assert not chances[:, 0].any()


def test_draws_follow_the_stated_distribution(drawn: tuple[Histories, np.ndarray]) -> None:
    histories, targets = drawn
    chances = SMALL.next_item_probabilities(histories).numpy()
    # each item comes as often as stated
    expected, spread = chances.sum(0)[1:], np.sqrt((chances * (1 - chances)).sum(0)[1:])
    z = (np.bincount(targets, minlength=41)[1:] - expected) / spread
    assert abs(z).max() < 4.5
    assert np.mean(z**2) == pytest.approx(1, abs=5 * (2 / 40) ** 0.5)
    # and so does each level of probability, whichever the item
    level = np.digitize(chances, np.quantile(chances[chances > 0], np.linspace(0, 1, 21)[1:-1]))
    hit = np.zeros_like(chances)
    hit[np.arange(len(targets)), targets] = 1
    expected, observed, variance = (
        np.bincount(level.ravel(), values.ravel(), 20)
        for values in (chances, hit, chances * (1 - chances))
    )
    assert (abs(observed - expected) / np.sqrt(variance)).max() < 4.5


def log_likelihoods(
    store: Store, drawn: tuple[Histories, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each drawn item, and its expectation (minus the entropy)."""
    chances = store.next_item_probabilities(drawn[0]).numpy()
    logs = np.log(np.where(chances > 0, chances, 1))
    return logs[np.arange(len(chances)), drawn[1]], (chances * logs).sum(1)


def test_mean_log_likelihood_is_minus_the_entropy(drawn: tuple[Histories, np.ndarray]) -> None:
    found, expected = log_likelihoods(SMALL, drawn)
    excess = found - expected
    assert abs(excess.mean()) < 4.5 * excess.std() / len(excess) ** 0.5


@pytest.mark.parametrize(
    "wrong", [{"successor_weight": 0.0}, {"stray_weight": 0.2}, {"drift": 1e6}, {"zipf": 0.5}]
)
def test_a_wrong_oracle_is_less_likely(
    wrong: dict[str, float], drawn: tuple[Histories, np.ndarray]
) -> None:
    fields = {"n_users": 20_000, "n_items": 40, "n_categories": 4, "longest": 20} | wrong
    other = Store(**fields)  # type: ignore[arg-type]
    right, _ = log_likelihoods(SMALL, drawn)
    found, expected = log_likelihoods(other, drawn)
    better = right - found
    assert better.mean() > 4.5 * better.std() / len(better) ** 0.5
    assert np.isfinite(expected).all()


def ndcg_10(model: Recommender) -> float:
    split = leave_one_out(DEMO.dataset())
    model.fit(split.train)
    gain = 0.0
    for index, histories in history_batches(split.test.histories, 512):
        # items seen, and padding, are hidden; the store's customers never take an item twice
        scores = model.score(histories).scatter(1, histories.items, -torch.inf)
        scores[:, 0] = -torch.inf
        of_target = scores.gather(1, torch.from_numpy(split.test.targets[index])[:, None])
        rank = ((scores > of_target).sum(1) + ((scores == of_target).sum(1) - 1) / 2).numpy()
        gain += float(np.sum((rank < 10) / np.log2(rank + 2)))
    return gain / len(split.test)


def test_the_oracle_is_far_above_trivial_baselines() -> None:
    popularity, markov, best = (ndcg_10(m) for m in (Popularity(), Markov(), Oracle(DEMO)))
    assert popularity < 0.6 * markov
    assert markov < 0.8 * best


def test_the_oracle_refuses_a_foreign_log() -> None:
    with pytest.raises(ConfigError, match="not the whole log of its store"):
        Oracle(DEMO).fit(SequenceDataset.from_lists([[1, 2, 3]]))


@pytest.mark.parametrize(
    "field, value",
    [("n_users", 0), ("n_items", 3), ("n_categories", 500), ("stray_weight", 0.0), ("drift", 0.0)],
)
def test_impossible_stores_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"Store: {field} must lie in"):
        Store(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{}, {"n_categories": 1}, {"n_categories": 4}])
def test_the_smallest_stores_work(fields: dict[str, int]) -> None:
    store = Store(n_users=50, n_items=8, **(fields or {"n_categories": 2}))
    assert len(store.dataset()) == 50
