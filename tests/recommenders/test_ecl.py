"""ECL-SR: its four losses written out, the discriminator's labels, and who learns from it."""

from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec import Runtime
from diffuserec.data import Batch, histories_of
from diffuserec.models import settings
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
    built,
    gradients,
    next_item_by_hand,
    one_way_by_hand,
    states_by_hand,
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
GRU = {"encoder": "gru", "n_layers": 2, "encoder_settings": {"hidden_dim": 5}}
made = partial(untrained, ECL, SETTINGS)


def begun(monkeypatch, **settings):
    """A model, not trained, and the loss that its fit would minimize, with fixed masks."""
    model, loss = with_its_loss(ECL, SETTINGS, monkeypatch, **settings)
    monkeypatch.setattr(ecl, "random_positions", lambda lengths, width, n: MASKED)
    return model, loss


def outputs(module: torch.nn.Module) -> list[torch.Tensor]:
    """The list to which the module's outputs will be added, one a call."""
    found: list[torch.Tensor] = []
    module.register_forward_hook(lambda module, inputs, output: found.append(output))
    return found


def judged(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The list to which logits and labels of the discriminator's loss will be added."""
    found = []
    cross_entropy = F.binary_cross_entropy_with_logits

    def watched(logits, labels):
        found.append((logits, labels))
        return cross_entropy(logits, labels)

    monkeypatch.setattr(F, "binary_cross_entropy_with_logits", watched)
    return found


# --- the method written out, one sequence at a time --------------------------------------------


def loss_by_hand(model: ECL, batch: Batch, masked: torch.Tensor):
    masked = masked & batch.real
    c, table = model.config, model.table.vectors.weight[:V]
    token = model.table.vectors.weight[MASK]
    discriminator = model.encoder if c.discriminator == "shared" else model.discriminator
    generated, entropies, means = [], [], []
    for sequence, length in enumerate(batch.lengths.tolist()):
        n = torch.tensor([length])
        items = batch.items[sequence, :length].tolist()
        states = states_by_hand(model, items)
        means.append(sum(states[max(0, length - c.n_last) :]) / min(length, c.n_last))
        shown = [token if masked[sequence, p] else table[item] for p, item in enumerate(items)]
        restored = model.generator(torch.stack(shown)[None], n)[0]
        filled = list(items)
        for position in range(length):
            if masked[sequence, position]:
                scores = table[1:] @ restored[position]
                generated.append(-torch.log_softmax(scores, 0)[items[position] - 1])
                filled[position] = 1 + int(scores.detach().argmax())
        seen = torch.stack([table[item] for item in filled]) + states
        seen = discriminator(seen[None], n)[0]
        for position in range(length):
            logit = model.replaced.weight[0] @ seen[position] + model.replaced.bias[0]
            chance = torch.sigmoid(logit)
            chance = chance if filled[position] != items[position] else 1 - chance
            if batch.real[sequence, position]:
                entropies.append(-torch.log(chance))
    return (
        next_item_by_hand(model, batch)
        # without dropout the second pass is the first
        + c.contrast_weight * one_way_by_hand(means, means, c)
        + c.discriminator_weight * torch.stack(entropies).mean()
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
        GRU,
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
    for sequence in range(3):  # each pass has its own dropout
        assert not torch.allclose(one[sequence], other[sequence])


# --- what is replaced --------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.28, 0.5, 1.0])
def test_one_position_more_than_the_share_is_masked(ratio) -> None:
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


def restored(model: ECL, batch: Batch) -> torch.Tensor:
    """The generator's states at the masked positions."""
    found = outputs(model.generator)
    model.views(batch, LOG)
    return found[-1][MASKED]


def test_a_masked_item_is_hidden_from_the_generator(monkeypatch) -> None:
    model, _ = begun(monkeypatch)
    other = replace(BATCH, items=BATCH.items.masked_fill(MASKED, 13))
    assert torch.equal(restored(model, BATCH), restored(model, other))
    (_, mine), (_, theirs) = model.views(BATCH, LOG), model.views(other, LOG)
    assert torch.equal(mine.items, theirs.items)


@pytest.mark.parametrize(
    "position, settings, expected",
    [
        (0, {}, [True, True]),  # both masked positions of that sequence
        (3, {}, [True, True]),
        (0, GRU, [True, True]),
        (3, GRU, [False, True]),  # that encoder cannot look ahead
    ],
)
def test_the_generator_sees_earlier_and_later_items(
    monkeypatch, position, settings, expected
) -> None:
    model, _ = begun(monkeypatch, **settings)
    items = BATCH.items.clone()
    items[0, position] = 13
    both = restored(model, BATCH), restored(model, replace(BATCH, items=items))
    changed = [not torch.allclose(a, b) for a, b in zip(*both, strict=True)]
    assert changed == [*expected, False, False]


@pytest.mark.parametrize("discriminator", ["shared", "own"])
def test_an_original_that_is_filled_in_counts_as_original(monkeypatch, discriminator) -> None:
    _, loss = begun(monkeypatch, discriminator=discriminator)
    # of the four masked positions the first and the last get their own items back
    best = torch.tensor([[1], [7], [6], [8]])
    monkeypatch.setattr(ecl, "top_k", lambda scorer, k: (best.float(), best))
    asked = judged(monkeypatch)
    loss(BATCH)
    ((logits, labels),) = asked
    # real positions only: six of the first sequence, three of the second, one of the third
    assert labels.tolist() == [0, 0, 0, 0, 1, 0, 1, 0, 0, 0]
    assert logits.shape == (10,)


def test_pseudo_items_are_neither_masked_nor_judged(monkeypatch) -> None:
    model, loss = with_its_loss(ECL, SETTINGS, monkeypatch, mask_ratio=1.0)
    real = BATCH.real.clone()
    real[:, 0] = False
    batch = replace(BATCH, real=real)
    _, replaced = model.views(batch, LOG)
    assert torch.equal(replaced.changed, real)
    asked = judged(monkeypatch)
    loss(batch)
    ((logits, labels),) = asked
    assert logits.shape == labels.shape == (int(real.sum()),)


@pytest.mark.parametrize("discriminator", ["shared", "own"])
def test_values_in_the_padding_change_no_loss(monkeypatch, discriminator) -> None:
    model, loss = begun(monkeypatch, discriminator=discriminator)
    expected = loss(BATCH).item()
    padding = (BATCH.items == 0)[:, :, None]

    def disturbed(module, inputs):
        embeddings, lengths = inputs
        where = padding.repeat(len(embeddings) // 3, 1, 1)
        return embeddings.masked_fill(where, 100.0), lengths

    for name in ("encoder", "generator", "discriminator"):
        if getattr(model, name) is not None:
            getattr(model, name).register_forward_pre_hook(disturbed)
    assert loss(BATCH).item() == pytest.approx(expected, rel=1e-6)


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
def test_the_discriminator_passes_gradients_to_the_states(monkeypatch, discriminator) -> None:
    weights = {"contrast_weight": 0.0, "generator_weight": 0.0}
    model, loss = begun(monkeypatch, discriminator=discriminator, **weights)
    found = outputs(model.encoder)
    value = loss(replace(BATCH, targets=torch.zeros_like(BATCH.targets)))  # no next item to learn
    states, again = torch.autograd.grad(value, found[0])[0].split(3)
    real = BATCH.items > 0
    assert bool((states[real] != 0).any(1).all())
    assert not states[~real].any()
    assert not again.any()


def test_the_generator_learns_the_masked_items(monkeypatch) -> None:
    weights = {"contrast_weight": 0.0, "discriminator_weight": 0.0}
    model, loss = begun(monkeypatch, **weights, generator_weight=1.0)
    _, without = begun(monkeypatch, **weights, generator_weight=0.0)
    scores = torch.log_softmax(restored(model, BATCH) @ model.table.vectors.weight[1:V].T, 1)
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
        {"examples": "windows", "max_len": 4},
        {"examples": "prefixes"},
        {"discriminator": "own", "dropout": 0.3},
        {"mask_ratio": 1.0, "n_last": 100},
        {"encoder": "caser", "n_layers": 2, "discriminator": "own"},
    ],
    ids=str,
)
def test_every_loss_example_and_option_fits(random_log, settings) -> None:
    model = assert_fits(ECL, SETTINGS | {"batch_size": 64} | settings, random_log)
    with torch.no_grad():
        scores = model.score(histories_of(random_log, np.arange(5)))
    assert scores.shape == (5, random_log.vocab_size)  # none for [mask]


def test_the_mask_token_is_learned(random_log) -> None:
    model = built(ECL(**SETTINGS), random_log, seed=1)
    before = model.table.vectors.weight.detach().clone()
    assert len(before) == random_log.vocab_size + 1
    model.fit(random_log, runtime=Runtime(seed=1))
    assert not torch.equal(model.table.vectors.weight[-1], before[-1])


def test_fits_in_bfloat16(random_log) -> None:
    assert_fits(ECL, SETTINGS, random_log, Runtime(precision="bf16"))


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
        ({"batch_size": 1}, "batch_size 1 leaves a sequence nothing to be contrasted with"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(ECL, SETTINGS | settings, message)
