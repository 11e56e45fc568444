"""Diffusion models for sequential recommendation.

    import diffuserec as dr

    split = dr.leave_one_out(dr.read_log("clicks.csv").to_dataset())
    model = dr.SASRec().fit(split.train, split.valid)
    print(dr.evaluate(model, split.test).metrics)

Every method is here by the name of its class (``dr.SASRec``, ``dr.DiffuASR``); its file is imported
when it is first used.
"""

from typing import Any

from diffuserec.contracts import Augmenter, Recommender, Run, find, load, method_names
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
from diffuserec.evaluation import Report, check_consistency, compare, evaluate

__version__ = "0.1.0"

__all__ = [
    "Augmenter",
    "Catalog",
    "ConfigError",
    "DataError",
    "Interactions",
    "Queries",
    "Recommender",
    "Report",
    "Run",
    "SequenceDataset",
    "Split",
    "Store",
    "check_consistency",
    "compare",
    "evaluate",
    "find",
    "from_dataset",
    "from_frame",
    "leave_one_out",
    "load",
    "load_dataset",
    "method_names",
    "read_log",
    "temporal",
]


def __getattr__(name: str) -> Any:
    for kind in ("recommender", "augmenter"):
        for file in method_names(kind):
            if file.replace("_", "") == name.lower() and name != name.lower():
                found = find(kind, file)
                if found.__name__ == name:
                    return found
    raise AttributeError(f"module 'diffuserec' has no attribute {name!r}")
