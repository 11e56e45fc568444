"""Attributes of items: what a column becomes, items without an interaction, and bad input."""

import json

import numpy as np
import polars as pl
import pytest

from diffuserec.data import SequenceDataset, from_frame, load_dataset, read_log
from diffuserec.errors import ConfigError, DataError

LOG = pl.DataFrame({"user": [1, 1, 2, 2], "item": [30, 10, 20, 10], "time": [1, 2, 3, 4]})

ITEMS = pl.DataFrame(
    {
        "item": [20, 7, 30, 99],
        "brand": ["x", "y", None, "x"],
        "genres": [["a", "b"], [], ["a"], None],
        "codes": [[3, 4], [3], None, [5]],
        "price": [1.5, float("nan"), 3.0, None],
        "text": [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0]],
    }
)


@pytest.fixture
def files(tmp_path):
    LOG.write_csv(tmp_path / "log.csv")
    ITEMS.write_parquet(tmp_path / "items.parquet")
    ITEMS.write_ndjson(tmp_path / "items.jsonl")
    return tmp_path


@pytest.mark.parametrize("name", ["items.parquet", "items.jsonl", "frame", "pandas"])
def test_types_of_columns_say_what_attributes_are(files, name):
    frames = {"frame": ITEMS, "pandas": ITEMS.to_pandas()}
    if name in frames:
        made = from_frame(LOG).to_dataset(frames[name])
    else:
        made = read_log(files / "log.csv", items=files / name).to_dataset()
    made.save(files / "data")
    catalog = load_dataset(files / "data").catalog
    # the log's items ascending, then the others
    assert catalog.item_ids.to_list() == [10, 20, 30, 7, 99]
    assert catalog.encode([99, 7, 10]).tolist() == [5, 4, 1]
    found = catalog.attributes
    category = "genres" if name in frames else "category"
    assert found["brand"].to_list() == [None, "x", None, "y", "x"]
    assert found[category].to_list() == [None, ["a", "b"], ["a"], [], None]
    assert found["codes"].to_list() == [None, ["3", "4"], None, ["3"], ["5"]]
    assert found["price"].to_list() == [None, 1.5, 3.0, None, None]
    assert found["text"].dtype == pl.Array(pl.Float32, 2)
    assert found["text"].to_list() == [None, [1.0, 2.0], [3.0, 4.0], None, [5.0, 6.0]]


def test_attributes_are_part_of_the_fingerprint(files):
    def fingerprint(items: pl.DataFrame) -> str:
        dataset = from_frame(LOG).to_dataset(items)
        dataset.save(files / "data", overwrite=True)
        assert load_dataset(files / "data").fingerprint == dataset.fingerprint
        return dataset.fingerprint

    changes = [
        pl.col("brand").fill_null("z"),
        pl.Series("genres", [["a"], [], ["a"], None]),
        pl.Series("text", [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.5]]),
        pl.Series("text", [[1.0, 2.0], [0.0, 0.0], [3.0, 4.0], [5.0, 6.0]]),
        pl.Series("item", [20, 8, 30, 99]),
    ]
    prints = [fingerprint(ITEMS), *(fingerprint(ITEMS.with_columns(c)) for c in changes)]
    assert len(set(prints)) == len(prints)


def test_columns_are_chosen_and_told_what_they_are(files):
    frame = pl.DataFrame({"sku": [10, 20], "item": [1, 2], "brand": [7, 8], "genre": ["a|b", "a"]})
    frame.write_csv(files / "own.csv")
    asked = ["brand:category", "genre:categories"]
    log = read_log(files / "log.csv", items=files / "own.csv", items_id="sku", item_columns=asked)
    attributes = log.to_dataset().catalog.attributes
    assert attributes["brand"].to_list() == ["7", "8", None]
    assert attributes["category"].to_list() == [["a", "b"], ["a"], None]
    assert attributes.width == 2
    for options, error, words in [
        ({"item_columns": ["brnd"]}, DataError, "'brnd'.*did you mean 'brand'"),
        ({"item_columns": ["brand:text"]}, ConfigError, "no kind of column 'text'"),
        ({"items_id": "no"}, DataError, "no column 'no'"),
    ]:
        with pytest.raises(error, match=words) as caught:
            read_log(files / "log.csv", items=files / "own.csv", **{"items_id": "sku"} | options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="item_columns is about a file of items"):
        read_log(files / "log.csv", item_columns=["brand"])


def test_an_object_of_lists_by_item(files):
    (files / "a.json").write_text(
        json.dumps({"10": [1, 2], "20": ["x"], "77": 3}), encoding="utf-8"
    )
    log = read_log(files / "log.csv", items=files / "a.json")
    catalog = log.to_dataset().catalog
    assert catalog.item_ids.to_list() == [10, 20, 30, 77]
    assert catalog.attributes["attributes"].to_list() == [["1", "2"], ["x"], None, ["3"]]
    for text, words in [
        ('{"10": [1], "10": [2]}', "a.json"),
        ('{"10": [[1]]}', "a.json, entry 0: '.*' is no list of text or integers"),
        ('{"10": [1.5]}', "entry 0: '.*' is no list"),
        ("[1]", "is one object"),
        ("{", "a.json"),
    ]:
        (files / "a.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=words) as caught:
            read_log(files / "log.csv", items=files / "a.json")
        assert "\n" not in str(caught.value)


def test_filtered_items_do_not_come_back(files):
    more = pl.concat([LOG, pl.DataFrame({"user": [1], "item": [20], "time": [9]})])
    more.write_csv(files / "log.csv")
    log = read_log(files / "log.csv", items=files / "items.parquet").filter(min_item=2)
    assert log.to_dataset().catalog.item_ids.to_list() == [10, 20, 7, 99]
    assert log.to_dataset(ITEMS).catalog.item_ids.to_list() == [10, 20, 7, 99]


def test_further_items_have_ids_of_the_kind_of_the_log():
    texts = LOG.with_columns(pl.col("item").cast(pl.String))
    numbers = pl.DataFrame({"item": [10, 5], "n": [1, 2]})
    assert from_frame(texts).to_dataset(numbers).catalog.item_ids.to_list() == [
        "10", "20", "30", "5",
    ]  # fmt: skip
    mixed = pl.DataFrame({"item": ["10", "x", "5", "6.0"], "n": [1, 2, 3, 4]})
    assert from_frame(LOG).to_dataset(mixed).catalog.item_ids.to_list() == [10, 20, 30, 5, 6]
    with pytest.raises(DataError, match="row 1: item 5 has more than one row"):
        from_frame(LOG).to_dataset(pl.DataFrame({"item": ["5", "5.0", "10"], "n": [1, 2, 3]}))


@pytest.mark.parametrize(
    "column, words",
    [
        ([[1.0, 2.0], [1.0], None, None], "row 1: .*vector of 1 numbers beside one of 2"),
        ([[1.0], None, [float("inf")], None], "row 2: .*missing or not finite"),
        ([[1.0], None, [None], None], "row 2: .*missing or not finite"),
        (pl.Series([[], [], [], []], dtype=pl.List(pl.Float64)), "without a number"),
        ([{"a": 1}] * 4, "attributes of items are text, numbers"),
    ],
)
def test_attributes_that_cannot_be_are_one_line(column, words):
    with pytest.raises(DataError, match=f"the attributes.*{words}") as caught:
        from_frame(LOG).to_dataset(ITEMS.select("item", pl.Series("it", column, strict=False)))
    assert "\n" not in str(caught.value)


def test_a_dataset_of_other_attributes_is_not_saved(tmp_path):
    dataset = from_frame(LOG).to_dataset(ITEMS)
    for column in (pl.Series("x", [{"a": 1}] * 5), pl.Series("x", [[1.0]] * 5)):
        catalog = dataset.catalog
        frame = catalog.attributes.with_columns(column)
        odd = SequenceDataset.from_offsets(
            np.asarray(dataset.items),
            dataset.offsets,
            type(catalog)(catalog.item_ids, 2, attributes=frame),
        )
        with pytest.raises(DataError, match=r"cannot be saved: attributes\.parquet: column 'x'"):
            odd.save(tmp_path / "data")
