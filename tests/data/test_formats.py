"""Log formats: those of this package, and those that other packages add."""

import copy
import csv
import io
import sys
import textwrap
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuserec.data import FORMATS, LogFile, LogFormat, from_frame, read_log
from diffuserec.data.columns import Columns, Source, find_roles
from diffuserec.data.formats import writable_format
from diffuserec.data.log_format import require_flat
from diffuserec.data.text import blocks
from diffuserec.errors import ConfigError, DataError
from diffuserec.registry import Registry


class Arrows(LogFormat):
    """Lines such as ``ann -> tea @ 3``, as a test of someone else's format."""

    name = "arrows"
    suffixes = (".arrows",)

    def certainty(self, first_line: str) -> int:
        return 85 if " -> " in first_line else 0

    def read(self, log: LogFile) -> Columns:
        log.refuse_named_columns(self.name)
        source = Source(log.path.name, lambda row: f"line {row + 1}")
        rows = []
        for number, line in enumerate(log.path.read_text(encoding="utf-8").splitlines()):
            user, arrow, rest = line.partition(" -> ")
            item, at, time = rest.partition(" @ ")
            if not (arrow and at):
                raise source.fail("expected user -> item @ time", number)
            rows.append((user, item, time))
        names = ["user_id", "item_id", "timestamp"]
        table = pl.DataFrame(rows, schema=names, orient="row")
        return Columns(table, find_roles(names, log.named, source), source, self.name, text=True)

    def write(self, frame: pl.DataFrame, stream: BinaryIO, source: Source) -> None:
        require_flat(frame, self.name, source, forbidden=r"[\n\r]| -> ")
        for user, item, time in frame.select("user_id", "item_id", "timestamp").rows():
            stream.write(f"{user} -> {item} @ {time}\n".encode())


class Blob(LogFormat):
    """A binary format with a mark of its own."""

    name = "blob"
    title = "BLOB"
    binary = True
    magic = b"\x80BLOB\x00"

    def read(self, log: LogFile) -> Columns:
        assert log.first_line == ""
        n = log.path.read_bytes()[len(self.magic)]
        table = pl.DataFrame({"user": [1, 2] * n, "item": [*range(2 * n)], "time": [*range(2 * n)]})
        roles = find_roles(table.columns, log.named, log.source)
        return Columns(table, roles, log.source, self.name)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Registry[type[LogFormat]]:
    """The registry of one test, with both formats."""
    registry = copy.deepcopy(FORMATS)
    monkeypatch.setattr("diffuserec.data.formats.FORMATS", registry)
    assert registry.register("arrows", Arrows) is Arrows
    registry.register("blob", Blob)
    return registry


LOG = "bo -> tea @ 7\nann -> tea @ 3\nann -> cup @ 2\n"
ROWS = [("ann", "cup", 2), ("ann", "tea", 3), ("bo", "tea", 7)]


OURS = ["csv", "inter", "jsonl", "movielens", "pairs", "parquet", "sequences", "tsv"]


def test_every_file_of_the_folder_is_a_format_of_its_name() -> None:
    assert set(OURS) <= set(FORMATS.names())  # installed packages may add some
    for name in OURS:
        some = FORMATS.find(name)()
        assert some.name == name
        assert some.writable == (name in ("csv", "inter", "parquet", "sequences"))


@pytest.mark.parametrize(
    "first, format",
    [
        ('{"user": 1, "item": "a:token", "time": 3}', "jsonl"),
        ("user_id:token\titem_id:token\ttimestamp:float", "inter"),
        ("user\titem\ttime", "tsv"),
        ("user::item,item::time", "csv"),  # two usual names are a header, whatever else is there
        ("Ann, B.::tea; green::5::3", "movielens"),
        ("name;tea;3", "csv"),
        ("ann tea cup", "sequences"),
    ],
)
def test_the_surest_format_takes_a_file_without_a_name(first: str, format: str) -> None:
    sure = {name: FORMATS.find(name)().certainty(first) for name in OURS}
    assert max(sure, key=lambda name: sure[name]) == format
    assert sorted(sure.values())[-1] > sorted(sure.values())[-2]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    "name, format", [("log.arrows", None), ("log", None), ("log.txt", None), ("log.csv", "arrows")]
)
def test_a_registered_format_is_read_by_suffix_content_and_name(
    tmp_path: Path, name: str, format: str | None
) -> None:
    (tmp_path / name).write_text(LOG, encoding="utf-8")
    log = read_log(tmp_path / name, format)
    assert log.frame.rows() == ROWS
    assert log.summary.format == "arrows"


@pytest.mark.usefixtures("registered")
def test_a_registered_format_is_written_and_refuses(tmp_path: Path) -> None:
    log = from_frame(pl.DataFrame(ROWS, schema=["user", "item", "time"], orient="row"))
    for name, format in (("a.arrows", None), ("b.txt", "arrows")):
        log.write(tmp_path / name, format)
        assert read_log(tmp_path / name).frame.rows() == ROWS
    bad = log.frame.with_columns(user_id=pl.Series(["x -> y", "b", "c"]))
    with pytest.raises(DataError, match="arrows cannot hold the user_id 'x -> y'"):
        from_frame(bad).write(tmp_path / "bad.arrows")
    assert not (tmp_path / "bad.arrows").exists()
    (tmp_path / "torn.arrows").write_text(LOG + "cy -> \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"torn\.arrows, line 4: expected user -> item @ time"):
        read_log(tmp_path / "torn.arrows")
    with pytest.raises(DataError, match=r"read as arrows, which has no column names: .*user="):
        read_log(tmp_path / "a.arrows", user="who")
    with pytest.raises(ConfigError, match="no format 'blob' to write"):
        log.write(tmp_path / "x", "blob")


@pytest.mark.usefixtures("registered")
def test_a_registered_binary_format_is_known_by_its_mark(tmp_path: Path) -> None:
    for name, format in (("log.dat", None), ("log", None), ("log.csv", "blob")):
        (tmp_path / name).write_bytes(Blob.magic + b"\x03")
        log = read_log(tmp_path / name, format)
        assert (len(log), log.summary.format) == (6, "blob")
    (tmp_path / "other").write_text(LOG, encoding="utf-8")
    with pytest.raises(DataError, match="not a BLOB file"):
        read_log(tmp_path / "other", "blob")


def test_unregistered_formats_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "log.arrows").write_text(LOG, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no format 'arrow'; there are: .*csv, inter, jsonl"):
        read_log(tmp_path / "log.arrows", "arrow")
    with pytest.raises(ConfigError, match=r"no format '\.arrows' to write"):
        writable_format(tmp_path / "new.arrows", None)


def test_no_format_takes_files_from_those_of_this_package(tmp_path: Path, registered) -> None:
    class Greedy(Arrows):
        name = "greedy"
        suffixes = (".csv", ".inter")

        def certainty(self, first_line: str) -> int:
            return 70

    registered.register("greedy", Greedy)
    content = "user,item,time\n1,2,3\n2,3,4\n"
    for name in ("log.csv", "log"):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read_log(tmp_path / name).summary.format == "csv"
    assert writable_format(tmp_path / "new.inter", None) == "inter"


def test_a_broken_format_of_others_breaks_no_file_of_ours(tmp_path: Path, registered) -> None:
    class Broken(Arrows):
        name = "broken"

        def __init__(self) -> None:
            raise RuntimeError("broken")

    registered.register("broken", Broken)
    (tmp_path / "log.csv").write_text("user,item,time\n1,2,3\n2,3,4\n", encoding="utf-8")
    log = read_log(tmp_path / "log.csv")
    for name in ("log.parquet", "log.inter", "log.txt"):
        log.write(tmp_path / name)
    assert read_log(tmp_path / "log.txt", "sequences").summary.n_users == 2
    assert read_log(tmp_path / "log.parquet").frame.equals(log.frame)
    (tmp_path / "log.arrows").write_text(LOG, encoding="utf-8")
    assert read_log(tmp_path / "log.arrows", "arrows").frame.rows() == ROWS
    with pytest.raises(RuntimeError, match="broken"):  # asked whether the file is its own
        read_log(tmp_path / "log.txt")


def test_only_formats_are_registered() -> None:
    for part in ("csv", dict, Arrows()):
        with pytest.raises(ConfigError, match="subclass of LogFormat"):
            FORMATS.register("mine", part)
    with pytest.raises(ConfigError, match="'csv' is taken"):
        FORMATS.register("csv", Arrows)


def test_a_format_is_registered_by_its_own_name(tmp_path: Path, registered) -> None:
    registered.register("darts", Arrows)
    with pytest.raises(ConfigError, match="'darts' names itself 'arrows'"):
        read_log(tmp_path / "log", "darts")


def test_an_installed_package_declares_a_format(tmp_path: Path, monkeypatch) -> None:
    """A module and the metadata that its installation would write."""
    code = """
        from diffuserec.data import LogFormat
        from diffuserec.data.text import read_table

        class Bars(LogFormat):
            name = "bars"
            suffixes = (".bars",)

            def read(self, log):
                return read_table(log, self.name, "|")
    """
    (tmp_path / "barlog.py").write_text(textwrap.dedent(code), encoding="utf-8")
    info = tmp_path / "barlog-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: barlog\nVersion: 1.0\n", encoding="utf-8"
    )
    (info / "entry_points.txt").write_text(
        "[diffuserec.formats]\nbars = barlog:Bars\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    fresh: Registry[type[LogFormat]] = Registry("format", LogFormat, "diffuserec.data.formats")
    assert fresh.group == FORMATS.group == "diffuserec.formats"
    assert "bars" in fresh.names()
    assert "barlog" not in sys.modules  # imported when it is used
    found = fresh.find("bars")
    monkeypatch.delitem(sys.modules, "barlog")
    log_file = tmp_path / "log.bars"
    log_file.write_text("user|item|time\n1|a,b|3\n2|c|4\n", encoding="utf-8")
    named = {"user_id": None, "item_id": None, "timestamp": None}
    columns = found().read(LogFile(log_file, named, "user|item|time", explicit=True))
    assert columns.table.rows() == [("1", "a,b", "3"), ("2", "c", "4")]
    assert columns.roles == {"user_id": "user", "item_id": "item", "timestamp": "time"}


# --- records of text files -----------------------------------------------------------------------

fields = st.text(st.sampled_from('ab,"\n '), max_size=6)


@settings(deadline=None)
@given(
    st.lists(st.lists(fields, min_size=1, max_size=3), min_size=1, max_size=12),
    st.integers(1, 40),
    st.booleans(),
)
def test_records_are_whole_whatever_the_block(
    tmp_path_factory, records: list[list[str]], size: int, ends_with_line_feed: bool
) -> None:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(records)
    content = stream.getvalue() if ends_with_line_feed else stream.getvalue().removesuffix("\n")
    path = tmp_path_factory.mktemp("blocks") / "log.csv"
    path.write_text(content, encoding="utf-8")
    found, lines = [], []
    for block in blocks(path, quoted=True, size=size):
        assert block.record == len(found)
        for number, (start, end) in enumerate(zip(block.starts, block.ends, strict=True)):
            found.append(block.text[start:end].decode())
            lines.append(block.line_of(number))
        assert block.quotes.tolist() == [n for n, byte in enumerate(block.text) if byte == 34]
    assert list(csv.reader(io.StringIO("\n".join(found)))) == records
    heights = [text.count("\n") + 1 for text in found]
    assert lines == list(accumulate(heights[:-1], initial=1))


def test_unquoted_records_end_with_every_line_feed(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text('a "b\nc" d\n\ne', encoding="utf-8")
    for size in (1, 3, 100):
        texts = [
            block.text[start:end].decode()
            for block in blocks(path, quoted=False, size=size)
            for start, end in zip(block.starts, block.ends, strict=True)
        ]
        assert texts == ['a "b', 'c" d', "", "e"]
