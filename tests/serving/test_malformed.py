"""Malformed requests: every one is refused, none with a status of 500, and none is waited for.

    DIFFUSEREC_CASES=10000 pytest -m slow --timeout=0 tests/serving/test_malformed.py

sends 10,000; the normal suite sends a few hundred.
"""

import json
import os
import random
import socket
from collections import Counter
from typing import Any

import pytest

HEAD = "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
PATHS = (
    "/v1/recommend",
    "/v1/recommend/batch",
    "/v1/next-items",
    "/v1/items/search",
    "/v1/augment",
    "/v1/admin/reload",
    "/v1/jobs",
    "/mcp",
)
WORDS = (
    *("history", "histories", "k", "model", "allow", "deny", "seed", "mmr", "diversity", "query"),
    *("limit", "item", "n_draws", "filter_seen", "on_unknown", "jsonrpc", "method", "params", "id"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 2**31, 2**63, 2**64, -(2**70), 0.5, -0.0, 1e308, 10**400),
    *("", "i1", "i2", "x" * 700, "\x00", "\u202e", "\ud800", "'; DROP TABLE items; --", "../../x"),
    *("skip", "sasrec", "acvae", "markov", "NaN", "2.0", "tools/call", [], {}, [[]], ["i1"]),
)


def value(dice: random.Random, depth: int = 0) -> Any:
    """Something that JSON can hold, and often should not."""
    kind = dice.random()
    if depth < 3 and kind < 0.15:
        return [value(dice, depth + 1) for _ in range(dice.randint(0, 5))]
    if depth < 3 and kind < 0.3:
        return {word(dice): value(dice, depth + 1) for _ in range(dice.randint(0, 5))}
    return dice.choice(VALUES)


def word(dice: random.Random) -> str:
    return dice.choice(WORDS) if dice.random() < 0.9 else str(dice.choice(VALUES))


def almost_right(dice: random.Random) -> dict[str, Any]:
    """A request that could be answered, with one field of anything."""
    body = {
        "/v1/recommend": {"history": ["i1", "i2"], "k": 3},
        "/v1/recommend/batch": {"histories": [["i1"], ["i2"]], "k": 3},
        "/v1/next-items": {"item": "i1"},
        "/v1/items/search": {"query": "lamp"},
        "/v1/augment": {"history": ["i1"], "model": "markov", "n_draws": 2},
        "/v1/admin/reload": {},
        "/v1/jobs": {"history": ["i1"]},
        "/mcp": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "models"}},
    }
    path = dice.choice(PATHS)
    return {"path": path, "body": {**body[path], word(dice): value(dice)}}


def request(dice: random.Random) -> bytes:
    """A request as it goes over the line: fields, JSON, headers or the line itself are wrong."""
    kind = dice.random()
    path = dice.choice(PATHS)
    if kind < 0.5:
        asked = almost_right(dice)
        path, body = asked["path"], json.dumps(asked["body"]).encode()
    elif kind < 0.65:
        body = json.dumps(value(dice)).encode()
    elif kind < 0.75:
        body = json.dumps({word(dice): value(dice) for _ in range(4)}).encode()
        at = dice.randrange(len(body))
        body = body[:at] + dice.randbytes(dice.randint(0, 3)) + body[at + 1 :]
    elif kind < 0.8:
        body = dice.choice([b"[", b'{"a":', b'"\\ud800', b"9", b" "]) * dice.choice([1, 900, 5000])
    elif kind < 0.9:
        return strange_head(dice)
    elif kind < 0.95:
        return dice.randbytes(dice.randint(1, 300)) + b"\r\n\r\n"
    else:
        body = dice.randbytes(dice.randint(0, 300))
    head = HEAD.format(path=path) + f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    if path == "/v1/jobs" or dice.random() < 0.03:
        head = head.replace("application/json", "application/x-ndjson")
    if dice.random() < 0.2:
        head += "Accept: application/json, text/event-stream\r\n"
    return head.encode() + b"\r\n" + body


def strange_head(dice: random.Random) -> bytes:
    """A head that a careful server refuses, or a path that leads nowhere."""
    method = dice.choice(["GET", "POST", "PUT", "BREW", "get", "OPTIONS", "TRACE", "CONNECT", ""])
    path = dice.choice(
        [
            *(
                "/",
                "*",
                "//",
                "/v1/%00",
                "/page/../../../etc/passwd",
                "/page/%2e%2e%2f",
                "/v1/models/",
            ),
            *("/v1/jobs/" + "0" * 32, "/v1/jobs/..", "/?" + "q=" * 400, "/" + "a" * 20_000, "x y"),
            *(
                "/metrics",
                "/openapi.json",
                "http://evil.example/",
                "/%ff",
                "/v1/models/%F0%9F%92%A9",
            ),
        ]
    )
    extra = dice.choice(
        [
            *("Content-Length: -1", "Content-Length: 1e3", "Content-Length: 99999999999999999999"),
            *("Transfer-Encoding: chunked", "Transfer-Encoding: x", "Host: a\r\nHost: b"),
            *("Authorization: Bearer \xff", "X-Request-ID: " + "a" * 999, "Cookie: " + "a=b;" * 99),
            *("Origin: ://", "Origin: http://[::1", "Content-Encoding: br", "Expect: 100-continue"),
            *("Upgrade: websocket\r\nConnection: Upgrade", "Range: bytes=0-", "X: \x00", ""),
        ]
    )
    host = dice.choice(["Host: localhost\r\n", "", "Host: [::1\r\n", "Host: a:b:c\r\n"])
    head = (
        f"{method} {path} HTTP/{dice.choice(['1.1', '1.1', '1.0', '9'])}\r\n{host}{extra}\r\n\r\n"
    )
    return head.encode("latin-1") + dice.choice([b"", b"0\r\n\r\n", b"zz\r\n"])


def status_of(port: int, sent: bytes) -> int:
    """The status that comes back; 0 if the connection is closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        try:
            line.sendall(sent)
            answer = line.recv(65_536)
        except ConnectionError:  # closed in the middle of what it refused to read
            return 0
    return int(answer.split(b" ", 2)[1]) if answer else 0


def campaign(serving: Any, saved: Any, folder: Any, n: int) -> None:
    seen: Counter[int] = Counter()
    with serving(saved, assistants=True, jobs=folder, timeout=0.5, max_jobs=20) as ask:
        for number in range(n):
            sent = request(random.Random(number))
            status = status_of(ask.port, sent)
            seen[status] += 1
            assert status != 500, f"case {number}: {sent[:300]!r}"
        assert ask.recommend(["i1"]).status == 200
    print(dict(sorted(seen.items())))
    assert sum(count for status, count in seen.items() if 400 <= status < 500) > n / 3


def test_some_malformed_requests(serving, saved, tmp_path) -> None:
    campaign(serving, saved, tmp_path / "jobs", 300)


@pytest.mark.slow
def test_many_malformed_requests(serving, saved, tmp_path) -> None:
    campaign(serving, saved, tmp_path / "jobs", int(os.environ.get("DIFFUSEREC_CASES", "10000")))
