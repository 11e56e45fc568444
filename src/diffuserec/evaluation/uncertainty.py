"""Certainty of a model about its own lists, and whether it is right.

For models whose scores are a distribution over the items: for each query the probability of the
list that is shown, the entropy of the distribution and, for generative recommenders, how far the
draws of noise disagree. Calibration then holds the lists' probabilities against their hit rate, and
a temperature, found on validation, may mend them.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import nn

from diffuserec.data import Queries, index_batches
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.augmenter import Augmenter
from diffuserec.models.dropout import Dropout
from diffuserec.models.recommender import Recommender
from diffuserec.models.retrieval import Scorer, certainty, seen_items

COLUMNS = ("confidence", "entropy", "disagreement")

_LEAST = torch.finfo(torch.float32).tiny
"""Probability of an item that may be shown at least."""


def scored_batches(
    model: Recommender,
    queries: Queries,
    augmenter: Augmenter | None,
    seed: int,
    batch_size: int,
    *,
    n_draws: int | None = None,
    dropout: bool = False,
) -> Iterator[tuple[Int64[np.ndarray, " B"], Scorer]]:
    """Indices of the queries of each batch, equal lengths together, and the scores of the items.

    Args:
        n_draws: noise draws of a generative model; by default its own number.
        dropout: leave dropout on, drawn anew for each batch.

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
    for number, index in enumerate(index_batches(shown, model.at_once(batch_size), model.max_len)):
        with _dropping(model, seed, number) if dropout else nullcontext():
            scorer = model.scorer_of(shown, index, seed, n_draws)
        yield index, scorer


@contextmanager
def _dropping(model: Recommender, seed: int, batch: int) -> Iterator[None]:
    """Dropout is on, and drawn from the seed and the number of the batch.

    Nothing else of training is: some modules count what they see then, or hide items.
    """
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence([seed, batch]).generate_state(1)[0]))
        for module in model.modules():
            if isinstance(module, Dropout | nn.Dropout) or hasattr(module, "attention_dropout"):
                module.training = True  # its own alone
        try:
            yield
        finally:
            model.eval()


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
    _require_distribution(model)
    columns = {name: np.empty(len(queries)) for name in COLUMNS}
    for index, scorer in scored_batches(model, queries, augmenter, seed, batch_size):
        hidden = seen_items(queries.histories, index) if filter_seen else None
        found = certainty(scorer, list_length, hidden)
        for name in COLUMNS:
            columns[name][index] = getattr(found, name).cpu().numpy()
    return pl.DataFrame(columns)


@dataclass(frozen=True, eq=False)
class TopChances:
    """What a model says of its first item, and what came of it.

    Attributes:
        probability: of the item in front, shape (Q,).
        hit: whether it is the target, shape (Q,).
        of_target: probability of the target; 0 where it may not be shown, shape (Q,).
    """

    probability: Float64[np.ndarray, " Q"]
    hit: Bool[np.ndarray, " Q"]
    of_target: Float64[np.ndarray, " Q"]

    @property
    def log_loss(self) -> float:
        """Mean of -log of the targets' probabilities, those left out that may not be shown."""
        possible = self.of_target[self.of_target > 0]
        return float(-np.log(possible).mean()) if len(possible) else math.inf


@torch.inference_mode()
def top_chances(
    model: Recommender,
    queries: Queries,
    *,
    temperature: float = 1.0,
    augmenter: Augmenter | None = None,
    filter_seen: bool = True,
    seed: int = 0,
    batch_size: int = 256,
) -> TopChances:
    """Probabilities of the items in front and of the targets.

    Args:
        temperature: by which logits are divided, those of every draw of a generative model.

    Raises:
        ConfigError: as :func:`uncertainty`; or a temperature that is not above 0.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature must be above 0, got {temperature}")
    _require_distribution(model)
    batches = scored_batches(model, queries, augmenter, seed, batch_size)
    return _top_chances(batches, queries, temperature, filter_seen)


@torch.inference_mode()
def fitted_temperature(
    model: Recommender,
    queries: Queries,
    *,
    augmenter: Augmenter | None = None,
    filter_seen: bool = True,
    seed: int = 0,
    batch_size: int = 256,
) -> float:
    """The temperature from 1/20 to 20 with the least log loss on some queries, to about 1 %.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. Of a model of one draw it
    changes no list; of a mixture it divides the logits of each draw.

    Args:
        queries: of validation.

    Raises:
        ConfigError: as :func:`uncertainty`.
        DataError: no target may be shown.
    """
    from scipy.optimize import minimize_scalar  # not on top: training needs no temperature

    _require_distribution(model)
    batches = list(scored_batches(model, queries, augmenter, seed, batch_size))

    def loss(log_temperature: float) -> float:
        return _top_chances(batches, queries, math.exp(log_temperature), filter_seen).log_loss

    if math.isinf(loss(0.0)):
        raise DataError("a temperature needs a target that may be shown: keep seen items")
    bounds = (-math.log(20), math.log(20))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 0.01})
    return math.exp(float(found.x))


def _top_chances(
    batches: Iterable[tuple[Int64[np.ndarray, "_"], Scorer]],
    queries: Queries,
    temperature: float,
    filter_seen: bool,
) -> TopChances:
    first, own = np.empty(len(queries)), np.empty(len(queries))
    for index, scorer in batches:
        hidden = seen_items(queries.histories, index) if filter_seen else None
        targets = torch.from_numpy(queries.targets[index])
        found = certainty(scorer.tempered(temperature), 1, hidden, targets)
        first[index] = found.confidence.double().cpu().numpy()
        # a probability that is too small for the numbers is not one of an item that is hidden
        own[index] = found.of_targets.clamp(min=_LEAST).double().cpu().numpy()
        if hidden is not None:
            owner = hidden.owner.cpu()
            own[index[owner[hidden.items.cpu() == targets[owner]].numpy()]] = 0
    return TopChances(first, (own >= first) & (own > 0), own)


def _require_distribution(model: Recommender) -> None:
    model.require_fitted()
    if not model.has_distribution:
        raise ConfigError(
            f"{model.name} ranks items by scores that are not probabilities of items: uncertainty "
            "is for models trained with the full softmax and for generative ones"
        )


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
