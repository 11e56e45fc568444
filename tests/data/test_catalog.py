"""Raw ids in and out: by number, by the index, in every type; the histories of a request."""

import time
import zlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuserec.data import Catalog, encode_histories, encode_items
from diffuserec.errors import DataError


def catalog_of(*raw: int | str, n_users: int = 1) -> Catalog:
    return Catalog(pl.Series("item_id", list(raw)), n_users)


def test_encode_integers_and_strings_of_them() -> None:
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


def test_no_id_is_an_unknown_id() -> None:
    assert catalog_of("b", "").encode(pl.Series(["", None, "b"])).tolist() == [2, 0, 1]
    assert catalog_of(0, 5).encode(pl.Series([5, None, 0])).tolist() == [2, 0, 1]
    assert catalog_of(0, 5).encode(["0", "none"]).tolist() == [1, 0]


def test_an_empty_catalog_knows_no_id() -> None:
    assert Catalog(pl.Series("item_id", [], dtype=pl.Int64), 0).encode([3, 0]).tolist() == [0, 0]
    assert Catalog(pl.Series("item_id", [], dtype=pl.String), 0).encode(["a"]).tolist() == [0]


some_ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20, unique=True),
    st.lists(st.integers(-3, 9), min_size=1, unique=True),
    st.lists(st.text(max_size=4), min_size=1, max_size=20, unique=True),
)


@given(some_ids, some_ids)
def test_encode_is_a_search_of_the_list(known: list, others: list) -> None:
    if type(known[0]) is not type(others[0]):
        others = known[::2]
    asked = [*others, *known, *others[:2]]
    numbers = catalog_of(*known).encode(asked)
    assert numbers.tolist() == [known.index(raw) + 1 if raw in known else 0 for raw in asked]


@pytest.mark.parametrize("dtype", [pl.String, pl.Int64])
def test_a_few_ids_of_a_million_are_found_at_once(dtype: pl.DataType) -> None:
    generator = np.random.default_rng(0)
    ids = pl.Series("item_id", generator.permutation(3_000_000)[:1_000_000]).cast(dtype)
    catalog = Catalog(ids, 1)
    wanted = generator.integers(1, catalog.vocab_size, 20)
    raw = catalog.decode(wanted)
    seconds = []
    for _ in range(30):  # the first builds the index
        begun = time.perf_counter()
        numbers = catalog.encode(raw)
        seconds.append(time.perf_counter() - begun)
    assert numbers.tolist() == wanted.tolist()
    assert np.median(seconds) < 2e-3


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


# --- histories of a request ----------------------------------------------------------------------


def test_histories_by_hand() -> None:
    catalog = catalog_of("a", "b", "c", n_users=5)
    dataset, n_unknown = encode_histories(catalog, [["c", "?", "a"], [], ["?", "?"], ["a", "a"]])
    assert [sequence.tolist() for sequence in dataset] == [[3, 1], [], [], [1, 1]]
    assert n_unknown.tolist() == [1, 0, 2, 0]
    assert dataset.catalog is catalog
    # the checksum of the known items as little-endian 32-bit integers, above the users' numbers
    keys = [zlib.crc32(b"\3\0\0\0\1\0\0\0"), 0, 0, zlib.crc32(b"\1\0\0\0\1\0\0\0")]
    assert dataset.users.tolist() == [key + 5 for key in keys]


def test_the_key_of_a_history_is_its_own() -> None:
    catalog = catalog_of(*range(100), n_users=7)
    histories = np.random.default_rng(0).integers(0, 100, (50, 6)).tolist()
    together, _ = encode_histories(catalog, histories)
    for history, user in zip(histories, together.users, strict=True):
        alone, _ = encode_histories(catalog, [["unknown"], history])
        assert alone.users[1] == user
    assert len(set(together.users.tolist())) == 50
    assert together.users.min() >= 7


def test_no_history_at_all() -> None:
    for catalog in (catalog_of("a"), catalog_of(1)):
        dataset, n_unknown = encode_histories(catalog, [])
        assert (len(dataset), len(n_unknown), len(dataset.items)) == (0, 0, 0)


@pytest.mark.parametrize("histories", [["a", "b"], "ab", [["a"], "b"]])
def test_histories_are_lists_of_lists(histories) -> None:
    with pytest.raises(DataError, match=r"must be a list of lists.*recommend\(\[\["):
        encode_histories(catalog_of("a", "b"), histories)


def test_unknown_items_of_histories_may_be_refused() -> None:
    with pytest.raises(
        DataError, match=r"history 1: the catalog does not hold item 'x' \(3 unknown in all\)"
    ):
        encode_histories(catalog_of("a"), [["a"], ["a", "x"], ["y", "z"]], "refuse")
    dataset, _ = encode_histories(catalog_of("a"), [["a"], []], "refuse")
    assert dataset.lengths.tolist() == [1, 0]


def test_items_of_a_list_must_be_known() -> None:
    assert encode_items(catalog_of("a", "b"), "allow", ["b", "a", "b"]).tolist() == [2, 1, 2]
    assert encode_items(catalog_of("a", "b"), "deny", []).tolist() == []
    with pytest.raises(DataError, match="allow: the catalog does not hold item 'x'"):
        encode_items(catalog_of("a"), "allow", ["a", "x", "y"])
