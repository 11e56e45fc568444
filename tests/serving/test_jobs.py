"""Batch jobs: their lists are those of single requests, and nothing that was accepted is lost."""

import asyncio
import contextlib
import http.client
import json
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pytest

from diffuserec.errors import DataError
from diffuserec.serving.application import application
from diffuserec.serving.settings import ServiceSettings

LINES = {"Content-Type": "application/x-ndjson"}


def send(ask: Any, histories: list[Any], headers: Any = LINES, **options: Any) -> Any:
    """The answer to a job of these histories."""
    body = "".join(json.dumps({"history": history}) + "\n" for history in histories)
    path = f"/v1/jobs?options={quote(json.dumps(options))}"
    return ask("POST", path, body.encode(), headers)


def finished(ask: Any, job_id: str, headers: Any = None) -> dict[str, Any]:
    """The state of a job that has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state = ask("GET", f"/v1/jobs/{job_id}", None, headers).json()
        if state["state"] in ("done", "failed"):
            return state
        time.sleep(0.05)
    raise AssertionError(f"the job did not end: {state}")


def lines_of(answer: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.body.splitlines()]


def test_a_job_gives_the_lists_of_single_requests(saved, serving, tmp_path: Path) -> None:
    histories = [[f"i{n % 40 + 1}", "x"] for n in range(600)]
    with serving(saved["markov"], jobs=tmp_path / "jobs") as ask:
        accepted = send(ask, histories, k=3)
        assert accepted.status == 202
        job = accepted.json()
        assert job["n"] == 600
        state = finished(ask, job["id"])
        assert state["state"] == "done"
        assert state["n_done"] == 600
        assert state["sha256"] == ask.recommend([]).json()["sha256"]
        lines = lines_of(ask("GET", f"/v1/jobs/{job['id']}/result"))
        assert len(lines) == 600
        for number in (0, 255, 256, 599):
            alone = ask.recommend(histories[number], k=3).json()
            assert lines[number]["items"] == alone["items"]
            assert lines[number]["n_unknown"] == 1
        assert ask("DELETE", f"/v1/jobs/{job['id']}").status == 204
        assert ask("GET", f"/v1/jobs/{job['id']}").status == 404
        assert list((tmp_path / "jobs").iterdir()) == []


def test_a_job_may_be_a_parquet_file(saved, serving, tmp_path: Path) -> None:
    def sent(frame: pl.DataFrame, cut: int | None = None) -> Any:
        file = tmp_path / "histories.parquet"
        frame.write_parquet(file)
        kind = {"Content-Type": "application/vnd.apache.parquet"}
        return ask("POST", "/v1/jobs", file.read_bytes()[:cut], kind)

    histories, users = [["i1", "i2"], [], ["x"]], ["ann", None, "bob"]
    with serving(saved["markov"], jobs=tmp_path / "jobs") as ask:
        job = sent(pl.DataFrame({"user": users, "history": histories})).json()
        assert job["n"] == 3
        finished(ask, job["id"])
        lines = lines_of(ask("GET", f"/v1/jobs/{job['id']}/result"))
        assert [line["user"] for line in lines] == users
        for line, history in zip(lines, histories, strict=True):
            assert line["items"] == ask.recommend(history).json()["items"]
        assert {file.name for file in (tmp_path / "jobs" / job["id"]).iterdir()} == {
            *("input.jsonl", "job.json", "done.json"),
            f"lists-{job['sha256'] or finished(ask, job['id'])['sha256'][:16]}",
        }
        for frame, cut in (
            (pl.DataFrame({"history": histories, "other": [1, 2, 3]}), None),
            (pl.DataFrame({"history": histories}), 60),
            (pl.DataFrame({"history": pl.repeat(0, 1_000_000, eager=True).implode()}), None),
        ):
            assert sent(frame, cut).status == 422
        assert len(list((tmp_path / "jobs").iterdir())) == 1


def test_a_job_belongs_to_its_caller(saved, serving, keys, tmp_path: Path) -> None:
    ann = {"Authorization": "Bearer ann-ann-ann-ann-ann"}
    bob = {"Authorization": "Bearer bob-bob-bob-bob-bob"}
    with serving(saved["markov"], keys=keys, jobs=tmp_path / "jobs") as ask:
        job_id = send(ask, [["i1"]], {**LINES, **ann}).json()["id"]
        assert finished(ask, job_id, ann)["state"] == "done"
        for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
            assert ask(method, f"/v1/jobs/{job_id}{path}", None, bob).status == 404
        assert ask("GET", f"/v1/jobs/{job_id}/result", None, ann).status == 200


@pytest.mark.parametrize(
    "body, query, message",
    [
        (b"", "", "a job is JSON lines"),
        (b'{"history": ["i1"]}\nnonsense\n', "", "line 2: the request is not JSON"),
        (b'{"history": "i1"}', "", "line 1: history must be a list"),
        (b'{"history": ["i1"], "x": 1}', "", "line 1: x is no field"),
        (b'{"history": [%s]}' % b",".join([b"1"] * 1001), "", "line 1: a history has at most"),
        (b'{"history": [%s' % (b" " * 600_000), "", "line 1 is too long"),
        (b'{"history": ["i1"]}', "?options={}&k=3", "takes the parameters model and options"),
        (b'{"history": ["i1"]}', "?options=%7B%22k%22:0%7D", "options: k must be greater"),
        (b'{"history": ["i1"]}', "?options=%7B%22k%22:999%7D", "k must be at most 100"),
        (b'{"history": ["i1"]}', "?options=%7B%22mmr%22:1%7D", "has no item vectors"),
        (b'{"history": ["i1"]}', "?options=x", "options: the request is not JSON"),
    ],
)
def test_a_wrong_job_is_not_accepted(saved, serving, tmp_path, body, query, message) -> None:
    with serving(saved["markov"], jobs=tmp_path / "jobs") as ask:
        answer = ask("POST", f"/v1/jobs{query}", body, LINES)
        assert answer.status == 422
        assert message in answer.json()["error"]
        assert list((tmp_path / "jobs").iterdir()) == []


def test_only_so_many_jobs_are_kept(saved, serving, tmp_path: Path) -> None:
    with serving(saved["markov"], jobs=tmp_path / "jobs", max_jobs=2, max_job_body=2048) as ask:
        assert [send(ask, [["i1"]]).status for _ in range(3)] == [202, 202, 503]
        assert send(ask, [["i1"]] * 200).status == 413


def test_a_job_that_is_being_sent_counts_as_kept(saved, serving, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    with serving(saved["markov"], jobs=tmp_path / "jobs", max_jobs=1) as ask:
        sender = http.client.HTTPConnection("127.0.0.1", ask.port, timeout=30)
        with contextlib.closing(sender):
            sender.putrequest("POST", "/v1/jobs")
            sender.putheader("Content-Type", LINES["Content-Type"])
            sender.putheader("Content-Length", "1000")
            sender.endheaders(b'{"history": ["i1"]}\n')
            while not list((tmp_path / "jobs").iterdir()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert send(ask, [["i1"]]).status == 503
        while send(ask, [["i1"]]).status != 202:  # the sender is gone, and its job with it
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_disk_that_takes_no_job_is_no_defect(saved, serving, tmp_path: Path, caplog) -> None:
    with serving(saved["markov"], jobs=tmp_path / "jobs") as ask:
        (tmp_path / "jobs").rmdir()
        (tmp_path / "jobs").write_text("in its place", encoding="utf-8")
        answer = send(ask, [["i1"]])
        assert answer.status == 503
        assert answer.headers["retry-after"] == "60"
        assert str(tmp_path) not in answer.body.decode()
    assert "job not kept" in caplog.text


def test_a_restart_goes_on_with_what_was_accepted(saved, serving, tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    with serving(saved["markov"], jobs=folder) as ask:
        job_id = send(ask, [[f"i{n % 40 + 1}"] for n in range(600)], k=2).json()["id"]
        finished(ask, job_id)
        whole = ask("GET", f"/v1/jobs/{job_id}/result").body
    # as a kill in the middle leaves it: one file of lists, and half of the next
    job = folder / job_id
    (lists,) = job.glob("lists-*")
    first = (lists / "00000000.jsonl").stat().st_mtime_ns
    (lists / "00000001.jsonl").rename(lists / ".00000001.jsonl.1-00000000.partial")
    (lists / "00000002.jsonl").unlink()
    (job / "done.json").unlink()
    half = folder / ".0123.1-00000000.partial"
    half.mkdir()
    with serving(saved["markov"], jobs=folder) as ask:
        assert finished(ask, job_id)["state"] == "done"
        assert ask("GET", f"/v1/jobs/{job_id}/result").body == whole
    assert (lists / "00000000.jsonl").stat().st_mtime_ns == first
    assert sorted(file.name for file in lists.iterdir()) == [f"0000000{n}.jsonl" for n in range(3)]
    assert not half.exists()


def test_a_job_that_is_begun_anew_is_by_one_model(saved, serving, tmp_path: Path) -> None:
    folder, place = tmp_path / "jobs", tmp_path / "model"
    shutil.copytree(saved["acvae"], place)
    with serving({"m": place}, jobs=folder) as ask:
        job_id = send(ask, [["i1"]] * 300).json()["id"]
        before = finished(ask, job_id)["sha256"]
    (folder / job_id / "done.json").unlink()
    shutil.rmtree(place)
    shutil.copytree(saved["sasrec"], place)
    with serving({"other": place}, jobs=folder) as ask:  # its model is not served: it waits
        found = ask("GET", f"/v1/jobs/{job_id}").json()
        assert found["state"] == "waiting"
        assert found["error"] == "the service has no model m now: the job waits until it has"
    with serving({"m": place}, jobs=folder) as ask:
        found = finished(ask, job_id)
        assert found["sha256"] != before
        assert found["error"] is None
        lines = lines_of(ask("GET", f"/v1/jobs/{job_id}/result"))
        assert len(lines) == 300
        assert all("spread" not in line["items"][0] for line in lines)


def test_one_process_works_at_a_directory(saved, serving, tmp_path: Path) -> None:
    settings = ServiceSettings(jobs=tmp_path / "jobs")
    refused = pytest.raises(DataError, match="written by another process")
    with serving(saved["markov"], jobs=tmp_path / "jobs"), refused:
        asyncio.run(_start(application(saved["markov"], settings)))


async def _start(app: Any) -> None:
    async with app.state.service.running():
        pass
