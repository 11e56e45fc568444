"""What the service does, whoever asks: models, the queue to them, limits, metrics."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from diffuserec.data import RawId
from diffuserec.errors import ConfigError, DataError
from diffuserec.serving import wire
from diffuserec.serving.answers import Asked, agreement, named, written
from diffuserec.serving.batching import ModelQueue
from diffuserec.serving.guard import RefusedError, Visit
from diffuserec.serving.jobs import Jobs
from diffuserec.serving.observation import Metrics, tell
from diffuserec.serving.served import Models, ServedModel
from diffuserec.serving.settings import ServiceSettings


class Service:
    """What the routes do: models, the queue to them, limits, metrics.

    Args:
        paths: the directory of each model by its name; the first answers where none is named.
        settings: limits, keys and the like.
    """

    def __init__(self, paths: Mapping[str, Path], settings: ServiceSettings) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.metrics = Metrics()
        self.models = Models(paths, settings.approximate)
        self.jobs: Jobs | None = None
        self._loading = asyncio.Lock()
        for served in self.models.all():
            self._tell_model(served)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answers requests and works at jobs while the block lasts."""
        self.queue = ModelQueue(self.limits.at_once, self.limits.max_waiting, self._watch)
        self.metrics.waiting.set_function(lambda: self.queue.n_waiting)
        tasks = [asyncio.create_task(self.queue.run())]
        if self.settings.jobs is not None:
            self.jobs = Jobs(self.settings.jobs, self.limits, self.models, self.queue, self.metrics)
            tasks.append(asyncio.create_task(self.jobs.run()))
        try:
            yield
        finally:
            for task in reversed(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.jobs is not None:
                self.jobs.close()

    async def lists(
        self,
        model: str | None,
        options: wire.Options,
        asked: list[Asked],
        visit: Visit,
    ) -> tuple[ServedModel, list[dict[str, Any]]]:
        """Lists of histories, and the model that answered; checked, counted and noted.

        Raises:
            RefusedError: more than the limits allow, or too much waits.
            ConfigError, DataError: the request cannot be answered.
        """
        served = self.model(model)
        self.check_options(options)
        self.check_histories([one.history for one in asked])
        lists = await self.queue.lists(served, options, asked)
        for found in lists:
            self.metrics.answered.labels(served.name, found["source"] or "none").inc()
        n_unknown = sum(found["n_unknown"] for found in lists)
        self.metrics.unknown.labels(served.name).inc(n_unknown)
        visit.facts |= {"model": served.name, "histories": len(asked), "unknown": n_unknown}
        return served, lists

    def search(
        self, model: str | None, query: str, limit: int
    ) -> tuple[ServedModel, list[dict[str, Any]]]:
        """Items by name or id.

        Raises:
            RefusedError: more than the limits allow.
            ConfigError: there is no such model.
        """
        served = self.model(model)
        self._at_most("limit", limit, self.limits.max_k)
        return served, named(served, served.search.find(query, limit))

    def model(self, name: str | None) -> ServedModel:
        """The model of that name, or the first one.

        Raises:
            RefusedError: there is none of that name.
        """
        try:
            return self.models[name]
        except ConfigError as error:
            raise RefusedError(404, str(error)) from error

    def check_options(self, options: wire.Options) -> None:
        """Raises RefusedError where options exceed the limits."""
        self._at_most("k", options.k, self.limits.max_k)
        if options.n_draws is not None:
            self._at_most("n_draws", options.n_draws, self.limits.max_draws)

    def check_histories(self, histories: Sequence[Sequence[RawId]]) -> None:
        """Raises RefusedError where histories exceed the limits."""
        self._at_most("the number of histories", len(histories), self.limits.max_batch)
        longest = max(map(len, histories), default=0)
        self._at_most("the length of a history", longest, self.limits.max_history)

    def _at_most(self, what: str, value: int, largest: int) -> None:
        if value > largest:
            raise RefusedError(422, f"{what} must be at most {largest:,}, got {value:,}")

    async def augment(self, request: wire.AugmentRequest) -> dict[str, Any]:
        """What the augmenter of a model writes into a history.

        Raises:
            RefusedError: more than the limits allow.
            ConfigError, DataError: the model has none, or it cannot work on this history.
        """
        served = self.model(request.model)
        self.check_histories([request.history])
        self._at_most("n_draws", request.n_draws, self.limits.max_draws)
        history = request.history
        draws = []
        for seed in range(request.seed, request.seed + request.n_draws):  # others get in between
            draws.append(await self.queue.call(partial(written, served, history, seed)))
        assert served.augmenter is not None
        return {
            "model": served.name,
            "augmenter": served.augmenter.name,
            "training_only": served.augmenter.training_only,
            "n_draws": request.n_draws,
            "n_unknown": int((served.model.catalog.encode(history) == 0).sum()),
            "sequences": agreement(served, draws),
        }

    async def reload(self, name: str) -> ServedModel:
        """Loads a model's directory again, while requests go on; the old one stays on an error.

        Raises:
            DataError, ConfigError: it cannot be loaded.
        """
        async with self._loading:
            try:
                served = await asyncio.to_thread(self.models.reload, name)
            except (DataError, ConfigError) as error:
                self.metrics.reloads.labels("failed").inc()
                tell("reload failed", logging.ERROR, model=name, error=str(error))
                raise
        self.metrics.reloads.labels("done").inc()
        self._tell_model(served)
        return served

    async def reload_all(self) -> None:
        """Loads all models again; those that cannot be loaded stay as they were."""
        for served in self.models.all():
            with contextlib.suppress(DataError, ConfigError):
                await self.reload(served.name)

    def _tell_model(self, served: ServedModel) -> None:
        self.metrics.models.labels(served.name).info(
            {"sha256": served.sha256, "method": served.model.name}
        )
        tell("model", model=served.name, method=served.model.name, sha256=served.sha256)

    def _watch(self, n_histories: int, seconds: float) -> None:
        self.metrics.batch.observe(n_histories)
        self.metrics.model_seconds.observe(seconds)
