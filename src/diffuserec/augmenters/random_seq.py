"""Random-Seq: items drawn uniformly from a user's own history in front of it.

The baseline of Liu et al., "Diffusion Augmentation for Sequential Recommendation", CIKM 2023: the
right taste and no new item.

Departure: by default they are drawn from the first items of the history alone. Drawn from all of it
(``condition="published"``), four targets of ten stand in their own context in training, and no
target that is new to its user does at inference. From the one first item they are copies of it;
``n_condition`` says how many there are to draw from.
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


class RandomSeq(PrependingAugmenter):
    """Prepends items of the user's own real history, each equally likely."""

    class Config(PrependingSettings):
        """Hyper-parameters of Random-Seq."""

    config: Config
    trained: ClassVar[bool] = False
    version: ClassVar[int] = 2
    as_published: ClassVar[Mapping[str, Any]] = {"condition": "published"}

    def build(self, catalog: Catalog) -> None:
        """Makes nothing: there are no parameters."""

    def generate(self, conditions: SequenceDataset, seed: int) -> Int32[np.ndarray, "S M"]:
        users = torch.from_numpy(np.asarray(conditions.users))
        uniform = KeyedNoise(seed, users).uniform(self.config.n_items).numpy()
        lengths = conditions.lengths[:, None]
        drawn = np.minimum((uniform.astype(np.float64) * lengths).astype(np.int64), lengths - 1)
        generated: np.ndarray = conditions.log.items[conditions.starts[:, None] + drawn]
        return generated
