"""Prepared datasets: round trips through disk, and damage of every kind."""

import os
import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from diffuserec.data import (
    Catalog,
    SequenceDataset,
    batch_of,
    dataset_manifest,
    history_batches,
    load_dataset,
    pair_batches,
    training_batches,
)
from diffuserec.data.statistics import description
from diffuserec.errors import DataError

from ..bundles import edit, part, sign

SEQUENCES = [[1, 2, 3], [], [4], [2, 2, 5, 1]]


def full_dataset() -> SequenceDataset:
    """Every optional field in use."""
    catalog = Catalog(
        item_ids=pl.Series("item_id", ["a", "b", "c", "ü", "e"]),
        n_users=9,
        user_ids=pl.Series("user_id", [10 * n for n in range(9)]),
        attributes=pl.DataFrame({"name": ["A", None, "C", "D", "E"]}),
    )
    return SequenceDataset.from_offsets(
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
    assert not list((tmp_path / "data").glob("synthetic*"))
    loaded = load_dataset(tmp_path / "data")
    assert_same(loaded, dataset)
    assert not loaded.has_synthetic
    assert loaded.catalog.item_ids.dtype == pl.Int64
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("sequences", [[], [[]], [[], []]], ids=len)
def test_an_empty_dataset_round_trips(tmp_path: Path, sequences: list[list[int]]) -> None:
    dataset = SequenceDataset.from_lists(sequences)
    dataset.save(tmp_path / "data")
    assert_same(load_dataset(tmp_path / "data"), dataset)


def test_a_view_is_saved_without_the_items_it_leaves_out(tmp_path: Path) -> None:
    dataset = SequenceDataset.from_lists([[1, 2, 3, 9], [4], [5, 6, 7, 8]], users=[4, 5, 6])
    view = dataset.view(np.array([1, 8]), np.array([3, 9]), np.array([0, 2]))
    view.save(tmp_path / "data")
    np.testing.assert_array_equal(np.load(part(tmp_path / "data", "items.npy")), [2, 3, 8])
    loaded = load_dataset(tmp_path / "data")
    assert [sequence.tolist() for sequence in loaded] == [[2, 3], [8]]
    assert loaded.users.tolist() == [4, 6]
    assert loaded.catalog.item_ids.to_list() == [*range(1, 10)]


def test_a_mapped_dataset_is_read_by_everything(tmp_path: Path) -> None:
    """Mapped arrays are read-only, which torch refuses to share in silence."""
    full_dataset().save(tmp_path / "data")
    loaded = load_dataset(tmp_path / "data")
    batches = [
        batch
        for examples in ("per_user", "windows", "prefixes", "last")
        for batch in training_batches(loaded, 2, 3, 0, 0, examples)
    ]
    assert sum(len(batch.users) for batch in batches) > 4
    assert sum(len(pairs.items) for pairs in pair_batches(loaded, 3, 0, 0)) == 5
    assert sum(len(index) for index, _ in history_batches(loaded, 3)) == 4
    batch = batch_of(loaded, np.array([3, 0]), 2)
    batch.items[:] = 0  # a batch is a copy
    assert loaded[3].tolist() == [2, 2, 5, 1]
    assert loaded.item_counts().tolist() == [0, 1, 1, 1, 1, 1]


def test_leftovers_of_an_interrupted_save_are_not_taken_over(tmp_path: Path) -> None:
    stale = tmp_path / ".data.partial"
    stale.mkdir()
    np.save(stale / "synthetic.npy", np.ones(8, dtype=bool))
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    assert not load_dataset(tmp_path / "data").synthetic.any()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="exists already"):
        SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    assert (tmp_path / "data" / "mine").read_text(encoding="utf-8") == "x"


def at(directory: Path, name: str) -> Path:
    return directory / name if name == "manifest.json" else part(directory, name)


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
    with part(tmp_path / "data", f"{name}.npy").open("wb") as file:
        np.save(file, objects, allow_pickle=True)
    sign(tmp_path / "data")
    with pytest.raises(DataError, match="damaged"):
        load_dataset(tmp_path / "data")
    assert not trace.exists()


def test_a_bare_pickle_is_refused_unopened(tmp_path: Path) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    trace = tmp_path / "opened"
    part(tmp_path / "data", "items.npy").write_bytes(pickle.dumps(Opened(trace)))
    sign(tmp_path / "data")
    with pytest.raises(DataError, match="damaged"):
        load_dataset(tmp_path / "data")
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["items.npy", "offsets.npy", "users.npy", "item_ids.parquet", "manifest.json"]
)
def test_a_missing_file_is_named_as_damage(tmp_path: Path, name: str) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    at(tmp_path / "data", name).unlink()
    with pytest.raises(DataError, match="prepare"):
        load_dataset(tmp_path / "data")


@pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "item_ids.parquet", "manifest.json"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    path = at(tmp_path / "data", name)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match="prepare"):
        load_dataset(tmp_path / "data")


def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    np.save(part(tmp_path / "data", "items.npy"), np.ones(5, dtype=np.int32))
    sign(tmp_path / "data")
    with pytest.raises(DataError, match="damaged"):
        load_dataset(tmp_path / "data")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "diffuserec-model"}, "holds diffuserec-model, not a prepared dataset"),
        ({"format": None}, "holds something else, not a prepared dataset"),
        ({"version": 99}, "dataset version 99"),
    ],
)
def test_a_foreign_manifest_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    SequenceDataset.from_lists(SEQUENCES).save(tmp_path / "data")
    edit(tmp_path / "data", **change)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "data")


def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(DataError, match="not a prepared dataset"):
        load_dataset(tmp_path)


def test_nothing_there() -> None:
    with pytest.raises(DataError, match="not a prepared dataset"):
        load_dataset("/nowhere/at/all")


def test_statistics_by_hand(tmp_path: Path) -> None:
    log = SequenceDataset.from_lists([[1, 2, 1], [1, 2, 3, 4], [], [5], [1] * 6])
    log.save(tmp_path / "log", note={"source": "a.csv", "filters": "min_user 1"})
    facts = description(tmp_path / "log")
    assert facts == {
        "source": "a.csv",
        "filters": "min_user 1",
        "users": 5,
        "items": 5,
        "interactions": 14,
        "synthetic": 0,
        "density": "56.0000%",
        "history length min/25%/50%/75%/90%/max": "0/1/3/4/5/6",
        "users with at most 5, 6-20, more than 20": "4 / 1 / 0",
        "share of the most popular tenth of items": "64.3%",  # item 1, 9 of 14
        "timestamps": "no, order only",
        "users too short for leave-one-out": 2,
        "test targets that are repeats": "66.67%",
    }
    described = Catalog(
        pl.Series("item_id", range(1, 8)),
        5,
        attributes=pl.DataFrame({"a": [1] * 7, "b": ["x"] * 7}),
    )
    SequenceDataset.from_offsets(log.items, log.offsets, described).save(tmp_path / "described")
    more = description(tmp_path / "described")
    assert more["attributes of items"] == "a, b"
    assert more["items without an interaction"] == 2
    # 20 synthetic items are counted apart, and make no item popular
    longer = log.prepend(np.full((2, 10), 5, dtype=np.int32), np.array([0, 2]))
    longer.save(tmp_path / "longer")
    changed = description(tmp_path / "longer")
    assert changed["synthetic"] == 20
    assert "test targets that are repeats" not in changed
    for name in ("interactions", "density", "share of the most popular tenth of items"):
        assert changed[name] == facts[name]


def test_statistics_of_nobody(tmp_path: Path) -> None:
    SequenceDataset.from_lists([]).save(tmp_path / "none")
    facts = description(tmp_path / "none")
    assert (facts["users"], facts["interactions"]) == (0, 0)
