"""The Markov chain: what came after the newest items, counted.

P[i, j] is the share of the transitions out of item i that went to item j, over adjacent pairs of
the training part. A history i_1 … i_n scores

    score(j) = Σ_k decay^k P[i_(n-k), j] + 0.001 · share(j),    k = 0 … n-1

where share(j), the popularity of j, orders the items that no transition reaches. ``decay=0`` is the
chain of order one; the history-decayed chain costs nothing either and beats several published
tables of trained models.

Source: the counted form of the chain that Rendle, Freudenthaler and Schmidt-Thieme factorize
(WWW 2010). The decayed sum over the history is this project's.

A synthetic item is context: it is looked up like any other when it stands in a history, but no
transition into or out of one is counted.
"""

from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.sparse import csr_array
from torch import Tensor

from diffuserec.models.base import Recommender, Run, Settings
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset

_POPULARITY_WEIGHT = 1e-3


class Markov(Recommender):
    """Transition shares, summed over the history with the newest item counting most."""

    class Config(Settings):
        """Settings of the chain.

        Attributes:
            decay: weight of an item against the one after it; 0 looks at the newest alone.
        """

        decay: float = Field(default=0.7, ge=0, le=1)

    config: Config
    offsets: Tensor
    next_items: Tensor
    shares: Tensor

    def build(self, catalog: Catalog) -> None:
        """An empty transition table: row i is ``offsets[i]:offsets[i + 1]`` of the other two."""
        self.register_buffer("offsets", torch.zeros(catalog.vocab_size + 1, dtype=torch.int32))
        self.register_buffer("next_items", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("shares", torch.zeros(0, dtype=torch.float32))

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        """Counts the transitions of `train`; `valid` is not used."""
        self.begin(train, run or Run())
        real = ~train.synthetic
        adjacent = real[:-1] & real[1:]
        begins = train.offsets[(train.offsets > 0) & (train.offsets < len(train.items))]
        adjacent[begins - 1] = False
        pairs = (train.items[:-1][adjacent], train.items[1:][adjacent])
        shape = (train.vocab_size, train.vocab_size)
        counts = csr_array((np.ones(len(pairs[0])), pairs), shape=shape)
        leaving = np.maximum(counts.sum(axis=1), 1)
        self.offsets = torch.from_numpy(counts.indptr)
        self.next_items = torch.from_numpy(counts.indices)
        shares = counts.data / np.repeat(leaving, np.diff(counts.indptr))
        self.shares = torch.from_numpy(shares.astype(np.float32))
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        """Decayed transition shares of the history's items plus a trace of popularity."""
        n_rows, size = len(histories.users), self.catalog.vocab_size
        position = torch.arange(histories.items.shape[1], device=histories.items.device)
        age = histories.lengths[:, None] - 1 - position
        weights = torch.pow(self.config.decay, age.clamp(min=0).to(torch.float32))
        used = (age >= 0) & (weights > 0)
        starts = np.concatenate([[0], np.cumsum(used.sum(1).cpu().numpy())])
        look_up = csr_array(
            (
                weights[used].cpu().numpy(),
                histories.items[used].to(torch.int32).cpu().numpy(),
                starts.astype(np.int32),
            ),
            shape=(n_rows, size),
        )
        table = csr_array(
            (self.shares.cpu().numpy(), self.next_items.cpu().numpy(), self.offsets.cpu().numpy()),
            shape=(size, size),
        )
        counts = self.popularity.to(torch.float32)
        trace = _POPULARITY_WEIGHT * counts / counts.sum().clamp(min=1)
        return torch.from_numpy((look_up @ table).toarray()).to(self.device) + trace
