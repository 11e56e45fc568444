"""Files that appear whole or not at all, whatever interrupts the writing of them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; at the end of the block, what is there replaces the file at `path`.

    By then it is on the disk. After an error the file at `path` is as it was before.
    """
    work = path.with_name(f".{path.name}.partial")
    try:
        yield work
        with work.open("r+b") as file:
            os.fsync(file.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, with line feeds alone; makes its directory if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as work:
        work.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, indented."""
    write_text(path, json.dumps(content, indent=2) + "\n")
