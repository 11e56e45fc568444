"""``jsonl``: one JSON object a line, its keys the columns."""

import json
from pathlib import Path

import polars as pl

from diffuserec.data.columns import Columns, Source, find_roles
from diffuserec.data.log_format import LogFile, LogFormat
from diffuserec.data.text import line_finder, reason, scan
from diffuserec.errors import DataError


class Jsonl(LogFormat):
    """JSON Lines."""

    name = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    def certainty(self, first_line: str) -> int:
        return 90 if first_line.lstrip().startswith(("{", "[")) else 0

    def read(self, log: LogFile) -> Columns:
        file = log.path
        n_records, blank = scan(file, None, 1, quoted=False)
        source = Source(file.name, line_finder(file, blank, quoted=False, skip=0))
        try:
            with file.open("rb") as stream:  # a path would be taken for a pattern of names
                table = pl.read_ndjson(stream, infer_schema_length=None)
        except pl.exceptions.PolarsError as error:
            raise _bad_line(file, reason(error)) from error
        if table.height != n_records - len(blank):
            raise _bad_line(file, "lines and objects differ in number")
        return Columns(table, find_roles(table.columns, log.named, source), source, self.name)


def _bad_line(file: Path, why: str) -> DataError:
    """An error that names the first line that is no JSON object, or else why there is no table."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            what = "is not a JSON object"
            try:
                if not line.strip() or isinstance(json.loads(line), dict):
                    continue
            except ValueError as problem:
                what = f"is not JSON ({problem})"
            return DataError(
                f"{file.name}, line {number}: {what}: write one object a line, such as "
                '{"user_id": 1, "item_id": 2, "timestamp": 3}'
            )
    return DataError(f"{file.name}: the objects do not make a table ({why}): give a key one type")
