"""Losses against torch's own cross entropy, against sums written out, and by hand; by name."""

import json
import math
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch.distributions import Independent, Normal, kl_divergence

from diffuserec.data import Catalog, SequenceDataset
from diffuserec.errors import ConfigError, DataError
from diffuserec.models.items import ItemTable
from diffuserec.models.losses import (
    LOSSES,
    ItemLoss,
    SharedNegatives,
    binary_cross_entropy,
    bpr_max,
    gbce,
    info_nce,
    item_loss,
    kl_to_standard,
    mixture_cross_entropy,
    sampled_softmax,
    seen_keys,
    softmax_cross_entropy,
    uniform_negatives,
)
from diffuserec.models.methods import load
from diffuserec.models.retrieval import memory_budget
from diffuserec.recommenders.sasrec import SASRec

from ..bundles import edit

V, P, D = 37, 23, 8


def problem(dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(P, D, generator=generator, dtype=dtype) * scale
    vectors = torch.randn(V, D, generator=generator, dtype=dtype) * scale  # row 0 is not zero here
    targets = torch.randint(1, V, (P,), generator=generator)
    return states.requires_grad_(), vectors.requires_grad_(), targets


def reference(states, vectors, targets):
    """Cross entropy over the columns of real items only."""
    return F.cross_entropy(states @ vectors[1:].T, targets - 1)


def with_gradients(loss, states, vectors, targets, factor=3.0):
    value = loss(states, vectors, targets)
    return value.detach(), *torch.autograd.grad(value * factor, (states, vectors))


@pytest.mark.parametrize("n_scores", [9, V, 5 * V + 3, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_softmax_and_its_gradients(n_scores, dtype):
    states, vectors, targets = problem(dtype)
    with memory_budget(4 * n_scores):
        ours = with_gradients(softmax_cross_entropy, states, vectors, targets)
    theirs = with_gradients(reference, states, vectors, targets)
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-6)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, other, rtol=0, atol=tolerance)
    assert not ours[2][0].any()  # the padding row learns nothing, exactly


@pytest.mark.parametrize("n_scores", [9, 3 * V, 10**9])
def test_softmax_in_bfloat16(n_scores):
    states, vectors, targets = problem()
    with memory_budget(4 * n_scores), torch.autocast("cpu", dtype=torch.bfloat16):
        value = softmax_cross_entropy(states, vectors, targets)
    ours = torch.autograd.grad(value, (states, vectors))
    expected, *theirs = with_gradients(reference, states, vectors, targets, factor=1.0)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-2)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        # eight bits of mantissa, about 2^-8 an operation
        assert (mine - other).norm() < 0.02 * other.norm()
    assert not ours[1][0].any()


def test_softmax_where_the_target_is_all_but_impossible():
    states, vectors, targets = problem(scale=8.0)
    value, *ours = with_gradients(softmax_cross_entropy, states, vectors, targets)
    assert torch.isfinite(value)
    _, *theirs = with_gradients(reference, states, vectors, targets)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_softmax_of_a_uniform_model_is_the_log_of_the_number_of_items():
    value = softmax_cross_entropy(torch.zeros(4, D), torch.ones(V, D), torch.tensor([1, 2, 3, 36]))
    assert value.item() == pytest.approx(math.log(V - 1), rel=1e-6)


def test_softmax_of_no_positions():
    states = torch.zeros(0, D, requires_grad=True)
    vectors = torch.ones(V, D, requires_grad=True)
    value = softmax_cross_entropy(states, vectors, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert not vectors.grad.any()


def test_softmax_takes_part_in_a_longer_graph():
    _, vectors, targets = problem(torch.float64)
    inner = torch.randn(P, D, dtype=torch.float64, requires_grad=True)
    ours = torch.autograd.grad(softmax_cross_entropy(inner.tanh() * 2, vectors, targets), inner)
    theirs = torch.autograd.grad(reference(inner.tanh() * 2, vectors, targets), inner)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def mixture(k, dtype=torch.float64, scale=1.0):
    generator = torch.Generator().manual_seed(k)
    states = torch.randn(P, k, D, generator=generator, dtype=dtype) * scale
    vectors = torch.randn(V, D, generator=generator, dtype=dtype) * scale
    targets = torch.randint(1, V, (P,), generator=generator)
    return states.requires_grad_(), vectors.requires_grad_(), targets


def mixture_reference(states, vectors, targets):
    """-log of the mean over draws of the target's softmax over real items, by plain autograd."""
    shares = torch.softmax(states @ vectors[1:].T, dim=2)
    return -shares[torch.arange(len(targets)), :, targets - 1].mean(1).log().mean()


@pytest.mark.parametrize("n_scores", [20, 7 * V, 10**9])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mixture_and_its_gradients(n_scores, k, dtype):
    states, vectors, targets = mixture(k, dtype)
    with memory_budget(4 * n_scores):
        ours = with_gradients(mixture_cross_entropy, states, vectors, targets)
    theirs = with_gradients(mixture_reference, states, vectors, targets)
    assert ours[0].item() == pytest.approx(theirs[0].item(), rel=1e-6)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert not ours[2][0].any()


def test_mixture_of_one_draw_is_the_softmax():
    states, vectors, targets = mixture(1)
    ours = with_gradients(mixture_cross_entropy, states, vectors, targets)
    theirs = with_gradients(lambda s, t, y: reference(s[:, 0], t, y), states, vectors, targets)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-6, atol=1e-7)


def test_mixture_averages_probabilities_and_not_their_logarithms():
    # two items; draws that give the target 1/2 and 1/4: -log(3/8), not (log 2 + log 4) / 2
    vectors = torch.tensor([[0.0], [1.0], [0.0]])
    states = torch.tensor([[[0.0], [-math.log(3)]]])
    value = mixture_cross_entropy(states, vectors, torch.tensor([1]))
    assert value.item() == pytest.approx(-math.log(3 / 8), rel=1e-6)


def test_mixture_of_equal_draws_is_that_of_one():
    states, vectors, targets = mixture(1)
    several = states.expand(-1, 4, -1)
    one, four = (mixture_cross_entropy(s, vectors, targets) for s in (states, several))
    assert four.item() == pytest.approx(one.item(), rel=1e-6)


def test_mixture_where_one_draw_makes_the_target_all_but_impossible():
    # the second draw puts the target at exp(-300): all of the gradient is the first one's
    states, vectors, targets = mixture(1, torch.float32)
    target = targets[:1]
    with torch.no_grad():
        vectors[:, -1] = 0
        vectors[target, -1] = -300.0
        first = states[:1].clone()
        first[..., -1] = 0
        second = first.clone()
        second[..., -1] = 1
    both = torch.cat([first, second], dim=1).requires_grad_()
    value, ours, _ = with_gradients(mixture_cross_entropy, both, vectors, target, factor=1.0)
    alone = first[:, 0].requires_grad_()
    expected, theirs, _ = with_gradients(reference, alone, vectors, target, factor=1.0)
    assert value.item() == pytest.approx(expected.item() + math.log(2), rel=1e-6)
    torch.testing.assert_close(ours[:, 0], theirs, rtol=1e-5, atol=1e-6)
    assert ours[:, 1].abs().max() < 1e-6


def test_mixture_in_bfloat16():
    states, vectors, targets = mixture(4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mixture_cross_entropy(states, vectors, targets)
    ours = torch.autograd.grad(value, (states, vectors))
    expected, *theirs = with_gradients(mixture_reference, states, vectors, targets, factor=1.0)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-2)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.03 * other.norm()


def test_mixture_of_no_positions():
    states, vectors = torch.zeros(0, 3, D, requires_grad=True), torch.ones(V, D, requires_grad=True)
    value = mixture_cross_entropy(states, vectors, torch.zeros(0, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert not vectors.grad.any()


def test_binary_cross_entropy_is_torchs():
    positive, negative = torch.randn(9), torch.randn(9, 4)
    expected = F.binary_cross_entropy_with_logits(positive, torch.ones(9))
    expected += F.binary_cross_entropy_with_logits(negative, torch.zeros(9, 4))
    torch.testing.assert_close(binary_cross_entropy(positive, negative), expected)


def test_gbce_without_calibration_and_one_negative_is_half_of_bce():
    # gbce averages over the two terms of a position, bce adds them
    positive, negative = torch.randn(9), torch.randn(9, 1)
    ours = gbce(positive, negative, vocab_size=50, t=0.0)
    torch.testing.assert_close(2 * ours, binary_cross_entropy(positive, negative))


def test_gbce_by_hand():
    # α = 2/10; t = 1/2: β = 0.2 (0.5 (1 - 5) + 5) = 0.6
    # σ(0) = 1/2, 1 - σ(log 3) = 1/4: (0.6 log 2 + log 2 + log 4) / 3 = 1.2 log 2
    positive, negative = torch.zeros(1), torch.tensor([[0.0, math.log(3)]])
    value = gbce(positive, negative, vocab_size=12, t=0.5, offset=False)
    assert value.item() == pytest.approx(1.2 * math.log(2), rel=1e-6)
    # t = 1: β = α: (0.2 log 2 + 3 log 2) / 3
    value = gbce(positive, negative, vocab_size=12, t=1.0, offset=False)
    assert value.item() == pytest.approx(3.2 / 3 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("n_negatives", [1, 5, 40])
def test_where_all_items_score_alike_zero_is_the_best_score_of_gbce(n_negatives):
    def loss(score, **options):
        scores = score.expand(3, 1 + n_negatives)
        return gbce(scores[:, 0], scores[:, 1:], vocab_size=102, **options)

    def slope(score, **options):
        score = torch.tensor(score, dtype=torch.float64, requires_grad=True)
        loss(score, **options).backward()
        return score.grad.item()

    assert slope(0.0) == pytest.approx(0, abs=1e-7)
    assert slope(-0.1) < 0 < slope(0.1)
    assert slope(0.0, offset=False) > 0.05
    # the offset moves all scores alike: the same loss elsewhere
    moved = torch.tensor(1.3, dtype=torch.float64)
    beta = n_negatives / 100 * (0.75 * (1 - 100 / n_negatives) + 100 / n_negatives)
    there = moved + math.log(beta / n_negatives)
    assert loss(moved).item() == pytest.approx(loss(there, offset=False).item(), rel=1e-9)


@pytest.mark.parametrize("loss", ["bce", "gbce"])
def test_sampled_losses_stay_finite_far_out(loss):
    positive = torch.tensor([-300.0, 300.0], requires_grad=True)
    negative = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    value = (
        binary_cross_entropy(positive, negative)
        if loss == "bce"
        else gbce(positive, negative, vocab_size=9, t=0.75)
    )
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(positive.grad).all()


def shared(states, vectors, targets, negatives):
    """Scores of targets and of negatives that all share, and where one is the target."""
    positive = (states * vectors[targets]).sum(1)
    return positive, states @ vectors[negatives].T, negatives == targets[:, None]


def test_sampled_softmax_over_every_item_once_is_the_full_softmax():
    # each item is expected once
    states, vectors, targets = problem(torch.float64)
    every = torch.arange(1, V)
    ours = with_gradients(
        lambda s, t, y: sampled_softmax(*shared(s, t, y, every), 0.0), states, vectors, targets
    )
    theirs = with_gradients(reference, states, vectors, targets)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def data_catalog(n_items):
    return Catalog(pl.Series("item_id", range(n_items)), n_users=9)


@pytest.mark.parametrize("kind", ["uniform", "popularity", "mixed"])
def test_negatives_estimate_the_partition_function_without_bias(kind):
    torch.manual_seed(0)
    dataset = SequenceDataset.from_lists([[1, 2, 2, 3], [2, 4, 2], [2, 1, 3]])
    n_items, state = 4, torch.randn(1, D)
    vectors = torch.randn(n_items + 1, D)
    counts = torch.tensor([2.0, 5.0, 2.0, 1.0])
    draw = SharedNegatives(kind, 4, dataset)
    target, found = torch.tensor([1]), []
    for _ in range(1500):
        # the others of the batch are as popular as items are
        others = torch.multinomial(counts, 7, replacement=True) + 1
        drawn, log_expected = draw(torch.cat([target, others]))
        loss = sampled_softmax(*shared(state, vectors, target, drawn), log_expected)
        found.append(loss.exp() * (state @ vectors[1]).exp())
    estimates = torch.stack(found)
    wanted = (state @ vectors[1:].T).exp().sum()
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - wanted) < 4 * error
    assert error < 0.04 * wanted


def test_gradients_of_many_negatives_are_those_of_the_full_softmax():
    states, vectors, targets = problem(torch.float64)
    dataset = SequenceDataset.from_lists(
        [[1 + i % (V - 1) for i in range(0, 90, 2)], [3, 3, V - 1]]
    )
    expected = with_gradients(reference, states, vectors, targets)
    for kind in ("uniform", "popularity"):
        torch.manual_seed(0)
        drawn, log_expected = SharedNegatives(kind, 200_000, dataset)(targets)
        ours = with_gradients(
            lambda s, t, y: sampled_softmax(*shared(s, t, y, drawn), log_expected.double()),  # noqa: B023
            states,
            vectors,
            targets,
        )
        for mine, other in zip(ours[1:], expected[1:], strict=True):
            assert (mine - other).norm() < 0.02 * other.norm(), kind


def test_negatives_are_of_the_training_part_and_of_the_batch():
    dataset = SequenceDataset.from_lists([[1, 2, 2, 3], [5, 2]], catalog=data_catalog(9))
    targets = torch.tensor([2, 2, 7])  # 7 as a copy may have it, which nobody counted
    drawn, log_expected = SharedNegatives("in_batch", 60_000, dataset)(targets)
    assert set(drawn.tolist()) == {2, 7}
    # of the two other targets, each is item 2 with chance 3/6: 60,000 · 2/3 draws of them
    assert log_expected[drawn == 2].exp().unique().item() == pytest.approx(20_000, rel=1e-5)
    drawn, _ = SharedNegatives("popularity", 60_000, dataset)(targets)
    share = torch.bincount(drawn, minlength=10) / 60_000
    wanted = torch.tensor([0.0, 2, 4, 2, 1, 2, 1, 1, 1, 1]) / 15
    assert (share - wanted).abs().max() < 0.01
    drawn, _ = SharedNegatives("mixed", 60_000, dataset)(targets)
    share = torch.bincount(drawn, minlength=10) / 60_000
    of_batch = torch.tensor([0.0, 0, 2, 0, 0, 0, 0, 1, 0, 0]) / 3
    uniform = torch.tensor([0.0] + 9 * [1 / 9])
    assert (share - (of_batch + 3 * uniform) / 4).abs().max() < 0.01


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_bpr_max_is_the_sum_over_negatives(penalty):
    states, vectors, targets = problem(torch.float64, scale=0.6)
    negatives = torch.tensor([4, 9, 9, 30, int(targets[0])])

    def by_hand(states, vectors, targets):
        total = 0
        for state, target in zip(states, targets, strict=True):
            others = [state @ vectors[item] for item in negatives if item != target]
            whole = sum(torch.exp(other) for other in others)
            better = penalized = 0
            for other in others:
                weight = torch.exp(other) / whole
                better = better + weight / (1 + torch.exp(other - state @ vectors[target]))
                penalized = penalized + weight * other**2
            total = total - torch.log(better) + penalty * penalized
        return total / len(states)

    def ours(states, vectors, targets):
        return bpr_max(*shared(states, vectors, targets, negatives), penalty)

    assert (targets == targets[0]).sum() < P
    for mine, other in zip(
        with_gradients(ours, states, vectors, targets),
        with_gradients(by_hand, states, vectors, targets),
        strict=True,
    ):
        torch.testing.assert_close(mine.double(), other, rtol=1e-5, atol=1e-6)


def test_bpr_max_where_the_only_negative_is_the_target_is_a_number():
    states, vectors, targets = problem()
    value, of_states, of_vectors = with_gradients(
        lambda *given: bpr_max(*shared(*given, targets[:1])), states, vectors, targets
    )
    assert value.isfinite()
    assert of_states.isfinite().all()
    assert of_vectors.isfinite().all()


def test_seen_keys_are_real_pairs_of_global_user_numbers():
    dataset = SequenceDataset.from_lists([[2, 1, 2], [3]], users=[5, 0])
    longer = dataset.prepend(np.array([[3]], dtype=np.int32), np.array([0]))
    assert seen_keys(longer).tolist() == [0 * 4 + 3, 5 * 4 + 1, 5 * 4 + 2]


def test_negatives_are_uniform_over_what_the_user_has_not():
    vocab_size, n = 11, 20_000
    dataset = SequenceDataset.from_lists([[1, 2, 3, 2], [10], []], users=[4, 6, 7])
    owners = torch.tensor([4, 6, 7])
    torch.manual_seed(0)
    drawn = uniform_negatives(owners, n, vocab_size, _keys(dataset, vocab_size))
    assert drawn.shape == (3, n)
    for row, had in zip(drawn, [{1, 2, 3}, {10}, set()], strict=True):
        counts = np.bincount(row.numpy(), minlength=vocab_size)
        assert len(counts) == vocab_size
        allowed = [item for item in range(1, vocab_size) if item not in had]
        assert counts[allowed].sum() == n
        assert stats.chisquare(counts[allowed]).pvalue > 1e-3


def test_negatives_without_exclusion_are_uniform_over_all_items():
    torch.manual_seed(0)
    drawn = uniform_negatives(torch.zeros(200, dtype=torch.int64), 100, 9)
    counts = np.bincount(drawn.flatten().numpy(), minlength=9)
    assert (counts[0], len(counts)) == (0, 9)
    assert stats.chisquare(counts[1:]).pvalue > 1e-3


def test_who_has_everything_still_gets_negatives():
    dataset = SequenceDataset.from_lists([[1, 2, 3]])
    drawn = uniform_negatives(torch.zeros(5, dtype=torch.int64), 7, 4, seen_keys(dataset))
    assert drawn.shape == (5, 7)
    assert set(drawn.flatten().tolist()) <= {1, 2, 3}


def _keys(dataset: SequenceDataset, vocab_size: int) -> torch.Tensor:
    pairs = {
        user * vocab_size + item
        for user, row in zip(dataset.users.tolist(), range(len(dataset)), strict=True)
        for item in dataset[row].tolist()
    }
    return torch.tensor(sorted(pairs))


# of the views below: a·p = 1, a·a' = 0, a·p' = 0, a'·p = 1, a'·p' = 2, p·p' = 2
ANCHORS, POSITIVES = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 2.0]])


def test_nt_xent_by_hand():
    e = math.e
    terms = [
        -math.log(e / (1 + e + 1)),  # a finds p among a', p, p'
        -math.log(e**2 / (1 + e + e**2)),  # a' finds p' among a, p, p'
        -math.log(e / (e + e + e**2)),  # p finds a among a, a', p'
        -math.log(e**2 / (1 + e**2 + e**2)),  # p' finds a' among a, a', p
    ]
    value = info_nce(ANCHORS, POSITIVES)
    assert value.item() == pytest.approx(sum(terms) / 4, rel=1e-6)


def test_nt_xent_where_all_are_positives_of_each_other_by_hand():
    e = math.e
    terms = [
        math.log(1 + e + 1) - (0 + 1 + 0) / 3,
        math.log(1 + e + e**2) - (0 + 1 + 2) / 3,
        math.log(e + e + e**2) - (1 + 1 + 2) / 3,
        math.log(1 + e**2 + e**2) - (0 + 2 + 2) / 3,
    ]
    value = info_nce(ANCHORS, POSITIVES, labels=torch.tensor([4, 4]))
    assert value.item() == pytest.approx(sum(terms) / 4, rel=1e-6)


def test_one_way_by_hand():
    # cosines 1/√2 and 0, then 1/√2 and 1; halves as temperature
    anchors = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    root = math.sqrt(2)
    terms = [
        -math.log(math.exp(root) / (math.exp(root) + 1)),
        -math.log(math.exp(2) / (math.exp(root) + math.exp(2))),
    ]
    value = info_nce(anchors, POSITIVES, two_way=False, similarity="cosine", temperature=0.5)
    assert value.item() == pytest.approx(sum(terms) / 2, rel=1e-6)


def test_a_hard_negative_is_in_everyones_denominator_by_hand():
    # the negative's cosines are 1 and 0
    anchors, negatives = torch.tensor([[3.0, 0.0], [0.0, 0.5]]), torch.tensor([[7.0, 0.0]])
    root = math.sqrt(2)
    terms = [
        -math.log(math.exp(root) / (math.exp(root) + 1 + math.exp(2))),
        -math.log(math.exp(2) / (math.exp(root) + math.exp(2) + 1)),
    ]
    value = info_nce(
        anchors,
        POSITIVES,
        two_way=False,
        negatives=negatives,
        similarity="cosine",
        temperature=0.5,
    )
    assert value.item() == pytest.approx(sum(terms) / 2, rel=1e-6)


def two_views(n, n_negatives=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(m, D, generator=generator) for m in (n, n, n_negatives)]
    return [tensor.requires_grad_() for tensor in made]


def cosines(a, b):
    return (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1))


SIMILARITIES = pytest.mark.parametrize(
    "similarity, product", [("dot", lambda a, b: a @ b.T), ("cosine", cosines)], ids=["dot", "cos"]
)


@SIMILARITIES
@pytest.mark.parametrize("two_way", [True, False])
@pytest.mark.parametrize("n, n_negatives", [(2, 0), (7, 0), (7, 1), (5, 9)])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_info_nce_is_cross_entropy_over_a_matrix_of_similarities(
    similarity, product, two_way, n, n_negatives, temperature
):
    anchors, positives, negatives = two_views(n, n_negatives)
    ours = info_nce(
        anchors,
        positives,
        two_way=two_way,
        negatives=negatives if n_negatives else None,
        similarity=similarity,
        temperature=temperature,
    )
    if two_way:
        both = torch.cat([anchors, positives])
        logits = product(both, torch.cat([both, negatives])) / temperature
        logits = logits - torch.eye(2 * n, 2 * n + n_negatives) * 1e9
        target = torch.cat([torch.arange(n, 2 * n), torch.arange(n)])
    else:
        logits = product(anchors, torch.cat([positives, negatives])) / temperature
        target = torch.arange(n)
    theirs = F.cross_entropy(logits, target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    inputs = (anchors, positives, negatives) if n_negatives else (anchors, positives)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@SIMILARITIES
@pytest.mark.parametrize("two_way", [True, False])
@pytest.mark.parametrize("n_negatives", [0, 3])
def test_info_nce_with_labels_is_the_supervised_sum(similarity, product, two_way, n_negatives):
    anchors, positives, negatives = two_views(6, n_negatives)
    labels = [3, 8, 3, 3, 1, 8]
    queries, candidates, owners = anchors, torch.cat([positives, negatives]), [*labels]
    if two_way:
        queries = torch.cat([anchors, positives])
        candidates = torch.cat([queries, negatives])
        owners = labels * 2
    similarities = (product(queries, candidates) / 0.5).tolist()
    terms = []
    for i, row in enumerate(similarities):
        others = [j for j in range(len(row)) if not (two_way and j == i)]
        partition = sum(math.exp(row[j]) for j in others)
        own = [j for j in others if j < len(owners) and owners[j] == owners[i]]
        terms.append(-sum(math.log(math.exp(row[j]) / partition) for j in own) / len(own))
    value = info_nce(
        anchors,
        positives,
        two_way=two_way,
        labels=torch.tensor(labels),
        negatives=negatives if n_negatives else None,
        similarity=similarity,
        temperature=0.5,
    )
    assert value.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("two_way", [True, False])
def test_labels_that_nobody_shares_change_nothing(two_way):
    anchors, positives, _ = two_views(4)
    plain = info_nce(anchors, positives, two_way=two_way)
    labeled = info_nce(anchors, positives, two_way=two_way, labels=torch.tensor([9, 2, 7, 0]))
    assert torch.equal(plain, labeled)
    shared = info_nce(anchors, positives, two_way=two_way, labels=torch.tensor([9, 2, 9, 0]))
    assert abs(shared.item() - plain.item()) > 1e-3


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("two_way", [True, False])
def test_one_sequence_is_told_apart_from_negatives_alone(two_way, similarity):
    anchors, positives, negatives = two_views(1, 3)
    settings = {"two_way": two_way, "similarity": similarity}
    alone = info_nce(anchors, positives, **settings)
    assert alone.item() == 0
    alone.backward()
    assert not anchors.grad.any()
    assert not positives.grad.any()
    assert info_nce(anchors, positives, negatives=negatives, **settings).item() > 0.01


def test_two_way_does_not_care_which_view_is_first():
    anchors, positives, negatives = two_views(5, 2)
    for more in ({}, {"negatives": negatives}, {"labels": torch.tensor([1, 2, 1, 3, 3])}):
        first, second = info_nce(anchors, positives, **more), info_nce(positives, anchors, **more)
        assert first.item() == pytest.approx(second.item(), rel=1e-6)
    one_way = [
        info_nce(a, p, two_way=False) for a, p in ((anchors, positives), (positives, anchors))
    ]
    assert abs(one_way[0].item() - one_way[1].item()) > 1e-3


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("labels", [None, [1, 1, 2, 3]])
@pytest.mark.parametrize("n_negatives", [0, 2])
@pytest.mark.parametrize("two_way", [True, False])
def test_gradients_of_info_nce_are_numbers(two_way, n_negatives, labels, similarity, scale):
    anchors, positives, negatives = two_views(4, n_negatives)
    value = info_nce(
        anchors * scale,
        positives * scale,
        two_way=two_way,
        labels=None if labels is None else torch.tensor(labels),
        negatives=negatives * scale if n_negatives else None,
        similarity=similarity,
        temperature=0.05,
    )
    value.backward()
    assert torch.isfinite(value)
    for tensor in (anchors, positives, negatives)[: 3 if n_negatives else 2]:
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.any()


def test_gradients_of_info_nce_are_numbers_where_two_views_are_one():
    anchors, _, _ = two_views(3)
    value = info_nce(anchors, anchors, similarity="cosine", temperature=0.05)
    value.backward()
    assert torch.isfinite(anchors.grad).all()


@pytest.mark.parametrize("two_way", [True, False])
def test_info_nce_counts_in_float32_under_autocast(two_way):
    given = [tensor.detach().bfloat16() for tensor in two_views(6, 2)]
    settings = {"two_way": two_way, "similarity": "cosine", "temperature": 0.05}
    anchors, positives, negatives = (tensor.float() for tensor in given)
    expected = info_nce(anchors, positives, negatives=negatives, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = info_nce(given[0], given[1], negatives=given[2], **settings)
        high = info_nce(anchors, positives, negatives=negatives, **settings)
    assert low.dtype == high.dtype == torch.float32
    assert torch.equal(low, expected)
    assert torch.equal(high, expected)


# --- losses by name -----------------------------------------------------------------------------


@dataclass
class Options:
    n_negatives: int | None = None
    negatives: str = "uniform"
    gbce_t: float = 0.75
    gbce_offset: bool = True


# users 5 and 0 of 37 items
LOG = SequenceDataset.from_lists([[2, 1, 2, 36], [3, 4]], users=[5, 0])
OWNERS = torch.arange(P) % 2 * 5


def table_of(vectors):
    """An item table of these vectors."""
    table = ItemTable(*vectors.shape)
    with torch.no_grad():
        table.vectors.weight.copy_(vectors)
    return table


def drawn_by_hand(name, n, offset):
    """The draws that a loss makes after this seed, and what it makes of them."""
    states, vectors, targets = problem()
    torch.manual_seed(7)
    if name in ("sampled_softmax", "bpr_max"):
        scores = shared(states, vectors, targets, torch.randint(1, V, (n,)))
        # an item is expected n / (V - 1) times among the negatives
        return (
            sampled_softmax(*scores, math.log(n / (V - 1)))
            if name == "sampled_softmax"
            else bpr_max(*scores)
        )
    drawn = uniform_negatives(OWNERS, n, V, seen_keys(LOG) if name == "bce" else None)
    positive = torch.stack([s @ vectors[t] for s, t in zip(states, targets, strict=True)])
    negative = torch.stack([vectors[d] @ s for s, d in zip(states, drawn, strict=True)])
    if name == "bce":
        return binary_cross_entropy(positive, negative)
    return gbce(positive, negative, V, 0.4, offset)


@pytest.mark.parametrize("n_negatives", [None, 3])
@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize(
    "name, default", [("bce", 1), ("gbce", 256), ("sampled_softmax", 1000), ("bpr_max", 1000)]
)
def test_sampled_losses_by_name(name, default, offset, n_negatives):
    states, vectors, targets = problem()
    loss = LOSSES.find(name).make(Options(n_negatives, gbce_t=0.4, gbce_offset=offset), LOG)
    table = table_of(vectors)
    torch.manual_seed(7)
    value = loss(states, table, targets, OWNERS)
    torch.testing.assert_close(value, drawn_by_hand(name, n_negatives or default, offset))
    assert LOSSES.find(name).n_negatives == default


def test_softmax_by_name():
    states, vectors, targets = problem()
    loss = LOSSES.find("softmax").make(Options(), LOG)
    value = loss(states, table_of(vectors), targets, OWNERS)
    torch.testing.assert_close(value, reference(states, vectors, targets))


def test_softmax_scores_are_logits_and_those_of_binary_losses_are_not():
    logits = {name for name in LOSSES.names() if SASRec(loss=name).scores_are_logits}
    assert {"softmax", "sampled_softmax"} <= logits
    assert not {"bce", "gbce", "bpr_max"} & logits


def test_bce_draws_no_item_that_the_user_has():
    # each of the two users has all items but one
    log = SequenceDataset.from_lists([[1, 2, 4], [3, 2, 1]])
    vectors = torch.tensor([[0.0], [50.0], [50.0], [-50.0], [-50.0]])
    loss = LOSSES.find("bce").make(Options(8), log)
    states, targets = torch.ones(2, 1), torch.tensor([2, 1])
    # a drawn item that a user has, other than by the twentieth round, would cost about 50 / 8
    assert loss(states, table_of(vectors), targets, torch.tensor([0, 1])).item() < 1


SETTINGS = {"dim": 8, "n_layers": 1, "epochs": 2, "batch_size": 16, "learning_rate": 0.02}


@item_loss("twin_of_softmax", scores_are_logits=True)
def twin(options, data):
    def loss(states, table, targets, users):
        return F.cross_entropy(states @ table.weight()[1:].T, targets - 1)

    return loss


def test_a_loss_of_ones_own_is_trained_saved_and_loaded(random_log, tmp_path):
    ours, softmax = (
        SASRec(**SETTINGS, loss=name).fit(random_log) for name in ("twin_of_softmax", "softmax")
    )
    assert [e.loss for e in ours.curve] == pytest.approx([e.loss for e in softmax.curve], rel=1e-5)
    torch.testing.assert_close(ours.table.weight(), softmax.table.weight(), rtol=1e-4, atol=1e-5)
    ours.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.config == ours.config
    assert again.scores_are_logits
    assert torch.equal(again.table.weight(), ours.table.weight())


def test_a_loss_of_ones_own_may_read_what_it_is_given(random_log):
    given = []

    @item_loss("curious", n_negatives=4)
    def curious(options, data):
        given.append((curious.negatives_by(options), options.gbce_t, data.vocab_size))

        def loss(states, table, targets, users):
            assert states.shape == (len(targets), 8)
            assert users.shape == targets.shape
            assert targets.min() > 0
            assert table.weight().shape == (26, 8)
            return states.square().sum()

        return loss

    SASRec(**SETTINGS, loss="curious").fit(random_log)
    SASRec(**SETTINGS, loss="curious", n_negatives=7).fit(random_log)
    assert given == [(4, 0.75, 26), (7, 0.75, 26)]


def test_a_model_of_a_loss_that_nobody_knows_is_not_loaded(random_log, tmp_path):
    SASRec(**SETTINGS).fit(random_log).save(tmp_path / "model")
    path = tmp_path / "model" / "manifest.json"
    config = json.loads(path.read_text(encoding="utf-8"))["config"]
    edit(tmp_path / "model", config=config | {"loss": "elsewhere"})
    with pytest.raises(DataError, match=r"SASRec: loss: no loss 'elsewhere'; there are: .*bce"):
        load(tmp_path / "model")


def test_an_unknown_loss_is_refused_in_one_line():
    expected = r"^SASRec: loss: no loss 'sofmax' \(did you mean 'softmax'\?\); there are: bce, "
    with pytest.raises(ConfigError, match=expected) as caught:
        SASRec(loss="sofmax")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"n_negatives": 5},
            "n_negatives = 5 has no effect with loss = 'softmax': it needs a loss",
        ),
        ({"gbce_t": 0.5}, "gbce_t = 0.5 has no effect with loss = 'softmax': it needs loss = 'gbc"),
        ({"gbce_t": 0.5, "loss": "bce"}, "gbce_t = 0.5 has no effect with loss = 'bce': it needs"),
        ({"gbce_t": 0.5, "loss": "bpr_max"}, "gbce_t = 0.5 has no effect with loss = 'bpr_max'"),
        ({"loss": "bce", "n_negatives": 0}, "n_negatives: must be greater than or equal"),
        ({"loss": "gbce", "gbce_t": 1.5}, "gbce_t: must be less than or equal to 1"),
    ],
)
def test_settings_without_effect_on_the_loss_are_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        SASRec(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bce", "gbce", "sampled_softmax", "bpr_max"])
def test_sampled_losses_take_a_number_of_negatives(name):
    assert SASRec(loss=name, n_negatives=5).config.n_negatives == 5
    assert SASRec(loss=name, n_negatives=None).config.n_negatives is None


def test_only_an_item_loss_can_be_registered_as_one():
    with pytest.raises(ConfigError, match=r"^a loss is an ItemLoss, got "):
        LOSSES.register("a_function", softmax_cross_entropy)
    with pytest.raises(ConfigError, match=r"^the loss name 'softmax' is taken: choose another$"):
        LOSSES.register("softmax", ItemLoss(lambda options, data: softmax_cross_entropy))
    assert "a_function" not in LOSSES.names()


# --- divergence ---------------------------------------------------------------------------------


def test_divergence_from_a_standard_gaussian_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(5, 3, D, generator=generator) * 2
    log_variance = torch.randn(5, 3, D, generator=generator) * 2
    latent = Independent(Normal(mean, (log_variance / 2).exp()), 1)
    prior = Independent(Normal(torch.zeros(D), torch.ones(D)), 1)
    torch.testing.assert_close(kl_to_standard(mean, log_variance), kl_divergence(latent, prior))
    nothing = torch.zeros(2, D)
    assert not kl_to_standard(nothing, nothing).any()
