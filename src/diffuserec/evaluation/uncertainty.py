"""Certainty of a model about its own lists, and whether it is right.

For models whose scores are a distribution over the items: for each query the probability of the
list that is shown, the entropy of the distribution and, for generative recommenders, how far the
draws of noise disagree. Calibration then holds the lists' probabilities against their hit rate.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Int64

from diffuserec.data import Queries, index_batches
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.recommender import Recommender
from diffuserec.models.retrieval import Scorer, certainty, seen_items

COLUMNS = ("confidence", "entropy", "disagreement")


def scored_batches(
    model: Recommender,
    queries: Queries,
    augmenter: Augmenter | None,
    seed: int,
    batch_size: int,
) -> Iterator[tuple[Int64[np.ndarray, " B"], Scorer]]:
    """Indices of the queries of each batch, equal lengths together, and the scores of the items.

    Raises:
        ConfigError: the model was fitted to another catalog.
    """
    catalog = queries.histories.catalog
    if not model.catalog.item_ids.equals(catalog.item_ids):
        raise ConfigError(
            f"{model.name} was fitted to another catalog ({model.catalog.n_items} items) than "
            f"that of the queries ({catalog.n_items} items): prepare both from one dataset"
        )
    model.eval()
    shown = queries.histories
    if augmenter is not None:
        augmenter.eval()
        shown = augmenter.augment_for_inference(shown, seed)
    for index in index_batches(shown, batch_size, model.max_len):
        yield index, model.scorer_of(shown, index, seed)


@torch.inference_mode()
def uncertainty(
    model: Recommender,
    queries: Queries,
    *,
    augmenter: Augmenter | None = None,
    filter_seen: bool = True,
    list_length: int = 10,
    seed: int = 0,
    batch_size: int = 256,
) -> pl.DataFrame:
    """Certainty of a model about each query, without looking at the targets.

    Args:
        model: fitted; a generative recommender, or one whose scores are logits.
        filter_seen: hide items of a user's own real history; the probability of what is left
            is scaled up to 1.

    Returns:
        An entry a query: ``confidence`` (probability of the shown list), ``entropy`` (of the
        averaged distribution, nats), ``disagreement`` (between draws, nats; 0 for a model without
        noise).

    Raises:
        ConfigError: the model's scores are not a distribution over items, or it was fitted to
            another catalog.
    """
    model.require_fitted()
    if not model.has_distribution:
        raise ConfigError(
            f"{model.name} ranks items by scores that are not probabilities of items: uncertainty "
            "is for models trained with the full softmax and for generative ones"
        )
    columns = {name: np.empty(len(queries)) for name in COLUMNS}
    for index, scorer in scored_batches(model, queries, augmenter, seed, batch_size):
        hidden = seen_items(queries.histories, index) if filter_seen else None
        found = certainty(scorer, list_length, hidden)
        for name in COLUMNS:
            columns[name][index] = getattr(found, name).cpu().numpy()
    return pl.DataFrame(columns)


def calibration(
    predicted: Float[np.ndarray, " Q"], hit: Bool[np.ndarray, " Q"], n_bins: int = 10
) -> pl.DataFrame:
    """Predicted against observed rates, in bins of equally many queries.

    Args:
        predicted: probability, or any other number, by which the queries are sorted.
        hit: whether the target was in the list.
        n_bins: at most so many.

    Returns:
        An entry a bin, in rising order: ``predicted`` and ``observed`` (means), ``margin`` (half of
        the 95 % interval of the observed rate, normal), ``n``.

    Raises:
        DataError: no queries.
    """
    if not len(predicted):
        raise DataError("there are no queries to compare predicted and observed rates on")
    order = np.argsort(predicted, kind="stable")
    bins = []
    for part in np.array_split(order, min(n_bins, len(order))):
        rate = float(hit[part].mean())
        margin = 1.96 * float(np.sqrt(rate * (1 - rate) / len(part)))
        bins.append((float(predicted[part].mean()), rate, margin, len(part)))
    schema = {"predicted": pl.Float64, "observed": pl.Float64, "margin": pl.Float64, "n": pl.Int64}
    return pl.DataFrame(bins, schema=schema, orient="row")


def expected_calibration_error(bins: pl.DataFrame) -> float:
    """Mean distance of predicted and observed rates over the bins of :func:`calibration`."""
    weight = bins["n"] / bins["n"].sum()
    return float(((bins["predicted"] - bins["observed"]).abs() * weight).sum())
