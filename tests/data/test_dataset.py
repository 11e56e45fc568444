"""The ragged store: slices by hand, round trips through disk, raw ids in and out."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuserec.data import Catalog, SequenceDataset, dataset_manifest, load_dataset
from diffuserec.errors import DataError

SEQUENCES = [[1, 2, 3], [], [4], [2, 2, 5, 1]]
some_sequences = st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=8)


def lists(dataset: SequenceDataset) -> list[list[int]]:
    return [dataset[row].tolist() for row in range(len(dataset))]


def full_dataset() -> SequenceDataset:
    """Every optional field in use."""
    catalog = Catalog(
        item_ids=pl.Series("item_id", ["a", "b", "c", "ü", "e"]),
        n_users=9,
        user_ids=pl.Series("user_id", [10 * n for n in range(9)]),
        attributes=pl.DataFrame({"name": ["A", None, "C", "D", "E"]}),
    )
    return SequenceDataset(
        items=np.array([1, 2, 3, 4, 2, 2, 5, 1], dtype=np.int32),
        offsets=np.array([0, 3, 3, 4, 8]),
        catalog=catalog,
        users=np.array([7, 1, 0, 8]),
        synthetic=np.array([1, 0, 0, 0, 1, 1, 0, 0], dtype=bool),
        timestamps=np.arange(8) * 1000,
    )


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
    assert not dataset.synthetic.any()


def test_a_log_without_generated_items_pays_nothing_for_the_flag() -> None:
    dataset = SequenceDataset.from_lists([[1]] * 1000)
    assert dataset.synthetic.shape == (1000,)
    assert dataset.synthetic.base is not None
    assert dataset.synthetic.base.nbytes == 1


def test_round_trip_keeps_every_field_and_maps_the_arrays(tmp_path: Path) -> None:
    dataset = full_dataset()
    dataset.save(tmp_path / "data", note={"read": "log.csv"})
    loaded = load_dataset(tmp_path / "data")
    assert_same(loaded, dataset)
    assert isinstance(loaded.items, np.memmap)
    assert not loaded.items.flags.writeable
    assert loaded.catalog.item_ids.to_list() == ["a", "b", "c", "ü", "e"]
    assert loaded.catalog.user_ids is not None
    assert loaded.catalog.user_ids.to_list() == [10 * n for n in range(9)]
    assert loaded.catalog.attributes is not None
    assert loaded.catalog.attributes["name"].to_list() == ["A", None, "C", "D", "E"]
    assert loaded.catalog.n_users == 9
    assert dataset_manifest(tmp_path / "data")["note"] == {"read": "log.csv"}


def test_round_trip_of_a_plain_log_writes_no_flags(tmp_path: Path) -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    dataset.save(tmp_path / "data")
    assert not (tmp_path / "data" / "synthetic.npy").exists()
    loaded = load_dataset(tmp_path / "data")
    assert_same(loaded, dataset)
    assert loaded.catalog.item_ids.dtype == pl.Int64
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_an_interrupted_save_left_is_not_taken_over(tmp_path: Path) -> None:
    stale = tmp_path / ".data.partial"
    stale.mkdir()
    np.save(stale / "synthetic.npy", np.ones(8, dtype=bool))
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    assert not load_dataset(tmp_path / "data").synthetic.any()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("x")
    with pytest.raises(DataError, match="exists already"):
        SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    assert (tmp_path / "data" / "mine").read_text() == "x"


class Opened:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["items", "offsets", "users"])
def test_an_array_of_objects_is_refused_unopened(tmp_path: Path, name: str) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    trace = tmp_path / "opened"
    objects = np.array([Opened(trace)] * 8, dtype=object)
    np.save(tmp_path / "data" / f"{name}.npy", objects, allow_pickle=True)
    with pytest.raises(DataError, match="damaged"):
        load_dataset(tmp_path / "data")
    assert not trace.exists()


def test_a_bare_pickle_is_refused_unopened(tmp_path: Path) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    trace = tmp_path / "opened"
    (tmp_path / "data" / "items.npy").write_bytes(pickle.dumps(Opened(trace)))
    with pytest.raises(DataError, match="damaged"):
        load_dataset(tmp_path / "data")
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["items.npy", "offsets.npy", "users.npy", "item_ids.parquet", "manifest.json"]
)
def test_a_missing_file_is_named_as_damage(tmp_path: Path, name: str) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    (tmp_path / "data" / name).unlink()
    with pytest.raises(DataError, match="prepare"):
        load_dataset(tmp_path / "data")


@pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "item_ids.parquet", "manifest.json"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    path = tmp_path / "data" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="prepare"):
        load_dataset(tmp_path / "data")


def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    np.save(tmp_path / "data" / "items.npy", np.ones(5, dtype=np.int32))
    with pytest.raises(DataError, match="damaged"):
        load_dataset(tmp_path / "data")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "diffuserec-model"}, "holds diffuserec-model, not a prepared dataset"),
        ({"version": 99}, "dataset version 99"),
    ],
)
def test_a_foreign_manifest_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    path = tmp_path / "data" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "data")


def test_nothing_there() -> None:
    with pytest.raises(DataError, match="not a prepared dataset"):
        load_dataset("/nowhere/at/all")


def test_select_takes_rows_in_the_order_asked_for() -> None:
    dataset = full_dataset()
    chosen = dataset.select(np.array([3, 0]))
    assert lists(chosen) == [[2, 2, 5, 1], [1, 2, 3]]
    assert chosen.users.tolist() == [8, 7]
    assert chosen.synthetic.tolist() == [True, True, False, False, True, False, False]
    assert chosen.timestamps is not None
    assert chosen.timestamps.tolist() == [4000, 5000, 6000, 7000, 0, 1000, 2000]
    assert chosen.catalog is dataset.catalog


def test_select_by_mask_equals_select_by_rows() -> None:
    dataset = full_dataset()
    mask = np.array([True, False, True, False])
    assert_same(dataset.select(mask), dataset.select(np.array([0, 2])))
    assert len(dataset.select(np.zeros(4, dtype=bool))) == 0


def test_slice_cuts_each_sequence() -> None:
    dataset = full_dataset()
    cut = dataset.slice(np.array([1, 3, 3, 5]), np.array([2, 3, 4, 7]))
    assert lists(cut) == [[2], [], [4], [2, 5]]
    assert cut.users.tolist() == [7, 1, 0, 8]
    assert cut.synthetic.tolist() == [False, False, True, False]
    assert cut.timestamps is not None
    assert cut.timestamps.tolist() == [1000, 3000, 5000, 6000]


def test_slices_that_follow_each_other_are_views() -> None:
    dataset = SequenceDataset.from_lists(SEQUENCES)
    part = dataset.select(np.array([0, 1, 2]))
    assert lists(part) == SEQUENCES[:3]
    assert np.shares_memory(part.items, dataset.items)


@given(some_sequences, st.data())
def test_select_is_list_indexing(sequences: list[list[int]], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(sequences) - 1), max_size=8))
    chosen = SequenceDataset.from_lists(sequences).select(np.array(rows, dtype=np.int64))
    assert lists(chosen) == [sequences[row] for row in rows]
    assert chosen.users.tolist() == rows


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


def test_prepend_keeps_earlier_flags() -> None:
    dataset = full_dataset()
    longer = dataset.prepend(np.array([[3]], dtype=np.int32), np.array([2]))
    assert longer.items.tolist() == [1, 2, 3, 3, 4, 2, 2, 5, 1]
    assert longer.synthetic.astype(int).tolist() == [1, 0, 0, 1, 0, 1, 1, 0, 0]


@given(some_sequences, st.integers(0, 3), st.data())
def test_real_undoes_prepend(sequences: list[list[int]], n: int, data: st.DataObject) -> None:
    dataset = SequenceDataset.from_lists(sequences)
    chosen = data.draw(st.sets(st.integers(0, len(sequences) - 1)))
    rows = np.array(sorted(chosen), dtype=np.int64)
    generated = np.full((len(rows), n), 3, dtype=np.int32)
    longer = dataset.prepend(generated, rows)
    assert lists(longer) == [
        [3] * n * (row in chosen) + sequence for row, sequence in enumerate(sequences)
    ]
    assert_same(longer.real(), dataset)


def test_real_drops_flagged_items_and_their_times() -> None:
    real = full_dataset().real()
    assert lists(real) == [[2, 3], [], [4], [5, 1]]
    assert real.users.tolist() == [7, 1, 0, 8]
    assert real.timestamps is not None
    assert real.timestamps.tolist() == [1000, 2000, 3000, 6000, 7000]


def catalog_of(*raw: int | str) -> Catalog:
    return Catalog(pl.Series("item_id", list(raw)), n_users=1)


def test_encode_integers_and_what_is_typed_for_them() -> None:
    catalog = catalog_of(30, 10, 20)
    assert catalog.encode([10, 30, 99, 10]).tolist() == [2, 1, 0, 2]
    assert catalog.encode(["10", "30", "x", ""]).tolist() == [2, 1, 0, 0]
    assert catalog.encode([]).tolist() == []
    assert catalog.encode(pl.Series([20])).tolist() == [3]


def test_encode_strings_and_integers_for_them() -> None:
    catalog = catalog_of("b", "007", "7")
    assert catalog.encode(["7", "007", "b", "B", " b"]).tolist() == [3, 2, 1, 0, 0]
    assert catalog.encode([7]).tolist() == [3]


def test_encode_mixed_ids() -> None:
    assert catalog_of("b", "7").encode(["b", 7, "c"]).tolist() == [1, 2, 0]
    assert catalog_of(5, 7).encode([5, "7", "x"]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("raw", [[30, 10, 20], ["x", "", "ü"]], ids=["int", "str"])
def test_decode_undoes_encode(raw: list[int | str]) -> None:
    catalog = catalog_of(*raw)
    decoded = catalog.decode(catalog.encode(raw[::-1]))
    assert decoded == raw[::-1]
    assert [type(value) for value in decoded] == [type(value) for value in raw]


@pytest.mark.parametrize("number", [0, -1, 4])
def test_decode_refuses_numbers_outside(number: int) -> None:
    with pytest.raises(DataError, match=r"1\.\.3"):
        catalog_of(1, 2, 3).decode(np.array([1, number]))
