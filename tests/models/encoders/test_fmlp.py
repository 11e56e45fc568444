"""FMLP-Rec's encoder against its equations, with each filter as the convolution that it is."""

import numpy as np
import pytest
import torch

from diffuserec.data import SequenceDataset
from diffuserec.errors import ConfigError
from diffuserec.models.encoders import ENCODERS, last_states
from diffuserec.models.encoders.fmlp import FMLPEncoder
from diffuserec.models.methods import find_recommender

from .by_hand import gelu, linear, norm

D = 6


def encoder(max_len: int, dropout: float = 0.0) -> FMLPEncoder:
    """Small, with weights large enough that every part matters."""
    torch.manual_seed(0)
    kind = ENCODERS.find("fmlp")
    model = kind(D, max_len, dropout, kind.Config())
    model.reset_parameters()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    assert isinstance(model, FMLPEncoder)
    return model.eval()


def kernel(spectrum: np.ndarray, length: int) -> np.ndarray:
    """The real sequence of that half spectrum (F, D), as a sum of cosines and sines."""
    found = np.zeros((length, spectrum.shape[1]))
    for f, weights in enumerate(spectrum):
        angle = 2 * np.pi * f / length * np.arange(length)[:, None]
        twice = 1 if f == 0 or 2 * f == length else 2  # the other half of the spectrum
        sines = 0 if twice == 1 else weights.imag * np.sin(angle)
        found += twice * (weights.real * np.cos(angle) - sines) / length
    return found


def by_hand(model: FMLPEncoder, items: np.ndarray) -> np.ndarray:
    """States of one sequence of embeddings (n, D)."""
    n, length = len(items), model.max_len
    padding = model.get_buffer("padding").numpy()
    x = np.concatenate([np.tile(padding, (length - n, 1)), items])
    x = norm(x + model.positions.weight.detach().numpy(), model.norm)
    for layer in model.layers:
        parts = layer.spectrum.detach().double().numpy()
        weights = kernel(parts[..., 0] + 1j * parts[..., 1], length)
        filtered = np.array(
            [sum(weights[s] * x[(t - s) % length] for s in range(length)) for t in range(length)]
        )
        x = norm(filtered + x, layer.norm_filter)
        x = norm(linear(gelu(linear(x, layer.widen)), layer.narrow) + x, layer.norm_forward)
    return x[length - n :]


@pytest.mark.parametrize("max_len", [8, 9])
@torch.no_grad()
def test_states_are_those_of_the_equations(max_len: int) -> None:
    model = encoder(max_len)
    lengths = torch.tensor([5, max_len, 1])
    embedded = torch.randn(3, max_len, D)
    states, newest = model(embedded, lengths), model.newest(embedded, lengths)
    for row, n in enumerate(lengths.tolist()):
        expected = by_hand(model, embedded[row, :n].double().numpy())
        np.testing.assert_allclose(states[row, :n], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(newest[row], expected[-1], rtol=1e-4, atol=1e-5)
    cut = model.newest(embedded[:, :5], torch.tensor([5, 3, 1]))
    torch.testing.assert_close(cut[0], newest[0])


def test_the_newest_state_has_the_gradients_of_all() -> None:
    model = encoder(9)
    lengths = torch.tensor([5, 9, 1, 0])
    embedded, pull = torch.randn(4, 9, D), torch.randn(4, D)
    found = []
    for states in (model.newest, lambda e, n: last_states(model(e, n), n)):
        model.zero_grad()
        given = embedded.clone().requires_grad_()
        (states(given, lengths)[:3] * pull[:3]).sum().backward()
        found.append([given.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.any()


@torch.no_grad()
def test_dropout_is_on_in_training_alone() -> None:
    model, embedded, lengths = encoder(9, dropout=0.5), torch.randn(1, 9, D), torch.tensor([9])
    assert torch.equal(model(embedded, lengths), model(embedded, lengths))
    model.train()
    assert not torch.equal(model(embedded, lengths), model(embedded, lengths))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    kind = ENCODERS.find("fmlp")
    model = kind(400, 20, 0.5, kind.Config())
    model.reset_parameters()
    for drawn in (model.positions.weight, model.layers[0].spectrum, model.layers[1].spectrum):
        assert drawn.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.get_buffer("padding").std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.layers[1].widen.bias.any()


def test_every_position_sees_all_and_so_only_prefixes_are_trained_on(
    cycle: SequenceDataset,
) -> None:
    model, embedded = encoder(9), torch.randn(1, 9, D, requires_grad=True)
    model(embedded, torch.tensor([9]))[0, 0].sum().backward()
    assert embedded.grad[0].any(1).all()
    sasrec = find_recommender("sasrec")
    with pytest.raises(ConfigError, match="encoder 'fmlp' looks ahead"):
        sasrec(encoder="fmlp")
    settings = {"dim": 8, "max_len": 6, "epochs": 1, "batch_size": 64}
    sasrec(encoder="fmlp", examples="prefixes", **settings).fit(cycle)
    find_recommender("bert4rec")(encoder="fmlp", **settings).fit(cycle)
