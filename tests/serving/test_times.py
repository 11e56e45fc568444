"""Times of a history's items: read by models that read them, however a request comes."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from diffuserec import SequenceDataset, find_recommender, load
from diffuserec.data import Catalog
from diffuserec.serving.lists import recommend_from

HISTORY, DAY = ["i1", "i2", "i3"], 86_400
SOON, LATE = [0, 60, 120], [0, 60, 9 * DAY]


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory, saved: dict[str, Path]) -> dict[str, Path]:
    """A model whose lists depend on times, and one that reads none."""
    catalog = Catalog(pl.Series("item_id", [f"i{n}" for n in range(1, 13)]), 30)
    items = np.random.default_rng(0).integers(1, 13, 240)
    times = np.arange(240) % 8 * DAY // 7
    dataset = SequenceDataset.from_offsets(
        items.astype(np.int32), np.arange(31) * 8, catalog, timestamps=times
    )
    path = tmp_path_factory.mktemp("timed") / "hstu"
    settings = {"dim": 8, "epochs": 8, "time_bias": True, "learning_rate": 0.03}
    find_recommender("hstu")(**settings).fit(dataset).save(path)
    return {"hstu": path, "markov": saved["markov"]}


def scores(answer: Any) -> list[tuple[str, float]]:
    return [(item["item_id"], round(item["score"], 4)) for item in answer["items"]]


def expected(path: Path, times: list[int] | None) -> list[tuple[str, float]]:
    given = None if times is None else [times]
    frame = load(path).recommend([HISTORY], k=5, times=given)
    return scores({"items": frame.to_dicts()})


def test_lists_follow_the_times_however_they_come(timed, serving, tmp_path: Path) -> None:
    wanted = {str(times): expected(timed["hstu"], times) for times in (None, SOON, LATE)}
    assert len(set(map(str, wanted.values()))) == 3  # or nothing below would show anything
    with serving(timed, jobs=tmp_path / "jobs", assistants=True) as ask:
        cards = ask("GET", "/v1/models").json()["models"]
        assert [card["reads_times"] for card in cards] == [True, False]
        for times in (None, SOON, LATE):
            alone = ask.recommend(HISTORY, k=5, times=times).json()
            assert scores(alone) == wanted[str(times)]
        body = {"histories": [HISTORY, [], HISTORY], "times": [LATE, [], SOON], "k": 5}
        lists = ask("POST", "/v1/recommend/batch", body).json()["lists"]
        assert [lists[1]["source"], scores(lists[0]), scores(lists[2])] == [
            *("popularity", wanted[str(LATE)], wanted[str(SOON)])
        ]
        lines = [{"history": HISTORY, "times": times} for times in (SOON, None, LATE)]
        frame = tmp_path / "histories.parquet"
        pl.DataFrame(lines).write_parquet(frame)
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        for sent, kind in (
            (text, "application/x-ndjson"),
            (frame.read_bytes(), "application/vnd.apache.parquet"),
        ):
            path = "/v1/jobs?options=%7B%22k%22:5%7D"
            job = ask("POST", path, sent, {"Content-Type": kind}).json()["id"]
            while ask("GET", f"/v1/jobs/{job}").json()["state"] != "done":
                time.sleep(0.02)
            found = ask("GET", f"/v1/jobs/{job}/result").body.splitlines()
            assert [scores(json.loads(line)) for line in found] == [
                wanted[str(times)] for times in (SOON, None, LATE)
            ]


def test_a_model_that_reads_no_times_is_not_told(timed, serving) -> None:
    with serving(timed) as ask:
        plain, told = (
            ask.recommend(HISTORY, model="markov", times=times).json() for times in (None, LATE)
        )
    assert plain == told


def test_histories_without_times_are_told_of(timed, tmp_path: Path) -> None:
    said: list[str] = []
    recommend_from(timed["hstu"], HISTORY, None, say=said.append)
    assert said == [
        "hstu reads when items were chosen, and 1 of 1 histories came without times: lists may be "
        "worse than measured"
    ]
    said.clear()
    log = tmp_path / "log.csv"
    frame = pl.DataFrame({"user_id": ["a"] * 3, "item_id": HISTORY, "timestamp": LATE})
    frame.write_csv(log)
    found = recommend_from(timed["hstu"], None, log, k=5, say=said.append)
    assert scores({"items": found.to_dicts()}) == expected(timed["hstu"], LATE)
    assert not any("without times" in line for line in said)


@pytest.mark.parametrize(
    "path, body, message",
    [
        ("", {"history": HISTORY, "times": [1]}, "times must have one time for each item"),
        ("", {"history": ["i1"], "times": ["x"]}, "times.0 must be a whole number"),
        ("", {"history": ["i1"], "times": [2**63]}, "times.0 must be less than"),
        ("", {"history": "i1", "times": [1]}, "history must be a list"),
        ("/batch", {"histories": [["i1"]], "times": []}, "times must have one list for each"),
        ("/batch", {"histories": [["i1"]], "times": [[]]}, "times must have one time for each"),
    ],
)
def test_times_that_do_not_fit_are_refused(ask, path: str, body: Any, message: str) -> None:
    answer = ask("POST", f"/v1/recommend{path}", body)
    assert answer.status == 422
    assert message in answer.json()["error"]
