"""Logs in and out: formats, types of ids, order, filters, bad input, round trips."""

import datetime as dt
import gzip
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffuserec.data import (
    Catalog,
    SequenceDataset,
    dataset_manifest,
    from_dataset,
    from_frame,
    load_dataset,
    read_log,
)
from diffuserec.errors import ConfigError, DataError

ROWS = [(2, 30, 5), (1, 20, 9), (2, 10, 3), (1, 10, 9), (1, 30, 1)]
"""(user, item, time), out of order, one tie."""
SORTED = [(1, 30, 1), (1, 20, 9), (1, 10, 9), (2, 10, 3), (2, 30, 5)]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(header: str, rows=ROWS, separator=",") -> str:
    return "\n".join([header, *(separator.join(map(str, row)) for row in rows)]) + "\n"


def rows_of(log, *columns):
    return log.frame.select(columns or ("user_id", "item_id", "timestamp")).rows()


# --- formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, format",
    [
        ("log.csv", table("user_id,item_id,timestamp"), "csv"),
        ("log[1].csv", table("user_id,item_id,timestamp"), "csv"),
        ("log.csv", table("user_id;item_id;timestamp", separator=";"), "csv"),
        ("log.csv", table("User ID,Item ID,Date"), "csv"),
        ("log.csv", "\ufeff" + table("userId, movieId, ts").replace("\n", "\r\n"), "csv"),
        ("log.csv", "\n" + table('"user","item","time"').replace("\n2", "\n\n2") + "\n\n", "csv"),
        ("log.tsv", table("reviewerID\tasin\tunixReviewTime", separator="\t"), "tsv"),
        ("log.dat", table("uid\tiid\tdatetime", separator="\t"), "tsv"),
        ("log.txt", table("userID itemID timestamp", separator=" "), "csv"),
        (
            "log.inter",
            table("user_id:token\titem_id:token\ttimestamp:float", separator="\t"),
            "inter",
        ),
        ("log", table("user_id:token\titem_id:token\ttimestamp:float", separator="\t"), "inter"),
        ("ratings.dat", "\n".join(f"{u}::{i}::4.5::{t}" for u, i, t in ROWS), "movielens"),
        (
            "log[1].jsonl",
            "\n".join(f'{{"query_id": {u}, "item": {i}, "time": {t}}}' for u, i, t in ROWS),
            "jsonl",
        ),
        (
            "log.txt",
            "\n\n".join(f'{{"user": {u}, "item": {i}, "time": {t}.0}}' for u, i, t in ROWS),
            "jsonl",
        ),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_reads_every_format_with_times(tmp_path, name, content, format, packed):
    raw = content.encode()
    path = write(
        tmp_path,
        name + ".gz" * packed,
        gzip.compress(raw, compresslevel=1, mtime=0) if packed else raw,
    )
    log = read_log(path)
    assert rows_of(log) == SORTED
    assert log.summary.format == format
    assert log.frame.schema["timestamp"] == pl.Int64
    assert read_log(path, format=format).frame.equals(log.frame)


def test_reads_parquet_whatever_its_name(tmp_path):
    frame = pl.DataFrame(ROWS, schema=["visitor_id", "product_id", "ts"], orient="row")
    for name in ("log.parquet", "log.bin", "log[1].parquet"):
        frame.write_parquet(tmp_path / name)
        log = read_log(tmp_path / name)
        assert rows_of(log) == SORTED
        assert log.summary.format == "parquet"


@pytest.mark.parametrize(
    "content, format, expected",
    [
        ("1 20 10\n2 10\n", "sequences", [(1, 20), (1, 10), (2, 10)]),
        ("2 20\n1 10\n", "sequences", [(1, 10), (2, 20)]),
        ("2 20\n1 10\n2 10\n", "pairs", [(1, 10), (2, 20), (2, 10)]),
        ("2\t20\n1\t10\n2\t10\n", "pairs", [(1, 10), (2, 20), (2, 10)]),
        ("b  x\ty \n\na x\n", "sequences", [("a", "x"), ("b", "x"), ("b", "y")]),
        ("\ufeffb x y\r\na x\r\n", "sequences", [("a", "x"), ("b", "x"), ("b", "y")]),
    ],
)
def test_reads_formats_without_times(tmp_path, content, format, expected):
    log = read_log(write(tmp_path, "log.txt", content))
    assert log.summary.format == format
    assert log.frame.columns == ["user_id", "item_id"]
    assert log.frame.rows() == expected
    assert "order" in log.describe()
    assert log.to_dataset().timestamps is None


def test_a_file_of_pairs_may_be_called_sequences_only_if_no_user_repeats(tmp_path):
    path = write(tmp_path, "log.txt", "1 10\n2 20\n")
    assert read_log(path, format="pairs").frame.rows() == read_log(path).frame.rows()


def test_no_times_on_request(tmp_path):
    path = write(tmp_path, "log.csv", table("user,item,n"))
    log = read_log(path, time="none")
    assert rows_of(log, "user_id", "item_id", "n") == [
        (1, 20, 9), (1, 10, 9), (1, 30, 1), (2, 30, 5), (2, 10, 3),
    ]  # fmt: skip
    named = write(tmp_path, "named.csv", table("user,item,none"))
    assert rows_of(read_log(named, time="none")) == SORTED
    assert read_log(write(tmp_path, "s.txt", "1 2\n2 3 4\n"), time="none").summary.n_users == 2


def test_columns_named_by_hand_win_over_usual_names(tmp_path):
    text = "user_id,asin,parent_asin,timestamp,who\n1,a,p,5,x\n2,b,q,6,y\n"
    log = read_log(write(tmp_path, "log.csv", text), user="who", item="parent_asin")
    assert rows_of(log) == [("x", "p", 5), ("y", "q", 6)]
    assert rows_of(log, "asin", "file_user_id") == [("a", 1), ("b", 2)]
    assert "parent_asin -> item_id" in log.describe()
    assert "user_id -> file_user_id" in log.describe()


def test_other_columns_travel_along_with_their_types(tmp_path):
    text = (
        'user_id,item_id,timestamp,rating,zip,note,n\n1,1,1,4.5,007,"a, ""b""\nc",1\n2,2,2,3,10,,\n'
    )
    log = read_log(write(tmp_path, "log.csv", text))
    assert rows_of(log, "rating", "zip", "note", "n") == [
        (4.5, "007", 'a, "b"\nc', 1),
        (3.0, "10", None, None),
    ]


# --- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw, expected",
    [
        (["1", "20", "-3"], [-3, 1, 20]),
        (["1", " 20", "3 "], [1, 3, 20]),
        (["007", "7", "8"], ["007", "7", "8"]),
        (["+7", "7", "8"], ["+7", "7", "8"]),
        (["1.0", "2", "-30.00"], [-30, 1, 2]),
        (["1.0", "2.5", "3"], ["1.0", "2.5", "3"]),
        (["1.0", "007", "3"], ["007", "1.0", "3"]),
        (["9007199254740993", "9007199254740992", "1.0"], [1, 2**53, 2**53 + 1]),
        (["a ", "\tc", "\u00a0b"], ["a", "b", "c"]),
        (["-0", "2", "3"], ["-0", "2", "3"]),
        (["18446744073709551616", "2", "3"], ["18446744073709551616", "2", "3"]),
        (["B0012", "x y", "ä"], ["B0012", "x y", "ä"]),
    ],
)
def test_text_ids_are_integers_only_if_all_are_written_so(tmp_path, raw, expected):
    lines = [f"{user},{item},{user}" for user, item in enumerate(raw)]
    log = read_log(write(tmp_path, "log.csv", "\n".join(["user,item,time", *lines])))
    assert sorted(log.frame["item_id"]) == expected
    dataset = log.to_dataset()
    assert dataset.catalog.item_ids.to_list() == expected
    assert dataset.catalog.decode(dataset.items) == log.frame["item_id"].to_list()


def test_a_late_leading_zero_still_makes_all_ids_strings(tmp_path):
    items = [*map(str, range(5000)), "007"]
    lines = [f"{n % 7},{item},{n}" for n, item in enumerate(items)]
    log = read_log(write(tmp_path, "log.csv", "\n".join(["user,item,time", *lines])))
    assert set(log.frame["item_id"]) == set(items)


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt32, pl.Float64, pl.Int64])
def test_whole_numbers_of_a_frame_are_int64(dtype):
    frame = pl.DataFrame({"user": [2, 1], "item": [3, 4], "time": [0, 1]})
    log = from_frame(frame.with_columns(pl.col("user", "item", "time").cast(dtype)))
    assert rows_of(log) == [(1, 4, 1), (2, 3, 0)]
    assert set(log.frame.dtypes) == {pl.Int64}
    assert ("user_id: whole floats taken for integers" in str(log)) == dtype.is_float()


def test_strings_of_digits_in_a_frame_stay_strings():
    frame = pl.DataFrame({"user": ["2", "1"], "item": ["3", "4"], "time": [0, 1]})
    assert rows_of(from_frame(frame)) == [("1", "4", 1), ("2", "3", 0)]
    categories = frame.with_columns(pl.col("user").cast(pl.Categorical))
    assert from_frame(categories).frame.equals(from_frame(frame).frame)


# --- times ---------------------------------------------------------------------------------------

_NOON = 1_577_880_000_000_000
"""2020-01-01 12:00 UTC in microseconds."""


@pytest.mark.parametrize(
    "first, second, expected",
    [
        ("5", "7", [5, 7]),
        ("-5", "0", [-5, 0]),
        ("978300760.0", "978300761", [978300760, 978300761]),
        ("1e3", "2000.0", [1000, 2000]),
        ("1.5", "2", [1_500_000, 2_000_000]),
        (" 5", "7 ", [5, 7]),
        ("2020-01-01 12:00:00", "2020-01-01T12:00:00.25", [_NOON, _NOON + 250_000]),
        ("2020-01-01T12:00:00Z", "2020-01-01T14:00:01+02:00", [_NOON, _NOON + 1_000_000]),
        ("2020-01-01 12:00:00+0000", "2020-01-01T12:00:01", [_NOON, _NOON + 1_000_000]),
        ("2020-01-01", "2020-01-01T12:00", [_NOON - 43_200_000_000, _NOON]),
    ],
)
def test_times(tmp_path, first, second, expected):
    text = f"user,item,time\n1,1,{first}\n2,2,{second}\n"
    log = read_log(write(tmp_path, "log.csv", text))
    assert log.frame["timestamp"].to_list() == expected
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [first, second]})
    assert from_frame(frame).frame["timestamp"].to_list() == expected


def test_dates_of_frames():
    moments = [dt.datetime(2020, 1, 1, 12), dt.datetime(2020, 1, 1, 12, 0, 1)]
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": moments})
    expected = [_NOON, _NOON + 1_000_000]
    zoned = pl.col("time").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    for times in (pl.col("time"), pl.col("time").cast(pl.Datetime("ns")), zoned):
        log = from_frame(frame.with_columns(times))
        assert log.frame["timestamp"].to_list() == expected
        assert "microseconds" in log.describe()
    days = from_frame(frame.with_columns(pl.col("time").cast(pl.Date)))
    assert days.frame["timestamp"].to_list() == [_NOON - 43_200_000_000] * 2


# --- order ---------------------------------------------------------------------------------------


def test_order_is_told(tmp_path):
    log = read_log(write(tmp_path, "log.csv", table("user_id,item_id,timestamp")))
    assert (log.summary.n_reordered, log.summary.n_ties) == (2, 1)
    assert str(log) == log.describe()
    assert log.describe().splitlines() == [
        "log.csv: csv; user_id, item_id, timestamp",
        "interactions: 5, users: 2, items: 3",
        "out of time order: 2 (sorted)",
        "at the same time as the user's previous one: 1 (kept in the order of the source)",
    ]
    assert len(log) == 5


ids = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=8, unique=True),
    st.lists(st.integers(0, 9), min_size=2, max_size=8, unique=True),
    st.lists(st.sampled_from(["a", "b", "B", "ä", "007", "x,y", 'q"', "long " * 5]), min_size=2,
             max_size=8, unique=True),
)  # fmt: skip


WIDE = st.one_of(st.integers(0, 3), st.integers(-(2**62), 2**62))


@st.composite
def logs(draw, times=WIDE):
    users, items = draw(ids), draw(ids)
    rows = draw(st.lists(st.tuples(st.sampled_from(users), st.sampled_from(items), times),
                         max_size=30))  # fmt: skip
    rows += [(users[0], items[0], 0), (users[1], items[1], 1)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return frame.with_row_index("position")


@settings(deadline=None)
@given(logs())
def test_sorting_is_stable(frame):
    log = from_frame(frame)
    rows = frame.select("user_id", "timestamp", "position", "item_id").rows()
    expected = sorted(rows, key=lambda row: row[:3])
    assert rows_of(log, "user_id", "timestamp", "position", "item_id") == expected
    ties = sum(a[:2] == b[:2] for a, b in pairwise(expected))
    assert log.summary.n_ties == ties
    last: dict = {}
    late = 0
    for user, time, *_ in rows:
        late += user in last and time < last[user]
        last[user] = time
    assert log.summary.n_reordered == late


@settings(deadline=None)
@given(logs())
def test_the_dataset_holds_the_log(frame):
    log = from_frame(frame)
    dataset = log.to_dataset()
    assert dataset.catalog.item_ids.to_list() == sorted(set(frame["item_id"]))
    assert dataset.catalog.user_ids.to_list() == sorted(set(frame["user_id"]))
    assert dataset.items.dtype == np.int32
    assert dataset.offsets.dtype == np.int64
    for index, user in enumerate(dataset.catalog.user_ids):
        own = log.frame.filter(pl.col("user_id") == user)
        assert dataset.catalog.decode(dataset[index]) == own["item_id"].to_list()
    assert dataset.timestamps.tolist() == log.frame["timestamp"].to_list()
    back = from_dataset(dataset)
    assert back.frame.equals(log.frame.select("user_id", "item_id", "timestamp"))
    assert back.summary.n_ties == log.summary.n_ties


# --- filters -------------------------------------------------------------------------------------


def brute_force_core(rows, min_user, min_item):
    while True:
        users, items = [row[0] for row in rows], [row[1] for row in rows]
        kept = [r for r in rows if users.count(r[0]) >= min_user and items.count(r[1]) >= min_item]
        if kept == rows:
            return rows
        rows = kept


@settings(deadline=None)
@given(logs(), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_k_core_is_the_fixed_point(frame, min_user, min_item, merge):
    log = from_frame(frame)
    rows = rows_of(log)
    if merge:
        first: dict = {}
        rows = [row for row in rows if first.setdefault(row[:2], row) is row]
    merged = len(log) - len(rows)
    expected = brute_force_core(rows, min_user, min_item)
    if len({row[0] for row in expected}) < 2 or len({row[1] for row in expected}) < 2:
        with pytest.raises(DataError, match="smaller limits"):
            log.filter(min_user, min_item, merge)
        return
    core = log.filter(min_user, min_item, merge)
    assert rows_of(core) == expected
    assert core.summary.n_merged == merged
    assert core.summary.n_filtered == len(rows) - len(expected)
    assert core.summary.n_users == len({row[0] for row in expected})
    assert len(core) == core.summary.n_interactions == len(expected)


def test_filters_are_told_and_leave_the_log_alone():
    frame = pl.DataFrame(
        {"user": [1, 1, 1, 2, 2, 3], "item": [1, 1, 2, 1, 2, 3], "time": [1, 2, 3, 1, 2, 1]}
    )
    log = from_frame(frame)
    core = log.filter(min_user=2, merge_repeats=True)
    assert len(log) == 6
    assert "repeated (user, item) pairs merged into their first: 1" in core.describe()
    assert "removed interactions: 1, users: 1, items: 1 (rounds: 1)" in core.describe()
    assert log.filter().frame.equals(log.frame)
    with pytest.raises(ConfigError, match="min_user must be at least 1, got 0"):
        log.filter(min_user=0)
    with pytest.raises(DataError, match=r"polars frame: at least 9 a user.* leaves nothing of 6"):
        log.filter(min_user=9)


# --- frames --------------------------------------------------------------------------------------

COLUMNS = {
    "userId": [2, 1, 2, 1, 1],
    "itemId": ["c", "b", "a", "a", "c"],
    "ts": [5, 9, 3, 9, 1],
    "rating": [1.5, None, 3.0, 4.0, 5.0],
}


@pytest.mark.parametrize(
    "make", [pd.DataFrame, pl.DataFrame, pl.LazyFrame, pa.table], ids=["pandas", "pl", "lazy", "pa"]
)
def test_frames_of_all_kinds(make):
    frame = make(COLUMNS)
    log = from_frame(frame)
    assert rows_of(log) == [(1, "c", 1), (1, "b", 9), (1, "a", 9), (2, "a", 3), (2, "c", 5)]
    assert rows_of(log, "rating") == [(5.0,), (None,), (4.0,), (3.0,), (1.5,)]
    assert "itemId -> item_id" in log.describe()
    assert list(make(COLUMNS).columns if make is pd.DataFrame else COLUMNS) == list(COLUMNS)


def test_the_frame_given_is_left_as_it_was():
    frame = pl.DataFrame(COLUMNS)
    from_frame(frame)
    assert frame.equals(pl.DataFrame(COLUMNS))


@pytest.mark.parametrize(
    "frame, words",
    [
        ({"a": [1]}, ["must be a pandas, Polars or pyarrow frame", "dict"]),
        (pd.DataFrame([[1, 2, 3]], columns=["user", "user", "item"]), ["two columns of one name"]),
        (pl.DataFrame({"user": [1], "item": [2]}), ["no time column among: user, item", "--time"]),
        (pl.DataFrame({"user": [1, None], "item": [1, 2], "time": [1, 2]}), ["row 1", "'user'"]),
        (pd.DataFrame({"user": [1, None], "item": [1, 2], "time": [1, 2]}), ["row 1", "'user'"]),
        (
            pd.DataFrame({"user": ["a", None], "item": [1, 2], "time": [1, 2]}),
            ["row 1", "'user' is empty"],
        ),
        (
            pl.DataFrame({"user": ["a", "nan"], "item": [1, 2], "time": [1, 2]}),
            ["row 1", "'nan'", "'user'", "remove the row"],
        ),
        (
            pl.DataFrame({"user": [1.0, float("nan")], "item": [1, 2], "time": [1, 2]}),
            ["row 1", "nan", "'user'"],
        ),
        (
            pl.DataFrame({"user": [1, 2], "item": [1.0, 2.5], "time": [1, 2]}),
            ["row 1", "2.5", "'item'", "integer or a string"],
        ),
        (
            pl.DataFrame({"user": [1, 2], "item": [1, 2**64 - 1], "time": [1, 2]}),
            ["row 1", "64 bits", "strings"],
        ),
        (
            pl.DataFrame({"user": [True, False], "item": [1, 2], "time": [1, 2]}),
            ["'user' holds Boolean"],
        ),
        (
            pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [1.0, float("inf")]}),
            ["row 1", "inf", "'time'", "not a time"],
        ),
        (
            pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [1.0, None]}),
            ["row 1", "'time' is empty"],
        ),
        (
            pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [0.5, 1e13]}),
            ["row 1", "10000000000000.0", "64 bits"],
        ),
        (
            pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [[1], [2]]}),
            ["'time' holds List", "numbers or ISO dates"],
        ),
        (
            pl.DataFrame(
                {"user": [1, 2], "item": [1, 2], "time": [1, 2], "synthetic": ["yes", "0"]}
            ),
            ["row 0", "'yes'", "neither true nor false"],
        ),
        (
            pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [1, 2]}).clear(),
            ["there is no interaction"],
        ),
    ],
)
def test_bad_frames(frame, words):
    with pytest.raises(DataError) as caught:
        from_frame(frame)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


# --- bad files -----------------------------------------------------------------------------------

GOOD = "user,item,time\n1,1,1\n2,2,2\n"
PACKED = gzip.compress(GOOD.encode() * 50, mtime=0)
HEADER = "user,item,time\n"

BAD_FILES = [
    # name, content, arguments, words of the message
    ("empty.csv", "", {}, ["empty"]),
    ("empty.parquet", "", {}, ["empty"]),
    ("empty.csv.gz", gzip.compress(b"", mtime=0), {}, ["empty"]),
    ("mark.csv", "\ufeff#", {}, ["empty"]),
    ("blank.txt", "\n \n\r\n", {}, ["empty"]),
    ("head.csv", HEADER, {}, ["header but no interaction"]),
    ("head.csv", HEADER + "\n\n", {}, ["header but no interaction"]),
    ("short.csv", "user,item\n1,2\n", {}, ["no time column among: user, item", "--time", "'none'"]),
    ("short.csv", "who,item,time\n1,2,3\n", {}, ["no user column", "who, item", "--user"]),
    ("bare.csv", "A1,B1,5.0,136\nA2,B2,5.0,137\n", {}, ["looks like data", "add a header"]),
    ("log.csv", GOOD, {"item": "itm"}, ["'itm'", "did you mean 'item'", "--item", "user, item"]),
    ("log.csv", GOOD, {"user": "item", "item": "item"}, ["'item' is named twice", "--item"]),
    ("two.csv", "user,uid,item,time\n1,1,1,1\n", {}, ["'user' and 'uid'", "--user"]),
    ("amazon.csv", "user,asin,parent_asin,ts\n1,1,1,1\n", {}, ["'asin' and 'parent_asin'"]),
    ("twice.csv", "user,item,time,item\n1,1,1,1\n", {}, ["'item' twice (columns 2 and 4)"]),
    ("time.csv", HEADER + "1,1,1\n\n2,2,late\n", {}, ["line 4", "'late'", "'time'", "ISO dates"]),
    ("time.csv", HEADER + "1,1,yesterday\n", {}, ["line 2", "'yesterday'"]),
    ("time.csv", HEADER + "1,1,2020-01-01\n2,2,01/02/2020\n", {}, ["line 3", "'01/02/2020'"]),
    ("time.csv", HEADER + "1,1,2020-01-01\n2,2,17\n", {}, ["line 3", "'17'"]),
    ("time.csv", HEADER + "1,1,1\n2,2,inf\n", {}, ["line 3", "inf"]),
    ("time.csv", HEADER + "1,1,1\n2,2,NaN\n", {}, ["line 3", "NaN"]),
    ("time.csv", HEADER + "1,1,1\n2,2,\n", {}, ["line 3", "'time' is empty"]),
    ("time.csv", HEADER + "1,1,1\n2,2,1e30\n", {}, ["line 3", "64 bits"]),
    ("ids.csv", HEADER + '"a\nb",1,1\n2,,2\n', {}, ["line 4", "'item' is empty", "remove"]),
    ("ids.csv", HEADER + '1,1,1\n2,"",2\n', {}, ["line 3", "'item'", "remove the row"]),
    ("ids.csv", HEADER + "1,1,1\n,2,2\n", {}, ["line 3", "'user' is empty"]),
    ("ids.csv", HEADER + "a,1,1\nb,1,1\nNaN,2,2\n", {}, ["line 4", "'NaN'", "'user'"]),
    ("ids.csv", HEADER + "a,1,1\nb,null,1\n", {}, ["line 3", "'null'", "'item'"]),
    ("one.csv", HEADER + "1,1,1\n1,2,2\n", {}, ["only one user in 2 interactions"]),
    ("one.csv", HEADER + "1,1,1\n2,1,2\n", {}, ["only one item in 2 interactions"]),
    ("mixed.csv", HEADER + "1,1,1\n2;2;2\n", {}, ["line 3", "3 fields expected, 1 found", "','"]),
    ("long.csv", HEADER + "1,1,1\n\n2,2,2,2\n", {}, ["line 4", "3 fields expected, 4 found"]),
    ("wide.tsv", GOOD, {}, ["no user column", "user,item,time"]),
    ("quote.csv", HEADER + '1,1,1\n2,"2,2\n3,3,3\n', {}, ["line 3", "quote", "never closed"]),
    ("latin.csv", HEADER.encode() + b"1,1,1\n2,caf\xe9,2\n", {}, ["line 3", "0xe9", "UTF-8"]),
    ("latin.csv", b"us\xe9r,item,time\n1,1,1\n", {}, ["line 1", "0xe9", "UTF-8"]),
    ("zero.csv", HEADER.encode() + b"1,1,1\n2,\x00,2\n", {}, ["line 3", "binary"]),
    ("blob.txt", bytes(range(256)) * 20, {}, ["line 1", "binary"]),
    ("log.pkl", b"\x80\x04\x95\x00\x00", {}, ["not text", "pickle"]),
    ("log.zip", b"PK\x03\x04\x00\x00", {}, ["zip", "unpack"]),
    ("wide.csv", GOOD.encode("utf-16"), {}, ["UTF-16", "--encoding utf-16"]),
    ("mac.csv", GOOD.replace("\n", "\r"), {}, ["line 1", "carriage returns"]),
    ("cut.csv.gz", PACKED[:-12], {}, ["truncated or damaged gzip", "again"]),
    ("cut.csv.gz", PACKED[:30], {}, ["truncated or damaged gzip"]),
    ("bad.csv.gz", PACKED[:20] + b"xxxx" + PACKED[24:], {}, ["truncated or damaged gzip"]),
    ("fake.csv.gz", GOOD, {}, ["named .gz but holds no gzip"]),
    ("fake.parquet", GOOD, {}, ["not a Parquet file", "--format"]),
    ("cut.parquet", b"PAR1abcdef", {}, ["damaged Parquet"]),
    ("log.csv", b"PAR1abcdef", {"format": "csv"}, ["is a Parquet file, not csv"]),
    ("log.jsonl", '{"user": 1}\n{"user": 2\n', {}, ["line 2", "not JSON"]),
    ("log.jsonl", '{"user": 1}\n\n[1, 2]\n', {}, ["line 3", "not a JSON object"]),
    ("log.json", '[{"user": 1, "item": 1, "time": 1}]', {}, ["line 1", "one object a line"]),
    (
        "log.jsonl",
        '{"user": 1, "item": 1, "time": 1}\n{"user": true, "item": 1, "time": 1}\n',
        {},
        ["line 2", "True", "'user'", "no id"],
    ),
    (
        "log.jsonl",
        '{"user": 1, "item": 1, "time": 1}\n\n{"user": 2, "time": 1}\n',
        {},
        ["line 3", "'item' is empty"],
    ),
    ("seq.inter", "user_id:token\titem_id_list:token_seq\n1\t1 2\n", {}, ["whole histories"]),
    ("log.inter", "user_id:token\titem_id:token\n1\t1\n", {}, ["no time column", "--time"]),
    ("r.dat", "1::1::5::1\n2::2::5\n", {}, ["line 2", "user::item::rating::time"]),
    ("r.dat", "1::1::5::1\n2::2:5::1:\n", {}, ["line 2", "user::item::rating::time"]),
    ("r.dat", "1::1::5::1\n2::2::5::x\n", {}, ["line 2", "'x'"]),
    ("r.dat", "1::1::5::1\n2::2::5::2\n", {"user": "a"}, ["movielens", "no column names"]),
    ("s.txt", "1 2 3\n2\n", {}, ["line 2", "a user and at least one item"]),
    ("s.txt", "1 2 3\n\n2 4 5\n1 6 7\n", {}, ["line 1", "user '1'", "(line 4)", "join them"]),
    ("s.txt", "a 2 3\nb nan 4\n", {}, ["line 2", "'nan'"]),
    ("p.txt", "1 2\n1 2 3\n", {"format": "pairs"}, ["line 2", "got 3 fields"]),
    ("s.txt", "1 2 3\n", {}, ["only one user"]),
    ("f.csv", HEADER.strip() + ",synthetic\n1,1,1,0\n2,2,2,2\n", {}, ["line 3", "'2'", "nor"]),
]


@pytest.mark.parametrize("name, content, arguments, words", BAD_FILES)
def test_bad_files(tmp_path, name, content, arguments, words):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read_log(path, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in [name, *words]:
        assert word in message
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_one_user_or_item_may_be_allowed(tmp_path):
    path = write(tmp_path, "histories.txt", "7 30 10\n")
    with pytest.raises(DataError, match="only one user in 2 interactions"):
        read_log(path)
    assert read_log(path, allow_single=True).frame.rows() == [(7, 30), (7, 10)]
    alone = read_log(write(tmp_path, "log.csv", HEADER + "1,1,1\n"), allow_single=True)
    assert (alone.summary.n_users, alone.summary.n_items) == (1, 1)
    with pytest.raises(DataError, match="empty"):
        read_log(write(tmp_path, "none.csv", ""), allow_single=True)


def test_the_format_named_wins_over_the_name(tmp_path):
    for name in ("log.parquet", "log.pq"):
        path = write(tmp_path, name, GOOD)
        assert read_log(path, format="csv").summary.format == "csv"
        with pytest.raises(DataError, match="not a Parquet file"):
            read_log(path)


def test_a_first_line_may_hold_a_long_history(tmp_path):
    items = [*range(100_000, 130_000)]  # one field, if commas separated it, of 210 thousand bytes
    content = f"1 {' '.join(map(str, items))}\n2 5 6\n"
    log = read_log(write(tmp_path, "log.txt", content))
    assert log.summary.format == "sequences"
    assert log.frame["item_id"].to_list() == [*items, 5, 6]


def test_a_long_first_line_is_text(tmp_path):
    for shift in range(2):  # one of them has a character across any even position
        ids = [f"{'a' * shift}{'ä' * 50_000}", "b"]
        lines = "\n".join(" ".join([str(n), *ids]) for n in range(2))
        log = read_log(write(tmp_path, "log.txt", lines))
        assert log.frame["item_id"].to_list() == ids * 2


def test_bad_paths_and_names(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: there is no such file"):
        read_log(tmp_path / "gone.csv")
    with pytest.raises(DataError, match="is a directory: give the log file"):
        read_log(tmp_path)
    path = write(tmp_path, "log.csv", GOOD)
    with pytest.raises(ConfigError, match=r"no format 'cvs' \(did you mean 'csv'\?\); there are: "):
        read_log(path, format="cvs")


def test_lines_are_found_beyond_the_first_block(tmp_path):
    # the first sixteen megabytes are read together; the lines in question come after them
    wide = "x" * 400_000
    lines = [f'{n},"i\n{n}",{n},{wide}' if n % 10 == 0 else f"{n},i{n},{n},{wide}"
             for n in range(60)]  # fmt: skip
    good = "\n\n".join(["user,item,time,note", *lines])
    log = read_log(write(tmp_path, "good.csv", good))
    assert len(log) == 60
    assert log.frame["item_id"][50] == "i\n50"
    line = good[: good.index("57,i57")].count("\n") + 1
    with pytest.raises(DataError, match=f"line {line}: 'x'"):
        read_log(write(tmp_path, "broken.csv", good.replace("57,i57,57", "57,i57,x")))
    with pytest.raises(DataError, match=f"line {line}: 4 fields expected, 3 found"):
        read_log(write(tmp_path, "ragged.csv", good.replace("57,i57,57", "57,i57")))


# --- out, and back -------------------------------------------------------------------------------


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.sampled_from([*["log.csv", "log.inter"] * 9, "log.parquet"]),
    frame=logs(times=st.integers(-5, 5)),
    marks=st.booleans(),
)
def test_round_trip(tmp_path, name, frame, marks):
    if marks:
        frame = frame.with_columns(synthetic=pl.col("timestamp") % 2 == 0)
    log = from_frame(frame)
    path = tmp_path / name
    path.unlink(missing_ok=True)
    log.write(path)
    assert read_log(path, literal_ids=True).frame.equals(log.frame)


@pytest.mark.parametrize(
    "text",
    ["a\nb", "a\rb", "\ra", "a\r\n", "a,b", '"', '""', ' " ', "#a", "  a  ", "\ufeffa", "NA"],
)
def test_awkward_ids_survive_csv(tmp_path, text):
    frame = pl.DataFrame({"user": [text, "z"], "item": ["y", text], "time": [1, 2]})
    log = from_frame(frame)
    log.write(tmp_path / "log.csv")
    back = read_log(tmp_path / "log.csv", literal_ids=True)
    assert sorted(back.frame.rows()) == sorted(log.frame.rows())


@given(logs())
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_round_trip_of_sequences(tmp_path, frame):
    clean = pl.col(pl.String).str.replace_all(r"\s+", "_")
    log = from_frame(frame.with_columns(clean))
    path = tmp_path / "log.txt"
    path.unlink(missing_ok=True)
    log.write(path)
    back = read_log(path, format="sequences")
    assert back.frame.equals(log.frame.select("user_id", "item_id"))


def augmented() -> SequenceDataset:
    catalog = Catalog(pl.Series(["a", "b", "c"]), 3, pl.Series([10, 20, 30]))
    dataset = SequenceDataset.from_lists([[1, 2], [3], [2, 1]], catalog)
    return dataset.prepend(np.array([[3, 1]], dtype=np.int32), np.array([2]))


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log.inter"])
def test_synthetic_items_are_marked_and_numbered(tmp_path, name):
    dataset = augmented()
    log = from_dataset(dataset)
    assert "timestamp" not in log.frame.columns
    log.write(tmp_path / name)
    back = read_log(tmp_path / name)
    assert rows_of(back, "user_id", "item_id", "timestamp", "synthetic") == [
        (10, "a", 0, False),
        (10, "b", 1, False),
        (20, "c", 0, False),
        (30, "c", 0, True),
        (30, "a", 1, True),
        (30, "b", 2, False),
        (30, "a", 3, False),
    ]
    again = back.to_dataset()
    for field in ("items", "offsets", "synthetic", "users"):
        np.testing.assert_array_equal(getattr(again, field), getattr(dataset, field))


def test_from_dataset_orders_users_and_names_them_by_number():
    catalog = Catalog(pl.Series(["x", "y"]), 3)
    dataset = SequenceDataset.from_lists([[1, 2], [2], [1]], catalog, users=[2, 0, 1])
    assert from_dataset(dataset).frame.rows() == [(0, "y"), (1, "x"), (2, "x"), (2, "y")]
    assert len(from_dataset(dataset.select(np.array([], dtype=np.int64)))) == 0


def test_writing_refuses(tmp_path):
    log = from_frame(pl.DataFrame({"user": ["a b", "c"], "item": [1, 2], "time": [1, 2]}))
    (tmp_path / "log.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match=r"log\.csv exists already: choose another"):
        log.write(tmp_path / "log.csv")
    assert (tmp_path / "log.csv").read_text(encoding="utf-8") == "mine"
    with pytest.raises(DataError, match=r"sequences cannot hold the user_id 'a b'.*blank"):
        log.write(tmp_path / "log.txt")
    tabbed = from_frame(
        log.frame.with_columns(user_id=pl.Series([1, 2]), note=pl.Series(["\t", ""]))
    )
    with pytest.raises(DataError, match=r"inter cannot hold the note '\\t'"):
        tabbed.write(tmp_path / "log.inter")
    with pytest.raises(
        ConfigError,
        match=r"log\.xls: no format '\.xls' .*--format.*: csv.*inter.*parquet.*sequences",
    ):
        log.write(tmp_path / "log.xls")
    with pytest.raises(ConfigError, match=r"no format 'parket' to write \(did you mean 'parquet'"):
        log.write(tmp_path / "log", format="parket")
    with pytest.raises(DataError, match=r"cannot be written: there is no folder"):
        log.write(tmp_path / "none" / "log.csv")
    nested = from_frame(log.frame.with_columns(tags=pl.Series([[1], [2]])))
    with pytest.raises(DataError, match=r"csv cannot hold column 'tags' \(List"):
        nested.write(tmp_path / "nested.csv")
    nested.write(tmp_path / "nested.parquet")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log.csv", "nested.parquet"]


def test_prepared_dataset_keeps_the_summary(tmp_path):
    log = read_log(write(tmp_path, "log.csv", table("user_id,item_id,timestamp")))
    log.to_dataset().save(tmp_path / "data", note=asdict(log.summary))
    dataset = load_dataset(tmp_path / "data")
    assert from_dataset(dataset).frame.equals(log.frame)
    assert dataset_manifest(tmp_path / "data")["note"]["n_ties"] == 1


# --- attributes ----------------------------------------------------------------------------------


def test_attributes_follow_the_catalog():
    log = from_frame(pl.DataFrame({"user": [1, 2, 2], "item": [30, 10, 20], "time": [1, 2, 3]}))
    frame = pd.DataFrame({"movieId": ["20", "30", "99"], "name": ["b", "c", "?"]})
    catalog = log.to_dataset(frame).catalog
    assert catalog.attributes.to_dict(as_series=False) == {"name": [None, "b", "c", "?"]}
    assert catalog.item_ids.to_list() == [10, 20, 30, 99]
    for bad, words in [
        ({"name": ["b"]}, "no column 'item_id' among: name"),
        ({"item_id": [10, 10], "name": ["a", "b"]}, "row 1: item 10 has more than one row"),
        ({"item_id": [99], "name": ["a"]}, "none of the items is in the log"),
    ]:
        with pytest.raises(DataError, match=words):
            log.to_dataset(pl.DataFrame(bad))
