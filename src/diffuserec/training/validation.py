"""The validation metric that chooses an epoch."""

import contextlib
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from diffuserec.data import Histories, Queries, index_batches
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Method
from diffuserec.models.parts import Share
from diffuserec.models.recommender import Recommender, scorer_of_readings
from diffuserec.models.retrieval import Scorer, search, seen_items
from diffuserec.training import parallel

_CUTOFF = 10

_MOST_SCORES = 10**10
"""Scores that a validation makes: half a minute of a CPU's core at width 64. A million items leave
ten thousand queries, whose NDCG@10 has a standard error of about .002."""

_ADVICE = "the model's scores are not numbers: try a smaller learning_rate (a tenth)"


class _NotNumbers(ConfigError):
    """The model's scores are not numbers."""


def validation(
    method: Method,
    scorer: Callable[[Histories], Scorer],
    valid: Queries,
    batch_size: int = 512,
    most_scores: int = _MOST_SCORES,
) -> Callable[[], float]:
    """NDCG@10 on validation queries, full ranking, seen items hidden, ties at their mean rank.

    An empty history is answered by popularity. A target that is hidden, because its user had it
    before, counts nothing. Several processes measure a part of the batches each.

    Args:
        most_scores: where all queries among all items are more than so many scores, a sample of the
            queries is measured, the same each time.

    Returns:
        A function that measures the method as it is now.

    Raises:
        DataError: there are no queries.
    """
    if not len(valid):
        raise DataError(
            "there are no validation queries to choose an epoch by: leave valid out to train all "
            "epochs"
        )

    valid = sample_of(valid, n_measured(valid, most_scores))
    shown = valid.histories
    at_once = method.at_once(batch_size) if isinstance(method, Recommender) else batch_size

    @torch.inference_mode()
    def metric() -> float:
        share, gains = parallel.share() or Share(0, 1), []
        for number, index in enumerate(index_batches(shown, at_once, method.max_len)):
            of_batch = 0.0
            if number % share.world == share.rank:
                with contextlib.suppress(_NotNumbers):
                    of_batch = math.nan
                    found = scorer_of_readings(method, scorer, shown, index)
                    of_batch = _summed_ndcg(found, valid, index)
            gains.append(of_batch)
        gain = 0.0
        for of_batch in parallel.totals(gains):
            gain += of_batch
        if math.isnan(gain):
            raise _NotNumbers(_ADVICE)
        return gain / len(valid)

    return metric


def n_measured(valid: Queries, most_scores: int = _MOST_SCORES) -> int:
    """How many of the queries :func:`validation` measures."""
    return min(len(valid), max(1, most_scores // valid.histories.vocab_size))


def sample_of(valid: Queries, n: int) -> Queries:
    """At most n of the queries, drawn, the same each time."""
    if n >= len(valid):
        return valid
    generator = np.random.Generator(np.random.Philox(key=[0, len(valid)]))
    return valid.select(np.sort(generator.choice(len(valid), n, replace=False)))


def _summed_ndcg(scorer: Scorer, valid: Queries, index: Int64[np.ndarray, " B"]) -> float:
    """Sum of NDCG@10 over some queries, as :func:`validation` measures it.

    Args:
        scorer: of the histories of the queries.
        index: numbers of the queries.
    """
    found = search(
        scorer,
        targets=torch.from_numpy(valid.targets[index]),
        hidden=seen_items(valid.histories, index),
    )
    if bool(found.not_numbers.any()):
        raise _NotNumbers(_ADVICE)
    ranks: Tensor = found.ranks[found.ranks < _CUTOFF]
    return float((1 / torch.log2(ranks + 2)).sum())
