"""Worker processes: each does one piece of work at a time and tells what came of it.

A process that dies, for want of memory say, is an event like another and is replaced. Workers end
when the process that started them does, however it ended.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Epoch, Runtime

Work = Callable[[Runtime], Any]
"""A piece of work: a function that can be sent to a process, called with the runtime."""


@dataclass(frozen=True)
class Event:
    """What a piece of work told.

    Attributes:
        key: of the work.
        kind: ``epoch``, ``done`` or ``failed``.
        value: the record of the epoch, what the work returned, or one line that says why it failed.
    """

    key: str
    kind: str
    value: Any


class Workers:
    """Processes that work side by side.

    Args:
        n: how many; 1 works in this process.
        runtime: given to all work; its hook is replaced.
        threads: of each process; None leaves them alone.
    """

    def __init__(self, n: int, runtime: Runtime, threads: int | None = 1) -> None:
        self.n = n
        self._runtime = replace(runtime, progress=False)
        self._threads = threads
        self._busy: dict[Connection, tuple[str, BaseProcess]] = {}
        self._idle: list[tuple[Connection, BaseProcess]] = []
        self._here: tuple[str, Work] | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for end, process in [*self._idle, *((end, p) for end, (_, p) in self._busy.items())]:
            process.terminate()
            process.join()
            end.close()

    @property
    def n_busy(self) -> int:
        """Pieces of work that have not ended."""
        return len(self._busy) + (self._here is not None)

    def submit(self, key: str, work: Work) -> None:
        """Begins a piece of work; fewer than `n` may be busy."""
        if self.n == 1:
            self._here = (key, work)
            return
        while True:
            end, process = self._idle.pop() if self._idle else self._start()
            try:
                end.send((key, work))
            except OSError:  # it ended while it was idle
                process.join()
                end.close()
                continue
            self._busy[end] = (key, process)
            return

    def events(self) -> Iterator[Event]:
        """What happened since the last call; waits until something has."""
        if self._here is not None:
            key, work = self._here
            found: list[Event] = []
            hook = _telling(lambda epoch: found.append(Event(key, "epoch", epoch)))
            before = torch.get_num_threads()
            torch.set_num_threads(self._threads or before)
            try:
                found.append(result_of(key, work, replace(self._runtime, on_epoch=hook)))
            finally:
                torch.set_num_threads(before)
                self._here = None
            yield from found
            return
        ready = connection.wait(list(self._busy))
        for end in [end for end in self._busy if end in ready]:
            key, process = self._busy[end]
            try:
                event: Event = end.recv()
            except (EOFError, OSError):  # the process has ended, and with it its side of the pipe
                process.join()
                del self._busy[end]
                end.close()
                yield Event(key, "failed", f"its process ended with status {process.exitcode}")
                continue
            if event.kind != "epoch":
                del self._busy[end]
                self._idle.append((end, process))
            yield event

    def _start(self) -> tuple[Connection, BaseProcess]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, self._runtime, self._threads)
        process = context.Process(target=_work, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return ours, process


def _work(end: Connection, runtime: Runtime, threads: int | None) -> None:
    """What a worker does: one piece of work after the other, until nobody listens any more."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the runner, which has it too, ends its workers
    if threads is not None:
        torch.set_num_threads(threads)
    while True:
        try:
            key, work = end.recv()
        except (EOFError, KeyboardInterrupt):
            return
        hook = _telling(partial(_send, end, key))
        end.send(result_of(key, work, replace(runtime, on_epoch=hook)))


def _send(end: Connection, key: str, epoch: Epoch) -> None:
    end.send(Event(key, "epoch", epoch))


def _telling(tell: Callable[[Epoch], None]) -> Callable[[Epoch], bool]:
    """A hook that tells of each epoch and never stops a fit."""

    def hook(epoch: Epoch) -> bool:
        tell(epoch)
        return False

    return hook


def result_of(key: str, work: Work, runtime: Runtime) -> Event:
    try:
        return Event(key, "done", work(runtime))
    except (DataError, ConfigError, OSError) as error:
        return Event(key, "failed", str(error).partition("\n")[0])
    except Exception as error:  # a defect in one method must not end the others' work
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{os.path.basename(where.filename)}, line {where.lineno}"
        return Event(
            key, "failed", f"{type(error).__name__} in {place}: {error}".partition("\n")[0]
        )


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
