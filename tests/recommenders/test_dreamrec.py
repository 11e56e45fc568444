"""DreamRec: its loss and its sampling written out, guidance, draws, the table's collapse."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec.data import Batch, Histories, SequenceDataset, histories_of, leave_one_out
from diffuserec.errors import ConfigError
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.models.encoders.gru import GRUEncoder
from diffuserec.models.methods import preset_of
from diffuserec.recommenders.dreamrec import DreamRec, mean_cosine

from .oracles import assert_refused, assert_same, built, last_state, with_its_loss

V, D, T = 12, 8, 40
SETTINGS = {"dim": D, "num_train_timesteps": T, "num_inference_steps": 4, "dropout": 0.0}
LOG = SequenceDataset.from_lists([[*range(1, V)]])
BATCH = Batch(
    users=torch.tensor([7, 8]),
    items=torch.tensor([[3, 1, 4], [1, 5, 0]]),
    lengths=torch.tensor([3, 2]),
    targets=torch.tensor([[1, 4, 6], [5, 2, 0]]),
    last_target_index=torch.tensor([3, 6]),
)
LAST = Batch(
    users=BATCH.users,
    items=BATCH.items,
    lengths=BATCH.lengths,
    targets=torch.tensor([[0, 0, 6], [0, 2, 0]]),
    last_target_index=BATCH.last_target_index,
)
begun = partial(with_its_loss, DreamRec, SETTINGS)


def made(**settings) -> DreamRec:
    return built(DreamRec(**SETTINGS | settings), LOG, seed=2)


def histories() -> Histories:
    items = torch.tensor([[3, 1, 4], [1, 5, 0], [9, 0, 0]])
    return Histories(torch.tensor([7, 8, 9]), items, torch.tensor([3, 2, 1]))


def draws_of(model: DreamRec, shown: Histories, seed: int, n_draws=None) -> torch.Tensor:
    """Probabilities of all items by each draw of noise, (K, B, V)."""
    scorer = model.scorer(shown, seed, n_draws)
    return torch.stack([draw.clone() for draw in scorer.draws(slice(0, V))])


def test_mean_cosine_is_that_of_all_pairs() -> None:
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    pairs = [float(F.cosine_similarity(a, b, dim=0)) for a, b in itertools.permutations(table, 2)]
    assert mean_cosine(table) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert mean_cosine(torch.ones(5, 3) * torch.arange(1.0, 6)[:, None]) == pytest.approx(1)


# --- the network and its loss --------------------------------------------------------------------


def predicted(model: DreamRec, x_t, t: int, condition) -> torch.Tensor:
    """The clean embedding that the network predicts from one noised one."""
    half = D // 2
    angles = t * 10_000.0 ** (-torch.arange(half) / (half - 1))
    step = model.of_step(torch.cat([angles.sin(), angles.cos()]).float())
    return model.denoiser(torch.cat([x_t, condition, step]))


@pytest.mark.parametrize("denoiser", ["mlp1", "mlp2"])
@pytest.mark.parametrize("batch, targets", [(BATCH, "all"), (LAST, "last")], ids=["all", "last"])
def test_the_loss_written_out(monkeypatch, batch, targets, denoiser) -> None:
    model, loss_of = begun(monkeypatch, LOG, targets=targets, cond_dropout=0.5, denoiser=denoiser)
    positions = [(row, at) for row in range(2) for at in range(3) if batch.targets[row, at]]
    n = len(positions)
    # a batch draws its steps, its noise, and which conditions it drops
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    steps = torch.randint(T, (n,), generator=generator)
    noise, dropped = torch.randn(n, D), torch.rand(n) < 0.5
    assert dropped.any()
    assert not dropped.all()
    torch.manual_seed(2)
    loss = loss_of(batch)
    errors = []
    for number, (row, position) in enumerate(positions):
        condition = last_state(model, batch.items[row, : position + 1].tolist())
        if dropped[number]:
            condition = model.null_condition
        x_0 = model.table.vectors.weight[batch.targets[row, position]]
        betas = torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)
        alpha_bar = float(torch.prod(1 - betas[: int(steps[number]) + 1]))
        x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise[number]
        found = predicted(model, x_t, int(steps[number]), condition)
        errors.append((found - x_0).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)


def error_of(model: DreamRec, found, x_0) -> torch.Tensor:
    if model.config.error == "squared":
        return (found - x_0).square().mean()
    return 1 - found @ x_0 / (found.square().sum() * x_0.square().sum()).sqrt()


@pytest.mark.parametrize("error", ["squared", "cosine"])
@pytest.mark.parametrize("weight", [0.0, 0.6])
def test_the_preference_for_the_target_written_out(monkeypatch, weight, error) -> None:
    settings = {"error": error, "preference_weight": weight, "cond_dropout": 0.0}
    if weight:
        settings["preference_scale"] = 3.0
    model, loss_of = begun(monkeypatch, LOG, **settings, detach_target=False)
    positions = [(row, at) for row in range(2) for at in range(3) if BATCH.targets[row, at]]
    n = len(positions)
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
    steps = torch.randint(T, (n,), generator=generator)
    noise = torch.randn(n, D)
    torch.rand(n)
    others_noise = torch.randn(n, D)
    torch.manual_seed(2)
    loss = loss_of(BATCH)
    targets = [model.table.vectors.weight[BATCH.targets[row, at]] for row, at in positions]
    losses = []
    for number, (row, at) in enumerate(positions):
        condition = last_state(model, BATCH.items[row, : at + 1].tolist())
        others = [target for other, target in enumerate(targets) if other != number]
        betas = torch.linspace(0.1 / T, 20 / T, T, dtype=torch.float64)
        alpha_bar = float(torch.prod(1 - betas[: int(steps[number]) + 1]))
        errors = []
        for x_0, own in ((targets[number], noise), (torch.stack(others).mean(0), others_noise)):
            x_t = alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * own[number]
            found = predicted(model, x_t, int(steps[number]), condition)
            errors.append(error_of(model, found, x_0))
        preferred = -torch.log(torch.sigmoid(3.0 * (errors[1] - errors[0])))
        losses.append((1 - weight) * errors[0] + weight * preferred)
    assert_same(model, loss, torch.stack(losses).mean(), allow_unused=True)


def test_preferdiff_is_a_preset() -> None:
    preset, _ = preset_of(DreamRec, None, "preferdiff")
    config = DreamRec(**preset).config
    assert (config.preference_weight, config.error, config.dim) == (0.6, "cosine", 3072)
    with pytest.raises(ConfigError, match=r"no preset 'prefer_diff' \(did you mean 'preferdiff'"):
        preset_of(DreamRec, None, "prefer_diff")


@pytest.mark.parametrize("detach", [True, False])
def test_the_target_is_moved_only_when_asked(monkeypatch, detach) -> None:
    batch = Batch(
        torch.tensor([7]),
        torch.tensor([[3]]),
        torch.tensor([1]),
        torch.tensor([[5]]),
        torch.tensor([1]),
    )
    model, loss_of = begun(monkeypatch, LOG, detach_target=detach, cond_dropout=0.0)
    loss_of(batch).backward()
    gradient = model.table.vectors.weight.grad
    assert bool((gradient[3] != 0).any())  # the history's item learns either way
    assert bool((gradient[5] != 0).any()) != detach


# --- sampling ------------------------------------------------------------------------------------


@torch.no_grad()
def test_one_step_is_the_guided_prediction_from_pure_noise() -> None:
    model = made(num_inference_steps=1, guidance_scale=3.0)
    shown = histories()
    noise = KeyedNoise(5, shown.users).normal(1, D)
    (draw,) = draws_of(model, shown, 5, 1)
    for row, scores in enumerate(draw):
        condition = last_state(model, shown.items[row, : int(shown.lengths[row])].tolist())
        with_condition = predicted(model, noise[row, 0], T - 1, condition)
        without = predicted(model, noise[row, 0], T - 1, model.null_condition)
        guided = 4 * with_condition - 3 * without
        logits = model.table.vectors.weight[1:] @ guided / D**0.5
        torch.testing.assert_close(scores[1:], torch.softmax(logits, 0), rtol=1e-4, atol=1e-6)
        assert scores[0] == 0


@pytest.mark.parametrize("steps, eta", [(T, 1.0), (5, 1.0), (5, 0.0)])
@torch.no_grad()
def test_a_denoiser_that_knows_the_item_generates_it(steps, eta) -> None:
    model = made(num_inference_steps=steps, eta=eta, guidance_scale=0.0)
    shown = histories()
    # a network that passes the condition on, which is the state of the history
    model.denoiser[0].weight.zero_()
    model.denoiser[0].bias.zero_()
    model.denoiser[0].weight[:, D : 2 * D] = torch.eye(D)
    generated = model.states(shown, 0, 2) * D**0.5
    for row, n in enumerate(shown.lengths.tolist()):
        known = last_state(model, shown.items[row, :n].tolist())
        for draw in range(2):
            torch.testing.assert_close(generated[row, draw], known, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_draws_average_to_the_score_and_depend_on_nobody_else() -> None:
    model = made(n_draws=3)
    shown = histories()
    whole = model.score(shown, 1)
    draws = draws_of(model, shown, 1)
    assert len(draws) == 3
    assert len(draws_of(model, shown, 1, 5)) == 5
    torch.testing.assert_close(whole, draws.mean(0))
    alone = Histories(shown.users[1:2], shown.items[1:2, :2], shown.lengths[1:2])
    torch.testing.assert_close(model.score(alone, 1)[0], whole[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(model.score(shown, 2), whole)


# --- learning ------------------------------------------------------------------------------------


def test_embeddings_begin_as_standard_normal() -> None:
    log = SequenceDataset.from_lists([[*range(1, 3000)]])
    vectors = built(DreamRec(**SETTINGS), log).table.embeddings().detach()
    assert not vectors[0].any()
    assert float(vectors[1:].std()) == pytest.approx(1, rel=0.02)


def test_a_fixed_table_stays_and_the_cosine_is_recorded(random_log) -> None:
    split = leave_one_out(random_log)
    quick = SETTINGS | {"epochs": 2}
    fixed = DreamRec(train_items=False, **quick).fit(split.train, split.valid)
    learned = DreamRec(**quick).fit(split.train, split.valid)
    cosines = [epoch.watched["mean pairwise cosine"] for epoch in fixed.curve]
    assert len(cosines) == 2
    assert cosines[0] == cosines[1] == pytest.approx(mean_cosine(fixed.table.embeddings()[1:]))
    norms = [epoch.watched["mean norm"] for epoch in fixed.curve]
    expected = fixed.table.embeddings()[1:].square().sum(1).sqrt().mean().item()
    assert norms == pytest.approx([expected] * 2)
    moving = [epoch.watched["mean pairwise cosine"] for epoch in learned.curve]
    assert moving[0] != moving[1]
    assert not learned.table.embeddings()[0].any()


ENCODERS = [{}, {"encoder": "gru", "encoder_settings": {"hidden_dim": 24}}]


@pytest.mark.parametrize("encoder", ENCODERS, ids=str)
def test_learns_the_cycle(encoder) -> None:
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
        **encoder,
    ).fit(split.train)
    scores = model.score(histories_of(split.test.histories, np.arange(len(split.test))))
    hits = scores[:, 1:].argmax(1).numpy() + 1 == split.test.targets
    assert hits.mean() > 0.9


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
        ({"dim": 9, "n_heads": 3}, "dim: must be a multiple of 2, got 9"),
        ({"num_inference_steps": 50}, "num_inference_steps 50 is more than the 40 steps there are"),
        ({"num_train_timesteps": 10}, "outside \\(0, 1\\)"),
        ({"n_draws": 0}, "n_draws: .*greater than or equal to 1, got 0"),
        (
            {"num_inference_steps": 1, "eta": 0.5},
            "eta = 0.5 has no effect with num_inference_steps = 1: it needs more than 1",
        ),
        (
            {"train_items": False, "detach_target": False},
            "detach_target = False has no effect with train_items = False",
        ),
    ],
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(DreamRec, SETTINGS | settings, message)


def test_an_encoder_that_sees_the_targets_learns_the_newest_alone(monkeypatch) -> None:
    monkeypatch.setattr(GRUEncoder, "sees", "both")
    message = "encoder 'gru' looks ahead and would see the targets of a sequence: set targets to"
    assert_refused(DreamRec, SETTINGS | {"encoder": "gru"}, message)
    DreamRec(**SETTINGS | {"encoder": "gru", "targets": "last"})
