"""Settings of a service: its limits, who may ask, and where jobs are kept."""

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from diffuserec.errors import ConfigError, DataError
from diffuserec.models.config import Settings, parse_settings

KEYS_VARIABLE = "DIFFUSEREC_KEYS"
"""Environment variable that may hold the lines of a file of keys."""

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names and addresses by which only a machine itself is reached."""

_SHORTEST_KEY = 16
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LARGEST_FILE = 2**20


class Limits(Settings):
    """What a service accepts; whatever is beyond is refused with a status of 4xx or 503."""

    max_k: Annotated[int, Field(ge=1)] = 100
    """Longest list."""
    max_history: Annotated[int, Field(ge=1)] = 1000
    """Most items of one history."""
    max_batch: Annotated[int, Field(ge=1)] = 256
    """Most histories of one request."""
    max_draws: Annotated[int, Field(ge=1)] = 32
    """Most noise draws that a request may ask for."""
    max_body: Annotated[int, Field(ge=1024)] = 2**20
    """Bytes of the largest request, but for jobs."""
    max_job_body: Annotated[int, Field(ge=1024)] = 2**28
    """Bytes of the largest job."""
    max_jobs: Annotated[int, Field(ge=1)] = 100
    """Jobs that may be kept at a time, finished ones included."""
    max_waiting: Annotated[int, Field(ge=1)] = 512
    """Histories that may wait for a model before further requests get a 503."""
    at_once: Annotated[int, Field(ge=1)] = 32
    """Histories that a model is called with at a time; requests that wait are put together."""
    rate: Annotated[float, Field(ge=0)] = 0.0
    """Requests a second that one caller may make, twice as many in a burst; 0 does not count."""
    timeout: Annotated[float, Field(gt=0)] = 10.0
    """Seconds in which a request must be sent, and seconds in which it is answered."""


@dataclass(frozen=True)
class Caller:
    """Whoever a key belongs to.

    Attributes:
        name: for logs, metrics and rates.
        is_admin: whether it may change models.
    """

    name: str
    is_admin: bool = False


@dataclass(frozen=True)
class Keys:
    """API keys. Only their digests are kept, so that no log and no error can show one.

    Attributes:
        digests: the SHA-256 of each key, and whose it is.
    """

    digests: Mapping[bytes, Caller] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    def caller(self, key: str) -> Caller | None:
        """Whose key this is, found in a time that tells nothing of the keys; None if nobody's."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for digest, caller in self.digests.items():  # all of them, whichever fits
            if hmac.compare_digest(digest, given):
                found = caller
        return found


def read_keys(file: Path | None) -> Keys:
    """The keys of a file, or of the environment variable DIFFUSEREC_KEYS if no file is given.

    A line is ``NAME KEY``, or ``NAME KEY admin`` for somebody who may change models. Empty lines
    and lines that begin with # are passed over. In the variable, commas may stand for line ends.

    Raises:
        DataError: the file cannot be read.
        ConfigError: a line is not of that form, a key is short, or a name or key stands twice.
    """
    if file is None:
        source = f"the environment variable {KEYS_VARIABLE}"
        lines = os.environ.get(KEYS_VARIABLE, "").replace(",", "\n").splitlines()
    else:
        source = str(file)
        try:
            if file.stat().st_size > _LARGEST_FILE:
                raise DataError(f"{file} is too large for a file of keys")
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise DataError(f"{file} cannot be read: {reason}") from error
    digests: dict[bytes, Caller] = {}
    names = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{source}, line {number}"
        name, *rest = line.split()
        if not rest or rest[1:] not in ([], ["admin"]) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: a key is written NAME KEY or NAME KEY admin, the name in letters, "
                "digits, '.', '_' and '-'"
            )
        if len(rest[0]) < _SHORTEST_KEY:
            raise ConfigError(
                f"{where}: the key of {name} has fewer than {_SHORTEST_KEY} characters: make one "
                'with python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        digest = hashlib.sha256(rest[0].encode()).digest()
        if name in names or digest in digests:
            raise ConfigError(f"{where}: the name {name} or its key stands twice")
        names.add(name)
        digests[digest] = Caller(name, is_admin=bool(rest[1:]))
    if file is not None and not digests:
        raise ConfigError(f"{file} holds no key: write a line NAME KEY for each caller")
    return Keys(digests)


@dataclass(frozen=True)
class ServiceSettings:
    """All that an application is made from, besides its models.

    Attributes:
        limits: what is accepted.
        keys: who may ask; without any, everyone who reaches the service may.
        jobs: directory of batch jobs; None takes no jobs.
        assistants: whether assistants may ask at /mcp (Model Context Protocol).
        approximate: whether lists are found by an index of each model's items, which is made when
            it is missing; for catalogs of a million items.
        local: accept only requests to this machine's own names, so that no web page elsewhere can
            reach a service without keys through the browser of somebody here.
    """

    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    jobs: Path | None = None
    assistants: bool = False
    approximate: bool = False
    local: bool = False


def service_settings(
    limits: Mapping[str, Any],
    *,
    keys: Path | None = None,
    jobs: Path | None = None,
    assistants: bool = False,
    approximate: bool = False,
    host: str = "127.0.0.1",
) -> ServiceSettings:
    """Settings of a service that listens at an address.

    Without keys, a service at an address of this machine alone answers requests to its own names
    alone.

    Args:
        limits: those that are not the defaults, by name.
        keys: file of keys; else the environment variable is read.

    Raises:
        ConfigError: a limit is not known or not allowed, a key is badly written, or the package
            for assistants is not installed.
        DataError: the file of keys cannot be read.
    """
    if assistants and find_spec("mcp") is None:
        raise ConfigError("assistants need the package mcp: pip install 'diffuserec[mcp]'")
    found = read_keys(keys)
    return ServiceSettings(
        limits=parse_settings(Limits, limits, "limits"),
        keys=found,
        jobs=jobs,
        assistants=assistants,
        approximate=approximate,
        local=not found and host in LOCAL_NAMES,
    )
