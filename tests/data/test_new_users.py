"""Whole new users in a dataset: numbers, ids, targets, and what is refused."""

import numpy as np
import polars as pl
import pytest

from diffuserec.data import (
    AugmentedCopies,
    Catalog,
    CurriculumSchedule,
    SequenceDataset,
    leave_one_out,
    trainable_sequences,
    training_batches,
)
from diffuserec.errors import DataError

ITEMS = np.array([2, 3, 1], dtype=np.int32)
LENGTHS = np.array([2, 0, 1])


def log(user_ids: pl.Series | None = None) -> SequenceDataset:
    catalog = Catalog(pl.Series("item_id", ["a", "b", "c"]), 2, user_ids)
    return SequenceDataset.from_lists([[1, 2, 3], [3, 1]], catalog)


def test_new_users_follow_the_others() -> None:
    longer = log().with_new_users(ITEMS, LENGTHS)
    assert [sequence.tolist() for sequence in longer] == [[1, 2, 3], [3, 1], [2, 3], [], [1]]
    assert longer.users.tolist() == [0, 1, 2, 3, 4]
    assert longer.catalog.n_users == 5
    assert longer.catalog.user_ids is None
    assert longer.catalog.item_ids.to_list() == ["a", "b", "c"]
    assert longer.items.dtype == np.int32
    assert not longer.has_synthetic


def test_the_dataset_itself_is_unchanged() -> None:
    plain = log(pl.Series("user_id", ["x", "y"]))
    plain.with_new_users(ITEMS, LENGTHS)
    assert len(plain) == 2
    assert plain.catalog.n_users == 2
    assert plain.catalog.user_ids is not None
    assert plain.catalog.user_ids.to_list() == ["x", "y"]


def test_of_a_view_only_its_own_sequences_stay() -> None:
    longer = log().select(np.array([1])).with_new_users(ITEMS, LENGTHS)
    assert [sequence.tolist() for sequence in longer] == [[3, 1], [2, 3], [], [1]]
    # the number 0 is that of a user who is not in this view
    assert longer.users.tolist() == [1, 2, 3, 4]
    part = leave_one_out(log()).train.with_new_users(ITEMS, LENGTHS)
    assert [sequence.tolist() for sequence in part] == [[1], [3, 1], [2, 3], [], [1]]


def test_their_items_are_targets_unless_they_are_synthetic() -> None:
    longer = log().with_new_users(ITEMS, LENGTHS)
    assert trainable_sequences(longer).tolist() == [0, 1, 2]
    assert longer.item_counts().tolist() == [0, 3, 2, 3]
    (batch,) = training_batches(longer, 16, 5, seed=0, epoch=0)
    assert sorted(batch.targets[batch.targets > 0].tolist()) == [1, 2, 3, 3]

    marked = log().with_new_users(ITEMS, LENGTHS, np.array([True, False, True]))
    assert marked.synthetic.tolist() == [False] * 5 + [True, False, True]
    assert [sequence.tolist() for sequence in marked.real()] == [[1, 2, 3], [3, 1], [3], [], []]


def test_synthetic_items_of_the_others_stay_marked() -> None:
    prepended = log().prepend(np.array([[2]], dtype=np.int32), np.array([1]))
    longer = prepended.with_new_users(ITEMS, LENGTHS)
    assert longer.synthetic.tolist() == [False] * 3 + [True, False, False] + [False] * 3


@pytest.mark.parametrize(
    "ids, expected",
    [
        (["x", "y"], ["x", "y", "new-2", "new-3", "new-4"]),
        (["x", "new-3"], ["x", "new-3", "new-new-2", "new-new-3", "new-new-4"]),
        ([7, 3], [7, 3, 8, 9, 10]),
        ([-7, -3], [-7, -3, 0, 1, 2]),
    ],
)
def test_raw_ids_of_new_users_occur_nowhere_else(ids, expected) -> None:
    longer = log(pl.Series("user_id", ids)).with_new_users(ITEMS, LENGTHS)
    assert longer.catalog.user_ids is not None
    assert longer.catalog.user_ids.to_list() == expected


def test_users_can_be_added_again() -> None:
    twice = log(pl.Series("user_id", ["x", "y"]))
    for _ in range(2):
        twice = twice.with_new_users(ITEMS, LENGTHS)
    assert twice.users.tolist() == [*range(8)]
    assert twice.catalog.user_ids is not None
    assert twice.catalog.user_ids.n_unique() == twice.catalog.n_users == 8


def test_new_interactions_have_no_time() -> None:
    timed = SequenceDataset.from_offsets(
        np.array([1, 2, 3], dtype=np.int32),
        np.array([0, 3]),
        log().catalog,
        timestamps=np.array([5, 6, 7]),
    )
    assert timed.with_new_users(ITEMS, LENGTHS).timestamps is None


def test_copies_are_refused() -> None:
    copies = AugmentedCopies(
        np.ones((1, 5), dtype=np.int32), np.zeros((1, 2), dtype=np.float32), CurriculumSchedule()
    )
    with pytest.raises(DataError, match="augmented copies, and new users would have none"):
        log().with_copies(copies).with_new_users(ITEMS, LENGTHS)


@pytest.mark.parametrize(
    "items, lengths, message",
    [
        ([2, 3], [2, 1], "3 items in all .* got 2"),
        ([2, 3], [3, -1], "as many item numbers"),
        ([2, 4, 1], [2, 1], r"1\.\.3, got 1\.\.4"),
        ([2, 0, 1], [2, 1], r"1\.\.3, got 0\.\.2"),
    ],
)
def test_numbers_that_cannot_be_are_refused(items, lengths, message) -> None:
    with pytest.raises(DataError, match=message):
        log().with_new_users(np.array(items, dtype=np.int32), np.array(lengths))


def test_nobody_new() -> None:
    same = log().with_new_users(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64))
    assert [sequence.tolist() for sequence in same] == [[1, 2, 3], [3, 1]]
    assert same.catalog.n_users == 2
