"""Diffusion models for sequential recommendation.

    import diffuserec as dr

    split = dr.leave_one_out(dr.read_log("clicks.csv").to_dataset())
    model = dr.SASRec().fit(split.train, split.valid)
    print(dr.evaluate(model, split.test).metrics)

Every method is here by the name of its class (``dr.SASRec``, ``dr.DiffuASR``); its file is imported
when it is first used.
"""

import contextlib
import difflib
import importlib
import pkgutil
from os import environ as _environ
from typing import Any

from diffuserec.errors import ConfigError, DataError, did_you_mean

# Before torch is imported: a thread of GNU OpenMP that waits for the others spins for milliseconds,
# and where another process has a core, those that it waits for cannot run meanwhile. A thousand
# turns, some 20 microseconds, bridge the gaps between two products (benchmarks/threads.py).
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(_environ):
    _environ["GOMP_SPINCOUNT"] = "1000"

__version__ = "0.1.0"

# imported when first used: --help and --version of the command line need none of them
_HOME = {
    name: f"{__name__}.{module}"
    for module, names in {
        "data": "Catalog Interactions Queries SequenceDataset Split Store from_dataset from_frame "
        "leave_basket leave_last leave_one_out load_dataset new_items prepare_log read_log "
        "temporal",
        "evaluation": "Evaluation check_consistency compare evaluate",
        "models.augmenter": "Augmenter",
        "models.base": "Runtime",
        "models.choice": "recommender_for",
        "models.methods": "find_augmenter find_recommender load load_augmenter method_names "
        "register",
        "models.recommender": "Recommender",
        "reports.report": "Report",
        "studies.refit": "refit",
    }.items()
    for name in names.split()
}

__all__ = sorted([ConfigError.__name__, DataError.__name__, *_HOME])


def __getattr__(name: str) -> Any:
    if name in _HOME:
        found = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = found
        return found
    missing = f"module {__name__!r} has no attribute {name!r}"
    if name.startswith("_"):
        raise AttributeError(missing)
    if name in {module.name for module in pkgutil.iter_modules(__path__)}:
        return importlib.import_module(f"{__name__}.{name}")
    method = _method_like(name)
    if method is not None and method.__name__ == name:
        return method
    close = f" (did you mean {method.__name__!r}?)" if method else did_you_mean(name, __all__)
    raise AttributeError(missing + close)


def _method_like(name: str) -> Any:
    """The method whose class is called so, or nearly so; None if none is.

    A file is called as its class, in small letters.
    """
    known = {
        file.replace("_", ""): (registry, file)
        for registry in _registries()
        for file in registry.names()
    }
    plain = name.lower().replace("_", "")
    for close in difflib.get_close_matches(plain, known, n=1, cutoff=0.8):
        registry, file = known[close]
        with contextlib.suppress(ConfigError):  # of a package that cannot be imported
            return registry.find(file)
    return None


def _registries() -> tuple[Any, Any]:
    from diffuserec.models.augmenter import AUGMENTERS
    from diffuserec.models.recommender import RECOMMENDERS

    return RECOMMENDERS, AUGMENTERS


def __dir__() -> list[str]:
    found = {*__all__, *(name for name in globals() if name.startswith("__"))}
    for registry in _registries():
        for name in registry.names():
            with contextlib.suppress(ConfigError):  # of a package that cannot be imported
                found.add(registry.find(name).__name__)
    return sorted(found)
