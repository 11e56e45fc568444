"""The ledger of a run: every look at validation and test, in the order in which they were taken.

A line is added before the result is shown, and none is ever changed or removed: what was looked at
stays known, whatever is published of it. Choosing among many looks makes a number too good; the
ledger says how many there were.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffuserec.files import append_line, read_lines

FILE = "ledger.jsonl"


def record(directory: Path, event: str, **facts: Any) -> None:
    """Adds a line to the ledger of a run: the time, what was looked at, and facts about it.

    Args:
        event: ``validation``, once an epoch or an evaluation, or ``test``.

    Raises:
        DataError: the line cannot be written; then nothing of it is.
    """
    at = datetime.now(UTC).isoformat(timespec="seconds")
    append_line(directory / FILE, {"at": at, "event": event} | facts)


def looks(directory: Path) -> list[dict[str, Any]]:
    """The lines of the ledger of a run, oldest first; empty if there is none.

    A last line that a kill cut short is passed over: its look was not taken.

    Raises:
        DataError: another line is damaged.
    """
    return read_lines(directory / FILE, ("at", "event"))


def n_looks(events: Sequence[Mapping[str, Any]], event: str) -> int:
    """Looks of one kind: an epoch's validation is one, as an evaluation is."""
    return sum(look.get("epochs", 1) for look in events if look["event"] == event)
