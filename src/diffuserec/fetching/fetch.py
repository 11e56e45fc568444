"""Bringing a data set here: from this folder, from other programs' caches, or from its owner."""

import ast
import csv
import gzip
import hashlib
import re
import shlex
import shutil
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffuserec.errors import DataError
from diffuserec.fetching import caches
from diffuserec.fetching.archives import unpack
from diffuserec.fetching.entries import DataSet
from diffuserec.fetching.transfer import Broken, Part, Progress, download, put_aside
from diffuserec.files import locked, put, replacing, telling, write_text

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Fetched:
    """A data set that is here.

    Attributes:
        log: the file to prepare.
        items: the file of its items, if it has one.
        source: where it came from: an address, or a path that had it.
        sha256: of the file that was fetched; None if only the log was found, unpacked.
        command: prepares the log.
    """

    log: Path
    items: Path | None
    source: str
    sha256: str | None
    command: str


def fetch(
    entry: DataSet,
    out: Path,
    tell: Callable[[str], None] = lambda line: None,
    progress: Progress = lambda done, total: None,
) -> Fetched:
    """Brings a data set into a folder, and unpacks what is to be prepared.

    A file that is in the folder, or that another program has fetched, is taken if it has the known
    checksum. Of a file without a known one, the first fetch writes ``FILE.sha256`` beside it, and
    later ones compare.

    Args:
        tell: is given remarks, one line each.
        progress: of the transfer.

    Raises:
        DataError: it cannot be had, is not what was published, or its archive is unsafe.
    """
    part = Part(out / f"{entry.file}.part")
    with locked(part.path):
        path, source = _file(entry, out, part, tell, progress)
        if path is None:
            return _result(entry, out, out / entry.log, None, source, None)
        digest = digests(path, ["sha256"])["sha256"] if entry.sha256 is None else entry.sha256
        if not entry.sums:
            _record(out / f"{entry.file}.sha256", entry.file, digest, tell)
        wanted = [entry.log, *([entry.items] if entry.items else [])]
        if entry.archived:
            log, *items = unpack(path, wanted, out)
        else:
            if path != out / entry.file:
                _copy(path, out / entry.file)
            log, items = out / entry.log, []
        if entry.literals:
            tell(f"rewriting {entry.file} as {entry.log}: every line is a Python literal")
            write_literals(out / entry.file, log, entry.literals)
        return _result(entry, out, log, items[0] if items else None, source, digest)


def _file(
    entry: DataSet, out: Path, part: Part, tell: Callable[[str], None], progress: Progress
) -> tuple[Path | None, str]:
    """The file and where it came from; no file if the log alone was found and has been copied."""
    path = out / entry.file
    if path.exists():
        why = _fault(path, entry.size, entry.sums or _recorded(out / f"{entry.file}.sha256"))
        if not why:
            tell(f"{path}: is here already")
            return path, str(path)
        if not entry.urls:
            raise DataError(f"{path}: not the file that was published ({why})")
        aside = put_aside(path, path)
        tell(f"{path}: not the file that was published ({why}): put aside as {aside}")
    names = {entry.file, *(url.rpartition("/")[2] for url in entry.urls)}
    for program, there in caches.named(names) if entry.sums else ():
        if not _fault(there, entry.size, entry.sums):
            tell(f"{there}: {program} has fetched it")
            return there, str(there)
    for program, there in caches.named({Path(entry.log).name}) if entry.unpacked_sums else ():
        if not _fault(there, entry.unpacked_size, entry.unpacked_sums):
            tell(f"{there}: {program} has fetched it")
            _copy(there, out / entry.log)
            return None, str(there)
    if not entry.urls:
        raise DataError(
            f"{entry.name}: its owner hands it out on {entry.page}: fetch there {entry.by_hand}, "
            f"put it at {path}, and run this again"
        )
    return path, _download(entry, path, part, tell, progress)


def _download(
    entry: DataSet, path: Path, part: Part, tell: Callable[[str], None], progress: Progress
) -> str:
    """Fetches the file from the first address that gives it; returns the address."""
    failures: list[str] = []
    for url in entry.urls:
        if failures:
            tell(f"{failures[-1]}; trying the next address")
        try:
            download(url, part, entry.size, progress)
        except Broken as error:
            failures.append(str(error))
            continue
        why = _fault(
            part.path, entry.size, entry.sums or _recorded(path.with_name(f"{path.name}.sha256"))
        )
        if not why:
            with telling(path):
                put(part.path, path)
            return url
        aside = put_aside(part.path, path)
        failures.append(f"{url}: not the file that was published ({why}): put aside as {aside}")
    kept = f"; {part.path} is kept, and the same command goes on" if part.path.exists() else ""
    raise DataError(f"{entry.name}: {'; '.join(failures)}{kept}")


def _fault(path: Path, size: int | None, sums: Mapping[str, str]) -> str:
    """What a file has that it should not, in a few words; empty if it is what was published."""
    if not path.is_file():
        return "it is no file"
    found = path.stat().st_size
    if size is not None and found != size:
        return f"{found:,} bytes, expected {size:,}"
    for algorithm, digest in digests(path, list(sums)).items():
        if digest != sums[algorithm]:
            return f"{algorithm} {digest}, expected {sums[algorithm]}"
    return ""


def digests(path: Path, algorithms: list[str]) -> dict[str, str]:
    """Checksums of a file, which is read once."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with path.open("rb") as file:
        while hashes and (block := file.read(2**20)):
            for each in hashes.values():
                each.update(block)
    return {name: each.hexdigest() for name, each in hashes.items()}


def _record(note: Path, name: str, digest: str, tell: Callable[[str], None]) -> None:
    if not _recorded(note):
        write_text(note, f"{digest}  {name}\n")
        tell(f"no checksum of {name} was published: it has sha256 {digest}, which {note} keeps")


def _recorded(note: Path) -> dict[str, str]:
    """The checksum that an earlier fetch wrote down."""
    try:
        words = note.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        return {}
    return {"sha256": words[0]} if words and _DIGEST.fullmatch(words[0]) else {}


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as work:
        shutil.copyfile(source, work)


def write_literals(path: Path, out: Path, columns: Mapping[str, str]) -> None:
    """Writes a CSV file of some values of a gzip file that holds a Python literal a line.

    Lines without one of the values are left out.

    Args:
        columns: key in the literal, by name of the column.

    Raises:
        DataError: a line is no dictionary; names it.
    """
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8") as lines,
            replacing(out) as work,
            work.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(columns)
            for line in lines:
                number += 1
                found = ast.literal_eval(line)
                values = [found.get(key) for key in columns.values()]
                if None not in values:
                    writer.writerow(values)
    except DataError:
        raise
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged gzip file: fetch it again") from error
    except (ValueError, SyntaxError, AttributeError, RecursionError, MemoryError) as error:
        raise DataError(f"{path}, line {number}: no dictionary in Python's words") from error


def _result(
    entry: DataSet, out: Path, log: Path, items: Path | None, source: str, digest: str | None
) -> Fetched:
    described = f"--items {_quoted(items)}" if items else ""
    words = ("diffuserec prepare", _quoted(log), described, entry.prepare)
    command = " ".join(filter(None, (*words, "--out", _quoted(out / "dataset"))))
    return Fetched(log, items, source, digest, command)


def _quoted(path: Path) -> str:
    return shlex.quote(path.as_posix())
