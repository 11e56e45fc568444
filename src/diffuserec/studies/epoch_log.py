"""``epochs.jsonl`` in a run's directory: a line an epoch, as it happens.

phase, epoch, loss, valid, seconds,    as in :class:`Epoch`
watched, validation_seconds
time                                   UTC, as ISO 8601; null if a kill came between the
                                       checkpoint of the epoch and its line
"""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffuserec.files import append_line, read_lines, write_lines
from diffuserec.models.base import Epoch

FILE = "epochs.jsonl"


def log_epoch(directory: Path, epoch: Epoch) -> None:
    """Adds the line of an epoch, which is on the disk by then.

    Raises:
        DataError: it cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(directory / FILE, asdict(epoch) | {"time": now})


def complete_log(directory: Path, curve: Sequence[Epoch]) -> None:
    """Sees to it that there is one line for each of these epochs, after a kill too."""
    found = read_lines(directory / FILE, ("phase", "epoch", "time"))
    times: dict[Any, Any] = {(line["phase"], line["epoch"]): line["time"] for line in found}
    lines = [asdict(e) | {"time": times.get((e.phase, e.epoch))} for e in curve]
    if lines != found:
        write_lines(directory / FILE, lines)


def seconds_of(curve: Sequence[Epoch]) -> float:
    """What these epochs took, with their validation."""
    return sum((epoch.seconds + epoch.validation_seconds for epoch in curve), 0.0)
