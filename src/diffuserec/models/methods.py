"""Recommenders and augmenters by name: found, registered, listed and loaded."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from diffuserec.data import SequenceDataset
from diffuserec.errors import ConfigError, did_you_mean
from diffuserec.models.artifact import FORMAT, Artifact, read_artifact
from diffuserec.models.augmenter import AUGMENTERS, Augmenter
from diffuserec.models.base import Method
from diffuserec.models.config import by_log, described_settings
from diffuserec.models.recommender import RECOMMENDERS, Recommender
from diffuserec.registry import Registry

Kind = Literal["recommender", "augmenter"]
AS_PUBLISHED = "as_published"
"""The preset of the settings of a method's own paper."""

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
    if not isinstance(path, str | Path):
        raise ConfigError(f"load needs the path of a saved method, got {path!r}")
    own = Path(path) / ("model" if registry is RECOMMENDERS else "augmenter")
    is_run = not (Path(path) / "manifest.json").exists() and (own / "manifest.json").exists()
    source = own if is_run else Path(path)
    artifact = read_artifact(source)
    if artifact.kind != registry.kind:
        raise ConfigError(
            f"{path} holds the {artifact.kind} {artifact.name!r}: read it with {other}"
        )
    method_class = registry.find(artifact.name)
    try:
        _require_fitting(method_class(**artifact.config), artifact)
        method = method_class(**artifact.config)
        with torch.random.fork_rng():
            method.take(artifact.catalog)
        method.restore(artifact.tensors)
    except (ArithmeticError, AttributeError, MemoryError, RuntimeError, TypeError, ValueError) as e:
        reason = " ".join(str(e).split())
        raise FORMAT.damaged(
            source / "manifest.json",
            f"its config and the weights do not fit each other: {reason[:300]}",
        ) from e
    return method.eval()


def with_settings(method: AnyMethod, settings: Mapping[str, Any]) -> AnyMethod:
    """A copy of a fitted method under other settings, with the parameters that it learned.

    Built anew, since what follows from the settings (a schedule) would not follow a new ``config``.

    Raises:
        ConfigError: settings that are wrong, or that change what is learned.
    """
    other = type(method)(**{**method.config.model_dump(), **settings})
    with torch.random.fork_rng():
        other.take(method.catalog)
    try:
        other.restore(method.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"settings {dict(settings)} change what {method.name} learns and can't be changed in a "
            'trained model: use at = "training"'
        ) from error
    return other.to(method.device).eval()


def run_of(path: Path | str) -> Path:
    """The directory of the run whose recommender is saved at `path`; else the path itself."""
    source = Path(path).resolve()
    inside = source.name == "model" and (source / "manifest.json").exists()
    return source.parent if inside and (source.parent / "run.json").exists() else Path(path)


def _require_fitting(method: Method, artifact: Artifact) -> None:
    """Compares the tensors with those that the settings ask for, before anything large is built.

    Raises:
        ValueError: a tensor too few or too many, or one of another shape or type.
    """
    try:
        with torch.device("meta"), torch.random.fork_rng():
            method.take(artifact.catalog)
    except NotImplementedError:
        return  # a method whose parameters depend on numbers, which are not there
    expected = method.state_dict()
    odd = sorted(expected.keys() ^ artifact.tensors.keys())
    if odd:
        what = "is missing" if odd[0] in expected else "is not one of its tensors"
        raise ValueError(f"{odd[0]} {what}")
    buffers = dict(method.named_buffers())
    for name, tensor in artifact.tensors.items():
        wanted = expected[name]
        # a buffer that is empty until something is counted takes any size
        free = [name in buffers and size == 0 for size in wanted.shape]
        same = tensor.ndim == wanted.ndim and all(
            any_size or a == b
            for a, b, any_size in zip(tensor.shape, wanted.shape, free, strict=True)
        )
        both_integers = not (tensor.dtype.is_floating_point or wanted.dtype.is_floating_point)
        both_integers &= name in buffers and torch.bool not in (tensor.dtype, wanted.dtype)
        if not same or not (tensor.dtype == wanted.dtype or both_integers):
            raise ValueError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not {wanted.dtype} of "
                f"{tuple(wanted.shape)}"
            )


def suited_part(name: str, given: Mapping[str, Any], log: SequenceDataset) -> dict[str, Any]:
    """Settings of a recommender that is part of another method, suited to a log."""
    schema = find_recommender(name).Config
    suited = schema(**given).suited_to(log)
    return {**given, **{setting: getattr(suited, setting) for setting in by_log(schema)}}


def published_of(method: type[Method], preset: str = AS_PUBLISHED) -> Mapping[str, Any]:
    """The settings of a method's preset, none of them left to the log; empty if it has none."""
    fields = method.Config.model_fields
    fixed = {name: fields[name].get_default() for name in by_log(method.Config)}
    own = method.as_published if preset == AS_PUBLISHED else method.presets.get(preset, {})
    return {**fixed, **own} if own else {}


def preset_of(
    recommender: type[Recommender],
    augmenter: type[Augmenter] | None,
    preset: str = AS_PUBLISHED,
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The settings of a preset, of a recommender and of the augmenter that it is trained with.

    Args:
        preset: ``as_published`` for the settings of their papers, or a name of the recommender's
            ``presets``.

    Raises:
        ConfigError: neither has any, or there is no preset of that name.
    """
    if preset != AS_PUBLISHED and preset not in recommender.presets:
        known = [AS_PUBLISHED, *recommender.presets]
        raise ConfigError(
            f"no preset {preset!r}{did_you_mean(preset, known)}; there are: {', '.join(known)}"
        )
    found = published_of(recommender, preset), published_of(augmenter) if augmenter else {}
    if not any(found):
        having = ", ".join(
            f"{name} ({registry.kind})"
            for registry in (RECOMMENDERS, AUGMENTERS)
            for name in registry.names()
            if registry.module_name(name).startswith("diffuserec.")
            and registry.find(name).as_published
        )
        raise ConfigError(f"no settings as published are known here; there are some of: {having}")
    return found


def method_summaries() -> list[dict[str, str]]:
    """Kind, name and the first line of the module's docstring, for every method."""
    found = []
    for kind, registry in (("recommender", RECOMMENDERS), ("augmenter", AUGMENTERS)):
        for name in registry.names():
            try:
                summary = _summary(registry.find(name))
            except ConfigError as error:
                summary = str(error)
            found.append({"kind": kind, "name": name, "summary": summary})
    return found


def method_settings(name: str) -> tuple[Kind, str, list[dict[str, str]]]:
    """Kind, summary and settings of a method, see :func:`described_settings`.

    Each setting also has ``as_published``: its value in the paper where that differs, or "".

    Raises:
        ConfigError: there is none of that name; says the nearest and all others.
    """
    known = [*RECOMMENDERS.names(), *AUGMENTERS.names()]
    if name not in known:
        raise ConfigError(
            f"no method {name!r}{did_you_mean(name, known)}; there are: {', '.join(known)}"
        )
    registry: Registry[Any] = AUGMENTERS if name in AUGMENTERS.names() else RECOMMENDERS
    method: type[Method] = registry.find(name)
    settings = [
        {**setting, "as_published": _shown(method.as_published, setting["name"])}
        for setting in described_settings(method.Config)
    ]
    return method.kind, _summary(method), settings


def _shown(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name, "")
    return "none" if value is None else str(value)


def _summary(method: type[Method]) -> str:
    text = sys.modules[method.__module__].__doc__ or method.__doc__ or ""
    return (text.strip().splitlines() or [""])[0]
