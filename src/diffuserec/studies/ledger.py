"""The ledger of a run: every look at validation and test, in the order in which they were taken.

A line is added before the result is shown, and none is ever changed or removed: what was looked at
stays known, whatever is published of it. Choosing among many looks makes a number too good; the
ledger says how many there were.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffuserec.errors import DataError

FILE = "ledger.jsonl"


def record(directory: Path, event: str, **facts: Any) -> None:
    """Adds a line to the ledger of a run: the time, what was looked at, and facts about it.

    Args:
        event: ``validation``, once an epoch or an evaluation, or ``test``.
    """
    line = json.dumps(
        {"at": datetime.now(UTC).isoformat(timespec="seconds"), "event": event} | facts
    )
    with (directory / FILE).open("a", encoding="utf-8", newline="\n") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def looks(directory: Path) -> list[dict[str, Any]]:
    """The lines of the ledger of a run, oldest first; empty if there is none.

    A last line that a kill cut short is passed over: its look was not taken.

    Raises:
        DataError: another line is damaged.
    """
    try:
        lines = (directory / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(dict(json.loads(line)))
        except ValueError as error:
            if number < len(lines):
                raise DataError(f"{directory / FILE}, line {number}: damaged") from error
    return found
