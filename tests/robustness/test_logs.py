"""Odd and damaged logs of every format: read as they are, or refused in one line.

Each case writes a log from a seed. What comes back is compared with what was written, or, where
bytes were damaged, with what Python's own ``csv`` and ``json`` find in the file. Nothing else may
happen: no other exception, no file left behind, no waiting.

``DIFFUSEREC_CASES=10000 pytest -m slow tests/robustness/test_logs.py`` runs the whole campaign.
"""

import csv
import datetime as dt
import gzip
import io
import json
import os
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from diffuserec.data import Interactions, from_frame, read_log
from diffuserec.errors import ConfigError, DataError

BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
MISSING = {"", "nan", "null", "none", "<na>", "\\n"}
WHOLE = re.compile(r"(-?[1-9][0-9]*|0)(\.0+)?")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE]\+\d+)?")
INT64 = range(-(2**63), 2**63)
EPOCH = dt.datetime(1970, 1, 1)

Row = tuple[Any, Any, Any]


class Refused(Exception):
    """The log must not be read."""


def text_ids(values: list[str]) -> list[Any]:
    """What ids of a text file are."""
    bare = [value.strip(BLANKS) for value in values]
    if any(value.lower() in MISSING for value in bare):
        raise Refused
    parts = [WHOLE.fullmatch(value) for value in bare]
    if all(part and int(part[1]) in INT64 for part in parts):
        if any(part and part[2] and abs(int(part[1])) >= 2**53 for part in parts):
            raise Refused
        return [int(part[1]) for part in parts if part]
    if all(map(NUMBER.fullmatch, bare)):
        if any("e" in value.lower() for value in bare):
            raise Refused
        if all(parts) and any(p and p[2] and abs(int(p[1])) >= 2**53 for p in parts):
            raise Refused
    return bare


def object_ids(values: list[Any]) -> list[Any]:
    """What ids of JSON and of frames of objects are."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise Refused
        if isinstance(value, int) and value not in INT64:
            raise Refused
        if isinstance(value, str) and (
            value.strip(BLANKS).lower() in MISSING or not is_text(value)
        ):
            raise Refused
        found.append(value)
    if len({isinstance(value, str) for value in found}) > 1:
        raise Refused
    return found


def is_text(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


IDS = [
    lambda r: str(r.randrange(20)),
    lambda r: str(r.choice([2**53, 2**62, 2**63 - 2, 0, -(2**63)]) + r.randrange(2)),
    lambda r: r.choice(["7", "7.0", "8.00", "0", "-3", "-3.0", "12"]),
    lambda r: r.choice(["007", "7", "+7", "-0", "7.5", "1e5", "18446744073709551616"]),
    lambda r: r.choice(["B01", "B02 ", " B02", "B\xa003", "\xa0B03", "ä", "日本", "x y", "🎬"]),
    lambda r: r.choice(['say "hi"', "a,b", "a;b", "a|b", "it's", "#1", "[b]", "=1", "a::b", "'"]),
    lambda r: r.choice(["u1", "U1", "ann", "zoë", "nullary", "nano", "None of it", "e+5", "true"]),
    lambda r: r.choice(["1", "null", "NaN", "2", "3", "4", "5", "6", "", "  "]),
    lambda r: r.choice(["1", "1.582218195625939e+18", "9007199254740993.0", "2", "3", "4"]),
]  # fmt: skip


def ids(r: random.Random, n: int) -> list[str]:
    make = r.choices(IDS, [6, 3, 3, 2, 4, 4, 4, 1, 1])[0]
    return [make(r) for _ in range(n)]


def times(r: random.Random, n: int) -> tuple[list[str], list[int]]:
    """Times as text and as what they are."""
    seconds = [r.randrange(1_500_000_000) for _ in range(n)]
    moments = [EPOCH + dt.timedelta(seconds=second) for second in seconds]
    kind = r.randrange(8)
    if kind < 3:
        return [str(second) for second in seconds], seconds
    if kind == 3:
        return [f"{second}.0" for second in seconds], seconds
    if kind == 4:
        return [f"{second}.5" for second in seconds], [s * 10**6 + 500_000 for s in seconds]
    zone = r.choice(["", "Z", " UTC", " GMT", "+00:00", " +0000", "+02:00"])
    shift = 7200 if zone == "+02:00" else 0
    between = r.choice("T ")
    texts = [f"{moment:%Y-%m-%d}{between}{moment:%H:%M:%S}{zone}" for moment in moments]
    return texts, [(second - shift) * 10**6 for second in seconds]


def in_order(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row[0], row[2] or 0))


def found(log: Interactions) -> list[Row]:
    names = [name for name in ("user_id", "item_id", "timestamp") if name in log.frame.columns]
    return [row if len(row) == 3 else (*row, None) for row in log.frame.select(names).rows()]


def one_line(error: Exception, name: str) -> None:
    assert "\n" not in str(error)
    assert name in str(error)


class Case:
    """One log in a folder of its own, and what must come of it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder, self.options = folder, {"allow_single": True}
        n = self.random.randrange(1, 12)
        self.users, self.items = ids(self.random, n), ids(self.random, n)
        self.time_texts, self.times = times(self.random, n)

    def run(self, damaged: bool) -> None:
        kinds = ["csv", "csv", "csv", "jsonl", "jsonl", "inter", "movielens", "lines", "frame"]
        kind = "parquet" if self.random.random() < 0.03 else self.random.choice(kinds)
        if kind == "frame":
            self.frame()
            return
        name, content = getattr(self, kind)()
        if damaged:
            content = self.damage(content)
        packed = kind != "parquet" and self.random.random() < 0.2
        if packed:
            content, name = gzip.compress(content, 1), name + ".gz"
            if damaged and self.random.random() < 0.3:
                content = self.damage(content)
        path = self.folder / name
        path.write_bytes(content)
        try:
            log = read_log(path, **self.options)  # type: ignore[arg-type]
        except (DataError, ConfigError) as error:
            one_line(error, name)
            if not damaged:
                self.must_be_refused(kind)
            return
        if not damaged:
            assert found(log) == in_order(self.expected(kind))
        elif kind in ("csv", "jsonl") and not packed:
            self.compare(log, kind, content)

    def expected(self, kind: str) -> list[Row]:
        rule = object_ids if kind in ("jsonl", "frame") else text_ids
        if kind == "lines":
            return self.lines_expected()
        users, items = rule(self.users), rule(self.items)
        return list(zip(users, items, self.times, strict=True))

    def must_be_refused(self, kind: str) -> None:
        with pytest.raises(Refused):
            self.expected(kind)

    # --- files ---

    def csv(self) -> tuple[str, bytes]:
        r = self.random
        separator = r.choice(",;\t|")
        header = r.choice([
            ("user_id", "item_id", "timestamp"), ("userId", "movieId", "ts"),
            ("User ID", "SKU", "date"), ("customer_id", "asin", "unixReviewTime"),
        ])  # fmt: skip
        extra = r.choice([(), ("title",), ("price", "note")])
        stream = io.StringIO()
        write = csv.writer(
            stream,
            delimiter=separator,
            quoting=r.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
            lineterminator=r.choice(["\n", "\r\n"]),
        ).writerow
        by_position = r.random() < 0.15 and not any("#" in value for value in self.users)
        by_position = by_position and bool(self.users[0].strip(BLANKS))
        if by_position:
            self.options["columns"] = ["user", "item", "time", *extra]
        else:
            write([*header, *extra])
        for row in zip(self.users, self.items, self.time_texts, strict=True):
            write([*row, *(r.choice(["", "1.5", 'a "b"', "x\ny", "NULL", "-"]) for _ in extra)])
        text = stream.getvalue()
        if r.random() < 0.1:
            text = r.choice(["\n", "# made by a program\n", "\r\n\n"]) + text
        elif r.random() < 0.1 and not by_position:
            text = f"sep={separator}\n{text}"
        text += r.choice(["", "", "\n", "\r\n", "\x1a"] if text.endswith("\n") else [""])
        encoding = r.choice(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"])
        if encoding == "latin-1" and text.encode("latin-1", "replace").decode("latin-1") != text:
            encoding = "utf-8"
        if encoding in ("latin-1", "utf-16"):
            self.options["encoding"] = encoding
        return r.choice(["log.csv", "log[1].csv"]), text.encode(encoding)

    def jsonl(self) -> tuple[str, bytes]:
        r = self.random
        if r.random() < 0.6:
            as_numbers = [int(user) if re.fullmatch(r"-?[1-9]\d*|0", user) else user
                          for user in self.users]  # fmt: skip
            self.users = as_numbers if r.random() < 0.8 else self.users  # type: ignore[assignment]
        if r.random() < 0.1:
            self.items[r.randrange(len(self.items))] = r.choice(  # type: ignore[call-overload]
                [5.0, 5.5, float("nan"), float("inf"), True, None, [1], "\ud800", 2**64, 2.0**60]
            )
        ascii_only = r.random() < 0.5 or not all(is_text(str(item)) for item in self.items)
        lines = [
            json.dumps(
                {"user_id": user, "item_id": item, "timestamp": text, "rating": rating},
                ensure_ascii=ascii_only,
                separators=r.choice([(",", ":"), (", ", ": ")]),
            )
            for user, item, text, rating in zip(
                self.users,
                self.items,
                [int(text) if text.isdigit() else text for text in self.time_texts],
                [r.choice([1, 2.5, None, float("nan"), "x"]) for _ in self.users],
                strict=True,
            )
        ]
        text = r.choice(["\n", "\r\n", "\n\n"]).join(lines) + r.choice(
            ["", "\n", "\n  \n", "\n\x1a"]
        )
        return "log.jsonl", text.encode(r.choice(["utf-8", "utf-8-sig"]))

    def inter(self) -> tuple[str, bytes]:
        separator = self.random.choice("\t\t,|")
        values = [*self.users, *self.items]
        if any(separator in value for value in values):
            separator = "\t"
        lines = [separator.join(["user_id:token", "item_id:token", "timestamp:float"])]
        rows = zip(self.users, self.items, self.time_texts, strict=True)
        lines += [separator.join(row) for row in rows]
        return "log.inter", "\n".join(lines).encode()

    def movielens(self) -> tuple[str, bytes]:
        self.users = [value.replace("::", "") for value in self.users]
        self.items = [value.replace("::", "") for value in self.items]
        lines = [
            f"{user}::{item}::4::{text}"
            for user, item, text in zip(self.users, self.items, self.time_texts, strict=True)
        ]
        if self.random.random() < 0.3:
            self.options["columns"] = ["user", "item", "stars", "time"]
        self.options["format"] = "movielens"
        return "ratings.dat", "\n".join(lines).encode()

    def lines(self) -> tuple[str, bytes]:
        """Pairs or sequences."""
        clean = re.compile(rf"[{re.escape(BLANKS)}#]+")
        self.users = [clean.sub("_", value) or "_" for value in self.users]
        self.items = [clean.sub("_", value) or "_" for value in self.items]
        rows = list(zip(self.users, self.items, strict=True))
        self.options["format"] = self.random.choice(["pairs", "sequences"])
        between = self.random.choice([" ", "\t", "  "])
        if self.options["format"] == "pairs":
            lines = [between.join(row) for row in rows]
        else:
            own: dict[str, list[str]] = {}
            for user, item in rows:
                own.setdefault(user, []).append(item)
            lines = [between.join([user, *items]) for user, items in own.items()]
            self.users = [user for user, items in own.items() for _ in items]
            self.items = [item for items in own.values() for item in items]
        self.written = lines
        return "log.txt", "\n".join(lines).encode() + self.random.choice([b"", b"\n", b"\n \n"])

    def lines_expected(self) -> list[Row]:
        rows = list(zip(self.users, self.items, strict=True))
        others = self.written[1:]
        numbers = re.compile(r"[-+]?[\d.]+(\s+[-+]?[\d.]+)*")
        if others and not re.search(r"\d", self.written[0]) and all(map(numbers.fullmatch, others)):
            rows = rows[len(self.written[0].split()) - 1 :]
        users, items = text_ids([row[0] for row in rows]), text_ids([row[1] for row in rows])
        return [(user, item, None) for user, item in zip(users, items, strict=True)]

    def parquet(self) -> tuple[str, bytes]:
        stream = io.BytesIO()
        columns = {"user_id": [*range(50)], "item_id": ["a", "b"] * 25, "time": [1.5, None] * 25}
        pl.DataFrame(columns).with_columns(pl.col("time").fill_null(2.0)).write_parquet(stream)
        self.users, self.items = [str(n) for n in range(50)], ["a", "b"] * 25
        self.times = [1_500_000, 2_000_000] * 25
        return "log.parquet", stream.getvalue()

    def frame(self) -> None:
        r = self.random
        odd = [1, 2, 3.0, "x", "7", None, float("nan"), True, 2**70, 1.5, 2.0**60, b"a", pd.NA]
        objects: list[Any] = [r.choice(odd[: r.choice([2, 3, 13])]) for _ in self.users]
        columns = {"user": objects, "item": self.items, "time": self.times}
        columns["note"] = [r.choice([1, "x", 2.5, None, [1], 1j]) for _ in self.users]
        frame = pd.DataFrame(
            {name: pd.Series(values, dtype=object) for name, values in columns.items()}
        )
        self.users, self.times = objects, [int(value) for value in self.times]
        try:
            log = from_frame(pd.concat([frame, frame]))
        except DataError as error:
            one_line(error, "the pandas frame")
            if len({*map(str, self.users)}) > 1 and len({*self.items}) > 1:
                self.must_be_refused("frame")
            return
        assert found(log) == in_order([row for row in self.expected("frame") for _ in range(2)])

    # --- damage ---

    def damage(self, content: bytes) -> bytes:
        r, bad = self.random, bytearray(content)
        for _ in range(r.randrange(1, 4)):
            at, kind = r.randrange(len(bad) + 1), r.randrange(6)
            if kind == 0:
                bad[at : at + 1] = bytes([r.randrange(256)])
            elif kind == 1:
                del bad[at : at + r.randrange(1, 9)]
            elif kind == 2:
                bad[at:at] = r.choice(
                    [b'"', b",", b"\n", b"\r", b"\t", b" ", b"\xff", b"\x00", b"}"]
                )
            elif kind == 3:
                bad = bad[:at]
            elif kind == 4:
                bad[at:at] = bad[at : at + r.randrange(1, 40)]
            else:
                bad[at:at] = r.choice(
                    [b"1e400", b"\xc2\xa0", b"\\ud800", b'""', b"NaN", b"-", b".0"]
                )
        return bytes(bad)

    def compare(self, log: Interactions, kind: str, content: bytes) -> None:
        """The ids that Python's own module finds in the damaged file."""
        text = content.decode(str(self.options.get("encoding", "utf-8-sig")))
        (user, _), (item, _) = log.summary.columns[:2]
        if kind == "jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip(" \t\r\n\x1a")]
            assert len(rows) == len(log)
            rule = object_ids
        else:
            if re.search(r"\r(?!\n)", text) or re.match(r"\s*(sep=|#)", text, re.IGNORECASE):
                return
            first, _, rest = text.lstrip("\r\n").partition("\n")
            separator = max(",;\t|", key=first.count)
            if self.options.get("columns") or first.count('"') % 2:
                return
            names = [name.strip() for name in next(csv.reader([first], delimiter=separator))]
            table = csv.reader(io.StringIO(rest, newline=""), delimiter=separator)
            rows = [dict(zip(names, row, strict=True)) for row in table if row and row != ["\x1a"]]
            rule = text_ids
        users = rule([row.get(user) for row in rows])
        items = rule([row.get(item) for row in rows])
        pairs = sorted(zip(users, items, strict=True), key=lambda pair: pair[0])
        assert sorted(log.frame.select("user_id", "item_id").rows()) == sorted(pairs)


def campaign(folder: Path, seeds: range) -> None:
    """Runs cases, each in a folder of its own."""
    temporary = folder / "temporary"
    temporary.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        for seed in seeds:
            own = folder / str(seed)
            own.mkdir()
            began = time.perf_counter()
            try:
                Case(own, seed).run(damaged=seed % 3 > 0)
            except BaseException as error:
                error.add_note(f"case {seed}")
                raise
            assert time.perf_counter() - began < 30, seed
            assert len(list(own.iterdir())) <= 1, seed
            assert not list(temporary.iterdir()), seed
    finally:
        tempfile.tempdir = before


def test_odd_logs_are_read_as_they_are_or_refused(tmp_path: Path) -> None:
    campaign(tmp_path, range(90))


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_odd_logs_are_read_as_they_are_or_refused(tmp_path: Path) -> None:
    campaign(tmp_path, range(int(os.environ.get("DIFFUSEREC_CASES", "10000"))))
