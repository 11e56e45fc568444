"""The service as a process: uvicorn, signals, and connections that say nothing."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from diffuserec.errors import ConfigError, DataError
from diffuserec.serving.application import application
from diffuserec.serving.observation import log_lines, tell
from diffuserec.serving.settings import ServiceSettings

_SILENT_SECONDS = 15.0
"""Seconds that a connection may take to send the head of a request."""

_GRACE_SECONDS = 30
"""Seconds that requests have to end after a termination."""


def serve(paths: Mapping[str, Path], settings: ServiceSettings, host: str, port: int) -> None:
    """Serves models until Ctrl-C or a termination; requests that were begun are answered first.

    SIGHUP loads all models again. Events are lines of JSON on standard error.

    Args:
        paths: the directory of each model by its name.
        settings: limits, keys and the like.
        host: address to listen at.
        port: 0 takes a free one, which the first line says.

    Raises:
        ConfigError: other machines could reach it and there are no keys.
        DataError: a model cannot be read, or the address is not free.
    """
    if not settings.keys and not settings.local:
        raise ConfigError(
            f"everyone who reaches {host} could ask: give --keys FILE, or listen at 127.0.0.1"
        )
    with log_lines():
        app = application(paths, settings)
        with _listening(host, port) as listener:
            asyncio.run(_serve(app, listener))


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that takes connections at an address.

    Raises:
        DataError: the address is not free, or not one of this machine.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        # asyncio sends small answers at once only where the protocol is said to be TCP
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise _cannot_listen(host, port, error) from error
    with listener:
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        yield listener


def _cannot_listen(host: str, port: int, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error)
    return DataError(f"{host}, port {port}: cannot listen there: {reason}")


async def _serve(app: FastAPI, listener: socket.socket) -> None:
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    tell("listening", url=f"http://{shown}:{port}")
    if hasattr(signal, "SIGHUP"):
        loop = asyncio.get_running_loop()
        reloads: set[asyncio.Task[None]] = set()

        def reload() -> None:
            task = asyncio.create_task(app.state.service.reload_all())
            reloads.add(task)  # or it might be collected before it ends
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, reload)
    await server.serve(sockets=[listener])
    tell("ended")


class _Server(uvicorn.Server):
    """Ends on a signal, and does not raise the signal again afterwards: that end was asked for."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes no more requests; a second Ctrl-C does not wait for those that were begun."""
        tell("ending", signal=signal.Signals(sig).name)
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class _Connection(H11Protocol):
    """A connection that is closed if it does not send the head of a request for some time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(_SILENT_SECONDS, self._check, self)

    def _check(self, before: object) -> None:
        """Closes the connection if nothing happened since the last check.

        Args:
            before: the last request, if it had been answered by the time of that check.
        """
        if self.transport.is_closing():
            return
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is before:
            self.transport.close()
            return
        self.loop.call_later(_SILENT_SECONDS, self._check, self.cycle if is_idle else self)
