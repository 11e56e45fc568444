"""Files appear whole or not at all, one process at a time, and errors are one line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from diffuserec.errors import DataError
from diffuserec.files import (
    locked,
    new_directory,
    read_document,
    read_json,
    replacing,
    sha256,
    write_json,
    write_text,
)


def child(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"import os, sys, time\nfrom pathlib import Path\n{program}"]
        + [str(argument) for argument in arguments],
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "deep" / "a.txt"
    write_text(file, "ä\nb")
    assert file.read_bytes() == "ä\nb".encode()
    with replacing(file) as work:
        work.write_text("other", encoding="utf-8")
        assert file.read_text("utf-8") == "ä\nb"
    assert file.read_text(encoding="utf-8") == "other"
    assert list(file.parent.iterdir()) == [file]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    before = file.read_text(encoding="utf-8")

    def interrupted() -> None:
        with replacing(file) as work:
            work.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert file.read_text(encoding="utf-8") == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["a" * 250, "ä" * 120, "[x]*?", "with blank", ".hidden"])
def test_any_name_can_be_written(tmp_path: Path, name: str) -> None:
    for text in ("first", "second"):
        write_text(tmp_path / name, text)
        assert (tmp_path / name).read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_stands_under_names_like_ours_is_let_alone(tmp_path: Path) -> None:
    mine = tmp_path / ".a.partial"
    mine.write_text("mine", encoding="utf-8")
    (tmp_path / ".ab.1-01234567.partial").write_text("of another path", encoding="utf-8")
    (tmp_path / ".b.partial").symlink_to(tmp_path / "nowhere")
    for name in ("a", "b"):
        write_text(tmp_path / name, "text")
    assert mine.read_text(encoding="utf-8") == "mine"
    assert len(list(tmp_path.iterdir())) == 5


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "a.txt")  # dangling at first
    for text in ("first", "second"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "there" / "a.txt").read_text(encoding="utf-8") == text
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["a.txt"]


def test_two_writers_never_share_a_file_and_the_next_removes_the_rest_of_the_dead(
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.txt"
    program = (
        "from diffuserec.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as work:\n"
        "    work.write_text('half'); print(work.name, flush=True); time.sleep(60)"
    )
    writer = child(program, file)
    assert writer.stdout is not None
    left = writer.stdout.readline().strip()
    assert (tmp_path / left).read_text(encoding="utf-8") == "half"
    with (
        pytest.raises(DataError, match=r"a\.txt is being written by another process"),
        locked(file),
    ):
        pass
    assert (tmp_path / left).exists()
    writer.kill()
    writer.communicate()
    assert (tmp_path / left).exists()
    write_text(file, "whole")
    assert file.read_text(encoding="utf-8") == "whole"
    assert list(tmp_path.iterdir()) == [file]


def test_a_lock_is_of_one_process_and_ends_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    program = (
        "from diffuserec.files import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    holder = child(program, folder)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    for _ in range(2):
        with pytest.raises(DataError, match="run is being written by another process"):
            locked(folder).__enter__()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with (
        locked(folder),
        pytest.raises(DataError, match="another process"),
        locked(tmp_path / "." / "run"),
    ):
        pass
    with locked(folder):
        pass
    assert not list(tmp_path.iterdir())


def test_a_writer_waits_for_a_short_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    program = (
        "from diffuserec.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as work:\n"
        "    work.write_text('first'); print('writing', flush=True); time.sleep(0.5)"
    )
    writer = child(program, file)
    assert writer.stdout is not None
    writer.stdout.readline()
    write_text(file, "second")
    writer.communicate()
    assert writer.returncode == 0
    assert file.read_text(encoding="utf-8") == "second"
    assert list(tmp_path.iterdir()) == [file]


def test_a_new_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a"

    def interrupted() -> None:
        with new_directory(folder) as work:
            (work / "first").write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    with new_directory(folder) as work:
        assert list(work.iterdir()) == []
        (work / "first").write_text("whole", encoding="utf-8")
        assert not folder.exists()
    assert [file.name for file in folder.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_full_or_forbidden_place_is_one_line(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1]})
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"file/a\.txt cannot be written: (Not a|File exists)"):
        write_text(tmp_path / "file" / "a.txt", "x")
    for writer in ("write_parquet", "write_csv", "write_ndjson"):
        with (
            pytest.raises(DataError, match=r"a cannot be written: No such file") as told,
            replacing(tmp_path / "a") as work,
        ):
            getattr(frame, writer)(work / "none" / "x")
        assert "\n" not in str(told.value)
    if Path("/dev/full").exists():

        def fill() -> None:
            with replacing(tmp_path / "a") as work:
                work.symlink_to("/dev/full")
                work.write_text("x" * 10, encoding="utf-8")

        with pytest.raises(DataError, match=r"a cannot be written: No space left on device"):
            fill()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_place_that_takes_no_files_is_one_line() -> None:
    with pytest.raises(
        DataError, match=r"^/proc/x/y cannot be written: No such file or directory$"
    ):
        write_text(Path("/proc/x/y"), "x")


def test_a_document_is_an_object(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"ä": [1]})
    assert read_document(file) == {"ä": [1]}
    write_json(file, [1])
    assert read_json(file) == [1]
    with pytest.raises(ValueError, match="no JSON object"):
        read_document(file)
    with pytest.raises(FileNotFoundError):
        read_document(tmp_path / "none")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\xff", "utf-8"),
        (b"", "Expecting value"),
        (b'{"a": 1, "a": 2}', "key 'a' twice"),
        (b'{"b": {"a": 1, "a": 2}}', "key 'a' twice"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b'{"\\udfff": 1}', "half a character"),
    ],
    ids=range(11),
)
def test_a_document_is_read_strictly(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_document(file)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a file"):
        read_document(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="not a file"):
            read_document(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)  # a hole: takes no room
    with pytest.raises(ValueError, match="too large"):
        read_document(tmp_path / "large")


def test_the_checksum_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    found = sha256(tmp_path / "abc")
    assert found == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1.5, None, "ü"]})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"a": [1.5, None, "ü"]}
