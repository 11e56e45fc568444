"""InsertBetween: an item that often stands between two others is put between them.

Source: none; an example of an augmenter that inserts in the middle. For every adjacent pair (a, c)
of a history it looks up the item b that most often came after a and before c in training, and
inserts it with a chance, marked synthetic. Both neighbors come before any later target, but c may
be a target itself: like every augmenter that looks ahead, it helps where it is measured to help.
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
    """Inserts the item that most often stood between two neighbors."""

    trained = False

    class Config(Settings):
        """Hyper-parameters of InsertBetween."""

        chance: float = Field(0.5, ge=0, le=1)
        """Share of the known pairs that are given an item."""

    config: Config
    pairs: Tensor
    between: Tensor

    def build(self, catalog: Catalog) -> None:
        self.register_buffer("pairs", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("between", torch.zeros(0, dtype=torch.int64))

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        real, v = train.real(), train.vocab_size
        items = real.items.astype(np.int64)
        owner = np.repeat(np.arange(len(real)), real.lengths)
        same = owner[:-2] == owner[2:]
        triples = (items[:-2] * v + items[2:])[same] * v + items[1:-1][same]
        found, counts = np.unique(triples, return_counts=True)
        order = np.lexsort((found, -counts, found // v))
        first = np.unique(found[order] // v, return_index=True)[1]
        best = found[order][first]
        self.pairs, self.between = torch.from_numpy(best // v), torch.from_numpy(best % v)
        return []

    def augment(self, dataset: SequenceDataset, seed: int = 0) -> SequenceDataset:
        self.require_fitted()
        items, v = dataset.items.astype(np.int64), dataset.vocab_size
        owner = np.repeat(np.arange(len(dataset)), dataset.lengths)
        adjacent = np.flatnonzero(owner[:-1] == owner[1:])
        keys, pairs = items[adjacent] * v + items[adjacent + 1], self.pairs.numpy()
        at = np.searchsorted(pairs, keys).clip(max=max(0, len(pairs) - 1))
        known = (pairs[at] == keys) if len(pairs) else np.zeros(len(keys), dtype=bool)
        # a number for each (user, place in the history): who else is there changes nothing
        place = np.arange(len(items)) - dataset.offsets[owner]
        users = torch.from_numpy(np.array(dataset.users))
        longest = int(dataset.lengths.max(initial=0))
        drawn = KeyedNoise(seed, users).uniform(max(1, longest)).numpy()
        chosen = known & (drawn[owner[adjacent], place[adjacent]] < self.config.chance)
        after = adjacent[chosen] + 1
        longer = np.insert(items, after, self.between.numpy()[at[chosen]])
        flags = np.insert(np.asarray(dataset.synthetic), after, True)
        lengths = dataset.lengths + np.bincount(owner[after], minlength=len(dataset))
        times = dataset.timestamps
        if times is not None:
            times = np.insert(times, after, times[after])
        return dataset.with_items(longer.astype(np.int32), lengths, flags, times)
