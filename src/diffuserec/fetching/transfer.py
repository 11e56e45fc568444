"""Fetching a file over HTTPS: resumed where it was cut, from the next address where one fails."""

import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diffuserec import __version__
from diffuserec.errors import DataError
from diffuserec.files import cause_of, telling, write_json

Progress = Callable[[int, int | None], None]
"""Is told the bytes that are there, and how many there will be if that is known."""

TRIES = 3
"""Times that an address is asked before the next one is."""

TIMEOUT = 30.0
"""Seconds without a byte after which a transfer counts as broken."""

LARGEST = 2**37
"""Bytes beyond which no file is fetched if its size is not known before."""

_BLOCK = 2**18


class Broken(Exception):
    """A transfer that came to nothing, or not to its end: says why."""

    def __init__(self, why: str, again: bool = True) -> None:
        super().__init__(why)
        self.again = again


@dataclass(frozen=True)
class Part:
    """What is there of a file so far, and whose it is.

    Attributes:
        path: of the bytes; beside it, ``NAME.json`` says the address and the version they are of.
    """

    path: Path

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def version(self, url: str) -> str | None:
        """The version of the file at an address that the bytes are of; None if of another."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            return str(note["version"]) if note["url"] == url and self.path.exists() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin(self, url: str, version: str | None) -> None:
        """Nothing is there; what comes is of this version."""
        self.drop()
        if version:
            write_json(self._note, {"url": url, "version": version})

    def drop(self) -> None:
        """Removes the bytes and the note."""
        for path in (self.path, self._note):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the note alone: the file is whole."""
        self._note.unlink(missing_ok=True)


def download(url: str, part: Part, size: int | None, progress: Progress) -> None:
    """Brings a file to where its part is, and goes on from there.

    Args:
        size: bytes it must have, if known.

    Raises:
        Broken: it cannot be had from this address; what came of it is kept.
        DataError: it cannot be written, or would not fit.
    """
    for attempt in range(TRIES):
        try:
            _once(url, part, size, progress)
            part.close()
            return
        except Broken as error:
            if not error.again or attempt == TRIES - 1:
                raise
            time.sleep(0.1 * 4**attempt)


def _once(url: str, part: Part, size: int | None, progress: Progress) -> None:
    version = part.version(url)
    there = part.path.stat().st_size if version else 0
    if version and there == size:
        return
    headers = {"User-Agent": f"diffuserec/{__version__}", "Accept-Encoding": "identity"}
    if version and there:
        headers |= {"Range": f"bytes={there}-", "If-Range": version}
    try:
        with _open(url, headers) as answer:
            if answer.status == 206 and _goes_on(answer.headers, there, version):
                start = there
            elif answer.status == 200:
                start = 0
                with telling(part.path):
                    part.begin(url, _version_of(answer.headers))
            else:
                part.drop()
                raise Broken(f"{url}: unexpected answer (HTTP {answer.status})")
            total = _total(answer.headers, start)
            if size is not None and total not in (None, size):
                part.drop()
                raise Broken(f"{url}: has {total:,} bytes, expected {size:,}", again=False)
            _require_room(part.path, (size or total or 0) - start)
            _receive(answer, part, start, size or total, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            part.drop()
        raise Broken(
            f"{url}: {_one_line(error.reason)} (HTTP {error.code})",
            again=error.code in (408, 416, 429) or error.code >= 500,
        ) from error
    except urllib.error.URLError as error:
        why = error.reason
        raise Broken(
            f"{url}: {cause_of(why) if isinstance(why, Exception) else _one_line(why)}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise Broken(f"{url}: the transfer broke ({cause_of(error)})") from error


def _receive(
    answer: http.client.HTTPResponse, part: Part, start: int, total: int | None, progress: Progress
) -> None:
    done = start
    with telling(part.path):
        file = part.path.open("ab")
    with file:
        while True:
            progress(done, total)
            block = answer.read1(_BLOCK)
            if not block:
                break
            done += len(block)
            if done > (LARGEST if total is None else total):
                raise Broken(f"{answer.url}: sends more than it said", again=False)
            with telling(part.path):
                file.write(block)
    if total is not None and done < total:
        raise Broken(f"{answer.url}: broke off after {done:,} of {total:,} bytes")


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The answer of an address; its headers have come, its content has not."""
    if not _allowed(url, url):
        raise Broken(f"{url}: only https:// is fetched from", again=False)
    opener = urllib.request.OpenerDirector()  # the usual one reads file:// and ftp://, too
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirect(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers=headers)
    answer: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT)
    return answer


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirections to HTTPS alone."""

    max_redirections = 5

    def redirect_request(
        self,
        request: urllib.request.Request,
        file: Any,
        code: int,
        message: str,
        headers: http.client.HTTPMessage,
        url: str,
    ) -> urllib.request.Request | None:
        if not _allowed(url, request.full_url):
            raise Broken(f"{request.full_url}: leads to {_one_line(url)}: refused", again=False)
        return super().redirect_request(request, file, code, message, headers, url)


def _allowed(url: str, asked: str) -> bool:
    """HTTPS; from this machine itself, whose server needs no certificate, HTTP to itself."""
    return urlsplit(url).scheme == "https" or (_loopback(url) and _loopback(asked))


def _loopback(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")


def _version_of(headers: Message) -> str | None:
    """What tells this version of a file from others; None if nothing is certain enough."""
    tag: str | None = headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return headers.get("Last-Modified")


def _goes_on(headers: Message, start: int, version: str | None) -> bool:
    """Whether a part of a file is the one that was asked for, and of the same version."""
    same = _version_of(headers) in (None, version)
    return same and headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _total(headers: Message, start: int) -> int | None:
    length = headers.get("Content-Length", "")
    return start + int(length) if length.isascii() and length.isdigit() else None


def _require_room(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if n_bytes > free:
        raise DataError(
            f"{path.parent}: {n_bytes:,} bytes are needed and {free:,} are free: make room, or "
            "choose another --out"
        )


def _one_line(text: Any) -> str:
    return " ".join(str(text).split())[:200]


def put_aside(found: Path, path: Path) -> Path:
    """Moves a file that is not what it should be at a path to ``NAME.wrong`` beside that path."""
    aside = path.with_name(f"{path.name}.wrong")
    with telling(aside):
        found.replace(aside)
    return aside
