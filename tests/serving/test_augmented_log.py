"""Augmented logs by hand: items put in front, inserted, deleted; new users; copies as users."""

import numpy as np
import polars as pl
import pytest

from diffuserec.data import (
    AugmentedCopies,
    Catalog,
    CurriculumSchedule,
    SequenceDataset,
    leave_one_out,
    offsets_of,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Runtime
from diffuserec.serving.augmented_log import append_rest, augment_log, copies_as_users

SEQUENCES = [[1, 2, 3, 4], [5, 6], [2, 5, 1]]
USERS = pl.Series("user_id", ["a", "b", "c"])
CATALOG = Catalog(pl.Series("item_id", range(11, 17)), 3, USERS)


def log(users: pl.Series = USERS) -> SequenceDataset:
    items = np.array([item for sequence in SEQUENCES for item in sequence], dtype=np.int32)
    times = np.arange(len(items), dtype=np.int64) * 10
    catalog = Catalog(CATALOG.item_ids, 3, users)
    offsets = offsets_of([len(sequence) for sequence in SEQUENCES])
    return SequenceDataset.from_offsets(items, offsets, catalog, timestamps=times)


def changed(part: SequenceDataset, sequences: list[list[int]]) -> SequenceDataset:
    """The sequences of the same users replaced; negative numbers are synthetic items."""
    flat = np.array([item for sequence in sequences for item in sequence], dtype=np.int32)
    lengths = np.array([len(sequence) for sequence in sequences])
    times = np.arange(len(flat), dtype=np.int64)
    return part.with_items(np.abs(flat), lengths, flat < 0, times)


def signed(dataset: SequenceDataset) -> list[list[int]]:
    """The sequences, with negative numbers for synthetic items."""
    items = np.where(dataset.synthetic, -dataset.items, dataset.items)
    return [part.tolist() for part in np.split(items, dataset.offsets[1:-1])]


@pytest.mark.parametrize(
    "augmented",
    [
        [[-6, 1, 2], [-4, -3, 5, 6], [2]],  # in front
        [[1, -6, 2], [5, -1, 6, -1], [2, -2]],  # between and behind
        [[2], [], [2]],  # deleted
        [[1, 2], [5, 6], [2]],
    ],
)
def test_held_out_items_follow_the_augmented_ones(augmented: list[list[int]]) -> None:
    whole = log()
    part = leave_one_out(whole).train
    assert signed(part) == [[1, 2], [5, 6], [2]]
    found = append_rest(changed(part, augmented), whole, part)
    assert signed(found) == [augmented[0] + [3, 4], augmented[1], augmented[2] + [5, 1]]
    assert found.users.tolist() == [0, 1, 2]
    assert found.timestamps[found.offsets[1] - 2 : found.offsets[1]].tolist() == [20, 30]
    assert len(found.timestamps) == len(found.items)


def test_new_users_come_last_and_have_no_rest() -> None:
    whole = log()
    part = leave_one_out(whole).train
    items, synthetic = np.array([1, 2, 5, 6, 2, 3, 3], dtype=np.int32), np.arange(7) >= 5
    users = Catalog(CATALOG.item_ids, 4, pl.concat([USERS, pl.Series("user_id", ["new"])]))
    offsets = np.array([0, 2, 4, 5, 7])
    more = SequenceDataset.from_offsets(items, offsets, users, synthetic=synthetic)
    found = append_rest(more, whole, part)
    assert signed(found) == [[1, 2, 3, 4], [5, 6], [2, 5, 1], [-3, -3]]
    assert found.catalog.user_ids.to_list() == ["a", "b", "c", "new"]
    assert found.timestamps is None  # those of the new items are not known


def with_copies(part: SequenceDataset) -> SequenceDataset:
    items = np.stack([part.items % 6 + 1, (part.items + 1) % 6 + 1]).astype(np.int32)
    difficulty = np.zeros((2, len(part)), dtype=np.float32)
    return part.with_copies(AugmentedCopies(items, difficulty, CurriculumSchedule()))


def test_copies_are_synthetic_users_after_the_whole_log() -> None:
    whole = log()
    part = leave_one_out(whole).train
    found = copies_as_users(whole, with_copies(part))
    shifted = [[[-(item % 6 + 1) for item in sequence] for sequence in signed(part)]]
    shifted.append([[-((item + 1) % 6 + 1) for item in sequence] for sequence in signed(part)])
    assert signed(found) == [*SEQUENCES, *shifted[0], *shifted[1]]
    names = ["a", "b", "c", "a#1", "b#1", "c#1", "a#2", "b#2", "c#2"]
    assert found.catalog.user_ids.gather(found.users).to_list() == names
    assert found.timestamps.tolist() == [*range(0, 90, 10), *[0, 10, 40, 50, 60] * 2]


def test_what_a_log_cannot_hold_is_refused(tmp_path) -> None:
    for settings in ({"use_weight": 0.3}, {"use_average": True}):
        with pytest.raises(ConfigError, match=f"{next(iter(settings))} says how a recommender"):
            augment_log(tmp_path, "random", settings, Runtime())


def test_a_user_with_the_name_of_a_copy_is_refused() -> None:
    whole = log(pl.Series("user_id", ["a", "a#2", "c"]))
    with pytest.raises(DataError, match="has the name of a copy"):
        copies_as_users(whole, with_copies(leave_one_out(whole).train))
