"""The service in Ray Serve: on the machines of a cluster, several times the same application.

    # shop.py
    from diffuserec.serving.replicas import replicas

    service = replicas("/models/sasrec", n=4)

``serve run shop:service`` starts it, where every machine sees the directory of the model.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from diffuserec.errors import ConfigError
from diffuserec.serving.application import application
from diffuserec.serving.observation import log_lines
from diffuserec.serving.settings import ServiceSettings, service_settings

_GRACE_SECONDS = 30
"""Seconds that requests have to end when a replica is taken away."""


def replicas(
    paths: Mapping[str, Path | str] | Path | str,
    settings: ServiceSettings | None = None,
    *,
    n: int = 1,
) -> Any:
    """A service of these models for Ray Serve: give it to ``serve.run``.

    Deploying it again replaces the replicas one after another by new ones, which load the models
    as they are then; a request that was begun is answered.

    Args:
        paths: as :func:`~diffuserec.serving.application.application` takes them.
        settings: limits, keys and the like, by default those of :func:`service_settings`; rates
            and waiting requests count for each replica.
        n: replicas, each a process with models of its own.

    Raises:
        ConfigError: Ray Serve is not installed, n is below 1, jobs are asked for, or there are no
            keys and other machines are to be answered.
    """
    settings = settings or service_settings({})
    if not settings.keys and not settings.local:
        raise ConfigError(
            "everyone who reaches Ray Serve could ask: give keys, or settings of host 127.0.0.1"
        )
    if settings.jobs is not None:
        raise ConfigError("batch jobs are one process's: run them by 'diffuserec serve --jobs'")
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    try:
        serve = import_module("ray.serve")
    except ImportError as error:
        raise ConfigError("Ray Serve is not installed: pip install 'ray[serve]'") from error
    made = serve.deployment(
        serve.ingress()(Replica),
        name="diffuserec",
        num_replicas=n,
        max_ongoing_requests=2 * settings.limits.max_waiting,  # as many as the door lets in
        graceful_shutdown_timeout_s=_GRACE_SECONDS,
    )
    return made.bind(paths, settings)


class Replica:
    """One process of the service.

    Args:
        paths: directories of models.
        settings: limits, keys and the like.
    """

    def __init__(
        self, paths: Mapping[str, Path | str] | Path | str, settings: ServiceSettings
    ) -> None:
        self._logging = ExitStack()
        self._logging.enter_context(log_lines())
        self._application = application(paths, settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._application

    async def reconfigure(self, config: object) -> None:
        """Loads all models again, when a ``user_config`` is given or changed; requests go on."""
        await self._application.state.service.reload_all()
