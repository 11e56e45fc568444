"""How generated items are used in training batches, against sequences written out by hand."""

from collections import Counter
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from torch import Tensor

from diffuserec.data import (
    Batch,
    SequenceDataset,
    SoftTargets,
    Use,
    leave_one_out,
    training_batches,
)
from diffuserec.errors import DataError
from diffuserec.models.settings import ExampleForm

MADE = {0: [21, 22], 2: [23]}
"""Items in front of the histories of users 0 and 2; users 1 and 3 have none."""

REAL = [[1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11, 12, 13, 14]]


def augmented(n_context: int = 1) -> SequenceDataset:
    log = SequenceDataset.from_lists([*REAL, [23]]).select(np.arange(4)).compact()
    items = np.array([MADE[0], [0, *MADE[2]]], dtype=np.int32)
    return log.prepend(items, np.array([0, 2]), n_context)


def rows_of(batch: Batch) -> list[tuple[int, list[int], list[int]]]:
    """User, items with the last target at the end, and targets of each sequence."""
    whole = batch.with_last_target()
    return [
        (int(user), items[: int(n)].tolist(), own[own > 0].tolist())
        for user, items, n, own in zip(
            whole.users, whole.items, whole.lengths, batch.targets, strict=True
        )
    ]


def read(
    dataset: SequenceDataset, epoch: int = 0, **options: Any
) -> tuple[list[tuple[int, list[int], list[int]]], list[tuple[int, list[int], list[int]]]]:
    """Sequences of an epoch's batches, and of what is trained on beside them."""
    own, beside = [], []
    for batch in training_batches(dataset, 2, 50, 7, epoch, **options):
        own += rows_of(batch)
        beside += [] if batch.copies is None else rows_of(batch.copies)
    return sorted(own), sorted(beside)


def targets_of(rows: list[tuple[int, list[int], list[int]]]) -> Counter[tuple[int, int]]:
    return Counter((user, target) for user, _, targets in rows for target in targets)


PLAIN = [(u, items, items[1:]) for u, items in enumerate(REAL)]
BEHIND = [(0, [21, 22, 1, 2, 3, 4], [2, 3, 4]), (2, [23, 7, 8, 9], [8, 9])]


def test_without_a_weight_augmented_sequences_stand_alone() -> None:
    own, beside = read(augmented())
    assert own == sorted([BEHIND[0], PLAIN[1], BEHIND[1], PLAIN[3]])
    assert beside == []


def test_real_and_augmented_sequences_are_trained_on_together() -> None:
    own, beside = read(augmented().with_use(Use(weight=0.3)))
    assert own == PLAIN
    assert beside == BEHIND


# a target stands in several whole prefixes
@pytest.mark.parametrize("examples", sorted({*get_args(ExampleForm)} - {"whole_prefixes"}))
def test_each_target_weighs_as_much_as_asked(examples: str) -> None:
    dataset = augmented().with_use(Use(weight=0.3))
    weights: Counter[int] = Counter()
    for batch in training_batches(dataset, 2, 50, 7, 0, examples):  # type: ignore[arg-type]
        n_own = int((batch.targets > 0).sum())
        if batch.copies is not None:
            # both losses are means: a target's share of the sum is its weight against the others
            each = batch.copies_weight * n_own / int((batch.copies.targets > 0).sum())
            for target in batch.copies.targets[batch.copies.targets > 0].tolist():
                weights[target] += each
    assert weights == pytest.approx(dict.fromkeys([2, 3, 4, 8, 9], 0.3))
    own, beside = read(dataset, examples=examples)
    assert targets_of(own) == targets_of(PLAIN)
    assert targets_of(beside) == targets_of(BEHIND)


def test_what_stands_beside_batches_is_spread_over_them_in_eights() -> None:
    log = SequenceDataset.from_lists([[1, 2, 3]] * 60)
    few = log.prepend(np.full((20, 1), 3, dtype=np.int32), np.arange(0, 60, 3))
    batches = list(training_batches(few.with_use(Use(weight=1.0)), 3, 50, 7, 0))
    sizes = [0 if b.copies is None else len(b.copies.users) for b in batches]
    assert sorted(sizes)[-4:] == [0, 6, 7, 7]
    where = np.flatnonzero(sizes)
    assert np.diff(where).min() >= len(batches) // 3


@pytest.mark.parametrize("weight", [None, 0.5])
def test_epochs_drop_generated_items_by_chance_and_by_user(weight: float | None) -> None:
    dataset = augmented().with_use(Use(weight=weight, dropout=0.3))
    n, dropped = 50, 0
    for epoch in range(n):
        own, beside = read(dataset, epoch)
        shown = beside if weight else [row for row in own if row in BEHIND]
        assert all(row in BEHIND for row in shown)
        if weight:
            assert own == PLAIN
        else:
            assert [row for row in own if row not in BEHIND] == [
                row for row in PLAIN if row[0] not in {user for user, _, _ in shown}
            ]
        dropped += 2 - len(shown)
    assert read(dataset, 3) == read(dataset, 3)
    # 3 standard deviations of a share of so many draws
    assert abs(dropped / (2 * n) - 0.3) < 3 * (0.3 * 0.7 / (2 * n)) ** 0.5


def test_what_items_were_made_from_is_a_target_where_they_are_dropped() -> None:
    dataset = augmented(n_context=3).with_use(Use(dropout=0.5))
    seen = {str(row) for epoch in range(30) for row in read(dataset, epoch)[0] if row[0] == 0}
    assert seen == {str((0, [21, 22, 1, 2, 3, 4], [4])), str(PLAIN[0])}


def test_further_rows_are_trained_on_beside_the_others_and_drop_with_their_user() -> None:
    cut = SequenceDataset.from_lists([[12, 13, 14], [9, 9]]).select(np.array([0])).compact()
    rows = replace(
        cut.prepend(np.array([[24]], dtype=np.int32), np.array([0]), 1), users=np.array([3])
    )
    dataset = augmented().with_use(Use(weight=0.3, dropout=0.5, rows=rows))
    more = (3, [24, 12, 13, 14], [13, 14])
    seen = {str(read(dataset, epoch)[1]) for epoch in range(40)}
    some = [[], BEHIND[:1], BEHIND[1:], BEHIND]
    assert seen == {str(part + extra) for part in some for extra in ([], [more])}
    assert read(dataset.select(np.array([0, 1])))[1] in ([], BEHIND[:1])
    for batch in training_batches(replace(dataset, use=Use(weight=0.3, rows=rows)), 9, 50, 0, 0):
        assert batch.copies is not None
        found = dataset.log.items[batch.copies.last_target_index.numpy()]
        assert found.tolist() == batch.copies.newest_targets.tolist()


def test_another_item_is_learned_in_a_share_of_the_epochs() -> None:
    dataset = augmented()
    n = len(dataset.items)
    items, probability = np.zeros((n, 3), dtype=np.int32), np.zeros((n, 3), dtype=np.float32)
    where = np.flatnonzero(dataset.items == 3)
    items[where], probability[where] = [18, 3, 19], [0.1, 0.5, 0.3]  # not the target itself
    items[dataset.items == 2], probability[dataset.items == 2] = [2, 2, 2], [0.5, 0.2, 0.1]
    for use in (Use(), Use(weight=0.5)):
        soft = SoftTargets(items, probability, 0.4)
        drawn: Counter[int] = Counter()
        for epoch in range(60):
            for rows in read(dataset.with_use(replace(use, soft=soft)), epoch):
                for user, shown, targets in rows:
                    plain = next(own for u, _, own in PLAIN if u == user)
                    assert shown in (REAL[user], [*MADE.get(user, []), *REAL[user]])
                    drawn += Counter(t for t, old in zip(targets, plain, strict=True) if old == 3)
                    assert [t for t in targets if t < 18] == [
                        t for t in plain if t != 3 or 3 in targets
                    ]
        total = sum(drawn.values())
        for item, share in ((3, 0.6), (18, 0.1), (19, 0.3)):
            assert drawn[item] / total == pytest.approx(share, abs=0.13)


def test_what_is_learned_in_the_place_of_an_item_is_never_read() -> None:
    """By methods, too, that read the last target, such as those that fill in masks."""
    dataset = augmented()
    other = np.full((len(dataset.items), 1), 18, dtype=np.int32)
    soft = SoftTargets(other, np.ones(other.shape, dtype=np.float32), 0.7)
    n_other = 0
    for epoch in range(3):
        for batch in training_batches(dataset.with_use(Use(soft=soft)), 2, 50, 7, epoch):
            whole, learned = batch.with_last_target(), batch.learned_with_last_target()
            assert not (whole.items == 18).any()
            is_target = batch.targets > 0
            assert learned[:, 1:][is_target].tolist() == batch.targets[is_target].tolist()
            assert learned[:, 0].tolist() == whole.items[:, 0].tolist()
            n_other += int((learned == 18).sum())
    assert n_other > 3


def test_last_targets_are_found_in_the_log_of_the_whole_dataset() -> None:
    for use in (Use(weight=0.5), Use(dropout=0.5)):
        dataset = augmented().with_use(use)
        for epoch in range(4):
            for batch in training_batches(dataset, 2, 50, 0, epoch):
                for part in (batch, batch.copies):
                    if part is not None:
                        found: Tensor = part.newest_targets
                        assert (
                            dataset.log.items[part.last_target_index.numpy()].tolist()
                            == found.tolist()
                        )


def test_a_subset_is_used_alike() -> None:
    some = np.array([2, 3])
    for dataset in (augmented().with_use(Use(weight=0.3)), augmented().with_use(Use(dropout=0.5))):
        part = dataset.select(some)
        assert part.use is not None
        assert [row[0] for row in read(part)[0]] == [2, 3]
        assert part.compact().fingerprint == part.fingerprint != dataset.fingerprint


def test_the_fingerprint_counts_the_use() -> None:
    plain = augmented()
    uses = [None, Use(weight=0.3), Use(weight=0.4), Use(dropout=0.3), Use(average=True)]
    assert len({plain.with_use(use).fingerprint for use in uses}) == len(uses)


def test_a_use_is_neither_saved_nor_put_behind_more_items(tmp_path) -> None:
    dataset = augmented().with_use(Use(weight=0.3))
    with pytest.raises(DataError, match="is not saved"):
        dataset.save(tmp_path / "data")
    with pytest.raises(DataError, match="augment real histories"):
        dataset.prepend(np.array([[1]], dtype=np.int32), np.array([0]))
    with pytest.raises(DataError, match="add the users first"):
        dataset.with_new_users(np.array([1, 2], dtype=np.int32), np.array([2]))
    with pytest.raises(DataError, match="split"):
        leave_one_out(dataset.real().with_use(Use(dropout=0.1)))
    dataset.with_use(None).save(tmp_path / "data")
