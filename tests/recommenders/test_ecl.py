"""ECL-SR: its four losses written out, what the discriminator is asked, and who learns from it."""

from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec import settings
from diffuserec.models.base import Run
from diffuserec.data import Batch, histories_of
from diffuserec.recommenders import ecl
from diffuserec.recommenders.ecl import ECL

from .oracles import (
    BATCH,
    LOG,
    MASK,
    PSEUDO,
    SMALL,
    V,
    assert_fits,
    assert_refused,
    assert_same,
    gradients,
    next_item_by_hand,
    one_way_by_hand,
    untrained,
    with_its_loss,
)

SETTINGS = SMALL | {
    "n_last": 2,
    "discriminator_weight": 0.6,
    "generator_weight": 0.4,
}
MASKED = torch.tensor(
    [[False, True, False, False, True, False], [True] + [False] * 5, [True] + [False] * 5]
)
made = partial(untrained, ECL, SETTINGS)


def begun(monkeypatch, **settings):
    """A model, not trained, and the loss that its fit would minimize, with fixed masks."""
    model, loss = with_its_loss(ECL, SETTINGS, monkeypatch, **settings)
    monkeypatch.setattr(ecl, "random_positions", lambda lengths, width, n: MASKED)
    return model, loss


# --- the method written out, one sequence at a time --------------------------------------------


def loss_by_hand(model: ECL, batch: Batch, masked: torch.Tensor):
    masked = masked & batch.real
    c, table = model.config, model.encoder.items.weight[:V]
    token = model.encoder.items.weight[MASK]
    spotter = model.encoder if c.discriminator == "shared" else model.discriminator
    generated, spotted, means = [], [], []
    for row, length in enumerate(batch.lengths.tolist()):
        n = torch.tensor([length])
        items = batch.items[row, :length].tolist()
        states = model.encoder(torch.tensor([items]), n)[0]
        means.append(sum(states[max(0, length - c.n_last) :]) / min(length, c.n_last))
        shown = torch.stack(
            [token if masked[row, place] else table[item] for place, item in enumerate(items)]
        )
        restored = model.generator.encode(shown[None], n)[0]
        filled = list(items)
        for place in range(length):
            if masked[row, place]:
                scores = table[1:] @ restored[place]
                generated.append(-torch.log_softmax(scores, 0)[items[place] - 1])
                filled[place] = 1 + int(scores.detach().argmax())
        seen = torch.stack([table[item] for item in filled]) + states
        seen = spotter.encode(seen[None], n)[0]
        for place in range(length):
            says = torch.sigmoid(model.replaced.weight[0] @ seen[place] + model.replaced.bias[0])
            true = says if filled[place] != items[place] else 1 - says
            if batch.real[row, place]:
                spotted.append(-torch.log(true))
    return (
        next_item_by_hand(model, batch)
        # without dropout the second pass is the first
        + c.contrast_weight * one_way_by_hand(means, means, c)
        + c.discriminator_weight * torch.stack(spotted).mean()
        + c.generator_weight * torch.stack(generated).mean()
    )


@pytest.mark.parametrize("discriminator", ["shared", "own"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_last": 1, "temperature": 0.5},
        {"similarity": "dot", "temperature": 2.0},
        {"n_last": 50, "n_layers": 2},
        {"contrast_weight": 0.0, "discriminator_weight": 2.0, "generator_weight": 0.0},
        {"contrast_weight": 2.0, "discriminator_weight": 0.0, "generator_weight": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [BATCH, PSEUDO], ids=["all real", "some generated"])
def test_the_loss_written_out(monkeypatch, discriminator, settings, batch) -> None:
    model, loss = begun(monkeypatch, discriminator=discriminator, **settings)
    expected = loss_by_hand(model, batch, MASKED)
    assert_same(model, loss(batch), expected, allow_unused=True)


def test_two_passes_of_a_sequence_are_the_only_pair_of_the_contrast(monkeypatch) -> None:
    model, loss = begun(monkeypatch, dropout=0.5)
    asked = []

    def watched(anchors, positives, **words):
        asked.append((anchors, positives, words))
        return anchors.sum() * 0

    monkeypatch.setattr(settings, "info_nce", watched)
    model.train()
    torch.manual_seed(0)
    loss(BATCH)
    ((one, other, words),) = asked
    assert words.pop("two_way") is False
    assert (words.pop("similarity"), words.pop("temperature")) == ("cosine", 0.05)
    assert set(words.values()) == {None}  # neither labels nor other negatives
    for row in range(3):  # dropout of its own
        assert not torch.allclose(one[row], other[row])


# --- what is replaced --------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.28, 0.5, 1.0])
def test_one_more_than_the_share_is_masked(ratio) -> None:
    model = made(mask_ratio=ratio, max_len=25)
    lengths = torch.arange(1, 26)
    items = (torch.arange(25) % (V - 1) + 1).repeat(25, 1)
    items = items.masked_fill(torch.arange(25) >= lengths[:, None], 0)
    batch = Batch(lengths, items, lengths, items, lengths)
    before = items.clone()
    same, replaced = model.views(batch, LOG)
    share = Fraction(str(ratio))
    expected = [min(n, int(share * n) + 1) for n in range(1, 26)]
    assert replaced.changed.sum(1).tolist() == expected
    assert not (replaced.changed & (items == 0)).any()
    assert torch.equal(replaced.items[~replaced.changed], items[~replaced.changed])
    assert int(replaced.items[replaced.changed].min()) >= 1
    assert int(replaced.items.max()) < V
    assert torch.equal(same.items, before)
    assert torch.equal(batch.items, before)


def test_masked_positions_are_drawn_anew(random_log) -> None:
    model = made()
    torch.manual_seed(0)
    masks = [model.views(BATCH, LOG)[1].changed for _ in range(20)]
    assert len({str(mask.tolist()) for mask in masks}) > 10


def test_a_masked_item_does_not_tell_the_generator_itself(monkeypatch) -> None:
    model, _ = begun(monkeypatch)
    other = BATCH.items.clone()
    other[MASKED] = 13
    for mine, theirs in zip(
        model._fill(BATCH), model._fill(replace(BATCH, items=other)), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("place", [0, 3])
def test_the_generator_sees_what_comes_before_and_after(monkeypatch, place) -> None:
    model, _ = begun(monkeypatch)
    other = BATCH.items.clone()
    other[0, place] = 13
    _, _, mine = model._fill(BATCH)
    _, _, theirs = model._fill(replace(BATCH, items=other))
    changed = [not torch.allclose(a, b) for a, b in zip(mine, theirs, strict=True)]
    assert changed == [True, True, False, False]  # both masked positions of that sequence


@pytest.mark.parametrize("discriminator", ["shared", "own"])
def test_an_original_that_is_filled_in_counts_as_original(monkeypatch, discriminator) -> None:
    _, loss = begun(monkeypatch, discriminator=discriminator)
    # of the four masked positions the first gets its own item back, and the last, too
    monkeypatch.setattr(ecl, "top_items", lambda *_: torch.tensor([[1], [7], [6], [8]]))
    asked = []
    cross_entropy = F.binary_cross_entropy_with_logits

    def watched(logits, labels):
        asked.append((logits, labels))
        return cross_entropy(logits, labels)

    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", watched)
    loss(BATCH)
    ((logits, labels),) = asked
    # real positions only: six of the first sequence, three of the second, one of the third
    assert labels.tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 0]
    assert logits.shape == (10,)


@pytest.mark.parametrize("discriminator", ["shared", "own"])
def test_what_stands_in_the_padding_is_no_concern_of_the_discriminator(discriminator) -> None:
    model = made(discriminator=discriminator)
    states = model.encoder(BATCH.items, BATCH.lengths).detach()
    filled = BATCH.items.masked_scatter(MASKED, torch.tensor([7, 7, 7, 7]))
    expected = model._discriminate(BATCH, filled, states)
    states[BATCH.items == 0] = 100.0
    found = model._discriminate(BATCH, filled, states)
    torch.testing.assert_close(found, expected)


# --- who learns from what ----------------------------------------------------------------------


@pytest.mark.parametrize("discriminator", ["shared", "own"])
def test_the_encoder_learns_from_the_discriminator_and_the_generator_does_not(
    monkeypatch, discriminator
) -> None:
    losses = []
    for weight in (0.0, 1.0):
        model, loss = begun(
            monkeypatch,
            discriminator=discriminator,
            contrast_weight=0.0,
            generator_weight=0.0,
            discriminator_weight=weight,
        )
        losses.append(gradients(model, loss(BATCH), allow_unused=True))
    without, with_it = losses
    for name in with_it:
        if name.startswith("generator."):
            assert not with_it[name].any(), name
        elif name.startswith("encoder.blocks."):
            assert not torch.allclose(with_it[name], without[name], atol=1e-4), name
    own = [name for name in with_it if name.startswith("discriminator.blocks.")]
    assert bool(own) == (discriminator == "own")
    for name in ["replaced.weight", *own]:
        assert with_it[name].any(), name
        assert not without[name].any(), name


@pytest.mark.parametrize("discriminator", ["shared", "own"])
def test_the_discriminator_is_told_the_states_with_their_gradients(discriminator) -> None:
    model = made(discriminator=discriminator)
    states = model.encoder(BATCH.items, BATCH.lengths).detach().requires_grad_()
    filled = BATCH.items.masked_scatter(MASKED, torch.tensor([7, 7, 7, 7]))
    model._discriminate(BATCH, filled, states).backward()
    real = BATCH.items > 0
    assert bool((states.grad[real] != 0).any(1).all())
    assert not states.grad[~real].any()


def test_the_generator_learns_the_masked_items(monkeypatch) -> None:
    weights = {"contrast_weight": 0.0, "discriminator_weight": 0.0}
    model, loss = begun(monkeypatch, **weights, generator_weight=1.0)
    _, without = begun(monkeypatch, **weights, generator_weight=0.0)
    _, _, restored = model._fill(BATCH)
    scores = torch.log_softmax(restored @ model.encoder.table[1:].T, 1)
    own = [1, 5, 2, 8]
    expected = -sum(scores[n, item - 1] for n, item in enumerate(own)) / 4
    learned = loss(BATCH) - without(BATCH)
    assert learned.item() == pytest.approx(expected.item(), rel=1e-3)


# --- fitting, refusing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "softmax"},
        {"loss": "bce"},
        {"loss": "gbce"},
        {"loss": "sampled_softmax"},
        {"rows": "windows", "max_len": 4},
        {"rows": "prefixes"},
        {"discriminator": "own", "dropout": 0.3},
        {"mask_ratio": 1.0, "n_last": 100},
    ],
    ids=str,
)
def test_every_loss_row_and_option_fits(random_log, settings) -> None:
    model = assert_fits(ECL, SETTINGS | {"batch_size": 64} | settings, random_log)
    with torch.no_grad():
        scores = model.score(histories_of(random_log, np.arange(5)))
    assert scores.shape == (5, random_log.vocab_size)  # none for [mask]


def test_the_mask_token_is_learned(random_log) -> None:
    model = ECL(**SETTINGS)
    model.begin(random_log, Run(seed=1))
    before = model.encoder.items.weight.detach().clone()
    assert len(before) == random_log.vocab_size + 1
    model.fit(random_log, run=Run(seed=1))
    assert not torch.equal(model.encoder.items.weight[-1], before[-1])


def test_fits_in_bfloat16(random_log) -> None:
    assert_fits(ECL, SETTINGS, random_log, Run(precision="bf16"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"mask_ratio": 0}, "mask_ratio: .*greater than 0, got 0"),
        ({"mask_ratio": 1.5}, "mask_ratio: .*less than or equal to 1, got 1.5"),
        ({"n_last": 0}, "n_last: .*greater than or equal to 1, got 0"),
        ({"discriminator": "none"}, "discriminator: .*'shared' or 'own', got 'none'"),
        (
            {"discriminator_weight": -1},
            "discriminator_weight: .*greater than or equal to 0, got -1",
        ),
        ({"generator_weight": -1}, "generator_weight: .*greater than or equal to 0, got -1"),
        ({"temperature": 0}, "temperature: .*greater than 0, got 0"),
        ({"batch_size": 1}, "batch_size 1 leaves a sequence nothing to be told apart from"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(ECL, SETTINGS | settings, message)


def test_pseudo_items_are_neither_masked_nor_judged() -> None:
    model = made(mask_ratio=1.0)
    real = BATCH.real.clone()
    real[:, 0] = False
    batch = replace(BATCH, real=real)
    _, masked, _ = model._fill(batch)
    assert torch.equal(masked, real)
    states = model.encoder(BATCH.items, BATCH.lengths).detach().requires_grad_()
    one = model._discriminate(batch, BATCH.items, states)
    other_first = BATCH.items.clone()
    other_first[:, 0] = BATCH.items[:, 0] % 5 + 1
    with_other = model._discriminate(replace(batch, items=other_first), BATCH.items, states)
    torch.testing.assert_close(one, with_other)  # whether the first was replaced is not asked
