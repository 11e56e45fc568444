"""Requests that wait for a model, put together: one call of the model for all that are alike.

No request waits for others to come. While the model computes, requests gather; when it is free, it
takes those that wait. A model is called in one thread, so that requests never compete for cores.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from diffuserec.errors import ConfigError, DataError
from diffuserec.serving.answers import Asked, lists_of
from diffuserec.serving.served import ServedModel
from diffuserec.serving.wire import Options

Result = TypeVar("Result")
Lists = list[dict[str, Any]]


class OverloadError(Exception):
    """More waits for the models than may wait: ask again later."""


@dataclass(eq=False)
class _Waiting:
    """Histories that wait for their lists."""

    served: ServedModel
    options: Options
    histories: list[Asked]
    answer: asyncio.Future[Lists]


class ModelQueue:
    """The one way to the models of a service.

    Args:
        at_once: histories of one call of a model, at most.
        max_waiting: histories that may wait; more are refused.
        watch: called with the number of histories of each call and the seconds it took.
    """

    def __init__(self, at_once: int, max_waiting: int, watch: Callable[[int, float], None]) -> None:
        self._at_once = at_once
        self._max_waiting = max_waiting
        self._watch = watch
        self._waiting: deque[_Waiting] = deque()
        self._calls = 0
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @property
    def n_waiting(self) -> int:
        """Histories and other calls that wait or are being answered."""
        return sum(len(waiting.histories) for waiting in self._waiting) + self._calls

    async def lists(
        self,
        served: ServedModel,
        options: Options,
        histories: list[Asked],
        patient: bool = False,
    ) -> Lists:
        """A list for each history, see :func:`~diffuserec.serving.answers.lists_of`.

        Many histories go a few at a time, so that others are answered in between.

        Args:
            patient: wait however many wait already; for one job at a time.

        Raises:
            OverloadError: too many wait.
            ConfigError, DataError: the request cannot be answered.
        """
        found: Lists = []
        if not patient and self.n_waiting + len(histories) > self._max_waiting:
            raise OverloadError
        for first in range(0, len(histories), self._at_once):
            answer: asyncio.Future[Lists] = asyncio.get_running_loop().create_future()
            part = histories[first : first + self._at_once]
            self._waiting.append(_Waiting(served, options, part, answer))
            self._news.set()
            found += await answer
        return found

    async def call(self, function: Callable[[], Result]) -> Result:
        """What a function gives that calls a model; it waits for its turn as lists do.

        Raises:
            OverloadError: too many wait.
        """
        if self.n_waiting >= self._max_waiting:
            raise OverloadError
        self._calls += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function)
        finally:
            self._calls -= 1

    async def run(self) -> None:
        """Answers whatever waits, until it is cancelled."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    await self._answer(self._next())
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> list[_Waiting]:
        """The first that waits, and others that can share its call; out of the queue."""
        taken: list[_Waiting] = []
        kept: deque[_Waiting] = deque()
        room = self._at_once
        while self._waiting:
            waiting = self._waiting.popleft()
            if waiting.answer.done():  # whoever asked has gone
                continue
            alike = not taken or (
                waiting.served is taken[0].served and waiting.options == taken[0].options
            )
            if alike and (not taken or len(waiting.histories) <= room):
                taken.append(waiting)
                room -= len(waiting.histories)
            else:
                kept.append(waiting)
        self._waiting = kept
        return taken

    async def _answer(self, taken: list[_Waiting]) -> None:
        if not taken:
            return
        loop = asyncio.get_running_loop()
        served, options = taken[0].served, taken[0].options
        histories = [history for waiting in taken for history in waiting.histories]
        begun = loop.time()
        try:
            lists = await loop.run_in_executor(self._thread, lists_of, served, options, histories)
        except (DataError, ConfigError) as error:
            if len(taken) == 1:
                _give(taken[0].answer, error=error)
                return
            for waiting in taken:  # the one that is at fault gets its own error
                await self._answer([waiting])
            return
        except Exception as error:  # a defect: whoever asked is told, and the queue goes on
            for waiting in taken:
                _give(waiting.answer, error=error)
            return
        self._watch(len(histories), loop.time() - begun)
        first = 0
        for waiting in taken:
            last = first + len(waiting.histories)
            _give(waiting.answer, lists[first:last])
            first = last


def _give(answer: "asyncio.Future[Lists]", lists: Lists | None = None, error: Any = None) -> None:
    """Sets a result, unless whoever asked has gone."""
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(lists or [])
