"""Recommendation lists of a saved run, for one history and for a log of users."""

import dataclasses
import shutil
from pathlib import Path

import polars as pl
import pytest

from diffuserec import (
    ConfigError,
    DataError,
    SequenceDataset,
    find_augmenter,
    find_recommender,
    load,
    load_augmenter,
)
from diffuserec.serving.lists import recommend_from

LOG = [[1, 2, 3, 4], [2, 3, 4, 5], [5, 1, 2, 3]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with nothing but the models of a run."""
    path = tmp_path_factory.mktemp("run")
    train = SequenceDataset.from_lists(LOG)
    find_recommender("itemknn")(max_len=3).fit(train).save(path / "model")
    find_augmenter("random")(n_items=2).fit(train).save(path / "augmenter")
    return path


def test_lists_of_a_log_are_those_of_each_history(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    users = ["x", "y", "x", "y", "z"]
    pl.DataFrame({"user_id": users, "item_id": [1, 5, 2, 4, 3]}).write_csv(file)
    out = tmp_path / "lists.parquet"
    found = recommend_from(run, None, file, columns={"time": "none"}, out=out, k=2)
    assert found.equals(pl.read_parquet(out))
    assert found["user_id"].to_list() == ["x", "x", "y", "y", "z", "z"]
    for user, history in (("x", [1, 2]), ("y", [5, 4]), ("z", [3])):
        alone = recommend_from(run, history, None, k=2)
        assert found.filter(user_id=user).drop("user_id").equals(alone)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_is_not_used_of_a_history_is_said(run: Path) -> None:
    said: list[str] = []
    recommend_from(run, [1, 2, 3], None, say=said.append)
    assert said == []
    recommend_from(run, [1, 2, 3, 4, 99], None, say=said.append)
    assert said == [
        "1 of 1 histories are longer than the 3 items that itemknn looks back on: only their "
        "newest 3 count",
        "1 history: 1 answered by the model, 0 by popularity; 1 of 5 item ids unknown and skipped",
    ]


def test_requests_that_cannot_be_answered_are_refused_before_a_model_is_asked(
    run: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken.csv"
    taken.write_text("mine", encoding="utf-8")
    for out, error, message in (
        (taken, DataError, "exists already"),
        (tmp_path / "lists.doc", ConfigError, "must end in .csv, .parquet, .jsonl"),
        (tmp_path / "no" / "lists.csv", DataError, "there is no folder"),
    ):
        with pytest.raises(error, match=message):
            recommend_from(run, [1], None, out=out)
    assert taken.read_text(encoding="utf-8") == "mine"
    for history, histories in ((None, None), ([1], taken)):
        with pytest.raises(ConfigError, match="either --history or --histories"):
            recommend_from(run, history, histories)


def test_answers_by_popularity_and_unknown_ids_are_counted_aloud(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    rows = [("x", "1.0"), ("x", "2.0"), ("y", "77"), ("y", "x"), ("z", "1"), ("z", "+2")]
    rows += [("all", str(item)) for item in range(1, 6)]
    pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").write_csv(file)
    for out in (None, tmp_path / "lists.csv", tmp_path / "lists.jsonl"):
        said: list[str] = []
        found = recommend_from(
            run, None, file, columns={"time": "none"}, k=9, out=out, say=said.append
        )
        assert said[-1] == (
            "4 histories: 3 answered by the model, 1 by popularity; 3 of 11 item ids unknown and "
            "skipped; 1 without a list: no item is left to show"
        )
    sources = {user: set(lists["source"]) for (user,), lists in found.group_by("user_id")}
    assert sources == {"x": {"model"}, "y": {"popularity"}, "z": {"model"}}
    same = recommend_from(run, [1, 2], None, k=9)
    assert found.filter(user_id="x").drop("user_id").equals(same)


def test_histories_of_which_nothing_is_known_are_refused_unless_asked_for(
    run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "log.csv"
    file.write_text("user_id,item_id\nx,A\ny,B\n", encoding="utf-8")
    asked = {"columns": {"time": "none"}}
    with pytest.raises(DataError, match=r"none of the 2 item ids of .*log.csv .* 'A'.*--fallback"):
        recommend_from(run, None, file, **asked)
    with pytest.raises(DataError, match=r"none of the 1 item ids of the history .*'1;2'.*commas"):
        recommend_from(run, ["1;2"], None)
    with pytest.raises(DataError, match="--history names no item"):
        recommend_from(run, [], None)
    said: list[str] = []
    found = recommend_from(run, None, file, **asked, fallback=True, say=said.append)
    assert set(found["source"]) == {"popularity"}
    assert said == [
        "2 histories: 0 answered by the model, 2 by popularity; 2 of 2 item ids unknown and skipped"
    ]


def test_a_model_folder_and_a_run_stand_for_each_other(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    assert type(load(tmp_path)) is type(load(tmp_path / "model"))
    assert load_augmenter(tmp_path).name == "random"
    # the augmenter of the run belongs to its model
    lists = [recommend_from(path, [3], None) for path in (tmp_path, tmp_path / "model")]
    assert lists[0].equals(lists[1])
    shutil.copytree(run / "model", tmp_path / "alone")
    assert recommend_from(tmp_path / "alone", [3], None)["source"].to_list() == ["model"] * 4


def test_names_of_items_stand_in_lists(tmp_path: Path) -> None:
    names = pl.DataFrame({"name": ["one", "two", None, "four", "five"]})
    train = SequenceDataset.from_lists(LOG)
    named = dataclasses.replace(train, catalog=dataclasses.replace(train.catalog, attributes=names))
    find_recommender("itemknn")().fit(named).save(tmp_path / "model")
    out = tmp_path / "lists.csv"
    found = recommend_from(tmp_path / "model", [1], None, out=out)
    assert found.columns == ["rank", "item_id", "name", "score", "source", "n_unknown"]
    by_item = dict(zip(found["item_id"], found["name"], strict=True))
    assert by_item == {2: "two", 3: None, 4: "four", 5: "five"}
    assert pl.read_csv(out)["name"].to_list() == found["name"].to_list()
    after = load(tmp_path / "model").next_items_of([1])
    assert after.columns == ["target_item_id", "rank", "item_id", "name", "score"]
    assert after["name"].to_list() == found["name"].to_list()


def test_approximate_lists_have_an_index_beside_the_model(tmp_path: Path) -> None:
    train = SequenceDataset.from_lists(LOG)
    sasrec = find_recommender("sasrec")
    sasrec(dim=4, n_layers=1, epochs=1).fit(train).save(tmp_path / "model")
    said: list[str] = []
    exact = recommend_from(tmp_path, [1, 2], None, k=2)
    for how in ("made", "read"):
        found = recommend_from(tmp_path, [1, 2], None, k=2, approximate=True, say=said.append)
        assert found["item_id"].equals(exact["item_id"])
        assert said[-1].startswith("approximate lists: 100.0% of the ten best items")
        assert said[-1].endswith(f"({how}: {tmp_path.resolve() / 'model.index.safetensors'})")
    sasrec(dim=4, n_layers=1, epochs=2).fit(train).save(tmp_path / "model")
    recommend_from(tmp_path, [1, 2], None, k=2, approximate=True, say=said.append)
    assert "(made: " in said[-1]
    file = tmp_path / "model.index.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"model.index.safetensors is damaged .*: remove it, and"):
        recommend_from(tmp_path, [1, 2], None, approximate=True)


def test_approximate_lists_of_counts_are_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"^itemknn does not score by the product of one state"):
        recommend_from(run, [1, 2], None, approximate=True)
