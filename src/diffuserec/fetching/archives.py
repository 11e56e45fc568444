"""Taking a few files out of an archive of unknown origin.

Every member is looked at, not the wanted ones alone: an archive with a link, a device, a path that
leads out of the folder, or more than it may hold is refused as a whole.
"""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from diffuserec.errors import DataError
from diffuserec.files import cause_of, replacing

MOST_MEMBERS = 1_000
"""Members that an archive may have."""

SMALLEST_LIMIT = 2**26
"""Bytes to which any archive may unpack."""

LIMIT_RATIO = 50
"""Times its own size to which an archive may unpack beyond that limit."""

_BLOCK = 2**18


def unpack(archive: Path, wanted: Sequence[str], out: Path) -> list[Path]:
    """Writes the wanted members of a zip or tar file into a folder, under their paths.

    Returns:
        Where they stand, in the order of `wanted`.

    Raises:
        DataError: the archive is damaged or unsafe, or lacks one of them.
    """
    limit = max(SMALLEST_LIMIT, LIMIT_RATIO * archive.stat().st_size)
    try:
        if archive.name.endswith(".zip"):
            found = _unzip(archive, wanted, out, limit)
        else:
            found = _untar(archive, wanted, out, limit)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise DataError(
            f"{archive}: damaged archive ({cause_of(error)}): fetch it again"
        ) from error
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise DataError(f"{archive}: the archive holds no {lacking[0]!r}")
    return [out / name for name in wanted]


def _unzip(archive: Path, wanted: Sequence[str], out: Path, limit: int) -> set[str]:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        if len(members) > MOST_MEMBERS:
            raise _unsafe(archive, f"more than {MOST_MEMBERS:,} members")
        seen: set[str] = set()
        for member in members:
            kind = (member.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000, 0o040000):
                raise _unsafe(archive, f"{member.filename!r} is a link or a device")
            _check(archive, member.filename, seen)
        if sum(member.file_size for member in members) > limit:
            raise _unsafe(archive, f"it unpacks to more than {limit:,} bytes")
        by_name = {member.filename: member for member in members}
        found = [name for name in wanted if name in by_name]
        for name in found:
            with file.open(by_name[name]) as content:
                _write(archive, content.read, out / name, limit)
        return set(found)


def _untar(archive: Path, wanted: Sequence[str], out: Path, limit: int) -> set[str]:
    seen: set[str] = set()
    found: set[str] = set()
    with _tar(archive, limit) as file:
        for number, member in enumerate(file, 1):
            if number > MOST_MEMBERS:
                raise _unsafe(archive, f"more than {MOST_MEMBERS:,} members")
            if not (member.isreg() or member.isdir()):
                raise _unsafe(archive, f"{member.name!r} is a link or a device")
            _check(archive, member.name, seen)
            if member.size > limit:
                raise _unsafe(archive, f"it unpacks to more than {limit:,} bytes")
            content = file.extractfile(member) if member.name in wanted else None
            if content is not None:
                with content:
                    _write(archive, content.read, out / member.name, limit)
                found.add(member.name)
    return found


@contextmanager
def _tar(archive: Path, limit: int) -> Iterator[tarfile.TarFile]:
    with archive.open("rb") as raw:
        if raw.read(2) != b"\x1f\x8b":
            raw.seek(0)
            with tarfile.open(fileobj=raw, mode="r:") as file:
                yield file
            return
        raw.seek(0)
        with (
            gzip.GzipFile(fileobj=raw) as unzipped,
            tarfile.open(
                fileobj=cast(IO[bytes], _Bounded(archive, unzipped, limit)), mode="r|"
            ) as file,
        ):
            yield file


class _Bounded:
    """A stream that refuses to give more than so many bytes, whatever an archive says of itself."""

    def __init__(self, archive: Path, stream: gzip.GzipFile, limit: int) -> None:
        self.archive, self.stream, self.limit, self.left = archive, stream, limit, limit

    def read(self, n: int = -1) -> bytes:
        data = self.stream.read(n)
        self.left -= len(data)
        if self.left < 0:
            raise _unsafe(self.archive, f"it unpacks to more than {self.limit:,} bytes")
        return data


def _write(archive: Path, read: Callable[[int], bytes], path: Path, limit: int) -> None:
    n = 0
    with replacing(path) as work, work.open("wb") as file:
        while block := read(_BLOCK):
            n += len(block)
            if n > limit:
                raise _unsafe(archive, f"it unpacks to more than {limit:,} bytes")
            file.write(block)


def _check(archive: Path, name: str, seen: set[str]) -> None:
    """Raises DataError if a member's path leads elsewhere, or stands there twice."""
    path = PurePosixPath(name)
    odd = "\\" in name or ":" in name or "\0" in name
    if path.is_absolute() or ".." in path.parts or odd or not name:
        raise _unsafe(archive, f"{name!r} leads out of its folder")
    if str(path) in seen:
        raise _unsafe(archive, f"{name!r} is there twice")
    seen.add(str(path))


def _unsafe(archive: Path, why: str) -> DataError:
    return DataError(f"{archive}: the archive is refused: {why}")
