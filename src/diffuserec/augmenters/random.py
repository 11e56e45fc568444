"""Random: items drawn uniformly from the catalog in front of each history.

The baseline of Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023: what
longer sequences do when the additions mean nothing.
"""

from typing import Self

import numpy as np
import torch

from diffuserec.models.base import Augmenter, PrependingSettings, Run
from diffuserec.data import Catalog, Queries, SequenceDataset
from diffuserec.models.diffusion import KeyedNoise


class Random(Augmenter):
    """Prepends items of the catalog, each equally likely."""

    class Config(PrependingSettings):
        """Hyper-parameters of Random."""

    config: Config

    def build(self, catalog: Catalog) -> None:
        """There is nothing to learn."""

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        """Takes the catalog of `train`."""
        self.begin(train, run or Run())
        return self

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The same users with M random items in front; empty histories stay empty."""
        self.require_fitted()
        rows = self.config.rows(dataset)
        keys = torch.from_numpy(np.asarray(dataset.users[rows]))
        uniform = KeyedNoise(seed, keys).uniform(self.config.n_items).numpy()
        n_items = self.catalog.n_items
        drawn = np.minimum((uniform.astype(np.float64) * n_items).astype(np.int32), n_items - 1)
        return dataset.prepend(drawn + 1, rows)
