"""ItemKNN: items that the same users took are alike, and a history recommends what is like it.

The similarity of two items is the cosine of their columns in the binary user-item matrix,

    S[i, j] = |users of i and j| / sqrt(|users of i| · |users of j|),    S[i, i] = 0,

and a history i_1 … i_n scores  score(j) = Σ_k decay^k S[i_(n-k), j].

Sources: Sarwar, Karypis, Konstan and Riedl (WWW 2001) for the similarity; Deshpande and Karypis
(ACM TOIS 2004) for keeping each item's k nearest. Both sum over the history without order, which
is ``decay=1``; letting older items fade is this project's option. By default every neighbor is kept
and the newest 50 items of a history count: without decay, what was taken long ago says little about
what comes next, and on MovieLens-1M the window is worth more than any choice of k.

The user-item and item-item matrices stay sparse throughout. Synthetic items are looked up when
they stand in a history, but nobody counts as having taken one.
"""

from typing import Self

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.sparse import csr_array, vstack
from torch import Tensor

from diffuserec.models.base import Recommender, Run, Settings
from diffuserec.data import Catalog, Histories, Queries, SequenceDataset

_ROWS_AT_ONCE = 4096


class ItemKNN(Recommender):
    """Cosine similarities to the items of the history, summed."""

    class Config(Settings):
        """Settings of the neighborhood.

        Attributes:
            k: how many nearest neighbors of each item are kept; None keeps all.
            decay: weight of an item against the one after it; 1 weighs the whole window alike.
            max_len: how many of the newest items of a history count; None counts all.
        """

        k: int | None = Field(default=None, ge=1)
        decay: float = Field(default=1.0, ge=0, le=1)
        max_len: int | None = Field(default=50, ge=1)

    config: Config
    offsets: Tensor
    neighbors: Tensor
    similarities: Tensor

    def build(self, catalog: Catalog) -> None:
        """An empty table: row i is ``offsets[i]:offsets[i + 1]`` of the other two."""
        self.register_buffer("offsets", torch.zeros(catalog.vocab_size + 1, dtype=torch.int32))
        self.register_buffer("neighbors", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(0, dtype=torch.float32))

    def fit(
        self, train: SequenceDataset, valid: Queries | None = None, run: Run | None = None
    ) -> Self:
        """Counts who took what in `train`; `valid` is not used."""
        self.begin(train, run or Run())
        real = train.real()
        owner = np.repeat(np.arange(len(real)), real.lengths)
        ones = np.ones(len(owner), dtype=np.float32)
        taken = csr_array((ones, (owner, real.items)), shape=(len(real), real.vocab_size))
        taken.data[:] = 1  # however often
        users = np.maximum(taken.sum(axis=0), 1)
        # each column scaled to length one, so that the product holds cosines
        taken.data /= np.sqrt(users)[taken.indices].astype(np.float32)
        by_item = taken.T.tocsr()
        rows = range(0, real.vocab_size, _ROWS_AT_ONCE)
        table = vstack(
            [self._nearest(by_item[at : at + _ROWS_AT_ONCE] @ taken, at) for at in rows], "csr"
        )
        self.offsets = torch.from_numpy(table.indptr)
        self.neighbors = torch.from_numpy(table.indices)
        self.similarities = torch.from_numpy(table.data)
        return self

    def score(self, histories: Histories, seed: int = 0) -> Float[Tensor, "B V"]:
        """Decayed sum of the similarities to the history's items."""
        if self.config.max_len is not None:
            histories = histories.newest(self.config.max_len)
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
            (
                self.similarities.cpu().numpy(),
                self.neighbors.cpu().numpy(),
                self.offsets.cpu().numpy(),
            ),
            shape=(size, size),
        )
        return torch.from_numpy((look_up @ table).toarray()).to(self.device)

    def _nearest(self, part: csr_array, first: int) -> csr_array:
        """The rows from item `first` on, without the item itself, cut to the k most similar."""
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        other = part.indices != row + first
        row, column, value = row[other], part.indices[other], part.data[other]
        if self.config.k is not None:
            order = np.lexsort((column, -value, row))
            row, column, value = row[order], column[order], value[order]
            begins = np.searchsorted(row, np.arange(part.shape[0]))
            kept = np.arange(len(row)) - begins[row] < self.config.k
            row, column, value = row[kept], column[kept], value[kept]
        return csr_array((value, (row, column)), shape=part.shape)
