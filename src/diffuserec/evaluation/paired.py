"""Difference of two methods that were measured on the same users, each with one seed or several.

**Model.** What method m reaches for user u with seed s is

    y[m, s, u] = mean[m] + user[m, u] + seed[m, s] + rest[m, s, u].

Users are a sample of the users there could be, seeds a sample of the trainings there could be: both
are random effects. Users are paired, because both methods have the same ones. Seeds are not: a
training of one method has nothing in common with one of the other. (Where equal seeds do have
something in common, such as initial weights, the interval is a little too wide.)

**Variance of the difference of the means**, estimated by the analysis of variance of each method's
(S, U) values, with d[u] the difference of the two means over seeds for user u:

    var(d) / U  +  sum over methods with S > 1 of  max(0, MS_seeds - MS_rest) / (S U)

The first part is what users contribute, the second what seeds contribute. Degrees of freedom
follow from Satterthwaite (1946), and are at least the fewest of a part. A method with one seed
contributes no second part: if it is trained, its seeds are not counted, and the interval is that of
this trained model alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import special

from diffuserec.errors import ConfigError

ALPHA = 0.05
"""Share of false alarms that a test may give, and of intervals that may miss."""

POWER = 0.8
"""Share of true differences that :meth:`PairedDifference.detectable` asks to be found."""


@dataclass(frozen=True)
class PairedDifference:
    """Difference between a method and a reference, with users and seeds as random effects.

    Every test is two-sided.

    Attributes:
        ours: our mean.
        reference: the reference's mean.
        difference: ours less reference; positive when ours is better.
        se_users: standard error of the difference from the choice of users; infinite for one user.
        se_seeds: from the choice of seeds; 0 where neither side has two, or where runs of other
            seeds differ no more than users let expect.
        df: degrees of freedom of the t-test.
        p: of the t-test of no difference, not corrected for other comparisons.
        effect_size: mean over standard deviation of the users' differences (Cohen's d of pairs);
            None if they have no spread.
        n_users: users compared.
        n_seeds: runs of ours.
        n_seeds_reference: runs of the reference.
    """

    ours: float
    reference: float
    difference: float
    se_users: float
    se_seeds: float
    df: float
    p: float
    effect_size: float | None
    n_users: int
    n_seeds: int
    n_seeds_reference: int

    @property
    def se(self) -> float:
        """Standard error of the difference."""
        return math.hypot(self.se_users, self.se_seeds)

    @property
    def relative(self) -> float | None:
        """Difference as a share of the reference's mean; None if that is 0."""
        return self.difference / self.reference if self.reference else None

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Interval that holds the true difference in all but a share `alpha` of such studies.

        It leaves out 0 exactly if `p` is below `alpha`.
        """
        if self.se == 0:
            return self.difference, self.difference
        half = self.se * -float(special.stdtrit(self.df, alpha / 2))
        return self.difference - half, self.difference + half

    def detectable(self, alpha: float = ALPHA, power: float = POWER) -> float:
        """Smallest true difference that so many users and seeds would show.

        A difference as large as this comes out with p below `alpha` in a share `power` of such
        studies, if the standard error is as measured.
        """
        # not on top: they take long to load, and training needs neither
        from scipy.optimize import brentq
        from scipy.stats import nct  # type: ignore[attr-defined]  # made at run time

        if self.se == 0 or math.isinf(self.se):
            return self.se
        critical = -float(special.stdtrit(self.df, alpha / 2))

        def excess(shift: float) -> float:
            return float(nct.sf(critical, self.df, shift)) - power

        return self.se * float(brentq(excess, 0.0, 4 * (critical + 10)))


def paired_difference(
    ours: Float64[np.ndarray, "S U"], reference: Float64[np.ndarray, "S2 U"]
) -> PairedDifference:
    """Difference of two methods' means, from a metric of each seed and user.

    Args:
        ours: our metric by seed and user, shape (S, U).
        reference: the reference's for the same users in the same order, shape (S2, U).

    Raises:
        ConfigError: not two arrays of seeds and users, or not of the same number of users.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (ours, reference)]
    if (
        any(side.ndim != 2 or not side.size for side in sides)
        or len({side.shape[1] for side in sides}) > 1
    ):
        raise ConfigError(
            "a comparison needs the metrics of both methods as arrays of seeds by users, of the "
            f"same users; got shapes {sides[0].shape} and {sides[1].shape}"
        )
    gain = sides[0].mean(0) - sides[1].mean(0)
    n_users = len(gain)
    difference = float(gain.mean())
    if n_users == 1:  # nothing says how users differ
        users, variance, df = math.inf, math.inf, 1.0
    else:
        users = float(gain.var(ddof=1)) / n_users if np.ptp(gain) else 0.0
        parts = [(users, n_users - 1)]
        variance = users
        for side in sides:
            seeds, rest = _seed_parts(side)
            if seeds[0] > rest[0]:
                variance += seeds[0] - rest[0]
                parts += [seeds, rest]
        spread = sum(part**2 / freedom for part, freedom in parts)
        least = float(min(freedom for _, freedom in parts))
        df = max(least, variance**2 / spread) if spread else float(n_users - 1)
    return PairedDifference(
        ours=float(sides[0].mean()),
        reference=float(sides[1].mean()),
        difference=difference,
        se_users=math.sqrt(users),
        se_seeds=math.sqrt(variance - users) if n_users > 1 else 0.0,
        df=df,
        p=_p_value(difference, variance, df),
        effect_size=difference / math.sqrt(users * n_users) if 0 < users < math.inf else None,
        n_users=n_users,
        n_seeds=len(sides[0]),
        n_seeds_reference=len(sides[1]),
    )


def holm(p_values: Sequence[float]) -> Float64[np.ndarray, " M"]:
    """P-values after Holm's correction (1979) for M tests at once, in the order given.

    The i-th smallest of M values becomes max over j <= i of min(1, (M - j + 1) p_(j)). If results
    below 0.05 are rejected, at most 5 % of such families have any false rejection.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(1.0, p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float = ALPHA) -> Float64[np.ndarray, " M"]:
    """Level at which Holm's procedure tested each of M hypotheses, in the order given.

    The j-th smallest p-value is tested at alpha / (M - j + 1); after the first that is not
    rejected, the others stay at its level. An interval at one less this level leaves out 0 exactly
    if the corrected p-value is below `alpha`.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    steps = alpha / np.arange(len(p), 0, -1)
    failed = np.flatnonzero(p[order] >= steps)
    if len(failed):
        steps[failed[0] :] = steps[failed[0]]
    levels = np.empty_like(p)
    levels[order] = steps
    return levels


def _seed_parts(
    values: Float64[np.ndarray, "S U"],
) -> tuple[tuple[float, int], tuple[float, int]]:
    """MS_seeds / (S U) and MS_rest / (S U) of a method, each with its degrees of freedom."""
    n_seeds, n_users = values.shape
    if n_seeds < 2:
        return (0.0, 1), (0.0, 1)
    means = values.mean(1)
    rest = values - values.mean(0) - means[:, None] + values.mean()
    freedom = (n_seeds - 1) * (n_users - 1)
    return (
        (float(means.var(ddof=1)) / n_seeds, n_seeds - 1),
        (float((rest**2).sum()) / freedom / (n_seeds * n_users), freedom),
    )


def _p_value(difference: float, variance: float, df: float) -> float:
    if variance == 0:  # no spread, so no test: certain if all gain, nothing if none does
        return 0.0 if difference else 1.0
    return float(2 * special.stdtr(df, -abs(difference) / math.sqrt(variance)))
