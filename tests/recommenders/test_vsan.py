"""VSAN: the loss written out, the weight of its divergence through a resume."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffuserec import Runtime
from diffuserec.data import Batch, SequenceDataset, histories_of, leave_one_out, training_batches
from diffuserec.recommenders.vsan import VSAN

from .oracles import GAP as BATCH
from .oracles import (
    LOG,
    D,
    V,
    assert_fits,
    assert_refused,
    assert_same,
    built,
    states_by_hand,
    with_its_loss,
)

SETTINGS = {
    "dim": D,
    "max_len": 8,
    "examples": "per_user",
    "n_heads": 2,
    "dropout": 0.0,
    "batch_size": 8,
    "epochs": 1,
    "kl_weight": 0.6,
    "kl_annealing_steps": 40,
}


begun = partial(with_its_loss, VSAN, SETTINGS)
GRU = {"encoder": "gru", "encoder_settings": {"hidden_dim": 5}}


# --- the loss ----------------------------------------------------------------------------------


def latent_by_hand(model: VSAN, items: list[int]):
    states = states_by_hand(model, items)
    mean = states @ model.mean.weight.T + model.mean.bias
    return mean, states @ model.log_variance.weight.T + model.log_variance.bias


def generated(model: VSAN, z):
    for block in model.generative:
        z = block(z[None])[0]
    return z


def loss_by_hand(model: VSAN, batch: Batch, noise, beta: float):
    """One sequence after the other, without its padding."""
    predicted, divergences = [], []
    for sequence, length in enumerate(batch.lengths.tolist()):
        mean, log_variance = latent_by_hand(model, batch.items[sequence, :length].tolist())
        deviation = torch.exp(0.5 * log_variance)
        states = generated(model, mean + deviation * noise[sequence, :length])
        scores = torch.log_softmax(states @ model.table.vectors.weight[1:].T, 1)
        ahead = batch.targets[sequence].tolist()
        for position in range(length):
            for target in ahead[position : position + model.config.n_targets]:
                if target:
                    predicted.append(-scores[position, target - 1])
        prior = Normal(torch.zeros(D), torch.ones(D))
        divergences += [*kl_divergence(Normal(mean, deviation), prior).sum(1)]
    assert len(divergences) == 10
    return torch.stack(predicted).mean() + beta * torch.stack(divergences).mean()


@pytest.mark.parametrize("n_updates, beta", [(0, 0.0), (10, 0.15), (40, 0.6), (4000, 0.6)])
@pytest.mark.parametrize(
    "settings", [{}, {"n_targets": 3}, {"n_targets": 9, "n_generative_layers": 2}, GRU], ids=str
)
def test_the_loss_written_out(monkeypatch, settings, n_updates, beta) -> None:
    model, loss = begun(monkeypatch, **settings)
    model.n_updates.fill_(n_updates)
    torch.manual_seed(3)
    noise = torch.randn(*BATCH.items.shape, D)
    torch.manual_seed(3)
    theirs = loss_by_hand(model, BATCH, noise, beta)
    assert_same(model, loss(BATCH), theirs, allow_unused=True)


def test_noise_is_drawn_anew_in_training_and_never_for_scores(monkeypatch) -> None:
    model, loss = begun(monkeypatch)
    torch.manual_seed(1)
    assert loss(BATCH) != loss(BATCH)
    shown = histories_of(LOG, np.arange(3))
    scores = model.score(shown, seed=1)
    assert torch.equal(model.score(shown, seed=2), scores)
    for items, found in zip(([*range(6, V)], [3, 1], [5, 2, 6]), scores, strict=True):
        state = generated(model, latent_by_hand(model, items)[0])[-1]
        torch.testing.assert_close(found, model.table.vectors.weight @ state)


def test_noise_is_small_at_first() -> None:
    model = built(VSAN(dim=64), LOG)
    with torch.no_grad():
        states = model.encode(BATCH.items, BATCH.lengths)
        mean, log_variance = model.mean(states), model.log_variance(states)
    assert 0.7 < mean[BATCH.items > 0].std() < 1.4
    assert ((log_variance / 2).exp() - np.exp(-2)).abs().max() < 1e-6


@pytest.mark.parametrize("settings", [{}, GRU], ids=str)
def test_no_position_sees_a_later_one(monkeypatch, settings) -> None:
    model, _ = begun(monkeypatch, **settings)
    found = []
    model.generative[-1].register_forward_hook(lambda *call: found.append(call[-1]))
    log = SequenceDataset.from_lists([[3, 1, 4, 1, 5], [3, 1, 9, 2, 7], [8, 1, 4, 1, 5]])
    model.score(histories_of(log, np.arange(3)))
    (states,) = found
    torch.testing.assert_close(states[0][:2], states[1][:2])
    assert ((states[0] - states[1])[2:].abs().amax(1) > 1e-3).all()
    assert ((states[0] - states[2]).abs().amax(1) > 1e-3).all()


# --- fitting -----------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_the_weight_where_it_was(random_log, cut_and_resumed) -> None:
    split = leave_one_out(random_log)
    settings = {"epochs": 4, "patience": 10, "learning_rate": 0.01}

    def fitted(**words) -> VSAN:
        return VSAN(**SETTINGS | settings).fit(split.train, split.valid, Runtime(**words))

    whole, resumed = fitted(), cut_and_resumed(fitted)
    n_batches = len([*training_batches(split.train, 8, 8, 0, 0)])
    assert n_batches > 1
    # of the best epoch
    assert int(whole.n_updates) in [n * n_batches for n in (1, 2, 3, 4)]
    assert [record.loss for record in resumed.curve] == [record.loss for record in whole.curve]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "bce"},
        {"loss": "gbce", "n_targets": 2},
        {"loss": "sampled_softmax"},
        {"examples": "windows", "max_len": 4, "n_targets": 4},
        {"examples": "prefixes", "kl_annealing_steps": 1},
        {"encoder": "caser", "n_heads": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_loss_and_example_fits(random_log, settings, precision) -> None:
    settings = SETTINGS | {"batch_size": 64, "dropout": 0.3} | settings
    before = dict(built(VSAN(**settings), random_log).named_parameters())
    model = assert_fits(VSAN, settings, random_log, Runtime(precision=precision))
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kl_weight": -1}, "kl_weight: .*greater than or equal to 0, got -1"),
        ({"kl_annealing_steps": 0}, "kl_annealing_steps: .*greater than or equal to 1, got 0"),
        (
            {"n_targets": 2, "examples": "prefixes"},
            "n_targets 2 needs examples of several targets: 'per_user'",
        ),
        ({"n_generative_layers": 0}, "n_generative_layers: .*greater than or equal to 1, got 0"),
        ({"dim": 10, "n_heads": 3}, "dim 10 is not divisible by n_heads 3"),
        # the generative blocks have heads, too
        ({"encoder": "gru", "n_heads": 3}, "dim 8 is not divisible by n_heads 3"),
        ({"encoder": "gru", "n_layers": 2}, "n_layers = 2 has no effect with encoder = 'gru'"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    assert_refused(VSAN, SETTINGS | settings, message)
