"""Data sets of studies by name, and parts of them."""

from pathlib import Path

import pytest

from diffuserec.data import leave_basket, load_dataset
from diffuserec.errors import ConfigError
from diffuserec.studies.data_sets import find_data, parse_data

LOG = "\n".join(f"u{user} a{user % 7} b{user % 5} c{user % 3} d" for user in range(60)) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text(LOG, encoding="utf-8")
    return tmp_path


def found(names: list[str], folder: Path, users: int | None = None) -> dict[str, list[list[str]]]:
    paths, skipped = find_data(names, folder / "data", folder / "out", users, lambda line: None)
    assert not skipped
    histories = {}
    for name, path in paths.items():
        data = load_dataset(path)
        items = data.catalog.item_ids.to_list()
        lists = [data.log.items[a:b] for a, b in zip(data.starts, data.ends, strict=True)]
        histories[name] = [[items[i - 1] for i in numbers] for numbers in lists]
    return histories


def test_fewer_users_are_some_of_the_more_with_the_whole_catalog(folder: Path) -> None:
    all_of = found(["mine", "mine:30", "mine:12"], folder)
    assert [len(histories) for histories in all_of.values()] == [60, 30, 12]
    for fewer, more in (("mine:12", "mine:30"), ("mine:30", "mine")):
        rest = list(all_of[more])
        for history in all_of[fewer]:
            rest.remove(history)
    sizes = {load_dataset(path).catalog.n_items for path in (folder / "out").iterdir()}
    assert sizes == {16}


def test_a_budget_of_users_holds_over_the_name(folder: Path) -> None:
    assert [len(h) for h in found(["mine:30", "mine:12"], folder, 20).values()] == [20, 12]


def test_one_log_stands_for_all_names_and_their_parts(folder: Path) -> None:
    where = folder / "data" / "mine.txt"
    paths, _ = find_data(["beauty", "beauty:12", "ml-1m:12"], where, folder / "out", None, print)
    assert {name: len(load_dataset(path)) for name, path in paths.items()} == {
        "mine": 60,
        "mine:12": 12,
    }


def test_the_store_of_orders_is_always_there(tmp_path: Path) -> None:
    names, out = ["store-orders:20"], tmp_path / "out"
    paths, skipped = find_data(names, tmp_path / "none", out, None, lambda line: None)
    assert (list(paths), skipped) == (names, {})
    assert len(leave_basket(load_dataset(paths[names[0]])).test) > 0


@pytest.mark.parametrize("name", ["beauty:", "beauty:9", "beauty:many", "beauty:1.5"])
def test_a_part_is_a_number_of_users(name: str) -> None:
    with pytest.raises(ConfigError, match="write beauty:1000 for a thousand users of beauty"):
        parse_data(name)
