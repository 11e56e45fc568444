"""Groups of queries, by the length of their history and by how frequent their target is.

**By history.** n is the number of interactions up to and including the target: the length of the
real history plus one. For a test query of leave-one-out this is the user's number of interactions,
which is what DiffuASR (Liu et al., CIKM 2023) groups by; for a validation query it is one less,
because the test item is not there yet. *short* is n <= 5, *medium* 6 <= n <= 20, *long* n > 20.
Synthetic items do not count: a user keeps the group whatever an augmenter adds.

**By item.** The *head* is the fifth of the catalog with the most training interactions (equal
counts: lower item number first; the number of items is rounded up), the *tail* all the others.
A query belongs to the group of its target.

**By frequency.** c is the number of training interactions of the target: *unseen* is c = 0, *rare*
1 <= c <= 5, *frequent* c > 5.
"""

import numpy as np
import polars as pl
from jaxtyping import Int64, Shaped

GROUPS = {
    "history": ("short", "medium", "long"),
    "popularity": ("head", "tail"),
    "frequency": ("unseen", "rare", "frequent"),
}
"""Names of the groups under the name of their grouping, in the order of tables."""

_LONGEST_SHORT, _LONGEST_MEDIUM = 5, 20
_MOST_OF_RARE = 5


def history_groups(history_lengths: Int64[np.ndarray, " Q"]) -> Shaped[np.ndarray, " Q"]:
    """Group of each query by history: ``short``, ``medium`` or ``long``.

    Args:
        history_lengths: real items before the target; n is one more.
    """
    short, medium, long = GROUPS["history"]
    n = history_lengths + 1
    return np.where(n <= _LONGEST_SHORT, short, np.where(n <= _LONGEST_MEDIUM, medium, long))


def popularity_groups(
    targets: Int64[np.ndarray, " Q"], popularity: Int64[np.ndarray, " V"], head_share: float = 0.2
) -> Shaped[np.ndarray, " Q"]:
    """Group of each query by its target: ``head`` or ``tail``.

    Args:
        popularity: training counts; entry 0 is padding.
        head_share: share of the catalog's items that make up the head.
    """
    n_items = len(popularity) - 1
    n_head = -int(-head_share * n_items // 1)
    in_head = np.zeros(len(popularity), dtype=bool)
    in_head[1 + np.argsort(-popularity[1:], kind="stable")[:n_head]] = True
    return np.where(in_head[targets], *GROUPS["popularity"])


def frequency_groups(target_counts: Int64[np.ndarray, " Q"]) -> Shaped[np.ndarray, " Q"]:
    """Group of each query by its target: ``unseen``, ``rare`` or ``frequent``.

    Args:
        target_counts: training interactions of the target.
    """
    unseen, rare, frequent = GROUPS["frequency"]
    rest = np.where(target_counts <= _MOST_OF_RARE, rare, frequent)
    return np.where(target_counts == 0, unseen, rest)


def groups_of(per_user: pl.DataFrame, grouping: str) -> pl.Series:
    """Group of each query in one of the :data:`GROUPS`.

    Args:
        per_user: one entry a query, with the columns ``history_group``, ``popularity_group`` and
            ``target_count``, from which the groups of frequency follow.
    """
    if grouping == "frequency":
        return pl.Series(frequency_groups(per_user["target_count"].to_numpy()))
    return per_user[f"{grouping}_group"]


def group_means(per_user: pl.DataFrame, metrics: list[str]) -> pl.DataFrame:
    """Means of metrics by group.

    Args:
        per_user: one entry a query, with the columns of :func:`groups_of` and those of `metrics`.

    Returns:
        Columns ``grouping, group, n_users, metric, value``; groups without queries are left out.
    """
    parts = []
    for grouping, names in GROUPS.items():
        of_query = groups_of(per_user, grouping)
        for name in names:
            inside = per_user.filter(of_query == name)
            if len(inside):
                parts.append(
                    pl.DataFrame(
                        {
                            "grouping": grouping,
                            "group": name,
                            "n_users": len(inside),
                            "metric": metrics,
                            "value": [inside[metric].mean() for metric in metrics],
                        },
                        schema_overrides={"n_users": pl.Int64, "value": pl.Float64},
                    )
                )
    return pl.concat(parts)
