"""The door of a service: who may come in, with how much, how often, and how errors leave.

A plain ASGI middleware around the whole application, so that nothing is answered without it.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from diffuserec.serving.observation import LOGGER, Metrics, tell
from diffuserec.serving.settings import LOCAL_NAMES, Caller, ServiceSettings

OPEN = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
"""Paths that need no key, besides the files of the page."""

JSON = "application/json"
LINES = "application/x-ndjson"
"""Type of what is sent to and comes from jobs: a JSON object a line."""

PARQUET = "application/vnd.apache.parquet"
"""Type of a job that is sent as a Parquet file."""

METRICS = "/metrics"
PAGE = "/page/"
ASSISTANTS = "/mcp"
JOBS = "/v1/jobs"

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CALLERS = 10_000
_PATIENCE_WITH_FILES = 60
"""Times as long as a request that a file of a job may take to come or go."""


class RefusedError(Exception):
    """A request that is refused: becomes one line of JSON.

    Args:
        status: of HTTP.
        message: what was wrong and what to do, for whoever asked.
        reason: a word for the metrics; empty for what is no refusal at the door.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self, status: int, message: str, reason: str = "", retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.reason = reason
        self.retry_after = retry_after


@dataclass
class Visit:
    """What the door knows of a request; the application finds it in ``scope["state"]``.

    Attributes:
        request_id: the caller's own, or a new one.
        caller: whose key it came with; anonymous without keys.
        facts: further facts for the log.
    """

    request_id: str
    caller: Caller
    facts: dict[str, Any] = field(default_factory=dict)


class Buckets:
    """Requests a second by caller: a bucket of twice as many tokens for each.

    Args:
        rate: tokens a second; 0 gives everyone all they want.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._size = max(1.0, 2 * rate)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_of(self, name: str, now: float) -> float:
        """Takes a token; 0, or the seconds until there is one."""
        if not self._rate:
            return 0.0
        left, when = self._left.pop(name, (self._size, now))
        left = min(self._size, left + (now - when) * self._rate)
        wait = 0.0 if left >= 1 else (1 - left) / self._rate
        self._left[name] = (left - (wait == 0), now)
        if len(self._left) > _CALLERS:
            self._left.popitem(last=False)
        return wait


class Guard:
    """Middleware that lets requests in, counts and logs them, and answers for what goes wrong.

    Args:
        app: the application inside.
        settings: limits and keys.
        metrics: to count in.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._buckets = Buckets(settings.limits.rate)
        self._failures = Buckets(1.0)
        self._n_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        begun = time.perf_counter()
        headers = _headers(scope)
        given = headers.get("x-request-id", "")
        visit = Visit(
            given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex, Caller("anonymous")
        )
        scope.setdefault("state", {})["visit"] = visit
        answer = _Answer(send, visit.request_id)
        self._n_inside += 1
        try:
            await self._let_in(scope, headers, receive, answer, visit)
        except RefusedError as refusal:
            if refusal.reason:
                self._metrics.refused.labels(refusal.reason).inc()
            await answer.refuse(refusal)
        except TimeoutError:
            self._metrics.refused.labels("timeout").inc()
            await answer.refuse(
                RefusedError(
                    503, "the answer took too long: try again, or ask for less", retry_after=1
                )
            )
        except ClientDisconnect:
            visit.facts["gone"] = True
        except Exception:  # a defect: the trace is for the log, never for whoever asked
            LOGGER.exception("defect", extra={"facts": {"request_id": visit.request_id}})
            await answer.refuse(RefusedError(500, "something went wrong in the service"))
        finally:
            self._n_inside -= 1
            self._note(scope, visit, answer.status, time.perf_counter() - begun)

    async def _let_in(
        self,
        scope: Scope,
        headers: dict[str, str],
        receive: Receive,
        answer: "_Answer",
        visit: Visit,
    ) -> None:
        limits = self._settings.limits
        path = scope["path"]
        self._require_place(headers)
        address = (scope.get("client") or ("unknown", 0))[0]
        self._require_caller(path, headers, visit, address)
        watching = path in OPEN or path == METRICS  # is told of an overload, and not refused by it
        if self._n_inside > 2 * limits.max_waiting and not watching:
            raise RefusedError(503, "too many requests at a time", "overload", retry_after=1)
        known = visit.caller.name if self._settings.keys else address
        if path not in OPEN and not path.startswith(PAGE):
            wait = self._buckets.wait_of(known, time.monotonic())
            if wait:
                raise RefusedError(
                    429,
                    f"more than {limits.rate:g} requests a second: try again later",
                    "rate",
                    retry_after=max(1, round(wait)),
                )
        if headers.get("content-encoding", "identity") != "identity":
            raise RefusedError(415, "a request must not be compressed", "encoding")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        is_job = path == JOBS or path.startswith(f"{JOBS}/")
        largest = limits.max_job_body if is_job else limits.max_body
        _require_length(headers, largest)
        wanted = (LINES, PARQUET) if is_job else (JSON,)
        if scope["method"] == "POST" and kind not in wanted:
            raise RefusedError(415, f"send it as 'Content-Type: {' or '.join(wanted)}'", "type")
        if is_job:  # large files come and go, from and to the disk
            async with asyncio.timeout(_PATIENCE_WITH_FILES * limits.timeout):
                await self._app(scope, _bounded(receive, largest), answer)
            return
        try:
            async with asyncio.timeout(limits.timeout):
                body = await _body(receive, largest)
        except TimeoutError:
            raise RefusedError(408, "the request was not sent in time", "slow") from None
        async with asyncio.timeout(limits.timeout):
            await self._while_there(scope, body, receive, answer)

    async def _while_there(
        self, scope: Scope, body: bytes, receive: Receive, answer: "_Answer"
    ) -> None:
        """Answers a request whose body was read; stops if whoever asked closes the connection."""
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        gone = asyncio.create_task(_disconnection(receive))

        async def again() -> Message:
            return pending.pop() if pending else await asyncio.shield(gone)

        answering = asyncio.ensure_future(self._app(scope, again, answer))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise ClientDisconnect
            answering.result()
        finally:
            gone.cancel()
            if answering.cancel():
                await asyncio.wait((answering,))

    def _require_place(self, headers: dict[str, str]) -> None:
        """Refuses what a page elsewhere makes somebody's browser send."""
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RefusedError(403, "requests of other sites' pages are not answered", "origin")
        if self._settings.local and _name_of(host) not in LOCAL_NAMES:
            raise RefusedError(403, "without keys, only requests to localhost are answered", "host")

    def _require_caller(
        self, path: str, headers: dict[str, str], visit: Visit, address: str
    ) -> None:
        """Finds out who asks; whoever guesses keys gets slower."""
        keys = self._settings.keys
        if not keys or path in OPEN or path.startswith(PAGE):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            key = headers.get("x-api-key", "")
        caller = keys.caller(key.strip()) if key else None
        if caller is None:
            wait = self._failures.wait_of(address, time.monotonic())
            if wait:
                raise RefusedError(429, "too many wrong keys", "key", retry_after=max(1, int(wait)))
            raise RefusedError(
                401, "this service needs a key: send it as 'Authorization: Bearer KEY'", "key"
            )
        visit.caller = caller

    def _note(self, scope: Scope, visit: Visit, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "none"
        if scope["path"] == ASSISTANTS and status != 404:
            route = ASSISTANTS
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.requests.labels(route, method, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        tell(
            "request",
            logging.WARNING if status >= 500 else logging.INFO,
            request_id=visit.request_id,
            caller=visit.caller.name,
            route=route,
            method=method,
            status=status,
            ms=round(1000 * seconds, 2),
            **visit.facts,
        )


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Answer:
    """Sends an answer with the headers that all have, or a refusal in its place."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._headers = [
            (name.encode(), value.encode())
            for name, value in {**HEADERS, "x-request-id": request_id}.items()
        ]
        self._request_id = request_id
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = list(message.get("headers", ()))
            names = {name for name, _ in own}
            message = {
                **message,
                "headers": own + [pair for pair in self._headers if pair[0] not in names],
            }
        await self._send(message)

    async def refuse(self, refusal: RefusedError) -> None:
        """Answers with one line of JSON, unless an answer has begun."""
        if self.status:
            return
        body = error_line(refusal.status, refusal.message, self._request_id)
        headers = [
            (b"content-type", JSON.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        if refusal.retry_after is not None:
            headers.append((b"retry-after", str(refusal.retry_after).encode()))
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if refusal.status in (408, 413):  # the rest of the request is not read
            headers.append((b"connection", b"close"))
        await self({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self({"type": "http.response.body", "body": body})


def error_line(status: int, message: str, request_id: str) -> bytes:
    """The body of an error: one line of JSON."""
    content = {"error": message, "status": status, "request_id": request_id}
    return json.dumps(content).encode()


def _name_of(host: str) -> str | None:
    """The name in a host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _headers(scope: Scope) -> dict[str, str]:
    """Headers by name; of one that is sent twice, the last."""
    pairs: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}


def _require_length(headers: dict[str, str], largest: int) -> None:
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise RefusedError(400, "content-length must be a number", "length")
    if len(length) > 15 or int(length) > largest:
        raise _too_large(largest)


def _too_large(largest: int) -> RefusedError:
    return RefusedError(413, f"a request of this kind has at most {largest:,} bytes", "body")


async def _body(receive: Receive, largest: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > largest:
            raise _too_large(largest)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _disconnection(receive: Receive) -> Message:
    """The message that the connection was closed, when it comes."""
    message = await receive()
    while message["type"] != "http.disconnect":
        message = await receive()
    return message


def _bounded(receive: Receive, largest: int) -> Receive:
    """Messages of a body that may not become larger than this."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > largest:
            raise _too_large(largest)
        return message

    return counted
