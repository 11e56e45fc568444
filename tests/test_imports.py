"""What importing costs, what it pulls in, and which names are there."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest
import torch

import diffuserec
from diffuserec.errors import ConfigError
from diffuserec.models.losses import gbce
from diffuserec.models.methods import (
    find_augmenter,
    find_recommender,
    method_names,
    method_summaries,
)

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(diffuserec.__path__, "diffuserec.")
    if not module.name.endswith("__main__")
)
METHODS = [(kind, name) for kind in ("recommender", "augmenter") for name in method_names(kind)]


def test_annotations_are_enforced_here() -> None:
    # or every other test would pass whatever the shapes
    with pytest.raises(Exception, match="gbce"):
        gbce(torch.zeros(3), torch.zeros(4, 2), 10)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} does not say what it is for"


@pytest.fixture(scope="module")
def fresh() -> dict[str, object]:
    """What a new process has loaded after the import, and its processor time."""
    program = (
        "import json, sys, time; import torch; start = time.process_time();"
        "import diffuserec; seconds = time.process_time() - start;"
        "print(json.dumps({'modules': sorted(sys.modules), 'seconds': seconds}))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return json.loads(answer.stdout)


@pytest.mark.parametrize(
    "package",
    [
        "pandas",
        "pyarrow",
        "matplotlib",
        "accelerate",
        "diffusers",
        "transformers",
        "fastapi",
        "sklearn",
        "hypothesis",
        "beartype",
        "diffuserec.recommenders.sasrec",
    ],
)
def test_the_import_does_not_pull(fresh, package: str) -> None:
    assert package not in fresh["modules"]


def test_the_import_is_quick(fresh) -> None:
    assert fresh["seconds"] < 4


@pytest.mark.parametrize("name", diffuserec.__all__)
def test_public_names_resolve(name: str) -> None:
    assert getattr(diffuserec, name) is not None


@pytest.mark.parametrize("kind, name", METHODS)
def test_methods_are_public_by_their_class(kind: str, name: str) -> None:
    method = find_recommender(name) if kind == "recommender" else find_augmenter(name)
    assert getattr(diffuserec, method.__name__) is method


@pytest.mark.parametrize("name", ["SASREC", "sasrec", "Sasrec", "NoSuchModel", "Popularityy", "os"])
def test_unknown_names_are_attribute_errors(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'diffuserec' has no attribute '{name}'"):
        getattr(diffuserec, name)


def test_unknown_methods_are_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no recommender 'sasrc' \(did you mean 'sasrec'\?\)"):
        find_recommender("sasrc")
    with pytest.raises(ConfigError, match=r"no augmenter 'sasrec'"):
        find_augmenter("sasrec")


def test_every_method_says_in_a_line_what_it_is() -> None:
    found = method_summaries()
    assert [(method["kind"], method["name"]) for method in found] == METHODS
    assert all(10 < len(method["summary"]) < 120 for method in found)
