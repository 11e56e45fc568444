"""Ranks, lists, certainty, likelihoods: against sorting, torch and float64, in any blocks."""

import contextlib
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.overrides import TorchFunctionMode

from diffuserec.data import SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.retrieval import (
    ItemSets,
    Matrix,
    Mixture,
    OrPopularity,
    Products,
    Raised,
    Scorer,
    allowed_mask,
    block_shape,
    certainty,
    draw_probabilities,
    expected_vectors,
    log_partition,
    log_prob,
    max_prob,
    mean_log_prob,
    mean_of,
    mean_set_log_prob,
    memory_budget,
    nearest_items,
    rank_of,
    search,
    seen_items,
    top_k,
)

CPU = torch.device("cpu")
WHOLE = contextlib.nullcontext


def budget_of(n_scores):
    """A context in which a block holds at most so many scores; None sets no limit."""
    return WHOLE() if n_scores is None else memory_budget(4 * n_scores)


# all at once; some whole rows; a part of one row
BUDGETS = pytest.mark.parametrize("n_scores", [None, 1600, 110], ids=["whole", "rows", "columns"])


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_ties(n_rows, vocab_size, n_values, seed):
    """Scores in quarters, of so many different values above and below 0."""
    drawn = np.random.default_rng(seed).integers(-n_values, n_values + 1, (n_rows, vocab_size))
    return torch.from_numpy(drawn.astype(np.float32) / 4)


def targets_of(n_rows, vocab_size, seed=2):
    return torch.from_numpy(np.random.default_rng(seed).integers(1, vocab_size, n_rows))


def some_hidden(n_rows, vocab_size, share=0.3, seed=9):
    """Hidden items of each row, and the mask that says the same."""
    mask = torch.rand(n_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) < share
    owner, items = mask[:, 1:].nonzero(as_tuple=True)
    return ItemSets(owner, items + 1), mask


def hide(scores, mask=None):
    """A copy with minus infinity for padding and what is hidden."""
    hidden = scores.clone()
    hidden[:, 0] = -torch.inf
    return hidden if mask is None else hidden.masked_fill(mask, -torch.inf)


def mid_ranks(scores, targets):
    """0-based rank of each target by a full sort, ties at their mean; infinite if hidden."""
    ranks = stats.rankdata(-scores.double().numpy(), method="average", axis=1) - 1
    own = scores.gather(1, targets[:, None])[:, 0].numpy()
    expected = ranks[np.arange(len(targets)), targets.numpy()]
    return np.where(own == -np.inf, np.inf, expected)


def best(scores, k):
    """The head of a stable sort, -1 for what may not be shown."""
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    items = order[:, : min(k, scores.shape[1] - 1)]
    values = scores.gather(1, items)
    return values, items.masked_fill(values == -torch.inf, -1)


def exact_products(n_rows, vocab_size, seed=3):
    """States and item vectors of small integers: sums of products without rounding, many tied."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randint(-2, 3, (n_rows, 5), generator=generator).float()
    return Products(states, torch.randint(-2, 3, (vocab_size, 5), generator=generator).float())


def reference(mixture):
    """Probabilities of each draw in float64, formed at once, shape (B, K, V)."""
    logits = mixture.states.double() @ mixture.vectors.double().T
    logits[:, :, 0] = -torch.inf
    return torch.softmax(logits, dim=2)


def some_mixture(n_rows=13, vocab_size=211, n_draws=4, seed=4, **settings):
    states, vectors = normal(n_rows, n_draws, 6, seed=seed), normal(vocab_size, 6, seed=seed + 1)
    return Mixture(states, vectors, **settings)


# --- ranks --------------------------------------------------------------------------------------


@BUDGETS
@pytest.mark.parametrize("n_values", [0, 1, 50, 10**6])
@pytest.mark.parametrize("shape", [(7, 12), (12, 503)])
def test_ranks_are_mid_ranks_of_a_full_sort(shape, n_values, n_scores):
    scores, targets = with_ties(*shape, n_values, seed=1), targets_of(*shape)
    with budget_of(n_scores):
        ranks = rank_of(Matrix(scores), targets)
    assert ranks.dtype == torch.float64
    np.testing.assert_array_equal(ranks.numpy(), mid_ranks(hide(scores), targets))


def test_ranks_of_a_batch_that_is_counted_in_several_pieces():
    scores, targets = with_ties(300, 5003, 50, seed=1), targets_of(300, 5003)
    ranks = rank_of(Matrix(scores), targets)
    np.testing.assert_array_equal(ranks.numpy(), mid_ranks(hide(scores), targets))


@BUDGETS
def test_ranks_among_what_is_not_hidden(n_scores):
    hidden, mask = some_hidden(12, 503)
    for scorer in (Matrix(with_ties(12, 503, 3, seed=1)), exact_products(12, 503)):
        scores, targets = scorer.block(slice(0, 503)), targets_of(12, 503)
        assert 0 < int(mask.gather(1, targets[:, None]).sum()) < 12
        with budget_of(n_scores):
            ranks = rank_of(scorer, targets, hidden)
        np.testing.assert_array_equal(ranks.numpy(), mid_ranks(hide(scores, mask), targets))


@BUDGETS
def test_ranks_of_products_by_hand(n_scores):
    vectors = torch.tensor([[9.0], [1.0], [3.0], [2.0], [3.0]])
    with budget_of(n_scores and 2):
        ranks = rank_of(
            Products(torch.tensor([[1.0], [1.0], [-1.0]]), vectors), torch.tensor([3, 2, 1])
        )
    # padding would be first of all; items 2 and 4 tie
    assert ranks.tolist() == [2.0, 0.5, 0.0]


@BUDGETS
@pytest.mark.parametrize("n_draws", [1, 4])
def test_ranks_of_a_mixture_are_those_in_double_precision(n_draws, n_scores):
    mixture, targets = some_mixture(n_draws=n_draws), targets_of(13, 211)
    hidden, mask = some_hidden(13, 211, share=0.1)
    with budget_of(n_scores):
        ranks = rank_of(mixture, targets, hidden)
    scores = hide(reference(mixture).mean(1), mask)
    own = scores.gather(1, targets[:, None])
    # what lies within rounding of the target may stand on either side
    least, most = (scores > own * (1 + 1e-5)).sum(1), (scores > own * (1 - 1e-5)).sum(1) - 1
    shown = own[:, 0] > -torch.inf
    assert (ranks[~shown] == 211).all()
    assert (ranks >= least)[shown].all()
    assert (ranks <= most)[shown].all()
    assert (most - least)[shown].float().mean() < 0.1


def test_target_among_equal_scores_is_in_the_middle():
    hidden = ItemSets(torch.tensor([1, 1]), torch.tensor([2, 3]))
    # seven items may be shown to the first user, five to the second
    assert rank_of(Matrix(torch.ones(2, 8)), torch.tensor([5, 5]), hidden).tolist() == [3.0, 2.0]


def test_hidden_target_has_no_rank():
    scorer, hidden = Matrix(torch.arange(8.0)[None]), ItemSets(torch.tensor([0]), torch.tensor([7]))
    assert rank_of(scorer, torch.tensor([7]), hidden).tolist() == [float("inf")]
    assert rank_of(scorer, torch.tensor([6]), hidden).tolist() == [0.0]


@BUDGETS
def test_an_impossible_item_ranks_last_but_before_what_is_hidden(n_scores):
    scores = torch.tensor([[9.0, -torch.inf, 2.0, -torch.inf, 1.0]]).repeat(3, 1)
    hidden = ItemSets(torch.tensor([0]), torch.tensor([4]))
    with budget_of(n_scores and 2):
        found = search(Matrix(scores), targets=torch.tensor([1, 4, 1]), k=4, hidden=hidden)
    assert found.ranks.tolist() == [1.5, 1.0, 2.5]
    assert found.items.tolist() == [[2, 1, 3, -1], [2, 4, 1, 3], [2, 4, 1, 3]]


def test_a_search_leaves_the_scores_as_they_were():
    scores = with_ties(5, 900, 3, seed=3)
    before = scores.clone()
    hidden, _ = some_hidden(5, 900)
    search(Matrix(scores), targets=torch.ones(5, dtype=torch.int64), k=4, hidden=hidden)
    certainty(Matrix(scores), 4, hidden)
    assert torch.equal(scores, before)


# --- sampled candidates -------------------------------------------------------------------------


@BUDGETS
def test_sampling_every_other_item_is_ranking_all_of_them(n_scores):
    scores, targets = with_ties(20, 31, 4, seed=4), targets_of(20, 31, seed=5)
    others = torch.stack([torch.tensor([i for i in range(1, 31) if i != t]) for t in targets])
    with budget_of(n_scores and 17):
        found = search(Matrix(scores), targets=targets, candidates=others)
    assert torch.equal(found.candidate_ranks, found.ranks)
    np.testing.assert_array_equal(found.ranks.numpy(), mid_ranks(hide(scores), targets))


@BUDGETS
def test_ranks_among_sampled_candidates_are_counted_among_those(n_scores):
    scorer, targets = exact_products(12, 503), targets_of(12, 503)
    candidates = torch.randint(1, 503, (12, 11), generator=torch.Generator().manual_seed(0))
    scores = scorer.block(slice(0, 503))
    own, theirs = scores.gather(1, targets[:, None]), scores.gather(1, candidates)
    with budget_of(n_scores):
        found = search(scorer, targets=targets, candidates=candidates)
    expected = (theirs > own).sum(1) + (theirs == own).sum(1) / 2
    assert torch.equal(found.candidate_ranks, expected.double())


# --- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_scores", [None, 5500, 400])
@pytest.mark.parametrize("n_values", [0, 1, 50, 10**6])
@pytest.mark.parametrize("vocab_size", [5, 64, 65, 1000, 5003])
@pytest.mark.parametrize("k", [1, 10])
def test_lists_are_the_head_of_a_stable_sort(vocab_size, n_values, k, n_scores):
    n_rows = 40 if n_scores is None else 3
    scores = with_ties(n_rows, vocab_size, n_values, seed=6)
    scores[::2, 2] *= -1.0  # negative zeros among the zeros
    hidden, mask = some_hidden(n_rows, vocab_size)
    with budget_of(n_scores):
        values, items = top_k(Matrix(scores), k, hidden)
    expected_values, expected = best(hide(scores, mask), k)
    assert torch.equal(values, expected_values)
    assert torch.equal(items, expected)


@BUDGETS
def test_lists_of_products(n_scores):
    hidden, mask = some_hidden(12, 503)
    scorer = exact_products(12, 503)
    with budget_of(n_scores):
        values, items = top_k(scorer, 20, hidden)
    expected_values, expected = best(hide(scorer.block(slice(0, 503)), mask), 20)
    assert torch.equal(values, expected_values)
    assert torch.equal(items, expected)


@BUDGETS
def test_lists_of_a_mixture_are_those_in_double_precision(n_scores):
    mixture = some_mixture()
    hidden, mask = some_hidden(13, 211)
    with budget_of(n_scores):
        values, items = top_k(mixture, 10, hidden)
    scores = hide(reference(mixture).mean(1), mask)
    torch.testing.assert_close(values.double(), best(scores, 10)[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(values.double(), scores.gather(1, items), rtol=1e-5, atol=0)


@BUDGETS
def test_only_what_is_allowed_is_shown(n_scores):
    scorer = exact_products(12, 503)
    mask = allowed_mask(503, np.arange(50, 400), np.array([60, 61]))
    allowed = [*range(50, 60), *range(62, 400)]
    assert mask.nonzero()[:, 0].tolist() == allowed
    with budget_of(n_scores):
        values, items = top_k(scorer, 360, allowed=mask)
        ranks = rank_of(scorer, torch.full((12,), 60))
    outside = torch.ones(12, 503, dtype=torch.bool)
    outside[:, allowed] = False
    expected_values, expected = best(hide(scorer.block(slice(0, 503)), outside), 360)
    assert torch.equal(items, expected)
    assert torch.equal(values, expected_values)
    assert (items[:, 348:] == -1).all()
    assert (ranks < 503).all()


def test_what_may_be_shown_at_all():
    assert allowed_mask(5, None, None).tolist() == [False, True, True, True, True]
    assert allowed_mask(5, None, np.array([2])).tolist() == [False, True, False, True, True]
    assert allowed_mask(5, np.array([3]), None).tolist() == [False, False, False, True, False]
    assert not allowed_mask(5, np.array([3]), np.array([3, 4])).any()


def test_the_best_is_found_in_the_last_incomplete_block():
    scores = torch.zeros(1, 64 * 50 + 3)
    scores[0, -1] = 2.0
    scores[0, 700] = 1.0
    assert top_k(Matrix(scores), 3)[1].tolist() == [[3202, 700, 1]]


@pytest.mark.parametrize("n_scores", [None, 2])
def test_a_list_longer_than_what_may_be_shown(n_scores):
    hidden = ItemSets(torch.tensor([0, 0]), torch.tensor([4, 2]))
    with budget_of(n_scores):
        values, items = top_k(Matrix(torch.arange(5.0)[None]), 100, hidden)
    assert items.tolist() == [[3, 1, -1, -1]]
    assert values.tolist() == [[3.0, 1.0, -torch.inf, -torch.inf]]


@BUDGETS
def test_half_precision_scores_rank_like_themselves(n_scores):
    half = with_ties(9, 3000, 30, seed=7).to(torch.bfloat16)
    with budget_of(n_scores):
        low, high = (
            search(Matrix(scores), targets=torch.arange(1, 10), k=10)
            for scores in (half, half.float())
        )
    assert torch.equal(low.ranks, high.ranks)
    assert torch.equal(low.items, high.items)


@BUDGETS
def test_one_search_answers_what_several_do(n_scores):
    mixture, targets = some_mixture(), targets_of(13, 211)
    hidden, _ = some_hidden(13, 211)
    candidates = torch.randint(1, 211, (13, 7), generator=torch.Generator().manual_seed(0))
    with budget_of(n_scores):
        found = search(mixture, targets=targets, candidates=candidates, k=8, hidden=hidden)
        assert torch.equal(found.ranks, rank_of(mixture, targets, hidden))
        assert torch.equal(found.items, top_k(mixture, 8, hidden)[1])
        alone = search(mixture, targets=targets, candidates=candidates, hidden=hidden)
    assert torch.equal(found.candidate_ranks, alone.candidate_ranks)


def test_ranks_that_were_not_asked_for_are_no_numbers_and_lists_are_empty():
    scorer, ones = exact_products(4, 9), torch.ones(4, dtype=torch.int64)
    found = search(scorer, k=2, candidates=ones[:, None])
    assert found.ranks.isnan().tolist() == found.candidate_ranks.isnan().tolist() == [True] * 4
    found = search(scorer, targets=ones)
    assert (found.items.shape, found.scores.shape) == ((4, 0), (4, 0))
    assert found.candidate_ranks.isnan().tolist() == [True] * 4
    assert not found.ranks.isnan().any()


@pytest.mark.parametrize("n_scores", [None, 3])
@pytest.mark.parametrize(
    "scorer",
    [Matrix(torch.ones(0, 9)), exact_products(0, 9), some_mixture(0, 9, 2)],
    ids=lambda scorer: type(scorer).__name__,
)
def test_no_histories_at_all(scorer, n_scores):
    nothing = torch.zeros(0, dtype=torch.int64)
    with budget_of(n_scores):
        found = search(
            scorer,
            targets=nothing,
            candidates=nothing[:, None].expand(0, 4),
            k=3,
            hidden=ItemSets(nothing, nothing),
        )
        sure = certainty(scorer, 3)
    assert found.ranks.shape == found.candidate_ranks.shape == found.not_numbers.shape == (0,)
    assert found.items.shape == found.scores.shape == (0, 3)
    assert sure.entropy.shape == (0,)


@BUDGETS
def test_scores_that_are_not_numbers_are_reported_with_their_history(n_scores):
    scores = with_ties(6, 503, 5, seed=1)
    scores[1, 502] = scores[4, 1] = scores[4, 2] = torch.nan
    scores[5, 0] = torch.nan  # padding is not looked at
    with budget_of(n_scores):
        found = search(Matrix(scores), k=1)
    assert found.not_numbers.tolist() == [False, True, False, False, True, False]


# --- mixtures -----------------------------------------------------------------------------------


def among_candidates(states, vectors, n_candidates):
    """Scores by the rule: average among the best of the mean state, the others below in order."""
    scores = states.mean(1) @ vectors.T
    scores[:, 0] = -torch.inf
    chosen = scores.topk(min(n_candidates, len(vectors) - 1), dim=1)
    scores -= chosen.values[:, :1]
    for row, items in enumerate(chosen.indices):
        scores[row, items] = torch.softmax(states[row] @ vectors[items].T, dim=1).mean(0)
    return scores


@pytest.mark.parametrize("n_scores", [None, 1600, 90])
@pytest.mark.parametrize("n_candidates", [1, 5, 60, 210, 10**6])
def test_candidates_are_averaged_and_the_others_keep_the_order_of_the_mean_state(
    n_candidates, n_scores
):
    mixture = some_mixture(n_candidates=n_candidates)
    expected = among_candidates(mixture.states.double(), mixture.vectors.double(), n_candidates)
    targets = targets_of(13, 211)
    hidden, mask = some_hidden(13, 211)
    with budget_of(n_scores):
        found = search(mixture, targets=targets, k=30, hidden=hidden)
        width = mixture.columns()[0].stop
        scores = torch.cat([mixture.block(columns) for columns in mixture.columns()], dim=1)
    assert width == (211 if n_scores is None else n_scores // 13)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-6)
    expected = hide(expected, mask)
    torch.testing.assert_close(found.scores.double(), best(expected, 30)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.ranks.numpy(), mid_ranks(expected, targets))


def test_candidates_that_are_all_items_are_the_whole_average():
    whole = some_mixture().block(slice(0, 211))
    scores = some_mixture(n_candidates=210).block(slice(0, 211))
    torch.testing.assert_close(scores[:, 1:], whole[:, 1:], rtol=1e-5, atol=1e-8)


@BUDGETS
@pytest.mark.parametrize("n_candidates", [None, 20])
def test_draws_are_exact_whatever_the_candidates(n_candidates, n_scores):
    mixture = some_mixture(n_candidates=n_candidates)
    expected = reference(mixture)
    with budget_of(n_scores):
        blocks = [
            torch.stack([draw.clone() for draw in mixture.draws(columns)], dim=1)
            for columns in mixture.columns()
        ]
    found = torch.cat(blocks, dim=2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-8)
    assert not found[:, :, 0].any()


@BUDGETS
@pytest.mark.parametrize("n_candidates", [None, 20])
@pytest.mark.parametrize("diversity", [0.3, 1.0])
def test_diversity_weighs_the_first_draw_against_the_mean_of_all(diversity, n_candidates, n_scores):
    mixture = some_mixture(diversity=diversity, n_candidates=n_candidates)
    draws = reference(mixture)
    expected = (1 - diversity) * draws.mean(1) + diversity * draws[:, 0]
    with budget_of(n_scores):
        scores = torch.cat([mixture.block(columns) for columns in mixture.columns()], dim=1)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-8)


def test_the_softmax_of_a_great_logit_is_a_number():
    mixture = Mixture(torch.full((1, 2, 1), 300.0), torch.tensor([[5.0], [1.0], [2.0]]))
    for n_scores in (None, 1):
        with budget_of(n_scores):
            assert top_k(mixture, 2)[0].tolist() == [[1.0, 0.0]]


# --- certainty ----------------------------------------------------------------------------------


def entropy_of(probabilities):
    return torch.special.entr(probabilities).sum(-1)


@BUDGETS
@pytest.mark.parametrize("k", [1, 7, 1000])
@pytest.mark.parametrize("hides", [False, True])
def test_certainty_of_a_mixture(k, hides, n_scores):
    mixture = some_mixture()
    hidden, mask = some_hidden(13, 211)
    with budget_of(n_scores):
        found = certainty(mixture, k, hidden if hides else None)
    draws = reference(mixture)
    mean = draws.mean(1)
    torch.testing.assert_close(found.entropy.double(), entropy_of(mean), rtol=1e-5, atol=1e-5)
    disagreement = entropy_of(mean) - entropy_of(draws).mean(1)
    assert (disagreement > 0.1).all()
    torch.testing.assert_close(found.disagreement.double(), disagreement, rtol=1e-4, atol=1e-5)
    shown = mean.masked_fill(mask, 0) if hides else mean
    shown = shown / shown.sum(1, keepdim=True)
    confidence = shown.sort(1, descending=True).values[:, :k].sum(1)
    torch.testing.assert_close(found.confidence.double(), confidence, rtol=1e-5, atol=1e-6)
    assert (found.confidence <= 1).all()


@BUDGETS
def test_certainty_of_a_model_without_noise(n_scores):
    products = Products(normal(13, 6), normal(211, 6, seed=1))
    counts = Matrix(with_ties(13, 211, 8, seed=1).abs() * 4)
    mean = reference(Mixture(products.states[:, None], products.vectors))[:, 0]
    share = counts.scores.double()
    share[:, 0] = 0
    share /= share.sum(1, keepdim=True)
    for scorer, expected in ((products, mean), (counts, share)):
        with budget_of(n_scores):
            found = certainty(scorer, 5)
        torch.testing.assert_close(found.entropy.double(), entropy_of(expected), rtol=1e-5, atol=0)
        torch.testing.assert_close(
            found.confidence.double(), expected.topk(5).values.sum(1), rtol=1e-5, atol=0
        )
        assert found.disagreement.abs().max() < 1e-5


def test_nothing_is_certain_where_everything_is_hidden_or_nothing_was_counted():
    every = ItemSets(torch.zeros(4, dtype=torch.int64), torch.arange(1, 5))
    assert certainty(exact_products(1, 5), 2, every).confidence.tolist() == [0.0]
    nothing = certainty(Matrix(torch.zeros(1, 5)), 2)
    assert (nothing.confidence.item(), nothing.entropy.item()) == (0.0, 0.0)


@BUDGETS
def test_probabilities_of_single_items_by_each_draw(n_scores):
    mixture = some_mixture()
    items = torch.randint(0, 211, (13, 9), generator=torch.Generator().manual_seed(0))
    items[0, 0] = 0  # padding has none
    with budget_of(n_scores):
        found = draw_probabilities(mixture, items)
    expected = reference(mixture).gather(2, items[:, None].expand(-1, 4, -1))
    assert found.shape == (13, 4, 9)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-9)


# --- memory -------------------------------------------------------------------------------------


def test_means_of_scorers_are_those_of_their_scores_and_draws():
    n, width, vocab_size = 4, 5, 30
    states, vectors = torch.randn(2, n, 3, width), torch.randn(vocab_size, width)
    known, counts = torch.tensor([True, False] * 3)[:5], torch.rand(vocab_size)
    pairs = [
        [Products(s[:, 0], vectors) for s in states],
        [Mixture(s, vectors) for s in states],
        [Matrix(s) for s in torch.rand(2, n, vocab_size)],
        [Matrix(torch.rand(n, vocab_size)), Products(states[0][:, 0], vectors)],
        [OrPopularity(known, Products(s[:3, 0], vectors), counts) for s in states],
    ]
    whole = slice(0, vocab_size)
    for first, second in pairs:
        mean = mean_of(first, second)
        expected = (first.block(whole) + second.block(whole)) / 2
        torch.testing.assert_close(mean.block(whole), expected)
    for first, second in pairs[1:2]:
        both = [draw.clone() for one in (first, second) for draw in one.draws(whole)]
        found = [draw.clone() for draw in mean_of(first, second).draws(whole)]
        torch.testing.assert_close(found, both)


class Watched(Scorer):
    """Another scorer, and the shapes of all blocks that it was asked for."""

    def __init__(self, scorer, shapes=None):
        self.scorer = scorer
        self.shapes = [] if shapes is None else shapes

    shape = property(lambda self: self.scorer.shape)
    device = property(lambda self: self.scorer.device)

    def rows(self, part):
        return Watched(self.scorer.rows(part), self.shapes)

    def block(self, columns):
        found = self.scorer.block(columns)
        self.shapes.append(tuple(found.shape))
        return found

    def draws(self, columns):
        for draw in self.scorer.draws(columns):
            self.shapes.append(tuple(draw.shape))
            yield draw


ROWS, WIDE = 10, 1500

SCORERS = pytest.mark.parametrize(
    "scorer",
    [
        Matrix(with_ties(ROWS, WIDE, 8, seed=1).abs()),
        Products(normal(ROWS, 2), normal(WIDE, 2)),
        Mixture(normal(ROWS, 4, 2), normal(WIDE, 2)),
        Mixture(normal(ROWS, 4, 2), normal(WIDE, 2), n_candidates=10),
    ],
    ids=["matrix", "products", "mixture", "candidates"],
)


HIDDEN = ItemSets(torch.arange(ROWS), torch.arange(100, 100 + ROWS))


def ask_everything(scorer):
    items = torch.arange(1, ROWS + 1)
    search(scorer, targets=items, candidates=items[:, None], k=5, hidden=HIDDEN)
    certainty(scorer, 5)
    draw_probabilities(scorer, items[:, None])


@SCORERS
@pytest.mark.parametrize("n_scores", [400, 3 * WIDE + 100])
def test_no_block_is_larger_than_the_memory_budget(scorer, n_scores):
    watched = Watched(scorer)
    with memory_budget(4 * n_scores):
        ask_everything(watched)
    assert max(rows * columns for rows, columns in watched.shapes) <= n_scores
    if n_scores == 400:  # of a row as much as fits, and the rest; of all rows at once less
        assert set(watched.shapes) == {(1, 400), (1, WIDE % 400), (ROWS, 400 // ROWS), (ROWS, 20)}
    else:  # as many whole rows as fit, and the rest
        assert {(3, WIDE), (1, WIDE)} <= set(watched.shapes)


class LargestTensor(TorchFunctionMode):
    """Notes the number of values of the largest tensor that torch makes within the context."""

    def __init__(self):
        super().__init__()
        self.n_values = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        for made in found if isinstance(found, tuple) else (found,):
            if isinstance(made, torch.Tensor):
                self.n_values = max(self.n_values, made.numel())
        return found


@SCORERS
def test_nothing_of_all_users_and_items_is_formed_on_the_way(scorer):
    with memory_budget(4 * 400), LargestTensor() as largest:
        ask_everything(scorer)
    held = scorer.scores if isinstance(scorer, Matrix) else scorer.vectors
    # the scorer's own, or little more than a block (lists of every block, draws of candidates)
    assert largest.n_values <= max(held.numel(), 4 * 400)
    with LargestTensor() as largest:
        ask_everything(scorer)
    assert largest.n_values >= ROWS * WIDE


@pytest.mark.parametrize("n_draws", [1, 3])
def test_losses_form_nothing_of_all_users_and_items(n_draws):
    states = normal(ROWS, n_draws, 2).requires_grad_()
    vectors = normal(WIDE, 2).requires_grad_()
    items, offsets = torch.arange(1, 2 * ROWS + 1), torch.arange(0, 2 * ROWS, 2)

    def ask():
        mean_log_prob(states, vectors, torch.arange(1, ROWS + 1)).backward()
        mean_set_log_prob(states[:, 0], vectors, items, offsets).backward()
        max_prob(states[:, 0], vectors)

    with memory_budget(4 * 400), LargestTensor() as largest:
        ask()
    assert largest.n_values <= vectors.numel()
    with LargestTensor() as largest:
        ask()
    assert largest.n_values >= ROWS * WIDE


@pytest.mark.parametrize("vocab_size", [100, 12_102, 10**6, 10**7])
@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("device, least, memory", [("cpu", 128, 2**27), ("cuda", 1024, 2**30)])
def test_blocks_have_rows_enough_and_stay_in_memory(vocab_size, cached, device, least, memory):
    rows, columns = block_shape(10**6, vocab_size, torch.device(device), cached)
    assert rows >= least
    assert 4 * rows * columns <= memory
    assert columns == vocab_size or rows == least
    # all rows where there are few
    assert block_shape(7, vocab_size, torch.device(device), cached)[0] == 7


@pytest.mark.parametrize("precision, size", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_block_that_is_passed_over_often_stays_in_the_cache(precision, size):
    rows, columns = block_shape(10**6, 12_102, CPU, cached=True, precision=precision)
    assert columns == 12_102
    assert size * rows * columns <= 10_000_000 < size * (rows + 1) * columns
    # columns are cut
    rows, columns = block_shape(10**6, 10**6, CPU, cached=True, precision=precision)
    assert size * rows * columns <= 10_000_000 < size * rows * (columns + 1)


@pytest.mark.parametrize(
    "low, n_draws, held",
    [(True, 1, torch.bfloat16), (False, 1, torch.float32), (True, 3, torch.float32)],
)
def test_the_softmax_holds_more_rows_where_they_stay_in_bfloat16(monkeypatch, low, n_draws, held):
    asked = []

    def shape(*args, **options):
        asked.append(options["precision"])
        return block_shape(*args, **options)

    monkeypatch.setattr("diffuserec.models.retrieval.likelihood.block_shape", shape)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        mean_log_prob(torch.ones(2, n_draws, 4), torch.ones(9, 4), torch.tensor([1, 2]))
    assert asked[-1] == held


def test_no_block_has_more_columns_than_can_be_counted_in_float32():
    assert block_shape(1, 10**8, CPU)[1] <= 2**24


@pytest.mark.parametrize("group", [1, 3, 10, 500])
def test_rows_of_a_group_stay_together(group):
    rows, columns = block_shape(10 * group, 10**6, CPU, group=group)
    assert rows % group == 0
    assert rows > 0
    assert columns == min(10**6, 2**25 // rows)


def test_a_memory_budget_ends_with_its_context():
    before = block_shape(1000, 1000, CPU)
    with memory_budget(4 * 50):
        assert block_shape(1000, 1000, CPU) == (1, 50)
        with memory_budget(4 * 5000):
            assert block_shape(1000, 1000, CPU) == (5, 1000)
        assert block_shape(1000, 1000, CPU) == (1, 50)
        with memory_budget(0):
            assert block_shape(1000, 1000, CPU) == (1, 1)
    assert block_shape(1000, 1000, CPU) == before


# --- sets of items ------------------------------------------------------------------------------


SETS = [[3, 1], [], [2, 2, 5], [4], [], [1]]


def item_sets(sets):
    owner = [row for row, items in enumerate(sets) for _ in items]
    items = [item for row in sets for item in row]
    return ItemSets(torch.tensor(owner, dtype=torch.int64), torch.tensor(items, dtype=torch.int64))


def as_lists(sets, n):
    found = [[] for _ in range(n)]
    for owner, item in zip(sets.owner.tolist(), sets.items.tolist(), strict=True):
        found[owner].append(item)
    return found


@pytest.mark.parametrize("first", range(7))
@pytest.mark.parametrize("last", range(7))
def test_sets_of_a_run_of_histories(first, last):
    if first <= last:
        part = item_sets(SETS).rows(slice(first, last))
        assert as_lists(part, last - first) == SETS[first:last]


@BUDGETS
@pytest.mark.parametrize("known", [[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 0]])
def test_empty_histories_are_answered_by_counts(n_scores, known):
    """As if the two kinds of histories had been asked about apart."""
    known = torch.tensor(known, dtype=torch.bool)
    states, vectors = normal(int(known.sum()), 3, 6), normal(211, 6, seed=1)
    counts = torch.arange(211.0).flip(0)
    ours, theirs = Mixture(states, vectors), Matrix(counts.repeat(int((~known).sum()), 1))
    both = OrPopularity(known, ours, counts)
    assert both.shape == (6, 211)
    with budget_of(n_scores):
        found, certain = search(both, k=5, targets=torch.full((6,), 9)), certainty(both, 5)
        drawn = draw_probabilities(both, torch.full((6, 1), 3))
    for part, alone in ((known, ours), (~known, theirs)):
        apart = search(alone, k=5, targets=torch.full((int(part.sum()),), 9))
        assert torch.equal(found.items[part], apart.items)
        assert torch.equal(found.ranks[part], apart.ranks)
        expected = certainty(alone, 5)
        for field in ("confidence", "entropy", "disagreement"):
            torch.testing.assert_close(
                getattr(certain, field)[part], getattr(expected, field), rtol=1e-4, atol=1e-5
            )
        mean = draw_probabilities(alone, torch.full((int(part.sum()), 1), 3)).mean(1)
        torch.testing.assert_close(drawn[part].mean(1), mean)
    assert not drawn[~known].std(1).any()  # every draw says the same


def test_synthetic_items_are_not_seen():
    dataset = SequenceDataset.from_lists([[1, 2], [3], [2, 2]])
    longer = dataset.prepend(np.array([[3, 1]], dtype=np.int32), np.array([1]))
    assert as_lists(seen_items(longer, np.array([2, 1])), 2) == [[2, 2], [3]]


# --- likelihoods --------------------------------------------------------------------------------


@BUDGETS
def test_log_probabilities_are_those_of_torch(n_scores):
    states, vectors = normal(40, 6), normal(211, 6, seed=1)
    items = targets_of(40, 211)
    logits = (states @ vectors.T)[:, 1:].double()
    with budget_of(n_scores):
        found = log_prob(states, vectors, items)
        partition = log_partition(states, vectors)
        likeliest = max_prob(states, vectors)
        mean = expected_vectors(states, vectors)
    expected = torch.log_softmax(logits, 1)
    by_hand = expected.exp() @ vectors[1:].double()
    torch.testing.assert_close(mean.double(), by_hand, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found.double(), expected.gather(1, items[:, None] - 1)[:, 0], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(partition.double(), logits.logsumexp(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(likeliest.double(), expected.exp().amax(1), rtol=1e-5, atol=0)


DOUBLE = {"seed": 5, "dtype": torch.float64}


def some_raised(n_rows, vocab_size, dtype=torch.float32):
    """A third of all logits, the last item's and the first row's among them, and all of them."""
    raised = torch.rand(n_rows, vocab_size, generator=torch.Generator().manual_seed(2)) < 0.3
    raised[0, 1:] = raised[:, -1] = True
    raised[:, 0] = False
    row, item = raised.nonzero(as_tuple=True)
    shuffled = torch.randperm(len(row), generator=torch.Generator().manual_seed(3))
    row, item = row[shuffled], item[shuffled]
    by = normal(len(row), seed=4, dtype=dtype)
    dense = torch.zeros(n_rows, vocab_size, dtype=dtype).index_put((row, item), by)
    return Raised(row, item, by), dense


@pytest.mark.parametrize("low_precision", [False, True])
@BUDGETS
def test_log_probabilities_of_raised_logits_are_those_of_torch(n_scores, low_precision):
    states, vectors = normal(40, 6), normal(211, 6, seed=1)
    items = targets_of(40, 211)
    raised, dense = some_raised(40, 211)
    if low_precision:  # products of bfloat16 are exact in single precision
        states, vectors = states.bfloat16().float(), vectors.bfloat16().float()
    with budget_of(n_scores), torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
        found = log_prob(states, vectors, items, raised)
        partition = log_partition(states, vectors, raised)
    products = states @ vectors.T
    products = products.bfloat16().float() if low_precision else products
    logits = (products + dense)[:, 1:].double()
    expected = torch.log_softmax(logits, 1).gather(1, items[:, None] - 1)[:, 0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(partition.double(), logits.logsumexp(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_scores", [None, 22, 4])
def test_gradients_of_log_probabilities_of_raised_logits(n_scores):
    states = normal(5, 3, **DOUBLE).requires_grad_()
    vectors = normal(7, 3, **DOUBLE).requires_grad_()
    (row, item, by), _ = some_raised(5, 7, torch.float64)
    items = targets_of(5, 7)
    with budget_of(n_scores):
        assert torch.autograd.gradcheck(
            lambda states, vectors, by: log_prob(states, vectors, items, Raised(row, item, by)),
            (states, vectors, by.requires_grad_()),
            fast_mode=True,
        )


@pytest.mark.parametrize("n_scores", [None, 22, 4])
@pytest.mark.parametrize("n_draws", [1, 3])
def test_gradients_of_the_mean_log_probability(n_draws, n_scores):
    states = normal(5, n_draws, 3, **DOUBLE).requires_grad_()
    vectors = normal(7, 3, **DOUBLE).requires_grad_()
    targets = targets_of(5, 7)
    shares = torch.softmax(states @ vectors[1:].T, 2).mean(1)
    with budget_of(n_scores):
        value = mean_log_prob(states, vectors, targets)
        torch.testing.assert_close(value, shares.gather(1, targets[:, None] - 1).log().mean())
        assert torch.autograd.gradcheck(
            lambda *given: mean_log_prob(*given, targets), (states, vectors), fast_mode=True
        )


@pytest.mark.parametrize("n_scores", [None, 22, 4])
def test_gradients_of_log_probabilities_and_of_sets(n_scores):
    states = normal(5, 3, **DOUBLE).requires_grad_()
    vectors = normal(7, 3, **DOUBLE).requires_grad_()
    items, offsets = torch.tensor([1, 4, 2, 5, 3, 2]), torch.tensor([0, 3, 4, 4, 5])
    with budget_of(n_scores):
        for function in (
            lambda *given: log_prob(*given, items[:5]),
            log_partition,
            lambda *given: mean_set_log_prob(*given, items, offsets),
            lambda *given: mean_set_log_prob(*given, items, offsets, "bernoulli"),
        ):
            assert torch.autograd.gradcheck(function, (states, vectors), fast_mode=True)


@pytest.mark.parametrize("n_scores", [None, 1])
def test_under_autocast_a_certain_item_has_all_of_the_probability(n_scores):
    states, vectors = normal(9, 6) * 30, normal(2, 6, seed=1)
    only = torch.ones(9, dtype=torch.int64)
    with budget_of(n_scores), torch.autocast("cpu", torch.bfloat16):
        found, likeliest = log_prob(states, vectors, only), max_prob(states, vectors)
        mean = mean_log_prob(states[:, None], vectors, only)
    assert found.dtype == likeliest.dtype == mean.dtype == torch.float32
    assert found.abs().max() < 1e-6
    assert (likeliest == 1).all()
    assert mean.abs() < 1e-6


def test_under_autocast_the_greatest_probability_is_rounded_alone():
    states, vectors = normal(9, 6), normal(50, 6, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        low = max_prob(states, vectors)
    high = max_prob(states, vectors)
    assert 0 < (low - high).abs().max() < 0.02


@pytest.mark.parametrize("n_scores", [None, 3])
def test_likelihoods_of_no_states(n_scores):
    states, vectors = torch.zeros(0, 4, requires_grad=True), normal(9, 4).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.int64)
    with budget_of(n_scores):
        assert log_prob(states, vectors, nothing).shape == (0,)
        assert max_prob(states, vectors).shape == (0,)
        value = mean_log_prob(states[:, None], vectors, nothing)
    value.backward()
    assert value.item() == 0
    assert not vectors.grad.any()


@pytest.mark.parametrize("likelihood", ["multinomial", "bernoulli"])
@pytest.mark.parametrize("n_scores", [1, 4, 40, 10**6])
def test_the_likelihood_of_sets_and_its_gradients(likelihood, n_scores):
    sets = [[1, 4, 2], [5], [], [3, 2]]
    states, vectors = normal(4, 6).requires_grad_(), normal(7, 6, seed=1).requires_grad_()
    items = torch.tensor([item for own in sets for item in own])
    offsets = torch.tensor([0, 3, 4, 4])
    with memory_budget(4 * n_scores):
        found = mean_set_log_prob(states, vectors, items, offsets, likelihood)
        found_grads = torch.autograd.grad(found, [states, vectors])
    logits = states @ vectors.T
    expected = torch.zeros(())
    for row, own in enumerate(sets):
        if likelihood == "multinomial":
            expected = expected + torch.log_softmax(logits[row, 1:], 0)[[i - 1 for i in own]].sum()
        else:
            present = torch.zeros(6)
            present[[i - 1 for i in own]] = 1.0
            bernoulli = torch.distributions.Bernoulli(logits=logits[row, 1:])
            expected = expected + bernoulli.log_prob(present).sum()
    expected = expected / 4
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        found_grads, torch.autograd.grad(expected, [states, vectors]), strict=True
    ):
        torch.testing.assert_close(one, other)


# --- neighbors ----------------------------------------------------------------------------------


@BUDGETS
@pytest.mark.parametrize("k", [1, 4])
def test_nearest_items_are_the_head_of_a_sort(k, n_scores):
    vectors = exact_products(0, 83, seed=8).vectors.requires_grad_()
    with budget_of(n_scores):
        found = nearest_items(vectors, k)
    products = (vectors @ vectors.T).detach()
    products.fill_diagonal_(-torch.inf)
    assert torch.equal(found[1:], best(hide(products), k)[1][1:])
    assert found[0].tolist() == [0] * k
    assert found.dtype == torch.int64


def test_an_item_has_no_more_neighbors_than_there_are_others():
    vectors = normal(4, 2)
    assert nearest_items(vectors, 2)[1:].sort(1).values.tolist() == [[2, 3], [1, 3], [1, 2]]
    with pytest.raises(ConfigError, match=r"^3 nearest items .* has only 2 others: choose a small"):
        nearest_items(vectors, 3)


def test_the_log_of_a_mean_is_not_the_mean_of_logs():
    # two items; draws that give the target 1/2 and 1/4
    vectors = torch.tensor([[0.0], [1.0], [0.0]])
    states = torch.tensor([[[0.0], [-math.log(3)]]])
    for n_scores in (None, 1):
        with budget_of(n_scores):
            value = mean_log_prob(states, vectors, torch.tensor([1]))
        assert value.item() == pytest.approx(math.log(3 / 8), rel=1e-6)
