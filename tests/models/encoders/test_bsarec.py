"""BSARec's encoder against its equations, written out position by position."""

import numpy as np
import pytest
import torch

from diffuserec.models.encoders import ENCODERS, last_states
from diffuserec.models.encoders.bsarec import BSARecEncoder

from .by_hand import gelu, linear, norm

D, W = 6, 9


def encoder(dropout: float = 0.0, **own: float) -> BSARecEncoder:
    """Small, with weights large enough that attention is not uniform."""
    torch.manual_seed(0)
    kind = ENCODERS.find("bsarec")
    model = kind(D, W, dropout, kind.Config(**{"n_heads": 2, "attention_dropout": 0.0} | own))
    model.reset_parameters()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    assert isinstance(model, BSARecEncoder)
    return model.eval()


def by_hand(model: BSARecEncoder, items: np.ndarray, alpha: float, n_low: int) -> np.ndarray:
    """States of one sequence of embeddings (n, D), by eqs. 3 to 10 and the released code's mask."""
    n = len(items)
    padding = model.get_buffer("padding").numpy()
    x = np.concatenate([np.tile(padding, (W - n, 1)), items])
    x = norm(x + model.positions.weight.detach().numpy(), model.norm)
    for layer in model.layers:
        spectrum = np.fft.rfft(x, axis=0)
        spectrum[n_low:] = 0
        low = np.fft.irfft(spectrum, n=W, axis=0)
        filtered = low + layer.beta.detach().numpy() ** 2 * (x - low)
        parts = np.split(linear(x, layer.query_key_value), 3, axis=1)
        query, key, value = (part.reshape(W, 2, D // 2) for part in parts)
        attended = np.zeros((W, 2, D // 2))
        for i in range(W):
            is_pad = i < W - n
            seen = list(range(W)) if is_pad else list(range(W - n, i + 1))
            for head in range(2):
                logits = np.array([query[i, head] @ key[j, head] for j in seen])
                weights = np.exp(logits / np.sqrt(D / 2))
                attended[i, head] = weights / weights.sum() @ value[seen, head]
        branch = norm(linear(attended.reshape(W, D), layer.out) + x, layer.norm_attention)
        mixed = alpha * norm(filtered + x, layer.norm_filter) + (1 - alpha) * branch
        network = linear(gelu(linear(mixed, layer.widen)), layer.narrow)
        x = norm(network + mixed, layer.norm_forward)
    return x[W - n :]


@pytest.mark.parametrize(("alpha", "n_low"), [(0.7, 3), (0.2, 1), (0.5, 5)])
@torch.no_grad()
def test_states_are_those_of_the_equations(alpha: float, n_low: int) -> None:
    model = encoder(alpha=alpha, n_low=n_low)
    lengths = torch.tensor([5, W, 1])
    embedded = torch.randn(3, W, D)
    states = model(embedded, lengths)
    newest = model.newest(embedded, lengths)
    for row, n in enumerate(lengths.tolist()):
        expected = by_hand(model, embedded[row, :n].double().numpy(), alpha, n_low)
        np.testing.assert_allclose(states[row, :n], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(newest[row], expected[-1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_shorter_batch_and_more_items_than_fit() -> None:
    model = encoder()
    embedded = torch.randn(2, W, D)
    whole = model.newest(embedded, torch.tensor([3, 4]))
    cut = model.newest(embedded[:, :4], torch.tensor([3, 4]))
    torch.testing.assert_close(cut, whole)


def test_the_newest_state_has_the_gradients_of_all() -> None:
    model = encoder()
    lengths = torch.tensor([5, W, 1, 0])
    embedded = torch.randn(4, W, D)
    pull = torch.randn(4, D)
    found = []
    for states in (model.newest, lambda e, n: last_states(model(e, n), n)):
        model.zero_grad()
        given = embedded.clone().requires_grad_()
        (states(given, lengths)[:3] * pull[:3]).sum().backward()
        found.append([given.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_empty_history_has_a_state_of_its_own() -> None:
    model = encoder(n_layers=1)
    given = torch.randn(1, 4, D, requires_grad=True)
    state = model.newest(given, torch.tensor([0]))
    assert torch.isfinite(state).all()
    state.sum().backward()
    assert not given.grad.any()
    assert model.positions.weight.grad.any(1).all()


def test_every_position_sees_all_and_so_only_prefixes_are_trained_on() -> None:
    model = encoder()
    embedded = torch.randn(1, W, D, requires_grad=True)
    model(embedded, torch.tensor([W]))[0, 0].sum().backward()
    assert embedded.grad[0].any(1).all()
    assert model.sees == "both"


def test_initial_weights() -> None:
    torch.manual_seed(0)
    kind = ENCODERS.find("bsarec")
    model = kind(400, 20, 0.5, kind.Config())
    model.reset_parameters()
    assert model.positions.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.get_buffer("padding").std().item() == pytest.approx(0.02, rel=0.1)
    assert model.layers[0].beta.std().item() == pytest.approx(1, rel=0.1)
    assert not model.layers[1].widen.bias.any()
