"""From log files to prepared data: within memory if they are small, a piece at a time if not."""

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from diffuserec.data.attributes import read_items
from diffuserec.data.columns import Scan, Source
from diffuserec.data.formats import scan_columns
from diffuserec.data.interactions import catalog_of, read_log, require_no_items_options
from diffuserec.data.large import FlatFiles, Limits, flat_files
from diffuserec.data.log_format import Spool
from diffuserec.data.selection import names_in
from diffuserec.data.storage import save_files
from diffuserec.data.summary import MARKS, Summary, require_limits, tells_of_events
from diffuserec.errors import ConfigError, DataError
from diffuserec.files import parquet_height, telling, work_folder

MEMORY = 4 * 2**30
"""Bytes that preparing a log may take, unless another number is given."""

_EXPANSION = 12
"""Bytes of memory for a byte of a file that is read whole, at most about."""

_PACKED = 8
"""Times its size to which a gzip file usually unpacks."""

_ROW = 150
"""Bytes of memory for a row of a Parquet file that is read whole, at most about."""

_SMALL = 2**16
"""Bytes of a Parquet file below which its rows are not counted."""


def prepare_log(
    logs: Path | str | Sequence[Path | str],
    out: Path | str,
    format: str | None = None,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    *,
    columns: Sequence[str] | None = None,
    encoding: str | None = None,
    where: str | None = None,
    items: Path | str | None = None,
    items_id: str | None = None,
    item_columns: Sequence[str] | None = None,
    known_items_only: bool = False,
    literal_ids: bool = False,
    min_user: int | None = None,
    min_item: int | None = None,
    merge_repeats: bool = False,
    memory: int = MEMORY,
    note: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Summary:
    """Makes prepared data of a log, however large; :func:`load_dataset` maps it from disk.

    It is what ``read_log(...).filter(...).to_dataset().save(out)`` makes. A log of several files,
    and one that would not fit into `memory`, is read a piece at a time, which Parquet, CSV, TSV and
    RecBole's ``inter`` can be; what leads to the result waits in a folder beside `out`.

    Args:
        logs: files, folders of them and patterns such as ``logs/2024-*.parquet``. Several are one
            log, in the order given, those of a folder or a pattern in the order of their names.
        out: the directory to make.
        format, user, item, time, columns, encoding, where, literal_ids: as for :func:`read_log`.
        items, items_id, item_columns, known_items_only: as for :func:`read_log`.
        min_user, min_item, merge_repeats: as for :meth:`Interactions.filter`.
        memory: bytes that may be taken for interactions, whatever their number. The program itself,
            the distinct ids and some 50 bytes for each user and item come on top, and so does a
            user whose interactions alone do not fit.
        note: what to keep with the dataset beside source and filters, as JSON.
        overwrite: replace the prepared data at `out`.

    Raises:
        DataError: as for :func:`read_log` and :meth:`Interactions.filter`; several files that do
            not fit together, or are of a format that is only read whole; or nothing can be
            written.
        ConfigError: no such format or encoding, or a limit or `memory` below 1.
    """
    require_limits(min_user, min_item)
    if memory < 1:
        raise ConfigError(f"memory must be at least 1 byte, got {memory}")
    if items is None:
        require_no_items_options(items_id, item_columns)
    files, target = log_files([logs] if isinstance(logs, str | Path) else logs), Path(out)
    reading = _Reading(
        format, {"user_id": user, "item_id": item, "timestamp": time}, columns, encoding
    )
    if target.exists() and not overwrite:
        raise DataError(f"{target} exists already: choose another --out or remove it")
    attributes: list[pl.DataFrame] = []

    def about_items(item_ids: pl.Series) -> list[str]:
        frame, notes = read_items(
            Path(items or ""),
            item_ids,
            item,
            id_column=items_id,
            columns=item_columns,
            known_only=known_items_only,
            encoding=encoding,
            literal=literal_ids,
        )
        attributes.append(frame)
        return notes

    if len(files) > 1 or bytes_in_memory(files) > memory:
        limits = Limits(memory)
        with (
            work_folder(target) as folder,
            _scan(files, reading, target, folder, where, limits) as scan,
            telling(target),
        ):
            if scan is not None:
                work = folder / "arrays"
                work.mkdir()
                log = flat_files(
                    scan,
                    work,
                    limits,
                    where,
                    literal_ids,
                    min_user,
                    min_item,
                    merge_repeats,
                    None if items is None else about_items,
                )
                _save(log, attributes, target, note, overwrite)
                return log.summary
    whole = read_log(
        files[0],
        format,
        user,
        item,
        time,
        columns=columns,
        encoding=encoding,
        where=where,
        items=items,
        items_id=items_id,
        item_columns=item_columns,
        known_items_only=known_items_only,
        literal_ids=literal_ids,
    )
    if min_user is not None or min_item is not None or merge_repeats:
        whole = whole.filter(min_user, min_item, merge_repeats)
    whole.to_dataset().save(target, note=_note(whole.summary, note), overwrite=overwrite)
    return whole.summary


def log_files(logs: Sequence[Path | str]) -> list[Path]:
    """The files that paths, folders and patterns name, in order.

    Raises:
        DataError: nothing is named, a folder or pattern holds no file, or a file comes twice.
    """
    files: list[Path] = []
    for log in logs:
        path = Path(log)
        if path.is_dir():
            found = [file for file in path.iterdir() if file.name[0] not in "._"]
            inner = [file.name for file in found if file.is_dir()]
            if inner:
                raise DataError(
                    f"{path} holds folders ({min(inner)}): name the files with a pattern, such as "
                    f"{path / '**' / '*.parquet'}"
                )
        elif not path.exists() and glob.has_magic(str(path)):
            found = [Path(name) for name in glob.glob(str(path), recursive=True)]
            found = [file for file in found if file.is_file()]
        else:
            files.append(path)
            continue
        if not found:
            raise DataError(f"{path}: there is no log file")
        files += sorted(found)
    if not files:
        raise DataError("no log file was named")
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError(f"{file} is named twice: its interactions would count twice")
        seen.add(file.resolve())
    return files


def bytes_in_memory(files: Sequence[Path]) -> int:
    """About the bytes that reading files whole would take; 0 for what is missing.

    A Parquet file packs rows that are alike into next to nothing, so its rows count, too.
    """
    total = 0
    for file in files:
        if file.is_file():
            size = file.stat().st_size
            packed = _PACKED if file.suffix.lower() == ".gz" else 1
            n_rows = parquet_height(file) if size > _SMALL and _is_parquet(file) else 0
            total += max(size * packed * _EXPANSION, n_rows * _ROW)
    return total


def _is_parquet(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def _save(
    log: FlatFiles,
    attributes: list[pl.DataFrame],
    out: Path,
    note: Mapping[str, Any] | None,
    overwrite: bool,
) -> None:
    """Makes prepared data of arrays on the disk and attributes of items, if there are any."""
    removed = None
    if attributes:
        removed = log.read_items.filter(~log.read_items.is_in(log.item_ids.implode()))
    catalog = catalog_of(
        log.summary,
        log.user_ids,
        log.item_ids,
        attributes[0] if attributes else None,
        Source("the attributes"),
        removed,
    )
    save_files(out, log.files, log.lengths, catalog, _note(log.summary, note), overwrite)


def _note(summary: Summary, more: Mapping[str, Any] | None) -> dict[str, Any]:
    filters = ", ".join(summary.filters) or "none"
    return {"source": summary.source, "filters": filters, **(more or {})}


@dataclass(frozen=True)
class _Reading:
    """What was said of how to read the files."""

    format: str | None
    named: Mapping[str, str | None]
    columns: Sequence[str] | None
    encoding: str | None


@contextmanager
def _scan(
    files: Sequence[Path],
    reading: _Reading,
    out: Path,
    folder: Path,
    where: str | None,
    limits: Limits,
) -> Iterator[Scan | None]:
    """The files as one log; None for a file whose format is only read whole."""
    asked = names_in(where)

    def wanted(name: str) -> bool:
        return name in asked or name in MARKS or tells_of_events(name)

    with ExitStack() as opened:
        scans: list[Scan] = []
        for number, file in enumerate(files):
            place = folder / f"file-{number:06}"
            place.mkdir()
            spool = Spool(out, place, wanted, limits.n_bytes)
            r = reading
            found = opened.enter_context(
                scan_columns(file, r.format, r.named, r.columns, r.encoding, spool)
            )
            if found is None:
                if len(files) > 1:
                    raise DataError(
                        f"{file.name}: files of this format are read whole, and several only a "
                        "piece at a time: make one file of them, or Parquet or CSV files"
                    )
                yield None
                return
            scans.append(found)
        yield scans[0] if len(scans) == 1 else _as_one(scans)


def _as_one(scans: Sequence[Scan]) -> Scan:
    """Several files as one log.

    Raises:
        DataError: they do not have the same columns.
    """
    first, *others = scans
    expected = dict(first.frame.collect_schema())
    for scan in others:
        if scan.format != first.format:
            raise scan.source.fail(
                f"read as {scan.format}, and {first.source.name} as {first.format}: give files of "
                "one format, or name it with format= (--format)"
            )
        found = dict(scan.frame.collect_schema())
        if found != expected or set(scan.names) != set(first.names) or scan.roles != first.roles:
            raise scan.source.fail(
                f"its columns are {_shown(scan)}, and those of {first.source.name} "
                f"{_shown(first)}: give files with the same columns"
            )
    return replace(
        first,
        frame=pl.concat([scan.frame.select(list(expected)) for scan in scans]),
        source=Source(f"{first.source.name} and {len(others)} more", _finder(scans)),
        notes=tuple(f"{scan.source.name}: {note}" for scan in scans for note in scan.notes),
    )


def _shown(scan: Scan) -> str:
    types = scan.frame.collect_schema()
    return ", ".join(
        name if scan.text or name not in types else f"{name} ({types[name]})" for name in scan.names
    )


def _finder(scans: Sequence[Scan]) -> Callable[[int], str]:
    """A function that names the file and the place in it of a row of all files."""

    def locate(row: int) -> str:
        for scan in scans[:-1]:
            height = scan.frame.select(pl.len()).collect(engine="streaming").item()
            if row < height:
                return f"{scan.source.name}, {scan.source.locate(row)}"
            row -= height
        return f"{scans[-1].source.name}, {scans[-1].source.locate(row)}"

    return locate
