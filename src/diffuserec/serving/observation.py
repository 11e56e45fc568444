"""What a service tells about itself: metrics for Prometheus, and a line of JSON for each event.

Neither ever holds a history, a key, or a header: who asked (the name of a key), what kind of
request it was, how it ended and how long it took.
"""

import contextlib
import datetime
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

LOGGER = logging.getLogger("diffuserec.serving")

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and times of one application; several applications share nothing."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        own: Any = {"registry": self.registry, "namespace": "diffuserec"}
        self.requests = Counter(
            "requests", "Requests by how they ended.", ["route", "method", "status"], **own
        )
        self.seconds = Histogram(
            "request_seconds",
            "Seconds from the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            **own,
        )
        self.refused = Counter(
            "refused", "Requests that were not let in, by the reason.", ["reason"], **own
        )
        self.answered = Counter(
            "lists", "Lists by model and by who answered.", ["model", "source"], **own
        )
        self.unknown = Counter(
            "unknown_items", "Ids of histories that a catalog does not hold.", ["model"], **own
        )
        self.batch = Histogram(
            "batch_histories", "Histories of one call of a model.", buckets=_SIZES, **own
        )
        self.model_seconds = Histogram(
            "model_seconds", "Seconds of one call of a model.", buckets=_SECONDS, **own
        )
        self.waiting = Gauge("waiting_histories", "Histories that wait for a model.", **own)
        self.in_progress = Gauge("requests_in_progress", "Requests that are being answered.", **own)
        self.reloads = Counter("reloads", "Models loaded again, by how it ended.", ["how"], **own)
        self.jobs = Gauge("jobs", "Batch jobs by state.", ["state"], **own)
        self.models = Info("model", "The checksum of each model.", ["model"], **own)

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self.registry)


def tell(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Logs an event with its facts."""
    LOGGER.log(level, event, extra={"facts": facts})


class _Lines(logging.Formatter):
    """One JSON object a line, whatever a message holds."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
        line = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@contextlib.contextmanager
def log_lines() -> Iterator[None]:
    """Sends events of the service and of uvicorn to standard error, as lines of JSON, in a block.

    Afterwards the loggers are as they were: that stream may be closed by then.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    loggers = [logging.getLogger(name) for name in (LOGGER.name, "uvicorn", "mcp")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers = [handler]
        logger.setLevel(logging.INFO if logger is LOGGER else logging.WARNING)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
