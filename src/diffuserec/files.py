"""Files and directories that appear whole or not at all, whatever interrupts the writing."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffuserec.errors import DataError

_READ_PARQUET = """
import sys
import polars
try:
    polars.read_parquet(sys.argv[1], glob=False)
except BaseException as error:
    print(str(error).partition("\\n")[0])
    sys.exit(1)
"""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; at the end of the block, what is there replaces the file at `path`.

    By then it is on the disk. After an error the file at `path` is as it was before. The directory
    is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.partial")
    try:
        yield work
        _flush(work)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill; at the end of the block it replaces the one at `path`, if any.

    By then its files are on the disk. After an error the directory at `path` is as it was before;
    after a kill between the two renames, the next writer puts it back.
    """
    work, old = (path.with_name(f".{path.name}.{what}") for what in ("partial", "old"))
    shutil.rmtree(work, ignore_errors=True)
    _put_back(old, path)
    work.mkdir(parents=True)
    try:
        yield work
        for file in work.iterdir():
            _flush(file)
        if path.exists():
            path.rename(old)
        work.rename(path)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        _put_back(old, path)


def _put_back(old: Path, path: Path) -> None:
    """Renames a directory that was set aside back if nothing took its place, else removes it."""
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, with line feeds alone."""
    with replacing(path) as work:
        work.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, indented."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file holds another JSON value.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON in UTF-8.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    return document if isinstance(document, dict) else {}


def check_parquet(path: Path) -> None:
    """Reads a Parquet file of unknown origin in a process of its own.

    A damaged file can abort the process that reads it, which no ``except`` catches; one that this
    lets pass can be read here.

    Raises:
        DataError: the file cannot be read; names it and says why.
    """
    command = [sys.executable, "-P", "-X", "utf8", "-c", _READ_PARQUET, str(path.absolute())]
    child = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    if child.returncode:
        why = child.stdout.decode(errors="replace").strip() or "reading it ends the process"
        raise DataError(f"{path.name}: damaged Parquet file ({why}): write it again")


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file is on the disk."""
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())
