"""Hidden beginnings, and generated items held against them."""

import numpy as np
import pytest

from diffuserec.data import SequenceDataset
from diffuserec.errors import DataError
from diffuserec.evaluation import HiddenBeginnings, generation_quality, hide_beginnings


def log() -> SequenceDataset:
    return SequenceDataset.from_lists([[1, 2, 3, 4, 5], [6, 7], [5, 4, 3, 2], [1, 3, 5, 7, 2, 4]])


def test_long_users_are_taken_out_and_their_first_items_hidden() -> None:
    kept, hidden = hide_beginnings(log(), n_items=2, n_users=2, n_after=3)
    assert [items.tolist() for items in kept] == [[6, 7], [5, 4, 3, 2]]
    assert hidden.first.tolist() == [[1, 2], [1, 3]]
    assert [items.tolist() for items in hidden.after] == [[3, 4, 5], [5, 7, 2, 4]]
    assert hidden.after.users.tolist() == [0, 3]
    assert [items.tolist() for items in hidden.shown(1)] == [[3], [5]]
    assert [items.tolist() for items in hidden.shown(4)] == [[3, 4, 5], [5, 7, 2, 4]]


def test_too_few_long_users_are_named() -> None:
    with pytest.raises(DataError, match="2 users have 5 items or more, fewer than the 3"):
        hide_beginnings(log(), n_items=2, n_users=3, n_after=3)


def test_what_is_measured() -> None:
    hidden = HiddenBeginnings(
        np.array([[1, 2], [1, 3]]), SequenceDataset.from_lists([[3, 4, 5], [5, 7, 2, 4]])
    )
    found = generation_quality(np.array([[2, 3], [1, 6]]), hidden)
    assert found.hits.tolist() == [[True, False], [True, False]]
    assert found.hit_share == 0.5
    assert found.own == 0.25  # item 3 of the first user
    assert found.n_distinct == 4
    assert found.jaccard == 0
    assert found.margin == 0
    assert found.calibration_error is None
    chances = np.array([[0.9, 0.2], [0.9, 0.2]])
    sure = generation_quality(np.array([[2, 3], [1, 6]]), hidden, chances)
    assert sure.calibration_error == pytest.approx(0.15)
    same = generation_quality(np.array([[2, 3], [3, 6]]), hidden)
    assert same.jaccard == pytest.approx(1 / 3)
