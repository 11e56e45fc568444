"""Views by what can be read off any result; probabilities, neighbors and targets by brute force."""

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

from diffuserec import views
from diffuserec.data import Catalog, SequenceDataset, training_batches
from diffuserec.errors import ConfigError
from diffuserec.models.views import (
    LearnedView,
    SameTarget,
    confidences,
    crop,
    insert,
    joined,
    mask,
    most_confident,
    nearest_items,
    random_positions,
    random_prefix,
    random_share,
    reorder,
    substitute,
    top_items,
    two_of,
)

# items 1 to 9; those similar to item i are 3i + 7 to 3i + 9, so that whatever is 10 or more came in
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
    """The lists that a view makes; what it was given stays, padding stays padding."""
    torch.manual_seed(seed)
    items, lengths = tensors(sequences, width)
    before = items.clone(), lengths.clone()
    found, found_lengths = view(items, lengths, *arguments)
    lists = []
    for row, length in zip(found.tolist(), found_lengths.tolist(), strict=True):
        assert length >= 1
        assert all(row[:length])
        assert not any(row[length:])
        lists.append(row[:length])
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
        hidden = [place for place, item in enumerate(new) if item == MASK]
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
def test_a_substitute_is_similar_to_what_stood_there(sequences, ratio, width, seed):
    lists = made(substitute, sequences, float(ratio), SIMILAR, width=width, seed=seed)
    for old, new in zip(sequences, lists, strict=True):
        changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
        assert len(changed) == max(1, share(old, ratio))
        assert all(b in SIMILAR[a].tolist() for a, b in changed)


@over_batches
def test_what_is_inserted_stands_before_what_it_is_similar_to(sequences, ratio, width, seed):
    lists = made(insert, sequences, float(ratio), SIMILAR, width=width, seed=seed)
    for old, new in zip(sequences, lists, strict=True):
        assert [item for item in new if item < 10] == old
        assert len(new) == len(old) + max(1, share(old, ratio))
        for place, item in enumerate(new):
            if item >= 10:
                assert item in SIMILAR[new[place + 1]].tolist()


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
def test_of_what_was_inserted_into_the_newest_are_kept(sequences, ratio, width, seed):
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
    for row, ratio in enumerate(ratios):
        torch.manual_seed(0)
        alike = VIEWS[view](items, lengths, ratio)
        length = int(alike[1][row])
        assert own[1][row] == length
        assert torch.equal(own[0][row, :length], alike[0][row, :length])
        assert not own[0][row, length:].any()


def test_a_share_is_that_of_decimal_numbers():
    # 50 · 0.58 is 29, in doubles 28.999999999999996
    (cropped,) = made(crop, [[1] * 50], 0.58)
    (masked,) = made(mask, [[1] * 50], 0.58, MASK)
    assert len(cropped) == masked.count(MASK) == 29


DRAWS = 10_000


def many(view: Callable, sequence: list[int], *arguments) -> list[tuple[int, ...]]:
    """What a view makes of a sequence, many times, beside others that are longer."""
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


def test_a_substitute_is_any_similar_item_at_any_place():
    found = Counter(many(substitute, [1, 2], 0.5, SIMILAR))
    wanted = {(a, 2) for a in SIMILAR[1].tolist()} | {(1, b) for b in SIMILAR[2].tolist()}
    assert_equally_likely(found, wanted)


def test_two_equal_items_are_substituted_apart():
    found = Counter(many(substitute, [1, 1], 1.0, SIMILAR))
    similar = SIMILAR[1].tolist()
    assert_equally_likely(found, {(a, b) for a in similar for b in similar})


def test_an_insertion_is_any_similar_item_at_any_place():
    found = Counter(many(insert, [1, 2], 0.5, SIMILAR))
    wanted = {(a, 1, 2) for a in SIMILAR[1].tolist()} | {(1, b, 2) for b in SIMILAR[2].tolist()}
    assert_equally_likely(found, wanted)


def test_views_are_joined_as_wide_as_the_widest():
    views_of = tensors([[1, 2], [3]]), tensors([[4, 5, 6]]), tensors([[7]])
    items, lengths = joined(*views_of)
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
    found = two_of(*batch, operators, distinct)
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
    first, second = two_of(items, lengths, [lambda i, n: reorder(i, n, 1.0)])
    for view, _ in (first, second):
        assert torch.equal(view.sort(dim=1).values, items)
    assert not torch.equal(first[0], second[0])


def test_a_random_prefix_is_what_comes_before_any_target():
    items, _ = tensors([[1, 2, 3, 4], [5, 6]] * DRAWS)
    # 3 is no target of the first, that is synthetic; 7 is the second's only one
    targets, _ = tensors([[2, 8, 4, 9], [8, 7]] * DRAWS)
    targets[::2, 1] = targets[1::2, 0] = 0
    before = items.clone(), targets.clone()
    torch.manual_seed(0)
    (prefixes, lengths), found = random_prefix(items, targets)
    assert torch.equal(items, before[0])
    assert torch.equal(targets, before[1])
    assert torch.equal(prefixes > 0, torch.arange(prefixes.shape[1]) < lengths[:, None])
    rows = [
        (*row[:length], target)
        for row, length, target in zip(
            prefixes.tolist(), lengths.tolist(), found.tolist(), strict=True
        )
    ]
    assert set(rows[1::2]) == {(5, 6, 7)}
    assert_equally_likely(Counter(rows[::2]), {(1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 9)})


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 9), SEEDS)
def test_the_most_confident_are_those_of_a_sort(data, width, seed):
    lengths = data.draw(st.lists(st.integers(1, width), min_size=1, max_size=6))
    n = [data.draw(st.integers(0, length + 3)) for length in lengths]
    generator = torch.Generator().manual_seed(seed)
    # four values, so that there are ties; padding has the highest
    confidence = torch.randint(-2, 2, (len(lengths), width), generator=generator) / 2
    for row, length in enumerate(lengths):
        confidence[row, length:] = 9
    before = confidence.clone()
    where = most_confident(confidence, torch.tensor(lengths), torch.tensor(n))
    assert torch.equal(confidence, before)
    for row, length in enumerate(lengths):
        values = confidence[row].tolist()
        best = sorted(range(length), key=lambda place: (-values[place], place))[: n[row]]
        assert where[row].nonzero().flatten().tolist() == sorted(best)


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
    for row, length in enumerate(lengths):
        assert int(where[row, :length].sum()) == min(n[row], length)
        assert not where[row, length:].any()


@pytest.mark.parametrize("ratio", [0.1, 0.6, 1.0])
def test_a_random_share_is_a_chance_for_each_and_one_for_certain(ratio):
    eligible = torch.tensor([[True] * 6, [False, True, True, False, True, False], [False] * 6])
    torch.manual_seed(0)
    drawn = torch.stack([random_share(eligible, ratio) for _ in range(4000)])
    assert not (drawn & ~eligible).any()
    assert drawn[:, :2].any(2).all()
    for row, n in enumerate([6, 3]):
        # what came up by itself, or was chosen because nothing had
        expected = ratio + (1 - ratio) ** n / n
        shares = drawn[:, row][:, eligible[row]].double().mean(0)
        assert (shares - expected).abs().max() <= 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_random_positions_are_equally_likely_for_every_length():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 5]).repeat(DRAWS)
    where = random_positions(lengths, 6, torch.full_like(lengths, 2))
    for row, length in enumerate([3, 5]):
        found = where[row::2].float().mean(0)
        assert found[length:].tolist() == [0] * (6 - length)
        torch.testing.assert_close(
            found[:length], torch.full((length,), 2 / length), rtol=0.08, atol=0
        )


V, P, D = 29, 23, 6


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """States and a table whose padding row would win everywhere."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(P, D, generator=generator).abs()
    table = torch.randn(V, D, generator=generator)
    table[0] = 20
    return states, table


BLOCKS = pytest.mark.parametrize("block", [1, V, 3 * V + 5, 10**9])


@BLOCKS
def test_confidence_is_the_greatest_probability(monkeypatch, block):
    monkeypatch.setattr(views, "_BLOCK", block)
    states, table = problem()
    whole = torch.softmax(states.double() @ table[1:].double().T, dim=1)
    found = confidences(states, table)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), whole.amax(1), rtol=1e-5, atol=1e-6)


def test_confidence_in_bfloat16():
    states, table = problem()
    whole = confidences(states, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = confidences(states, table)
    assert found.dtype == torch.float32
    assert found.max() <= 1
    torch.testing.assert_close(found, whole, rtol=0.05, atol=0)


@BLOCKS
def test_top_items_are_those_of_the_whole_softmax(monkeypatch, block):
    monkeypatch.setattr(views, "_BLOCK", block)
    states, table = problem()
    whole = torch.softmax(states.double() @ table[1:].double().T, dim=1)
    expected = whole.argsort(dim=1, descending=True) + 1
    assert torch.equal(top_items(states, table, 4), expected[:, :4])
    assert torch.equal(top_items(states, table, V - 1), expected)


@BLOCKS
def test_an_excluded_item_is_passed_over(monkeypatch, block):
    monkeypatch.setattr(views, "_BLOCK", block)
    states, table = problem()
    order = top_items(states, table, V - 1)
    # the best of some, the second of others, ...
    excluded = order[torch.arange(P), torch.arange(P) % 5]
    found = top_items(states, table, V - 2, excluded)
    for row in range(P):
        expected = [item for item in order[row].tolist() if item != excluded[row]]
        assert found[row].tolist() == expected


def test_blocks_leave_states_and_table_as_they_were():
    states, table = problem()
    before = states.clone(), table.clone()
    confidences(states, table)
    top_items(states, table, 3, torch.ones(P, dtype=torch.int64))
    nearest_items(table, 3)
    assert torch.equal(states, before[0])
    assert torch.equal(table, before[1])


def test_no_positions_have_no_top_items():
    _, table = problem()
    assert confidences(torch.zeros(0, D), table).shape == (0,)
    assert top_items(torch.zeros(0, D), table, 3).shape == (0, 3)


@BLOCKS
@pytest.mark.parametrize("k", [1, 4, V - 2])
def test_nearest_items_by_brute_force(monkeypatch, block, k):
    monkeypatch.setattr(views, "_BLOCK", block)
    _, table = problem()
    found = nearest_items(table, k)
    assert found[0].tolist() == [0] * k
    products = table.double().numpy() @ table.double().numpy().T
    for item in range(1, V):
        order = [other for other in np.argsort(-products[item]) if other not in (0, item)]
        assert found[item].tolist() == order[:k]


@pytest.mark.parametrize("n_items, k", [(5, 5), (5, 9), (1, 1)])
def test_more_neighbors_than_other_items_are_refused(n_items, k):
    with pytest.raises(ConfigError, match=rf"^{k} nearest items .* only {n_items - 1} others"):
        nearest_items(torch.ones(n_items + 1, D), k)


FLAGGED = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([False, False, True])), max_size=7),
    min_size=1,
    max_size=8,
)


def dataset_of(sequences: list[list[tuple[int, bool]]]) -> SequenceDataset:
    """Of items and whether they are synthetic; the catalog has two that nobody has."""
    flags = np.array([flag for sequence in sequences for _, flag in sequence], dtype=bool)
    catalog = Catalog(pl.Series("item_id", np.arange(1, 8)), len(sequences))
    plain = SequenceDataset.from_lists([[item for item, _ in s] for s in sequences], catalog)
    return SequenceDataset(
        plain.items, plain.offsets, catalog, synthetic=flags if flags.any() else None
    )


def targets_of(dataset: SequenceDataset) -> dict[int, int]:
    """The first place of its sequence, for each place of a real item that something precedes."""
    return {
        place: int(dataset.offsets[row])
        for row in range(len(dataset))
        for place in range(int(dataset.offsets[row]) + 1, int(dataset.offsets[row + 1]))
        if not dataset.synthetic[place]
    }


def items_at(dataset, places):
    return torch.from_numpy(dataset.items.astype(np.int64))[places]


@settings(max_examples=150, deadline=None)
@given(FLAGGED, st.integers(1, 7), SEEDS)
def test_the_same_target_by_brute_force(sequences, max_len, seed):
    torch.manual_seed(seed)
    dataset = dataset_of(sequences)
    starts = targets_of(dataset)
    places = torch.tensor([*starts, *starts, *starts], dtype=torch.int64)
    (items, lengths), others = SameTarget(dataset, max_len).sample(
        places, items_at(dataset, places)
    )
    assert len(items) == len(lengths) == len(others) == len(places)
    for place, other, row, length in zip(
        places.tolist(), others.tolist(), items.tolist(), lengths.tolist(), strict=True
    ):
        allowed = [p for p in starts if dataset.items[p] == dataset.items[place] and p != place]
        assert other in (allowed or [place])
        before = dataset.items[starts[other] : other].tolist()[-max_len:]
        assert row == before + [0] * (len(row) - len(before))
        assert length == len(before)


def test_the_same_target_by_hand():
    # 3 is a target at places 2, 4 and 6, 7 begins a sequence; no other prefix leads to 2
    dataset = SequenceDataset.from_lists([[1, 2, 3], [2, 3, 1, 3], [3]])
    same = SameTarget(dataset, 2)
    torch.manual_seed(0)
    found = set()
    for _ in range(50):
        (items, lengths), others = same.sample(torch.tensor([2, 1]), torch.tensor([3, 2]))
        found.add((others[0].item(), *items[0, : lengths[0]].tolist()))
        assert (others[1].item(), *items[1, : lengths[1]].tolist()) == (1, 1)
    assert found == {(4, 2), (6, 3, 1)}


def test_the_same_target_of_a_variant_is_any_place_that_holds_its_item():
    # place 1 of the original holds 2, that of its variant 3 or 7, which no one was given next
    dataset = SequenceDataset.from_lists([[1, 2, 3], [2, 3, 1, 3], [7]])
    torch.manual_seed(0)
    places = torch.ones(50, dtype=torch.int64)
    _, others = SameTarget(dataset, 2).sample(places, torch.full((50,), 3))
    assert set(others.tolist()) == {2, 4, 6}
    _, others = SameTarget(dataset, 2).sample(places, torch.full((50,), 7))
    assert set(others.tolist()) == {1}


@pytest.mark.parametrize("place", [1, 5, 13])
def test_every_other_place_of_a_target_is_equally_likely(place):
    # item 9 at places 1, 3, 5, 7, 10 and 13
    dataset = SequenceDataset.from_lists([[1, 9, 2, 9], [3, 9], [4, 9, 5], [6, 9], [9, 7, 9]])
    torch.manual_seed(0)
    places = torch.full((DRAWS,), place)
    _, others = SameTarget(dataset, 5).sample(places, items_at(dataset, places))
    assert_equally_likely(Counter(others.tolist()), {1, 3, 5, 7, 10, 13} - {place})


def test_the_same_target_of_a_batch_is_its_newest_target(random_log):
    same = SameTarget(random_log, 5)
    for rows in ("users", "prefixes"):
        for batch in training_batches(random_log, 8, 5, 0, 0, rows):
            newest = batch.targets.gather(1, batch.lengths[:, None] - 1)[:, 0]
            _, others = same.sample(batch.places, newest)
            assert random_log.items[others.numpy()].tolist() == newest.tolist()
            owners = same.owners[batch.places.numpy()]
            assert random_log.users[owners].tolist() == batch.users.tolist()


def test_a_log_without_targets_has_none_to_sample():
    (items, lengths), others = SameTarget(SequenceDataset.from_lists([[1], [], [2]]), 3).sample(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    )
    assert len(items) == len(lengths) == len(others) == 0


def test_the_same_target_takes_memory_as_the_log_does():
    # everyone has the same item: pairs of its places would be 10 to the 11th
    n = 300_000
    offsets = np.arange(0, n + 1, 3, dtype=np.int64)
    catalog = Catalog(pl.Series("item_id", np.arange(1, 1001)), len(offsets) - 1)
    dataset = SequenceDataset(np.full(n, 7, dtype=np.int32), offsets, catalog)
    tracemalloc.start()
    try:
        same = SameTarget(dataset, 50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    arrays = [value for value in vars(same).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) <= 16 * n + 8 * (1000 + 2)
    assert peak < 100 * n
    assert same.dataset.items is dataset.items
    assert not any(np.array_equal(array, dataset.items) for array in arrays)


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
