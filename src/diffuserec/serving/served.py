"""Models as a service holds them: loaded, named, described, and exchanged without a pause."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffuserec.errors import ConfigError, DataError, did_you_mean
from diffuserec.models.artifact import FORMAT
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.methods import load, load_augmenter, run_of
from diffuserec.models.recommender import Recommender, StateRecommender
from diffuserec.models.retrieval import ItemIndex
from diffuserec.serving.item_index import item_index_of
from diffuserec.serving.search import ItemSearch

_ATTEMPTS = 5


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A recommender in service, with the augmenter that it was trained with, if any.

    Attributes:
        name: that requests call it by.
        path: the directory that it was loaded from.
        sha256: checksum of that directory's manifest, and with it of every file of the model.
        model: the recommender.
        augmenter: changes histories first, as it changed those of training; or None.
        search: of its items.
        index: that its lists are found by; None if they are exact.
    """

    name: str
    path: Path
    sha256: str
    model: Recommender
    augmenter: Augmenter | None
    search: ItemSearch
    index: ItemIndex | None = None

    @property
    def has_vectors(self) -> bool:
        """Whether it has item vectors, from which diverse lists can be made."""
        return isinstance(self.model, StateRecommender)

    def vectors(self, items: np.ndarray) -> torch.Tensor:
        """Vectors of some items, of shape (I, D)."""
        assert isinstance(self.model, StateRecommender)
        with torch.no_grad():
            return self.model.table.embed(torch.from_numpy(items).to(self.model.device)).cpu()

    def card(self) -> dict[str, Any]:
        """What it is, for people and programs: method, settings, catalog, what it can do."""
        catalog = self.model.catalog
        return {
            "name": self.name,
            "method": self.model.name,
            "sha256": self.sha256,
            "settings": self.model.config.model_dump(mode="json"),
            "n_items": catalog.n_items,
            "n_users": catalog.n_users,
            "n_interactions": int(self.model.popularity.sum()),
            "item_ids": "integers" if catalog.item_ids.dtype.is_integer() else "strings",
            "has_names": catalog.names is not None,
            "max_len": self.model.max_len,
            "reads_times": self.model.reads_times,
            "draws_noise": self.model.is_generative,
            "can_diversify": self.has_vectors,
            "augmenter": None if self.augmenter is None else self.augmenter.name,
            "recall": None if self.index is None else self.index.recall,
            "example": catalog.item_ids.head(1).to_list()[0] if catalog.n_items else None,
        }


def name_of(path: Path | str) -> str:
    """The name of a model that was given none: its directory's, or that of the link to it.

    A link that leads to another directory later keeps its name, and with it requests and jobs.
    """
    return Path(os.path.abspath(path)).name


def load_served(name: str, path: Path, approximate: bool = False) -> ServedModel:
    """Loads a run's recommender and augmenter, or a saved recommender, and tries it once.

    Args:
        approximate: whether its lists are found by an index of its items, kept beside it.

    Raises:
        DataError: it is missing or damaged, or is replaced again and again meanwhile.
        ConfigError: it is no recommender, or its method is not known here.
    """
    run = run_of(path)
    for _ in range(_ATTEMPTS):
        digest = _digest(run)
        model = load(run)
        augmenter = load_augmenter(run / "augmenter") if (run / "augmenter").is_dir() else None
        index = item_index_of(run, model) if approximate else None
        if _digest(run) == digest:
            break
    else:
        raise DataError(f"{path} is being written again and again: load it when that has ended")
    if not model.catalog.n_items:
        raise DataError(f"{path} holds a model of no items: train one on a log")
    search = ItemSearch(model.catalog, model.popularity.numpy())
    first = model.catalog.decode(np.array([1]))
    model.recommend([first], k=1, augmenter=augmenter)  # makes the index of the ids
    return ServedModel(name, path, digest, model, augmenter, search, index)


def _digest(run: Path) -> str:
    """Checksum of the model's manifest, and of the augmenter's if there is one."""
    inside = run / "model"
    own = inside if (inside / "manifest.json").exists() else run
    digests = [FORMAT.manifest(own)["sha256"]]
    if (run / "augmenter").is_dir():
        digests.append(FORMAT.manifest(run / "augmenter")["sha256"])
    if len(digests) == 1:
        return str(digests[0])
    return hashlib.sha256("".join(digests).encode()).hexdigest()


class Models:
    """The models of a service by name; the first answers where a request names none.

    Args:
        paths: the directory of each.
        approximate: whether their lists are found by an index of their items.

    Raises:
        ConfigError: there is none.
    """

    def __init__(self, paths: Mapping[str, Path], approximate: bool = False) -> None:
        if not paths:
            raise ConfigError("a service needs a model: give the directory of a run")
        self.approximate = approximate
        self._current = {
            name: load_served(name, Path(path), approximate) for name, path in paths.items()
        }

    def __getitem__(self, name: str | None) -> ServedModel:
        """The model of that name, or the first one.

        Raises:
            ConfigError: there is none of that name.
        """
        if name is None:
            return next(iter(self._current.values()))
        if name not in self._current:
            raise ConfigError(
                f"there is no such model{did_you_mean(name, self._current)}; there are: "
                f"{', '.join(self._current)}"
            )
        return self._current[name]

    def __contains__(self, name: object) -> bool:
        return name in self._current

    def all(self) -> list[ServedModel]:
        """All models, the first one first."""
        return list(self._current.values())

    def reload(self, name: str) -> ServedModel:
        """Loads a model's directory again; from then on, new requests are answered by what it is.

        Requests that were begun keep the model that they began with. If it cannot be loaded, the
        old one stays.

        Raises:
            DataError, ConfigError: as :func:`load_served`.
        """
        fresh = load_served(name, self[name].path, self.approximate)
        self._current[name] = fresh
        return fresh
