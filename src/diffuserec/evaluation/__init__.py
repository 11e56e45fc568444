"""Evaluation: ranks, metrics, groups of users and items, significance, certainty."""

from diffuserec.evaluation.candidates import uniform_candidates as uniform_candidates
from diffuserec.evaluation.draws import best_of_draws as best_of_draws
from diffuserec.evaluation.draws import drawing_of as drawing_of
from diffuserec.evaluation.evaluate import Evaluation as Evaluation
from diffuserec.evaluation.evaluate import Passes as Passes
from diffuserec.evaluation.evaluate import evaluate as evaluate
from diffuserec.evaluation.evaluate import load_evaluation as load_evaluation
from diffuserec.evaluation.evaluate import rank as rank
from diffuserec.evaluation.generation import GenerationQuality as GenerationQuality
from diffuserec.evaluation.generation import HiddenBeginnings as HiddenBeginnings
from diffuserec.evaluation.generation import generation_quality as generation_quality
from diffuserec.evaluation.generation import hide_beginnings as hide_beginnings
from diffuserec.evaluation.groups import GROUPS as GROUPS
from diffuserec.evaluation.groups import frequency_groups as frequency_groups
from diffuserec.evaluation.groups import group_means as group_means
from diffuserec.evaluation.groups import groups_of as groups_of
from diffuserec.evaluation.groups import history_groups as history_groups
from diffuserec.evaluation.groups import popularity_groups as popularity_groups
from diffuserec.evaluation.kept_ranks import read_ranks as read_ranks
from diffuserec.evaluation.kept_ranks import write_ranks as write_ranks
from diffuserec.evaluation.leak import Leak as Leak
from diffuserec.evaluation.leak import SeenTargets as SeenTargets
from diffuserec.evaluation.leak import leak_meter as leak_meter
from diffuserec.evaluation.lists import BASKET_QUALITY as BASKET_QUALITY
from diffuserec.evaluation.lists import LIST_QUALITY as LIST_QUALITY
from diffuserec.evaluation.lists import intra_list_diversity as intra_list_diversity
from diffuserec.evaluation.lists import item_vectors as item_vectors
from diffuserec.evaluation.lists import list_quality as list_quality
from diffuserec.evaluation.lists import ranks_in as ranks_in
from diffuserec.evaluation.lists import rolled_out as rolled_out
from diffuserec.evaluation.metrics import METRICS as METRICS
from diffuserec.evaluation.metrics import Metric as Metric
from diffuserec.evaluation.metrics import list_metric as list_metric
from diffuserec.evaluation.metrics import list_metrics as list_metrics
from diffuserec.evaluation.metrics import parse_metric as parse_metric
from diffuserec.evaluation.metrics import rank_metric as rank_metric
from diffuserec.evaluation.metrics import rank_metrics as rank_metrics
from diffuserec.evaluation.paired import PairedDifference as PairedDifference
from diffuserec.evaluation.paired import holm as holm
from diffuserec.evaluation.paired import holm_levels as holm_levels
from diffuserec.evaluation.paired import paired_difference as paired_difference
from diffuserec.evaluation.protocol import Protocol as Protocol
from diffuserec.evaluation.protocol import protocol_line as protocol_line
from diffuserec.evaluation.significance import check_consistency as check_consistency
from diffuserec.evaluation.significance import compare as compare
from diffuserec.evaluation.uncertainty import TopChances as TopChances
from diffuserec.evaluation.uncertainty import calibration as calibration
from diffuserec.evaluation.uncertainty import (
    expected_calibration_error as expected_calibration_error,
)
from diffuserec.evaluation.uncertainty import fitted_temperature as fitted_temperature
from diffuserec.evaluation.uncertainty import top_chances as top_chances
from diffuserec.evaluation.uncertainty import uncertainty as uncertainty
