"""ItemKNN: items are similar if the same users took them, and a history recommends similar items.

The similarity of two items is the cosine of their columns in the binary user-item matrix,

    S[i, j] = |users of i and j| / sqrt(|users of i| · |users of j|),    S[i, i] = 0,

and a history i_1 … i_n scores  score(j) = Σ_k decay^k S[i_(n-k), j].

Sources: Sarwar, Karypis, Konstan and Riedl (WWW 2001) for the similarity; Deshpande and Karypis
(ACM TOIS 2004) for keeping each item's k nearest. Both sum over the history without order, which
is ``decay=1``; letting older items fade is this project's option. By default every neighbor is kept
and the newest 50 items of a history count: without decay, items taken long ago say little about
the next one, and on MovieLens-1M the window is worth more than any choice of k.

The user-item and item-item matrices stay sparse throughout. Synthetic items are looked up like any
other item of a history, but no user counts as having taken one.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import Field
from scipy.sparse import csr_array, vstack
from torch import Tensor

from diffuserec.data import Catalog, Histories, Queries, SequenceDataset
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.config import Search, Settings
from diffuserec.models.item_matrix import ItemMatrix
from diffuserec.models.recommender import ScoreRecommender

_ITEMS_AT_ONCE = 4096


class ItemKNN(ScoreRecommender):
    """Cosine similarities to the items of the history, summed."""

    class Config(Settings):
        """Hyper-parameters of the neighborhood."""

        k: int | None = Field(None, ge=1)
        """Nearest neighbors kept of each item; None keeps all."""
        decay: Annotated[float, Search(0.0, 1.0)] = Field(1.0, ge=0, le=1)
        """Weight of an item relative to the next newer one; 1 weighs all alike."""
        max_len: int | None = Field(50, ge=1)
        """Newest items of a history that count; None counts all."""

    config: Config
    trained = False

    def build(self, catalog: Catalog) -> None:
        self.similarities = ItemMatrix(catalog.vocab_size)

    def learn(self, train: SequenceDataset, valid: Queries | None, runtime: Runtime) -> list[Epoch]:
        """Counts which users took which items in `train`; `valid` is not used."""
        real = train.real()
        owner = np.repeat(np.arange(len(real)), real.lengths)
        ones = np.ones(len(owner), dtype=np.float32)
        taken = csr_array((ones, (owner, real.items)), shape=(len(real), real.vocab_size))
        taken.data[:] = 1  # however often
        users = np.maximum(taken.sum(axis=0), 1)
        # each column scaled to length one, so that the product holds cosines
        taken.data /= np.sqrt(users)[taken.indices].astype(np.float32)
        by_item = taken.T.tocsr()
        blocks = [
            self._nearest(by_item[first : first + _ITEMS_AT_ONCE] @ taken, first)
            for first in range(0, real.vocab_size, _ITEMS_AT_ONCE)
        ]
        self.similarities.set(vstack(blocks, "csr"))
        return []

    def all_scores(self, histories: Histories) -> Float[Tensor, "B V"]:
        """Decayed sum of the similarities to the history's items."""
        c = self.config
        newest = histories if c.max_len is None else histories.truncate(c.max_len)
        return self.similarities.decayed_sums(newest, c.decay)

    def _nearest(self, part: csr_array, first: int) -> csr_array:
        """Similarities of the items from `first` on, without their own, cut to the k greatest."""
        item = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        other = part.indices != item + first
        item, column, value = item[other], part.indices[other], part.data[other]
        if self.config.k is not None:
            order = np.lexsort((column, -value, item))
            item, column, value = item[order], column[order], value[order]
            begins = np.searchsorted(item, np.arange(part.shape[0]))
            kept = np.arange(len(item)) - begins[item] < self.config.k
            item, column, value = item[kept], column[kept], value[kept]
        return csr_array((value, (item, column)), shape=part.shape)
