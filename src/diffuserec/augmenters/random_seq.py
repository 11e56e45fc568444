"""Random-Seq: items drawn uniformly from a user's own history in front of it.

The baseline of Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023: the
right taste and no new item.
"""

from typing import Self

import numpy as np
import torch

from diffuserec.models.base import Augmenter, PrependingSettings, Run
from diffuserec.data import Catalog, Queries, SequenceDataset
from diffuserec.models.diffusion import KeyedNoise


class RandomSeq(Augmenter):
    """Prepends items of the user's own real history, each equally likely."""

    class Config(PrependingSettings):
        """Hyper-parameters of Random-Seq."""

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
        """The same users with M of their own items in front; empty histories stay empty."""
        self.require_fitted()
        real = dataset.real()
        rows = self.config.rows(dataset)
        keys = torch.from_numpy(np.asarray(dataset.users[rows]))
        uniform = KeyedNoise(seed, keys).uniform(self.config.n_items).numpy()
        lengths = real.lengths[rows][:, None]
        places = np.minimum((uniform.astype(np.float64) * lengths).astype(np.int64), lengths - 1)
        return dataset.prepend(real.items[real.offsets[rows][:, None] + places], rows)
