"""VSAN: the loss written out, the weight of its divergence through a resume."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffuserec.training import loop as training
from diffuserec.models.base import Run
from diffuserec.data import histories_of, leave_one_out
from diffuserec.errors import ConfigError
from diffuserec.recommenders.vsan import VSAN

from .oracles import GAP as BATCH
from .oracles import LOG, D, V, shaken

SETTINGS = {
    "dim": D,
    "max_len": 8,
    "n_heads": 2,
    "dropout": 0.0,
    "batch_size": 8,
    "epochs": 1,
    "kl_weight": 0.6,
    "kl_annealing_steps": 40,
}


def begun(monkeypatch, **settings):
    """A model, not trained, and the loss that its fit would minimize."""
    taken = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_next_item", lambda _, loss, *__, **___: taken.append(loss))
        model = VSAN(**SETTINGS | settings).fit(LOG)
    return shaken(model), taken[0]


# --- the loss ----------------------------------------------------------------------------------


def latent_by_hand(model: VSAN, items: list[int]):
    states = model.encoder(torch.tensor([items]), torch.tensor([len(items)]))[0]
    mean = states @ model.mean.weight.T + model.mean.bias
    return mean, states @ model.log_variance.weight.T + model.log_variance.bias


def generated(model: VSAN, z):
    for block in model.generative:
        z = block(z[None])[0]
    return z


def loss_by_hand(model: VSAN, noise, beta: float):
    """One sequence after the other, without its padding."""
    predicted, divergences = [], []
    for row, length in enumerate(BATCH.lengths.tolist()):
        mean, log_variance = latent_by_hand(model, BATCH.items[row, :length].tolist())
        deviation = torch.exp(0.5 * log_variance)
        states = generated(model, mean + deviation * noise[row, :length])
        scores = torch.log_softmax(states @ model.encoder.items.weight[1:].T, 1)
        ahead = BATCH.targets[row].tolist()
        for place in range(length):
            for target in ahead[place : place + model.config.n_targets]:
                if target:
                    predicted.append(-scores[place, target - 1])
        prior = Normal(torch.zeros(D), torch.ones(D))
        divergences += [*kl_divergence(Normal(mean, deviation), prior).sum(1)]
    assert len(divergences) == 10
    return torch.stack(predicted).mean() + beta * torch.stack(divergences).mean()


@pytest.mark.parametrize("n_updates, beta", [(0, 0.0), (10, 0.15), (40, 0.6), (4000, 0.6)])
@pytest.mark.parametrize(
    "settings", [{}, {"n_targets": 3}, {"n_targets": 9, "n_generative_layers": 2}], ids=str
)
def test_the_loss_written_out(monkeypatch, settings, n_updates, beta) -> None:
    model, loss = begun(monkeypatch, **settings)
    model.n_updates.fill_(n_updates)
    torch.manual_seed(3)
    noise = torch.randn(*BATCH.items.shape, D)
    torch.manual_seed(3)
    ours, theirs = loss(BATCH), loss_by_hand(model, noise, beta)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    names, parameters = zip(*model.named_parameters(), strict=True)
    mine, expected = (
        torch.autograd.grad(value, parameters, materialize_grads=True) for value in (ours, theirs)
    )
    for name, one, other in zip(names, mine, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-4, msg=name)


def test_noise_is_drawn_anew_in_training_and_never_for_scores(monkeypatch) -> None:
    model, loss = begun(monkeypatch)
    torch.manual_seed(1)
    assert loss(BATCH) != loss(BATCH)
    shown = histories_of(LOG, np.arange(3))
    scores = model.score(shown, seed=1)
    assert torch.equal(model.score(shown, seed=2), scores)
    for row, items in enumerate(([*range(6, V)], [3, 1], [5, 2, 6])):
        state = generated(model, latent_by_hand(model, items)[0])[-1]
        torch.testing.assert_close(scores[row], model.encoder.items.weight @ state)


def test_noise_is_small_at_first() -> None:
    model = VSAN(dim=64)
    model.begin(LOG, Run())
    with torch.no_grad():
        mean, log_variance = model._latent(BATCH.items, BATCH.lengths)
    assert 0.7 < mean[BATCH.items > 0].std() < 1.4
    assert ((log_variance / 2).exp() - np.exp(-2)).abs().max() < 1e-6


def test_no_position_sees_a_later_one(monkeypatch) -> None:
    model, _ = begun(monkeypatch)
    states = [
        model._states(model._latent(torch.tensor([items]), torch.tensor([5]))[0])[0]
        for items in ([3, 1, 4, 1, 5], [3, 1, 9, 2, 7], [8, 1, 4, 1, 5])
    ]
    torch.testing.assert_close(states[0][:2], states[1][:2])
    assert ((states[0] - states[1])[2:].abs().amax(1) > 1e-3).all()
    assert ((states[0] - states[2]).abs().amax(1) > 1e-3).all()


# --- fitting -----------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_the_weight_where_it_was(
    monkeypatch, random_log, tmp_path
) -> None:
    split = leave_one_out(random_log)
    model = {"epochs": 3, "patience": 10, "learning_rate": 0.01}
    whole = VSAN(**SETTINGS | model).fit(split.train, split.valid)
    n_batches = len([*training.training_batches(split.train, 8, 8, 0, 0)])
    assert n_batches > 1
    assert int(whole.n_updates) in [n * n_batches for n in (1, 2, 3)]  # that of the best epoch
    run = Run(checkpoint=tmp_path)
    n_scored = 0
    score = VSAN.score

    def interrupted(self, histories, seed=0):
        nonlocal n_scored
        n_scored += 1
        if n_scored == 2:  # after the second epoch's updates
            raise KeyboardInterrupt
        return score(self, histories, seed)

    with monkeypatch.context() as patch:
        patch.setattr(VSAN, "score", interrupted)
        with pytest.raises(KeyboardInterrupt):
            VSAN(**SETTINGS | model).fit(split.train, split.valid, run)
    n_scored = -10
    monkeypatch.setattr(VSAN, "score", interrupted)  # which counts, and no more
    resumed = VSAN(**SETTINGS | model)
    resumed.fit(split.train, split.valid, Run(checkpoint=tmp_path, resume=True))
    assert n_scored == -8  # the second and the third epoch
    assert [record.loss for record in resumed.curve] == [record.loss for record in whole.curve]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "bce"},
        {"loss": "gbce", "n_targets": 2},
        {"loss": "sampled_softmax"},
        {"rows": "windows", "max_len": 4, "n_targets": 4},
        {"rows": "prefixes", "kl_annealing_steps": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_loss_and_row_fits(random_log, settings, precision) -> None:
    model = VSAN(**SETTINGS | {"batch_size": 64, "dropout": 0.3} | settings)
    model.begin(random_log, Run())
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.fit(random_log, run=Run(precision=precision))
    assert np.isfinite(model.curve[0].loss)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), name
    assert model.gives_logits == (settings.get("loss", "softmax") in ("softmax", "sampled_softmax"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kl_weight": -1}, "kl_weight: .*greater than or equal to 0, got -1"),
        ({"kl_annealing_steps": 0}, "kl_annealing_steps: .*greater than or equal to 1, got 0"),
        ({"n_targets": 2, "rows": "prefixes"}, "n_targets 2 needs rows='users' or 'windows'"),
        ({"n_generative_layers": 0}, "n_generative_layers: .*greater than or equal to 1, got 0"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(settings, message) -> None:
    with pytest.raises(ConfigError, match=message) as refusal:
        VSAN(**SETTINGS | settings)
    assert "\n" not in str(refusal.value)
