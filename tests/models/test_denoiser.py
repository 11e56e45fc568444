"""The denoiser of sequences: what each position sees, and its arithmetic without blocks."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffuserec.models.denoiser import SequenceDenoiser
from diffuserec.models.encoders.transformer import TransformerEncoder

D, L = 12, 7
FULL = torch.tensor([L])


def denoiser(n_layers=2) -> SequenceDenoiser:
    torch.manual_seed(0)
    made = SequenceDenoiser(D, n_layers, 3, 10, 0.5)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def causal_encoder() -> TransformerEncoder:
    torch.manual_seed(0)
    made = TransformerEncoder(D, 10, 0.0, TransformerEncoder.Config(n_heads=3))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def noised(*shape):
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("position", range(L))
@torch.no_grad()
def test_a_restored_position_sees_all_others(position):
    model, x_t, t = denoiser(), noised(1, L), torch.tensor([3])
    changed = x_t.clone()
    changed[0, position, 0] += 2
    difference = (model(x_t, t, FULL) - model(changed, t, FULL)).abs().amax(2)
    assert (difference > 1e-4).all()


@torch.no_grad()
def test_padding_restores_nothing_else():
    model, x_t, t = denoiser(), noised(3, 5), torch.tensor([3, 0, 900])
    lengths = torch.tensor([5, 2, 1])
    restored = model(x_t, t, lengths)
    other = x_t.clone()
    other[1, 2:] = 7
    other[2, 1:] = -7
    wider = torch.cat([other, torch.full((3, 4, D), 9.0)], dim=1)
    for row, length in enumerate(lengths.tolist()):
        expected = restored[row, :length]
        for padded in (other, wider, x_t[:, :length]):
            found = model(padded[row : row + 1], t[row : row + 1], lengths[row : row + 1])
            torch.testing.assert_close(found[0, :length], expected, rtol=0, atol=1e-5)
        together = model(wider, t, lengths)[row, :length]
        torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_step_reaches_every_restored_position():
    model, x_t = denoiser(), noised(1, L)
    early, late = (model(x_t, torch.tensor([t]), FULL) for t in (1, 500))
    assert ((early - late).abs().amax(2) > 1e-3).all()


@torch.no_grad()
def test_without_blocks_the_restored_is_the_normed_sum_of_noised_step_and_position():
    model, x_t = denoiser(n_layers=0), noised(1, L)
    # sines and cosines of 3 at frequencies from 1 to 1e-4, then two layers with x·σ(x) between
    angles = [3 * 10_000 ** (-column / 5) for column in range(6)]
    sinusoid = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
    first, _, second = model.of_step
    widened = first.weight @ sinusoid + first.bias
    step = second.weight @ (widened * torch.sigmoid(widened)) + second.bias
    total = x_t + step + model.positions.weight[:L]
    expected = F.layer_norm(total, (D,), model.norm.weight, model.norm.bias)
    torch.testing.assert_close(model(x_t, torch.tensor([3]), FULL), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_lent_blocks_look_both_ways_and_stay_causal_in_their_encoder():
    model, owner, x_t, t = denoiser(n_layers=0), causal_encoder(), noised(1, L), torch.tensor([3])
    before = owner(x_t, FULL)
    changed = x_t.clone()
    changed[0, -1, 0] += 2
    restored = model(x_t, t, FULL, owner.layers)
    difference = (restored - model(changed, t, FULL, owner.layers)).abs().amax(2)
    assert (difference > 1e-4).all()
    assert torch.equal(owner(x_t, FULL), before)
    assert torch.equal(owner(changed, FULL)[0, :-1], before[0, :-1])


@torch.no_grad()
def test_lent_blocks_are_used_instead_of_its_own():
    owner, x_t, t = causal_encoder(), noised(2, L), torch.tensor([3, 8])
    lengths = torch.tensor([L, 4])
    bare = denoiser(n_layers=0)
    full = denoiser(n_layers=1)
    full.load_state_dict(bare.state_dict(), strict=False)
    expected = bare(x_t, t, lengths, owner.layers)
    assert torch.equal(full(x_t, t, lengths, owner.layers), expected)
    assert not torch.equal(full(x_t, t, lengths), expected)
