"""DreamRec: its loss and its sampling written out, guidance, draws, the table's collapse."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec.models.base import Run
from diffuserec.data import (
    Batch,
    Histories,
    SequenceDataset,
    histories_of,
    leave_one_out,
)
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.errors import ConfigError
from diffuserec.recommenders.dreamrec import DreamRec, mean_cosine

V, D, T = 12, 8, 40


def made(**settings) -> DreamRec:
    model = DreamRec(**{"dim": D, "num_train_timesteps": T, "num_inference_steps": 4} | settings)
    model.begin(SequenceDataset.from_lists([[*range(1, V)]]), Run(seed=2))
    return model


def histories() -> Histories:
    items = torch.tensor([[3, 1, 4], [1, 5, 0], [9, 0, 0]])
    return Histories(torch.tensor([7, 8, 9]), items, torch.tensor([3, 2, 1]))


def test_mean_cosine_is_that_of_all_pairs() -> None:
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    pairs = [float(F.cosine_similarity(a, b, dim=0)) for a, b in itertools.permutations(table, 2)]
    assert mean_cosine(table) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert mean_cosine(torch.ones(5, 3) * torch.arange(1.0, 6)[:, None]) == pytest.approx(1)


@pytest.mark.parametrize("targets", ["all", "last"])
def test_the_loss_written_out(monkeypatch, targets) -> None:
    model = made(targets=targets, cond_dropout=0.5)
    batch = Batch(
        torch.tensor([7, 8]),
        torch.tensor([[3, 1, 4], [1, 5, 0]]),
        torch.tensor([3, 2]),
        torch.tensor([[1, 4, 6], [5, 2, 0]] if targets == "all" else [[0, 0, 6], [0, 2, 0]]),
        torch.tensor([3, 6]),
    )
    places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)] if targets == "all" else [(0, 2), (1, 1)]
    n = len(places)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n, D, generator=generator)
    chance = torch.tensor([[0.1], [0.9], [0.4], [0.6], [0.2]])[:n]
    steps = torch.tensor([0, 39, 7, 20, 3])[:n]
    monkeypatch.setattr(torch, "randn_like", lambda x: noise)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: chance)
    monkeypatch.setattr("diffuserec.recommenders.dreamrec.uniform", lambda *_: steps)
    loss = model._loss(batch)
    errors = []
    for place, (row, position) in enumerate(places):
        history = batch.items[row : row + 1, : position + 1]
        condition = model.encoder(history, torch.tensor([position + 1]))[0, -1]
        if float(chance[place]) < 0.5:
            condition = model.null_condition
        x_0 = model.encoder.table[batch.targets[row, position]]
        betas = torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)
        alpha_bar = float(torch.prod(1 - betas[: int(steps[place]) + 1]))
        x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise[place]
        half = D // 2
        angles = int(steps[place]) * 10_000.0 ** (-torch.arange(half) / (half - 1))
        step = model.of_step(torch.cat([angles.sin(), angles.cos()]).float())
        errors.append((model.denoiser(torch.cat([x_t, condition, step])) - x_0).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_one_step_is_the_guided_prediction_from_pure_noise() -> None:
    model = made(num_inference_steps=1, guidance_scale=3.0)
    shown = histories()
    noise = KeyedNoise(5, shown.users).normal(1, D)
    for row, scores in enumerate(next(model.draws(shown, 5, 1))):
        items = shown.items[row : row + 1, : int(shown.lengths[row])]
        condition = model.encoder(items, shown.lengths[row : row + 1])[:, -1:]
        t = torch.tensor([T - 1])
        guided = 4 * model._denoise(noise[row : row + 1], t, condition) - 3 * model._denoise(
            noise[row : row + 1], t, model.null_condition[None, None]
        )
        logits = (guided[0] @ model.encoder.table.T / D**0.5)[:, 1:]
        torch.testing.assert_close(scores[1:], torch.softmax(logits, 1)[0])
        assert scores[0] == 0


@torch.no_grad()
def test_a_denoiser_that_knows_the_item_generates_it(monkeypatch) -> None:
    for steps, eta in ((T, 1.0), (5, 1.0), (5, 0.0)):
        model = made(num_inference_steps=steps, eta=eta)
        known = model.encoder.table[torch.tensor([4, 2, 11])][:, None]
        monkeypatch.setattr(
            model, "_denoise", lambda x_t, t, c, known=known: known.repeat(len(x_t) // 3, 1, 1)
        )
        for draw in model.draws(histories(), 0, 1):
            own = (known[:, 0] @ model.encoder.table.T)[:, 1:].argmax(1) + 1
            assert draw.argmax(1).tolist() == own.tolist()


@torch.no_grad()
def test_draws_average_to_the_score_and_depend_on_nobody_else() -> None:
    model = made(n_draws=3)
    shown = histories()
    whole = model.score(shown, 1)
    torch.testing.assert_close(whole, torch.stack([*model.draws(shown, 1)]).mean(0))
    alone = Histories(shown.users[1:2], shown.items[1:2, :2], shown.lengths[1:2])
    torch.testing.assert_close(model.score(alone, 1)[0], whole[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(model.score(shown, 2), whole)


def test_the_target_is_moved_only_when_asked() -> None:
    batch = Batch(
        torch.tensor([7]),
        torch.tensor([[3]]),
        torch.tensor([1]),
        torch.tensor([[5]]),
        torch.tensor([1]),
    )
    for detach in (True, False):
        model = made(detach_target=detach, cond_dropout=0.0)
        model._loss(batch).backward()
        gradient = model.encoder.table.grad
        assert gradient is not None
        assert bool((gradient[3] != 0).any())  # the history's item learns either way
        assert bool((gradient[5] != 0).any()) != detach


def test_a_fixed_table_stays_and_the_cosine_is_recorded(random_log) -> None:
    split = leave_one_out(random_log)
    quick = {"epochs": 2, "dim": D, "num_train_timesteps": T, "num_inference_steps": 4}
    fixed = DreamRec(train_items=False, **quick).fit(split.train, split.valid)
    learned = DreamRec(**quick).fit(split.train, split.valid)
    cosines = [epoch.watched["mean pairwise cosine"] for epoch in fixed.curve]
    assert len(cosines) == 2
    assert cosines[0] == cosines[1] == pytest.approx(mean_cosine(fixed.encoder.table[1:]))
    moving = [epoch.watched["mean pairwise cosine"] for epoch in learned.curve]
    assert moving[0] != moving[1]
    assert torch.all(learned.encoder.table[0] == 0)


def test_learns_the_cycle() -> None:
    log = SequenceDataset.from_lists([[1 + (s + i) % 11 for i in range(9)] for s in range(11)] * 6)
    split = leave_one_out(log)
    model = DreamRec(
        dim=16,
        epochs=30,
        learning_rate=0.01,
        batch_size=8,
        dropout=0.0,
        num_train_timesteps=T,
        num_inference_steps=5,
    ).fit(split.train)
    with torch.no_grad():
        scores = model.score(histories_of(split.test.histories, np.arange(len(split.test))))
    scores[:, 0] = -torch.inf
    hits = scores.argmax(1).numpy() == split.test.targets
    assert hits.mean() > 0.9


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
        ({"dim": 9, "n_heads": 3}, "dim 9 must be even"),
        ({"num_inference_steps": 50}, "num_inference_steps 50 is more than the 40 steps there are"),
        ({"num_train_timesteps": 10}, "outside \\(0, 1\\)"),
        ({"n_draws": 0}, "n_draws: .*greater than or equal to 1, got 0"),
    ],
)
def test_wrong_settings_are_named(settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        DreamRec(**{"dim": D, "num_train_timesteps": T, "num_inference_steps": 4} | settings)
    assert "\n" not in str(refusal.value)
