"""Registries: parts of a folder, of the running program, and of installed packages."""

import importlib
import sys
from pathlib import Path

import pytest

from diffuserec.errors import ConfigError
from diffuserec.registry import Registry


def registry(folder: str | None = None) -> Registry[type]:
    """Of a folder's errors, or of any classes."""
    return Registry("shape", ValueError if folder else type, folder)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> str:
    """An importable package of two files with a shape each, a private file and one that fails."""
    package = tmp_path / "shapes_of_this_test"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "circle.py").write_text(
        "class Circle(ValueError): pass\nclass _Round(ValueError): pass", encoding="utf-8"
    )
    (package / "square.py").write_text(
        "from .circle import Circle\nclass Square(ValueError): pass\nSIDES = 4", encoding="utf-8"
    )
    (package / "_private.py").write_text("class Private: pass", encoding="utf-8")
    (package / "broken.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield package.name
    for name in [name for name in sys.modules if name.startswith(package.name)]:
        del sys.modules[name]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package, which declares shapes as entry points, for this test."""
    made = []

    def installed(package: str, entries: dict[str, str], content: str = "") -> Path:
        site = tmp_path / "site"
        (site / f"{package}-1.dist-info").mkdir(parents=True)
        (site / f"{package}-1.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n", encoding="utf-8"
        )
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (site / f"{package}-1.dist-info" / "entry_points.txt").write_text(
            "\n".join(["[diffuserec.shapes]", *lines]), encoding="utf-8"
        )
        (site / f"{package}.py").write_text(content, encoding="utf-8")
        if not made:
            monkeypatch.syspath_prepend(site)
        made.append(package)
        return site

    yield installed
    for name in made:
        sys.modules.pop(name, None)


# --- files of a folder --------------------------------------------------------------------------


def test_files_of_a_folder_are_parts_and_imported_when_first_used(folder) -> None:
    shapes = registry(folder)
    assert shapes.names() == ["broken", "circle", "square"]
    assert f"{folder}.circle" not in sys.modules
    assert shapes.module_name("circle") == f"{folder}.circle"
    assert f"{folder}.circle" not in sys.modules
    circle = shapes.find("circle")
    assert (circle.__name__, circle.__module__) == ("Circle", f"{folder}.circle")
    assert shapes.find("circle") is circle
    assert f"{folder}.square" not in sys.modules
    with pytest.raises(RuntimeError, match="imported"):
        shapes.find("broken")


@pytest.mark.parametrize("content, n", [("", 0), ("class {0}(ValueError): pass", 2)])
def test_a_file_that_does_not_hold_one_part_is_refused(folder, content, n) -> None:
    file = Path(importlib.import_module(folder).__file__).with_name("several.py")
    file.write_text("\n".join(content.format(name) for name in ("One", "Two")), encoding="utf-8")
    message = (
        rf"^{folder}.several defines {n} public shape classes: a file in this folder holds one$"
    )
    with pytest.raises(ConfigError, match=message):
        registry(folder).find("several")


def test_an_unknown_part_is_named_with_the_nearest_and_all_others(folder) -> None:
    with pytest.raises(ConfigError) as caught:
        registry(folder).find("circel")
    expected = "no shape 'circel' (did you mean 'circle'?); there are: broken, circle, square"
    assert str(caught.value) == expected


@pytest.mark.parametrize("name", ["_private", "os", "../circle", "circle.Circle", ""])
def test_only_the_names_of_parts_make_code_run(folder, name) -> None:
    with pytest.raises(ConfigError, match=r"^no shape "):
        registry(folder).find(name)
    assert f"{folder}._private" not in sys.modules


def test_the_name_of_a_part_is_that_of_its_file(folder) -> None:
    shapes = registry(folder)
    assert shapes.name_of(shapes.find("square")) == "square"
    # asked before it was found by name
    fresh = registry(folder)
    assert fresh.name_of(sys.modules[f"{folder}.square"].Square) == "square"
    assert fresh.name_of(type("Square", (), {})) is None
    assert fresh.name_of("square") is None


# --- registered ---------------------------------------------------------------------------------


class Mine(ValueError):
    """A shape of one's own."""


class Other(ValueError):
    """Another."""


def test_a_registered_part_is_found_by_its_name() -> None:
    shapes = registry()
    assert shapes.names() == []
    assert shapes.register("mine", Mine) is Mine
    assert shapes.names() == ["mine"]
    assert shapes.find("mine") is Mine
    assert shapes.name_of(Mine) == "mine"
    assert shapes.module_name("mine") == __name__
    with pytest.raises(ConfigError, match=r"^no shape 'other'; there are: mine$"):
        shapes.find("other")


def test_a_taken_name_is_refused(folder) -> None:
    shapes = registry(folder)
    shapes.register("mine", Mine)
    shapes.register("mine", Mine)  # itself is no other part
    for name in ("mine", "circle"):
        with pytest.raises(ConfigError, match=rf"^the shape name '{name}' is taken: choose anoth"):
            shapes.register(name, Other)
    assert shapes.find("mine") is Mine
    assert shapes.find("circle").__name__ == "Circle"


def test_what_is_no_such_part_is_refused(folder) -> None:
    shapes = registry(folder)
    message = r"^a shape is a subclass of ValueError, got (<class 'int'>|3)$"
    for part in (int, 3):
        with pytest.raises(ConfigError, match=message):
            shapes.register("number", part)
    assert "number" not in shapes.names()
    with pytest.raises(ConfigError, match=r"^an entry is an int, got 'three'$"):
        Registry("entry", int).register("three", "three")


CELL = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Formula:
    function: object
def area(x):
    return x * {factor}
part = Formula(area)
class Part:
    factor = {factor}
"""


def executed(factor: int) -> dict[str, object]:
    """A notebook's cell, executed."""
    names: dict[str, object] = {"__name__": "__main__"}
    exec(CELL.format(factor=factor), names)
    return names


@pytest.mark.parametrize("name", ["Part", "part"])
def test_a_definition_that_is_executed_again_replaces_the_earlier_one(name) -> None:
    # a class, or an object that holds a function
    shapes: Registry[object] = Registry("shape", object)
    first, second = executed(1), executed(2)
    shapes.register("it", first[name])
    shapes.register("it", second[name])
    assert shapes.find("it") is second[name]
    with pytest.raises(ConfigError, match="taken"):
        shapes.register("it", second["area"])


# --- installed packages -------------------------------------------------------------------------


def test_an_installed_package_declares_parts(install, folder) -> None:
    content = "class Star(ValueError): pass"
    install("stars", {"star": "stars:Star"}, content)
    shapes = registry(folder)
    assert shapes.names() == ["broken", "circle", "square", "star"]
    assert shapes.module_name("star") == "stars"
    assert "stars" not in sys.modules
    star = shapes.find("star")
    assert issubclass(star, ValueError)
    assert shapes.name_of(star) == "star"
    with pytest.raises(ConfigError, match="'star' is taken"):
        shapes.register("star", Other)


def test_what_an_entry_point_loads_is_checked(install) -> None:
    install("stars", {"star": "stars:Star"}, "Star = 3")
    with pytest.raises(ConfigError, match=r"^a shape is a type, got 3$"):
        registry().find("star")


def test_an_entry_point_may_lead_to_what_registers_itself(install, monkeypatch) -> None:
    shapes: Registry[type] = Registry("shape", object)
    monkeypatch.setattr(sys.modules[__name__], "shapes", shapes, raising=False)
    content = f"""
import sys
class Star: pass
sys.modules[{__name__!r}].shapes.register("star", Star)
"""
    install("stars", {"star": "stars:Star"}, content)
    assert shapes.find("star").__name__ == "Star"


def test_one_name_in_two_packages_is_refused_where_it_is_used(install) -> None:
    install("stars", {"star": "stars:Star", "moon": "stars:Moon"}, "class Moon: pass")
    install("suns", {"star": "suns:Star"})
    shapes: Registry[type] = Registry("shape", object)
    assert shapes.names() == ["moon", "star"]
    assert shapes.find("moon").__name__ == "Moon"
    message = r"^(stars|suns):Star declares the shape 'star', a name that is taken: uninstall that"
    with pytest.raises(ConfigError, match=message):
        shapes.find("star")


def test_a_name_of_this_package_in_another_is_refused_where_it_is_used(install, folder) -> None:
    install("stars", {"circle": "stars:Circle"}, "class Circle: pass")
    shapes = registry(folder)
    assert shapes.names() == ["broken", "circle", "square"]
    assert shapes.find("square").__name__ == "Square"
    with pytest.raises(ConfigError, match=r"^stars:Circle declares the shape 'circle', a name"):
        shapes.find("circle")
    assert "stars" not in sys.modules


def test_a_part_of_this_package_keeps_a_name_that_another_declares(install) -> None:
    ours = type("Star", (ValueError,), {"__module__": "diffuserec.shapes"})
    install("stars", {"star": "stars:Star"})
    shapes = registry()
    assert shapes.register("star", ours) is ours  # importing this package does not fail
    with pytest.raises(ConfigError, match=r"^stars:Star declares the shape 'star', a name that is"):
        shapes.find("star")


def test_a_declaration_twice_in_the_path_is_one(install, tmp_path, monkeypatch) -> None:
    site = install("stars", {"moon": "stars:Moon"}, "class Moon: pass")
    again = tmp_path / "again"
    (again / "twin-1.dist-info").mkdir(parents=True)
    for name in ("METADATA", "entry_points.txt"):
        text = (
            (site / "stars-1.dist-info" / name)
            .read_text(encoding="utf-8")
            .replace("Name: stars", "Name: twin")
        )
        (again / "twin-1.dist-info" / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(again)
    shapes: Registry[type] = Registry("shape", object)
    assert shapes.find("moon").__name__ == "Moon"


@pytest.mark.parametrize(
    "kind, group",
    [("shape", "diffuserec.shapes"), ("loss", "diffuserec.losses")],
)
def test_the_group_of_entry_points_is_the_plural(kind, group) -> None:
    assert Registry(kind, type).group == group
