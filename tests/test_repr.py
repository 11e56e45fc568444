"""What people see first: data and results print as short tables, in notebooks too."""

import numpy as np
import polars as pl
import pytest

from diffuserec import Catalog, SequenceDataset, Store, evaluate, find_recommender, leave_one_out


@pytest.fixture(scope="module")
def dataset():
    return Store(n_users=60, n_items=40, seed=3).dataset()


def facts(text):
    """Names and values of a table of two columns."""
    lines = [line.strip("│").split("│") for line in text.splitlines() if line.startswith("│")]
    return {name.strip(): value.strip() for name, value in lines}


def test_a_dataset_says_how_large_it_is(dataset):
    found = facts(repr(dataset))
    assert found["sequences"] == "60"
    assert found["interactions"] == f"{len(dataset.items):,}"
    assert found["items of the catalog"] == "40"
    assert found["length, median"] == f"{np.median(dataset.lengths):g}"
    assert "synthetic items" not in found
    assert str(dataset) == repr(dataset)
    longer = dataset.prepend(np.ones((2, 3), dtype=np.int32), np.array([0, 5]))
    assert facts(repr(longer))["synthetic items"] == "6"
    empty = dataset.select(np.array([], dtype=np.int64))
    assert facts(repr(empty))["sequences"] == "0"


def test_a_large_dataset_does_not_fill_the_screen():
    large = SequenceDataset.from_lists([[1, 2, 3]] * 5000)
    assert len(repr(large).splitlines()) < 12
    assert "5,000" in repr(large)


def test_a_split_and_its_queries_say_what_is_held_out(dataset):
    split = leave_one_out(dataset)
    lines = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in repr(split).splitlines()
        if line.startswith("│")
    ]
    assert [line[0] for line in lines] == ["train", "valid", "test"]
    assert lines[0][1:] == ["60", f"{split.train.lengths.sum():,}", ""]
    assert lines[2][3] == str(len(split.test))
    assert f"{split.n_too_short} users too short" in repr(split)
    assert facts(repr(split.test))["queries"] == str(len(split.test))


def test_a_catalog_shows_its_first_ids_as_text():
    names = pl.Series(["[red]a[/red]", "\x1b[31m", "c" * 100, "d"])
    shown = repr(Catalog(names, 7, attributes=pl.DataFrame({"name": names})))
    found = facts(shown)
    assert found["items"] == "4"
    assert found["item ids"] == f"strings: [red]a[/red], \\x1b[31m, {'c' * 23}…, …"
    assert found["attributes"] == "name"
    assert "\x1b" not in shown


def test_an_evaluation_prints_its_metrics_and_its_protocol(dataset):
    split = leave_one_out(dataset)
    model = find_recommender("popularity")().fit(split.train)
    result = evaluate(model, split.test, dataset_name="<b>store</b>")
    table, line = str(result).rsplit("\n", 1)
    assert facts(table) == {name: f"{value:.4f}" for name, value in result.metrics.items()}
    assert line == str(result.protocol)
    assert "&lt;b&gt;store" in result._repr_html_()
    for shown in (dataset, split, split.test, dataset.catalog, result):
        assert shown._repr_html_().startswith("<table>")
