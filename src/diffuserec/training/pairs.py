"""Training of models of users and items that know nothing of sequences."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from diffuserec.data import Pairs, Queries, SequenceDataset, pair_batches
from diffuserec.models.base import Epoch, Runtime
from diffuserec.models.recommender import Recommender
from diffuserec.models.settings import PairSettings
from diffuserec.models.users import UserTable
from diffuserec.training.loop import train
from diffuserec.training.next_item import epochs_of_copies, with_copies
from diffuserec.training.validation import validation


def train_on_pairs(
    method: Recommender,
    loss: Callable[[Pairs], Tensor],
    data: SequenceDataset,
    valid: Queries | None,
    runtime: Runtime,
    *,
    users: UserTable,
) -> list[Epoch]:
    """:func:`train` on interactions, each once an epoch, by Adam.

    Takes ``batch_size, learning_rate, epochs, patience`` from the method's settings.

    Args:
        data: whose real items are the interactions.
        valid: queries that decide when to stop, by full ranking; None trains all epochs.
        users: the method's; it is left remembering the data.
    """
    c = method.config
    assert isinstance(c, PairSettings)
    users.remember(data)

    def batches(epoch: int) -> Iterator[Pairs]:
        return pair_batches(data, c.batch_size, runtime.seed, epoch)

    metric = None if valid is None else validation(method, method.scorer, valid)

    def validate(metric: Callable[[], float]) -> float:
        users.remember(data)
        return metric()

    records = train(
        method,
        with_copies(loss),
        batches,
        n_batches=math.ceil(int(data.real_lengths.sum()) / c.batch_size),
        optimizer=torch.optim.Adam(method.parameters(), c.learning_rate, fused=True),
        epochs=c.epochs,
        runtime=runtime,
        data=data,
        validate=None if metric is None else partial(validate, metric),
        patience=c.patience,
        least_epochs=epochs_of_copies(data, c.epochs),
    )
    users.remember(data)
    return records
