"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from diffuserec.files import replacing, write_json, write_text


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
