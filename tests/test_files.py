"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from diffuserec.files import (
    new_directory,
    read_document,
    replacing,
    sha256,
    write_json,
    write_text,
)


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    write_text(file, "ä\nb")
    assert file.read_bytes() == "ä\nb".encode()
    with replacing(file) as work:
        work.write_text("other")
        assert file.read_text("utf-8") == "ä\nb"
    assert file.read_text() == "other"
    assert list(file.parent.iterdir()) == [file]


def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    before = file.read_text()

    def interrupted() -> None:
        with replacing(file) as work:
            work.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_directory_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    for content in ("first", "second"):
        with new_directory(folder) as work:
            assert list(work.iterdir()) == []
            (work / content).write_text(content)
        assert [file.name for file in folder.iterdir()] == [content]

    def interrupted() -> None:
        with new_directory(folder) as work:
            (work / "third").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.name for file in folder.iterdir()] == ["second"]
    (tmp_path / ".a.partial").mkdir()  # the rest of a killed one is no obstacle
    (tmp_path / ".a.partial" / "rest").write_text("half")
    with new_directory(folder) as work:
        assert list(work.iterdir()) == []
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_directory_comes_back_if_it_cannot_be_replaced(
    tmp_path: Path, monkeypatch, error
) -> None:
    folder, rename = tmp_path / "folder", Path.rename
    folder.mkdir()
    (folder / "first").write_text("whole")

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise error
        return rename(self, target)

    def replaced() -> None:
        with new_directory(folder) as work:
            (work / "second").write_text("whole")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails)
        with pytest.raises(error):
            replaced()
    assert [file.name for file in folder.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [folder]
    folder.rename(tmp_path / ".folder.old")  # as a kill between the two renames leaves it
    with new_directory(folder) as work:
        assert [file.name for file in folder.iterdir()] == ["first"]
        (work / "second").write_text("whole")
    assert [file.name for file in folder.iterdir()] == ["second"]


def test_a_document_is_an_object(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"ä": [1]})
    assert read_document(file) == {"ä": [1]}
    write_json(file, [1])
    assert read_document(file) == {}
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError):
        read_document(file)
    with pytest.raises(FileNotFoundError):
        read_document(tmp_path / "none")


def test_the_checksum_is_that_of_the_standard(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    found = sha256(tmp_path / "abc")
    assert found == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
