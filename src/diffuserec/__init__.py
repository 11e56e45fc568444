"""Diffusion models for sequential recommendation.

    import diffuserec as dr

    split = dr.leave_one_out(dr.read_log("clicks.csv").to_dataset())
    model = dr.SASRec().fit(split.train, split.valid)
    print(dr.evaluate(model, split.test).metrics)

Every method is here by the name of its class (``dr.SASRec``, ``dr.DiffuASR``); its file is imported
when it is first used.
"""

import contextlib
from os import environ as _environ
from typing import Any

# Before torch is imported: a thread of GNU OpenMP that waits for the others spins for milliseconds,
# and where another process has a core, those that it waits for cannot run meanwhile. A thousand
# turns, some 20 microseconds, bridge the gaps between two products (benchmarks/threads.py).
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(_environ):
    _environ["GOMP_SPINCOUNT"] = "1000"

from diffuserec.data import (
    Catalog,
    Interactions,
    Queries,
    SequenceDataset,
    Split,
    Store,
    from_dataset,
    from_frame,
    leave_one_out,
    load_dataset,
    read_log,
    temporal,
)
from diffuserec.errors import ConfigError, DataError
from diffuserec.evaluation import Evaluation, check_consistency, compare, evaluate
from diffuserec.models.augmenter import AUGMENTERS, Augmenter
from diffuserec.models.base import Runtime
from diffuserec.models.methods import (
    find_augmenter,
    find_recommender,
    load,
    load_augmenter,
    method_names,
    register,
)
from diffuserec.models.recommender import RECOMMENDERS, Recommender
from diffuserec.reports.report import Report

__version__ = "0.1.0"

__all__ = [
    "Augmenter",
    "Catalog",
    "ConfigError",
    "DataError",
    "Evaluation",
    "Interactions",
    "Queries",
    "Recommender",
    "Report",
    "Runtime",
    "SequenceDataset",
    "Split",
    "Store",
    "check_consistency",
    "compare",
    "evaluate",
    "find_augmenter",
    "find_recommender",
    "from_dataset",
    "from_frame",
    "leave_one_out",
    "load",
    "load_augmenter",
    "load_dataset",
    "method_names",
    "read_log",
    "register",
    "temporal",
]


def __getattr__(name: str) -> Any:
    for registry in (RECOMMENDERS, AUGMENTERS):
        for known in registry.names():
            # a class is called as its file, in capitals of its own
            if known.replace("_", "") == name.lower() and name != name.lower():
                found = registry.find(known)
                if found.__name__ == name:
                    return found
    raise AttributeError(f"module 'diffuserec' has no attribute {name!r}")


def __dir__() -> list[str]:
    found = {*__all__, *(name for name in globals() if name.startswith("__"))}
    for registry in (RECOMMENDERS, AUGMENTERS):
        for name in registry.names():
            with contextlib.suppress(ConfigError):  # of a package that cannot be imported
                found.add(registry.find(name).__name__)
    return sorted(found)
