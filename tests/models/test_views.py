"""Views by properties that any result must have; targets by brute force."""

import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import permutations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuserec.data import Catalog, SequenceDataset, training_batches
from diffuserec.errors import ConfigError
from diffuserec.models.views import (
    LearnedView,
    SameTarget,
    concat_views,
    crop,
    encode_with_views,
    insert,
    mask,
    most_confident,
    random_positions,
    random_prefix,
    random_share,
    reorder,
    sample_two_views,
    substitute,
)

# items 1 to 9; those similar to item i are 3i + 7 to 3i + 9, so that any item from 10 on is new
SIMILAR = torch.tensor([[0, 0, 0]] + [[3 * i + 7, 3 * i + 8, 3 * i + 9] for i in range(1, 10)])
MASK = 37

SEEDS = st.integers(0, 2**31)


@st.composite
def ragged(draw: st.DrawFn) -> list[list[int]]:
    """A few sequences of 1 to 12 items, one of 1 and one of 2 among them."""
    long = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), max_size=4)
    short = [[draw(st.integers(1, 9))], draw(st.lists(st.integers(1, 9), min_size=2, max_size=2))]
    return draw(st.permutations([*draw(long), *short]))


def over_batches(test: Callable) -> Callable:
    """The test for many batches, ratios, widths of the padded items and seeds."""
    ratios = st.sampled_from(["0.01", "0.1", "0.29", "0.3", "0.5", "0.6", "0.7", "0.9", "1.0"])
    cases = given(ragged(), ratios, st.sampled_from([0, 15]), SEEDS)
    return settings(max_examples=70, deadline=None)(cases(test))


def tensors(sequences: list[list[int]], width: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(width, *map(len, sequences))
    items = torch.tensor([sequence + [0] * (width - len(sequence)) for sequence in sequences])
    return items, torch.tensor([len(sequence) for sequence in sequences])


def made(
    view: Callable, sequences: list[list[int]], *arguments, width: int = 0, seed: int = 0
) -> list[list[int]]:
    """The lists that a view makes; its inputs stay unchanged, padding stays padding."""
    torch.manual_seed(seed)
    items, lengths = tensors(sequences, width)
    before = items.clone(), lengths.clone()
    found, found_lengths = view(items, lengths, *arguments)
    lists = []
    for items_found, length in zip(found.tolist(), found_lengths.tolist(), strict=True):
        assert length >= 1
        assert all(items_found[:length])
        assert not any(items_found[length:])
        lists.append(items_found[:length])
    found.fill_(-1)
    found_lengths.fill_(-1)
    assert torch.equal(items, before[0])
    assert torch.equal(lengths, before[1])
    return lists


def share(sequence: list[int], ratio: str) -> int:
    return math.floor(Fraction(ratio) * len(sequence))


@over_batches
def test_a_crop_is_one_run_of_the_original(sequences, ratio, width, seed):
    lists = made(crop, sequences, float(ratio), width=width, seed=seed)
    for old, new in zip(sequences, lists, strict=True):
        n = max(1, share(old, ratio))
        assert len(new) == n
        assert new in [old[first : first + n] for first in range(len(old))]


@over_batches
def test_a_mask_hides_as_many_as_it_says_but_never_all(sequences, ratio, width, seed):
    lists = made(mask, sequences, float(ratio), MASK, width=width, seed=seed)
    for old, new in zip(sequences, lists, strict=True):
        hidden = [position for position, item in enumerate(new) if item == MASK]
        assert len(hidden) == min(share(old, ratio), len(old) - 1)
        assert [MASK if p in hidden else item for p, item in enumerate(old)] == new


@over_batches
def test_a_reordering_shuffles_one_run(sequences, ratio, width, seed):
    lists = made(reorder, sequences, float(ratio), width=width, seed=seed)
    for old, new in zip(sequences, lists, strict=True):
        n = share(old, ratio)
        assert any(
            new[:first] == old[:first]
            and sorted(new[first : first + n]) == sorted(old[first : first + n])
            and new[first + n :] == old[first + n :]
            for first in range(len(old) - n + 1)
        )


@over_batches
def test_a_substitute_is_similar_to_the_item_that_it_replaces(sequences, ratio, width, seed):
    lists = made(substitute, sequences, float(ratio), SIMILAR, width=width, seed=seed)
    for old, new in zip(sequences, lists, strict=True):
        changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        assert len(changed) == max(1, share(old, ratio))
        assert all(b in SIMILAR[a].tolist() for a, b in changed)


@over_batches
def test_an_inserted_item_comes_before_the_one_that_it_is_similar_to(sequences, ratio, width, seed):
    lists = made(insert, sequences, float(ratio), SIMILAR, width=width, seed=seed)
    for old, new in zip(sequences, lists, strict=True):
        assert [item for item in new if item < 10] == old
        assert len(new) == len(old) + max(1, share(old, ratio))
        for position, item in enumerate(new):
            if item >= 10:
                assert item in SIMILAR[new[position + 1]].tolist()


VIEWS = {
    "crop": crop,
    "mask": lambda items, lengths, ratio: mask(items, lengths, ratio, MASK),
    "reorder": reorder,
    "substitute": lambda items, lengths, ratio: substitute(items, lengths, ratio, SIMILAR),
    "insert": lambda items, lengths, ratio: insert(items, lengths, ratio, SIMILAR),
}


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.5, math.nan])
@pytest.mark.parametrize("view", VIEWS)
def test_a_ratio_that_is_no_share_is_refused_by_its_number(view, ratio):
    items, lengths = tensors([[1, 2, 3], [4]])
    with pytest.raises(ConfigError, match=rf"above 0 and at most 1, got {ratio}$"):
        VIEWS[view](items, lengths, ratio)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_drawn_from_torchs_default_generator(view):
    items, lengths = tensors([[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 8)
    torch.manual_seed(0)
    first = VIEWS[view](items, lengths, 0.5)
    assert not torch.equal(VIEWS[view](items, lengths, 0.5)[0], first[0])
    torch.manual_seed(0)
    assert torch.equal(VIEWS[view](items, lengths, 0.5)[0], first[0])


@over_batches
def test_the_newest_items_are_kept_after_insertions(sequences, ratio, width, seed):
    whole = made(insert, sequences, float(ratio), SIMILAR, width=width, seed=seed)
    for max_len in (1, 5):
        cut = made(insert, sequences, float(ratio), SIMILAR, max_len, width=width, seed=seed)
        assert cut == [sequence[-max_len:] for sequence in whole]


@pytest.mark.parametrize("view", VIEWS)
def test_every_sequence_may_have_its_own_ratio(view):
    items, lengths = tensors([[1, 2, 3, 4, 5, 6, 7, 8, 9, 1], [1, 2, 3, 4, 5], [7, 8], [9]])
    ratios = [0.3, 0.7, 0.5, 1.0]
    torch.manual_seed(0)
    own = VIEWS[view](items, lengths, torch.tensor(ratios, dtype=torch.float64))
    for n, ratio in enumerate(ratios):
        torch.manual_seed(0)
        alike = VIEWS[view](items, lengths, ratio)
        length = int(alike[1][n])
        assert own[1][n] == length
        assert torch.equal(own[0][n, :length], alike[0][n, :length])
        assert not own[0][n, length:].any()


def test_a_share_is_that_of_decimal_numbers():
    # 50 · 0.58 is 29, in doubles 28.999999999999996
    (cropped,) = made(crop, [[1] * 50], 0.58)
    (masked,) = made(mask, [[1] * 50], 0.58, MASK)
    assert len(cropped) == masked.count(MASK) == 29


DRAWS = 10_000


def many(view: Callable, sequence: list[int], *arguments) -> list[tuple[int, ...]]:
    """Views of a sequence, made many times in a batch with a longer one."""
    batch = [sequence] * DRAWS + [[9] * (len(sequence) + 3)]
    return [tuple(new) for new in made(view, batch, *arguments)[:-1]]


def assert_equally_likely(found: Counter, cases: set, total: int = DRAWS) -> None:
    assert set(found) == cases
    expected = total / len(cases)
    assert all(abs(n - expected) < 6 * math.sqrt(expected) for n in found.values()), found


@pytest.mark.parametrize("ratio, n", [(0.1, 1), (0.4, 2), (0.8, 4), (1.0, 5)])
def test_a_crop_starts_anywhere(ratio, n):
    runs = {tuple(range(first, first + n)) for first in range(1, 7 - n)}
    assert_equally_likely(Counter(many(crop, [1, 2, 3, 4, 5], ratio)), runs)


def test_a_mask_falls_on_any_pair():
    found = many(mask, [1, 2, 3, 4, 5], 0.4, MASK)
    pairs = {(a, b) for a in range(5) for b in range(a + 1, 5)}
    hidden = Counter(tuple(p for p in range(5) if new[p] == MASK) for new in found)
    assert_equally_likely(hidden, pairs)


def test_a_shuffle_makes_any_order():
    found = Counter(many(reorder, [1, 2, 3, 4], 1.0))
    assert_equally_likely(found, set(permutations([1, 2, 3, 4])))


def test_a_shuffled_run_starts_anywhere():
    # runs of two: half of them are swapped, at each of three starts equally often
    found = Counter(many(reorder, [1, 2, 3, 4], 0.5))
    same = found.pop((1, 2, 3, 4))
    assert abs(same - DRAWS / 2) < 6 * math.sqrt(DRAWS)
    swapped = {(2, 1, 3, 4), (1, 3, 2, 4), (1, 2, 4, 3)}
    assert_equally_likely(found, swapped, DRAWS - same)


def test_a_substitute_is_any_similar_item_at_any_position():
    found = Counter(many(substitute, [1, 2], 0.5, SIMILAR))
    wanted = {(a, 2) for a in SIMILAR[1].tolist()} | {(1, b) for b in SIMILAR[2].tolist()}
    assert_equally_likely(found, wanted)


def test_two_equal_items_are_substituted_apart():
    found = Counter(many(substitute, [1, 1], 1.0, SIMILAR))
    similar = SIMILAR[1].tolist()
    assert_equally_likely(found, {(a, b) for a in similar for b in similar})


def test_an_insertion_is_any_similar_item_at_any_position():
    found = Counter(many(insert, [1, 2], 0.5, SIMILAR))
    wanted = {(a, 1, 2) for a in SIMILAR[1].tolist()} | {(1, b, 2) for b in SIMILAR[2].tolist()}
    assert_equally_likely(found, wanted)


def test_views_are_put_together_as_wide_as_the_widest():
    views_of = tensors([[1, 2], [3]]), tensors([[4, 5, 6]]), tensors([[7]])
    items, lengths = concat_views(*views_of)
    assert items.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6], [7, 0, 0]]
    assert lengths.tolist() == [2, 1, 3, 1]


def repeats(item: int, n: int) -> Callable:
    """A view of n times the same item, behind which the sequence's first one says whose it is."""

    def view(items, lengths):
        made = torch.cat([torch.full((len(items), n), item), items[:, :1]], dim=1)
        return made, torch.full_like(lengths, n + 1)

    return view


@pytest.mark.parametrize("distinct", [True, False])
def test_two_operators_are_drawn_for_each_sequence(distinct):
    batch = tensors([[1, 5], [2]] * DRAWS)
    operators = [repeats(4, 1), repeats(5, 3), repeats(6, 2)]
    torch.manual_seed(0)
    found = sample_two_views(*batch, operators, distinct)
    drawn = []
    for items, lengths in found:
        which = items[:, 0] - 4
        assert torch.equal(lengths, torch.tensor([2, 4, 3])[which])
        assert torch.equal(items.gather(1, lengths[:, None] - 1)[:, 0], batch[0][:, 0])
        assert torch.equal(items > 0, torch.arange(items.shape[1]) < lengths[:, None])
        drawn.append(which.tolist())
    cases = {(a, b) for a in range(3) for b in range(3) if not (distinct and a == b)}
    assert_equally_likely(Counter(zip(*drawn, strict=True)), cases, 2 * DRAWS)


def test_a_single_operator_is_used_twice_and_draws_anew():
    items, lengths = tensors([[1, 2, 3, 4, 5, 6, 7, 8, 9]] * 8)
    torch.manual_seed(0)
    first, second = sample_two_views(items, lengths, [lambda i, n: reorder(i, n, 1.0)])
    for view, _ in (first, second):
        assert torch.equal(view.sort(dim=1).values, items)
    assert not torch.equal(first[0], second[0])


def test_a_random_prefix_ends_before_any_target():
    items, _ = tensors([[1, 2, 3, 4], [5, 6]] * DRAWS)
    # 3 is no target of the first sequence, for it is synthetic; 7 is the only one of the second
    targets, _ = tensors([[2, 8, 4, 9], [8, 7]] * DRAWS)
    targets[::2, 1] = targets[1::2, 0] = 0
    before = items.clone(), targets.clone()
    torch.manual_seed(0)
    (prefixes, lengths), found = random_prefix(items, targets)
    assert torch.equal(items, before[0])
    assert torch.equal(targets, before[1])
    assert torch.equal(prefixes > 0, torch.arange(prefixes.shape[1]) < lengths[:, None])
    drawn = [
        (*prefix[:length], target)
        for prefix, length, target in zip(
            prefixes.tolist(), lengths.tolist(), found.tolist(), strict=True
        )
    ]
    assert set(drawn[1::2]) == {(5, 6, 7)}
    assert_equally_likely(Counter(drawn[::2]), {(1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 9)})


@pytest.mark.parametrize("n_views", [1, 2, 3])
def test_sequences_and_views_are_encoded_in_one_pass(n_views):
    original = tensors([[1, 2, 3], [4, 5]])
    views = [tensors([[6, 7, 8, 9], [1]]), tensors([[2], [3, 4]]), tensors([[5, 6], [7, 8]])]
    calls = []

    def encode(items, lengths):  # two numbers a position: the item, and the sum up to it
        calls.append(lengths.tolist())
        return torch.stack([items, items.cumsum(1)], dim=2).float()

    states, *newest = encode_with_views(encode, original, *views[:n_views])
    assert calls == [[3, 2, 4, 1, 1, 2, 2, 2][: 2 + 2 * n_views]]
    assert states.tolist() == [[[1, 1], [2, 3], [3, 6]], [[4, 4], [5, 9], [0, 9]]]
    expected = [[[9, 30], [1, 1]], [[2, 2], [4, 7]], [[6, 11], [8, 15]]]
    assert [found.tolist() for found in newest] == expected[:n_views]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 9), SEEDS)
def test_the_most_confident_are_those_of_a_sort(data, width, seed):
    lengths = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=6))
    n = [data.draw(st.integers(0, length + 3)) for length in lengths]
    generator = torch.Generator().manual_seed(seed)
    # four values, so that there are ties; padding has the highest
    confidence = torch.randint(-2, 2, (len(lengths), width), generator=generator) / 2
    for sequence, length in zip(confidence, lengths, strict=True):
        sequence[length:] = 9
    before = confidence.clone()
    where = most_confident(confidence, torch.tensor(lengths), torch.tensor(n))
    assert torch.equal(confidence, before)
    for values, chosen, length, count in zip(confidence.tolist(), where, lengths, n, strict=True):
        best = sorted(range(length), key=lambda position, v=values: (-v[position], position))
        assert chosen.nonzero().flatten().tolist() == sorted(best[:count])


def test_the_most_confident_by_hand():
    confidence = torch.tensor([[0.5, 0.2, 0.5, 0.9], [0.1, 0.4, 0.8, 0.7]])
    where = most_confident(confidence, torch.tensor([4, 2]), torch.tensor([2, 1]))
    assert where.tolist() == [[True, False, False, True], [False, True, False, False]]


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 9), SEEDS)
def test_random_positions_are_real_and_as_many_as_asked(data, width, seed):
    lengths = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=6))
    n = [data.draw(st.integers(0, length + 3)) for length in lengths]
    torch.manual_seed(seed)
    where = random_positions(torch.tensor(lengths), width, torch.tensor(n))
    assert where.shape == (len(lengths), width)
    for chosen, length, count in zip(where, lengths, n, strict=True):
        assert int(chosen[:length].sum()) == min(count, length)
        assert not chosen[length:].any()


@pytest.mark.parametrize("ratio", [0.1, 0.6, 1.0])
def test_a_random_share_is_a_chance_for_each_and_one_for_certain(ratio):
    eligible = torch.tensor([[True] * 6, [False, True, True, False, True, False], [False] * 6])
    torch.manual_seed(0)
    drawn = torch.stack([random_share(eligible, ratio) for _ in range(4000)])
    assert not (drawn & ~eligible).any()
    assert drawn[:, :2].any(2).all()
    for sequence, n in enumerate([6, 3]):
        # drawn by its own chance, or chosen because no position was drawn
        expected = ratio + (1 - ratio) ** n / n
        shares = drawn[:, sequence][:, eligible[sequence]].double().mean(0)
        assert (shares - expected).abs().max() <= 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_random_positions_are_equally_likely_for_every_length():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 5]).repeat(DRAWS)
    where = random_positions(lengths, 6, torch.full_like(lengths, 2))
    for first, length in enumerate([3, 5]):
        found = where[first::2].float().mean(0)
        assert found[length:].tolist() == [0] * (6 - length)
        torch.testing.assert_close(
            found[:length], torch.full((length,), 2 / length), rtol=0.08, atol=0
        )


FLAGGED = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([False, False, True])), max_size=7),
    min_size=1,
    max_size=8,
)


def dataset_of(sequences: list[list[tuple[int, bool]]]) -> SequenceDataset:
    """A dataset of items and whether they are synthetic; nobody has two items of its catalog."""
    flags = np.array([flag for sequence in sequences for _, flag in sequence], dtype=bool)
    catalog = Catalog(pl.Series("item_id", np.arange(1, 8)), len(sequences))
    plain = SequenceDataset.from_lists([[item for item, _ in s] for s in sequences], catalog)
    return SequenceDataset.from_offsets(
        plain.items, plain.offsets, catalog, synthetic=flags if flags.any() else None
    )


def targets_of(dataset: SequenceDataset) -> dict[int, int]:
    """For each position in the log of a real item with another before it, its sequence's first."""
    synthetic = dataset.log.synthetic
    return {
        position: start
        for start, end in zip(dataset.starts.tolist(), dataset.ends.tolist(), strict=True)
        for position in range(start + 1, end)
        if synthetic is None or not synthetic[position]
    }


def items_at(dataset, positions):
    return torch.from_numpy(dataset.log.items.astype(np.int64))[positions]


@settings(max_examples=150, deadline=None)
@given(FLAGGED, st.integers(1, 7), st.booleans(), SEEDS)
def test_the_same_target_by_brute_force(sequences, max_len, with_gaps, seed):
    torch.manual_seed(seed)
    dataset = dataset_of(sequences)
    if with_gaps:  # without the newest item of each, and without the first sequence
        kept = np.arange(1, len(dataset))
        ends = np.maximum(dataset.starts, dataset.ends - 1)
        dataset = dataset.view(dataset.starts[kept], ends[kept], kept)
    starts, log = targets_of(dataset), dataset.log.items
    positions = torch.tensor([*starts, *starts, *starts], dtype=torch.int64)
    (items, lengths), others = SameTarget(dataset, max_len).sample(
        positions, items_at(dataset, positions)
    )
    assert len(items) == len(lengths) == len(others) == len(positions)
    for position, other, shown, length in zip(
        positions.tolist(), others.tolist(), items.tolist(), lengths.tolist(), strict=True
    ):
        allowed = [p for p in starts if log[p] == log[position] and p != position]
        assert other in (allowed or [position])
        before = log[starts[other] : other].tolist()[-max_len:]
        assert shown == before + [0] * (len(shown) - len(before))
        assert length == len(before)


def test_the_same_target_by_hand():
    # 3 is a target at positions 2, 4 and 6, 7 begins a sequence; no other prefix leads to 2
    dataset = SequenceDataset.from_lists([[1, 2, 3], [2, 3, 1, 3], [3]])
    same = SameTarget(dataset, 2)
    torch.manual_seed(0)
    found = set()
    for _ in range(50):
        (items, lengths), others = same.sample(torch.tensor([2, 1]), torch.tensor([3, 2]))
        found.add((others[0].item(), *items[0, : lengths[0]].tolist()))
        assert (others[1].item(), *items[1, : lengths[1]].tolist()) == (1, 1)
    assert found == {(4, 2), (6, 3, 1)}


def test_the_same_target_of_a_copy_is_any_position_that_holds_its_item():
    # position 1 of the original holds 2, that of its copy 3 or 7, which is nobody's next item
    dataset = SequenceDataset.from_lists([[1, 2, 3], [2, 3, 1, 3], [7]])
    torch.manual_seed(0)
    positions = torch.ones(50, dtype=torch.int64)
    _, others = SameTarget(dataset, 2).sample(positions, torch.full((50,), 3))
    assert set(others.tolist()) == {2, 4, 6}
    _, others = SameTarget(dataset, 2).sample(positions, torch.full((50,), 7))
    assert set(others.tolist()) == {1}


@pytest.mark.parametrize("position", [1, 5, 13])
def test_every_other_position_of_a_target_is_equally_likely(position):
    # item 9 at positions 1, 3, 5, 7, 10 and 13
    dataset = SequenceDataset.from_lists([[1, 9, 2, 9], [3, 9], [4, 9, 5], [6, 9], [9, 7, 9]])
    torch.manual_seed(0)
    positions = torch.full((DRAWS,), position)
    _, others = SameTarget(dataset, 5).sample(positions, items_at(dataset, positions))
    assert_equally_likely(Counter(others.tolist()), {1, 3, 5, 7, 10, 13} - {position})


def test_the_same_target_of_a_batch_is_its_newest_target(random_log):
    same = SameTarget(random_log, 5)
    for examples in ("per_user", "prefixes"):
        for batch in training_batches(random_log, 8, 5, 0, 0, examples):
            newest = batch.targets.gather(1, batch.lengths[:, None] - 1)[:, 0]
            _, others = same.sample(batch.last_target_index, newest)
            assert random_log.log.items[others.numpy()].tolist() == newest.tolist()
            owners = np.searchsorted(random_log.ends, batch.last_target_index.numpy(), side="right")
            assert random_log.users[owners].tolist() == batch.users.tolist()


def test_a_log_without_targets_has_none_to_sample():
    (items, lengths), others = SameTarget(SequenceDataset.from_lists([[1], [], [2]]), 3).sample(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    )
    assert len(items) == len(lengths) == len(others) == 0


def test_the_same_target_takes_memory_as_the_log_does():
    # everyone has the same item: pairs of its positions would be 10 to the 11th
    n = 300_000
    offsets = np.arange(0, n + 1, 3, dtype=np.int64)
    catalog = Catalog(pl.Series("item_id", np.arange(1, 1001)), len(offsets) - 1)
    dataset = SequenceDataset.from_offsets(np.full(n, 7, dtype=np.int32), offsets, catalog)
    tracemalloc.start()
    try:
        same = SameTarget(dataset, 50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    arrays = [value for value in vars(same).values() if isinstance(value, np.ndarray)]
    own = [array for array in arrays if array is not dataset.log.items]
    assert len(own) == len(arrays) - 1  # the log is shared
    assert sum(array.nbytes for array in own) <= 16 * n + 8 * (1000 + 2)
    assert peak < 100 * n


@pytest.mark.parametrize("dim", [4, 7, 64])
def test_a_learned_view_has_length_one(dim):
    torch.manual_seed(0)
    states = torch.randn(5, dim)
    view = LearnedView(dim)
    found = view(states)
    assert found.shape == (5, dim)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(view(states[2:3])[0], found[2])


def test_a_learned_view_narrows_to_a_quarter_and_learns():
    view = LearnedView(8)
    shapes = [tuple(layer.weight.shape) for layer in view.layers if hasattr(layer, "weight")]
    assert shapes == [(4, 8), (2, 4), (8, 2)]
    states = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    view(states)[:, 0].sum().backward()
    for tensor in (states, *view.parameters()):
        assert tensor.grad.any()
