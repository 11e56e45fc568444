"""The ledger of a run: every look at validation and test, in the order in which they were taken.

A line is added before the result is shown, and none is ever changed or removed: what was looked at
stays known, whatever is published of it. Choosing among many looks makes a number too good; the
ledger says how many there were.
"""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from diffuserec.errors import DataError
from diffuserec.files import telling

FILE = "ledger.jsonl"


def record(directory: Path, event: str, **facts: Any) -> None:
    """Adds a line to the ledger of a run: the time, what was looked at, and facts about it.

    Args:
        event: ``validation``, once an epoch or an evaluation, or ``test``.

    Raises:
        DataError: the line cannot be written; then nothing of it is.
    """
    line = json.dumps(
        {"at": datetime.now(UTC).isoformat(timespec="seconds"), "event": event} | facts
    )
    path = directory / FILE
    with telling(path), path.open("ab+", buffering=0) as file:
        whole = _whole_lines(file)
        file.truncate(whole)
        try:
            file.write(f"{line}\n".encode())
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise


def _whole_lines(file: IO[bytes]) -> int:
    """Length of the file up to the end of its last whole line; a kill may have cut the next."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - 2**16)
    file.seek(start)
    end = file.read(size - start).rfind(b"\n")
    return size if end < 0 and start else start + end + 1


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
