"""Comparison of evaluations, and the arithmetic that any table of results must obey."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from diffuserec.errors import ConfigError
from diffuserec.evaluation.evaluate import Evaluation
from diffuserec.evaluation.groups import GROUPS, groups_of
from diffuserec.evaluation.metrics import Metric, parse_metric
from diffuserec.evaluation.paired import PairedDifference, paired_difference


@dataclass(frozen=True)
class Comparison(PairedDifference):
    """Difference between a method and a reference in one metric of one group of users.

    Attributes:
        metric: name of the compared metric.
        group: ``all``, or the compared group of users.
        p_wilcoxon: of the signed-rank test over users, metrics averaged over seeds; users without
            a difference are left out. It needs no normal distribution and counts no seeds.
    """

    metric: str
    group: str
    p_wilcoxon: float


def compare(
    ours: Evaluation | Sequence[Evaluation],
    reference: Evaluation | Sequence[Evaluation],
    metric: str = "NDCG@10",
    *,
    group: str = "all",
) -> Comparison:
    """Compares two methods on the same users; see :mod:`diffuserec.evaluation.paired` for how.

    Args:
        ours: one run, or several of other seeds.
        reference: likewise; as many runs or not.
        metric: a metric of the target's rank.
        group: ``all``, or one of ``short, medium, long, head, tail``.

    Raises:
        ConfigError: the runs were not measured the same way or not on the same users and targets,
            or there is no such metric or group.
    """
    from scipy import stats  # not on top: it takes long to load, and training needs no tests

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
    return Comparison(
        **asdict(paired_difference(own, other)),
        metric=name,
        group=group,
        p_wilcoxon=float(stats.wilcoxon(gain).pvalue) if gain.any() else 1.0,
    )


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
            inside = (groups_of(frame, grouping) == group).to_numpy()
            if not inside.any():
                raise ConfigError(f"no user is in the group {group!r}")
            return inside
    known = ["all", *(name for names in GROUPS.values() for name in names)]
    raise ConfigError(f"no group {group!r}; there are: {', '.join(known)}")
