"""Ranks by counting and top lists by blocks, against sorting."""

import numpy as np
import pytest
import torch
from scipy import stats

from diffuserec.data import SequenceDataset
from diffuserec.models.retrieval import hide, sampled_target_ranks, seen_pairs, target_ranks, top_k


def scores_with_ties(n_rows, vocab_size, n_values, seed):
    drawn = np.random.default_rng(seed).integers(-n_values, n_values + 1, (n_rows, vocab_size))
    scores = torch.from_numpy(drawn.astype(np.float32) / 4)
    return hide(scores, None)


@pytest.mark.parametrize("n_values", [0, 1, 50, 10**6])
@pytest.mark.parametrize("shape", [(7, 12), (300, 5003)])
def test_target_ranks_are_the_average_places_of_a_full_sort(shape, n_values):
    scores = scores_with_ties(*shape, n_values, seed=1)
    targets = torch.from_numpy(np.random.default_rng(2).integers(1, shape[1], shape[0]))
    places = stats.rankdata(-scores.numpy(), method="average", axis=1) - 1
    expected = places[np.arange(shape[0]), targets]
    ranks = target_ranks(scores, targets)
    assert ranks.dtype == torch.float64
    np.testing.assert_array_equal(ranks.numpy(), expected)


def test_target_among_equal_scores_stands_in_the_middle():
    scores = hide(torch.ones(2, 8), (torch.tensor([1, 1]), torch.tensor([2, 3])))
    # seven items may be shown to the first user, five to the second
    assert target_ranks(scores, torch.tensor([5, 5])).tolist() == [3.0, 2.0]


def test_hidden_target_ranks_behind_everything():
    scores = hide(torch.arange(8.0)[None], (torch.tensor([0]), torch.tensor([7])))
    assert target_ranks(scores, torch.tensor([7])).tolist() == [8.0]
    assert target_ranks(scores, torch.tensor([6])).tolist() == [0.0]


def test_ranks_leave_the_scores_as_they_were():
    scores = scores_with_ties(5, 900, 3, seed=3)
    before = scores.clone()
    target_ranks(scores, torch.ones(5, dtype=torch.int64))
    top_k(scores, 4)
    assert torch.equal(scores, before)


def test_sampling_every_other_item_is_ranking_all_of_them():
    scores = scores_with_ties(20, 31, 4, seed=4)
    targets = torch.from_numpy(np.random.default_rng(5).integers(1, 31, 20))
    others = torch.stack([torch.tensor([i for i in range(1, 31) if i != t]) for t in targets])
    assert torch.equal(sampled_target_ranks(scores, targets, others), target_ranks(scores, targets))


@pytest.mark.parametrize("n_values", [0, 1, 50, 10**6])
@pytest.mark.parametrize("vocab_size", [5, 64, 65, 1000, 5003])
@pytest.mark.parametrize("k", [1, 10])
def test_top_k_is_the_head_of_a_stable_sort(vocab_size, n_values, k):
    scores = scores_with_ties(40, vocab_size, n_values, seed=6)
    scores[:, 1 : vocab_size // 2][torch.rand(40, vocab_size // 2 - 1) < 0.3] = -torch.inf
    scores[::2, 2] *= -1.0  # negative zeros among the zeros
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    expected = order[:, : min(k, vocab_size - 1)]
    expected_values = scores.gather(1, expected)
    values, items = top_k(scores, k)
    assert torch.equal(values, expected_values)
    assert torch.equal(items, expected.masked_fill(expected_values == -torch.inf, -1))


def test_top_k_finds_the_best_in_the_last_incomplete_block():
    scores = torch.zeros(1, 64 * 50 + 3)
    scores[0, -1] = 2.0
    scores[0, 700] = 1.0
    assert top_k(hide(scores, None), 3)[1].tolist() == [[3202, 700, 1]]


def test_top_k_longer_than_what_may_be_shown():
    scores = hide(torch.arange(5.0)[None], (torch.tensor([0, 0]), torch.tensor([4, 2])))
    values, items = top_k(scores, 100)
    assert items.tolist() == [[3, 1, -1, -1]]
    assert values.tolist() == [[3.0, 1.0, -torch.inf, -torch.inf]]


def test_half_precision_scores_rank_like_themselves():
    scores = scores_with_ties(9, 3000, 30, seed=7)
    targets = torch.arange(1, 10)
    half = scores.to(torch.bfloat16)
    assert torch.equal(target_ranks(half, targets), target_ranks(half.float(), targets))
    assert torch.equal(top_k(half, 10)[1], top_k(half.float(), 10)[1])


def test_synthetic_items_are_not_seen():
    dataset = SequenceDataset.from_lists([[1, 2], [3], [2, 2]])
    longer = dataset.prepend(np.array([[3, 1]], dtype=np.int32), np.array([1]))
    owner, items = seen_pairs(longer, np.array([2, 1]))
    assert list(zip(owner.tolist(), items.tolist(), strict=True)) == [(0, 2), (0, 2), (1, 3)]
