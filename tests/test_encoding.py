"""Every text file is opened with its encoding said: the default is not UTF-8 everywhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tests", "tools", "benchmarks", "examples")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def unsaid(source: str) -> Iterator[ast.Call]:
    """Calls that open, read or write text, or run a program for text, without an encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        said = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in said or None in said:
            continue
        called = node.func
        positional = {"read_text": 0, "write_text": 1}.get(getattr(called, "attr", ""))
        owner = called.value.id if _is_name(called) else ""
        if isinstance(called, ast.Attribute) and positional is not None:
            if len(node.args) <= positional:
                yield node
        elif isinstance(called, ast.Name) and called.id == "open":
            yield from _text(node, node.args[1:2], said, default="r")
        elif isinstance(called, ast.Attribute) and called.attr == "open":
            if owner in ("os", "tarfile", "Image", "zipfile", "webbrowser"):
                continue
            if owner in ("gzip", "bz2", "lzma"):
                yield from _text(node, node.args[1:2], said, default="rb")
            else:
                yield from _text(node, node.args[:1], said, default="r")
        elif owner == "subprocess" and {"text", "universal_newlines"} & said.keys():
            yield node


def _is_name(called: ast.expr) -> bool:
    return isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name)


def _text(
    node: ast.Call, mode: list[ast.expr], said: dict[str | None, ast.expr], default: str
) -> Iterator[ast.Call]:
    given = said.get("mode", mode[0] if mode else ast.Constant(default))
    if isinstance(given, ast.Constant) and isinstance(given.value, str):
        binary = "b" in given.value or (default == "rb" and "t" not in given.value)
        if not binary:
            yield node


@pytest.mark.parametrize(
    ("line", "n"),
    [
        ("path.read_text()", 1),
        ("path.write_text(text)", 1),
        ("path.read_text('utf-8')", 0),
        ("Columns(text=True)", 0),
        ("path.write_text(text, encoding='utf-8')", 0),
        ("open(name)", 1),
        ("open(name, 'rb')", 0),
        ("path.open()", 1),
        ("path.open('w')", 1),
        ("path.open(mode='wb')", 0),
        ("gzip.open(path)", 0),
        ("gzip.open(path, 'wt')", 1),
        ("gzip.open(path, 'w')", 0),
        ("os.open(path, os.O_RDONLY)", 0),
        ("subprocess.run(command, text=True)", 1),
        ("subprocess.run(command)", 0),
    ],
)
def test_calls_are_told_apart(line: str, n: int) -> None:
    assert len(list(unsaid(line))) == n


def test_every_text_file_says_its_encoding() -> None:
    assert len(FILES) > 200
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in FILES
        for call in unsaid(path.read_text(encoding="utf-8"))
    ]
    assert found == []
