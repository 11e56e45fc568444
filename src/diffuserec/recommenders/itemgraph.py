"""ItemGraph: walks of a few steps from the newest items over a graph of transitions, untrained.

An edge i → j weighs

    w(i, j) = Σ over j at most `window` places after i of 1 / distance,

plus `backward` times w(j, i), over the training part; its weights P are scaled by row. A history
i_1 … i_n scores

    score(j) = Σ_k decay^k Σ_h hop_decay^h [P^(h+1)](i_(n-k), j) + 0.001 · share(j)

over the newest `n_newest` items and `n_hops` steps; share(j) is the popularity of j.

Source: the idea of Han et al., "An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable
Benchmarks for Sequential Recommendation" (arXiv 2605.07125), who retrieve from rings around the
newest one or two items of a graph of adjacent transitions and rank by the similarity of the items'
texts plus the edge's weight, log(1 + count) by its row's greatest.

Departure: items have no texts here, so that the graph alone ranks; nearer rings come first by
`hop_decay` instead of a fixed number of items from each.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.sparse import csr_array
from torch import Tensor

from diffuserec.data import Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Settings
from diffuserec.models.item_matrix import ItemMatrix
from diffuserec.models.recommender import ScoreRecommender

_POPULARITY_WEIGHT = 1e-3


class ItemGraph(ScoreRecommender):
    """Sums of walks from the newest items."""

    class Config(Settings):
        """Hyper-parameters of the graph and of the walks."""

        n_newest: int = Field(2, ge=1)
        """Newest items of a history from which walks begin."""
        decay: float = Field(0.5, ge=0, le=1)
        """Weight of an item relative to the next newer one."""
        window: int = Field(5, ge=1)
        """Greatest distance of two items of a sequence that are joined."""
        backward: float = Field(0.3, ge=0, le=1)
        """Weight of an edge against its direction."""
        scaling: Literal["share", "log", "cosine"] = "log"
        """Of a row: to a sum of 1; log(1 + w) by the row's greatest, as in the paper; or w(i, j)
        by the square root of the two items' weights."""
        n_hops: int = Field(1, ge=1, le=3)
        """Steps of the longest walk; with scaling "log", long walks outweigh the steps themselves
        where items have many edges."""
        hop_decay: float = Field(0.1, ge=0, le=1)
        """Weight of a step relative to the one before it."""

    config: Config
    trained = False

    def build(self, catalog: Catalog) -> None:
        self.walks = ItemMatrix(catalog.vocab_size)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        """Counts the transitions of `train`; `valid` is not used."""
        c = self.config
        step = self._scaled(self._edges(train))
        total = reached = step
        for hop in range(1, c.n_hops):
            reached = reached @ step
            total = total + c.hop_decay**hop * reached
        self.walks.set(total.tocsr())
        return []

    def all_scores(self, histories: Histories) -> Float[Tensor, "B V"]:
        """Decayed sum of the walks from the newest items plus a trace of popularity."""
        counts = self.popularity.to(torch.float32)
        trace = _POPULARITY_WEIGHT * counts / counts.sum().clamp(min=1)
        newest = histories.truncate(self.config.n_newest)
        return self.walks.decayed_sums(newest, self.config.decay) + trace

    def _edges(self, train: SequenceDataset) -> csr_array:
        """Weights of pairs of items by their distance, in both directions; no loops."""
        c = self.config
        items, real = train.items, ~train.synthetic
        owner = np.repeat(np.arange(len(train)), train.lengths)
        shape = (train.vocab_size, train.vocab_size)
        forward = csr_array(shape, dtype=np.float64)
        for distance in range(1, c.window + 1):
            near, far = items[:-distance], items[distance:]
            joined = (owner[:-distance] == owner[distance:]) & (near != far)
            joined &= real[:-distance] & real[distance:]
            weights = np.full(int(joined.sum()), 1 / distance)
            forward = forward + csr_array((weights, (near[joined], far[joined])), shape=shape)
        edges: csr_array = (forward + c.backward * forward.T).tocsr()
        return edges

    def _scaled(self, edges: csr_array) -> csr_array:
        """The weights of each row, scaled."""
        scaled: csr_array = edges.copy()
        row = np.repeat(np.arange(edges.shape[0]), np.diff(edges.indptr))
        leaving = np.bincount(row, edges.data, edges.shape[0])
        arriving = np.bincount(edges.indices, edges.data, edges.shape[0])
        if self.config.scaling == "share":
            scaled.data = edges.data / leaving[row]
        elif self.config.scaling == "log":
            greatest = np.zeros(edges.shape[0])
            np.maximum.at(greatest, row, np.log1p(edges.data))
            scaled.data = np.log1p(edges.data) / greatest[row]
        else:
            scaled.data = edges.data / np.sqrt(leaving[row] * arriving[edges.indices])
        return scaled
