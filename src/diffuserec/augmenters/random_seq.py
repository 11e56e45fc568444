"""Random-Seq: items drawn uniformly from a user's own history in front of it.

The baseline of Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023: the
right taste and no new item.
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


class RandomSeq(Augmenter):
    """Prepends items of the user's own real history, each equally likely."""

    class Config(PrependingSettings):
        """Hyper-parameters of Random-Seq."""

    config: Config
    trained: ClassVar[bool] = False

    def build(self, catalog: Catalog) -> None:
        """Makes nothing: there are no parameters."""

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        return []

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        """The same users with M of their own items in front; empty histories stay empty."""
        self.require_fitted()
        require_sequences("augment", dataset)
        real = dataset.real()
        chosen = self.config.chosen(dataset)
        users = torch.from_numpy(np.asarray(dataset.users[chosen]))
        uniform = KeyedNoise(seed, users).uniform(self.config.n_items).numpy()
        lengths = real.lengths[chosen][:, None]
        drawn = np.minimum((uniform.astype(np.float64) * lengths).astype(np.int64), lengths - 1)
        return dataset.prepend(real.log.items[real.starts[chosen][:, None] + drawn], chosen)
