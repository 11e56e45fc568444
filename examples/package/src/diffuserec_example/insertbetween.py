"""InsertBetween: between two items comes the one that most often followed the first.

Source: none; an example of an augmenter that inserts in the middle. An inserted item depends on the
item before it alone, never on the one after it, which may be a training target.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from diffuserec.data import Catalog, Queries, SequenceDataset
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Settings
from diffuserec.models.diffusion import KeyedNoise


class InsertBetween(Augmenter):
    """Inserts the likeliest next item after some items."""

    trained = False

    class Config(Settings):
        """Hyper-parameters of InsertBetween."""

        chance: float = Field(0.5, ge=0, le=1)
        """Share of the items that are given a follower."""

    config: Config
    follower: Tensor

    def build(self, catalog: Catalog) -> None:
        self.register_buffer("follower", torch.zeros(catalog.vocab_size, dtype=torch.int64))

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        real, v = train.real(), train.vocab_size
        items, owner = real.items.astype(np.int64), _owner(real)
        pairs = (items[:-1] * v + items[1:])[owner[:-1] == owner[1:]]
        found, counts = np.unique(pairs, return_counts=True)
        best = found[np.lexsort((-found, counts))]  # the most frequent pair of an item comes last
        follower = np.zeros(v, dtype=np.int64)
        follower[best // v] = best % v
        self.follower = torch.from_numpy(follower)
        return []

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        self.require_fitted()
        items, owner = dataset.items, _owner(dataset)
        # a number for each (user, place in the history): who else is there changes nothing
        place = np.arange(len(items)) - dataset.offsets[owner]
        users = torch.from_numpy(np.array(dataset.users))
        longest = int(dataset.lengths.max(initial=1))
        drawn = KeyedNoise(seed, users).uniform(longest).numpy()[owner, place]
        follower = self.follower.cpu().numpy()[items]
        last = place == dataset.lengths[owner] - 1
        after = np.flatnonzero((drawn < self.config.chance) & (follower > 0) & ~last) + 1
        longer = np.insert(items, after, follower[after - 1])
        flags = np.insert(np.asarray(dataset.synthetic), after, True)
        lengths = dataset.lengths + np.bincount(owner[after - 1], minlength=len(dataset))
        times = dataset.timestamps
        if times is not None:
            times = np.insert(times, after, times[after - 1])
        return dataset.with_items(longer.astype(np.int32), lengths, flags, times)


def _owner(dataset: SequenceDataset) -> np.ndarray:
    return np.repeat(np.arange(len(dataset)), dataset.lengths)
