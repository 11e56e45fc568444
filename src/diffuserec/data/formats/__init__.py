"""Log files: what format one has, its columns as a frame, and the way back.

==============  ==================================================================================
``csv, tsv``    a header line, then one interaction a line; quoted fields may span lines
``parquet``     one interaction a row
``jsonl``       one JSON object a line
``inter``       RecBole's atomic file: a header such as ``user_id:token``
``movielens``   ``user::item::rating::time``
``sequences``   one line a user: the user, then the items, oldest first
``pairs``       one line an interaction: ``user item``, in time order
==============  ==================================================================================

Each file of this folder is a format, and :data:`FORMATS` takes more from other packages: see
:mod:`diffuserec.data.log_format`. All but Parquet may be gzipped. A file of two fields on every
line is read as ``pairs`` if a user comes back, and as ``sequences`` if none does; one of as many
tabs on all lines but a few, and more than one, is a table that must be told.
"""

import codecs
import gzip
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import polars as pl

from diffuserec.data.columns import Columns, Scan, Source, require_utf8
from diffuserec.data.log_format import LogFile, LogFormat, Spool
from diffuserec.data.text import BLOCK, opening
from diffuserec.errors import ConfigError, DataError, did_you_mean
from diffuserec.files import replacing
from diffuserec.registry import Registry

_NOT_TEXT = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"BZh": "bzip2 data: unpack it first",
    b"\xfd7zXZ": "xz data: unpack it first",
    b"\x28\xb5\x2f\xfd": "Zstandard data: unpack it first",
    b"\xff\xfe": "UTF-16 text: say encoding='utf-16' (--encoding utf-16)",
    b"\xfe\xff": "UTF-16 text: say encoding='utf-16' (--encoding utf-16)",
    b"\x80": "perhaps a pickle, and pickles are never opened: export a CSV or Parquet file",
}


UNPACKED_LIMIT = 1 << 26
"""Bytes to which any gzip file may unpack."""

UNPACKED_RATIO = 200
"""Times its own size to which a gzip file may unpack beyond that limit."""

FORMATS: Registry[type[LogFormat]] = Registry("format", LogFormat, __name__)
"""Log formats by name. Formats of other packages are asked, and their code is run, only for files
whose name and first bytes belong to none of this package, or if the caller names one."""


@contextmanager
def read_columns(
    path: Path | str,
    format: str | None,
    named: Mapping[str, str | None],
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
) -> Iterator[Columns]:
    """The columns of a file, which is kept until the end: messages look up the line of a row.

    Args:
        format: name of a format, or None to recognize it by the file's name and content.
        named: for each role the name of its column, or None for a usual one.
        columns: names of the columns by their position, for a file without a header.
        encoding: of a text file, by default UTF-8.

    Raises:
        DataError: the file is missing, empty, damaged, or not of the format.
        ConfigError: no such format or encoding.
    """
    with _text(path, format, encoding) as (file, given):
        chosen, log = _opened(file, given, named, columns)
        yield chosen.read(log)


@contextmanager
def scan_columns(
    path: Path | str,
    format: str | None,
    named: Mapping[str, str | None],
    columns: Sequence[str] | None,
    encoding: str | None,
    spool: Spool,
) -> Iterator[Scan | None]:
    """What :func:`read_columns` reads, of a file that may be larger than memory.

    Yields:
        The columns, or None if the format is only read as a whole.

    Raises:
        DataError: the file is missing, empty, damaged, or not of the format.
        ConfigError: no such format or encoding.
    """
    with _text(path, format, encoding) as (file, given):
        chosen, log = _opened(file, given, named, columns)
        yield chosen.scan(log, spool)


@contextmanager
def _text(
    path: Path | str, format: str | None, encoding: str | None
) -> Iterator[tuple[Path, LogFormat | None]]:
    """The file, unpacked and in UTF-8, and the format that was named."""
    file = Path(path)
    require_utf8(file)
    given = None if format is None else _find(format)
    if encoding is not None:
        _check_encoding(encoding)
    if file.is_dir():
        raise DataError(f"{file} is a directory: give the log file itself")
    if not file.is_file():
        raise DataError(f"{file}: there is no such file")
    try:
        with _uncompressed(file) as plain, _in_utf8(plain, encoding) as text:
            yield text, given
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def writable_format(path: Path | str, format: str | None) -> str:
    """Name of the format in which a log would be written; to be asked before hours of work.

    Raises:
        ConfigError: no format that can be written.
        DataError: the path exists, or its folder does not.
    """
    target = Path(path)
    require_utf8(target)
    if not format:
        suffix = target.suffix.lower()
        by_suffix = (f.name for f in _known() if suffix in (*f.suffixes, *f.written_suffixes))
        format = next(by_suffix, target.suffix)
    if format not in FORMATS.names() or not _find(format).writable:
        writable = sorted(some.name for some in _known() if some.writable)
        raise ConfigError(
            f"{target.name}: no format {format!r} to write{did_you_mean(format, writable)}; "
            f"name one with format= (--format): {', '.join(writable)}"
        )
    if target.exists():
        raise DataError(f"{target} exists already: choose another path or remove it")
    if not target.parent.is_dir():
        raise DataError(f"{target} cannot be written: there is no folder {target.parent}")
    return format


def write_log(frame: pl.DataFrame, path: Path | str, format: str | None) -> None:
    """Writes the frame of a log, complete or not at all; see ``Interactions.write``."""
    writer, target = _find(writable_format(path, format)), Path(path)
    try:
        with replacing(target) as work, work.open("wb") as stream:
            writer.write(frame, stream, Source(target.name))
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from error


def _find(name: str) -> LogFormat:
    found = FORMATS.find(name)()
    if found.name != name:
        raise ConfigError(f"the format {name!r} names itself {found.name!r}: use one name")
    return found


def _known(others: bool = True) -> Iterator[LogFormat]:
    """Formats of this package, then, unless excluded, of others; each is loaded in its turn."""
    ours = {name: FORMATS.module_name(name).startswith(f"{__name__}.") for name in FORMATS.names()}
    for name in sorted(ours, key=lambda name: not ours[name]):
        if ours[name] or others:
            yield _find(name)


def _opened(
    file: Path,
    given: LogFormat | None,
    named: Mapping[str, str | None],
    columns: Sequence[str] | None,
) -> tuple[LogFormat, LogFile]:
    """The format of a file, and what it needs to read it."""
    source = Source(file.name)
    with file.open("rb") as stream:
        head = stream.read(64)

    def is_marked(some: LogFormat) -> bool:
        return bool(some.magic) and head.startswith(some.magic)

    marked = next(filter(is_marked, _known(others=False)), None)
    if marked and given and marked.name != given.name:
        raise source.fail(
            f"this is a {marked.title or marked.name} file, not {given.name}: leave out format= "
            "(--format)"
        )
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    chosen = given or marked
    chosen = chosen or next((f for f in _known() if suffix in f.suffixes or is_marked(f)), None)
    if head and chosen and chosen.binary:
        if not head.startswith(chosen.magic):
            raise source.fail(
                f"not a {chosen.title or chosen.name} file: name its format with format= (--format)"
            )
        return chosen, LogFile(file, named, "", given is not None, columns)
    for magic, meaning in _NOT_TEXT.items():
        if head.startswith(magic):
            raise source.fail(f"not text but {meaning}")
    start = opening(file)
    if columns and not chosen:
        chosen = _find("movielens" if "::" in start.line else "csv")
    if start.separator and not chosen:
        chosen = _find("csv")
    chosen = chosen or max(_known(), key=lambda some: some.certainty(start.line))
    log = LogFile(file, named, start.line, given is not None, columns)
    log = replace(log, skip=start.skip, separator=start.separator, notes=start.notes)
    return chosen, log


@contextmanager
def _uncompressed(file: Path) -> Iterator[Path]:
    """The file, or a temporary one of its name with its content unpacked."""
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if not packed:
        if file.suffix.lower() == ".gz":
            raise DataError(f"{file.name} is named .gz but holds no gzip data: rename it")
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="diffuserec-") as folder:
        plain = Path(folder) / file.name
        try:
            with gzip.open(file, "rb") as stream, plain.open("wb") as copy:
                limit = max(UNPACKED_LIMIT, UNPACKED_RATIO * file.stat().st_size)
                while block := stream.read(BLOCK):
                    copy.write(block)
                    if copy.tell() > limit:
                        raise DataError(
                            f"{file.name} unpacks to more than {UNPACKED_RATIO} times its size, "
                            "as logs do not: if it is one, unpack it with gunzip first"
                        )
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{file.name} is truncated or damaged gzip data ({error}): fetch it again"
            ) from error
        yield plain


def _check_encoding(name: str) -> None:
    try:
        "".encode(name)
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f"no text encoding {name!r}: encoding= (--encoding) is utf-8, latin-1, cp1252, utf-16 "
            "or another that Python knows"
        ) from error


@contextmanager
def _in_utf8(file: Path, encoding: str | None) -> Iterator[Path]:
    """The file, or a temporary one of its name with its text in UTF-8.

    Raises:
        DataError: the file is not text of the encoding; names the line.
    """
    if encoding is None:
        yield file
        return
    with file.open("rb") as stream:
        head = stream.read(64)
    if any(some.magic and head.startswith(some.magic) for some in _known(others=False)):
        raise DataError(f"{file.name} is not a text file: leave out encoding= (--encoding)")
    with tempfile.TemporaryDirectory(prefix="diffuserec-") as folder:
        text, line = Path(folder) / file.name, 1
        decoder = codecs.getincrementaldecoder(encoding)()
        with file.open("rb") as stream, text.open("wb") as copy:
            while True:
                block = stream.read(BLOCK)
                try:
                    decoded = decoder.decode(block, final=not block)
                    copy.write(decoded.encode())
                except UnicodeError as error:
                    raise DataError(
                        f"{file.name} is not text in {encoding}, from about line {line} on "
                        f"({error.reason if isinstance(error, UnicodeDecodeError) else error}): "
                        "name another encoding= (--encoding)"
                    ) from error
                line += decoded.count("\n")
                if not block:
                    break
        yield text
