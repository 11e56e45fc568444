"""MaskDiff in worlds whose missing items, and their probabilities, are known."""

import math

import numpy as np
import pytest

from diffuserec.augmenters.maskdiff import MaskDiff
from diffuserec.data import SequenceDataset, leave_one_out
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import leak_meter
from diffuserec.models.base import Runtime
from diffuserec.models.methods import load_augmenter, with_settings

QUICK = {
    "epochs": 20,
    "patience": 20,
    "average_epochs": 0.0,
    "dim": 32,
    "n_layers": 1,
    "dropout": 0.0,
    "learning_rate": 0.01,
    "batch_size": 32,
    "max_len": 12,
}


def round_trips(n_users: int) -> SequenceDataset:
    """Walks of 5 to 9 steps round a cycle of 20 items."""
    generator = np.random.default_rng(0)
    starts, lengths = generator.integers(0, 20, n_users), generator.integers(5, 10, n_users)
    return SequenceDataset.from_lists(
        [[int(s + i) % 20 + 1 for i in range(n)] for s, n in zip(starts, lengths, strict=True)]
    )


@pytest.fixture(
    scope="module",
    params=[pytest.param(0, marks=pytest.mark.slow), 3],
    ids=["network alone", "with counts"],
)
def walker(request) -> MaskDiff:
    augmenter = MaskDiff(window=request.param, n_items=2, **(QUICK | {"epochs": 26}))
    return augmenter.fit(round_trips(400), runtime=Runtime(seed=1))


def test_items_are_right_in_front_in_the_middle_and_at_the_end(walker) -> None:
    seen = [[5, 6, 7, 8], [11, 12, 15, 16], [1, 2, 3, 4, 5], [18, 19, 20, 1]]
    shown = SequenceDataset.from_lists(seen, walker.catalog)
    made = walker.insert(shown, np.array([0, 2, 5, 4]), 2)
    right = [[3, 4], [13, 14], [6, 7], [2, 3]]
    assert made.items.tolist() == right
    beside_what_is_seen = made.probability[[0, 1, 1, 2, 3], [1, 0, 1, 0, 0]]
    assert (beside_what_is_seen > 0.8).all()
    assert (made.probability <= 1).all()


def test_augmenting_puts_them_in_front(walker) -> None:
    shown = SequenceDataset.from_lists([[9, 10, 11, 12]], walker.catalog)
    longer = walker.augment(shown)
    assert longer[0].tolist() == [7, 8, 9, 10, 11, 12]
    assert longer.synthetic.tolist() == [True] * 2 + [False] * 4


def test_augmenting_puts_them_in_the_middle_when_asked(walker) -> None:
    middle = with_settings(walker, {"use_place": "middle", "n_condition": 2})
    longer = middle.augment(SequenceDataset.from_lists([[9, 12, 13], [4]], walker.catalog))
    assert [sorted(items.tolist()) for items in longer] == [[9, 10, 11, 12, 13], [4]]
    assert longer.real()[0].tolist() == [9, 12, 13]
    assert longer.synthetic.tolist() == [False, True, True, *[False] * 3]
    assert longer.context_only.tolist() == [False] * 3 + [True, False, False]


def test_what_comes_next_is_expected(walker) -> None:
    shown = SequenceDataset.from_lists([[5, 6, 7], [19, 20]], walker.catalog)
    items, probability = walker.expected(shown)
    assert items[:, 0].tolist() == [8, 1]
    assert (probability[:, 0] > 0.8).all()
    assert (probability.sum(1) <= 1.0001).all()
    assert (np.diff(probability, axis=1) <= 0).all()


def test_few_steps_and_many_agree_where_there_is_one_answer(walker) -> None:
    shown = SequenceDataset.from_lists([[9, 10, 11, 12], [3, 4, 5, 6]], walker.catalog)
    many = with_settings(walker, {"num_inference_steps": 2})
    front = np.zeros(2, dtype=np.int64)
    assert many.insert(shown, front, 2).items.tolist() == [[7, 8], [1, 2]]


def test_the_bound_of_items_without_order_is_their_entropy() -> None:
    # counts that held the answer, as the user's own do, would look like knowledge in training and
    # make the bound on held-out users worse than the entropy
    generator = np.random.default_rng(3)
    lists = generator.integers(1, 31, (250, 6)).tolist()
    augmenter = MaskDiff(n_items=2, **(QUICK | {"epochs": 6, "learning_rate": 0.003}))
    augmenter.fit(SequenceDataset.from_lists(lists))
    bounds = [-epoch.valid for epoch in augmenter.curve if epoch.valid is not None]
    assert len(bounds) == 6
    assert abs(bounds[-1] - math.log(30)) < 0.1
    # nor is one of them put into all places, where each may come again
    again = with_settings(augmenter, {"exclude_seen": False})
    shown = SequenceDataset.from_lists([[1]], augmenter.catalog)
    assert len(set(again.insert(shown, shown.lengths, 5).items[0].tolist())) > 1


def test_probabilities_are_those_of_the_world() -> None:
    # before item 3 stands 1 with chance 0.75, else 2; before 6 always 4 or 5, evenly
    generator = np.random.default_rng(4)
    lists = []
    for _ in range(800):
        if generator.random() < 0.5:
            first = 1 if generator.random() < 0.75 else 2
            lists.append([first, 3])
        else:
            lists.append([int(generator.integers(4, 6)), 6])
    augmenter = MaskDiff(n_items=1, **(QUICK | {"epochs": 8})).fit(
        SequenceDataset.from_lists(lists)
    )
    shown = SequenceDataset.from_lists([[3], [6]], augmenter.catalog)
    made = augmenter.insert(shown, np.zeros(2, dtype=np.int64), 1)
    assert made.items[0].tolist() == [1]
    assert made.items[1, 0] in (4, 5)
    assert made.probability[0, 0] == pytest.approx(0.75, abs=0.06)
    assert made.probability[1, 0] == pytest.approx(0.5, abs=0.06)
    # what is less probable is left out, and then nothing was made from a first item
    strict = with_settings(augmenter, {"use_threshold": 0.6})
    longer = strict.augment(SequenceDataset.from_lists([[3, 2], [6, 2]], augmenter.catalog))
    assert [items.tolist() for items in longer] == [[1, 3, 2], [6, 2]]
    assert longer.context_only is not None
    assert longer.context_only.tolist() == [False, True, False, False, False]


def test_places_see_what_stands_in_the_others() -> None:
    # after 1 come 2 and 3 with chance 0.4, or 4 and one of 5, 6 and 7, in any order
    generator = np.random.default_rng(8)
    pairs, chances = [[2, 3], [4, 5], [4, 6], [4, 7]], [0.4, 0.2, 0.2, 0.2]
    lists = [
        [1, *generator.permutation(generator.choice(pairs, p=chances)).tolist()] for _ in range(400)
    ]
    augmenter = MaskDiff(n_items=1, **(QUICK | {"epochs": 8})).fit(
        SequenceDataset.from_lists(lists)
    )
    shown = SequenceDataset.from_lists([[1]], augmenter.catalog)

    def basket(n: int, **settings: bool | int) -> list[int]:
        made = with_settings(augmenter, settings).insert(shown, shown.lengths, n)
        return sorted(made.items[0].tolist())

    assert basket(2, num_inference_steps=2) in pairs
    assert basket(2, num_inference_steps=2, exclude_seen=False) in pairs
    # at once, each place has what is likely in itself, and these two never come together
    assert basket(2) in ([2, 4], [3, 4])
    # where all else is there already, what is there comes again, and no place is left empty
    shown = SequenceDataset.from_lists([[1, 2, 3, 4, 5, 7]], augmenter.catalog)
    items = basket(3)
    assert 6 in items
    assert min(items) > 0


def test_auto_uses_what_is_likely_and_nothing_else() -> None:
    # before item 2 always stands 1; before 3 any of 4 to 23
    generator = np.random.default_rng(5)
    lists = [[1, 2] if user % 2 else [int(generator.integers(4, 24)), 3] for user in range(600)]
    augmenter = MaskDiff(n_items="auto", precision=0.8, **(QUICK | {"epochs": 8}))
    augmenter.fit(SequenceDataset.from_lists(lists))
    longer = augmenter.augment(SequenceDataset.from_lists([[2], [3], [2]], augmenter.catalog))
    assert [items.tolist() for items in longer] == [[1, 2], [3], [1, 2]]


@pytest.mark.parametrize("exclude", [True, False])
def test_own_items_come_again_only_where_they_may(exclude: bool) -> None:
    lists = [[5, 5, 5, 5] if user % 2 else [6, 7, 8, 9] for user in range(300)]
    settings = QUICK | {"epochs": 10, "exclude_seen": exclude}
    augmenter = MaskDiff(n_items=2, **settings).fit(SequenceDataset.from_lists(lists))
    shown = SequenceDataset.from_lists([[5, 5]], augmenter.catalog)
    made = augmenter.insert(shown, np.zeros(1, dtype=np.int64), 2).items[0].tolist()
    assert (made == [5, 5]) != exclude
    assert len(set(made)) == 2 or not exclude
    for steps in (1, 2):
        many = with_settings(augmenter, {"num_inference_steps": steps})
        made = many.insert(shown, np.zeros(1, dtype=np.int64), 2, distinct=True).items[0].tolist()
        assert len(set(made)) == 2
        assert (5 in made) != exclude


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_items must be from 1 to max_len - 1 = 4, or 'auto'"):
        MaskDiff(n_items=5, max_len=5)
    with pytest.raises(ConfigError, match="n_items"):
        MaskDiff(n_items="some")
    with pytest.raises(ConfigError, match="precision"):
        MaskDiff(n_items=3, precision=0.5)


def test_places_that_do_not_exist_are_refused(walker) -> None:
    shown = SequenceDataset.from_lists([[5, 6], [7]], walker.catalog)
    with pytest.raises(DataError, match=r"sequence 1 has 1 items, .* a place from 0 to 1"):
        walker.insert(shown, np.array([2, 2]), 1)
    with pytest.raises(ConfigError, match="n must be from 1 to max_len - 1 = 11, got 12"):
        walker.insert(shown, np.array([0, 0]), 12)
    other = SequenceDataset.from_lists([[5, 6]])
    with pytest.raises(DataError, match="knows 20 items and the dataset has 6"):
        walker.insert(other, np.array([0]), 1)


def test_where_no_item_is_likely_enough_none_is_used_and_it_is_saved(tmp_path) -> None:
    generator = np.random.default_rng(6)
    log = SequenceDataset.from_lists(generator.integers(1, 80, (60, 4)).tolist())
    augmenter = MaskDiff(n_items="auto", precision=0.99, **(QUICK | {"epochs": 1})).fit(log)
    augmenter.save(tmp_path / "maskdiff")
    longer = load_augmenter(tmp_path / "maskdiff").augment(log)
    assert longer.lengths.tolist() == [4] * 60


def test_items_in_the_middle_are_not_what_came_next_in_that_history() -> None:
    # histories without rules: whoever puts their later items in front of those has learned by heart
    generator = np.random.default_rng(7)
    lists = [generator.permutation(300)[:8] + 1 for _ in range(150)]
    split = leave_one_out(SequenceDataset.from_lists([items.tolist() for items in lists]))
    settings = QUICK | {"epochs": 1, "n_items": 4, "use_place": "middle", "n_condition": 2}
    augmenter = MaskDiff(**settings).fit(split.train)
    found = leak_meter(augmenter, augmenter.augment(split.train), split.valid)
    assert found.training.n_targets == 150 * 4
    assert found.training.share < 0.05  # 4 of 300, and chance


def test_with_nobody_held_out_probabilities_are_taken_as_they_are() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3, 4]] * 8)
    augmenter = MaskDiff(n_items="auto", precision=0.6, **(QUICK | {"epochs": 1}))
    longer = augmenter.fit(log, runtime=Runtime(precision="bf16")).augment(log)
    assert longer.real_lengths.tolist() == [4] * 8
    assert float(augmenter.least_probability) == pytest.approx(0.6)
