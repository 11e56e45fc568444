"""Lists of the next items of a history, however they were made, against what came next.

Of a query, F are the K items that came next and L the list that was made of n places. h is the
number of different items of L that are in F, d(X) that of the different items of X.

* Recall = h / d(F); Precision = h / (items shown in L); F1 = 2 h / (d(L) + d(F)). Where both have
  the same number of different items, the three are one.
* Hit = 1 if h > 0, else 0; Jaccard = h / (d(L) + d(F) - h), the share of the items of both
  together.
* NDCG = sum over the places j = 0.. of L that hold an item of F for the first time of
  1 / log2(j + 2), by the same sum over j < min(d(F), n): 1 if they stand in front.
* InPlace = share of the first K places of L that hold the very item that came at that place.
* Repeats = share of the items shown in L that stand in L before.

A list that shows nothing has 0 in all of them.
"""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float64, Int64

from diffuserec.data import Queries, SequenceDataset
from diffuserec.data.dataset import offsets_of
from diffuserec.errors import ConfigError
from diffuserec.evaluation.evaluate import rank
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.recommender import Recommender, StateRecommender

LIST_QUALITY = ("Recall", "Precision", "F1", "NDCG", "InPlace", "Repeats")
"""What is measured of a list whose items came one after the other."""

BASKET_QUALITY = ("Recall", "Precision", "F1", "Hit", "Jaccard")
"""What is measured of a list whose items came together."""

_AT_ONCE = 2**24
"""Numbers of item vectors held at once."""


def list_quality(
    lists: Int64[np.ndarray, "Q N"], following: Int64[np.ndarray, "Q K"]
) -> dict[str, Float64[np.ndarray, " Q"]]:
    """What is measured of each list, by name.

    Args:
        lists: the items shown, in order; -1 where fewer than N were.
        following: the items that came next, in order, at least one; 0 behind them where fewer than
            K came.
    """
    shown, came = lists > 0, following > 0
    first, own_first = (shown & ~_repeated(lists)), came & ~_repeated(following)
    right = first & (lists[:, :, None] == following[:, None, :]).any(2)
    hits, n_shown = right.sum(1), shown.sum(1)
    n_different, n_true = first.sum(1), own_first.sum(1)
    gain = 1 / np.log2(np.arange(lists.shape[1]) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(gain)])[np.minimum(n_true, lists.shape[1])]
    places = min(lists.shape[1], following.shape[1])
    in_place = (lists[:, :places] == following[:, :places]).sum(1)
    some = np.maximum(n_shown, 1)
    return {
        "Recall": hits / n_true,
        "Precision": hits / some,
        "F1": 2 * hits / (n_different + n_true),
        "Hit": (hits > 0).astype(np.float64),
        "Jaccard": hits / (n_different + n_true - hits),
        "NDCG": (right @ gain) / ideal,
        "InPlace": in_place / came.sum(1),
        "Repeats": (n_shown - n_different) / some,
    }


def rolled_out(
    model: Recommender,
    queries: Queries,
    length: int,
    *,
    augmenter: Augmenter | None = None,
    filter_seen: bool = True,
    distinct: bool = False,
    seed: int = 0,
    batch_size: int = 256,
) -> Int64[np.ndarray, "Q N"]:
    """Lists that a model of the next item makes greedily: its best item becomes history each time.

    Args:
        model: fitted.
        length: N, the number of items.
        augmenter: changes the histories first, as it changed those of training.
        filter_seen: hide what is in a user's own history, and what is in the list already.
        distinct: hide what is in the list already, whether or not seen items are.

    Raises:
        ConfigError: the model reads the times of items, which nothing says of those it chooses; or
            an argument of :func:`rank` is not allowed.
    """
    if model.reads_times and queries.histories.log.timestamps is not None:
        raise ConfigError(
            f"{model.name} reads the times of items, and the items that it chooses have none: "
            "lists cannot be rolled out"
        )
    made = np.full((len(queries), length), -1, dtype=np.int64)
    for place in range(length):
        now = replace(queries, histories=_continued(queries.histories, made[:, :place]))
        best = rank(
            model,
            now,
            augmenter=augmenter,
            filter_seen=filter_seen,
            list_length=place + 1 if distinct else 1,
            seed=seed,
            batch_size=batch_size,
        ).top_items
        listed = (best[:, :, None] == made[:, None, :place]).any(2) & (best > 0) & distinct
        first = np.take_along_axis(best, listed.argmin(1)[:, None], axis=1)[:, 0]
        made[:, place] = np.where(listed.all(1), -1, first)
    return made


def ranks_in(
    lists: Int64[np.ndarray, "Q N"], targets: Int64[np.ndarray, " Q"]
) -> Float64[np.ndarray, " Q"]:
    """0-based place of each target in its list; infinite where it is not there."""
    hit = lists == targets[:, None]
    return np.where(hit.any(1), hit.argmax(1).astype(np.float64), np.inf)


def intra_list_diversity(
    lists: Int64[np.ndarray, "Q N"], vectors: Float64[np.ndarray, "V D"]
) -> Float64[np.ndarray, " Q"]:
    """Mean over the pairs of items in a list of 1 - cosine of their vectors.

    An item without a direction (a vector of zeros) has cosine 0 with all. A list of fewer than two
    items has 0.
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    units[0] = 0
    n, both = (lists > 0).sum(1), np.empty(len(lists))
    size = max(1, _AT_ONCE // (lists.shape[1] * units.shape[1]))
    for begin in range(0, len(lists), size):
        chosen = units[np.maximum(lists[begin : begin + size], 0)]
        # the squared length of a sum holds each pair twice, and each item with itself
        twice = (chosen.sum(1) ** 2).sum(1) - (chosen**2).sum((1, 2))
        both[begin : begin + size] = twice
    pairs = n * (n - 1)
    return np.where(pairs > 0, 1 - both / np.maximum(pairs, 1), 0.0)


def item_vectors(model: Recommender) -> Float64[np.ndarray, "V D"]:
    """Embeddings of a model's items, the mean of all taken off; padding has zeros.

    Raises:
        ConfigError: the model has none.
    """
    if not isinstance(model, StateRecommender):
        raise ConfigError(f"{model.name} has no item vectors")
    numbers = torch.arange(1, model.catalog.vocab_size, device=model.device)
    with torch.no_grad():
        vectors = model.table.embed(numbers)
    found = vectors.double().cpu().numpy()
    return np.vstack([np.zeros((1, found.shape[1])), found - found.mean(0)])


def _repeated(items: Int64[np.ndarray, "Q N"]) -> np.ndarray:
    """Whether an item stands earlier in its row."""
    earlier = np.tri(items.shape[1], k=-1, dtype=bool)
    repeated: np.ndarray = ((items[:, :, None] == items[:, None, :]) & earlier).any(2)
    return repeated


def _continued(histories: SequenceDataset, items: Int64[np.ndarray, "Q N"]) -> SequenceDataset:
    """The histories with further items behind them; -1 is none."""
    if not items.shape[1]:
        return histories
    ends = np.repeat(offsets_of(histories.lengths)[1:], items.shape[1])
    new, there = items.reshape(-1), items.reshape(-1) > 0
    whole = np.insert(histories.items, ends[there], new[there])
    lengths = histories.lengths + (items > 0).sum(1)
    return histories.with_items(whole.astype(np.int32), lengths, None)
