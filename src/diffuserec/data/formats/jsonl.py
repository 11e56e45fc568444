"""``jsonl``: one JSON object a line, its keys the columns.

Polars reads a file whose ids and times it keeps as they are. It would make one type of a column of
several, and lose digits of integers beside floats, so such files, and those with ``NaN``, are read
by Python's own parser, value by value.
"""

import io
import json
import re
from pathlib import Path
from typing import Any

import polars as pl

from diffuserec.data.columns import Columns, Source, find_roles
from diffuserec.data.ids import exact_below
from diffuserec.data.log_format import LogFile, LogFormat
from diffuserec.data.text import BLOCK, BOM, line_finder, scan
from diffuserec.errors import DataError

_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
"""Half of a character of more than 16 bits; without the other, Polars makes a zero byte of it."""


class Jsonl(LogFormat):
    """JSON Lines."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    def certainty(self, first_line: str) -> int:
        return 90 if first_line.lstrip().startswith(("{", "[")) else 0

    def read(self, log: LogFile) -> Columns:
        log.refuse_positions(self.name)
        n_records, blank = scan(log, None, 1, quoted=False)
        source = Source(log.path.name, line_finder(log, blank, quoted=False, skip=0))
        table = _by_polars(log, n_records - len(blank))
        if table is not None:
            roles = find_roles(table.columns, log.named, source)
            return Columns(table, roles, source, self.name, notes=log.notes)
        objects = _by_python(log, source)
        roles = find_roles(list(objects), log.named, source)
        return Columns(pl.DataFrame(), roles, source, self.name, objects=objects, notes=log.notes)


def _by_polars(log: LogFile, n_objects: int) -> pl.DataFrame | None:
    """The table, or None unless every id and time is in it as it is in the file."""
    try:
        with _content(log) as stream:  # a path would be taken for a pattern of names
            table = pl.read_ndjson(stream, infer_schema_length=None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if table.height != n_objects:
        return None
    try:
        roles = find_roles(table.columns, log.named, log.source)
    except DataError:
        return None
    return table if _is_exact(log.path, table, roles) else None


def _is_exact(file: Path, table: pl.DataFrame, roles: dict[str, str]) -> bool:
    """True if each column of a role holds integers alone or strings alone, one an object.

    Times may be floats, if they are too small for integers among them to have lost a digit.
    """
    keys = {role: json.dumps(key, ensure_ascii=False).encode() for role, key in roles.items()}
    n_keys, n_strings = dict.fromkeys(keys, 0), dict.fromkeys(keys, 0)
    with file.open("rb") as stream:
        while lines := stream.readlines(BLOCK):
            text = b"".join(lines)
            if _HALF_PAIR.search(text):
                return False
            for role, key in keys.items():
                n_keys[role] += text.count(key)
                n_strings[role] += text.count(key + b':"') + text.count(key + b': "')
    for role in keys:
        values = table[roles[role]]
        if values.null_count() or n_keys[role] != table.height:
            return False
        if values.dtype == pl.String:
            if n_strings[role] != table.height:
                return False
        elif n_strings[role] or not _is_whole(values, role == "timestamp"):
            return False
    return True


def _is_whole(values: pl.Series, is_time: bool) -> bool:
    if is_time and values.dtype == pl.Float64:
        return bool((values.abs() < float(exact_below(float))).all())
    return values.dtype.is_integer()


def _by_python(log: LogFile, source: Source) -> dict[str, list[Any]]:
    """Values by key; None where an object does not have the key.

    Raises:
        DataError: a line is not a JSON object, or has a key twice; names the line.
    """
    columns: dict[str, list[Any]] = {}
    row = 0
    with _content(log) as stream:
        for line in stream:
            if not line.strip(b" \t\r\n\x1a"):
                continue
            for key, value in _pairs(line, row, source):
                values = columns.setdefault(key, [])
                values.extend([None] * (row - len(values)))
                values.append(_plain(value))
            row += 1
    for values in columns.values():
        values.extend([None] * (row - len(values)))
    return columns


def _pairs(line: bytes, row: int, source: Source) -> "_Pairs":
    try:
        pairs = json.loads(line, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as problem:
        raise _bad_line(source, row, f"is not JSON ({problem})") from problem
    if not isinstance(pairs, _Pairs):
        raise _bad_line(source, row, "is not a JSON object")
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _bad_line(source, row, f"has the key {twice!r} twice")
    return pairs


class _Pairs(list[tuple[str, Any]]):
    """Keys and values of a JSON object, as they stand."""


def _plain(value: Any) -> Any:
    if isinstance(value, _Pairs):
        return {key: _plain(inner) for key, inner in value}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _content(log: LogFile) -> io.BufferedReader:
    """The file, open at the first line that holds something."""
    stream = log.path.open("rb")
    for _ in range(log.skip):
        stream.readline()
    if not log.skip and stream.read(len(BOM)) != BOM:
        stream.seek(0)
    return stream


def _bad_line(source: Source, row: int, what: str) -> DataError:
    return source.fail(
        f'{what}: write one object a line, such as {{"user_id": 1, "item_id": 2, "timestamp": 3}}',
        row,
    )
