"""The service in Ray Serve: two replicas on this machine, started as a cluster starts them."""

import contextlib
import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffuserec import SequenceDataset, load
from diffuserec.errors import ConfigError
from diffuserec.recommenders.markov import Markov
from diffuserec.serving.replicas import replicas
from diffuserec.serving.settings import Keys, Limits, ServiceSettings

serve = pytest.importorskip("ray.serve", reason="needs ray[serve]")

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

KEY = {"Authorization": "Bearer ann-ann-ann-ann-ann", "Content-Type": "application/json"}


def test_what_replicas_cannot_be_is_refused(saved, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch jobs are one process's"):
        replicas(saved, ServiceSettings(jobs=tmp_path, local=True))
    with pytest.raises(ConfigError, match="n must be at least 1"):
        replicas(saved, n=0)
    with pytest.raises(ConfigError, match="everyone who reaches Ray Serve could ask"):
        replicas(saved, ServiceSettings())


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Ray Serve on a free port."""
    import ray

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = free.getsockname()[1]
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for name in ("READY", "HEALTH"):  # a busy machine needs more than five seconds
            patch.setenv(f"RAY_SERVE_PROXY_{name}_CHECK_TIMEOUT_S", "120")
        patch.setenv("RAY_worker_niceness", "0")  # Ray puts its processes behind all others
        ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
        with contextlib.suppress(TimeoutError):  # of a minute; it comes up nevertheless
            serve.start(http_options={"host": "127.0.0.1", "port": found})
        yield found
        serve.shutdown()
        ray.shutdown()


def ask(port: int, path: str, body: Any = None, headers: Any = KEY) -> tuple[int, bytes]:
    """Status and body of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def wait_for(port: int) -> None:
    """Waits until Ray Serve takes requests."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if ask(port, "/healthz")[0] == 200:
                return
        time.sleep(0.2)
    raise AssertionError("Ray Serve takes no requests")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_replicas_answer_and_are_exchanged_without_a_lost_request(
    saved, keys: Keys, port: int, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    shutil.copytree(saved["sasrec"], place)
    settings = ServiceSettings(Limits(max_k=20), keys, assistants=True)
    paths = {"m": place, "markov": saved["markov"]}
    serve.run(replicas(paths, settings, n=2))
    wait_for(port)

    history = ["i3", "nobody", "i5"]
    wanted = load(place).recommend([history], k=4)["item_id"].to_list()
    status, body = ask(port, "/v1/recommend", {"history": history, "k": 4})
    assert status == 200
    assert [item["item_id"] for item in json.loads(body)["items"]] == wanted
    for path, sent, status in (
        ("/", None, 200),
        ("/page/page.js", None, 200),
        ("/healthz", None, 200),
        ("/readyz", None, 200),
        ("/metrics", None, 200),
        ("/openapi.json", None, 200),
        ("/v1/models", None, 200),
        ("/v1/models/markov", None, 200),
        ("/v1/recommend/batch", {"histories": [history] * 3}, 200),
        ("/v1/next-items", {"item": "i3"}, 200),
        ("/v1/items/search", {"query": "lamp"}, 200),
        ("/v1/augment", {"history": ["i1"], "model": "markov"}, 200),
        ("/v1/recommend", {"history": history, "k": 21}, 422),
        ("/v1/jobs", {}, 415),
        ("/none", None, 404),
        ("/mcp", {}, 406),
    ):
        found = ask(port, path, sent)
        assert found[0] == status, (path, found)
    assert ask(port, "/v1/models", None, {})[0] == 401

    processes, statuses, stopped = set(), [], threading.Event()

    def go_on() -> None:
        while not stopped.is_set():
            answer = ask(port, "/v1/recommend", {"history": history})
            statuses.append(answer[0])
            if answer[0] == 200:
                processes.add(json.loads(answer[1])["sha256"])

    threads = [threading.Thread(target=go_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    before = json.loads(ask(port, "/readyz")[1])["models"]["m"]
    shutil.rmtree(place)
    Markov().fit(SequenceDataset.from_lists([[1, 2, 3]] * 5)).save(place)
    serve.run(replicas(paths, settings, n=2))
    stopped.set()
    for thread in threads:
        thread.join(60)
    after = {json.loads(ask(port, "/readyz")[1])["models"]["m"] for _ in range(20)}
    assert len(after) == 1
    assert before not in after
    assert processes == {before, *after}
    assert set(statuses) == {200}
