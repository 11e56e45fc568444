"""The validation metric that chooses an epoch."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from diffuserec.data import Histories, Queries, index_batches
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.base import Method
from diffuserec.models.recommender import scorer_of_readings
from diffuserec.models.retrieval import Scorer, search, seen_items

_CUTOFF = 10


def validation(
    method: Method,
    scorer: Callable[[Histories], Scorer],
    valid: Queries,
    batch_size: int = 512,
) -> Callable[[], float]:
    """NDCG@10 on validation queries, full ranking, seen items hidden, ties at their mean rank.

    An empty history is answered by popularity. A target that is hidden, because its user had it
    before, counts nothing.

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

    shown = valid.histories

    @torch.inference_mode()
    def metric() -> float:
        gain = 0.0
        for index in index_batches(shown, batch_size, method.max_len):
            gain += summed_ndcg(scorer_of_readings(method, scorer, shown, index), valid, index)
        return gain / len(valid)

    return metric


def summed_ndcg(scorer: Scorer, valid: Queries, index: Int64[np.ndarray, " B"]) -> float:
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
        raise ConfigError(
            "the model's scores are not numbers: try a smaller learning_rate (a tenth)"
        )
    ranks: Tensor = found.ranks[found.ranks < _CUTOFF]
    return float((1 / torch.log2(ranks + 2)).sum())
