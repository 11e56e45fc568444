"""Choice of a recommender for a log, by a rule of two numbers: its users, and a typical length.

The rule and what it rests on: docs/which-method.md. It is one of counts: no result of the log
itself is looked at, so that it costs nothing and is no substitute for a comparison.
"""

from typing import NamedTuple

import numpy as np

from diffuserec.data import SequenceDataset
from diffuserec.data.advice import require_sequences
from diffuserec.errors import DataError
from diffuserec.models.settings import MANY_ITEMS

FEW_USERS = 5000
"""Fewer users teach a trained model little more than counting knows."""

LONG = 20
"""Histories are long if half of the users have more items in training."""


class Choice(NamedTuple):
    """A recommender for a log.

    Attributes:
        name: as ``find_recommender`` takes it.
        why: the numbers of the log, and what follows from them; a line.
    """

    name: str
    why: str


def recommender_for(log: SequenceDataset) -> Choice:
    """The recommender to begin with on a log, and why.

    * Fewer than 5,000 users: ``blend``, one training mixed with methods that count.
    * Otherwise, if half of the users have more than 20 items: ``sasrec``.
    * Otherwise ``bsarec``.

    The catalog does not choose between them: above 100,000 items, the defaults of each draw
    negatives in place of a softmax over all items, which the line then says.

    Items that an augmenter generated are not counted.

    Args:
        log: the part to train on.

    Raises:
        DataError: this is no dataset, or it holds no interactions.
    """
    require_sequences("recommender_for", log)
    lengths, counts = log.real_lengths, log.item_counts()
    lengths = lengths[lengths > 0]
    if not len(lengths):
        raise DataError("a recommender is chosen by a log's counts, and this one is empty")
    n_items = int((counts > 0).sum())
    median, per_item = float(np.median(lengths)), int(counts.sum()) / n_items
    facts = (
        f"{len(lengths):,} users, half of them with {median:g} items or more, and {per_item:.1f} "
        f"actions for each of {n_items:,} items"
    )
    if log.catalog.n_items > MANY_ITEMS:
        facts += f", a loss over some of the {log.catalog.n_items:,} items of the catalog at a time"
    if len(lengths) < FEW_USERS:
        return Choice("blend", f"{facts}: few users, so that counting is added to training")
    if median > LONG:
        return Choice("sasrec", f"{facts}: long histories")
    return Choice("bsarec", f"{facts}: short histories")
