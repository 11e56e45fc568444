"""MCLRec: the parameters that each of three updates moves, and its losses written out."""

import math
from functools import partial

import pytest
import torch

from diffuserec import Runtime, load
from diffuserec.data import Batch, training_batches
from diffuserec.models import settings
from diffuserec.models.views import LearnedView
from diffuserec.recommenders import mclrec
from diffuserec.recommenders.mclrec import MCLRec, spread

from .oracles import (
    BATCH,
    LOG,
    MASK,
    SMALL,
    D,
    assert_fits,
    assert_refused,
    assert_same,
    built,
    last_state,
    loss_by_hand,
    nt_xent_by_hand,
    ragged,
    untrained,
    with_its_loss,
)

SETTINGS = SMALL | {"learned_weight": 0.4, "examples": "per_user"}
FIRST = [[4, 1], [2, 0, 5], [8]]
SECOND = [[3, 4, 1, 1, 5, 9], [6, 2, 5], [8]]
made = partial(untrained, MCLRec, SETTINGS)
begun = partial(with_its_loss, MCLRec, SETTINGS)


def vectors(n: int, seed: int = 0, scale: float = 1.0):
    return scale * torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


# --- the method written out, one vector at a time ----------------------------------------------


def pairs_by_hand(first, second):
    """For each view as an anchor, its product with its other view, and those with all others."""
    views, n = [*first, *second], len(first)
    for anchor in range(2 * n):
        own = anchor + n if anchor < n else anchor - n
        others = [view for view in range(2 * n) if view not in (anchor, own)]
        yield views[anchor] @ views[own], [views[anchor] @ views[other] for other in others]


def spread_by_hand(first, second):
    """Mean of relu(positive - o) plus mean of relu(O - negative)."""
    above, below = [], []
    zero = torch.zeros(())
    for positive, negatives in pairs_by_hand(first, second):
        hardest = torch.stack(negatives).max()
        low, high = (positive, hardest) if positive < hardest else (hardest, positive)
        above.append(torch.maximum(positive - low, zero))
        below += [torch.maximum(high - negative, zero) for negative in negatives]
    return sum(above) / len(above) + sum(below) / len(below)


def learned_by_hand(view: LearnedView, state):
    """D → D/2 → D/4 → D with GELUs, of length 1."""
    first, second, third = (view.layers[n] for n in (0, 2, 4))
    for layer in (first, second):
        wide = layer.weight @ state + layer.bias
        state = wide * (1 + torch.erf(wide / math.sqrt(2))) / 2
    out = third.weight @ state + third.bias
    return out / out.square().sum().sqrt()


def c_by_hand(model: MCLRec, first, second):
    learned_first = [learned_by_hand(model.learned[0], state) for state in first]
    learned_second = [learned_by_hand(model.learned[1], state) for state in second]
    total = 0
    for one, other in (
        (first, learned_second),
        (second, learned_first),
        (learned_first, learned_second),
    ):
        total = total + nt_xent_by_hand(one, other, model.config)
        total = total + 0.1 * spread_by_hand(one, other)
    return total


def with_c_by_hand(model: MCLRec):
    first, second = ([last_state(model, view) for view in views] for views in (FIRST, SECOND))
    c = c_by_hand(model, first, second)
    return loss_by_hand(model, BATCH, FIRST, SECOND) + model.config.learned_weight * c


# --- the regularizer and C ---------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 7])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_regularizer_is_that_of_loops(n, scale) -> None:
    first, second = vectors(n, 1, scale).requires_grad_(), vectors(n, 2, scale).requires_grad_()
    ours, theirs = spread(first, second), spread_by_hand([*first], [*second])
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(
        torch.autograd.grad(ours, [first, second]),
        torch.autograd.grad(theirs, [first, second]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_the_regularizer_by_hand() -> None:
    # positives above all negatives: .5, 2, .5 and 2 over 0, and each negative as far below
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[0.5, 0.0], [0.0, 2.0]])
    assert float(spread(first, second)) == pytest.approx(1.25 + 1.25)
    # 1 and 3 against 2 and 1. Anchor 1: positive 2, negatives 3 and 1. Anchor 3: 3; 3 and 6.
    # Anchor 2: 2; 6 and 2. Anchor 1: 3; 1 and 2, the only positive above its negatives
    first, second = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])
    above = (0 + 0 + 0 + 1) / 4
    below = (0 + 2 + 3 + 0 + 0 + 4 + 2 + 1) / 8
    assert float(spread(first, second)) == pytest.approx(above + below)


def test_the_regularizer_of_one_sequence_is_nothing() -> None:
    state = vectors(1).requires_grad_()
    nothing = spread(state, 2 * state)
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert not state.grad.any()


# --- the updates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.4},
        {"contrast_weight": 0.0},
        {"learned_weight": 0.0},
        {"similarity": "cosine", "temperature": 0.1},
        {"encoder": "gru", "n_layers": 2, "encoder_settings": {"hidden_dim": 5}},
    ],
    ids=str,
)
def test_the_losses_of_the_three_updates_written_out(monkeypatch, settings) -> None:
    model, updates = begun(monkeypatch, **settings)
    views = ragged(FIRST), ragged(SECOND)
    monkeypatch.setattr(mclrec, "sample_two_views", lambda *_: views)
    one, two, three = (update.loss for update in updates)
    assert_same(model, one(BATCH), with_c_by_hand(model))
    assert_same(model, three(BATCH), with_c_by_hand(model))
    # in between the encoder is not moved
    states = [[last_state(model, view).detach() for view in views] for views in (FIRST, SECOND)]
    assert_same(model, two(BATCH), c_by_hand(model, *states), allow_unused=True)


def test_similarity_is_the_product_unless_asked_otherwise() -> None:
    assert MCLRec().config.similarity == "dot"


class Recorder(torch.optim.Adam):
    """Adam that notes which of its parameters each step changes."""

    changed: list[set[int]]

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        found = super().step(closure)
        self.changed.append(
            {n for n, (p, b) in enumerate(zip(parameters, before, strict=True)) if not p.equal(b)}
        )
        return found


@pytest.mark.parametrize("joint", [False, True])
def test_encoder_and_learned_views_take_turns(monkeypatch, random_log, joint) -> None:
    Recorder.changed = []
    monkeypatch.setattr(torch.optim, "Adam", Recorder)
    model = MCLRec(**SETTINGS | {"joint": joint}).fit(random_log)
    names = [name for name, _ in model.named_parameters()]
    encoder = {n for n, name in enumerate(names) if name.startswith(("table.", "encoder."))}
    learners = {n for n, name in enumerate(names) if name.startswith("learned.")}
    assert len(encoder) + len(learners) == len(names)
    assert len(learners) == 12
    n_batches = sum(1 for _ in training_batches(random_log, 8, 8, 0, 0))
    turn = [encoder | learners] if joint else [encoder, learners, encoder]
    assert Recorder.changed == turn * n_batches


def test_the_third_update_has_the_new_learners_and_every_update_its_own_views(
    monkeypatch, random_log
) -> None:
    learners, views = [], []
    sample_two_views = mclrec.sample_two_views

    def watched(items, lengths, operators):
        learners.append(model.learned[0].layers[0].weight.detach().clone())
        views.append(sample_two_views(items, lengths, operators))
        return views[-1]

    monkeypatch.setattr(mclrec, "sample_two_views", watched)
    model = MCLRec(**SETTINGS)
    model.fit(random_log)
    assert len(learners) == len(views) > 6
    n_alike = 0
    for one, two, three in zip(learners[::3], learners[1::3], learners[2::3], strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(two, three)
    for n in range(0, len(views), 3):
        shown = [str([view[0].tolist() for view in pair]) for pair in views[n : n + 3]]
        n_alike += len(set(shown)) < 3
    assert n_alike < len(views) / 9  # short sequences may be cut alike


# --- the views ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_with, masked", [("padding", 0), ("token", MASK)])
def test_two_different_operators_make_the_views(mask_with, masked) -> None:
    model = made(mask_with=mask_with, max_len=10)
    torch.manual_seed(0)
    items = torch.arange(1, 11).repeat(300, 1)
    batch = Batch(torch.arange(300), items, torch.full((300,), 10), items, torch.arange(300))
    views = model.views(batch, LOG)
    pairs = set()
    for n in range(300):
        names = []
        for view in views:
            shown = view.items[n, : view.lengths[n]].tolist()
            if len(shown) == 5:  # half of it
                assert shown == [*range(shown[0], shown[0] + 5)]
                names.append("crop")
            elif masked in shown:
                assert [item for item in shown if item not in range(1, 11)] == [masked] * 5
                names.append("mask")
            else:
                assert sorted(shown) == [*range(1, 11)]
                moved = [position for position in range(10) if shown[position] != position + 1]
                assert moved[-1] - moved[0] < 8
                names.append("reorder")
        pairs.add(tuple(names))
    assert len(pairs) == 6
    assert all(one != other for one, other in pairs)
    assert torch.equal(batch.items, torch.arange(1, 11).repeat(300, 1))


# --- fitting, saving, refusing -----------------------------------------------------------------


def test_learned_views_are_saved_with_the_model(random_log, tmp_path) -> None:
    model = built(MCLRec(**SETTINGS), random_log, seed=1)
    begin = [parameter.detach().clone() for parameter in model.learned.parameters()]
    model.fit(random_log, runtime=Runtime(seed=1))
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert len(begin) == 12
    for before, mine, theirs in zip(
        begin, model.learned.parameters(), loaded.learned.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, before)
    for mine, theirs in zip(model.learned, loaded.learned, strict=True):
        assert torch.equal(theirs(vectors(3)), mine(vectors(3)))


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "softmax"},
        {"loss": "bce"},
        {"loss": "gbce"},
        {"loss": "sampled_softmax"},
        {"examples": "windows", "max_len": 4},
        {"examples": "prefixes"},
        {"joint": True, "mask_with": "token", "contrast_weight": 0.0},
        {"dim": 4, "dropout": 0.3},
        {"encoder": "caser", "n_layers": 2},
    ],
    ids=str,
)
def test_every_loss_example_and_option_fits(random_log, settings) -> None:
    assert_fits(MCLRec, SETTINGS | {"batch_size": 64} | settings, random_log)


def test_fits_in_bfloat16(random_log) -> None:
    assert_fits(MCLRec, SETTINGS, random_log, Runtime(precision="bf16"))


def test_without_weight_the_plain_contrast_is_not_computed(monkeypatch) -> None:
    asked = []
    info_nce = settings.info_nce
    monkeypatch.setattr(settings, "info_nce", lambda *a, **b: asked.append(1) or info_nce(*a, **b))
    for weight, n in ((0.0, 3), (0.1, 4)):
        _, updates = begun(monkeypatch, contrast_weight=weight)
        asked.clear()
        updates[0].loss(BATCH)
        assert len(asked) == n


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dim": 2, "n_heads": 1}, "dim 2 leaves the learned views no width: 4 is the least"),
        ({"crop_ratio": 0}, "crop_ratio: .*greater than 0, got 0"),
        ({"mask_ratio": 1.5}, "mask_ratio: .*less than or equal to 1, got 1.5"),
        ({"reorder_ratio": -0.1}, "reorder_ratio: .*greater than 0, got -0.1"),
        ({"mask_with": "zero"}, "mask_with: .*'padding' or 'token', got 'zero'"),
        ({"learned_weight": -1}, "learned_weight: .*greater than or equal to 0, got -1"),
        ({"temperature": 0}, "temperature: .*greater than 0, got 0"),
        ({"batch_size": 1}, "batch_size 1 leaves a sequence nothing to be contrasted with"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(MCLRec, SETTINGS | settings, message)
