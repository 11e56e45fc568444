"""Embeddings of the diffusion step against their formulas."""

import math

import pytest
import torch

from diffuserec.models.step_embeddings import interleaved_sinusoidal, sinusoidal


@pytest.mark.parametrize("dim", [1, 2, 5, 12])
def test_interleaved_sines_and_cosines_by_hand(dim):
    steps = [0.0, 1.0, 2.5, 1000.0]
    expected = torch.zeros(len(steps), dim)
    for row, n in enumerate(steps):
        for column in range(dim):
            angle = n / 10_000 ** (2 * (column // 2) / dim)
            expected[row, column] = math.cos(angle) if column % 2 else math.sin(angle)
    ours = interleaved_sinusoidal(torch.tensor(steps), dim)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-4)  # float32 angles up to 1000
    torch.testing.assert_close(ours[:3], expected[:3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [4, 6, 12])
def test_sines_then_cosines_by_hand(dim):
    half = dim // 2
    for n in (0, 1, 7):
        angles = [n * 10_000 ** (-column / (half - 1)) for column in range(half)]
        expected = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
        found = sinusoidal(torch.tensor([n]), dim)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dim", [2, 5])
def test_a_width_without_sines_and_cosines_is_refused(dim):
    with pytest.raises(ValueError, match=f"even width of at least 4, got {dim}"):
        sinusoidal(torch.tensor([1]), dim)
