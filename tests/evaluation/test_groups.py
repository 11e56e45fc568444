"""Borders of the groups."""

import numpy as np
import polars as pl

from diffuserec.data import SequenceDataset, leave_one_out
from diffuserec.evaluation import (
    frequency_groups,
    group_means,
    history_groups,
    popularity_groups,
)


def test_history_borders_count_the_target():
    lengths = np.array([0, 2, 4, 5, 19, 20, 400])
    expected = ["short", "short", "short", "medium", "medium", "long", "long"]
    assert history_groups(lengths).tolist() == expected


def test_a_test_query_of_leave_one_out_is_grouped_by_the_number_of_interactions():
    split = leave_one_out(SequenceDataset.from_lists([[1] * 5, [1] * 6, [1] * 20, [1] * 21]))
    of_test = history_groups(split.test.histories.real_lengths)
    assert of_test.tolist() == ["short", "medium", "medium", "long"]
    of_valid = history_groups(split.valid.histories.real_lengths)
    assert of_valid.tolist() == ["short", "short", "medium", "medium"]


def test_head_is_a_fifth_of_the_catalog_rounded_up():
    popularity = np.array([99, 1, 5, 3, 5, 0, 2])  # entry 0 is padding: two of six items
    targets = np.arange(1, 7)
    expected = ["tail", "head", "tail", "head", "tail", "tail"]
    assert popularity_groups(targets, popularity).tolist() == expected


def test_equal_counts_go_by_item_number():
    popularity = np.array([0, 1, 1, 1, 1, 1])
    assert popularity_groups(np.arange(1, 6), popularity).tolist() == ["head"] + ["tail"] * 4


def test_groups_by_frequency_of_the_target():
    expected = ["unseen", "rare", "rare", "frequent", "frequent"]
    assert frequency_groups(np.array([0, 1, 5, 6, 700])).tolist() == expected


def test_group_means_weigh_to_the_overall_mean():
    per_user = pl.DataFrame(
        {
            "history_group": ["short", "short", "long"],
            "popularity_group": ["tail", "head", "tail"],
            "target_count": [0, 6, 5],
            "HR@1": [1.0, 0.0, 1.0],
        }
    )
    found = group_means(per_user, ["HR@1"])
    assert found.rows() == [
        ("history", "short", 2, "HR@1", 0.5),
        ("history", "long", 1, "HR@1", 1.0),
        ("popularity", "head", 1, "HR@1", 0.0),
        ("popularity", "tail", 2, "HR@1", 1.0),
        ("frequency", "unseen", 1, "HR@1", 1.0),
        ("frequency", "rare", 1, "HR@1", 1.0),
        ("frequency", "frequent", 1, "HR@1", 0.0),
    ]
