"""Recommendation lists of a saved run, for one history and for a log of users."""

from pathlib import Path

import polars as pl
import pytest

from diffuserec import ConfigError, DataError, SequenceDataset, find_augmenter, find_recommender
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
        "1 item ids are not in the catalog and were skipped",
    ]


def test_requests_that_cannot_be_answered_are_refused_before_a_model_is_asked(
    run: Path, tmp_path: Path
) -> None:
    taken = tmp_path / "taken.csv"
    taken.write_text("mine")
    for out, error, message in (
        (taken, DataError, "exists already"),
        (tmp_path / "lists.doc", ConfigError, "must end in .csv, .parquet, .jsonl"),
        (tmp_path / "no" / "lists.csv", DataError, "there is no folder"),
    ):
        with pytest.raises(error, match=message):
            recommend_from(run, [1], None, out=out)
    assert taken.read_text() == "mine"
    for history, histories in ((None, None), ([1], taken)):
        with pytest.raises(ConfigError, match="either --history or --histories"):
            recommend_from(run, history, histories)
