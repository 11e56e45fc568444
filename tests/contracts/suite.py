"""Shared parts of the contract tests: which methods there are, settings that make them quick."""

from typing import Any

import numpy as np
import polars as pl
import torch

from diffuserec.data import Catalog, Histories, SequenceDataset, Split, histories_of
from diffuserec.models.augmenter import ParallelAugmenter
from diffuserec.models.base import Method, Runtime
from diffuserec.models.methods import find_augmenter, find_recommender, method_names
from diffuserec.models.settings import PrependingSettings

TINY: dict[str, Any] = {
    "dim": 16,
    "n_layers": 1,
    "dropout": 0.0,
    "learning_rate": 0.02,
    "batch_size": 16,
    "epochs": 12,
    "num_train_timesteps": 40,
    "num_inference_steps": 5,
    "n_draws": 3,
    "n_items": 2,
}
"""Small values of common settings; a method takes those that it has."""

PAIRS = {"dim": 8, "epochs": 5, "batch_size": 64}
OWN: dict[str, dict[str, Any]] = {
    "simdiffrec": {"k_noise": 2, "k_sample": 3, "num_inference_steps": 1},
    # a mask learns from few items an example, and slowly
    "bert4rec": {
        "epochs": 40,
        "dim": 32,
        "learning_rate": 0.01,
        "mask_ratio": 0.5,
        "last_item_ratio": 0.2,
    },
    "s3rec": {"pretrain_epochs": 2},
    "blend": {
        "settings": {
            "bsarec": {
                name: TINY[name]
                for name in ("dim", "n_layers", "dropout", "learning_rate", "batch_size", "epochs")
            }
        }
    },
    "gsasrec": {"n_negatives": 5, "epochs": 40},  # 256 are many times the items there are
    "mfgan": {"rounds": 1, "generator_epochs": 2, "n_candidates": 3},
    "bpr": PAIRS,
    "neumf": PAIRS | {"hidden": (8, 4)},
    "dreamrec": {"epochs": 6},
    "diffurec": {"delta": 0.5, "num_train_timesteps": 32, "num_inference_steps": 2, "epochs": 5},
    "diffrec": {"num_train_timesteps": 20, "num_inference_steps": 1},
    "adrec": {
        "delta": 0.5,
        "num_train_timesteps": 32,
        "epochs": 3,
        "pretrain_epochs": 3,
        "frozen_epochs": 1,
        "n_denoiser_layers": 1,
    },
    "flow": {"epochs": 5, "num_inference_steps": 2},
    "asrep": {
        "model_settings": {
            name: TINY[name]
            for name in ("dim", "n_layers", "dropout", "learning_rate", "batch_size", "epochs")
        }
    },
    "maskdiff": {"average_epochs": 0.0, "max_len": 12},
    "diff4rec": {
        "latent_dim": 8,
        "hidden_dim": 16,
        "epochs": 3,
        "num_train_timesteps": 20,
        "n_copies": 2,
        "dropout": 0.5,
        "learning_rate": 3e-3,
        "batch_size": 256,
    },
    "diffuasr": {
        "epochs": 1,
        "pretrain_epochs": 1,
        "dim": 64,
        "num_inference_steps": 4,
        "dropout": 0.5,
        "learning_rate": 1e-3,
        "batch_size": 512,
    },
}
"""Settings that single methods need to be quick, or to learn at all in that time."""

EXAMPLES = {"blockdiffrec": ("per_user", "windows", "whole_prefixes")}
"""Forms of training examples of methods that take no prefixes."""

WITHOUT_ORDER = {"popularity", "bpr", "neumf"}
"""Recommenders whose scores know nothing of a history's order."""

WITHOUT_NOISE = {"asrep", "maskdiff", "random_seq"}
"""Augmenters that take what is likeliest, or have one item to draw from."""

WITHOUT_CONTEXT = {"bpr", "neumf"}
"""Recommenders that learn which user has which item: items that are context say nothing."""


def class_of(kind: str, name: str) -> Any:
    return find_recommender(name) if kind == "recommender" else find_augmenter(name)


def quick(kind: str, name: str) -> dict[str, Any]:
    """Settings with which a method is quick."""
    known = class_of(kind, name).Config.model_fields
    return {key: value for key, value in TINY.items() if key in known} | OWN.get(name, {})


def few_epochs(kind: str, name: str, n: int) -> dict[str, int]:
    """Settings with which each stage of a method has so many epochs."""
    known = class_of(kind, name).Config.model_fields
    stages = {"epochs", "pretrain_epochs", "rounds", "generator_epochs"}
    return dict.fromkeys(stages & known.keys(), n)


def made(kind: str, name: str, **settings: Any) -> Any:
    return class_of(kind, name)(**quick(kind, name) | settings)


RECOMMENDERS = method_names("recommender")
AUGMENTERS = method_names("augmenter")
METHODS = [("recommender", n) for n in RECOMMENDERS] + [("augmenter", n) for n in AUGMENTERS]
TRAINED = [name for name in RECOMMENDERS if find_recommender(name).trained]
GENERATIVE = [
    name for name in RECOMMENDERS if getattr(find_recommender(name), "combine", "") == "mixture"
]
WITH_EXAMPLES = [
    name for name in RECOMMENDERS if "examples" in find_recommender(name).Config.model_fields
]
PARALLEL = [name for name in AUGMENTERS if issubclass(find_augmenter(name), ParallelAugmenter)]
CHANGING = [name for name in AUGMENTERS if name not in PARALLEL]
PREPENDING = [
    name for name in CHANGING if issubclass(find_augmenter(name).Config, PrependingSettings)
]
PROBABLE = [n for n in PREPENDING if find_augmenter(n).Config.gives_probabilities]
INSIDE = [n for n in PREPENDING if find_augmenter(n).Config.writes_inside]


def with_ids(log: SequenceDataset, ids: str) -> SequenceDataset:
    """The log with raw ids that are not the item numbers: 1000, 997, …, or text."""
    numbers = 1000 - 3 * np.arange(log.catalog.n_items)
    raw = pl.Series("item_id", numbers if ids == "int" else [f"B{n:04d}" for n in numbers])
    return SequenceDataset.from_offsets(log.items, log.offsets, Catalog(raw, log.catalog.n_users))


def frozen(log: SequenceDataset) -> SequenceDataset:
    """The log in arrays that cannot be written to."""
    parts = [log.items.copy(), log.offsets.copy(), log.users.copy()]
    for part in parts:
        part.flags.writeable = False
    return SequenceDataset.from_offsets(parts[0], parts[1], log.catalog, parts[2])


def all_histories(dataset: SequenceDataset) -> Histories:
    """All histories that hold an item."""
    return histories_of(dataset, np.flatnonzero(dataset.lengths > 0))


_FITTED: dict[tuple[str, str], Any] = {}


def fitted(kind: str, name: str, split: Split) -> Any:
    """A method fitted on the cycle, once for all tests; no test may change it."""
    key = (kind, name)
    if key not in _FITTED:
        _FITTED[key] = made(kind, name).fit(split.train, runtime=Runtime(seed=1))
    return _FITTED[key]


def items_of(frame: pl.DataFrame, query: int = 0) -> list[Any]:
    """Items of a query's list, whose ranks must count from 1."""
    part = frame.filter(pl.col("query") == query)
    assert part["rank"].to_list() == list(range(1, len(part) + 1))
    return part["item_id"].to_list()


def assert_same_state(a: Method, b: Method) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        assert torch.equal(left[key], right[key]), key


def assert_same_dataset(a: SequenceDataset, b: SequenceDataset) -> None:
    for field in ("items", "offsets", "users", "synthetic"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)
    assert (a.copies is None) == (b.copies is None)
    if a.copies is not None and b.copies is not None:
        np.testing.assert_array_equal(
            a.copies.items[:, a.log_positions], b.copies.items[:, b.log_positions]
        )
        np.testing.assert_allclose(a.copies.difficulty, b.copies.difficulty, atol=1e-6)
        assert a.copies.schedule == b.copies.schedule
