"""A service on a free port of this machine, for tests that ask it as its clients do."""

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import uvicorn

from diffuserec import SequenceDataset, find_augmenter, find_recommender
from diffuserec.serving.application import application
from diffuserec.serving.settings import Keys, Limits, ServiceSettings, read_keys

N_ITEMS = 40
HOSTILE = '<img src=x onerror="document.title=1"> \u202e&amp; "quoted"'
"""Name of the first item, which a page must show as text."""


def log(n_items: int = N_ITEMS) -> SequenceDataset:
    """Whoever is at an item goes on to the next; ids are texts, and items have names."""
    sequences = [[(user + step) % n_items + 1 for step in range(9)] for user in range(n_items)]
    dataset = SequenceDataset.from_lists(sequences)
    names = [HOSTILE, *(f"The {color} lamp, no. {n}" for n, color in enumerate(_COLORS))]
    catalog = replace(
        dataset.catalog,
        item_ids=pl.Series("item_id", [f"i{number}" for number in range(1, n_items + 1)]),
        attributes=pl.DataFrame({"name": (names * n_items)[:n_items]}),
    )
    return replace(dataset, catalog=catalog)


_COLORS = ("red", "green", "Blue", "žlutá")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved models: one of vectors, one that draws noise, one that counts, with an augmenter."""
    path = tmp_path_factory.mktemp("saved")
    train = log()
    small = {"dim": 8, "epochs": 1}
    find_recommender("sasrec")(**small).fit(train).save(path / "sasrec")
    find_recommender("acvae")(**small).fit(train).save(path / "acvae")
    find_recommender("markov")().fit(train).save(path / "markov" / "model")
    find_augmenter("random")(n_items=2).fit(train).save(path / "markov" / "augmenter")
    return {name: path / name for name in ("sasrec", "acvae", "markov")}


@dataclass(frozen=True)
class Answer:
    """An answer of a service."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """What it says."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Asks a service, each time over a connection of its own."""

    port: int
    service: Any

    def __call__(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer to one request; what is no text and no bytes is sent as JSON."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        data = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            with contextlib.suppress(BrokenPipeError):  # answered before all was sent
                connection.request(method, path, data, sent)
            found = connection.getresponse()
            names = {name.lower(): value for name, value in found.getheaders()}
            return Answer(found.status, names, found.read())

    def recommend(self, history: list[Any], **options: Any) -> Answer:
        """The answer to one history."""
        return self("POST", "/v1/recommend", {"history": history, **options})


Serving = Callable[..., contextlib.AbstractContextManager[Client]]


@contextlib.contextmanager
def _serving(
    paths: Mapping[str, Path] | Path,
    keys: Keys | None = None,
    jobs: Path | None = None,
    assistants: bool = False,
    local: bool = False,
    **limits: Any,
) -> Iterator[Client]:
    settings = ServiceSettings(
        Limits(**limits), keys or Keys(), jobs, assistants=assistants, local=local
    )
    app = application(paths, settings)
    config = uvicorn.Config(
        app,
        port=0,
        http="h11",
        ws="none",  # as the command has it
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the service did not start"
            time.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Client(port, app.state.service)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the service did not end"


@pytest.fixture(scope="session")
def serving() -> Serving:
    """Serves models while a block lasts, and gives a client to ask with."""
    return _serving


@pytest.fixture(scope="session")
def ask(saved: dict[str, Path], serving: Serving) -> Iterator[Client]:
    """A client of a service of all models, without keys."""
    with serving(saved) as client:
        yield client


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Keys of two callers and an admin."""
    file = tmp_path / "keys.txt"
    file.write_text(
        "# who asks\nann ann-ann-ann-ann-ann\n\nbob bob-bob-bob-bob-bob\n"
        "root root-root-root-root admin\n",
        encoding="utf-8",
    )
    return read_keys(file)
