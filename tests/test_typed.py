"""Types, names and help that users see: in their editor, in a shell and in mypy."""

import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import diffuserec as dr
from diffuserec.models.losses import softmax_cross_entropy
from diffuserec.models.methods import find_augmenter, find_recommender, method_names
from diffuserec.models.settings import several

ROOT = Path(__file__).parents[1]
METHODS = [*map(find_recommender, method_names("recommender"))]
METHODS += [*map(find_augmenter, method_names("augmenter"))]


def test_tests_refuse_wrong_shapes_and_types() -> None:
    states, vectors, targets = torch.ones(3, 4), torch.ones(9, 5), torch.ones(3, dtype=torch.int64)
    with pytest.raises(TypeCheckError, match="vectors"):  # of another width
        softmax_cross_entropy(states, vectors, targets)
    with pytest.raises(TypeError, match="several"):  # no shapes in its annotations
        several("2")


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


PROGRAMS = {
    "readme": (readme_example(), []),
    "load": ("import diffuserec as dr\n\nmodel: dr.Recommender = dr.load('runs/x/model')\n", []),
    "unknown_setting": ("import diffuserec as dr\n\ndr.SASRec(dmi=64)\n", ["dmi"]),
    "wrong_type": ("import diffuserec as dr\n\ndr.DiffRec(n_draws='ten')\n", ["n_draws"]),
    "fit": ("import diffuserec as dr\n\nreveal_type(dr.SASRec().fit)\n", []),
}


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> str:
    """What mypy says of the programs, checked strictly and together: it takes seconds to begin.

    Its settings are those of ``make check``, so that what that found out is not found out again.
    """
    folder = tmp_path_factory.mktemp("programs")
    for name, (program, _) in PROGRAMS.items():
        text = f"# mypy: disallow-any-expr\n{program}"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", *sorted(folder.glob("*.py"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    ).stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_users_program_passes_mypy_strictly(checked: str, name: str) -> None:
    said = [line for line in checked.splitlines() if f"{name}.py:" in line]
    found = [line for line in said if ": error:" in line]
    errors = PROGRAMS[name][1]
    assert len(found) == len(errors), checked
    for line, expected in zip(found, errors, strict=True):
        assert expected in line
    if name == "fit":  # a program that was not looked at would have no errors either
        assert "Revealed type" in said[0]
