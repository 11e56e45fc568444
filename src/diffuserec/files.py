"""Files and directories that appear whole or not at all, whatever interrupts the writing.

Whoever writes at a path holds a lock of the operating system, ``.NAME.lock`` beside it; it ends
with the process that holds it, however that ends. What is written grows under a name that no other
process has, ``.NAME.PROCESS-RANDOM.partial``, is brought to the disk and then renamed. What a
killed writer left is removed by the next one.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import polars as pl
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from diffuserec.errors import DataError

_READ_PARQUET = """
import sys
import polars
try:
    for batch in polars.scan_parquet(sys.argv[1], glob=False).collect_batches():
        pass
except BaseException as error:
    print(str(error).partition("\\n")[0])
    sys.exit(1)
"""

_COUNT_PARQUET = """
import sys
import polars
print(polars.scan_parquet(sys.argv[1], glob=False).select(polars.len()).collect().item())
"""

PATIENCE = 10.0
"""Seconds for which the writer of a file waits for another one of the same file."""

_LARGEST_DOCUMENT = 2**26
"""Bytes of a JSON file beyond which none of ours is."""


@contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock of a path; the folder that it lies in is made if need be.

    Args:
        path: a file or directory, which need not exist yet.
        wait: seconds to wait for another process.

    Raises:
        DataError: another process, or another part of this one, holds it, or it cannot be made.
    """
    file = beside(real(path), "lock")
    with telling(path):
        _make(file.parent)
        lock = FileLock(file, thread_local=False)
        try:
            lock.acquire(timeout=max(wait, 0.2), poll_interval=0.02)
        except Timeout as error:
            file.touch()  # raises what keeps a file from being made, which was waited for, too
            raise DataError(
                f"{path} is being written by another process: wait until it has ended, or choose "
                "another path"
            ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes nothing that is open
            file.unlink()
        lock.release()
        if os.name == "nt":
            with suppress(OSError):  # another process has it by now
                file.unlink()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; at the end of the block, what is there replaces the file at `path`.

    By then it is on the disk. After an error the file at `path` is as it was before. The directory
    is made if need be; a symbolic link is followed.

    Raises:
        DataError: nothing can be written there, or another process does not cease to.
    """
    target = real(path)
    with locked(path, PATIENCE), telling(path), partial(target) as work:
        yield work
        put(work, target)
        flush_directory(target.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill; at the end of the block it stands at `path`, which is free.

    After an error nothing stands there. The caller holds the lock of `path`, and sees to it that
    the files are on the disk (:func:`put`).
    """
    target = real(path)
    with partial(target) as work:
        work.mkdir()
        yield work
        work.rename(target)
        flush_directory(target.parent)


@contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """An empty folder on the disk of a path, for what leads to what will stand there.

    It is gone at the end of the block; what a kill left goes when the next one is made.

    Raises:
        DataError: no folder can be made there, or another process works for that path.
    """
    target = real(path)
    target = target.with_name(f"{target.name}.work")
    with locked(target, PATIENCE), telling(path), partial(target) as work:
        work.mkdir()
        yield work


@contextmanager
def partial(target: Path) -> Iterator[Path]:
    """A free path beside the target; what stands there at the end is removed.

    The caller holds the target's lock, or that of its directory, so whatever else has such a name
    was left by the dead.
    """
    for leftover in leftovers(target):
        _remove(leftover)
    work = beside(target, f"{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield work
    finally:
        _remove(work)


def put(work: Path, target: Path) -> None:
    """Renames a file to what it is meant to be, once it is on the disk."""
    flush(work)
    for _ in range(100 if os.name == "nt" else 0):  # there, not while somebody reads the old one
        with suppress(PermissionError):
            work.replace(target)
            return
        time.sleep(0.02)
    work.replace(target)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Errors of writing at a path become one line with the path and the cause.

    Raises:
        DataError: something was raised by the system, Polars or safetensors.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, SafetensorError) as error:
        raise DataError(f"{path} cannot be written: {cause_of(error)}") from error


def cause_of(error: BaseException) -> str:
    """The reason of an error in a few words: the system's, if it came from there."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    number = re.search(r"os error (\d+)", text)  # as Rust writes it
    if number and os.name != "nt":
        return os.strerror(int(number[1]))
    return text.splitlines()[0] if text else type(error).__name__


def real(path: Path) -> Path:
    """The path with symbolic links followed, so that writing replaces what a link points to."""
    return Path(os.path.realpath(path))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, with line feeds alone."""
    with replacing(path) as work:
        work.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, indented."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file, read strictly: what two readers could take differently is refused.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON in UTF-8, has a key twice, a number that JSON does not have (NaN,
            Infinity) or of thousands of digits, half a character, is nested very deeply, or is
            larger than anything that is ours.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a file")
    if path.stat().st_size > _LARGEST_DOCUMENT:
        raise ValueError("it is too large")
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
        json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a character") from error
    return content


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file, read as :func:`read_json` does.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON object in UTF-8.
    """
    document = read_json(path)
    if not isinstance(document, dict):
        raise ValueError("it holds no JSON object")
    return document


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON object with its checksum under ``sha256``.

    The checksum does not depend on the order of the keys, nor on blanks.
    """
    content = {key: value for key, value in document.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return {**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def is_sealed(document: Mapping[str, Any]) -> bool:
    """Whether an object has the checksum of its content, as :func:`sealed` gives it."""
    return bool(document.get("sha256") == sealed(document)["sha256"])


def check_parquet(path: Path) -> None:
    """Reads a Parquet file of unknown origin in a process of its own.

    A damaged file can abort the process that reads it, which no ``except`` catches; one that this
    lets pass can be read here.

    Raises:
        DataError: the file cannot be read; names it and says why.
    """
    child = _apart(_READ_PARQUET, path)
    if child.returncode:
        why = child.stdout.decode(errors="replace").strip() or "reading it ends the process"
        raise DataError(f"{path.name}: damaged Parquet file ({why}): write it again")


def parquet_height(path: Path) -> int:
    """Rows that a Parquet file of unknown origin says it has; 0 if it cannot be read."""
    child = _apart(_COUNT_PARQUET, path)
    return 0 if child.returncode else int(child.stdout)


def _apart(program: str, path: Path) -> subprocess.CompletedProcess[bytes]:
    """Runs a program about a file in a process of its own, which may abort."""
    command = [sys.executable, "-P", "-X", "utf8", "-c", program, str(path.absolute())]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def read_parquet(path: Path, height: int | None = None) -> pl.DataFrame:
    """The frame in a Parquet file of ours; the path is a path, never a pattern of names.

    Args:
        height: rows that it must have, which is found out before they are read.

    Raises:
        OSError: the file is not there or cannot be opened.
        ValueError: it cannot be read as Parquet, or has another number of rows.
    """
    path.stat()
    try:
        if height is not None:
            found = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
            if found != height:
                raise ValueError(f"it has {found:,} rows, not {height:,}")
        return pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ValueError(f"it cannot be read: {cause_of(error)}") from error


def append_line(path: Path, document: Mapping[str, Any]) -> None:
    """Adds an object to a file of JSON lines, which is on the disk by then; made if need be.

    Of a line that a kill cut short, nothing stays.

    Raises:
        DataError: the line cannot be written; then nothing of it is.
    """
    line = json.dumps(document)
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


def write_lines(path: Path, documents: Iterable[Mapping[str, Any]]) -> None:
    """Writes a file of JSON lines."""
    write_text(path, "".join(f"{json.dumps(document)}\n" for document in documents))


def read_lines(path: Path, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; none if there is no file.

    A last line that a kill cut short is passed over.

    Args:
        keys: that every object has.

    Raises:
        DataError: another line is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], 1):  # the last ends with no line feed: it was cut
        try:
            document = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            raise _damaged_line(path, number, "it is no JSON in UTF-8") from error
        lacking = [key for key in keys if not isinstance(document, dict) or key not in document]
        if not isinstance(document, dict) or lacking:
            why = f"it has no {lacking[0]!r}" if lacking else "it holds no JSON object"
            raise _damaged_line(path, number, why)
        found.append(document)
    return found


def _damaged_line(path: Path, number: int, why: str) -> DataError:
    return DataError(f"{path}, line {number}: damaged ({why}): copy the run again, or train again")


def sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits; takes little memory whatever its size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Waits until a file is on the disk."""
    with path.open("r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Waits until the names in a directory are on the disk, where the system can."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def leftovers(target: Path) -> list[Path]:
    """What writers of a path left beside it, or are writing there now."""
    pattern = re.compile(re.escape(beside(target, "").name) + r"\d+-[0-9a-f]{8}\.partial")
    return [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]


def sweep(folder: Path) -> None:
    """Removes what killed writers left anywhere in a folder, in which nobody else may write now."""
    for leftover in [*folder.rglob(".*.lock"), *folder.rglob(".*.partial")]:
        _remove(leftover)


def beside(target: Path, suffix: str) -> Path:
    """A hidden path in the same folder: ``.NAME.SUFFIX``; of a long name, its digest."""
    name = target.name
    if len(os.fsencode(name)) > 128:  # names are at most 255 bytes long
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return target.parent / f".{name}.{suffix}"


def _make(folder: Path) -> None:
    """Makes a folder and those above it, on the disk."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_directory(folder.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"it has the key {name!r} twice")
        content[name] = value
    return content


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")
