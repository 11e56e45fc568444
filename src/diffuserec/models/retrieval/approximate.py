"""Approximate lists: candidates from an index of the item vectors, scored exactly.

The items lie in about √V lists, each around a center on the unit sphere (spherical k-means), and a
search looks into those lists alone whose centers have the greatest products with the state. What
it finds is scored as an exact search would, and hidden items are left out of more candidates than
are shown. The lists are faiss's (Douze et al., "The Faiss library", arXiv 2401.08281), which the
extra ``ann`` installs.
"""

import importlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from diffuserec.errors import ConfigError
from diffuserec.models.retrieval.scorers import Matrix, OrPopularity, Products, Scorer
from diffuserec.models.retrieval.search import ItemSets, best_of, top_k

_AT_ONCE = 2**17
"""Items put into the index at once."""

_PER_CENTER = 64
"""Items that a center is learned from."""

_FEW = 4096
"""Items below which all are looked at."""

_WANTED_RECALL = 0.99
_MOST_PROBED = 0.3
"""Share of the lists beyond which looking into more of them costs as much as looking into all."""

_MOST_CANDIDATES = 4096
"""Candidates beyond which looking at all items costs less."""

_SPARE = 40
"""Candidates beyond those shown, for the few whose rounded products are out of order."""


class ItemIndex:
    """Finds items with great products among V - 1, without looking at all of them.

    Made by :meth:`of`; :meth:`tensors` is what it is made from again.

    Attributes:
        n_probed: lists that a search looks into.
        recall: share of an exact list of ten that was found when it was made.
    """

    def __init__(
        self,
        vectors: Float[Tensor, "V E"],
        centers: Float[Tensor, "C E"],
        lists: Int64[Tensor, " I"],
        n_probed: int,
        recall: float,
    ) -> None:
        faiss = _faiss()
        self.centers, self.lists = centers, lists
        self.n_probed, self.recall = n_probed, recall
        n_lists, width = centers.shape
        self._quantizer = faiss.IndexFlatIP(width)
        self._quantizer.add(np.ascontiguousarray(centers.numpy()))
        form = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
        self._index = faiss.IndexIVFScalarQuantizer(self._quantizer, width, n_lists, *form)
        self._index.train(centers.numpy())  # the centers are there: nothing is learned
        for first, part in enumerate(vectors[1:].split(_AT_ONCE)):
            rows = np.ascontiguousarray(part.detach().float().cpu().numpy())
            ids = np.arange(first * _AT_ONCE + 1, first * _AT_ONCE + 1 + len(rows), dtype=np.int64)
            own = np.ascontiguousarray(lists[ids - 1].numpy())
            swig = (faiss.swig_ptr(array) for array in (rows, ids, own))
            self._index.add_core(len(rows), *swig)

    @classmethod
    def of(cls, vectors: Float[Tensor, "V E"], states: Float[Tensor, "B E"]) -> "ItemIndex":
        """An index of the items, which looks into as many lists as it takes for these states.

        Args:
            vectors: of the items; row 0 is padding.
            states: a sample, for which lists of ten are compared with the exact ones.

        Raises:
            ConfigError: faiss is not installed, or there are no items.
        """
        faiss = _faiss()
        n_items, width = len(vectors) - 1, vectors.shape[1]
        if not n_items:
            raise ConfigError("an index needs items: there are none")
        n_lists = round(math.sqrt(n_items)) if n_items >= _FEW else 1
        generator = torch.Generator().manual_seed(0)
        n_sampled = min(n_items, n_lists * _PER_CENTER)
        rows = torch.randint(1, n_items + 1, (n_sampled,), generator=generator)
        if n_sampled == n_items:
            rows = torch.arange(1, n_items + 1)
        sample = vectors.detach()[rows.to(vectors.device)].float().cpu().numpy()
        learned = faiss.Kmeans(
            width, n_lists, niter=10, spherical=True, seed=0, min_points_per_centroid=1
        )
        faiss.omp_set_num_threads(torch.get_num_threads())
        learned.train(np.ascontiguousarray(sample))
        lists = []
        for part in vectors[1:].split(_AT_ONCE):
            rows_of = np.ascontiguousarray(part.detach().float().cpu().numpy())
            lists.append(torch.from_numpy(learned.index.search(rows_of, 1)[1][:, 0]))
        faiss.omp_set_num_threads(1)
        centers = torch.from_numpy(learned.centroids.copy())
        found = cls(vectors, centers, torch.cat(lists), n_lists, 1.0)
        return found._probing(vectors, states)

    def _probing(self, vectors: Tensor, states: Tensor) -> "ItemIndex":
        """Looks into as few lists as the wanted recall takes, and remembers what it was."""
        k = min(10, len(vectors) - 1)
        scorer = Products(states, vectors)
        _, exact = top_k(scorer, k)
        most = max(1, math.ceil(_MOST_PROBED * len(self.centers)))
        self.n_probed = max(1, len(self.centers) // 64)
        while True:
            _, found = approximate_top_k(scorer, self, k)
            self.recall = recall(found, exact)
            if self.recall >= _WANTED_RECALL or self.n_probed >= most:
                return self
            self.n_probed = min(2 * self.n_probed, most)

    def tensors(self) -> dict[str, Tensor]:
        """Centers, the list of each item, how many a search looks into, and the recall then."""
        return {
            "centers": self.centers,
            "lists": self.lists.to(torch.int32),
            "n_probed": torch.tensor(self.n_probed),
            "recall": torch.tensor(self.recall, dtype=torch.float64),
        }

    @classmethod
    def again(cls, vectors: Float[Tensor, "V E"], tensors: Mapping[str, Tensor]) -> "ItemIndex":
        """The index that :meth:`tensors` is of.

        Raises:
            ValueError: it is of other items.
        """
        centers, lists = tensors["centers"], tensors["lists"].long()
        fits = centers.ndim == 2 and centers.dtype == torch.float32 and len(centers) > 0
        fits = fits and centers.shape[1] == vectors.shape[1] and lists.shape == (len(vectors) - 1,)
        if not fits or not bool(((lists >= 0) & (lists < len(centers))).all()):
            raise ValueError("it is of other items")
        n_probed = int(tensors["n_probed"])
        return cls(
            vectors, centers, lists, max(1, min(n_probed, len(centers))), float(tensors["recall"])
        )

    def candidates(self, states: Float[Tensor, "B E"], n: int) -> Int64[Tensor, "B N"]:
        """About the n items with the greatest products; -1 where fewer were found."""
        _faiss().omp_set_num_threads(1)  # a request is one, and a forked process has no others
        self._index.nprobe = self.n_probed
        _, found = self._index.search(np.ascontiguousarray(states.float().cpu().numpy()), n)
        return torch.from_numpy(found).to(states.device)


@torch.no_grad()
def approximate_top_k(
    scorer: Scorer,
    index: ItemIndex,
    k: int,
    hidden: ItemSets | None = None,
    allowed: Bool[Tensor, " V"] | None = None,
) -> tuple[Float[Tensor, "B K"], Int64[Tensor, "B K"]]:
    """As :func:`top_k`, but of the candidates of an index alone.

    A history that few candidates are left for, and one that popularity answers, get the exact list;
    so do all where a history hides thousands of items, or thousands are not allowed.

    Args:
        scorer: products of states and item vectors, and popularity where a history is empty.
        index: of those vectors.
    """
    n_rows, vocab_size = scorer.shape
    k = min(k, vocab_size - 1)
    hidden = None if hidden is None else hidden.to(scorer.device)
    if isinstance(scorer, OrPopularity):
        scores = torch.full((n_rows, k), -torch.inf, device=scorer.device)
        items = torch.full((n_rows, k), -1, device=scorer.device)
        counts = Matrix(scorer.counts[None].expand(int((~scorer.known).sum()), -1))
        for rows, part in ((scorer.known, scorer.scorer), (~scorer.known, counts)):
            own = None if hidden is None else hidden.select(rows)
            found = approximate_top_k(part, index, k, own, allowed)
            scores[rows], items[rows] = found[0].to(scores.dtype), found[1]
        return scores, items
    n_denied = 0 if allowed is None else int((~allowed[1:]).sum())
    n_hidden = 0
    if hidden is not None and len(hidden.owner):
        n_hidden = int(torch.bincount(hidden.owner).max())
    n = min(k + n_hidden + n_denied + _SPARE, vocab_size - 1)
    if not isinstance(scorer, Products) or n > _MOST_CANDIDATES:
        return top_k(scorer, k, hidden, allowed)
    candidates = index.candidates(scorer.states, n)
    missing = candidates < 0
    vectors = scorer.vectors[candidates.clamp(min=0)]
    scores = torch.bmm(vectors, scorer.states[:, :, None])[:, :, 0].float()
    if allowed is not None:
        missing |= ~allowed.to(scorer.device)[candidates]
    if hidden is not None:
        row = torch.arange(n_rows, device=scorer.device)[:, None]
        own_keys = row * vocab_size + candidates
        missing |= torch.isin(own_keys, hidden.owner * vocab_size + hidden.items)
    scores = scores.masked_fill(missing, -torch.inf)
    chosen = best_of(scores, candidates.clamp(min=0), k)
    scores, items = scores.gather(1, chosen), candidates.gather(1, chosen)
    items = items.masked_fill(scores == -torch.inf, -1)
    short = (items < 0).any(1)
    if bool(short.any()):
        own = None if hidden is None else hidden.select(short)
        whole = replace(scorer, states=scorer.states[short])
        scores[short], items[short] = top_k(whole, k, own, allowed)
    return scores, items


def recall(found: Int64[Tensor, "B K"], exact: Int64[Tensor, "B K"]) -> float:
    """Share of the items of exact lists that are in those found."""
    there = (found[:, :, None] == exact[:, None, :]).any(1) & (exact > 0)
    return float(there.sum() / (exact > 0).sum().clamp(min=1))


def _faiss() -> Any:
    """faiss; ConfigError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its wrapper's own types
            return importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        raise ConfigError("approximate lists need faiss: pip install 'diffuserec[ann]'") from error
