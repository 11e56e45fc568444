"""What a batch holds, against plain loops over lists."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuserec.data import (
    AugmentedCopies,
    Batch,
    CurriculumSchedule,
    Examples,
    Histories,
    SequenceDataset,
    batch_of,
    histories_of,
    history_batches,
    n_training_examples,
    pair_batches,
    trainable_sequences,
    training_batches,
    training_examples,
)
from diffuserec.data.batches import ONE_TARGET
from diffuserec.errors import ConfigError
from diffuserec.models.settings import ExampleForm


@st.composite
def flagged_sequences(draw: st.DrawFn) -> list[list[tuple[int, bool]]]:
    """Users with items, each synthetic or not."""
    pair = st.tuples(st.integers(1, 9), st.booleans())
    return draw(st.lists(st.lists(pair, max_size=9), min_size=1, max_size=12))


def dataset_of(sequences: Sequence[Sequence[tuple[int, bool]]]) -> SequenceDataset:
    plain = SequenceDataset.from_lists([[item for item, _ in s] for s in sequences])
    flags = np.array([flag for s in sequences for _, flag in s], dtype=bool)
    users = np.arange(len(sequences)) * 3 + 100  # not the indices
    return SequenceDataset.from_offsets(
        plain.items, plain.offsets, plain.catalog, users, flags if flags.any() else None
    )


def epoch_of(dataset: SequenceDataset, *, size=4, max_len=5, seed=0, epoch=0) -> list[Batch]:
    return list(training_batches(dataset, size, max_len, seed, epoch))


@settings(max_examples=150, deadline=None)
@given(flagged_sequences(), st.integers(1, 7), st.integers(1, 5), st.integers(0, 3))
def test_every_pair_of_every_newest_window_exactly_once(
    sequences: list[list[tuple[int, bool]]], max_len: int, size: int, epoch: int
) -> None:
    dataset = dataset_of(sequences)
    seen_users = []
    for batch in epoch_of(dataset, size=size, max_len=max_len, epoch=epoch):
        assert batch.items.shape == batch.targets.shape
        for user, items, length, targets in zip(
            batch.users.tolist(),
            batch.items.tolist(),
            batch.lengths.tolist(),
            batch.targets.tolist(),
            strict=True,
        ):
            seen_users.append(user)
            window = sequences[(user - 100) // 3][-(max_len + 1) :]
            padding = [0] * (len(items) - length)
            assert items == [item for item, _ in window[:-1]] + padding
            wanted = [0 if synthetic else item for item, synthetic in window[1:]]
            assert targets == wanted + padding
    # whoever has a pair with a real item after it, once
    with_pair = [
        100 + 3 * index
        for index, s in enumerate(sequences)
        if any(not synthetic for _, synthetic in s[-(max_len + 1) :][1:])
    ]
    assert len(seen_users) == len(set(seen_users))
    assert set(with_pair) <= set(seen_users)


@settings(max_examples=150, deadline=None)
@given(flagged_sequences(), st.integers(1, 7), st.integers(1, 5))
def test_windows_hold_every_target_once(
    sequences: list[list[tuple[int, bool]]], max_len: int, size: int
) -> None:
    dataset = dataset_of(sequences)
    found = []
    for batch in training_batches(dataset, size, max_len, 0, 0, examples="windows"):
        for user, items, length, targets in zip(
            batch.users.tolist(),
            batch.items.tolist(),
            batch.lengths.tolist(),
            batch.targets.tolist(),
            strict=True,
        ):
            assert 1 <= length <= max_len
            assert items[length:] == targets[length:] == [0] * (len(items) - length)
            sequence = [item for item, _ in sequences[(user - 100) // 3]]
            ends = [
                end
                for end in range(length + 1, len(sequence) + 1)
                if sequence[end - length - 1 : end - 1] == items[:length]
            ]
            assert ends  # a piece of this user's sequence
            found += [(user, item) for item in targets if item]
    wanted = [
        (100 + 3 * index, item)
        for index, s in enumerate(sequences)
        for item, synthetic in s[1:]
        if not synthetic
    ]
    assert sorted(found) == sorted(wanted)


def test_sequences_whose_targets_are_all_synthetic_are_left_out() -> None:
    """As an augmenter makes them that inserts items after the last real one."""
    dataset = SequenceDataset.from_lists([[1, 2], [3, 4], [5, 6, 7, 8]])
    flags = np.array([0, 1, 0, 0, 0, 0, 1, 1], dtype=bool)
    dataset = dataset.with_items(dataset.items, dataset.lengths, flags)
    assert trainable_sequences(dataset).tolist() == [1, 2]
    for examples in ("per_user", "windows", "prefixes", "last"):
        index, ends = training_examples(dataset, 50, examples)
        assert index.tolist() == ([1] if examples == "last" else [1, 2])
        assert 2 not in ends  # the end of the first sequence
    # the newest two items of the last sequence are synthetic: nothing to learn in that window
    assert training_examples(dataset, 2, "per_user")[0].tolist() == [1]


def test_windows_by_hand() -> None:
    dataset = SequenceDataset.from_lists([[1, 2, 3, 4, 5, 6], [7], [8, 9]])
    index, ends = training_examples(dataset, 2, "windows")
    # targets 5 6 | 3 4 | 2 of the first user, 9 of the last
    assert index.tolist() == [0, 0, 0, 2]
    assert ends.tolist() == [6, 4, 2, 9]


def test_short_sequences_teach_nothing() -> None:
    dataset = SequenceDataset.from_lists([[1], [], [2, 3], [4]])
    assert trainable_sequences(dataset).tolist() == [2]
    (batch,) = epoch_of(dataset)
    assert batch.users.tolist() == [2]
    assert batch.items.tolist() == [[2]]
    assert batch.targets.tolist() == [[3]]
    assert epoch_of(SequenceDataset.from_lists([[1], []])) == []


def test_a_batch_by_hand() -> None:
    dataset = SequenceDataset.from_lists([[1, 2, 3, 4], [5, 6]])
    (batch,) = epoch_of(dataset, size=8, max_len=2)
    first = batch.users.tolist().index(0)
    assert batch.items[first].tolist() == [2, 3]
    assert batch.targets[first].tolist() == [3, 4]
    assert batch.items[1 - first].tolist() == [5, 0]
    assert batch.targets[1 - first].tolist() == [6, 0]
    assert batch.lengths[[first, 1 - first]].tolist() == [2, 1]


def test_the_order_is_fixed_by_seed_and_epoch(random_log: SequenceDataset) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [b.users.tolist() for b in epoch_of(random_log, seed=seed, epoch=epoch)]

    torch.manual_seed(0)
    first = order(3, 1)
    torch.manual_seed(1)  # no global generator has a say
    np.random.default_rng().random()
    assert order(3, 1) == first
    different = [first, order(3, 0), order(3, 2), order(4, 1), order(1, 3)]
    assert all(a != b for n, a in enumerate(different) for b in different[:n])


def test_who_shares_a_batch_changes_between_epochs() -> None:
    dataset = SequenceDataset.from_lists([[1, 2, 3]] * 400)
    together = [
        {frozenset(batch.users.tolist()) for batch in epoch_of(dataset, epoch=epoch)}
        for epoch in range(2)
    ]
    assert len(together[0] & together[1]) <= 2


def test_buckets_leave_little_padding() -> None:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(1.8, 0.9, 4000), 2, 200).astype(int)
    dataset = SequenceDataset.from_lists([[1] * n for n in lengths.tolist()])
    batches = epoch_of(dataset, size=64, max_len=50)
    cells = sum(batch.items.numel() for batch in batches)
    real = sum(int(batch.lengths.sum()) for batch in batches)
    assert real == np.minimum(lengths - 1, 50).sum()
    assert 1 - real / cells < 0.12
    # the same users in any order, padded to the longest of each batch of 64
    shuffled = np.minimum(generator.permutation(lengths) - 1, 50)
    naive = sum(part.max() * len(part) for part in np.split(shuffled, range(64, 4000, 64)))
    assert 1 - real / naive > 0.5


def test_a_group_is_cut_evenly() -> None:
    dataset = SequenceDataset.from_lists([[1, 2]] * 1001)
    sizes = [len(batch.users) for batch in epoch_of(dataset, size=10)]
    # three groups of 32 batches, then 41 users in five batches
    assert sorted(sizes) == [8] * 4 + [9] + [10] * 96


def test_every_batch_has_about_as_many_targets() -> None:
    lengths = [2] * 900 + [41] * 100
    dataset = SequenceDataset.from_lists([[1] * n for n in lengths])
    batches = epoch_of(dataset, size=20, max_len=50)
    targets = np.array([int((batch.targets > 0).sum()) for batch in batches])
    assert targets.sum() == 900 + 100 * 40
    # 4900 targets in 50 batches; a history cannot be divided, so one of 40 may be over or under
    assert abs(targets - 98).max() <= 40
    assert max(len(batch.users) for batch in batches) > 60


def test_a_huge_history_takes_no_batches_from_the_others() -> None:
    lengths = [3] * 63 + [900]
    dataset = SequenceDataset.from_lists([[1] * n for n in lengths])
    batches = epoch_of(dataset, size=8, max_len=1000)
    sizes = sorted(len(batch.users) for batch in batches)
    assert sizes == [1] + [9] * 7


def test_batches_of_one() -> None:
    generator = np.random.default_rng(2)
    dataset = SequenceDataset.from_lists([[1] * n for n in generator.integers(2, 40, 300)])
    sizes = [len(batch.users) for batch in epoch_of(dataset, size=1, max_len=50)]
    assert sizes == [1] * 300


def test_the_last_target_alone_weighs_the_same_for_everyone() -> None:
    lengths = [2] * 90 + [41] * 10
    dataset = SequenceDataset.from_lists([[*range(1, n + 1)] for n in lengths])
    batches = list(training_batches(dataset, 20, 50, 0, 0, "last"))
    assert [len(batch.users) for batch in batches] == [20] * 5
    for batch in batches:
        last = batch.targets.gather(1, batch.lengths[:, None] - 1)[:, 0]
        assert (last == batch.lengths + 1).all()
        assert ((batch.targets > 0).sum(1) == 1).all()


def test_synthetic_items_do_not_count_as_targets() -> None:
    generated = [[(1, True)] * 9 + [(2, False)] * 2] * 60
    real = [[(3, False)] * 11] * 60
    sequences = generated + real
    flags = np.array([flag for sequence in sequences for _, flag in sequence])
    items = np.array([item for sequence in sequences for item, _ in sequence], dtype=np.int32)
    offsets = np.arange(0, 11 * 121, 11)
    plain = SequenceDataset.from_lists([[1] * 3])
    dataset = SequenceDataset.from_offsets(items, offsets, plain.catalog, np.arange(120), flags)
    targets = [int((batch.targets > 0).sum()) for batch in epoch_of(dataset, size=12, max_len=50)]
    assert sum(targets) == 60 * 2 + 60 * 10
    assert max(targets) <= 72 + 10
    assert min(targets) >= 72 - 10


@settings(max_examples=150, deadline=None)
@given(flagged_sequences(), st.integers(1, 7), st.integers(1, 5), st.integers(0, 3))
def test_every_prefix_and_its_target_exactly_once(
    sequences: list[list[tuple[int, bool]]], max_len: int, size: int, epoch: int
) -> None:
    dataset = dataset_of(sequences)
    wanted = Counter()
    for index, pairs in enumerate(sequences):
        for position, (target, synthetic) in enumerate(pairs):
            if position > 0 and not synthetic:  # a synthetic item is context and never a target
                before = tuple(item for item, _ in pairs[:position])[-max_len:]
                wanted[100 + 3 * index, before, target] += 1
    found = Counter()
    for batch in training_batches(dataset, size, max_len, 0, epoch, "prefixes"):
        assert len(batch.users) >= 1
        assert batch.items.shape == batch.targets.shape
        assert batch.items.shape[1] == int(batch.lengths.max())
        for user, items, length, targets in zip(
            batch.users.tolist(),
            batch.items.tolist(),
            batch.lengths.tolist(),
            batch.targets.tolist(),
            strict=True,
        ):
            assert items[length:] == [0] * (len(items) - length)
            assert [at for at, target in enumerate(targets) if target] == [length - 1]
            found[user, tuple(items[:length]), targets[length - 1]] += 1
    assert found == wanted
    assert len(training_examples(dataset, max_len, "prefixes")[0]) == wanted.total()


def test_prefixes_by_hand() -> None:
    index, ends = training_examples(
        SequenceDataset.from_lists([[4], [], [1, 2, 3], [5, 6]]), 9, "prefixes"
    )
    # flat positions: 4 at 0, then 1 2 3 at 1 to 3, then 5 6 at 4 and 5
    assert index.tolist() == [2, 2, 3]
    assert ends.tolist() == [3, 4, 6]
    nothing = SequenceDataset.from_lists([[1], []])
    assert list(training_batches(nothing, 4, 5, 0, 0, "prefixes")) == []


def test_the_order_of_prefixes_is_fixed_by_seed_and_epoch(random_log: SequenceDataset) -> None:
    def order(seed: int, epoch: int) -> list[list[list[int]]]:
        return [
            b.items.tolist() for b in training_batches(random_log, 8, 5, seed, epoch, "prefixes")
        ]

    torch.manual_seed(0)
    first = order(3, 1)
    torch.manual_seed(1)
    assert order(3, 1) == first
    different = [first, order(3, 0), order(4, 1), order(1, 3)]
    assert all(a != b for n, a in enumerate(different) for b in different[:n])


SEQUENCES = [[1, 2, 3, 4, 5], [], [6], [7, 8]]


@pytest.mark.parametrize(
    "width, expected",
    [
        (1, [[5], [0], [6], [8]]),
        (3, [[3, 4, 5], [0, 0, 0], [0, 0, 6], [0, 7, 8]]),
        (5, [[1, 2, 3, 4, 5], [0, 0, 0, 0, 0], [0, 0, 0, 0, 6], [0, 0, 0, 7, 8]]),
        (7, [[0, 0, 1, 2, 3, 4, 5], [0] * 7, [0] * 6 + [6], [0] * 5 + [7, 8]]),
    ],
)
def test_histories_aligned_right_by_hand(width: int, expected: list[list[int]]) -> None:
    histories = histories_of(SequenceDataset.from_lists(SEQUENCES), np.arange(4))
    assert histories.aligned_right(width).tolist() == expected


def test_a_batch_of_empty_histories_aligns_right() -> None:
    histories = histories_of(SequenceDataset.from_lists([[], []]), np.arange(2))
    assert histories.aligned_right(3).tolist() == [[0, 0, 0]] * 2


def test_histories_keep_the_newest() -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES, users=[9, 8, 7, 6])
    histories = histories_of(dataset, np.array([3, 0, 1]), max_len=3)
    assert histories.users.tolist() == [6, 9, 8]
    assert histories.items.tolist() == [[7, 8, 0], [3, 4, 5], [0, 0, 0]]
    assert histories.lengths.tolist() == [2, 3, 0]


@pytest.mark.parametrize("max_len", [1, 2, 3, 4, 5, 9])
def test_truncated_histories_are_those_built_shorter(max_len: int) -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    index = np.arange(4)
    cut = histories_of(dataset, index).truncate(max_len)
    expected = histories_of(dataset, index, max_len)
    assert torch.equal(cut.items, expected.items)
    assert torch.equal(cut.lengths, expected.lengths)
    assert torch.equal(cut.users, expected.users)


def test_truncate_counts_items_and_not_padding() -> None:
    histories = Histories(
        torch.tensor([0, 1]),
        torch.tensor([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 9]]),
        torch.tensor([3, 6]),
    )
    cut = histories.truncate(4)
    assert cut.items.tolist() == [[1, 2, 3, 0], [6, 7, 8, 9]]
    assert cut.lengths.tolist() == [3, 4]
    assert histories.items.tolist()[0] == [1, 2, 3, 0, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_history_batches_show_everyone_once(size: int) -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    shown = {}
    for index, histories in history_batches(dataset, size):
        assert len(index) <= size
        for one, items, length in zip(
            index.tolist(), histories.items.tolist(), histories.lengths.tolist(), strict=True
        ):
            assert one not in shown
            shown[one] = items[:length]
            assert not any(items[length:])
    assert shown == dict(enumerate(SEQUENCES))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=10),
    st.integers(1, 7),
    st.integers(1, 5),
    st.sampled_from(["per_user", "windows", "prefixes", "last"]),
)
def test_last_target_index_points_at_the_last_target(
    users: list[tuple[int, int]], max_len: int, size: int, examples: Examples
) -> None:
    # users with so many synthetic items in front of so many real ones; each item its own number
    numbers = iter(range(1, 200))
    dataset = dataset_of([[(next(numbers), n < m) for n in range(m + real)] for m, real in users])
    found = []
    for batch in training_batches(dataset, size, max_len, 0, 0, examples):
        last = batch.targets.gather(1, batch.lengths[:, None] - 1)[:, 0]
        positions = batch.last_target_index.numpy()
        assert dataset.items[positions].tolist() == last.tolist()
        owners = np.searchsorted(dataset.offsets, positions, side="right") - 1
        assert dataset.users[owners].tolist() == batch.users.tolist()
        found += positions.tolist()
    assert len(found) == len(set(found))


def test_last_target_index_by_hand() -> None:
    # flat positions: 1 2 3 at 0 to 2, 4 at 3, 5 6 7 at 4 to 6
    dataset = SequenceDataset.from_lists([[1, 2, 3], [4], [5, 6, 7]])

    def positions(data: SequenceDataset, examples: Examples) -> list[int]:
        batches = training_batches(data, 8, 1, 0, 0, examples)
        return sorted(at for batch in batches for at in batch.last_target_index.tolist())

    assert positions(dataset, "per_user") == [2, 6]
    assert positions(dataset, "last") == [2, 6]
    assert positions(dataset, "windows") == [1, 2, 5, 6]
    assert positions(dataset, "prefixes") == [1, 2, 5, 6]
    # of a view, positions in the log that it is cut from
    view = dataset.view(np.array([1, 4]), np.array([3, 6]), np.array([0, 2]))
    assert positions(view, "per_user") == [2, 5]


@settings(max_examples=100, deadline=None)
@given(flagged_sequences(), st.integers(1, 7), st.integers(1, 5))
def test_a_batch_of_some_sequences_is_the_one_that_is_trained_on(
    sequences: list[list[tuple[int, bool]]], max_len: int, size: int
) -> None:
    dataset = dataset_of(sequences)
    for expected in epoch_of(dataset, size=size, max_len=max_len):
        index = (expected.users.numpy() - 100) // 3
        for name, tensor in batch_of(dataset, index, max_len).tensors.items():
            assert torch.equal(tensor, getattr(expected, name)), name


def test_the_last_target_is_put_at_the_end() -> None:
    data = dataset_of([[(1, True), (2, False), (3, False)], [(4, False), (5, False)]])
    whole = batch_of(data, np.array([0, 1]), 50).with_last_target()
    assert whole.items.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert whole.lengths.tolist() == [3, 2]
    assert whole.users.tolist() == [100, 103]
    real = batch_of(data, np.array([0, 1]), 50).real_with_last_target()
    assert real.tolist() == [[False, True, True], [True, True, False]]
    cut = batch_of(data, np.array([0]), 1).with_last_target()
    assert cut.items.tolist() == [[2, 3]]


def with_copies(sequences: list[list[int]], n_copies: int, **schedule) -> SequenceDataset:
    """Copy k of item i is 100 (k + 1) + i."""
    plain = SequenceDataset.from_lists(sequences)
    items = np.stack([100 * (k + 1) + plain.items for k in range(n_copies)])
    difficulty = np.arange(n_copies * len(plain), dtype=np.float32).reshape(n_copies, len(plain))
    return plain.with_copies(AugmentedCopies(items, difficulty, CurriculumSchedule(**schedule)))


@pytest.mark.parametrize(
    "schedule, stages",
    [
        ({}, [[0], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2]]),
        ({"stage_epochs": 2}, [[0], [0], [0, 1], [0, 1], [0, 1, 2]]),
        ({"pacing": "one_pass"}, [[0], [1], [2], [0, 1, 2], [0, 1, 2]]),
        ({"pacing": "none"}, [[0, 1, 2]] * 5),
    ],
    ids=str,
)
def test_stages_of_a_curriculum(schedule, stages) -> None:
    found = CurriculumSchedule(**schedule)
    assert [list(found.stage(epoch, 3)) for epoch in range(5)] == stages
    complete = found.n_epochs(3)
    assert list(found.stage(complete, 3)) == [0, 1, 2]
    assert complete == 0 or list(found.stage(complete - 1, 3)) != [0, 1, 2]
    found.require_epochs(complete + 1, 3)
    with pytest.raises(ConfigError, match=f"{complete} epochs end before all 3 copies"):
        found.require_epochs(complete, 3)


@pytest.mark.parametrize("examples", ["per_user", "windows", "prefixes"])
@pytest.mark.parametrize("per_step", ["one", "all"])
def test_a_batch_has_the_copies_of_its_own_examples(examples: Examples, per_step) -> None:
    sequences = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10], [11]]
    data = with_copies(sequences, 3, copies_per_step=per_step, weight=0.25, stage_epochs=1)
    for epoch, stage in enumerate([[0], [0, 1], [0, 1, 2]]):
        met = set()
        for batch in training_batches(data, 2, 2, 5, epoch, examples):
            other = batch.copies
            assert other is not None
            assert batch.copies_weight == 0.25 * len(stage)
            n_each = len(stage) if per_step == "all" else 1
            own = batch.items.repeat(n_each, 1)
            numbers = other.items[:, :1] // 100
            assert torch.equal(other.items, own + 100 * numbers * (own > 0))
            targets = batch.targets.repeat(n_each, 1)
            assert torch.equal(other.targets, targets + 100 * numbers * (targets > 0))
            assert torch.equal(other.users, batch.users.repeat(n_each))
            assert torch.equal(other.last_target_index, batch.last_target_index.repeat(n_each))
            if per_step == "all":
                expected = np.repeat(np.array(stage) + 1, len(batch.users))
                assert numbers[:, 0].tolist() == expected.tolist()
            met |= {int(number) - 1 for number in numbers}
        assert met <= set(stage)
    drawn = set()
    for epoch in range(3, 30):
        for batch in training_batches(data, 2, 2, 5, epoch, examples):
            drawn |= {int(number) for number in batch.copies.items[:, 0] // 100}
    assert drawn == {1, 2, 3}


def test_copies_change_no_batch_but_are_added() -> None:
    sequences = [[1, 2, 3, 4], [5, 6, 7], [8, 9]]
    plain = training_batches(SequenceDataset.from_lists(sequences), 2, 9, 1, 2)
    augmented = training_batches(with_copies(sequences, 2), 2, 9, 1, 2)
    for alone, both in zip(plain, augmented, strict=True):
        assert alone.copies is None
        assert alone.tensors.keys() == both.tensors.keys()
        for name, tensor in alone.tensors.items():
            assert torch.equal(tensor, getattr(both, name))


def test_copies_stay_with_their_users() -> None:
    part = with_copies([[1, 2], [], [3, 4, 5], [6]], 2).select(np.array([2, 0]))
    assert part.copies.difficulty.tolist() == [[2, 0], [6, 4]]
    alone = part.compact()
    assert alone.copies.items.tolist() == [[103, 104, 105, 101, 102], [203, 204, 205, 201, 202]]
    assert alone.copies.difficulty.tolist() == [[2, 0], [6, 4]]
    for data in (part, alone):
        for batch in training_batches(data, 2, 9, 0, 5):
            assert torch.equal(batch.copies.items % 100, batch.items)
        pairs = list(pair_batches(data, 2, 0, 5))
        assert sum(len(p.items) for p in pairs) == 5
        assert all(torch.equal(p.copies.items % 100, p.items) for p in pairs)


@settings(max_examples=100, deadline=None)
@given(flagged_sequences(), st.integers(1, 7), st.integers(0, 3))
def test_every_real_interaction_is_a_pair_exactly_once(
    sequences: list[list[tuple[int, bool]]], size: int, epoch: int
) -> None:
    batches = list(pair_batches(dataset_of(sequences), size, 1, epoch))
    pairs = Counter(
        pair for b in batches for pair in zip(b.users.tolist(), b.items.tolist(), strict=True)
    )
    assert pairs == Counter(
        (100 + 3 * index, item) for index, s in enumerate(sequences) for item, flag in s if not flag
    )
    sizes = [len(batch.users) for batch in batches]
    assert len(sizes) == -(-sum(sizes) // size)
    assert not sizes or (max(sizes) <= size and max(sizes) - min(sizes) <= 1)


def test_the_order_of_pairs_is_that_of_the_seed_and_the_epoch() -> None:
    data = SequenceDataset.from_lists([[*range(1, 31)]])

    def order(seed: int, epoch: int) -> list[int]:
        return [item for b in pair_batches(data, 4, seed, epoch) for item in b.items.tolist()]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("per_step", ["one", "all"])
def test_pairs_come_with_the_copies_of_their_interactions(per_step) -> None:
    data = with_copies([[1, 2, 3, 4, 5], [6], [], [7, 8]], 3, copies_per_step=per_step, weight=0.25)
    met = set()
    for pairs in pair_batches(data, 3, 0, 1):  # in the second stage, of two copies
        other = pairs.copies
        assert pairs.copies_weight == 0.5
        n_each = 2 if per_step == "all" else 1
        assert torch.equal(other.users, pairs.users.repeat(n_each))
        assert torch.equal(other.items % 100, pairs.items.repeat(n_each))
        numbers = (other.items // 100).tolist()
        assert per_step == "one" or numbers == [1] * len(pairs.items) + [2] * len(pairs.items)
        met |= set(numbers)
    assert met == {1, 2}


# --- newest prefixes, first items, batches of any lengths ----------------------------------------


def rows_of(dataset: SequenceDataset, max_len: int, **more: Any) -> list[tuple[list[int], int]]:
    """History and target of each example of an epoch of batches of three."""
    found = []
    for batch in training_batches(dataset, 3, max_len, 0, 0, **more):
        assert batch.targets.shape == batch.items.shape
        assert ((batch.targets > 0).sum(1) == 1).all()
        for items, n, target in zip(
            batch.items.tolist(), batch.lengths.tolist(), batch.newest_targets.tolist(), strict=True
        ):
            assert not any(items[n:])
            found.append((items[:n], target))
    return sorted(found)


def test_prefixes_of_the_newest_items_as_if_there_were_no_others() -> None:
    dataset = SequenceDataset.from_lists([[1, 2, 3, 4, 5], [6, 7], [8], []])
    newest = [([3], 4), ([3, 4], 5), ([6], 7)]
    assert rows_of(dataset, 3, examples="newest_prefixes") == newest
    with_first = sorted([*newest, ([], 3), ([], 6)])
    assert rows_of(dataset, 3, examples="newest_prefixes", first_items=True) == with_first
    every = [([1], 2), ([1, 2], 3), ([1, 2, 3], 4), ([2, 3, 4], 5), ([6], 7)]
    assert rows_of(dataset, 3, examples="prefixes") == sorted(every)
    assert rows_of(dataset, 3, examples="prefixes", first_items=True) == sorted(
        [*every, ([], 1), ([], 6)]
    )


@pytest.mark.parametrize("first_items", [False, True])  # which are for one target an example
def test_every_item_of_a_whole_prefix_is_a_target(first_items: bool) -> None:
    dataset = SequenceDataset.from_lists([[1, 2, 3, 4, 5], [6, 7], [8], []])
    found = []
    for batch in training_batches(dataset, 2, 3, 0, 0, "whole_prefixes", first_items):
        for items, targets in zip(batch.items.tolist(), batch.targets.tolist(), strict=True):
            found.append(([i for i in items if i], [t for t in targets if t]))
    # the newest three items alone, and of them each prefix of two and more
    assert sorted(found) == [([3], [4]), ([3, 4], [4, 5]), ([6], [7])]
    assert n_training_examples(dataset, 3, "whole_prefixes", first_items) == (3, 4)


def test_a_synthetic_first_item_is_no_target() -> None:
    dataset = dataset_of([[(1, True), (2, False)], [(3, False), (4, False)]])
    found = rows_of(dataset, 9, examples="newest_prefixes", first_items=True)
    assert found == [([], 3), ([1], 2), ([3], 4)]


def test_batches_by_length_pad_little_and_others_mix() -> None:
    rng = np.random.default_rng(0)
    dataset = SequenceDataset.from_lists([[1] * int(n) for n in rng.integers(2, 40, 300)])

    def padding(by_length: bool) -> float:
        batches = training_batches(dataset, 8, 50, 0, 0, by_length=by_length)
        shares = [float((batch.items == 0).float().mean()) for batch in batches]
        return float(np.mean(shares))

    assert padding(True) < 0.2 < 0.3 < padding(False)


# --- times of items -----------------------------------------------------------------------------


def timed() -> SequenceDataset:
    """Item n at time 10 n."""
    lists = [[1, 2, 3, 4, 5], [6, 7], [8]]
    items = np.concatenate(lists).astype(np.int32)
    offsets = np.array([0, 5, 7, 8])
    plain = SequenceDataset.from_lists(lists)
    return SequenceDataset.from_offsets(
        items, offsets, plain.catalog, timestamps=items * np.int64(10)
    )


@pytest.mark.parametrize("examples", get_args(ExampleForm))
def test_a_batch_has_the_times_of_its_inputs_and_of_no_target(examples) -> None:
    first_items = examples in ONE_TARGET
    batches = list(training_batches(timed(), 2, 3, 0, 0, examples, first_items, with_times=True))
    assert batches
    for batch in batches:
        assert torch.equal(batch.times, 10 * batch.items), examples
        assert torch.equal(batch.to(torch.device("cpu")).times, batch.times)
    assert next(iter(training_batches(timed(), 2, 3, 0, 0, examples))).times is None


def test_copies_have_the_times_of_their_originals() -> None:
    data = timed()
    copies = AugmentedCopies(
        np.stack([data.items[::-1], data.items]).copy(),
        np.zeros((2, 3), dtype=np.float32),
        CurriculumSchedule(pacing="none"),
    )
    for batch in training_batches(data.with_copies(copies), 2, 3, 0, 0, with_times=True):
        for row, user in enumerate(batch.copies.users.tolist()):
            original = batch.users.tolist().index(user)
            assert torch.equal(batch.copies.times[row], batch.times[original])


def test_times_of_histories_are_cut_with_them() -> None:
    data, index = timed(), np.arange(3)
    for histories in (
        histories_of(data, index, 3, with_times=True),
        histories_of(data, index, with_times=True).truncate(3),
        histories_of(data, index, with_times=True).truncate(3).select(torch.tensor([True] * 3)),
    ):
        assert histories.times.tolist() == [[30, 40, 50], [60, 70, 0], [80, 0, 0]]
    assert histories_of(data, index).truncate(3).times is None
    plain = SequenceDataset.from_lists([[1, 2]])
    assert histories_of(plain, np.arange(1), with_times=True).times is None
    for _, histories in history_batches(data, 2, 3, with_times=True):
        assert torch.equal(histories.times, 10 * histories.items)
