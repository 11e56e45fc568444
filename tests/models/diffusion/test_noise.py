"""Keyed noise: exactly the documented numbers, well distributed, and the same in any batch."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from diffuserec.models.diffusion import KeyedNoise

torch.set_num_threads(1)

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def finalize(word):
    """SplitMix64's finalizer in Python's integers."""
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def unfinalize(word):
    """Inverse of the finalizer: both its multipliers are odd, and a shift gives back its bits."""
    word ^= word >> 31 ^ word >> 62
    word = word * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    word ^= word >> 27 ^ word >> 54
    word = word * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return word ^ word >> 30 ^ word >> 60


def key_of(word, seed=0):
    """Key whose first number of the first draw is made of this word."""
    row = unfinalize(unfinalize(word) - GOLDEN & MASK) - GOLDEN
    key = (unfinalize(row & MASK) - finalize(seed)) * pow(GOLDEN, -1, 2**64) & MASK
    return key - 2**64 if key >= 2**63 else key


def words_of(seed, key, draw, n):
    row = finalize((finalize(seed & MASK) + key * GOLDEN) & MASK)
    stream = finalize((row + (draw + 1) * GOLDEN) & MASK)
    return [finalize((stream + (j + 1) * GOLDEN) & MASK) for j in range(n)]


def pair_of(word):
    """Two normals from a word, in double precision, from the angle itself."""
    upper, lower = word >> 32, word & 0xFFFFFFFF
    radius = math.sqrt(-2 * math.log((upper + 0.5) / 2**32))
    angle = ((lower & (2**30 - 1)) + 0.5) / 2**30 * math.pi / 2
    return (
        radius * math.cos(angle) * (-1 if lower >> 31 else 1),
        radius * math.sin(angle) * (-1 if lower >> 30 & 1 else 1),
    )


def test_the_reference_hash_is_splitmix64():
    # The published first outputs for seed 1234567, and the first for seed 0.
    outputs = [finalize((1234567 + (i + 1) * GOLDEN) & MASK) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert finalize(GOLDEN) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("seed", [0, 7, -3, 2**63, 2**64 - 1, 10**30])
def test_numbers_are_the_documented_ones(seed):
    keys = [0, 1, 2, -5, 2**62]
    noise = KeyedNoise(seed, torch.tensor(keys))
    normals, uniforms = noise.normal(21), noise.uniform(4, 2)

    for i, key in enumerate(keys):
        expected = [x for word in words_of(seed, key, 0, 11) for x in pair_of(word)][:21]
        torch.testing.assert_close(normals[i], torch.tensor(expected), rtol=2e-6, atol=2e-6)
        halves = [h for w in words_of(seed, key, 1, 4) for h in (w >> 32, w & 0xFFFFFFFF)]
        assert uniforms[i].flatten().tolist() == [(half >> 8) / 2**24 for half in halves]


def test_the_transform_is_accurate_at_its_ends():
    corners = [0, 2**29 - 1, 2**29, 2**30 - 1, 2**30, 2**31, 2**32 - 1]
    radii = [0, 1, 2, 2**23, 2**31 - 1, 2**31, 3037000499, 2**32 - 2**12]
    words = [upper << 32 | lower for upper in radii for lower in corners]
    keys = [key_of(word) for word in words]
    assert [words_of(0, key, 0, 1) for key in keys] == [[word] for word in words]
    found = KeyedNoise(0, torch.tensor(keys)).normal(2)

    torch.testing.assert_close(
        found, torch.tensor([pair_of(w) for w in words]), rtol=2e-6, atol=3e-6
    )
    assert KeyedNoise(0, torch.tensor([key_of(MASK)])).normal(2).abs().max() < 1e-3


def test_normals_are_normal():
    sample = KeyedNoise(0, torch.arange(500)).normal(400).flatten().numpy().astype(np.float64)

    assert stats.kstest(sample, "norm").pvalue > 1e-3
    assert abs(sample.mean()) < 4 / math.sqrt(200_000)
    assert abs(sample.var() - 1) < 4 * math.sqrt(2 / 200_000)
    assert abs(stats.kurtosis(sample)) < 4 * math.sqrt(24 / 200_000)
    assert (np.abs(sample) > 3).mean() == pytest.approx(0.0026998, rel=0.2)


def test_uniforms_are_uniform():
    sample = KeyedNoise(0, torch.arange(500)).uniform(400).flatten().numpy()

    assert stats.kstest(sample, "uniform").pvalue > 1e-3
    assert 0 <= sample.min() < sample.max() < 1


def worst_correlation(rows):
    """Largest correlation between two rows, of the values and of their sizes."""
    worst = 0.0
    for values in (rows, rows.abs()):
        correlations = torch.corrcoef(values.double())
        worst = max(worst, (correlations - torch.eye(len(rows))).abs().max().item())
    return worst


@pytest.mark.parametrize("keys", [range(60), range(0, 60 * 2**32, 2**32), range(-30, 30)])
def test_keys_are_uncorrelated(keys):
    rows = KeyedNoise(0, torch.tensor(list(keys))).normal(20_000)

    assert worst_correlation(rows) < 5 / math.sqrt(20_000)


def test_draws_seeds_and_elements_are_uncorrelated():
    noise = KeyedNoise(0, torch.tensor([3]))
    draws = torch.cat([noise.normal(20_000) for _ in range(40)])
    seeds = torch.cat([KeyedNoise(seed, torch.tensor([3])).normal(20_000) for seed in range(40)])
    elements = KeyedNoise(0, torch.arange(20_000)).normal(40).T

    for rows in (draws, seeds, elements):
        assert worst_correlation(rows) < 5 / math.sqrt(20_000)


def test_a_seed_is_not_a_shifted_key_nor_a_shifted_draw():
    keys = torch.arange(50)
    blocks = []
    for seed in range(4):
        noise = KeyedNoise(seed, keys)
        blocks += [noise.uniform(20), noise.uniform(20), noise.uniform(20)]

    everything = torch.cat(blocks).flatten()
    # 12,000 values of 2^24: about 4 chance collisions.
    assert len(everything.unique()) > len(everything) - 25


# the last two are made in several pieces: of rows, and of a single row
@pytest.mark.parametrize("shape", [(1,), (7,), (4, 3), (33, 5), (20_000,), (140_001,)])
def test_a_row_does_not_depend_on_the_batch(shape):
    keys = torch.tensor([9, 2, 77, 5, 13, 1, 0, 40, 8])

    def two_draws(keys):
        noise = KeyedNoise(6, keys)
        return noise.normal(*shape), noise.uniform(*shape), noise.normal(*shape)

    together = two_draws(keys)
    for rows in ([4], [8, 0], [1, 1, 6], list(range(9))):
        for whole, part in zip(together, two_draws(keys[rows]), strict=True):
            assert torch.equal(whole[rows], part)


def test_an_element_does_not_depend_on_the_shape():
    keys = torch.arange(4)
    longest = KeyedNoise(2, keys).normal(30)

    assert torch.equal(KeyedNoise(2, keys).normal(11), longest[:, :11])
    assert torch.equal(KeyedNoise(2, keys).normal(5, 6), longest.view(4, 5, 6))
    assert torch.equal(KeyedNoise(2, keys.to(torch.int32)).normal(), longest[:, 0])


def test_draws_advance_and_repeat_from_the_start():
    keys = torch.arange(3)
    noise, again = KeyedNoise(1, keys), KeyedNoise(1, keys)
    first, second = noise.normal(8), noise.normal(8)

    assert not torch.equal(first, second)
    assert torch.equal(again.normal(8), first)
    assert torch.equal(again.normal(8), second)
    assert not torch.equal(KeyedNoise(2, keys).normal(8), first)


def test_shapes_and_types():
    noise = KeyedNoise(0, torch.arange(3))

    assert noise.normal(2, 5).shape == (3, 2, 5)
    assert noise.normal().shape == (3,)
    assert noise.normal(0, 4).shape == (3, 0, 4)
    assert KeyedNoise(0, torch.arange(0)).uniform(4).shape == (0, 4)
    assert noise.normal(2).dtype == noise.uniform(2).dtype == torch.float32
