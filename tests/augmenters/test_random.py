"""Random and Random-Seq: the distribution of drawn items, and that nothing else changes."""

import numpy as np
import pytest

from diffuserec.augmenters.random import Random
from diffuserec.augmenters.random_seq import RandomSeq
from diffuserec.data import SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.methods import load_augmenter

Baseline = type[Random] | type[RandomSeq]
both = pytest.mark.parametrize("method", [Random, RandomSeq])


def prefixes(augmented: SequenceDataset, n_items: int) -> np.ndarray:
    return np.stack([augmented[user][:n_items] for user in range(len(augmented))])


@both
def test_items_are_put_in_front_and_the_rest_stays(
    method: Baseline, random_log: SequenceDataset
) -> None:
    augmented = method(n_items=4).fit(random_log).augment(random_log, 1)
    assert np.array_equal(augmented.lengths, random_log.lengths + 4)
    for user in range(len(random_log)):
        assert np.array_equal(augmented[user][4:], random_log[user])
    synthetic = [augmented.synthetic[start : start + 4].all() for start in augmented.offsets[:-1]]
    assert all(synthetic)
    assert augmented.synthetic.sum() == 4 * len(random_log)
    assert augmented.items.min() >= 1
    assert augmented.items.max() <= random_log.catalog.n_items


def test_random_draws_each_item_equally_often() -> None:
    log = SequenceDataset.from_lists([[1, 2, 5]] * 2000)
    drawn = prefixes(Random(n_items=10, condition="published").fit(log).augment(log), 10)
    counts = np.bincount(drawn.reshape(-1), minlength=6)
    assert counts[0] == 0
    # 20,000 draws of 5 items: standard deviation 57
    np.testing.assert_allclose(counts[1:], 4000, atol=5 * 57)


def test_random_seq_draws_each_own_item_equally_often() -> None:
    log = SequenceDataset.from_lists([[3, 1, 4, 4]] * 2000 + [[2]])
    drawn = prefixes(RandomSeq(n_items=10, condition="published").fit(log).augment(log), 10)
    counts = np.bincount(drawn[:-1].reshape(-1), minlength=5)
    assert counts[0] == counts[2] == 0
    np.testing.assert_allclose(counts[[1, 3, 4]], [5000, 5000, 10000], atol=5 * 71)
    assert (drawn[-1] == 2).all()


def test_random_seq_draws_from_the_first_items_by_default() -> None:
    log = SequenceDataset.from_lists([[3, 1, 4, 4], [2, 1]])
    assert prefixes(RandomSeq(n_items=5).fit(log).augment(log), 5).tolist() == [[3] * 5, [2] * 5]
    three = RandomSeq(n_items=40, n_condition=3).fit(log).augment(log)
    assert set(three[0][:40].tolist()) == {1, 3, 4}
    assert three[1].tolist() == [2, 1]  # no third item yet


def test_random_gives_histories_of_one_beginning_the_same_items() -> None:
    log = SequenceDataset.from_lists([[3, 1, 4], [3, 2], [2, 1]])
    drawn = prefixes(Random(n_items=20).fit(log).augment(log), 20).tolist()
    assert drawn[0] == drawn[1] != drawn[2]


@both
def test_a_users_items_depend_on_seed_user_and_history_only(
    method: Baseline, random_log: SequenceDataset
) -> None:
    model = method(n_items=3, condition="published").fit(random_log)
    whole = prefixes(model.augment(random_log, 5), 3)
    assert np.array_equal(whole, prefixes(model.augment(random_log, 5), 3))
    assert not np.array_equal(whole, prefixes(model.augment(random_log, 6), 3))
    some = np.array([17, 3, 30])
    assert np.array_equal(prefixes(model.augment(random_log.select(some), 5), 3), whole[some])


@both
def test_only_short_histories_are_lengthened_and_no_empty_ones(method: Baseline) -> None:
    log = SequenceDataset.from_lists([[1, 2], [], [1, 2, 3], [4]])
    model = method(n_items=2, max_history=2).fit(log)
    once = model.augment(log)
    assert once.lengths.tolist() == [4, 0, 3, 3]
    # synthetic items do not count, and are not drawn from
    assert model.augment(once).lengths.tolist() == [6, 0, 3, 5]


@both
def test_a_saved_one_draws_the_same(
    method: Baseline, random_log: SequenceDataset, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model: Augmenter = method(n_items=2).fit(random_log)
    path = tmp_path_factory.mktemp("model") / "saved"
    model.save(path)
    restored = load_augmenter(path)
    assert np.array_equal(restored.augment(random_log, 3).items, model.augment(random_log, 3).items)


@both
def test_one_that_is_not_fitted_is_refused(method: Baseline, random_log: SequenceDataset) -> None:
    with pytest.raises(ConfigError, match="not fitted"):
        method().augment(random_log)
