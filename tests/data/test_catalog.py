"""Raw ids in and out: by number, by the index, in every type; the histories of a request."""

import datetime
import time
import zlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffuserec.data import Catalog, encode_histories, encode_items
from diffuserec.errors import ConfigError, DataError


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


FAR = 2**53
INTEGER_IDS = [
    # what is given, and the id of the catalog 1, 7, 2^53 + 1 that it stands for
    (7, 7),
    (np.int8(7), 7),
    (np.uint64(7), 7),
    (7.0, 7),
    (np.float32(7), 7),
    ("7", 7),
    (np.str_("7"), 7),
    ("7.0", 7),
    ("7.00", 7),
    (FAR + 1, FAR + 1),
    (str(FAR + 1), FAR + 1),
    (float(FAR), None),
    (f"{FAR + 1}.0", None),
    (7.9, None),
    ("7.9", None),
    ("007", None),
    ("+7", None),
    (" 7", None),
    ("7.", None),
    ("7_0", None),
    ("７", None),
    ("7e0", None),
    ("", None),
    (True, None),
    (np.bool_(True), None),
    (b"7", None),
    (None, None),
    (float("nan"), None),
    (float("inf"), None),
    (2**63, None),
    (-(2**70), None),
    (datetime.date(1970, 1, 8), None),
    (7j, None),
    ([7], None),
]


@pytest.mark.parametrize("value, wanted", INTEGER_IDS, ids=repr)
def test_a_value_means_the_same_whatever_else_is_in_the_call(value, wanted) -> None:
    catalog = catalog_of(1, 7, FAR + 1)
    number = 0 if wanted is None else [1, 7, FAR + 1].index(wanted) + 1
    for beside in ([], [FAR + 1], [1.0], ["x"], [None], [True, 1, FAR + 1, "1"]):
        assert catalog.encode([value, *beside])[0] == number, beside
        assert catalog.encode([*beside, value])[-1] == number, beside


def test_no_integer_passes_through_a_float() -> None:
    catalog = catalog_of(1, FAR, FAR + 1)
    assert catalog.encode([FAR + 1, 1.0]).tolist() == [3, 1]
    assert catalog.encode([FAR + 1, None]).tolist() == [3, 0]
    assert catalog.encode(pl.Series([FAR + 1, None])).tolist() == [3, 0]
    assert catalog.encode(np.array([FAR + 1, 2**63], dtype=np.uint64)).tolist() == [3, 0]
    assert catalog.encode([-1, 2**63, FAR + 1]).tolist() == [0, 0, 3]
    single = catalog_of(2**24, 2**24 - 1)
    assert single.encode(np.array([2**24, 2**24 - 1], dtype=np.float32)).tolist() == [0, 2]
    assert single.encode(pl.Series([2**24, 2**24 - 1], dtype=pl.Float32)).tolist() == [0, 2]


@pytest.mark.parametrize(
    "raw, numbers",
    [
        (np.array([7, 3]), [2, 0]),
        (np.array([7, 3], dtype=np.int8), [2, 0]),
        (np.array([7.0, 7.5, np.nan, np.inf]), [2, 0, 0, 0]),
        (np.array(["7", "x"]), [2, 0]),
        (np.array([7, "7", None, True], dtype=object), [2, 2, 0, 0]),
        (np.array([True, False]), [0, 0]),
        (np.array([7], dtype="M8[ns]"), [0]),
        (pl.Series([7.0, None, 7.5]), [2, 0, 0]),
        (pl.Series([True]), [0]),
        (pl.Series([7], dtype=pl.Int128), [2]),
        (pl.Series([7], dtype=pl.Datetime), [0]),
        (pl.Series(["7", "1", None], dtype=pl.Categorical), [2, 1, 0]),
        ((7, 1), [2, 1]),
        (range(2), [0, 1]),
        ({7}, [2]),
    ],
    ids=repr,
)
def test_arrays_and_series_are_read_value_by_value(raw, numbers) -> None:
    assert catalog_of(1, 7).encode(raw).tolist() == numbers


def test_pandas_columns_are_read_value_by_value() -> None:
    pandas = pytest.importorskip("pandas")
    for column in (pandas.Series([7, 1]), pandas.Series(["7", "1"]), pandas.Series([7.0, 1])):
        assert catalog_of(1, 7).encode(column).tolist() == [2, 1]
    gap = pandas.Series([7, None, 1], dtype="Int64")
    assert catalog_of(1, 7).encode(gap).tolist() == [2, 0, 1]


def test_only_strings_and_integers_stand_for_a_string() -> None:
    catalog = catalog_of("1", "1.0", "True", "None", "nan")
    asked = [1, np.int16(1), "1", "1.0", 1.0, True, None, float("nan"), b"1"]
    assert catalog.encode(asked).tolist() == [1, 1, 1, 2, 0, 0, 0, 0, 0]
    assert [catalog.encode([value])[0] for value in asked] == [1, 1, 1, 2, 0, 0, 0, 0, 0]
    assert catalog.encode(np.array([1, 2])).tolist() == [1, 0]
    assert catalog.encode(np.array([1.0])).tolist() == [0]


@pytest.mark.parametrize(
    "raw", ["12", b"12", 12, 1.5, None, {1: 2}, np.array(1), np.array([[1, 2]])], ids=repr
)
def test_one_value_is_no_list(raw) -> None:
    with pytest.raises(DataError, match="must be a list of item ids, got"):
        catalog_of(1, 2, 12).encode(raw)
    with pytest.raises(DataError, match="allow must be a list of item ids, got"):
        encode_items(catalog_of(1, 2, 12), "allow", raw)


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
def test_a_few_ids_of_a_million_are_found_as_fast_as_of_a_thousand(dtype: pl.DataType) -> None:
    generator = np.random.default_rng(0)
    ids = pl.Series("item_id", generator.permutation(3_000_000)[:1_000_000]).cast(dtype)
    catalogs = [Catalog(ids[:1000], 1), Catalog(ids, 1)]
    wanted = generator.integers(1, 1001, 20)
    raw = catalogs[0].decode(wanted)
    quickest = [np.inf, np.inf]
    for _ in range(30):  # in turns; the first builds the index
        for place, catalog in enumerate(catalogs):
            begun = time.perf_counter()
            numbers = catalog.encode(raw)
            quickest[place] = min(quickest[place], time.perf_counter() - begun)
            assert numbers.tolist() == wanted.tolist()
    assert quickest[1] < 10 * quickest[0]  # a search of all takes longer


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


@pytest.mark.parametrize(
    "histories",
    [["a", "b"], "ab", [["a"], "b"], [b"a"], [{"a"}], {"u": ["a"]}, 3, None, np.array([1, 2])],
    ids=repr,
)
def test_histories_are_lists_of_lists(histories) -> None:
    with pytest.raises(DataError, match=r"must be a list of lists.*recommend\(\[\["):
        encode_histories(catalog_of("a", "b"), histories)


def test_histories_may_be_arrays_and_series() -> None:
    catalog = catalog_of(5, 7)
    for histories in (
        np.array([[7, 5], [5, 9]]),
        [np.array([7, 5]), np.array([5.0, 9.0])],
        (pl.Series([7, 5]), ("5", 9)),
        pl.Series([[7, 5], [5, 9]]),
    ):
        dataset, n_unknown = encode_histories(catalog, histories)
        assert [sequence.tolist() for sequence in dataset] == [[2, 1], [1]]
        assert n_unknown.tolist() == [0, 1]


def test_what_to_do_with_unknown_items_is_one_of_two_words() -> None:
    with pytest.raises(ConfigError, match="must be 'skip' or 'refuse', got 'drop'"):
        encode_histories(catalog_of(5), [[5]], "drop")


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
    assert encode_items(catalog_of("a", "b"), "deny", {"b"}).tolist() == [2]
    with pytest.raises(DataError, match="allow: the catalog does not hold item 'x'"):
        encode_items(catalog_of("a"), "allow", ["a", "x", "y"])
