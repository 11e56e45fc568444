"""Drawn steps: range, distribution, pairs, and the generator."""

import pytest
import torch
from scipy import stats

from diffuserec.diffusion import antithetic, uniform


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("draw", [uniform, antithetic])
@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("n_steps", [1, 2, 5, 1000])
def test_any_number_of_steps_in_range(draw, n, n_steps):
    t = draw(n, n_steps, seeded())

    assert t.shape == (n,)
    assert t.dtype == torch.int64
    assert ((t >= 0) & (t < n_steps)).all()


@pytest.mark.parametrize("draw", [uniform, antithetic])
@pytest.mark.parametrize("row", [0, 2, 3, 4])
def test_every_row_is_uniform(draw, row):
    generator = seeded(1)
    drawn = torch.stack([draw(5, 10, generator)[row] for _ in range(4000)])

    assert stats.chisquare(drawn.bincount(minlength=10).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("n", [2, 9, 10])
def test_antithetic_pairs_mirror_each_other(n):
    t = antithetic(n, 100, seeded(2))
    half = (n + 1) // 2

    assert (t[: n - half] + t[half:] == 99).all()
    assert len(t[:half].unique()) > 1 or half == 1


def test_antithetic_batches_have_a_steadier_mean():
    generator = seeded(3)

    def spread(draw):
        return torch.stack([draw(8, 100, generator).float().mean() for _ in range(500)]).std()

    assert spread(uniform) > 5
    assert spread(antithetic) < 1e-3


@pytest.mark.parametrize("draw", [uniform, antithetic])
def test_the_generator_decides(draw):
    assert torch.equal(draw(50, 100, seeded(4)), draw(50, 100, seeded(4)))
    assert not torch.equal(draw(50, 100, seeded(4)), draw(50, 100, seeded(5)))
