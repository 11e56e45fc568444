"""What the scripts share at their end: the result in a file, where one was asked for."""

import json
from pathlib import Path
from typing import Any


def save(result: Any, path: Path | None) -> None:
    """Writes a result as JSON and makes the folder; without a path, nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def show(result: Any, path: Path | None) -> None:
    """Prints a result as JSON and saves it, see :func:`save`."""
    print(json.dumps(result, indent=2))
    save(result, path)
