"""What a model says about its own certainty, and whether that is right.

For models whose scores are a distribution over the items: for each query the probability of the
list that is shown, the entropy of the distribution and, for generative recommenders, how far the
draws of noise disagree. Calibration then holds the lists' probabilities against their hit rate.
"""

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffuserec.contracts import Augmenter, GenerativeRecommender, Recommender
from diffuserec.data import Queries, SequenceDataset
from diffuserec.draws import Averaged
from diffuserec.errors import ConfigError, DataError
from diffuserec.ranking import seen_pairs, top_k

COLUMNS = ("confidence", "entropy", "disagreement")


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
    """How certain a model is of each query, without looking at the targets.

    Args:
        model: fitted; a generative recommender, or one that gives logits.
        queries: histories to ask about.
        augmenter: lengthens the histories first, as in training.
        filter_seen: hide what is in a user's own real history; the probability of what is left
            is scaled up to 1.
        list_length: K items of the list that would be shown.
        seed: of the noise.
        batch_size: queries at once.

    Returns:
        A row a query: ``confidence`` (probability of the shown list), ``entropy`` (of the averaged
        distribution, nats), ``disagreement`` (between draws, nats; 0 for a model without noise).

    Raises:
        ConfigError: the model's scores are not a distribution over items, or it was fitted to
            another catalog.
    """
    model.require_fitted()
    if not has_distribution(model):
        raise ConfigError(
            f"{model.name} ranks items by scores that are not probabilities of items: uncertainty "
            "is for models trained with the full softmax and for generative ones"
        )
    if not model.catalog.item_ids.equals(queries.histories.catalog.item_ids):
        raise ConfigError(
            f"{model.name} was fitted to another catalog than that of the queries: prepare both "
            "from one dataset"
        )
    model.eval()
    longer = queries.histories
    if augmenter is not None:
        augmenter.eval()
        longer = augmenter.lengthened(longer, seed)
    columns = {name: np.empty(len(queries)) for name in COLUMNS}
    order = np.argsort(longer.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        averaged = _averaged(model, longer, rows, seed)
        left = averaged.mean.clone()
        left[:, 0] = 0
        if filter_seen:
            owner, items = seen_pairs(queries.histories, rows)
            left[owner.to(left.device), items.to(left.device)] = 0
        shown = top_k(left, list_length)[0].clamp(min=0).sum(1)
        mass = left.sum(1)
        # what is left may be ever so little; rounding may put a full list above the whole
        confidence = (shown / mass.clamp(min=torch.finfo(mass.dtype).tiny)).clamp(max=1)
        columns["confidence"][rows] = confidence.cpu().numpy()
        columns["entropy"][rows] = averaged.entropy.cpu().numpy()
        columns["disagreement"][rows] = averaged.disagreement.cpu().numpy()
    return pl.DataFrame(columns)


def has_distribution(model: Recommender) -> bool:
    """Whether the model's scores are a distribution over the items."""
    return isinstance(model, GenerativeRecommender) or model.gives_logits


def calibration(
    predicted: Float[np.ndarray, " Q"], hit: Bool[np.ndarray, " Q"], n_bins: int = 10
) -> pl.DataFrame:
    """Predicted against observed rates, in bins of equally many queries.

    Args:
        predicted: what the queries are sorted by: a probability, or any other figure.
        hit: whether the target was in the list.
        n_bins: at most so many.

    Returns:
        A row a bin, in rising order: ``predicted`` and ``observed`` (means), ``margin`` (half of
        the 95 % interval of the observed rate, normal), ``n``.

    Raises:
        DataError: no queries.
    """
    if not len(predicted):
        raise DataError("there are no queries to compare predicted and observed rates on")
    order = np.argsort(predicted, kind="stable")
    rows = []
    for part in np.array_split(order, min(n_bins, len(order))):
        rate = float(hit[part].mean())
        margin = 1.96 * float(np.sqrt(rate * (1 - rate) / len(part)))
        rows.append((float(predicted[part].mean()), rate, margin, len(part)))
    schema = {"predicted": pl.Float64, "observed": pl.Float64, "margin": pl.Float64, "n": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def expected_calibration_error(bins: pl.DataFrame) -> float:
    """Mean distance of predicted and observed rates over the bins of :func:`calibration`."""
    weight = bins["n"] / bins["n"].sum()
    return float(((bins["predicted"] - bins["observed"]).abs() * weight).sum())


def _averaged(
    model: Recommender, dataset: SequenceDataset, rows: np.ndarray, seed: int
) -> Averaged:
    if isinstance(model, GenerativeRecommender):
        return model.averaged(dataset, rows, seed)
    scores: Tensor = model.scores(dataset, rows, seed)
    scores[:, 0] = -torch.inf
    probabilities = torch.softmax(scores, dim=1)
    empty = torch.from_numpy(dataset.lengths[rows] == 0)
    if bool(empty.any()):  # those were answered by counts, not by logits
        counts = model.popularity.float()
        probabilities[empty.to(scores.device)] = counts / counts.sum().clamp(min=1)
    return Averaged.of([probabilities])
