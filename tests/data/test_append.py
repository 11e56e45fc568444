"""A log and one that goes on where it ended."""

from pathlib import Path

import polars as pl
import pytest

from diffuserec import DataError
from diffuserec.data import Interactions, append, from_dataset, from_frame, read_more

NAMES = ("user", "item", "time")
OLD = [("u1", "a", 1), ("u1", "b", 2), ("u2", "a", 1), ("u2", "c", 3)]


def log_of(rows: list[tuple[object, ...]], names: tuple[str, ...] = NAMES) -> Interactions:
    """A log of two or more users and items."""
    frame = pl.DataFrame(rows, list(names), orient="row")
    return from_frame(frame, time=None if "time" in names else "none")


def rows_of(log: Interactions) -> list[tuple[object, ...]]:
    return log.frame.rows()


def test_what_both_logs_hold_is_taken_once_and_times_decide_the_order() -> None:
    new = [("u3", "d", 9), ("u2", "b", 2), ("u2", "c", 3), ("u1", "b", 5)]
    log, n_known = append(log_of(OLD), log_of(new))
    assert n_known == 1
    assert rows_of(log) == [
        *[("u1", "a", 1), ("u1", "b", 2), ("u1", "b", 5)],
        *[("u2", "a", 1), ("u2", "b", 2), ("u2", "c", 3)],
        ("u3", "d", 9),
    ]
    assert (log.summary.n_users, log.summary.n_items) == (3, 4)


def test_without_times_the_newer_rows_follow() -> None:
    names = ("user", "item")
    log, n_known = append(log_of([("b", 1), ("a", 2)], names), log_of([("a", 1), ("b", 3)], names))
    assert (rows_of(log), n_known) == ([("a", 2), ("a", 1), ("b", 1), ("b", 3)], 0)


def test_ids_of_a_text_file_stay_as_the_earlier_log_has_them(tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text("user,item,time\n007,1,5\n8,2,6\n", encoding="utf-8")
    old = log_of([("u", "01", 1), ("v", "2", 2)])
    log, _ = append(old, read_more(file, old.to_dataset().catalog))
    assert rows_of(log) == [("007", "1", 5), ("8", "2", 6), ("u", "01", 1), ("v", "2", 2)]
    numbers = log_of([(1, 10, 1), (2, 11, 2)])
    file.write_text("user,item,time\n1,10x,5\n", encoding="utf-8")
    log, _ = append(numbers, read_more(file, numbers.to_dataset().catalog))
    assert rows_of(log) == [(1, "10", 1), (1, "10x", 5), (2, "11", 2)]


def test_attributes_go_on() -> None:
    items = pl.DataFrame({"item_id": ["a", "b", "c"], "name": ["A", "B", "C"]})
    old = from_dataset(log_of(OLD).to_dataset(items))
    catalog = append(old, log_of([("u1", "0", 9), ("u2", "a", 9)]))[0].to_dataset().catalog
    assert catalog.names is not None
    assert catalog.names.to_list() == [None, "A", "B", "C"]


def test_logs_that_are_not_one_are_refused() -> None:
    for new, match in (
        (log_of([("u1", "a"), ("u2", "b")], ("user", "item")), "has times and .* has none"),
        (log_of(OLD[1:]), "adds nothing: the earlier log holds all of its 3 rows"),
        (log_of([("u1", "a", 1_700_000_000), ("u2", "b", 1_700_000_000)]), "not of one unit"),
        (
            log_of([("u1", "a", 5, True), ("u2", "b", 5, True)], (*NAMES, "synthetic")),
            "synthetic items are not appended",
        ),
    ):
        with pytest.raises(DataError, match=match) as told:
            append(log_of(OLD), new)
        assert "\n" not in str(told.value)
