"""The site of diffuserec: ``make docs`` builds it into ``site/``, without the network."""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tools"))

from make_reference import commands, data_sets, methods  # noqa: E402

project = "diffuserec"
author = "The diffuserec developers"
copyright = "2026, The diffuserec developers"
release = version_of("diffuserec")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True
html_theme = "furo"
html_title = "diffuserec"
html_static_path = ["_static"]
html_css_files = ["site.css"]
smartquotes = False  # would make a dash of the two hyphens of an option
exclude_patterns = ["lab/results", "figures", "_static"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
suppress_warnings = ["mystnb.unknown_mime_type"]

OUTSIDE = {
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "SECURITY.md": "security",
    "README.md": "readme",
    "examples/package/README.md": "example_package",
    "experiments/README.md": "experiments",
}
"""Pages of the repository that are pages of the site, too."""

_LINK = re.compile(r"(!?)\[([^\]\n]+(?:\n[^\]\n]+)?)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def linked(text: str, home: Path, folder: Path) -> str:
    """A page's text with its links as the site has them.

    Args:
        home: folder that the links are relative to.
        folder: of the page in docs/.
    """

    def replaced(found: re.Match[str]) -> str:
        words, path, anchor = found[2], found[3], found[4] or ""
        if not path or ":" in path:
            return found[0]
        target = (home / path).resolve()
        if not target.is_relative_to(ROOT):
            return found[0]
        if found[1]:  # a picture
            return f"![{words}]({_from(folder, target)})"
        name = target.relative_to(ROOT).as_posix()
        if name in OUTSIDE:
            return f"[{words}]({_from(folder, HERE / 'generated' / OUTSIDE[name])}.md{anchor})"
        if target.is_relative_to(HERE / "figures") or target.is_relative_to(HERE / "lab/results"):
            return f"{words} (`{name}`)"
        if target.is_relative_to(HERE) and target.suffix == ".md":
            return f"[{words}]({_from(folder, target)}{anchor})"
        return f"{words} (`{name}`)" if words.strip("`") != name else f"`{name}`"

    return _LINK.sub(replaced, text)


def _from(folder: Path, target: Path) -> str:
    up = len(folder.relative_to(HERE).parts)
    return "../" * up + target.relative_to(HERE).as_posix()


def generate(app: Any) -> None:
    """Writes the pages that come from elsewhere: of the repository, of commands and settings."""
    folder = HERE / "generated"
    folder.mkdir(exist_ok=True)
    for name, page in OUTSIDE.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        made = linked(text, (ROOT / name).parent, folder)
        _write(folder / f"{page}.md", f"---\norphan: true\n---\n{made}")
    _write(folder / "commands.md", commands())
    _write(folder / "settings.md", methods())
    _write(folder / "data_sets.txt", data_sets())  # a part of data.md, no page


def _write(path: Path, text: str) -> None:
    """Writes what is new alone, so that Sphinx builds what has changed alone."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def rewrite(app: Any, name: str, source: list[str]) -> None:
    """Links of a page of docs/ to pages outside of it."""
    page = HERE / f"{name}.md"
    if page.exists() and not name.startswith("generated/"):
        source[0] = linked(source[0], page.parent, page.parent)


def setup(app: Any) -> None:
    app.connect("builder-inited", generate)
    app.connect("source-read", rewrite)
