"""Recommenders and augmenters by name: found, registered, listed and loaded."""

import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from diffuserec.errors import ConfigError, DataError
from diffuserec.models.artifact import read_artifact
from diffuserec.models.augmenter import AUGMENTERS, Augmenter
from diffuserec.models.base import Method
from diffuserec.models.recommender import RECOMMENDERS, Recommender
from diffuserec.registry import Registry

Kind = Literal["recommender", "augmenter"]
MethodClass = TypeVar("MethodClass", bound=type[Method])


def find_recommender(name: str) -> type[Recommender]:
    """The class of a recommender by its name; imports that one module.

    Raises:
        ConfigError: there is none of that name; says the nearest and all others.
    """
    return RECOMMENDERS.find(name)


def find_augmenter(name: str) -> type[Augmenter]:
    """The class of an augmenter by its name; imports that one module.

    Raises:
        ConfigError: there is none of that name; says the nearest and all others.
    """
    return AUGMENTERS.find(name)


def method_names(kind: Kind) -> list[str]:
    """Names of all recommenders or augmenters: built in, of other packages, registered."""
    return (RECOMMENDERS if kind == "recommender" else AUGMENTERS).names()


def register(method: MethodClass, name: str | None = None) -> MethodClass:
    """Makes a method of your own known by name in this process; works as a class decorator.

    Needed before ``save``, and in every process that loads it or names it in a study. A package
    that is installed declares its methods as entry points instead, in the groups
    ``diffuserec.recommenders`` and ``diffuserec.augmenters``.

    Args:
        method: a subclass of Recommender or Augmenter, complete.
        name: by default that of the class in lower case.

    Raises:
        ConfigError: not such a class, or the name is taken.
    """
    is_augmenter = isinstance(method, type) and issubclass(method, Augmenter)
    registry: Any = AUGMENTERS if is_augmenter else RECOMMENDERS
    registered: MethodClass = registry.register(
        name or getattr(method, "__name__", "").lower(), method
    )
    return registered


def load(path: Path | str) -> Recommender:
    """Reads a saved recommender back, ready to use, on the CPU.

    Args:
        path: the directory that ``save`` wrote, or that of a run, whose recommender is read.

    Raises:
        DataError: the directory is missing, foreign, incomplete or changed.
        ConfigError: it holds an augmenter, or its method is not known here.
    """
    return _restored(path, RECOMMENDERS, "load_augmenter")


def load_augmenter(path: Path | str) -> Augmenter:
    """Reads a saved augmenter back, ready to use, on the CPU; fails as :func:`load` does."""
    return _restored(path, AUGMENTERS, "load")


AnyMethod = TypeVar("AnyMethod", bound=Method)


def _restored(path: Path | str, registry: Registry[type[AnyMethod]], other: str) -> AnyMethod:
    own = Path(path) / ("model" if registry is RECOMMENDERS else "augmenter")
    is_run = not (Path(path) / "manifest.json").exists() and (own / "manifest.json").exists()
    artifact = read_artifact(own if is_run else path)
    if artifact.kind != registry.kind:
        raise ConfigError(
            f"{path} holds the {artifact.kind} {artifact.name!r}: read it with {other}"
        )
    method = registry.find(artifact.name)(**artifact.config)
    with torch.random.fork_rng():
        method.take(artifact.catalog)
    try:
        for module_path, tensor in artifact.tensors.items():
            owner, _, leaf = module_path.rpartition(".")
            module = method.get_submodule(owner)
            if leaf in module._buffers:  # counts have the shape of what was counted
                setattr(module, leaf, tensor)
        method.load_state_dict(dict(artifact.tensors))
    except (AttributeError, RuntimeError) as error:
        raise DataError(f"{path}: the weights do not fit the settings ({error})") from error
    return method.eval()


def run_of(path: Path | str) -> Path:
    """The directory of the run whose recommender is saved at `path`; else the path itself."""
    source = Path(path)
    inside = source.name == "model" and (source / "manifest.json").exists()
    return source.parent if inside and (source.parent / "run.json").exists() else source


def method_summaries() -> list[dict[str, str]]:
    """Kind, name and the first line of the module's docstring, for every method."""
    found = []
    for kind, registry in (("recommender", RECOMMENDERS), ("augmenter", AUGMENTERS)):
        for name in registry.names():
            try:
                method = registry.find(name)
                text = sys.modules[method.__module__].__doc__ or method.__doc__ or ""
            except ConfigError as error:
                text = str(error)
            summary = (text.strip().splitlines() or [""])[0]
            found.append({"kind": kind, "name": name, "summary": summary})
    return found
