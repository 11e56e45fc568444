"""The service: its answers are the models', its refusals one line of JSON, and it never falls."""

import concurrent.futures
import contextlib
import json
import logging
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from diffuserec import SequenceDataset, find_augmenter, load
from diffuserec.errors import ConfigError, DataError
from diffuserec.recommenders.markov import Markov
from diffuserec.serving.application import application
from diffuserec.serving.settings import KEYS_VARIABLE, read_keys, service_settings


def ids(answer: Any) -> list[Any]:
    """Item ids of a list."""
    return [item["item_id"] for item in answer["items"]]


def close(found: Any, expected: Any) -> bool:
    """Whether two lists are the same, but for the last digits of their numbers."""
    kept = [
        [(item["item_id"], item["rank"], item.get("name")) for item in part["items"]]
        for part in (found, expected)
    ]
    scores = [[item["score"] for item in part["items"]] for part in (found, expected)]
    return kept[0] == kept[1] and scores[0] == pytest.approx(scores[1], abs=1e-5)


# -- answers


@pytest.mark.parametrize("name", ["sasrec", "acvae"])
def test_lists_are_those_of_the_model(ask, saved, name: str) -> None:
    answer = ask.recommend(["i3", "nobody", "i5"], model=name, k=4, deny=["i6"])
    assert answer.status == 200
    found = answer.json()
    frame = load(saved[name]).recommend([["i3", "nobody", "i5"]], k=4, deny=["i6"])
    assert close(found, {"items": frame.to_dicts()})
    assert found["source"] == "model"
    assert found["n_unknown"] == 1
    assert found["model"] == name
    assert ("spread" in found["items"][0]) == (name == "acvae")


def test_an_unknown_history_is_answered_by_popularity(ask) -> None:
    found = ask.recommend(["nobody"]).json()
    assert found["source"] == "popularity"
    assert found["n_unknown"] == 1
    assert len(found["items"]) == 10


def test_a_list_without_items_says_so(ask) -> None:
    found = ask.recommend(["i1", "?"], allow=["i1"]).json()
    assert found["items"] == []
    assert found["source"] is None
    assert found["n_unknown"] == 1


def test_a_batch_gives_what_its_histories_get_alone(ask) -> None:
    histories = [["i1"], [], ["i2", "i3"], ["x"]]
    found = ask("POST", "/v1/recommend/batch", {"histories": histories, "k": 3}).json()
    alone = [ask.recommend(history, k=3).json() for history in histories]
    assert len(found["lists"]) == 4
    assert all(close(a, b) for a, b in zip(found["lists"], alone, strict=True))


def test_next_items_are_those_after_one_item(ask, saved) -> None:
    found = ask("POST", "/v1/next-items", {"item": "i7", "k": 3, "model": "sasrec"}).json()
    expected = load(saved["sasrec"]).next_items_of(["i7"], k=3)["item_id"].to_list()
    assert ids(found) == expected


def test_search_finds_names_and_ids(ask) -> None:
    def found(query: str, limit: int = 10) -> list[dict[str, Any]]:
        return ask("POST", "/v1/items/search", {"query": query, "limit": limit}).json()["items"]

    assert found("i17")[0]["item_id"] == "i17"
    assert {item["name"] for item in found("LAMP zluta")} == {"The žlutá lamp, no. 3"}
    assert found("no such lamp") == []
    assert len(found("", limit=4)) == 4


def test_cards_tell_what_a_model_is(ask) -> None:
    cards = ask("GET", "/v1/models").json()["models"]
    assert [card["name"] for card in cards] == ["sasrec", "acvae", "markov"]
    assert [card["draws_noise"] for card in cards] == [False, True, False]
    assert [card["can_diversify"] for card in cards] == [True, True, False]
    assert ask("GET", "/v1/models/markov").json()["augmenter"] == "random"
    assert cards[0]["settings"]["dim"] == 8


def test_requests_that_wait_share_a_call_of_the_model(saved, serving) -> None:
    alone = {}
    with serving(saved["sasrec"]) as ask:
        for number in range(1, 9):
            alone[number] = ask.recommend([f"i{number}"], k=5).json()
        before = _calls(ask)
        numbers = [number % 8 + 1 for number in range(64)]
        with concurrent.futures.ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda n: ask.recommend([f"i{n}"], k=5), numbers))
        after = _calls(ask)
        assert after["sum"] - before["sum"] == 64
        assert after["count"] - before["count"] < 64
    for number, answer in zip(numbers, answers, strict=True):
        assert answer.status == 200
        assert close(answer.json(), alone[number])


def _calls(ask: Any) -> dict[str, float]:
    """Calls of models so far, and histories in them, as Prometheus is told."""
    text = ask("GET", "/metrics").body.decode()
    found = re.findall(r"^diffuserec_batch_histories_(count|sum) (.*)$", text, re.M)
    return {name: float(value) for name, value in found}


def test_one_wrong_request_of_a_shared_call_is_refused_alone(saved, serving) -> None:
    wrong = {"on_unknown": "refuse", "k": 3}
    with serving(saved["sasrec"]) as ask, concurrent.futures.ThreadPoolExecutor(16) as threads:
        histories = [["nobody"] if number % 4 == 0 else ["i3"] for number in range(64)]
        answers = list(threads.map(lambda history: ask.recommend(history, **wrong), histories))
    assert [answer.status for answer in answers] == [422 if n % 4 == 0 else 200 for n in range(64)]


def test_a_diverse_list_holds_other_items(ask) -> None:
    plain = ask.recommend(["i3"], k=5).json()
    diverse = ask.recommend(["i3"], k=5, mmr=0.9).json()
    assert ids(diverse)[0] == ids(plain)[0]
    assert ids(diverse) != ids(plain)
    assert [item["rank"] for item in diverse["items"]] == [1, 2, 3, 4, 5]
    assert len(set(ids(diverse))) == 5


def test_an_augmenter_shows_what_it_writes(ask) -> None:
    body = {"history": ["i1", "i2", "i3"], "model": "markov", "n_draws": 4}
    found = ask("POST", "/v1/augment", body).json()
    (sequence,) = found["sequences"]
    assert [item["generated"] for item in sequence] == [True, True, False, False, False]
    assert [item["item_id"] for item in sequence[2:]] == ["i1", "i2", "i3"]
    assert all(item["agreement"] in (0.25, 0.5, 0.75, 1.0) for item in sequence[:2])
    assert sequence[2]["agreement"] is None
    assert found["augmenter"] == "random"
    assert not found["training_only"]


def test_an_augmenter_of_copies_shows_each(saved, serving, tmp_path: Path) -> None:
    model = load(saved["sasrec"])
    model.save(tmp_path / "model")
    train = SequenceDataset.from_lists([[1, 2, 3, 4]] * 8, model.catalog)
    settings = {"n_copies": 2, "epochs": 1, "num_train_timesteps": 25, "hidden_dim": 8}
    find_augmenter("diff4rec")(**settings).fit(train).save(tmp_path / "augmenter")
    history = ["i1", "i2", "i3"]
    with serving(tmp_path) as ask:
        found = ask("POST", "/v1/augment", {"history": history, "n_draws": 3}).json()
    assert found["training_only"]
    assert [len(sequence) for sequence in found["sequences"]] == [3, 3]
    for sequence in found["sequences"]:
        for item, original in zip(sequence, history, strict=True):
            assert item["generated"] == (item["item_id"] != original)
            assert (item["agreement"] is None) != item["generated"]


def test_the_answer_follows_its_own_description(ask) -> None:
    described = ask("GET", "/openapi.json").json()
    assert {"/v1/recommend", "/v1/items/search", "/readyz", "/metrics"} <= set(described["paths"])
    answer = described["components"]["schemas"]["RecommendAnswer"]
    found = ask.recommend(["i1"]).json()
    assert set(answer["required"]) <= set(found) <= set(answer["properties"])


# -- refusals

REFUSED: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/v1/recommend", {"history": ["i1"], "k": 101}, 422, "k must be at most 100, got 101"),
    ("POST", "/v1/recommend", {"history": ["i1"], "k": 0}, 422, "k must be greater"),
    ("POST", "/v1/recommend", {"history": ["i1"], "k": "3"}, 422, "k must be a whole number"),
    ("POST", "/v1/recommend", {"history": ["i1"], "k": True}, 422, "k must be a whole number"),
    ("POST", "/v1/recommend", {"history": ["i1"], "k": 3.5}, 422, "k must be a whole number"),
    ("POST", "/v1/recommend", {"history": "i1"}, 422, "history must be a list"),
    ("POST", "/v1/recommend", {"history": [None]}, 422, "history.0 must be an item id"),
    ("POST", "/v1/recommend", {"history": [["i1"]]}, 422, "history.0 must be an item id"),
    ("POST", "/v1/recommend", {"history": [2**70]}, 422, "history.0 must be an item id"),
    ("POST", "/v1/recommend", {"history": ["i" * 600]}, 422, "history.0 is longer than 512"),
    ("POST", "/v1/recommend", {"history": ["i1"] * 1001}, 422, "history must be at most 1,000"),
    ("POST", "/v1/recommend", {"history": ["i1"], "kk": 3}, 422, "kk is no field"),
    ("POST", "/v1/recommend", {}, 422, "history is missing"),
    ("POST", "/v1/recommend", [], 422, "the request must be a JSON object"),
    ("POST", "/v1/recommend", b"{", 422, "the request is not JSON"),
    ("POST", "/v1/recommend", b"\xff\xfe", 422, "the request is not JSON"),
    ("POST", "/v1/recommend", b'{"history": ["\\ud800"]}', 422, "history.0 must be an item id"),
    ("POST", "/v1/recommend", b'{"history": [], "seed": 1e999}', 422, "seed must be a whole"),
    ("POST", "/v1/recommend", b"[" * 100_000, 400, "the body cannot be read as JSON"),
    ("POST", "/v1/recommend", {"history": ["i1"], "model": "x"}, 404, "there is no such model"),
    ("POST", "/v1/recommend", {"history": ["i1"], "allow": ["?"]}, 422, "allow: the catalog does"),
    ("POST", "/v1/recommend", {"history": ["i1"], "n_draws": 2}, 422, "draws no noise"),
    ("POST", "/v1/recommend", {"history": [], "mmr": 0.5, "model": "markov"}, 422, "no item vec"),
    ("POST", "/v1/recommend/batch", {"histories": []}, 422, "histories list should have"),
    ("POST", "/v1/recommend/batch", {"histories": [["i1"]] * 257}, 422, "at most 256, got 257"),
    ("POST", "/v1/next-items", {"item": "nobody"}, 422, "does not hold item 'nobody'"),
    ("POST", "/v1/items/search", {"query": "x" * 201}, 422, "query string should have at most"),
    ("POST", "/v1/augment", {"history": ["i1"]}, 422, "was trained without an augmenter"),
    ("POST", "/v1/admin/reload", {}, 403, "needs the key of an admin"),
    ("POST", "/v1/jobs", {}, 415, "application/x-ndjson"),
    ("GET", "/v1/models/../../etc/passwd", None, 404, "nothing at this path"),
    ("GET", "/page/..%2f..%2fpyproject.toml", None, 404, "nothing at this path"),
    ("GET", "/page/%2e%2e/%2e%2e/settings.py", None, 404, "nothing at this path"),
    ("GET", "/docs", None, 404, "nothing at this path"),
    ("GET", "/mcp", None, 404, "nothing at this path"),
    ("DELETE", "/v1/recommend", None, 405, "takes another method"),
]


@pytest.mark.parametrize("method, path, body, status, message", REFUSED)
def test_a_refusal_is_one_line(ask, method, path, body, status: int, message: str) -> None:
    answer = ask(method, path, body, {"X-Request-ID": "mine-1"})
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert b"\n" not in answer.body
    assert b"Traceback" not in answer.body
    found = answer.json()
    assert message in found["error"]
    assert found["status"] == status
    assert found["request_id"] == answer.headers["x-request-id"] == "mine-1"


def test_a_request_must_say_that_it_is_json(ask) -> None:
    answer = ask("POST", "/v1/recommend", '{"history": []}', {"Content-Type": "text/plain"})
    assert answer.status == 415
    packed = ask("POST", "/v1/recommend", {"history": []}, {"Content-Encoding": "gzip"})
    assert packed.status == 415


def test_a_defect_is_told_to_the_log_alone(saved, serving, caplog) -> None:
    with serving(saved["sasrec"]) as ask:
        object.__setattr__(ask.service.models[None], "search", None)  # whatever may break
        answer = ask("POST", "/v1/items/search", {"query": "x"})
        assert ask.recommend(["i1"]).status == 200
    assert answer.status == 500
    assert answer.json()["error"] == "something went wrong in the service"
    assert "NoneType" in caplog.text


def test_bodies_have_a_limit(saved, serving) -> None:
    with serving(saved["sasrec"], max_body=1024) as ask:
        assert ask.recommend(["i1"] * 300).status == 413
        # in one piece: the service may answer and close before a caller has sent all of it
        chunk = b"200\r\n" + b" " * 512 + b"\r\n"
        with socket.create_connection(("127.0.0.1", ask.port), timeout=10) as line:
            line.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                + 4 * chunk
                + b"0\r\n\r\n"
            )
            answer = line.recv(10_000)
        assert b" 413 " in answer.splitlines()[0]


def test_a_body_that_does_not_come_is_not_waited_for(saved, serving) -> None:
    with serving(saved["sasrec"], timeout=0.3) as ask:
        with socket.create_connection(("127.0.0.1", ask.port), timeout=10) as line:
            line.sendall(
                b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
            )
            answer = line.recv(10_000)
        assert b" 408 " in answer.splitlines()[0]
        assert ask.recommend(["i1"]).status == 200


def test_a_caller_is_held_to_a_rate(saved, serving) -> None:
    with serving(saved["sasrec"], rate=2) as ask:
        answers = [ask.recommend(["i1"]) for _ in range(12)]
        statuses = [answer.status for answer in answers]
        assert statuses[:4] == [200] * 4
        assert 429 in statuses
        late = next(answer for answer in answers if answer.status == 429)
        time.sleep(int(late.headers["retry-after"]))
        assert ask.recommend(["i1"]).status == 200
        assert ask("GET", "/healthz").status == 200


def test_too_much_at_a_time_is_refused_and_then_answered_again(saved, serving) -> None:
    histories = {"histories": [["i1"]] * 4}
    with serving(saved["acvae"], max_waiting=4, at_once=1) as ask:
        with concurrent.futures.ThreadPoolExecutor(24) as threads:
            sent = [
                threads.submit(ask, "POST", "/v1/recommend/batch", histories) for _ in range(48)
            ]
            answers = [answer.result() for answer in sent]
        statuses = {answer.status for answer in answers}
        assert statuses == {200, 503}
        refused = next(answer for answer in answers if answer.status == 503)
        assert int(refused.headers["retry-after"]) >= 1
        assert ask("POST", "/v1/recommend/batch", histories).status == 200


def test_health_is_told_when_too_many_are_inside(saved, serving) -> None:
    begun = (
        b"POST /v1/recommend HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 50\r\n\r\n{"
    )
    with serving(saved["markov"], max_waiting=1) as ask, contextlib.ExitStack() as lines:
        for _ in range(3):
            line = lines.enter_context(socket.create_connection(("127.0.0.1", ask.port)))
            line.sendall(begun)
        while ask.recommend(["i1"]).status != 503:
            time.sleep(0.01)
        for path in ("/healthz", "/readyz", "/metrics"):
            assert ask("GET", path).status == 200


def test_whoever_goes_away_is_not_waited_for(saved, serving) -> None:
    body = json.dumps({"histories": [["i1"]] * 256}).encode()
    head = (
        "POST /v1/recommend/batch HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with serving(saved["acvae"], at_once=1) as ask:
        with socket.create_connection(("127.0.0.1", ask.port), timeout=10) as line:
            line.sendall(head.encode() + body)
            while not _calls(ask)["count"]:
                time.sleep(0.001)
        ask.recommend(["i1"])
        time.sleep(0.1)
        before = _calls(ask)["count"]
        time.sleep(0.1)
        assert _calls(ask)["count"] == before < 256


# -- who may ask


def test_keys_open_the_door_and_are_in_no_log(saved, serving, keys, caplog) -> None:
    caplog.set_level(logging.DEBUG)

    def status(key: str, path: str = "/v1/models", **headers: str) -> int:
        return ask("GET", path, None, {**({"Authorization": key} if key else {}), **headers}).status

    with serving(saved["sasrec"], keys=keys) as ask:
        assert status("Bearer ann-ann-ann-ann-ann") == 200
        assert status("", **{"X-API-Key": "bob-bob-bob-bob-bob"}) == 200
        refused = ask("GET", "/v1/models", None, {"Authorization": "Bearer wrong-wrong-wrong"})
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert status("") in (401, 429)
        assert 429 in {status("Bearer guess") for _ in range(4)}
        assert status("Bearer ann-ann-ann-ann-ann") == 200
        assert status("", "/metrics") in (401, 429)
        for path in ("/", "/healthz", "/readyz", "/page/page.js"):
            assert status("", path) == 200
        text = repr(keys) + repr(ask.service.settings) + caplog.text
        metrics = ask("GET", "/metrics", None, {"X-API-Key": "bob-bob-bob-bob-bob"}).body.decode()
    logged = text + metrics + str([vars(record) for record in caplog.records])
    assert "ann-ann" not in logged
    assert "wrong-wrong" not in logged
    assert "'caller': 'ann'" in logged


def test_keys_are_read_strictly(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "keys.txt"
    for text, message in {
        "ann": "line 1: a key is written NAME KEY",
        "ann short": "has fewer than 16 characters",
        "an/n ann-ann-ann-ann-ann": "a key is written NAME KEY",
        "ann ann-ann-ann-ann-ann boss": "a key is written NAME KEY",
        "a same-same-same-same\nb same-same-same-same": "the name b or its key stands twice",
        "# none": "holds no key",
    }.items():
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message) as error:
            read_keys(file)
        assert "ann-ann" not in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_keys(tmp_path / "none.txt")
    monkeypatch.setenv(KEYS_VARIABLE, "ann ann-ann-ann-ann-ann, root root-root-root-root admin")
    found = read_keys(None)
    assert found.caller("root-root-root-root").is_admin
    assert found.caller("ann-ann-ann-ann-an") is None
    monkeypatch.delenv(KEYS_VARIABLE)
    assert not read_keys(None)


def test_without_keys_only_this_machine_is_answered(saved, serving) -> None:
    assert service_settings({}).local
    assert not service_settings({}, host="0.0.0.0").local
    with serving(saved["sasrec"], local=True) as ask:
        for host, status in {
            "localhost": 200,
            f"127.0.0.1:{ask.port}": 200,
            "[::1]:80": 200,
            "evil.example": 403,
            "127.0.0.1.evil.example": 403,
            "": 403,
        }.items():
            assert ask("GET", "/readyz", None, {"Host": host}).status == status, host


def test_an_application_is_as_closed_by_default(saved) -> None:
    assert application(saved["markov"]).state.service.settings.local


def test_pages_of_other_sites_are_not_answered(ask) -> None:
    own = {"Origin": f"http://127.0.0.1:{ask.port}"}
    assert ask("POST", "/v1/recommend", {"history": []}, own).status == 200
    assert (
        ask("POST", "/v1/recommend", {"history": []}, {"Origin": "http://a.example"}).status == 403
    )
    assert ask("POST", "/v1/recommend", {"history": []}, {"Origin": "null"}).status == 403
    assert "access-control-allow-origin" not in ask("GET", "/v1/models", None, own).headers


def test_limits_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'max_kk' \(did you mean 'max_k'\?\)"):
        service_settings({"max_kk": 1})
    with pytest.raises(ConfigError, match="limits: timeout: must be greater than 0"):
        service_settings({"timeout": 0})


# -- watching


def test_health_and_metrics(saved, serving) -> None:
    with serving(saved["sasrec"]) as ask:
        assert ask("GET", "/healthz").json() == {"status": "ok"}
        manifest = json.loads((saved["sasrec"] / "manifest.json").read_text(encoding="utf-8"))
        assert ask("GET", "/readyz").json()["models"] == {"sasrec": manifest["sha256"]}
        ask.recommend(["i1", "nobody"])
        ask.recommend(["nobody"])
        ask("POST", "/v1/recommend", b"{")
        text = ask("GET", "/metrics").body.decode()
    for line in (
        'diffuserec_requests_total{method="POST",route="/v1/recommend",status="200"} 2.0',
        'diffuserec_requests_total{method="POST",route="/v1/recommend",status="422"} 1.0',
        'diffuserec_lists_total{model="sasrec",source="popularity"} 1.0',
        'diffuserec_unknown_items_total{model="sasrec"} 2.0',
        "diffuserec_waiting_histories 0.0",
    ):
        assert line in text, line


def test_a_model_is_exchanged_without_a_lost_request(saved, serving, keys, tmp_path) -> None:
    place = tmp_path / "model"
    shutil.copytree(saved["sasrec"], place)
    admin = {"Authorization": "Bearer root-root-root-root"}
    caller = {"Authorization": "Bearer ann-ann-ann-ann-ann"}
    with serving({"m": place}, keys=keys) as ask:
        body = {"history": ["i1"]}
        before = ask("GET", "/readyz").json()["models"]["m"]
        assert ask("POST", "/v1/admin/reload", {}, caller).status == 403
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(ask, "POST", "/v1/recommend", body, caller) for _ in range(60)]
            train = SequenceDataset.from_lists([[1, 2, 3]] * 5)
            shutil.rmtree(place)
            Markov().fit(train).save(place)
            reloaded = ask("POST", "/v1/admin/reload", {"model": "m"}, admin)
            asked += [threads.submit(ask, "POST", "/v1/recommend", body, caller) for _ in range(60)]
            answers = [answer.result() for answer in asked]
        assert reloaded.json()["before"] == before
        after = reloaded.json()["sha256"]
        assert after != before
        assert {answer.status for answer in answers} == {200}
        assert answers[0].json()["sha256"] == before
        assert answers[-1].json()["sha256"] == after
        (place / "manifest.json").write_text("{}", encoding="utf-8")
        assert ask("POST", "/v1/admin/reload", {}, admin).status == 409
        assert ask("POST", "/v1/recommend", body, caller).json()["sha256"] == after


def test_a_link_to_the_newest_run_keeps_its_name(saved, serving, tmp_path: Path) -> None:
    link = tmp_path / "newest"
    try:
        link.symlink_to(saved["sasrec"], target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    with serving(link) as ask:
        assert list(ask("GET", "/readyz").json()["models"]) == ["newest"]


def test_a_service_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a model"):
        application({})
    with pytest.raises(DataError, match="does not exist"):
        application(tmp_path / "none")


# -- the page


def test_the_page_stands_alone(ask) -> None:
    page = ask("GET", "/")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    text = page.body.decode()
    linked = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(linked) == 3
    for path in linked:
        assert ask("GET", f"/{path}").status == 200
        text += ask("GET", f"/{path}").body.decode()
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write"):
        assert word not in text
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", text)
