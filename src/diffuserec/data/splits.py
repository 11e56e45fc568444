"""Splits of a log into a part to learn from, queries to choose by, and queries to measure on.

All parts are views of the log. `fit` is given `train`, and `valid` to stop by; only evaluation is
given `test`.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from diffuserec.data.dataset import SequenceDataset, offsets_of
from diffuserec.errors import DataError


@dataclass(frozen=True, eq=False)
class Queries:
    """Histories, and the item that came next in each.

    Attributes:
        histories: input of a recommender; a dataset, so that an augmenter applies to it.
        targets: item number that followed each history; int64, shape (Q,).
    """

    histories: SequenceDataset
    targets: Int64[np.ndarray, " Q"]

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def repeat_share(self) -> float:
        """Share of targets that are already in their own (real) history."""
        if not len(self):
            return 0.0
        real = self.histories.real()
        hit = real.items == np.repeat(self.targets, real.lengths)
        return float(np.mean(np.diff(offsets_of(hit)[real.offsets]) > 0))


@dataclass(frozen=True, eq=False)
class Split:
    """A log divided into training and held-out parts.

    Attributes:
        train: sequences to learn from.
        valid: queries to choose and to stop by.
        test: queries to measure on.
        protocol: name and settings of the division, for the protocol line.
        n_too_short: users without a query because their history is too short; all their items are
            in `train` (leave-one-out) or outside both windows (temporal).
    """

    train: SequenceDataset
    valid: Queries
    test: Queries
    protocol: str
    n_too_short: int


def leave_one_out(dataset: SequenceDataset) -> Split:
    """Each user's last item is the test target, the one before it the validation target.

    The training part is ``[:-2]``, the validation history ``[:-2]``, the test history ``[:-1]``.
    Users with fewer than three items have no queries; their items are all trained on.

    Raises:
        DataError: no user has three items.
    """
    _refuse_synthetic(dataset)
    lengths = dataset.lengths
    enough = lengths >= 3
    if not enough.any():
        raise DataError(
            f"leave-one-out needs users with at least 3 interactions, and none of the "
            f"{len(dataset)} has them (longest: {lengths.max(initial=0)})"
        )
    index = np.flatnonzero(enough)
    starts, ends = dataset.starts[index], dataset.ends[index]
    train = dataset.view(dataset.starts, np.where(enough, dataset.ends - 2, dataset.ends))
    valid, test = (
        Queries(
            dataset.view(starts, ends - n_held_out, index),
            np.asarray(dataset.log.items[ends - n_held_out], dtype=np.int64),
        )
        for n_held_out in (2, 1)
    )
    return Split(train, valid, test, "leave-one-out", int((~enough).sum()))


def temporal(dataset: SequenceDataset, valid: float = 0.1, test: float = 0.1) -> Split:
    """Two moments divide the whole log: everything before the first is trained on.

    A user's query in a window is the first interaction inside it, with all interactions before the
    window as history. Users with nothing before a window have no query in it.

    Args:
        dataset: needs timestamps.
        valid: share of the interactions in the validation window.
        test: share in the test window, the newest.

    Raises:
        DataError: no timestamps, or a window without a query.
    """
    _refuse_synthetic(dataset)
    if dataset.timestamps is None:
        raise DataError("a temporal split needs timestamps: prepare the log with --time COLUMN")
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise DataError(
            f"window shares must be positive and below 1 in sum, got {valid} and {test}"
        )
    times = np.asarray(dataset.timestamps)
    n = len(times)
    if not n:
        raise DataError("a temporal split needs interactions, and the dataset has none")
    cuts = [min(n - 1, int(n * share)) for share in (1 - valid - test, 1 - test)]
    first, second = np.partition(times, cuts)[cuts]
    if not times.min() < first < second:
        raise DataError(
            "the timestamps are too coarse for these windows (one moment would fall into two): "
            "use larger shares or leave-one-out"
        )
    before_first = _count_before(dataset, times < first)
    before_second = _count_before(dataset, times < second)
    starts, ends = dataset.starts, dataset.ends
    train = dataset.view(starts, starts + before_first)
    windows = []
    for before, until in ((before_first, before_second), (before_second, ends - starts)):
        index = np.flatnonzero((before > 0) & (before < until))
        if not len(index):
            raise DataError("a window holds no user with an earlier history: use larger shares")
        windows.append(
            Queries(
                dataset.view(starts[index], starts[index] + before[index], index),
                np.asarray(dataset.log.items[starts[index] + before[index]], dtype=np.int64),
            )
        )
    queried = np.union1d(windows[0].histories.users, windows[1].histories.users)
    # users without anything to learn from keep their (empty) sequence
    protocol = f"temporal valid={valid:g} test={test:g}"
    return Split(train, windows[0], windows[1], protocol, len(dataset) - len(queried))


def _count_before(dataset: SequenceDataset, early: np.ndarray) -> Int64[np.ndarray, " U"]:
    return np.diff(offsets_of(early)[dataset.offsets])


def _refuse_synthetic(dataset: SequenceDataset) -> None:
    if (dataset.has_synthetic and dataset.synthetic.any()) or dataset.copies is not None:
        raise DataError(
            "this dataset holds synthetic items or augmented copies; split the original log and "
            "augment its parts, or a generated item could become a target and a held-out one be "
            "trained on"
        )
