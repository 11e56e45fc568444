"""ACVAE: its posterior in loops, its three losses, whom each update moves, what its draws see."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec import Runtime
from diffuserec.data import Batch, Histories, training_batches
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.models.encoders.gru import GRUEncoder
from diffuserec.recommenders.acvae import ACVAE, Adversary

from .oracles import (
    GAP,
    V,
    assert_refused,
    assert_same,
    states_by_hand,
    untrained,
    with_its_loss,
)

D = 8
SETTINGS = {
    "dim": D,
    "hidden_dim": 6,
    "max_len": 8,
    "dropout": 0.0,
    "batch_size": 8,
    "epochs": 1,
}
BATCH = GAP
TARGETS = [(0, 0), (0, 2), (0, 3), (0, 4), (0, 5), (1, 0), (1, 1), (1, 2), (2, 0)]
made = partial(untrained, ACVAE, SETTINGS)
begun = partial(with_its_loss, ACVAE, SETTINGS)


def test_the_targets_are_those_of_the_batch() -> None:
    assert (BATCH.targets > 0).nonzero().tolist() == [list(target) for target in TARGETS]


def z_by_hand(model: ACVAE, states: torch.Tensor, noise: torch.Tensor, position: int):
    """z at a position, from the five states that end there; noise is by position + 4."""
    posterior, mixed = model.posterior, []
    for at in range(position - 4, position + 1):
        if at < 0:
            mixed.append(torch.zeros(D))
            continue
        first, second = torch.tanh(posterior.noise(noise[at + 4]))
        mixed.append(F.gelu(posterior.mix(states[at] + first)) + second)
    weight = posterior.convolution.weight.view(2 * D, D, 5)
    near = posterior.convolution.bias + sum(weight[:, :, n] @ mixed[n] for n in range(5))
    return posterior.out(states[position] + F.gelu(posterior.narrow(F.gelu(near))))


# --- the posterior -----------------------------------------------------------------------------


def test_z_is_a_causal_convolution_of_noised_states() -> None:
    model = made()
    torch.manual_seed(1)
    noise = torch.randn(3, 10, 2, D)
    torch.manual_seed(1)
    x, z = model.draw_latents(BATCH)
    for row, position in TARGETS:
        items = BATCH.items[row, : position + 1].tolist()  # later items have no part in it
        expected = z_by_hand(model, states_by_hand(model, items), noise[row], position)
        torch.testing.assert_close(z[row, position], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(x[row, position], model.table.vectors.weight[items[-1]])


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_draws_decode_z_at_the_newest_item(tied) -> None:
    model = made(n_draws=2, tied=tied)
    histories = Histories(torch.tensor([7, 3, 9]), BATCH.items, BATCH.lengths)
    draws = [draw.clone() for draw in model.scorer(histories, seed=4).draws(slice(0, V))]
    assert len(draws) == 2
    vectors = (model.table if tied else model.output).vectors.weight
    for row, n in enumerate(BATCH.lengths.tolist()):
        keyed = KeyedNoise(4, histories.users[row : row + 1])
        states = states_by_hand(model, BATCH.items[row, :n].tolist())
        for draw in draws:
            noise = torch.zeros(n + 4, 2, D)
            noise[n - 1 :] = keyed.normal(5, 2, D)[0]
            decoded = model.decoder(z_by_hand(model, states, noise, n - 1))
            expected = torch.softmax(vectors[1:] @ decoded, 0)
            torch.testing.assert_close(draw[row, 1:], expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(model.score(histories, 4), sum(draws) / 2)
    assert not torch.equal(draws[0], draws[1])
    assert model.states(histories, 4, 5).shape == (3, 5, D)


@pytest.mark.parametrize("tied", [True, False])
def test_an_untied_decoder_has_a_table_of_its_own(tied) -> None:
    model = made(tied=tied)
    histories = Histories(torch.tensor([1]), torch.tensor([[2, 5]]), torch.tensor([2]))
    with torch.no_grad():
        before = model.score(histories)
        model.table.vectors.weight[9] += 1  # of an item that the history does not hold
        assert torch.equal(model.score(histories), before) != tied


# --- the losses --------------------------------------------------------------------------------


def test_the_adversary_finds_the_log_density_ratio() -> None:
    # q = N(m, 1) and p = N(0, 1): log q - log p = m·z - |m|²/2, whose mean over q is |m|²/2
    torch.manual_seed(0)
    mean = torch.tensor([1.0, -0.5])
    model = Adversary(2)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(400):
        z, x = mean + torch.randn(512, 2), torch.zeros(512, 2)
        of_prior = model(x, torch.randn(512, 2))
        loss = (F.softplus(-model(x, z)) + F.softplus(of_prior)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = mean + torch.randn(20_000, 2)
        found = model(torch.zeros(20_000, 2), z)
    assert float(found.mean()) == pytest.approx(1.25 / 2, abs=0.08)
    expected = z @ mean - 1.25 / 2
    assert float(torch.corrcoef(torch.stack([found, expected]))[0, 1]) > 0.97


def losses_by_hand(model: ACVAE, x: torch.Tensor, z: torch.Tensor):
    """Next item, KL and C, one position at a time."""
    predicted, divergence, own, other = [], [], [], []
    vectors = (model.output or model.table).vectors.weight
    for row, position in TARGETS:
        logits = vectors[1:] @ model.decoder(z[row, position])
        target = BATCH.targets[row, position]
        predicted.append(-torch.log_softmax(logits, 0)[target - 1])
        # KL does not move x, but z moves with it
        ratio = model.adversary(x[row, position].detach()[None], z[row, position][None])[0]
        divergence.append(ratio)
        before = slice(0, position + 1)
        own.append(F.softplus(-model.critic(x[row, before][None], z[row, before][None])[0, -1]))
        if ((row - 1) % 3, position) in TARGETS:
            judged = model.critic(x[row, before][None], z[row - 1, before][None])
            other.append(F.softplus(judged[0, -1]))
    means = [torch.stack(terms).mean() for terms in (predicted, divergence, own, other)]
    return means[0], means[1], means[2] + means[3]


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_is_the_weighted_sum_of_three(monkeypatch, tied) -> None:
    weights = {"kl_weight": 0.3, "contrast_weight": 0.7}
    model, updates = begun(monkeypatch, tied=tied, **weights)
    torch.manual_seed(3)
    predicted, divergence, contrast = losses_by_hand(model, *model.draw_latents(BATCH))
    expected = predicted + 0.3 * divergence + 0.7 * contrast
    torch.manual_seed(3)
    assert_same(model, updates[0].loss(BATCH), expected)


def test_the_adversary_distinguishes_drawn_z_from_the_prior(monkeypatch) -> None:
    model, updates = begun(monkeypatch)
    torch.manual_seed(3)
    x, z = (values.detach() for values in model.draw_latents(BATCH))
    prior = torch.randn(len(TARGETS), D)
    losses = []
    for position, of_prior in zip(TARGETS, prior, strict=True):
        drawn = z[position], of_prior
        logits = [model.adversary(x[position][None], of[None])[0] for of in drawn]
        one, zero = (torch.sigmoid(logit.double()) for logit in logits)
        losses.append(-torch.log(one) - torch.log(1 - zero))
    torch.manual_seed(3)
    loss = updates[1].loss(BATCH)
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_a_sequence_alone_has_no_contrast(monkeypatch) -> None:
    alone = Batch(**{name: tensor[:1] for name, tensor in BATCH.tensors.items()})
    losses = []
    for weight in (5.0, 0.0):
        _, updates = begun(monkeypatch, kl_weight=0.0, contrast_weight=weight)
        torch.manual_seed(1)
        losses.append(updates[0].loss(alone))
    assert torch.equal(*losses)


# --- the updates -------------------------------------------------------------------------------


class Recorder(torch.optim.AdamW):
    """AdamW that notes which of its parameters each step changes, and its groups."""

    changed: list[set[int]]
    groups: list[tuple[int, float, float]]

    def step(self, closure=None):
        groups = self.param_groups
        Recorder.groups = [(len(g["params"]), g["lr"], g["weight_decay"]) for g in groups]
        parameters = [p for group in groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        found = super().step(closure)
        pairs = zip(parameters, before, strict=True)
        self.changed.append({id(p) for p, b in pairs if not torch.equal(p, b)})
        return found


def test_model_and_adversary_take_turns(monkeypatch, random_log) -> None:
    Recorder.changed = []
    monkeypatch.setattr(torch.optim, "AdamW", Recorder)
    settings = {"adversary_learning_rate": 0.02, "adversary_weight_decay": 0.3, "tied": False}
    model = ACVAE(**SETTINGS | settings).fit(random_log)
    adversary = {id(parameter) for parameter in model.adversary.parameters()}
    rest = {id(parameter) for parameter in model.parameters()} - adversary
    n_batches = sum(1 for _ in training_batches(random_log, 8, 8, 0, 0))
    assert Recorder.changed == [rest, adversary] * n_batches
    assert Recorder.groups == [(len(rest), 1e-3, 0.01), (len(adversary), 0.02, 0.3)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": False},
        {"kl_weight": 0.0, "contrast_weight": 0.0},
        {"encoder": "transformer", "encoder_settings": {"n_layers": 1, "n_heads": 2}},
        {"encoder": "caser"},
    ],
    ids=str,
)
def test_every_option_fits_in_bfloat16(random_log, settings) -> None:
    own = {} if settings.get("encoder", "gru") == "gru" else {"hidden_dim": 128}
    model = ACVAE(**SETTINGS | own | settings).fit(random_log, runtime=Runtime(precision="bf16"))
    assert np.isfinite(model.curve[0].loss)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not model.item_weight()[0].any()
    assert not model.table.embeddings()[0].any()


def test_a_batch_of_one_is_refused() -> None:
    assert_refused(ACVAE, {"batch_size": 1}, r"batch_size: .*greater than or equal to 2, got 1")


def test_an_encoder_that_sees_the_targets_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(GRUEncoder, "sees", "both")
    assert_refused(ACVAE, {}, "encoder 'gru' looks ahead and would see the targets of a sequence")
