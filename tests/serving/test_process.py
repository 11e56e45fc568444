"""The command as a process: what it says, how it ends, and that a kill loses no accepted job."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffuserec import load

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="it needs POSIX signals")

HISTORIES = [[f"i{n % 40 + 1}"] for n in range(400)]


class Process:
    """A service as a process of its own.

    Args:
        arguments: of ``diffuserec serve``.
    """

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "diffuserec.cli", "serve", *arguments, "--port", "0"]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
        )
        self.events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = int(self.wait_for("listening")["url"].rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.events.append(json.loads(line))

    def wait_for(self, event: str, n: int = 1) -> dict[str, Any]:
        """The n-th event of a kind."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = [line for line in self.events if line["event"] == event]
            if len(found) >= n:
                return found[n - 1]
            assert self.process.poll() is None or self._reader.is_alive(), self.events
            time.sleep(0.01)
        raise AssertionError(self.events)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def on_the_way(self, history: list[str], headers: dict[str, str]) -> float:
        """Milliseconds of a request that the service did not work, of the quickest of 20.

        An answer of two packets, of which the second waits for word of the first, takes 40.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        body, headers = json.dumps({"history": history}), {**headers, "X-Request-ID": "timed"}
        took = []
        with contextlib.closing(connection):
            for _ in range(20):
                begun = time.perf_counter()
                headers = {"Content-Type": "application/json", **headers}
                connection.request("POST", "/v1/recommend", body, headers)
                connection.getresponse().read()
                took.append(1000 * (time.perf_counter() - begun))
        self.ask("GET", "/healthz", None, **{"X-Request-ID": "after"})
        while not any(event.get("request_id") == "after" for event in self.events):
            time.sleep(0.01)
        worked = [event["ms"] for event in self.events if event.get("request_id") == "timed"]
        return min(a - b for a, b in list(zip(took, worked, strict=True))[10:])

    def end(self, number: int) -> int:
        """Sends a signal that ends the process; its status."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        self._reader.join(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Processes that are ended after the test, whatever became of it."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        if process.process.poll() is None:
            process.end(signal.SIGKILL)


def test_a_kill_loses_no_accepted_job_and_a_termination_ends_well(
    saved, tmp_path: Path, started: list[Process]
) -> None:
    place, jobs = tmp_path / "model", tmp_path / "jobs"
    shutil.copytree(saved["sasrec"], place)
    lines = "".join(json.dumps({"history": history}) + "\n" for history in HISTORIES).encode()
    key = {"Authorization": "Bearer ann-ann-ann-ann-ann"}
    keys = {"DIFFUSEREC_KEYS": "ann ann-ann-ann-ann-ann"}

    first = Process(str(place), "--jobs", str(jobs), **keys)
    started.append(first)
    accepted = []

    def post() -> None:
        for _ in range(2):
            try:
                status, body = first.ask(
                    "POST", "/v1/jobs", lines, **key, **{"Content-Type": "application/x-ndjson"}
                )
            except (OSError, http.client.HTTPException):
                return
            if status == 202:
                accepted.append(json.loads(body)["id"])

    threads = [threading.Thread(target=post) for _ in range(2)]
    for thread in threads:
        thread.start()
    while len(accepted) < 2:
        time.sleep(0.01)
    first.end(signal.SIGKILL)
    for thread in threads:
        thread.join(30)

    second = Process(str(place), "--jobs", str(jobs), **keys)
    started.append(second)
    wanted = load(place).recommend(HISTORIES[:40])["item_id"].to_list()
    for job_id in accepted:
        deadline = time.monotonic() + 120
        while (
            json.loads(second.ask("GET", f"/v1/jobs/{job_id}", None, **key)[1])["state"] != "done"
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        body = second.ask("GET", f"/v1/jobs/{job_id}/result", None, **key)[1]
        lists = [json.loads(line)["items"] for line in body.splitlines()]
        assert len(lists) == len(HISTORIES)
        assert [item["item_id"] for items in lists[:40] for item in items] == wanted

    second.process.send_signal(signal.SIGHUP)
    second.wait_for("model", 2)
    assert second.ask("POST", "/v1/recommend", {"history": ["i1"]}, **key)[0] == 200
    assert second.on_the_way(["i1"], key) < 30
    assert second.end(signal.SIGTERM) == 0
    assert [event["event"] for event in second.events[-2:]] == ["ending", "ended"]
    assert "ann-ann" not in json.dumps(second.events + first.events)
    requests = [event for event in second.events if event.get("route", "").startswith("/v1/")]
    assert {event["caller"] for event in requests} == {"ann"}
    assert {"request_id", "route", "method", "status", "ms"} <= set(requests[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--host", "0.0.0.0"], "give --keys FILE"),
        (["--model", "x"], "--model is written NAME=PATH"),
        (["--model", "sasrec=x"], "two models are called sasrec"),
        (["--limit", "max_kk=3"], "did you mean 'max_k'?"),
        (["--keys", "none.txt"], "none.txt cannot be read"),
        (["--host", "256.0.0.1", "--keys", "KEYS"], "cannot listen there"),
    ],
)
def test_bad_options_are_one_line(saved, tmp_path, arguments: list[str], message: str) -> None:
    from typer.testing import CliRunner

    from diffuserec.cli import app

    keys = tmp_path / "keys.txt"
    keys.write_text("ann ann-ann-ann-ann-ann", encoding="utf-8")
    given = [str(keys) if word == "KEYS" else word for word in arguments]
    found = CliRunner().invoke(app, ["serve", str(saved["sasrec"]), *given])
    assert isinstance(found.exception, ValueError)
    assert message in str(found.exception)
    assert "\n" not in str(found.exception)
