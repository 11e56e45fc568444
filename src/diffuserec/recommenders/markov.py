"""The Markov chain: an item is scored by how often it followed the newest items in training.

P[i, j] is the share of the transitions out of item i that went to item j, over adjacent pairs of
the training part. A history i_1 … i_n scores

    score(j) = Σ_k decay^k P[i_(n-k), j] + 0.001 · share(j),    k = 0 … n-1

where share(j), the popularity of j, orders the items that no transition reaches. ``decay=0`` is the
chain of order one; the history-decayed chain costs nothing either and beats several published
tables of trained models.

Source: the counted form of the chain that Rendle, Freudenthaler and Schmidt-Thieme factorize
(WWW 2010). The decayed sum over the history is this project's.

A synthetic item is context: it is looked up like any other item of a history, but no transition
into or out of one is counted.
"""

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.sparse import csr_array
from torch import Tensor

from diffuserec.data import Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search, Settings
from diffuserec.models.item_matrix import ItemMatrix
from diffuserec.models.recommender import ScoreRecommender

_POPULARITY_WEIGHT = 1e-3


class Markov(ScoreRecommender):
    """Transition shares, summed over the history with the newest item counting most."""

    class Config(Settings):
        """Hyper-parameters of the chain."""

        decay: Annotated[float, Search(0.0, 1.0)] = Field(0.7, ge=0, le=1)
        """Weight of an item relative to the next newer one; 0 looks at the newest alone."""

    config: Config
    trained = False

    def build(self, catalog: Catalog) -> None:
        self.transitions = ItemMatrix(catalog.vocab_size)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        """Counts the transitions of `train`; `valid` is not used."""
        counts = _transitions(train)
        leaving = np.maximum(counts.sum(axis=1), 1)
        counts.data /= np.repeat(leaving, np.diff(counts.indptr))
        self.transitions.set(counts)
        return []

    def all_scores(self, histories: Histories) -> Float[Tensor, "B V"]:
        """Decayed transition shares of the history's items plus a trace of popularity."""
        counts = self.popularity.to(torch.float32)
        trace = _POPULARITY_WEIGHT * counts / counts.sum().clamp(min=1)
        return self.transitions.decayed_sums(histories, self.config.decay) + trace


def _transitions(train: SequenceDataset) -> csr_array:
    """How often each item followed each other one, shape (V, V).

    Needs memory for a million interactions beside the counts, however many there are.
    """
    sums = [csr_array((train.vocab_size, train.vocab_size))]
    for part in train.parts():
        counts = _transitions_of(part)
        while sums and sums[-1].nnz <= 2 * counts.nnz:  # so that none is added up often
            counts = counts + sums.pop()
        sums.append(counts)
    total = sums.pop()
    while sums:
        total = total + sums.pop()
    return total


def _transitions_of(part: SequenceDataset) -> csr_array:
    items, real, offsets = part.items, ~part.synthetic, part.offsets
    adjacent = real[:-1] & real[1:]
    begins = offsets[(offsets > 0) & (offsets < len(items))]
    adjacent[begins - 1] = False
    pairs = (items[:-1][adjacent], items[1:][adjacent])
    shape = (part.vocab_size, part.vocab_size)
    return csr_array((np.ones(len(pairs[0])), pairs), shape=shape)
