"""The rule that chooses a recommender for a log, at its edges."""

import pytest

import diffuserec as dr
from diffuserec.models.methods import find_recommender


def log(n_users: int, length: int, n_items: int) -> dr.SequenceDataset:
    lists = [[1 + (u + p) % n_items for p in range(length)] for u in range(n_users)]
    return dr.SequenceDataset.from_lists(lists)


@pytest.mark.parametrize(
    ("n_users", "length", "n_items", "expected"),
    [
        (4999, 8, 100, "blend"),  # one user too few
        (5000, 8, 100, "bsarec"),
        (5000, 20, 100, "bsarec"),
        (5000, 21, 100, "sasrec"),
        (4999, 21, 100, "blend"),
    ],
)
def test_the_documented_rule(n_users: int, length: int, n_items: int, expected: str) -> None:
    name, why = dr.recommender_for(log(n_users, length, n_items))
    assert name == expected
    assert find_recommender(name)
    assert f"{n_users:,} users, half of them with {length} items" in why
    assert f"{n_users * length / n_items:.1f} actions for each of {n_items:,} items" in why


def test_what_an_augmenter_added_is_not_counted() -> None:
    real = log(1000, 15, 100)
    longer = dr.find_augmenter("random")(n_items=10).fit(real).augment(real)
    assert longer.lengths.min() == 25
    assert dr.recommender_for(longer) == dr.recommender_for(real)


def test_a_large_catalog_is_said_where_its_loss_is_another() -> None:
    few, many = (dr.SequenceDataset.from_lists([[1, 2, n]] * 5) for n in (100_000, 100_001))
    assert "loss" not in dr.recommender_for(few).why
    assert "a loss over some of the 100,001 items" in dr.recommender_for(many).why
    assert dr.SASRec().config.suited_to(many).loss == "sampled_softmax"


def test_an_empty_log_is_refused() -> None:
    with pytest.raises(dr.DataError, match="this one is empty"):
        dr.recommender_for(log(3, 0, 5))
