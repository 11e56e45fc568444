"""Random: items drawn uniformly from the catalog in front of each history.

The baseline of Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023: the
effect of longer sequences whose additions mean nothing.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int32

from diffuserec.data import Catalog, SequenceDataset
from diffuserec.models.augmenter import PrependingAugmenter
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.models.settings import PrependingSettings


class Random(PrependingAugmenter):
    """Prepends items of the catalog, each equally likely."""

    class Config(PrependingSettings):
        """Hyper-parameters of Random."""

    config: Config
    trained: ClassVar[bool] = False
    version: ClassVar[int] = 2
    as_published: ClassVar[Mapping[str, Any]] = {"condition": "published"}

    def build(self, catalog: Catalog) -> None:
        """Makes nothing: there are no parameters."""

    def generate(self, conditions: SequenceDataset, seed: int) -> Int32[np.ndarray, "S M"]:
        users = torch.from_numpy(np.asarray(conditions.users))
        uniform = KeyedNoise(seed, users).uniform(self.config.n_items).numpy()
        n_items = self.catalog.n_items
        drawn = np.minimum((uniform.astype(np.float64) * n_items).astype(np.int32), n_items - 1)
        generated: np.ndarray = drawn + 1
        return generated
