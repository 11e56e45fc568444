"""Choice of a recommender for a log, by a rule of three numbers.

The rule and what it rests on: docs/which-method.md. It is one of counts: no result of the log
itself is looked at, so that it costs nothing and is no substitute for a comparison.
"""

from typing import NamedTuple

import numpy as np

from diffuserec.data import SequenceDataset
from diffuserec.data.advice import require_sequences
from diffuserec.errors import DataError

FEW_USERS = 1000
"""Fewer users teach a trained model too little."""

FEW_ACTIONS = 4
"""So do fewer actions for each item that was chosen at all."""

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

    * Fewer than 1,000 users, or fewer than 4 actions for each item: ``itemgraph``, which counts
      instead of training.
    * Otherwise, if half of the users have more than 20 items: ``sasrec``.
    * Otherwise ``bsarec``.

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
    if len(lengths) < FEW_USERS:
        return Choice("itemgraph", f"{facts}: too few users to train on, so it counts")
    if per_item < FEW_ACTIONS:
        return Choice("itemgraph", f"{facts}: too few actions to learn items from, so it counts")
    if median > LONG:
        return Choice("sasrec", f"{facts}: long histories")
    return Choice("bsarec", f"{facts}: short histories, and enough of them to train on")
