"""Paired significance tests over users, and the arithmetic that any table of results must obey."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from jaxtyping import Float64
from scipy import stats

from diffuserec.errors import ConfigError
from diffuserec.evaluation.evaluate import Evaluation
from diffuserec.evaluation.groups import GROUPS
from diffuserec.evaluation.metrics import Metric, parse_metric


@dataclass(frozen=True)
class Comparison:
    """Difference between a method and a reference on the same users. Every test is two-sided.

    Attributes:
        metric: name of the compared metric.
        group: ``all``, or the compared group of users.
        ours: our mean.
        reference: the reference's mean.
        difference: ours less reference; positive when ours is better.
        low: lower end of the 95 % bootstrap interval of the difference.
        high: its upper end.
        p_t: of the paired t-test over users.
        p_wilcoxon: of the signed-rank test over users; users without a difference are left out.
        p_seeds: of Welch's t-test between the means of the runs, or None unless both sides have at
            least two.
        n_users: users compared.
        n_seeds: runs of ours.
    """

    metric: str
    group: str
    ours: float
    reference: float
    difference: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float
    p_seeds: float | None
    n_users: int
    n_seeds: int


def compare(
    ours: Evaluation | Sequence[Evaluation],
    reference: Evaluation | Sequence[Evaluation],
    metric: str = "NDCG@10",
    *,
    group: str = "all",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares two methods user by user.

    With several runs (seeds) of a method, each user's metric is first averaged over them, so the
    tests over users compare the methods as they come out on average; the spread over seeds is
    tested separately (``p_seeds``).

    Args:
        metric: a metric of the target's rank.
        group: ``all``, or one of ``short, medium, long, head, tail``.
        n_resamples: of the bootstrap over users.

    Raises:
        ConfigError: the runs were not measured the same way or not on the same users and targets,
            or there is no such metric or group.
    """
    mine = [ours] if isinstance(ours, Evaluation) else list(ours)
    theirs = [reference] if isinstance(reference, Evaluation) else list(reference)
    if not mine or not theirs:
        raise ConfigError("a comparison needs at least one run on each side")
    name = str(parse_metric(metric))
    frames = _aligned([*mine, *theirs], name)
    inside = _inside(frames[0], group)
    values = np.stack([frame[name].to_numpy()[inside] for frame in frames])
    own, other = values[: len(mine)], values[len(mine) :]
    gain = own.mean(0) - other.mean(0)
    low, high = _bootstrap_interval(gain, n_resamples, seed)
    p_seeds = None
    if len(mine) > 1 and len(theirs) > 1:
        p_seeds = _welch(own.mean(1), other.mean(1))
    return Comparison(
        metric=name,
        group=group,
        ours=float(own.mean()),
        reference=float(other.mean()),
        difference=float(gain.mean()),
        low=low,
        high=high,
        p_t=_paired_t(gain),
        p_wilcoxon=float(stats.wilcoxon(gain).pvalue) if gain.any() else 1.0,
        p_seeds=p_seeds,
        n_users=len(gain),
        n_seeds=len(mine),
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


@dataclass(frozen=True)
class Violation:
    """Metrics of one method that no ranking can have together.

    Attributes:
        method: name of the method.
        cutoffs: the list lengths (a, b); a is 0 where HR@b and NDCG@b alone contradict each other.
        gain: NDCG@b less NDCG@a, as given.
        least: the smallest gain that the hit rates allow, before rounding slack.
        most: the greatest.
    """

    method: str
    cutoffs: tuple[int, int]
    gain: float
    least: float
    most: float

    def __str__(self) -> str:
        a, b = self.cutoffs
        return (
            f"{self.method}: NDCG@{b} - NDCG@{a} is {self.gain:.4f}, and HR@{a}, HR@{b} allow only "
            f"{self.least:.4f} to {self.most:.4f}"
        )


def check_consistency(
    table: Mapping[str, Mapping[str, float]], decimals: int | None = 4
) -> list[Violation]:
    """Finds methods whose hit rates and NDCGs cannot belong to the same ranking.

    With one target per query, a target that enters the list between ranks a + 1 and b adds one to
    the count of hits and between w(b) and w(a + 1) to the NDCG, w(r) = 1 / log2(r + 1). So

        w(b) (HR@b - HR@a) <= NDCG@b - NDCG@a <= w(a + 1) (HR@b - HR@a)

    for any mean over users or seeds, and, with a = 0, for each cutoff by itself. It fails if
    numbers come from different checkpoints or are mistyped. Adjacent cutoffs are checked, and
    each by itself.

    Two things are allowed for: rounding, and targets at half ranks, which mid-rank ties produce
    (the last rank of a list then weighs 1 / log2(b + 1.5) at least).

    Args:
        table: metrics by the name of the method, spelled as :func:`parse_metric` reads them;
            others than HR and NDCG are passed over.
        decimals: digits after the point that the numbers were rounded to; None when not rounded.

    Returns:
        One entry for each contradiction; empty when there is none.
    """
    half = 0.5 * 10.0**-decimals if decimals is not None else 0.0
    found = []
    for method, values in table.items():
        named = {parse_metric(name): value for name, value in values.items()}
        cuts = sorted(
            metric.k
            for metric in named
            if metric.k is not None and metric.name == "HR" and Metric("NDCG", metric.k) in named
        )
        for a, b in [(0, k) for k in cuts] + list(pairwise(cuts)):
            slack = 1e-9 + (half if a == 0 else 2 * half)
            hits, gain = (
                named[Metric(name, b)] - (named[Metric(name, a)] if a else 0.0)
                for name in ("HR", "NDCG")
            )
            least, most = hits / math.log2(b + 1.5), hits / math.log2(a + 2)
            if (
                hits < -slack
                or gain < (hits - slack) / math.log2(b + 1.5) - slack
                or gain > (hits + slack) / math.log2(a + 2) + slack
            ):
                found.append(Violation(method, (a, b), gain, least, most))
    return found


def _aligned(runs: Sequence[Evaluation], metric: str) -> list[pl.DataFrame]:
    """Per-user frames sorted by user, after checking that they may be compared."""
    first = runs[0]
    frames = [run.per_user.sort("user", maintain_order=True) for run in runs]
    for run, frame in zip(runs, frames, strict=True):
        conflicts = first.protocol.conflicts(run.protocol)
        if conflicts:
            raise ConfigError(
                f"{first.method} and {run.method} were not measured the same way "
                f"({'; '.join(conflicts)}): evaluate both under one protocol"
            )
        if not frame.select("user", "target").equals(frames[0].select("user", "target")):
            raise ConfigError(
                f"{first.method} and {run.method} were not measured on the same users and "
                "targets: evaluate both on one split"
            )
        if metric not in frame.columns:
            measured = [name for name in run.metrics if name in frame.columns]
            raise ConfigError(
                f"{run.method} has no {metric} by user; it has: {', '.join(measured)}"
            )
    return frames


def _inside(frame: pl.DataFrame, group: str) -> np.ndarray:
    if group == "all":
        return np.ones(len(frame), dtype=bool)
    for grouping, names in GROUPS.items():
        if group in names:
            inside = (frame[f"{grouping}_group"] == group).to_numpy()
            if not inside.any():
                raise ConfigError(f"no user is in the group {group!r}")
            return inside
    known = ["all", *(name for names in GROUPS.values() for name in names)]
    raise ConfigError(f"no group {group!r}; there are: {', '.join(known)}")


def _paired_t(gain: Float64[np.ndarray, " Q"]) -> float:
    if np.ptp(gain) == 0:  # no spread, so no test: certain if all gain, nothing if none does
        return 0.0 if gain.any() and len(gain) > 1 else 1.0
    return float(stats.ttest_1samp(gain, 0.0).pvalue)


def _welch(own: Float64[np.ndarray, " S"], other: Float64[np.ndarray, " S2"]) -> float:
    if np.ptp(own) == 0 and np.ptp(other) == 0:
        return 1.0 if own[0] == other[0] else 0.0
    with warnings.catch_warnings():  # one side without spread is no loss of precision
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(stats.ttest_ind(own, other, equal_var=False).pvalue)


def _bootstrap_interval(
    gain: Float64[np.ndarray, " Q"], n_resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean over users drawn with replacement."""
    generator = np.random.default_rng(seed)
    n = len(gain)
    values, counts = np.unique(gain, return_counts=True)
    if len(values) < n / 8:  # few distinct values: how often each is drawn is all the mean needs
        means = generator.multinomial(n, counts / n, size=n_resamples) @ values / n
    else:
        means = np.array([gain[generator.integers(0, n, n)].mean() for _ in range(n_resamples)])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
