"""From ranks and top lists to numbers: a formula each.

A query has one target, and the target has a 0-based rank r among the candidates: r items are
ranked above it, and ties get the mean of the ranks they span, so r can end in a half. A target that
may not be shown, such as a hidden one, has r = infinity, which makes every metric below 0.

A metric is found by name in :data:`METRICS`; another package adds one with :func:`rank_metric` or
:func:`list_metric`, or as an entry point ``diffuserec.metrics``.

===========  ==============================================================  ==================
metric       of one query                                                    over queries
===========  ==============================================================  ==================
HR@k         1 if r < k, else 0                                              mean
NDCG@k       1 / log2(r + 2) if r < k, else 0                                mean
MRR          1 / (r + 1), over the whole list, not cut                       mean
Coverage@k                                                                   see list_metrics
Gini@k                                                                       see list_metrics
Novelty@k    mean surprise of the k items shown, in bits                     mean
===========  ==============================================================  ==================

With a single target per query, the hit rate and recall are the same number.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from diffuserec.errors import ConfigError, did_you_mean
from diffuserec.registry import Registry

_ALIASES = {"hit": "HR", "hits": "HR", "hitrate": "HR", "recall": "HR"}


@dataclass(frozen=True)
class Formula:
    """A metric's formula: of a target's rank, or of whole lists.

    Attributes:
        of_ranks: from 0-based ranks (Q,), infinite for targets that may not be shown, and a
            cutoff (None without one) to a finite value for each query; None for a metric of
            lists.
        of_lists: from the items shown (Q, K), -1 where there is none, and training counts (V,) to
            one number; None for a metric of ranks.
        has_cutoff: whether it is written with a list length, as in ``HR@10``.
    """

    of_ranks: Callable[[np.ndarray, int | None], np.ndarray] | None = None
    of_lists: Callable[[np.ndarray, np.ndarray], float] | None = None
    has_cutoff: bool = True


def _check_formula(part: Formula) -> None:
    if (part.of_ranks is None) == (part.of_lists is None):
        raise ConfigError(f"a metric is a Formula of ranks or of lists, got {part!r}")


METRICS: Registry[Formula] = Registry("metric", Formula, check=_check_formula)


def rank_metric(
    name: str, has_cutoff: bool = True
) -> Callable[[Callable[[np.ndarray, int | None], np.ndarray]], Formula]:
    """Decorator that registers a metric of the target's 0-based rank.

    Args:
        name: as results spell it, without the cutoff.
        has_cutoff: whether it has a list length.
    """
    return lambda formula: METRICS.register(name, Formula(formula, None, has_cutoff))


def list_metric(name: str) -> Callable[[Callable[[np.ndarray, np.ndarray], float]], Formula]:
    """Decorator that registers a metric of the lists shown and of training counts."""
    return lambda formula: METRICS.register(name, Formula(None, formula, True))


@dataclass(frozen=True)
class Metric:
    """A metric by name; ``str()`` gives the one spelling that results use.

    Attributes:
        name: as registered.
        k: length of the list; None for a metric without one.
    """

    name: str
    k: int | None = None

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name}@{self.k}"

    @property
    def is_per_user(self) -> bool:
        """Whether each query has a value, of which the result is the mean."""
        return METRICS.find(self.name).of_ranks is not None

    def per_user(self, target_rank: Float64[np.ndarray, " Q"]) -> Float64[np.ndarray, " Q"]:
        """The metric of each query from its target's 0-based rank.

        Raises:
            ConfigError: the metric is one of whole lists, not of a target's rank, or its formula
                gives no finite number.
        """
        formula = METRICS.find(self.name).of_ranks
        if formula is None:
            raise ConfigError(f"{self} is not a metric of the target's rank: see list_metrics()")
        values = np.asarray(formula(target_rank, self.k), dtype=np.float64)
        wrong = ~np.isfinite(values) & ~np.isnan(target_rank)
        if wrong.any():
            raise ConfigError(
                f"{self} gives a target of rank {target_rank[wrong][0]:g} the value "
                f"{values[wrong][0]:g}: its formula must give every rank a finite number, and the "
                "rank of a target that is not shown, infinity, usually 0"
            )
        return values

    def of_lists(
        self, top_items: Int64[np.ndarray, "Q K"], popularity: Int64[np.ndarray, " V"]
    ) -> float:
        """The metric of the lists, cut to its length.

        Raises:
            ConfigError: the metric is one of a target's rank, not of lists.
        """
        formula = METRICS.find(self.name).of_lists
        if formula is None:
            raise ConfigError(f"{self} is a metric of the target's rank, not of lists")
        return float(formula(top_items[:, : self.k], popularity))


def parse_metric(text: str) -> Metric:
    """Reads ``HR@10``, ``recall@10``, ``ndcg@5``, ``MRR``, …; letter case does not matter.

    Raises:
        ConfigError: no such metric, a cutoff missing or below 1, or one on a metric without.
    """
    match = re.fullmatch(r"\s*([a-z_]+)(?:@(\d+))?\s*", text, re.IGNORECASE)
    word = match[1].lower().replace("_", "") if match else ""
    spelling = _ALIASES | {name.lower().replace("_", ""): name for name in METRICS.names()}
    if match is None or word not in spelling:
        hint = did_you_mean(word or text.lower(), spelling)
        raise ConfigError(f"no metric {text!r}{hint}; there are: {_known()}")
    name = spelling[word]
    if not METRICS.find(name).has_cutoff:
        if match[2] is not None:
            raise ConfigError(f"{name} is taken over the whole list: write {name!r}, not {text!r}")
        return Metric(name)
    if match[2] is None or int(match[2]) < 1:
        raise ConfigError(f"{text!r} needs a list length of at least 1, such as '{name}@10'")
    return Metric(name, int(match[2]))


def _known() -> str:
    aliases = ", ".join(sorted(word.capitalize() for word in _ALIASES))
    names = [f"{n}@k" if METRICS.find(n).has_cutoff else n for n in METRICS.names()]
    return f"{', '.join(names)} (HR also {aliases})"


@rank_metric("HR")
def _hit_rate(ranks: np.ndarray, k: int | None) -> np.ndarray:
    return (ranks < k).astype(np.float64)


@rank_metric("NDCG")
def _ndcg(ranks: np.ndarray, k: int | None) -> np.ndarray:
    return (ranks < k).astype(np.float64) / np.log2(ranks + 2.0)


@rank_metric("MRR", has_cutoff=False)
def _mrr(ranks: np.ndarray, k: int | None) -> np.ndarray:
    return 1.0 / (ranks + 1.0)


@list_metric("Coverage")
def _coverage(top_items: np.ndarray, popularity: np.ndarray) -> float:
    return float((_exposure(top_items, popularity) > 0).sum() / (len(popularity) - 1))


@list_metric("Gini")
def _gini(top_items: np.ndarray, popularity: np.ndarray) -> float:
    exposure = np.sort(_exposure(top_items, popularity))
    n, total = len(exposure), exposure.sum()
    weights = 2.0 * np.arange(1, n + 1) - n - 1
    return float(weights @ exposure / (n * total)) if total else 0.0


@list_metric("Novelty")
def _novelty(top_items: np.ndarray, popularity: np.ndarray) -> float:
    shown = top_items > 0
    counts = np.maximum(popularity, 1)
    surprise = -np.log2(counts / max(1, int(popularity[1:].sum())))
    sizes = shown.sum(1)
    surprises = np.where(shown, surprise[np.where(shown, top_items, 0)], 0.0).sum(1)
    return float((surprises[sizes > 0] / sizes[sizes > 0]).mean()) if shown.any() else 0.0


def _exposure(top_items: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """In how many lists each item is shown."""
    return np.bincount(top_items[top_items > 0], minlength=len(popularity))[1:]


def rank_metrics(
    target_rank: Float64[np.ndarray, " Q"], cutoffs: Sequence[int] = (5, 10, 20)
) -> dict[str, Float64[np.ndarray, " Q"]]:
    """HR and NDCG at each cutoff, and MRR, of every query.

    Args:
        target_rank: 0-based ranks, a half where the target ties.

    Returns:
        Arrays of shape (Q,) under their names; the mean of each is the result.
    """
    wanted = [Metric(name, k) for name in ("HR", "NDCG") for k in cutoffs] + [Metric("MRR")]
    return {str(metric): metric.per_user(target_rank) for metric in wanted}


def list_metrics(
    top_items: Int64[np.ndarray, "Q K"], popularity: Int64[np.ndarray, " V"]
) -> dict[str, float]:
    """Coverage, inequality and surprise of the top lists, whoever likes them.

    With n = V - 1 items, e_i the number of lists that show item i, e_(1) <= … <= e_(n) in order of
    size, and c_i the training count of item i:

    * Coverage@K = share of the n items with e_i > 0; 1 when each is shown to somebody.
    * Gini@K = sum_i (2 i - n - 1) e_(i) / (n sum_i e_i); 0 when all are shown equally often,
      near 1 when a few fill every list.
    * Novelty@K = mean over lists of the mean over their items of -log2(max(c_i, 1) / sum_j c_j).
      An item that training never saw counts as seen once: the greatest surprise that the counts
      can support.

    Args:
        top_items: the items shown, -1 where fewer than K may be.
        popularity: training counts; entry 0 is padding.

    Returns:
        Three numbers under their names. Lists that show nothing have no surprise and are left out
        of its mean.
    """
    k = top_items.shape[1]
    wanted = [Metric(name, k) for name in ("Coverage", "Gini", "Novelty")]
    return {str(metric): metric.of_lists(top_items, popularity) for metric in wanted}
