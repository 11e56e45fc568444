"""Reading people's logs: what is converted, what is left out, what is refused, and what is said."""

import gzip
import os
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from diffuserec.data import Catalog, from_frame, load_dataset, read_histories, read_log
from diffuserec.data.text import blocks
from diffuserec.errors import ConfigError, DataError

HEADER = "user_id,item_id,timestamp\n"


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Writes a file and reads it as a log."""

    def reader(name: str, content: str | bytes, **options: Any) -> Any:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_log(path, **options)

    return reader


def ids(log: Any) -> list[Any]:
    return log.frame["item_id"].to_list()


# --- ids and floats ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, dtype, limit",
    [(2.0**53, pl.Float64, 2**53), (-(2.0**60), pl.Float64, 2**53), (2.0**24, pl.Float32, 2**24)],
)
def test_whole_floats_that_may_have_lost_digits_are_refused(value, dtype, limit):
    frame = pl.DataFrame({"user": [1, 2], "item": [1, 2], "time": [1, 2]})
    items = pl.Series("item", [1.0, value], dtype=dtype)
    with pytest.raises(DataError, match=rf"row 1: .*'item' was kept as a float.* {limit} on"):
        from_frame(frame.with_columns(items))
    small = pl.Series("item", [limit - 1.0, 1.0], dtype=dtype)
    assert ids(from_frame(frame.with_columns(small))) == [limit - 1, 1]


@pytest.mark.parametrize("written", ["1.582218195625939e+18", "9007199254740992.0", "1.58E+18"])
def test_ids_that_pandas_wrote_from_floats_are_refused(read, written):
    with pytest.raises(DataError, match=r"line 3: .*'item_id' was kept as a float"):
        read("log.csv", f"{HEADER}1,7.0,1\n2,{written},2\n")
    log = read("log.csv", f"{HEADER}1,x,1\n2,{written},2\n")  # among strings it is one
    assert ids(log) == ["x", written]


def test_whole_decimals_are_told(read):
    log = read("log.csv", HEADER + "1,7.0,1\n2,8,2\n")
    assert ids(log) == [7, 8]
    assert "item_id: decimals without a fraction, such as 7.0, taken for integers" in str(log)
    literal = read("log.csv", HEADER + "1,7.0,1\n2,8,2\n", literal_ids=True)
    assert ids(literal) == ["7.0", "8"]


def test_integers_beside_floats_keep_their_digits_in_json(read):
    lines = '{"user":%s,"item":1,"time":1}\n' * 2 + '{"user":5.0,"item":2,"time":2.5}\n'
    log = read("log.jsonl", lines % (2**53 + 1, 2**53))
    assert log.frame["user_id"].to_list() == [5, 2**53, 2**53 + 1]
    assert "taken for integers" in str(log)


def test_decimals_of_databases_are_ids():
    items = pl.Series("item", ["1582218195625938945", "7"]).cast(pl.Decimal(38, 2))
    frame = pl.DataFrame({"user": [1, 2], "time": [1, 2]}).with_columns(items)
    assert ids(from_frame(frame)) == [1582218195625938945, 7]


# --- blanks and words ----------------------------------------------------------------------------


def test_blanks_around_ids_are_left_out_and_told(read):
    text = "user_id, item_id, timestamp\nA1, B1,1\nA1 ,B1 ,2\nA2,\u00a0B2,3\n"
    log = read("log.csv", text)
    assert log.frame.rows() == [("A1", "B1", 1), ("A1", "B1", 2), ("A2", "B2", 3)]
    assert "user_id: blanks around the ids left out: 1" in str(log)
    assert "item_id: blanks around the ids left out: 3" in str(log)
    literal = read("log.csv", text, literal_ids=True)
    assert ids(literal) == [" B1", "B1 ", "\u00a0B2"]


def test_a_user_called_null_can_be_kept(read):
    text = HEADER + "Null,a,1\nann,b,2\n"
    with pytest.raises(DataError, match=r"line 2: 'Null' in column 'user_id'.*--literal-ids"):
        read("log.csv", text)
    log = read("log.csv", text, literal_ids=True)
    assert log.frame["user_id"].to_list() == ["Null", "ann"]
    frame = pl.DataFrame({"user": ["none", "a"], "item": ["x", "y"], "time": [1, 2]})
    assert from_frame(frame, literal_ids=True).frame["user_id"].to_list() == ["a", "none"]
    with pytest.raises(DataError, match="an empty value"):
        read("log.csv", HEADER + '"",a,1\nb,b,2\n', literal_ids=True)


def test_a_no_break_space_is_part_of_an_id(read):
    for text in ("a\u00a0b x\nc y\n", "a\u00a0b\tx\nc  y\n"):
        assert read("log.txt", text, format="pairs").frame["user_id"].to_list() == ["a\u00a0b", "c"]


# --- quotes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", ['2,"B0"x",2', '2,"B0"x,2', '2,"a"b"c",2', '2, "a",2', '2,a"b,c"d,2', '2,"a" ,2']
)
def test_quotes_that_would_vanish_are_refused(read, row):
    text = f'{HEADER}1,"a ""x""",1\n{row}\n3,5" and 6",3\n'
    with pytest.raises(DataError, match=r"line 3: a quote is .*--format inter"):
        read("log.csv", text)
    plain = read("log.tsv", text.replace(row, '2,"B0"x",2').replace(",", "\t"), format="inter")
    assert ids(plain) == ['"a ""x"""', '"B0"x"', '5" and 6"']  # the advice works


def test_quotes_that_mean_something_are_kept(read):
    rows = ['1,"a ""x""",1', "2,b,2", '3,5" and 6",3', '4,"c\n""d""",4\r', '"5",x"",5']
    log = read("log.csv", HEADER + "\n".join(rows))
    assert ids(log) == ['a "x"', "b", '5" and 6"', 'c\n"d"', 'x""']


def test_a_quote_left_open_is_found_in_linear_time(read, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(HEADER + '1,"a,1\n' + "2,b,2\n" * 500_000, encoding="utf-8")
    began = time.process_time()
    (block,) = (block for block in blocks(path, quoted=True, size=500) if block.record)
    assert len(block.text) > 3_000_000
    assert time.process_time() - began < 2  # each time from the beginning: 9,000 million bytes
    with pytest.raises(DataError, match="line 2: a quote is opened and never closed"):
        read_log(path)


def test_half_of_a_surrogate_pair_is_refused(read):
    line = '{"user_id":1,"item_id":"%s","timestamp":1}\n'
    with pytest.raises(DataError, match=r"line 2: .*'item_id' holds half of a surrogate pair"):
        read("log.jsonl", line % "a" + line % "\\ud800")
    both = read("log.jsonl", line % "a" + line % "\\ud83c\\udfac", allow_single=True)
    assert sorted(ids(both)) == ["a", "🎬"]


# --- what programs write -------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [" UTC", " GMT", "UTC", " Z", " +0000", " utc"])
def test_words_for_time_zones(read, zone):
    log = read("log.csv", f"{HEADER}1,1,2019-10-01 00:00:00{zone}\n2,2,2019-10-01 00:00:05{zone}\n")
    assert log.frame["timestamp"].to_list() == [1569888000000000, 1569888005000000]


JSON = (
    '{"user_id":1,"item_id":2,"timestamp":3,"rating":%s}\n{"user_id":2,"item_id":3,"timestamp":4}'
)


def test_what_json_lines_may_hold(read):
    for text in ("\ufeff" + JSON % 5, JSON % 5 + "\n  \n", JSON % 5 + "\n\x1a", "\n" + JSON % 5):
        assert read("log.jsonl", text).frame["rating"].to_list() == [5, None]
    for odd in ("NaN", "Infinity", "-Infinity", "1e999"):
        log = read("log.jsonl", JSON % odd)
        assert log.frame["rating"].to_list() == [None, None]
    for key in ("item_id", "timestamp"):
        for odd in ("NaN", "Infinity"):
            with pytest.raises(DataError, match=f"log.jsonl, line 2: .*{key!r}"):
                read("log.jsonl", (JSON % 5).replace(f'"{key}":{3 if key == "item_id" else 4}',
                                                      f'"{key}":{odd}'))  # fmt: skip


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"user_id":"1","item_id":2,"timestamp":3}', ["'1'", "beside 1", "'user_id'"]),
        ('{"user_id":2,"user_id":3,"item_id":2,"timestamp":3}', ["'user_id' twice"]),
        ('{"user_id":1.5,"item_id":2,"timestamp":3}', ["1.5", "no id"]),
        ('{"user_id":[1],"item_id":2,"timestamp":3}', ["[1]", "no id"]),
        ('{"user_id":1e300,"item_id":2,"timestamp":3}', ["1e+300", "float"]),
        ('{"user_id":2,"item_id":2,"timestamp":"soon"}', ["'soon'", "not a time"]),
        ('{"user_id":2,"item_id":2,"timestamp":3}}', ["not JSON"]),
        ("[" * 100_000, ["not JSON"]),
    ],
)
def test_json_lines_that_mix_types_are_refused(read, line, words):
    with pytest.raises(DataError, match=r"log\.jsonl, line 2: ") as caught:
        read("log.jsonl", '{"user_id":1,"item_id":1,"timestamp":1}\n' + line)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "start",
    [
        "sep=;\r\n",
        "SEP=;\n",
        "# made by a program\n# in 2020\n",
        "\ufeff\n",
        "\ufeff\r\n\r\n",
        "  \n",
    ],
)
@pytest.mark.parametrize("end", ["", "\n\n", "\x1a", "\x1a\r\n"])
def test_lines_around_a_table(read, start, end):
    log = read("log.csv", start + HEADER.replace(",", ";") + "1;2;3\n2;3;4\n" + end)
    assert log.frame.rows() == [(1, 2, 3), (2, 3, 4)]
    assert ("comment lines at the beginning left out: 2" in str(log)) == start.startswith("#")
    with pytest.raises(DataError, match=rf"line {(start + HEADER).count(chr(10)) + 2}: 'x'"):
        read("log.csv", start + HEADER.replace(",", ";") + "1;2;3\n2;3;x\n" + end)


def test_a_header_behind_a_mark_of_comments(read):
    assert read("log.csv", "#" + HEADER + "1,2,3\n2,3,4\n").frame.rows()[0] == (1, 2, 3)
    assert read("log.csv", "# " + HEADER + "1,2,3\n2,3,4\n").frame.rows()[0] == (1, 2, 3)


@pytest.mark.parametrize("separator", ["\t", ",", " ", "|"])
def test_inter_files_of_any_separator(read, separator):
    rows = ["user_id:token item_id:token timestamp:float", "1 2 3", "2 3 4"]
    log = read("log.inter", "\n".join(rows).replace(" ", separator))
    assert log.frame.rows() == [(1, 2, 3), (2, 3, 4)]
    assert log.summary.format == "inter"


def test_a_comma_in_a_number_is_refused_with_its_line(read):
    with pytest.raises(DataError, match=r"line 3: '4,5' in column 'timestamp'.*decimal point"):
        read("log.csv", HEADER.replace(",", ";") + "1;2;3\n2;3;4,5\n")


def test_an_unknown_separator_is_told(read):
    with pytest.raises(DataError, match=r"the first line is not divided: .* \(sep=\^\)"):
        read("log.csv", "a^b\n1^2\n")
    for mark, shown in (("^", r"sep=\^,"), ("\x01", "sep=and that character")):
        text = (HEADER + "1,2,3\n2,3,4\n").replace(",", mark)
        with pytest.raises(DataError, match=rf"line 2: its fields seem to be separated.*{shown}"):
            read("log.csv", "\n" + text)
        assert len(read("log.csv", f"sep={mark}\n{text}")) == 2
    with pytest.raises(
        DataError, match=r"line 1: .*'::'.*--format movielens.*--columns user_id,item"
    ):
        read("log.csv", (HEADER + "1,2,3\n").replace(",", "::"))


# --- tables without a usual header ---------------------------------------------------------------

RATINGS = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n22\t377\t1\t878887116\n"


def test_a_table_is_not_taken_for_sequences(read):
    with pytest.raises(DataError, match=r"4 fields between tabs.*--columns user,item,rating,time"):
        read("u.data", RATINGS)
    log = read("u.data", RATINGS, columns=["user", "item", "rating", "time"])
    assert log.frame.rows()[0] == (22, 377, 878887116, 1)
    assert read("u.data", RATINGS, format="sequences").summary.n_interactions == 9
    assert read("log.txt", "1 2 3\n2 3 4\n").summary.format == "sequences"


@pytest.mark.parametrize(
    "text, names, expected",
    [
        ("1,2,5,3\n2,3,4,4\n", "user,item,rating,time", [(1, 2, 3, 5), (2, 3, 4, 4)]),
        ("1;2;5;3\n2;3;4;4\n", "user,item,,time", [(1, 2, 3, 5), (2, 3, 4, 4)]),
        ("1::2::5::3\n2::3::4::4\n", "user,item,rating,time", [(1, 2, 3, 5), (2, 3, 4, 4)]),
        ("1::2::3\n2::3::4\n", "user,item,time", [(1, 2, 3), (2, 3, 4)]),
        ('"1","a\nb",3\n2,c,4\n', "user,item,time", [(1, "a\nb", 3), (2, "c", 4)]),
    ],
)
def test_columns_named_by_position(read, text, names, expected):
    assert read("ratings.dat", text, columns=names.split(",")).frame.rows() == expected


def test_columns_by_position_that_do_not_fit(read, tmp_path):
    three = ["user", "item", "time"]
    with pytest.raises(DataError, match=r"line 1 has 4 fields \(separator '\\t'\).* names 3"):
        read("u.data", RATINGS, columns=three)
    with pytest.raises(DataError, match=r"line 2 is a header: leave out columns="):
        read("log.csv", "\n" + HEADER + "1,2,3\n", columns=three)
    with pytest.raises(DataError, match="'user' twice"):
        read("log.csv", "1,2,3\n", columns=["user", "user", "time"])
    for name, text in (("log.jsonl", JSON % 5), ("s.txt", "1 2 3\n")):
        kind = {"format": "sequences"} if name == "s.txt" else {}
        with pytest.raises(DataError, match="no positions to name: leave out columns="):
            read(name, text, columns=three, **kind)


def test_a_header_above_numbers_is_told(read):
    text = "FromNodeId\tToNodeId\n1\t2\n1\t3\n2\t3\n"
    log = read("edges.txt", text)
    assert log.frame.rows() == [(1, 2), (1, 3), (2, 3)]
    assert "line 1 left out: it holds no digit, and the others hold only numbers" in str(log)
    with pytest.raises(DataError, match="line 3: expected a user and at least one item"):
        read("edges.txt", text.replace("1\t2", "\n1"))
    names = read("log.txt", "ann tea\nbo cup\n")
    assert names.summary.n_users == 2


def test_usual_names(read):
    log = read("log.csv", "date,time,timestamp,session_id,sku\n1,2,3,4,5\n1,2,4,5,6\n")
    assert log.frame.select("user_id", "item_id", "timestamp").rows() == [(4, 5, 3), (5, 6, 4)]
    both = read("log.csv", "session_id,uid,sku,product_id,ts\n1,2,3,4,5\n1,3,3,5,6\n")
    assert both.frame.select("user_id", "item_id").rows() == [(2, 4), (3, 5)]
    for item in ("sku", "product", "content_id", "track_id"):
        assert ids(read("log.csv", f"user,{item},time\n1,2,3\n2,3,4\n")) == [2, 3]


# --- encodings and packed files ------------------------------------------------------------------


def test_encodings(read):
    text = HEADER + "1,café,1\n2,b,2\n"
    for encoding in ("latin-1", "cp1252", "utf-16", "utf-8-sig"):
        log = read("log.csv", text.encode(encoding), encoding=encoding)
        assert ids(log) == ["café", "b"]
    assert ids(read("log.csv.gz", gzip.compress(text.encode("latin-1")), encoding="latin-1"))
    with pytest.raises(DataError, match=r"line 2: byte 0xe9 is not UTF-8: .*--encoding.*latin-1"):
        read("log.csv", text.encode("latin-1"))
    with pytest.raises(DataError, match=r"not text in ascii, from about line 1 on .*--encoding"):
        read("log.csv", text, encoding="ascii")
    for name in ("no-such", "zlib", "idna\0"):
        with pytest.raises(ConfigError, match=r"no text encoding .*--encoding"):
            read("log.csv", text, encoding=name)


def test_a_packed_file_has_a_limit(read, tmp_path):
    member = gzip.compress(HEADER.encode() + b"1,1,1\n" * (1 << 22), mtime=0)  # 25 million bytes
    with pytest.raises(DataError, match=r"unpacks to more than 200 times its size.*gunzip"):
        read("log.csv.gz", member * 3)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv.gz"]


def test_damaged_parquet_is_one_line(read, tmp_path):
    path = tmp_path / "[l]og.parquet"
    frame = pl.DataFrame({"user": [*range(99)], "item": ["a", "b", "c"] * 33, "time": [1.5] * 99})
    frame.write_parquet(path)
    assert read_log(path).summary.n_users == 99
    content = path.read_bytes()
    for damaged in (content[:-40], content[:4] + bytes(50) + content[54:]):
        with pytest.raises(DataError, match="damaged Parquet file"):
            read(path.name, damaged)


# --- rows and items ------------------------------------------------------------------------------

EVENTS = """user_id,item_id,timestamp,event_type,rating,Vote
1,a,1,view,5,1
1,b,2,buy,,2
2,a,3,buy,3,3
2,,4,login,1,4
"""


def test_where_keeps_rows(read):
    log = read("log.csv", EVENTS, where="event_type = 'buy'")
    assert log.frame.select("user_id", "item_id").rows() == [(1, "b"), (2, "a")]
    assert "rows left out because not (event_type = 'buy'): 2" in str(log)
    log = read("log.csv", EVENTS, where="rating >= 3 AND user_id IN (1, 2)", allow_single=True)
    assert "): 2, 1 of them for a missing value" in str(log)
    assert ids(log) == ["a", "a"]
    with pytest.raises(DataError, match="line 5: column 'item_id' is empty"):
        read("log.csv", EVENTS, where='"Vote" <> 2')
    frame = pd.DataFrame({"user": [1, 2], "item": ["a", "b"], "time": [1, 2], "r": [1.0, None]})
    assert len(from_frame(pd.concat([frame, frame + frame]), where="time > 0")) == 4


@pytest.mark.parametrize(
    "where, words",
    [
        ("rating >=", ["unable to parse"]),
        ("ratings >= 3", ["no column 'ratings'", "did you mean 'rating'"]),
        ("event_type = buy", ["no column 'buy'", "single quotes"]),
        ("rating = 'x'", ["cannot compare string"]),
        ("rating + 1", ["true or false"]),
        ("COUNT(*) > 1", ["true or false"]),
        ("rating > 9", ["true for none of 4 rows"]),
        ("rating > 1; DROP TABLE x", ["invalid expression"]),
        ("user_id IN (SELECT 1)", []),
        ("", []),
    ],
)
def test_where_that_is_wrong_is_one_line(read, where, words):
    with pytest.raises(DataError, match=r"^log\.csv: where= \(--where\)") as caught:
        read("log.csv", EVENTS, where=where)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_columns_that_say_what_was_liked_are_named(read):
    text = EVENTS.replace("2,,4,login,1,4\n", "")
    log = read("log.csv", text)
    assert "columns that a dataset does not keep: event_type, rating, Vote" in str(log)
    assert (
        "whatever its 'event_type': keep some with where= (--where \"event_type = 'view'\")"
        in str(log)
    )
    assert "every row" not in str(
        read("log.csv", text, where="event_type = 'view'", allow_single=True)
    )
    rated = read("log.csv", text.replace("event_type", "kind"))
    assert '(--where "rating >= 4")' in str(rated)


ITEMS = [
    ("items.csv", "item_id,title,category,n\n20.0,b,x,1\n10,a,y,2\n99,?,z,3\n"),
    ("items.tsv", "sku\ttitle\tcategory\tn\n 20\tb\tx\t1\n10\ta\ty\t2\n99\t?\tz\t3\n"),
    ("items.jsonl", '{"item":20,"title":"b","category":"x","n":1}\n'
     '{"item":10.0,"title":"a","category":"y","n":2}\n{"item":99,"title":"?","category":"z","n":3}'),
    ("movies.item", "item_id:token\ttitle:token\tcategory:token\tn:float\n"
     "20\tb\tx\t1\n10\ta\ty\t2\n99\t?\tz\t3"),
]  # fmt: skip


@pytest.mark.parametrize("name, content", ITEMS)
def test_items_of_a_file_come_along(read, tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    text = HEADER + "1,10,1\n1,20,2\n2,30,3\n2,10,4\n"
    known = [("a", "y", 2), ("b", "x", 1), (None, None, None)]
    for only, rest, rows, ids in (
        (False, "further items, which no interaction has: 1", [*known, ("?", "z", 3)], [99]),
        (True, "rows of items that the log does not hold, left out: 1", known, []),
    ):
        log = read("log.csv", text, items=tmp_path / name, known_items_only=only)
        assert f"{name}: name, category, n of 2 of 3 items; {rest}" in str(log)
        log.filter(min_user=2).to_dataset().save(tmp_path / "data", overwrite=True)
        kept = load_dataset(tmp_path / "data").catalog
        assert kept.attributes.rows() == rows
        assert kept.attributes.columns == ["name", "category", "n"]
        assert kept.item_ids.to_list() == [10, 20, 30, *ids]


@pytest.mark.parametrize(
    "content, words",
    [
        ("code,name\n1,a\n", ["no item column among: code, name", "rename", "item_id"]),
        ("item,name\n10,a\n10,b\n", ["item 10 has more than one row"]),
        ("item,name\n7,a\n", ["none of the items is in the log"]),
        ("item,name\nA10,a\n10,b\n,c\n", ["line 4", "'item' is empty"]),
    ],
)
def test_bad_files_of_items(read, tmp_path, content, words):
    (tmp_path / "items.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"items\.csv") as caught:
        read("log.csv", HEADER + "1,10,1\n2,20,2\n", items=tmp_path / "items.csv")
    for word in words:
        assert word in str(caught.value)


# --- frames of pandas ----------------------------------------------------------------------------


def mixed(**changes: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"user_id": [1, 1, 2], "item_id": [1, 2, 1], "timestamp": [1, 2, 3], **changes}
    )


@pytest.mark.parametrize(
    "column, values, words",
    [
        ("item_id", [58708, "D-12345", 1], ["row 1", "'D-12345'", "'item_id'", "strings"]),
        ("item_id", [1, "1", 2], ["row 1", "'1'"]),
        ("item_id", [2**70, 1, 2], ["row 0", str(2**70), "64 bits"]),
        ("item_id", [1j, 2j, 3j], ["row 0", "1j", "no id"]),
        ("item_id", [b"a", b"b", b"c"], ["row 0", "b'a'", "no id"]),
        ("item_id", pd.array([1, None, 2], dtype="Int64"), ["row 1", "'item_id' is empty"]),
        ("user_id", ["a", "\ud800", "b"], ["row 1", "surrogate"]),
        ("timestamp", [1, "2020-01-01", 3], ["row 1", "2020-01-01", "not a time"]),
        ("timestamp", [pd.Timestamp(0), pd.NaT, pd.Timestamp(1)], ["row 1", "is empty"]),
        ("timestamp", [2**70, 1, 2], ["row 0", "64 bits"]),
    ],
)
def test_columns_of_several_types_are_refused(column, values, words):
    frame = mixed(**{column: pd.Series(values, dtype=getattr(values, "dtype", object))})
    with pytest.raises(DataError, match="the pandas frame, row") as caught:
        from_frame(frame)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("note", [[1, "x", 2.5], [[1], "x", None], [1j, 2j, 3j]])
def test_other_columns_of_several_types_are_left_out(note):
    log = from_frame(mixed(note=note))
    assert log.frame.columns == ["user_id", "item_id", "timestamp"]
    assert "column 'note' left out: its values are not of one type" in str(log)


@pytest.mark.parametrize(
    "items",
    [
        pd.arrays.SparseArray([1, 2, 1]),
        pd.array([1, 2, 1], dtype="Int64"),
        pd.Series([1, 2.0, 1], dtype=object),
    ],
)
def test_columns_of_integers_of_any_kind(items):
    assert ids(from_frame(mixed(item_id=items))) == [1, 2, 1]


def test_columns_of_pandas_types():
    times = pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"]).tz_localize("Asia/Tokyo")
    log = from_frame(mixed(timestamp=times, item_id=pd.Categorical(["a", "b", "a"])))
    assert log.frame.rows()[0] == (1, "a", 1577804400000000)
    numbered = from_frame(pd.DataFrame([[1, 1, 1], [1, 2, 2], [2, 1, 3]]), user=0, item=1, time=2)
    assert ids(numbered) == [1, 2, 1]


GAP = [2**53 + 1, 2**53, None, 5]


@pytest.mark.parametrize("kind", ["Int64", "category", "int64[pyarrow]"])
def test_integers_with_a_gap_keep_their_digits(kind):
    column = pd.Series(GAP, dtype=object).astype(kind)
    frame = pd.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2], "time": column, "n": column})
    log = from_frame(frame.drop(2))
    assert sorted(log.frame["timestamp"].to_list()) == [5, 2**53, 2**53 + 1]
    log = from_frame(frame.assign(time=[1, 2, 3, 4]))
    assert log.frame["n"].to_list() == GAP
    with pytest.raises(DataError, match="row 2: column 'time' is empty"):
        from_frame(frame)
    catalog = Catalog(pl.Series([2**53, 2**53 + 1]), n_users=2)
    for raw in (column, column.array, pa.array(GAP), pa.chunked_array([GAP])):
        assert catalog.encode(raw).tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize(
    "value", [np.int64(5), np.uint8(5), np.float32(5), np.float64(5), Decimal(5), Decimal("5.0")]
)
def test_numbers_among_objects(value):
    log = from_frame(mixed(item_id=pd.Series([1, value, 2], dtype=object)))
    assert ids(log) == [1, 5, 2]
    assert Catalog(pl.Series([4, 5]), n_users=2).encode([value]).tolist() == [2]
    if not isinstance(value, Decimal):
        times = pd.Series([1, value, 2], dtype=object)
        assert from_frame(mixed(timestamp=times)).frame["timestamp"].to_list() == [1, 5, 2]


@pytest.mark.parametrize(
    "value",
    [np.bool_(True), np.float32(5.5), Decimal("5.5"), Decimal("1e999999"), np.float32("inf")],
)
def test_values_among_objects_that_are_no_ids(value):
    with pytest.raises(DataError, match=r"row 1: .* is no id"):
        from_frame(mixed(item_id=pd.Series([1, value, 2], dtype=object)))
    with pytest.raises(DataError, match=r"row 1: .* float, which has lost digits .* 16777216 on"):
        from_frame(mixed(item_id=pd.Series([1, np.float32(2**24), 2], dtype=object)))


def test_times_that_lost_digits_as_floats_are_told(read):
    log = from_frame(mixed(timestamp=[1.0, 2.0**53, 2.0**60]))
    assert f"timestamp: 2 kept as floats, which have lost digits of integers from {2**53}" in str(
        log
    )
    log = from_frame(mixed(timestamp=np.array([1, 2**24, 3], dtype=np.float32)))
    assert f"timestamp: 1 kept as floats, which have lost digits of integers from {2**24}" in str(
        log
    )
    log = read("log.csv", f"{HEADER}1,1,1.0\n1,2,1.582218195625939e+18\n2,1,{2**53 + 1}\n")
    assert "timestamp: 1 kept as floats" in str(log)
    assert log.frame["timestamp"][2] == 2**53 + 1
    for times in ([1.0, 2.0, 2.0**53 - 1], [1, 2, 2**53 + 1]):
        assert "floats" not in str(from_frame(mixed(timestamp=times)))


def test_where_takes_nan_for_a_missing_value(read, tmp_path):
    table = mixed(rating=[np.nan, 4.5, 4.0])
    polars = pl.DataFrame({name: table[name].to_numpy() for name in table.columns})
    polars.write_parquet(tmp_path / "log.parquet")
    text = f"{HEADER[:-1]},rating\n1,1,1,NaN\n1,2,2,4.5\n2,1,3,4\n"
    logs = [
        read("log.csv", text, where="rating >= 4"),
        read_log(tmp_path / "log.parquet", where="rating >= 4"),
        *(from_frame(frame, where="rating >= 4") for frame in (table, polars, polars.to_arrow())),
    ]
    for log in logs:
        assert len(log) == 2
        assert "(rating >= 4): 1, 1 of them for a missing value" in str(log)


def test_files_of_items_that_show_nothing(read, tmp_path):
    (tmp_path / "items.csv").write_text("item\n10\n20\n", encoding="utf-8")
    text = HEADER + "1,10,1\n2,20,2\n"
    with pytest.raises(DataError, match=r"items\.csv: there is no column beside the item ids"):
        read("log.csv", text, items=tmp_path / "items.csv")
    for name in ([["a"], ["b"]], [{"a": 1}, {"a": 2}], [b"a", b"b"], [[[1.0]], [[2.0]]]):
        frame = pl.DataFrame({"item": [10, 20], "name": name})
        frame.write_parquet(tmp_path / "items.parquet")
        with pytest.raises(DataError, match=r"items\.parquet: column 'name' holds .*: drop"):
            read("log.csv", text, items=tmp_path / "items.parquet")
        with pytest.raises(DataError, match=r"the attributes: column 'name' holds .*: drop"):
            read("log.csv", text).to_dataset(frame)
    with pytest.raises(DataError, match="the attributes: there is no column beside the item ids"):
        read("log.csv", text).to_dataset(pl.DataFrame({"item": [10, 20]}))


def test_a_line_of_blanks_is_no_row(read):
    for end in ("  \n", " \t\r\n", "   "):
        assert len(read("log.csv", f"{HEADER}1,2,3\n2,3,4\n{end}")) == 2
    with pytest.raises(DataError, match="line 4: column 'user' is empty"):
        read("log.tsv", "user\titem\ttime\n1\t2\t3\n2\t3\t4\n\t\t\n")


@pytest.mark.parametrize(
    "text, words",
    [
        ("196\t242\t3\t8\n" * 5 + "1\t2\t3\n", r"every line but 1 \(first line 6\) has 4 fields"),
        ("From\tTo\na1\tb1\na1\tb2\n", "line 1: .*'From.*To' holds no digit.*remove the line"),
        ("%%MatrixMarket matrix\n1 2\n", "Matrix Market file"),
    ],
)
def test_tables_that_look_like_sequences_are_refused(read, text, words):
    with pytest.raises(DataError, match=words):
        read("log.txt", text)


def test_tables_that_may_be_sequences_are_told(read):
    log = read("log.txt", "1 2 5 881250949\n2 3 4 881250950\n")
    assert "EVERY LINE HAS 4 NUMBERS, taken for a user and 3 items" in str(log)
    for text, said in (("1 2 3\n2 3\n", {}), ("1 2 3\n2 3 4\n", {"format": "sequences"})):
        assert "EVERY LINE" not in str(read("log.txt", text, **said))
    log = read("log.txt", "user items\nann tea cup\nbo cup\n")
    assert log.summary.n_users == 2
    assert "line 1 left out: it holds names of columns" in str(log)
    log = read("log.txt", "From To\na1 b1\na2 b2\n", format="sequences")
    assert log.summary.n_users == 3


def test_conditions_on_text_that_is_nearly_of_numbers(read):
    text = HEADER[:-1] + ",rating\n1,1,1, 4 \n1,2,2,5\n2,2,3,{}\n"
    assert len(read("log.csv", text.format(" 3.5"), where="rating >= 3.5")) == 3
    for odd in ("N/A", '"3,5"'):
        with pytest.raises(
            DataError, match=rf"'rating' '{odd.strip(chr(34))}' \(line 4\) is no num"
        ):
            read("log.csv", text.format(odd), where="rating >= 4")
    lines = '{"user":1,"item":1,"time":1,"rating":"4"}\n{"user":2,"item":2,"time":1,"rating":"5"}\n'
    with pytest.raises(DataError, match=r"'rating' '4' \(line 1\) is text \(CAST"):
        read("log.jsonl", lines, where="rating >= 4")
    assert len(read("log.jsonl", lines, where="CAST(rating AS DOUBLE) >= 4")) == 2


NOON = 1569931200_000000


@pytest.mark.parametrize(
    "written, moment",
    [
        ("2019-10-01T12:00Z", NOON),
        ("2019-10-01T12:00+02:00", NOON - 7200_000000),
        ("2019-10-01 12:00 UTC", NOON),
        ("2019-10-01 12:00:00 +0000 UTC", NOON),
        ("2019-10-01 12:00:00.5 +0200 UTC", NOON - 7200_000000 + 500000),
        ("2019-10-01 UTC", NOON - 12 * 3600_000000),
        ("2019-10-01Z", NOON - 12 * 3600_000000),
        ("Tue, 01 Oct 2019 12:00:00 GMT", NOON),
        ("Tue, 01 Oct 2019 12:00:00 +0200", NOON - 7200_000000),
    ],
)
def test_zones_behind_every_way_to_write_a_time(read, written, moment):
    rows = "user\titem\ttime\n" + f"1\t1\t{written}\n2\t2\t2019-10-01T12:00:00Z\n"
    assert read("log.tsv", rows).frame["timestamp"].to_list() == [moment, NOON]


def test_blanks_that_belong_to_ids_are_counted(read):
    frame = pl.DataFrame({"user": [1, 2, 3], "item": [" a", "a", "b "], "time": [1, 2, 3]})
    logs = [from_frame(frame), from_frame(frame.to_pandas())]
    lines = frame.write_ndjson()
    for log in [*logs, read("log.jsonl", lines)]:
        assert ids(log) == [" a", "a", "b "]
        assert "item_id: ids with blanks around them, which belong to them: 2" in str(log)


def test_an_id_of_a_history_means_the_same_beside_any_other(tmp_path):
    catalog = Catalog(pl.Series([7, 8]), n_users=2)
    for further in ("8", "8.0", "no-such"):
        path = tmp_path / "histories.csv"
        path.write_text(f"user,item,time\n1,7.0,1\n1,{further},2\n", encoding="utf-8")
        frame = read_histories(path)
        assert frame["user_id"].to_list() == [1, 1]
        assert catalog.encode(frame["item_id"])[0] == 1
    texts = Catalog(pl.Series(["7.0", "x"]), n_users=2)
    path.write_text("user,item,time\n1, 7.0,1\n1,8,2\n", encoding="utf-8")
    assert texts.encode(read_histories(path)["item_id"]).tolist() == [1, 0]


def test_ids_of_items_mean_the_same_beside_any_other(read, tmp_path):
    text = HEADER + "1,10,1\n2,20,2\n"
    for further in ("", "x,c\n"):
        (tmp_path / "items.csv").write_text(f"item,name\n10.0,a\n{further}", encoding="utf-8")
        log = read("log.csv", text, items=tmp_path / "items.csv")
        assert log.to_dataset().catalog.attributes["name"].to_list() == ["a", None]
    for further in ("", "y,c\n"):  # where ids are strings, 7.0 is never 7
        (tmp_path / "items.csv").write_text(f"item,name\n7.0,a\n{further}", encoding="utf-8")
        with pytest.raises(DataError, match="none of the items is in the log"):
            read("log.csv", HEADER + "1,7,1\n2,x,2\n", items=tmp_path / "items.csv")
    (tmp_path / "items.csv").write_text("item,name\n10,a\n\n10.0,b\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 4: item 10 has more than one row"):
        read("log.csv", text, items=tmp_path / "items.csv")


def test_the_column_of_items_is_that_of_the_log(read, tmp_path):
    text = "user_id,code,timestamp\n1,10,1\n2,20,2\n"
    for header in ("code,name,item_id", "item_id,name,n"):
        (tmp_path / "items.csv").write_text(f"{header}\n10,a,20\n20,b,10\n", encoding="utf-8")
        log = read("log.csv", text, item="code", items=tmp_path / "items.csv")
        assert log.to_dataset().catalog.attributes["name"].to_list() == ["a", "b"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes are Linux's")
def test_paths_that_are_not_utf8_are_refused(read, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv")
    Path(odd).write_text(HEADER + "1,2,3\n2,3,4\n", encoding="utf-8")
    log = read("log.csv", HEADER + "1,2,3\n2,3,4\n")
    Path(odd).rename(odd + "2")
    for doing in (log.write, log.to_dataset().save):
        with pytest.raises(DataError, match=r"caf\\udce9\.csv' is not UTF-8: rename"):
            doing(odd)
    with pytest.raises(DataError, match=r"is not UTF-8: rename"):
        read_log(odd + "2")
