"""From scores to a result that can be trusted: ranks, metrics, groups, significance, report."""

from diffuserec.evaluation.evaluate import (
    Evaluation,
    Protocol,
    evaluate,
    load_evaluation,
    protocol_line,
    rank,
    uniform_candidates,
)
from diffuserec.evaluation.groups import GROUPS, group_means, history_groups, popularity_groups
from diffuserec.evaluation.inspection import (
    InspectedSequence,
    InspectedView,
    ViewFigures,
    inspected,
    sampled_rows,
    view_figures,
)
from diffuserec.evaluation.metrics import Metric, list_metrics, parse_metric, rank_metrics
from diffuserec.evaluation.report import Report
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
    has_distribution,
    uncertainty,
)

__all__ = [
    "GROUPS",
    "Comparison",
    "Evaluation",
    "InspectedSequence",
    "InspectedView",
    "Metric",
    "Protocol",
    "Report",
    "ViewFigures",
    "Violation",
    "calibration",
    "check_consistency",
    "compare",
    "evaluate",
    "expected_calibration_error",
    "group_means",
    "has_distribution",
    "history_groups",
    "holm",
    "inspected",
    "list_metrics",
    "load_evaluation",
    "parse_metric",
    "popularity_groups",
    "protocol_line",
    "rank",
    "rank_metrics",
    "sampled_rows",
    "uncertainty",
    "uniform_candidates",
    "view_figures",
]
