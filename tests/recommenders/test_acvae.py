"""ACVAE: its posterior in loops, its three losses, whom each update moves, what its draws see."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffuserec.training import loop as training
from diffuserec.models.base import Run
from diffuserec.data import Batch, Histories, SequenceDataset
from diffuserec.models.diffusion import KeyedNoise
from diffuserec.errors import ConfigError
from diffuserec.recommenders.acvae import ACVAE, _Adversary

V, D = 14, 8
SETTINGS = {"dim": D, "hidden_dim": 6, "max_len": 8, "dropout": 0.0, "batch_size": 8, "epochs": 1}
LOG = SequenceDataset.from_lists([[*range(1, V)], [3, 1], [5, 2, 6]])
BATCH = Batch(
    users=torch.tensor([0, 1, 2]),
    items=torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0], [8, 0, 0, 0, 0, 0]]),
    lengths=torch.tensor([6, 3, 1]),
    targets=torch.tensor([[1, 4, 0, 5, 9, 2], [6, 5, 3, 0, 0, 0], [7, 0, 0, 0, 0, 0]]),
    places=torch.tensor([6, 10, 12]),
)
TARGETS = [(0, 0), (0, 1), (0, 3), (0, 4), (0, 5), (1, 0), (1, 1), (1, 2), (2, 0)]


def made(**settings) -> ACVAE:
    """Begun, with weights so large that no two items are alike."""
    model = ACVAE(**SETTINGS | settings)
    model.begin(LOG, Run(seed=2))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.2 if parameter.ndim == 1 else 0.4, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter += 1
        model.encoder.items.weight[0] = 0
    return model


def z_by_hand(model: ACVAE, states: list[torch.Tensor], noise: torch.Tensor, place: int):
    """z at a place, of the five states that end there; noise is by place + 4."""
    posterior, mixed = model.posterior, []
    for at in range(place - 4, place + 1):
        if at < 0:
            mixed.append(torch.zeros(D))
            continue
        state = states[at]
        first, second = torch.tanh(posterior.noise(noise[at + 4]))
        mixed.append(F.gelu(posterior.mix(state + first)) + second)
    weight = posterior.convolution.weight.view(2 * D, D, 5)
    near = posterior.convolution.bias + sum(weight[:, :, n] @ mixed[n] for n in range(5))
    return posterior.out(states[place] + F.gelu(posterior.narrow(F.gelu(near))))


def states_of(model: ACVAE, items: list[int]) -> list[torch.Tensor]:
    return [*model.encoder(torch.tensor([items]), torch.tensor([len(items)]))[0]]


# --- the posterior -----------------------------------------------------------------------------


def test_z_is_a_causal_convolution_of_noised_states(monkeypatch) -> None:
    model = made()
    noise = torch.randn(3, 10, 2, D, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    x, z = model._drawn(BATCH)
    for row, place in TARGETS:
        items = BATCH.items[row, : place + 1].tolist()  # later items are not told
        expected = z_by_hand(model, states_of(model, items), noise[row], place)
        torch.testing.assert_close(z[row, place], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(x[row, place], model.encoder.items.weight[items[-1]])


@torch.no_grad()
def test_draws_decode_z_at_the_newest_item() -> None:
    model = made(n_draws=2)
    histories = Histories(torch.tensor([7, 3, 9]), BATCH.items, BATCH.lengths)
    draws = [*model.draws(histories, seed=4)]
    for row, n in enumerate(BATCH.lengths.tolist()):
        keyed = KeyedNoise(4, histories.users[row : row + 1])
        states = states_of(model, BATCH.items[row, :n].tolist())
        for draw in draws:
            noise = torch.zeros(n + 4, 2, D)
            noise[n - 1 :] = keyed.normal(5, 2, D)[0]
            decoded = model.decoder(z_by_hand(model, states, noise, n - 1))
            expected = torch.softmax(model.encoder.items.weight[1:] @ decoded, 0)
            torch.testing.assert_close(draw[row, 1:], expected, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(model.score(histories, 4), sum(draws) / 2)
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("tied", [True, False])
def test_an_untied_decoder_has_a_table_of_its_own(tied) -> None:
    model = made(tied=tied)
    histories = Histories(torch.tensor([1]), torch.tensor([[2, 5]]), torch.tensor([2]))
    with torch.no_grad():
        before = model.score(histories)
        model.encoder.items.weight[9] += 1  # which the history does not hold
        assert torch.equal(model.score(histories), before) != tied


# --- the losses --------------------------------------------------------------------------------


def test_the_adversary_finds_the_log_density_ratio() -> None:
    # q = N(m, 1) and p = N(0, 1): log q - log p = m·z - |m|²/2, whose mean over q is |m|²/2
    torch.manual_seed(0)
    mean = torch.tensor([1.0, -0.5])
    model = _Adversary(2)
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
    for row, place in TARGETS:
        logits = model.encoder.items.weight[1:] @ model.decoder(z[row, place])
        target = BATCH.targets[row, place]
        predicted.append(-torch.log_softmax(logits, 0)[target - 1])
        ratio = model.adversary(x[row, place].detach()[None], z[row, place][None])[0]
        divergence.append(ratio)
        before = slice(0, place + 1)
        own.append(F.softplus(-model.critic(x[row, before][None], z[row, before][None])[0, -1]))
        if ((row - 1) % 3, place) in TARGETS:
            judged = model.critic(x[row, before][None], z[row - 1, before][None])
            other.append(F.softplus(judged[0, -1]))
    means = [torch.stack(terms).mean() for terms in (predicted, divergence, own, other)]
    return means[0], means[1], means[2] + means[3]


def test_the_loss_is_the_weighted_sum_of_three(monkeypatch) -> None:
    model = made(kl_weight=0.3, contrast_weight=0.7)
    x = model.encoder.items(BATCH.items)
    z = torch.randn(3, 6, D, generator=torch.Generator().manual_seed(3), requires_grad=True)
    monkeypatch.setattr(model, "_drawn", lambda batch: (x, z))
    loss = model._loss(BATCH)
    predicted, divergence, contrast = losses_by_hand(model, x, z)
    expected = predicted + 0.3 * divergence + 0.7 * contrast
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    parameters = [*model.critic.parameters(), *model.decoder.parameters()]
    places = [z, model.encoder.items.weight, *parameters]  # the adversary does not move x
    for mine, other in zip(
        torch.autograd.grad(loss, places, retain_graph=True),
        torch.autograd.grad(expected, places),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-5)


def test_the_adversary_tells_drawn_z_from_the_prior(monkeypatch) -> None:
    model = made()
    x, z = torch.randn(2, 3, 6, D, generator=torch.Generator().manual_seed(3))
    prior = torch.randn(len(TARGETS), D, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(model, "_drawn", lambda batch: (x, z))
    monkeypatch.setattr(torch, "randn_like", lambda like: prior)
    losses = []
    for place, of_prior in zip(TARGETS, prior, strict=True):
        logits = [model.adversary(x[place][None], of[None])[0] for of in (z[place], of_prior)]
        one, zero = (torch.sigmoid(logit.double()) for logit in logits)
        losses.append(-torch.log(one) - torch.log(1 - zero))
    loss = model._adversary_loss(BATCH)
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_a_row_alone_has_no_contrast() -> None:
    model = made(kl_weight=0.0, contrast_weight=5.0)
    parts = ("users", "items", "lengths", "targets", "places")
    alone = Batch(*(getattr(BATCH, part)[:1] for part in parts))
    torch.manual_seed(1)
    with_contrast = model._loss(alone)
    plain = made(kl_weight=0.0, contrast_weight=0.0)
    torch.manual_seed(1)
    assert torch.equal(with_contrast, plain._loss(alone))


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
    n_batches = sum(1 for _ in training.training_batches(random_log, 8, 8, 0, 0))
    assert Recorder.changed == [rest, adversary] * n_batches
    assert Recorder.groups == [(len(rest), 1e-3, 0.01), (len(adversary), 0.02, 0.3)]


@pytest.mark.parametrize(
    "settings", [{}, {"tied": False}, {"kl_weight": 0.0, "contrast_weight": 0.0}], ids=str
)
def test_every_option_fits_in_bfloat16(random_log, settings) -> None:
    model = ACVAE(**SETTINGS | settings).fit(random_log, run=Run(precision="bf16"))
    assert np.isfinite(model.curve[0].loss)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert not model.table[0].any()


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size: .*greater than or equal to 2, got 1"):
        ACVAE(batch_size=1)
