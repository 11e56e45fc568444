"""Rank-biased precision: a user goes on to the next item of the list with chance 0.8.

Source: Moffat & Zobel, "Rank-Biased Precision for Measurement of Retrieval Effectiveness", ACM TOIS
27(1), 2008.
"""

import numpy as np

from diffuserec.evaluation.metrics import Formula

PATIENCE = 0.8


def rbp(ranks: np.ndarray, k: int | None) -> np.ndarray:
    """(1 - p) p^r of the target's 0-based rank r, 0 beyond the cutoff."""
    inside = np.ones(len(ranks)) if k is None else ranks < k
    return inside * (1 - PATIENCE) * PATIENCE**ranks


RBP = Formula(of_ranks=rbp)
