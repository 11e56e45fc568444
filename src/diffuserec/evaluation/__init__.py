"""Evaluation: ranks, metrics, groups of users and items, significance, certainty."""

from diffuserec.evaluation.candidates import uniform_candidates
from diffuserec.evaluation.evaluate import Evaluation, Ranking, evaluate, load_evaluation, rank
from diffuserec.evaluation.groups import GROUPS, group_means, history_groups, popularity_groups
from diffuserec.evaluation.metrics import (
    METRICS,
    Metric,
    list_metric,
    list_metrics,
    parse_metric,
    rank_metric,
    rank_metrics,
)
from diffuserec.evaluation.protocol import Protocol, protocol_line
from diffuserec.evaluation.significance import (
    Comparison,
    Violation,
    check_consistency,
    compare,
    holm,
)
from diffuserec.evaluation.uncertainty import (
    calibration,
    expected_calibration_error,
    uncertainty,
)

__all__ = [
    "GROUPS",
    "METRICS",
    "Comparison",
    "Evaluation",
    "Metric",
    "Protocol",
    "Ranking",
    "Violation",
    "calibration",
    "check_consistency",
    "compare",
    "evaluate",
    "expected_calibration_error",
    "group_means",
    "history_groups",
    "holm",
    "list_metric",
    "list_metrics",
    "load_evaluation",
    "parse_metric",
    "popularity_groups",
    "protocol_line",
    "rank",
    "rank_metric",
    "rank_metrics",
    "uncertainty",
    "uniform_candidates",
]
