"""The causal form of BSARec's layers against its definition and against the published form."""

import math

import numpy as np
import pytest
import torch

from diffuserec.models.encoders import ENCODERS, last_states
from diffuserec.models.encoders.bsarec_causal import CausalBSARecEncoder, causal_smoothing

D, W = 6, 9


def encoder(**own: float) -> CausalBSARecEncoder:
    torch.manual_seed(0)
    kind = ENCODERS.find("bsarec_causal")
    model = kind(D, W, 0.0, kind.Config(**{"n_heads": 2, "attention_dropout": 0.0} | own))
    model.reset_parameters()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    assert isinstance(model, CausalBSARecEncoder)
    return model.eval()


@pytest.mark.parametrize("n_low", [1, 3, 5])
def test_weights_of_the_filter_are_those_of_the_formula(n_low: int) -> None:
    found = causal_smoothing(W, n_low)
    for later in range(W):
        for earlier in range(W):
            n = later - earlier
            waves = sum(math.cos(2 * math.pi * f * n / W) for f in range(1, n_low))
            expected = (1 + 2 * waves) / W if n >= 0 else 0.0
            assert found[later, earlier].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n_low", [1, 3, 5])
def test_the_newest_of_a_full_history_is_filtered_as_published(n_low: int) -> None:
    x = np.random.default_rng(0).standard_normal((W, D))
    spectrum = np.fft.rfft(x, axis=0)
    spectrum[n_low:] = 0
    low = np.fft.irfft(spectrum, n=W, axis=0)
    np.testing.assert_allclose(
        causal_smoothing(W, n_low)[-1].double().numpy() @ x, low[-1], atol=1e-6
    )


@torch.no_grad()
def test_one_layer_of_filter_alone_equals_the_published_one() -> None:
    published = ENCODERS.find("bsarec")
    own = published.Config(n_layers=1, n_heads=1, attention_dropout=0.0, alpha=1.0)
    one = published(D, W, 0.0, own).eval()
    one.reset_parameters()
    one.positions.weight.zero_()
    kind = ENCODERS.find("bsarec_causal")
    other = kind(D, W, 0.0, kind.Config(**own.model_dump())).eval()
    other.load_state_dict(
        {
            **other.state_dict(),
            **{k: v for k, v in one.state_dict().items() if k in other.state_dict()},
        }
    )
    embedded = torch.randn(2, W, D)
    lengths = torch.tensor([W, W])
    torch.testing.assert_close(other(embedded, lengths)[:, -1], one.newest(embedded, lengths))


@torch.no_grad()
def test_a_state_depends_on_no_later_item_and_on_all_earlier_ones() -> None:
    model = encoder()
    embedded = torch.randn(1, W, D)
    states = model(embedded, torch.tensor([W]))
    for changed in range(W):
        other = embedded.clone()
        other[:, changed, 0] += 1
        moved = (model(other, torch.tensor([W])) - states)[0].abs().amax(1)
        assert not moved[:changed].any()
        assert (moved[changed:] > 0).all()


@torch.no_grad()
def test_a_prefix_has_the_state_that_it_has_in_the_whole() -> None:
    model = encoder()
    embedded = torch.randn(1, W, D)
    whole = model(embedded, torch.tensor([W]))
    torch.testing.assert_close(model(embedded[:, :4], torch.tensor([4])), whole[:, :4])


@torch.no_grad()
def test_distance_of_positions_matters_to_attention() -> None:
    model = encoder(alpha=0.0)
    embedded = torch.randn(1, 2, D).repeat(1, 2, 1)[:, :3]  # a b a
    before = model(embedded, torch.tensor([3]))[0, 2]
    model.distances.weight[2] += 5
    assert not torch.allclose(model(embedded, torch.tensor([3]))[0, 2], before)


def test_the_newest_state_is_that_of_all_and_so_are_its_gradients() -> None:
    model = encoder(n_layers=2)
    lengths, pull = torch.tensor([7, 4, 1, 0]), torch.randn(4, D)
    given = torch.randn(4, 7, D)
    found = []
    for states in (model.newest, lambda e, n: last_states(model(e, n), n)):
        model.zero_grad()
        embedded = given.clone().requires_grad_()
        (states(embedded, lengths) * pull).sum().backward()
        found.append([embedded.grad, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
