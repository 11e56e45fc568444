"""What generated items are worth: beginnings of histories that were hidden, and how many come back.

Users with long histories are taken out of everything that is counted or trained. Their first M
items are hidden, a generator is shown what came after them, and its M items are compared with the
hidden ones.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from diffuserec.data import SequenceDataset
from diffuserec.errors import DataError
from diffuserec.evaluation.uncertainty import calibration, expected_calibration_error


@dataclass(frozen=True, eq=False)
class HiddenBeginnings:
    """Users with their first M items hidden.

    Attributes:
        first: the hidden items, shape (S, M).
        after: what came after them, of the same users.
    """

    first: Int[np.ndarray, "S M"]
    after: SequenceDataset

    def shown(self, n: int | None) -> SequenceDataset:
        """The first n items after the hidden ones, or all that came after."""
        if n is None:
            return self.after
        ends = np.minimum(self.after.starts + n, self.after.ends)
        return self.after.view(self.after.starts, ends)


def hide_beginnings(
    dataset: SequenceDataset, n_items: int, n_users: int, n_after: int = 3, seed: int = 0
) -> tuple[SequenceDataset, HiddenBeginnings]:
    """Takes users with long histories out of a dataset and hides their first items.

    Args:
        n_items: M, the items hidden of each.
        n_users: users taken out, drawn from those with long enough histories.
        n_after: items that they must have after the hidden ones.

    Returns:
        The other users, and those taken out.

    Raises:
        DataError: fewer users have histories so long.
    """
    real = dataset.real().without_copies()
    long = np.flatnonzero(real.lengths >= n_items + n_after)
    if len(long) < n_users:
        raise DataError(
            f"{len(long):,} users have {n_items + n_after} items or more, fewer than the "
            f"{n_users:,} to be taken out: take fewer, or hide fewer items"
        )
    generator = np.random.Generator(np.random.Philox(key=[seed, 0]))
    chosen = np.sort(generator.permutation(long)[:n_users])
    starts = real.starts[chosen]
    first = real.log.items[starts[:, None] + np.arange(n_items)]
    after = real.view(starts + n_items, real.ends[chosen], chosen)
    return real.select(np.setdiff1d(np.arange(len(real)), chosen)), HiddenBeginnings(first, after)


@dataclass(frozen=True, eq=False)
class GenerationQuality:
    """Generated items against the hidden ones, means over users.

    Attributes:
        hits: whether each generated item is one of its user's hidden ones, shape (S, M).
        own: share of generated items that the user has after the hidden ones.
        n_distinct: different items among all that were generated.
        jaccard: mean overlap of the items of two users, drawn at random.
        calibration_error: mean distance between an item's probability and the share of hits, in
            ten bins; None without probabilities.
    """

    hits: Bool[np.ndarray, "S M"]
    own: float
    n_distinct: int
    jaccard: float
    calibration_error: float | None

    @property
    def hit_share(self) -> float:
        """Share of the generated items that are among their user's hidden ones."""
        return float(self.hits.mean())

    @property
    def margin(self) -> float:
        """Half of the 95 % interval of the hit share, over users."""
        by_user = self.hits.mean(1)
        return 1.96 * float(by_user.std(ddof=1)) / float(np.sqrt(len(by_user)))


def generation_quality(
    items: Int[np.ndarray, "S M"],
    hidden: HiddenBeginnings,
    probability: Float[np.ndarray, "S M"] | None = None,
) -> GenerationQuality:
    """Compares generated items with hidden beginnings.

    Args:
        items: M for each of the users, in their order.
        probability: that an item is one of the hidden ones.
    """
    hits = (items[:, :, None] == hidden.first[:, None, :]).any(2)
    own = [np.isin(row, later).mean() for row, later in zip(items, hidden.after, strict=True)]
    other = np.roll(items, 1, axis=0)  # users stand in no order
    overlap = [
        len(np.intersect1d(a, b)) / len(np.union1d(a, b)) for a, b in zip(items, other, strict=True)
    ]
    error = None
    if probability is not None:
        bins = calibration(probability.reshape(-1).astype(float), hits.reshape(-1))
        error = expected_calibration_error(bins)
    return GenerationQuality(
        hits, float(np.mean(own)), len(np.unique(items)), float(np.mean(overlap)), error
    )
