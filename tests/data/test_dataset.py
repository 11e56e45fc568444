"""The ragged store: views by hand, and nothing in a view but its own sequences."""

import tracemalloc
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuserec.data import (
    AugmentedCopies,
    Catalog,
    CurriculumSchedule,
    SequenceDataset,
    batch_of,
    histories_of,
    history_batches,
    load_dataset,
    offsets_of,
    pair_batches,
    training_batches,
    training_examples,
)
from diffuserec.errors import DataError

from ..bundles import part as part_of

SEQUENCES = [[1, 2, 3], [], [4], [2, 2, 5, 1]]
some_sequences = st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=8)


def lists(dataset: SequenceDataset) -> list[list[int]]:
    return [sequence.tolist() for sequence in dataset]


def full_dataset() -> SequenceDataset:
    """Every optional field in use."""
    catalog = Catalog(pl.Series("item_id", ["a", "b", "c", "ü", "e"]), n_users=9)
    return SequenceDataset.from_offsets(
        items=np.array([1, 2, 3, 4, 2, 2, 5, 1], dtype=np.int32),
        offsets=np.array([0, 3, 3, 4, 8]),
        catalog=catalog,
        users=np.array([7, 1, 0, 8]),
        synthetic=np.array([1, 0, 0, 0, 1, 1, 0, 0], dtype=bool),
        timestamps=np.arange(8) * 1000,
    )


def copies_of(dataset: SequenceDataset, n_copies: int = 2) -> AugmentedCopies:
    """Copies whose items are those of the dataset and 10, 20, … more."""
    items = np.stack([dataset.items + 10 * (k + 1) for k in range(n_copies)])
    difficulty = np.arange(n_copies * len(dataset), dtype=np.float32)
    difficulty = difficulty.reshape(n_copies, len(dataset))
    return AugmentedCopies(items, difficulty, CurriculumSchedule(pacing="none"))


def assert_same(a: SequenceDataset, b: SequenceDataset) -> None:
    for name in ("items", "offsets", "users", "synthetic", "timestamps"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right, err_msg=name)


def test_from_lists_holds_the_lists() -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    assert dataset.items.tolist() == [1, 2, 3, 4, 2, 2, 5, 1]
    assert dataset.items.dtype == np.int32
    assert dataset.offsets.tolist() == [0, 3, 3, 4, 8]
    assert lists(dataset) == SEQUENCES
    assert dataset.lengths.tolist() == dataset.real_lengths.tolist() == [3, 0, 1, 4]
    assert (len(dataset), dataset.vocab_size, dataset.catalog.n_items) == (4, 6, 5)
    assert dataset.users.tolist() == [0, 1, 2, 3]
    assert not dataset.has_synthetic
    assert not dataset.synthetic.any()


def test_sequences_are_numbered_from_both_ends() -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    view = dataset.select(np.array([3, 0, 1]))
    assert [dataset[n].tolist() for n in range(-4, 4)] == SEQUENCES * 2
    assert (view[-1].tolist(), view[-2].tolist(), view[-3].tolist()) == (
        [],
        [1, 2, 3],
        SEQUENCES[3],
    )
    for outside in (4, -5):
        with pytest.raises(IndexError):
            dataset[outside]
    assert np.shares_memory(dataset[-1], dataset.items)


def test_a_log_without_generated_items_pays_nothing_for_the_flag() -> None:
    dataset = SequenceDataset.from_lists([[1]] * 1000)
    for data in (dataset, dataset.select(np.arange(999, 0, -2))):
        assert data.synthetic.shape == data.items.shape
        assert data.synthetic.base is not None
        assert data.synthetic.base.nbytes == 1


def test_select_takes_sequences_in_the_order_asked_for() -> None:
    dataset = full_dataset()
    chosen = dataset.select(np.array([3, 0]))
    assert lists(chosen) == [[2, 2, 5, 1], [1, 2, 3]]
    assert chosen.users.tolist() == [8, 7]
    assert chosen.synthetic.tolist() == [True, True, False, False, True, False, False]
    assert chosen.timestamps is not None
    assert chosen.timestamps.tolist() == [4000, 5000, 6000, 7000, 0, 1000, 2000]
    assert chosen.offsets.tolist() == [0, 4, 7]
    assert chosen.real_lengths.tolist() == [2, 2]
    assert chosen.log_positions.tolist() == [4, 5, 6, 7, 0, 1, 2]
    assert chosen.catalog is dataset.catalog


def test_select_by_mask_equals_select_by_index() -> None:
    dataset = full_dataset()
    mask = np.array([True, False, True, False])
    assert_same(dataset.select(mask), dataset.select(np.array([0, 2])))
    assert len(dataset.select(np.zeros(4, dtype=bool))) == 0


def test_a_view_cuts_each_sequence() -> None:
    dataset = full_dataset()
    cut = dataset.view(np.array([1, 3, 3, 5]), np.array([2, 3, 4, 7]))
    assert lists(cut) == [[2], [], [4], [2, 5]]
    assert cut.users.tolist() == [7, 1, 0, 8]
    assert cut.synthetic.tolist() == [False, False, True, False]
    assert cut.timestamps is not None
    assert cut.timestamps.tolist() == [1000, 3000, 5000, 6000]
    assert cut.real_lengths.tolist() == [1, 0, 1, 1]


def test_a_view_shares_its_log() -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    for view in (dataset.select(np.array([3, 0])), dataset.select(np.array([0, 1, 2]))):
        assert view.log is dataset.log
        assert all(np.shares_memory(s, dataset.items) for s in view if len(s))
    together = dataset.select(np.array([0, 1, 2]))
    assert np.shares_memory(together.items, dataset.items)  # no gap, no copy


def test_a_view_of_a_million_costs_its_users() -> None:
    n_users, length = 10_000, 100
    items = np.ones(n_users * length, dtype=np.int32)
    offsets = np.arange(n_users + 1) * length
    dataset = SequenceDataset.from_offsets(items, offsets, Catalog(pl.Series([1]), n_users))
    tracemalloc.start()
    halves = dataset.view(dataset.starts, dataset.ends - 50)
    some = halves.select(np.arange(0, n_users, 2))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(some), len(some[0])) == (5_000, 50)
    assert peak < 40 * n_users  # bytes; the items alone are 4 MB


@given(some_sequences, st.data())
def test_select_is_list_indexing(sequences: list[list[int]], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(sequences) - 1), max_size=8))
    chosen = SequenceDataset.from_lists(sequences).select(np.array(index, dtype=np.int64))
    assert lists(chosen) == [sequences[n] for n in index]
    assert chosen.users.tolist() == index
    # again, from a view whose sequences are in any order or repeated
    again = data.draw(st.lists(st.integers(0, len(index) - 1), max_size=8)) if index else []
    assert lists(chosen.select(np.array(again, dtype=np.int64))) == [
        sequences[index[n]] for n in again
    ]


# --- nothing in a view but its own sequences -----------------------------------------------------


inner = st.integers(0, 9).map(lambda n: 2 * n + 1)
pieces = st.lists(st.tuples(st.integers(0, 5), st.lists(inner, max_size=5), st.integers(0, 5)))


@st.composite
def view_parts(draw: st.DrawFn) -> tuple[list[tuple[int, list[int], int]], list[int], bool, bool]:
    """Users (items before, inside and after a view), their order in it, synthetic, copies."""
    users = draw(pieces)
    return users, draw(st.permutations(range(len(users)))), draw(st.booleans()), draw(st.booleans())


def view_of(parts) -> tuple[SequenceDataset, list[list[int]]]:
    """A view of a log and its sequences: odd items are inside, even ones are left out."""
    users, order, has_synthetic, has_copies = parts
    log = [[2] * before + inside + [4] * after for before, inside, after in users]
    items = np.array([item for sequence in log for item in sequence], dtype=np.int32)
    dataset = SequenceDataset.from_offsets(
        items,
        offsets_of([len(sequence) for sequence in log]),
        Catalog(pl.Series("item_id", np.arange(1, 41)), len(log)),
        synthetic=np.arange(len(items)) % 3 == 0 if has_synthetic else None,
        timestamps=items.astype(np.int64),
    )
    if has_copies:
        dataset = dataset.with_copies(copies_of(dataset))
    starts = dataset.starts + np.array([before for before, _, _ in users], dtype=np.int64)
    lengths = np.array([len(inside) for _, inside, _ in users], dtype=np.int64)
    index = np.array(order, dtype=np.int64)
    return dataset.view(starts, starts + lengths).select(index), [users[n][1] for n in order]


@settings(max_examples=200, deadline=None)
@given(view_parts(), st.integers(1, 4), st.integers(0, 3))
def test_no_view_shows_an_item_that_it_leaves_out(parts, max_len: int, epoch: int) -> None:
    view, inside = view_of(parts)
    flat = [item for sequence in inside for item in sequence]
    assert lists(view) == inside
    assert view.items.tolist() == flat
    assert view.timestamps is not None
    assert view.timestamps.tolist() == flat
    assert view.lengths.tolist() == [len(sequence) for sequence in inside]
    assert len(view.synthetic) == len(view.log_positions) == len(flat)
    real = view.real()
    kept = [item for item, flag in zip(flat, view.synthetic, strict=True) if not flag]
    assert real.items.tolist() == kept
    assert real.lengths.tolist() == view.real_lengths.tolist()
    assert view.item_counts().tolist() == np.bincount(kept, minlength=41).tolist()
    assert view.compact().log.items.tolist() == flat
    # tensors: odd items, or those of copies (10 and 20 more), or padding
    shown: list[np.ndarray] = []
    for examples in ("per_user", "windows", "prefixes", "last"):
        index, ends = training_examples(view, max_len, examples)
        assert (view.starts[index] + 1 < ends).all()
        assert (ends <= view.ends[index]).all()
        for batch in training_batches(view, 3, max_len, 0, epoch, examples):
            for part in (batch, batch.copies):
                if part is not None:
                    shown += [part.items.numpy(), part.targets.numpy()]
                    shown += [part.with_last_target().items.numpy()]
    for pairs in pair_batches(view, 3, 0, epoch):
        shown += [part.items.numpy() for part in (pairs, pairs.copies) if part is not None]
    for _, histories in history_batches(view, 3, max_len):
        shown += [histories.items.numpy(), histories.truncate(1).items.numpy()]
        shown += [histories.aligned_right(3).numpy()]
    everyone = np.arange(len(view))
    if len(view):
        shown += [histories_of(view, everyone).items.numpy()]
    long = np.flatnonzero(view.lengths >= 2)
    if len(long):
        shown += [batch_of(view, long, max_len).items.numpy()]
    for array in shown:
        assert ((array % 2 == 1) | (array == 0)).all()


@settings(max_examples=50, deadline=None)
@given(view_parts())
def test_a_view_survives_disk_and_compacting(tmp_path_factory, parts) -> None:
    view, inside = view_of(parts)
    plain = view.without_copies()
    path = tmp_path_factory.mktemp("view") / "data"
    plain.save(path)
    assert np.load(part_of(path, "items.npy")).tolist() == [item for own in inside for item in own]
    assert_same(load_dataset(path), plain)
    assert_same(view.compact(), plain)
    compact = view.compact()
    assert compact.compact() is compact
    if view.copies is not None:
        assert compact.copies is not None
        np.testing.assert_array_equal(compact.copies.items, copies_of(plain).items)
        np.testing.assert_array_equal(compact.copies.difficulty, view.copies.difficulty)


# --- other items for the same users --------------------------------------------------------------


def test_prepend_by_hand() -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES, users=[5, 6, 7, 8])
    longer = dataset.prepend(np.array([[9, 8], [7, 6]], dtype=np.int32), np.array([3, 1]))
    assert lists(longer) == [[1, 2, 3], [7, 6], [4], [9, 8, 2, 2, 5, 1]]
    flags = [False] * 3 + [True] * 2 + [False] + [True] * 2 + [False] * 4
    assert longer.synthetic.tolist() == flags
    assert longer.users.tolist() == [5, 6, 7, 8]
    assert longer.lengths.tolist() == [3, 2, 1, 6]
    assert longer.real_lengths.tolist() == [3, 0, 1, 4]
    assert lists(dataset) == SEQUENCES  # the input is as it was
    assert not dataset.synthetic.any()


def test_prepend_keeps_earlier_flags_and_takes_the_time_of_the_next_item() -> None:
    dataset = full_dataset()
    longer = dataset.prepend(np.array([[3]], dtype=np.int32), np.array([2]))
    assert longer.items.tolist() == [1, 2, 3, 3, 4, 2, 2, 5, 1]
    assert longer.synthetic.astype(int).tolist() == [1, 0, 0, 1, 0, 1, 1, 0, 0]
    assert longer.timestamps is not None
    assert longer.timestamps.tolist() == [0, 1000, 2000, 3000, 3000, 4000, 5000, 6000, 7000]


def test_prepend_to_a_view() -> None:
    view = full_dataset().view(np.array([6, 1]), np.array([8, 2]), np.array([3, 0]))
    longer = view.prepend(np.array([[3], [4]], dtype=np.int32), np.array([0, 1]))
    assert lists(longer) == [[3, 5, 1], [4, 2]]
    assert longer.synthetic.tolist() == [True, False, False, True, False]
    assert longer.timestamps is not None
    assert longer.timestamps.tolist() == [6000, 6000, 7000, 1000, 1000]
    assert longer.users.tolist() == [8, 7]


def test_prepend_to_empty_histories() -> None:
    nothing = full_dataset().select(np.array([1]))
    longer = nothing.prepend(np.array([[3, 4]], dtype=np.int32), np.array([0]))
    assert lists(longer) == [[3, 4]]
    assert longer.real_lengths.tolist() == [0]


@given(some_sequences, st.integers(0, 3), st.data())
def test_real_undoes_prepend(sequences: list[list[int]], n: int, data: st.DataObject) -> None:
    dataset = SequenceDataset.from_lists(sequences)
    chosen = data.draw(st.sets(st.integers(0, len(sequences) - 1)))
    index = np.array(sorted(chosen), dtype=np.int64)
    generated = np.full((len(index), n), 3, dtype=np.int32)
    longer = dataset.prepend(generated, index)
    assert lists(longer) == [
        [3] * n * (number in chosen) + sequence for number, sequence in enumerate(sequences)
    ]
    assert_same(longer.real(), dataset)


def test_real_drops_flagged_items_and_their_times() -> None:
    real = full_dataset().real()
    assert lists(real) == [[2, 3], [], [4], [5, 1]]
    assert real.users.tolist() == [7, 1, 0, 8]
    assert real.timestamps is not None
    assert real.timestamps.tolist() == [1000, 2000, 3000, 6000, 7000]
    assert not real.has_synthetic
    assert real.real() is real


def test_with_items_keeps_the_users() -> None:
    dataset = full_dataset().select(np.array([3, 0]))
    other = dataset.with_items(
        np.array([5, 4, 3], dtype=np.int32), np.array([1, 2]), np.array([False, True, False])
    )
    assert lists(other) == [[5], [4, 3]]
    assert other.users.tolist() == [8, 7]
    assert other.synthetic.tolist() == [False, True, False]
    assert other.timestamps is None
    assert other.catalog is dataset.catalog


def test_item_counts_by_hand() -> None:
    dataset = full_dataset()
    assert dataset.item_counts().tolist() == [0, 1, 1, 1, 1, 1]
    assert dataset.select(np.array([3, 3])).item_counts().tolist() == [0, 2, 0, 0, 0, 2]
    assert dataset.select(np.array([1])).item_counts().tolist() == [0] * 6


def test_item_counts_of_a_long_log_are_added_up() -> None:
    generator = np.random.default_rng(0)
    lengths = np.append(generator.integers(0, 40, 400_000), 5_000_000)
    offsets = offsets_of(lengths)
    items = generator.integers(1, 8, offsets[-1], dtype=np.int32)
    synthetic = generator.random(offsets[-1]) < 0.2
    catalog = Catalog(pl.Series(np.arange(1, 8)), len(lengths))
    for flags in (None, synthetic):
        dataset = SequenceDataset.from_offsets(items, offsets, catalog, synthetic=flags)
        kept = items if flags is None else items[~flags]
        np.testing.assert_array_equal(dataset.item_counts(), np.bincount(kept, minlength=8))


# --- augmented copies ----------------------------------------------------------------------------


def test_copies_are_attached_to_the_compact_sequences() -> None:
    view = SequenceDataset.from_lists(SEQUENCES).select(np.array([3, 0]))
    augmented = view.with_copies(copies_of(view))
    assert lists(augmented) == lists(view)
    assert augmented.log.items.tolist() == view.items.tolist()
    assert augmented.copies is not None
    assert len(augmented.copies) == 2
    assert lists(augmented.without_copies()) == lists(view)
    assert augmented.without_copies().copies is None
    assert view.without_copies() is view


def test_copies_of_another_log_are_refused() -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    view = dataset.select(np.array([3, 0]))
    with pytest.raises(DataError, match=r"of 7 interactions do not fit a log of 8: .*with_copies"):
        replace(view, copies=copies_of(view))
    with pytest.raises(DataError, match="of 8 interactions do not fit a log of 7"):
        view.with_copies(copies_of(dataset))


def test_all_copies_may_be_used_from_the_start() -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    copies = replace(copies_of(dataset), schedule=CurriculumSchedule(stage_epochs=9))
    augmented = dataset.with_copies(copies).with_all_copies()
    assert augmented.copies is not None
    assert list(augmented.copies.schedule.stage(0, 2)) == [0, 1]
    assert augmented.copies.items is copies.items
    assert dataset.with_all_copies() is dataset


def test_copies_are_neither_lengthened_nor_saved(tmp_path) -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    augmented = dataset.with_copies(copies_of(dataset))
    with pytest.raises(DataError, match="have augmented copies"):
        augmented.prepend(np.array([[1]], dtype=np.int32), np.array([0]))
    with pytest.raises(DataError, match="copies are not saved"):
        augmented.save(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_is_of_the_content_wherever_it_is(tmp_path) -> None:
    dataset = full_dataset()
    dataset.save(tmp_path / "data")
    assert load_dataset(tmp_path / "data").fingerprint == dataset.fingerprint
    assert dataset.compact().fingerprint == dataset.fingerprint
    catalog = dataset.catalog
    swapped = catalog.item_ids.gather([1, 0, 2, 3, 4])
    named = catalog.item_ids.to_frame().with_columns(name=pl.lit("x"))
    others = [
        dataset.select(np.arange(len(dataset) - 1)),
        replace(dataset, users=dataset.users[::-1]),
        replace(dataset, log=replace(dataset.log, items=dataset.log.items[::-1])),
        replace(dataset, log=replace(dataset.log, synthetic=None)),
        replace(dataset, log=replace(dataset.log, timestamps=dataset.log.timestamps + 1)),
        replace(dataset, catalog=replace(catalog, item_ids=swapped)),
        replace(dataset, catalog=replace(catalog, user_ids=pl.Series("user_id", range(9)))),
        replace(dataset, catalog=replace(catalog, attributes=named)),
        dataset.with_copies(copies_of(dataset)),
    ]
    prints = {other.fingerprint for other in [dataset, *others]}
    assert len(prints) == len(others) + 1


def test_a_zero_in_front_is_no_item() -> None:
    log = SequenceDataset.from_lists([[4, 5], [6], [7, 8, 9]])
    generated = np.array([[0, 1, 2], [0, 0, 0]], dtype=np.int32)
    longer = log.prepend(generated, np.array([2, 0]))
    assert [items.tolist() for items in longer] == [[4, 5], [6], [1, 2, 7, 8, 9]]
    assert longer.synthetic.tolist() == [False] * 3 + [True] * 2 + [False] * 3
