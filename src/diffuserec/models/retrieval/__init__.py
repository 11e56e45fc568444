"""The only place that meets all items: scores, ranks, lists and likelihoods over a catalog.

A method gives *states*; their products with the item vectors are scores of all V items. Nothing
outside this package forms users × items. Here that happens a block at a time, whose size follows
the catalog and the device, so that memory is bounded whatever the number of users and items.
"""

from diffuserec.models.retrieval.approximate import ItemIndex, approximate_top_k, recall
from diffuserec.models.retrieval.blocks import block_shape, memory_budget, most_scores
from diffuserec.models.retrieval.diverse import mmr_order, taking_turns
from diffuserec.models.retrieval.likelihood import (
    Raised,
    expected_vectors,
    log_partition,
    log_prob,
    max_prob,
    mean_log_prob,
    mean_set_log_prob,
    nearest_items,
)
from diffuserec.models.retrieval.scorers import (
    Matrix,
    Mixture,
    OrPopularity,
    Products,
    Scorer,
    mean_of,
)
from diffuserec.models.retrieval.search import (
    Certainty,
    Found,
    ItemSets,
    allowed_mask,
    certainty,
    draw_probabilities,
    rank_of,
    search,
    seen_items,
    top_k,
)

__all__ = [
    "Certainty",
    "Found",
    "ItemIndex",
    "ItemSets",
    "Matrix",
    "Mixture",
    "OrPopularity",
    "Products",
    "Raised",
    "Scorer",
    "allowed_mask",
    "approximate_top_k",
    "block_shape",
    "certainty",
    "draw_probabilities",
    "expected_vectors",
    "log_partition",
    "log_prob",
    "max_prob",
    "mean_log_prob",
    "mean_of",
    "mean_set_log_prob",
    "memory_budget",
    "mmr_order",
    "most_scores",
    "nearest_items",
    "rank_of",
    "recall",
    "search",
    "seen_items",
    "taking_turns",
    "top_k",
]
