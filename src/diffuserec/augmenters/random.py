"""Random: items drawn uniformly from the catalog in front of each history.

The baseline of Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023: the
effect of longer sequences whose additions mean nothing.
"""

from typing import ClassVar

import numpy as np
import torch

from diffuserec.data import Catalog, Queries, SequenceDataset
from diffuserec.data.advice import require_sequences
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.models.settings import PrependingSettings


class Random(Augmenter):
    """Prepends items of the catalog, each equally likely."""

    class Config(PrependingSettings):
        """Hyper-parameters of Random."""

    config: Config
    trained: ClassVar[bool] = False

    def build(self, catalog: Catalog) -> None:
        """Makes nothing: there are no parameters."""

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        return []

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The same users with M random items in front; empty histories stay empty."""
        self.require_fitted()
        require_sequences("augment", dataset)
        chosen = self.config.chosen(dataset)
        users = torch.from_numpy(np.asarray(dataset.users[chosen]))
        uniform = KeyedNoise(seed, users).uniform(self.config.n_items).numpy()
        n_items = self.catalog.n_items
        drawn = np.minimum((uniform.astype(np.float64) * n_items).astype(np.int32), n_items - 1)
        return dataset.prepend(drawn + 1, chosen)
