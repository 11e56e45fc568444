"""Types, names and help that users see: in their editor, in a shell and in mypy."""

import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffuserec as dr
from diffuserec.models.methods import find_augmenter, find_recommender, method_names

ROOT = Path(__file__).parents[1]
METHODS = [*map(find_recommender, method_names("recommender"))]
METHODS += [*map(find_augmenter, method_names("augmenter"))]


def test_every_method_is_listed() -> None:
    names = dir(dr)
    assert {method.__name__ for method in METHODS} | set(dr.__all__) <= set(names)


@pytest.mark.parametrize(
    "name, nearest",
    [("Sasrec", "SASRec"), ("sasrec", "SASRec"), ("DifuASR", "DiffuASR"), ("evalute", "evaluate")],
)
def test_a_name_that_is_nearly_right_is_told(name: str, nearest: str) -> None:
    with pytest.raises(AttributeError, match=f"did you mean '{nearest}'"):
        getattr(dr, name)
    assert not hasattr(dr, "nothing_of_the_kind")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_the_signature_shows_settings_types_and_defaults(method) -> None:
    shown = inspect.signature(method).parameters
    assert list(shown) == list(method.Config.model_fields)
    defaults = method.Config()
    for name, parameter in shown.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == getattr(defaults, name)
        assert "Annotated" not in str(parameter) or "tuple" in str(parameter)
        assert parameter.annotation is not inspect.Parameter.empty


def test_help_shows_them_too() -> None:
    text = pydoc.render_doc(dr.SASRec, renderer=pydoc.plaintext)
    assert "dim: int = 64" in text
    assert "loss: str = 'softmax'" in text


def test_the_stub_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-c", "import make_stub, sys; sys.stdout.write(make_stub.stub())"],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    ).stdout
    written = (ROOT / "src/diffuserec/__init__.pyi").read_text(encoding="utf-8")
    assert made == written, "run: make stub"


def readme_example() -> str:
    """The first Python block of README.md."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    "program, errors",
    [
        (readme_example(), []),
        ("import diffuserec as dr\n\nmodel: dr.Recommender = dr.load('runs/sasrec/model')\n", []),
        ("import diffuserec as dr\n\ndr.SASRec(dmi=64)\n", ["dmi"]),
        ("import diffuserec as dr\n\ndr.DiffRec(n_draws='ten')\n", ["n_draws"]),
        ("import diffuserec as dr\n\nreveal_type(dr.SASRec().fit)\n", []),
    ],
    ids=["readme", "load", "unknown setting", "wrong type", "fit"],
)
def test_a_users_program_passes_mypy_strictly(tmp_path: Path, program: str, errors) -> None:
    file = tmp_path / "program.py"
    file.write_text(program, encoding="utf-8")
    options = [
        "--strict",
        "--disallow-any-expr",
        "--no-error-summary",
        "--follow-imports",
        "silent",
    ]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", ROOT / ".mypy_cache", file],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    found = [line for line in checked.stdout.splitlines() if ": error:" in line]
    assert len(found) == len(errors), checked.stdout + checked.stderr
    for line, expected in zip(found, errors, strict=True):
        assert expected in line
