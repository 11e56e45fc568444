"""From ranks and top lists to numbers: a formula each.

A query has one target, and the target has a 0-based rank r among the candidates: r items stand
above it, and where scores tie r is the middle of the tied places, so it can end in a half.

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

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from diffuserec.errors import ConfigError

_ALIASES = {
    "hr": "HR",
    "hit": "HR",
    "hits": "HR",
    "hitrate": "HR",
    "recall": "HR",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "coverage": "Coverage",
    "gini": "Gini",
    "novelty": "Novelty",
}
_KNOWN = "HR@k (also Hit, HitRate, Recall), NDCG@k, MRR, Coverage@k, Gini@k, Novelty@k"


@dataclass(frozen=True)
class Metric:
    """A metric by name; ``str()`` gives the one spelling that results use.

    Attributes:
        name: ``HR``, ``NDCG``, ``MRR``, ``Coverage``, ``Gini`` or ``Novelty``.
        k: length of the list; None for MRR.
    """

    name: str
    k: int | None = None

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name}@{self.k}"

    def per_user(self, target_rank: Float64[np.ndarray, " Q"]) -> Float64[np.ndarray, " Q"]:
        """The metric of each query from its target's 0-based rank.

        Raises:
            ConfigError: the metric is one of whole lists, not of a target's rank.
        """
        if self.name == "MRR":
            return 1.0 / (target_rank + 1.0)
        if self.name not in ("HR", "NDCG"):
            raise ConfigError(f"{self} is not a metric of the target's rank: see list_metrics()")
        hit = (target_rank < self.k).astype(np.float64)
        return hit if self.name == "HR" else hit / np.log2(target_rank + 2.0)


def parse_metric(text: str) -> Metric:
    """Reads ``HR@10``, ``recall@10``, ``ndcg@5``, ``MRR``, …; letter case does not matter.

    Raises:
        ConfigError: no such metric, a cutoff missing or below 1, or one on MRR, which has none.
    """
    match = re.fullmatch(r"\s*([a-z_]+)(?:@(\d+))?\s*", text, re.IGNORECASE)
    word = match[1].lower().replace("_", "") if match else ""
    if match is None or word not in _ALIASES:
        close = difflib.get_close_matches(word or text.lower(), list(_ALIASES), n=1)
        hint = f" (did you mean {_ALIASES[close[0]]!r}?)" if close else ""
        raise ConfigError(f"no metric {text!r}{hint}; there are: {_KNOWN}")
    name = _ALIASES[word]
    if name == "MRR":
        if match[2] is not None:
            raise ConfigError(f"MRR is taken over the whole list: write 'MRR', not {text!r}")
        return Metric(name)
    if match[2] is None or int(match[2]) < 1:
        raise ConfigError(f"{text!r} needs a list length of at least 1, such as '{name}@10'")
    return Metric(name, int(match[2]))


def rank_metrics(
    target_rank: Float64[np.ndarray, " Q"], cutoffs: Sequence[int] = (5, 10, 20)
) -> dict[str, Float64[np.ndarray, " Q"]]:
    """HR and NDCG at each cutoff, and MRR, of every query.

    Args:
        target_rank: 0-based ranks, a half where the target ties.
        cutoffs: list lengths.

    Returns:
        Arrays of shape (Q,) under their names; the mean of each is the result.
    """
    wanted = [Metric(name, k) for name in ("HR", "NDCG") for k in cutoffs] + [Metric("MRR")]
    return {str(metric): metric.per_user(target_rank) for metric in wanted}


def list_metrics(
    top_items: Int64[np.ndarray, "Q K"], popularity: Int64[np.ndarray, " V"]
) -> dict[str, float]:
    """What the top lists show, whoever likes it: coverage, inequality, surprise.

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
    n = len(popularity) - 1
    shown = top_items > 0
    exposure = np.sort(np.bincount(top_items[shown], minlength=len(popularity))[1:])
    total = exposure.sum()
    weights = 2.0 * np.arange(1, n + 1) - n - 1
    counts = np.maximum(popularity, 1)
    surprise = -np.log2(counts / max(1, int(popularity[1:].sum())))
    sizes = shown.sum(1)
    surprises = np.where(shown, surprise[np.where(shown, top_items, 0)], 0.0).sum(1)
    return {
        f"Coverage@{k}": float((exposure > 0).sum() / n),
        f"Gini@{k}": float(weights @ exposure / (n * total)) if total else 0.0,
        f"Novelty@{k}": float((surprises[sizes > 0] / sizes[sizes > 0]).mean()) if total else 0.0,
    }
