"""The bound of masked diffusion against distributions that can be written down in full."""

import itertools
import math

import numpy as np
import pytest
import torch

from diffuserec.models.diffusion import draw_masks, draw_masks_alike

JOINT = np.random.default_rng(5).dirichlet(np.full(3**4, 0.5)).reshape(3, 3, 3, 3)
"""Of four values that depend on each other."""


def conditional(x: tuple[int, ...], position: int, masked: frozenset[int]) -> float:
    """Probability of x[position], given the values of x that are not masked."""
    seen = tuple(slice(None) if i in masked else x[i] for i in range(4))
    slab = JOINT[seen]
    axis = sorted(masked).index(position)
    return float(np.moveaxis(slab, axis, 0)[x[position]].sum() / slab.sum())


def loss_of(x: tuple[int, ...], masked: frozenset[int]) -> float:
    return -sum(math.log(conditional(x, i, masked)) for i in masked)


def draw_alike(region: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Masks that count alike, and the weight H_n of them all."""
    harmonic = torch.tensor([sum(1 / k for k in range(1, n + 1)) for n in range(10)])
    return draw_masks_alike(region, generator), harmonic[region.sum(1)]


WAYS = pytest.mark.parametrize("draw", [draw_masks, draw_alike])


def drawn(draw, region: list[bool], n: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.tensor(region).expand(n, -1)
    return draw(rows, torch.Generator().manual_seed(0))


def bound(draw, x: tuple[int, ...], region: list[bool]) -> tuple[float, float]:
    """The mean of weighted losses over many draws, and its standard error."""
    masks, weights = drawn(draw, region, 20_000)
    losses = {}
    for size in range(1, 5):
        for chosen in itertools.combinations([i for i in range(4) if region[i]], size):
            losses[frozenset(chosen)] = loss_of(x, frozenset(chosen))
    found = np.array(
        [
            weight * losses[frozenset(np.flatnonzero(mask))]
            for mask, weight in zip(masks.numpy(), weights.tolist(), strict=True)
        ]
    )
    return found.mean(), found.std() / math.sqrt(len(found))


@WAYS
def test_with_all_conditionals_known_the_bound_is_the_likelihood(draw) -> None:
    for x in ((0, 0, 0, 0), (2, 1, 0, 2)):
        mean, error = bound(draw, x, [True] * 4)
        assert abs(mean + math.log(JOINT[x])) < 4 * error


@WAYS
def test_outside_the_region_all_is_given(draw) -> None:
    x = (1, 2, 0, 1)
    mean, error = bound(draw, x, [True, True, False, False])
    given = JOINT[:, :, 0, 1]
    assert abs(mean + math.log(given[1, 2] / given.sum())) < 4 * error
    masks, _ = drawn(draw, [False, True, False, True], 500)
    assert not masks[:, [0, 2]].any()


@WAYS
def test_sets_of_masks_weigh_as_the_integral_over_t_says(draw) -> None:
    n = 4
    masks, weights = drawn(draw, [True] * n, 300_000)
    t = (np.arange(200_000) + 0.5) / 200_000
    for size in range(1, n + 1):
        for chosen in itertools.combinations(range(n), size):
            is_set = torch.tensor([i in chosen for i in range(n)])
            found = weights[(masks == is_set).all(1)].double().sum() / len(masks)
            # a set's weight is 1/t, and its chance t^m (1 - t)^(n - m), in the mean over t
            right = (t ** (size - 1) * (1 - t) ** (n - size)).mean()
            assert abs(float(found) / right - 1) < 0.03  # some five standard errors


@WAYS
def test_every_row_has_a_mask_and_the_same_draw_comes_again(draw) -> None:
    region = torch.rand(50, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    region[:, 3] = True
    masks, _ = draw(region, torch.Generator().manual_seed(2))
    assert masks.any(1).all()
    assert not (masks & ~region).any()
    again, _ = draw(region, torch.Generator().manual_seed(2))
    assert torch.equal(again, masks)
    nothing, _ = draw(torch.zeros(3, 9, dtype=torch.bool), torch.Generator())
    assert not nothing.any()


def test_weights_are_what_may_be_masked_by_what_is() -> None:
    region = torch.arange(6) < torch.arange(1, 7).repeat(50)[:, None]
    masks, weights = draw_masks(region, torch.Generator())
    torch.testing.assert_close(weights, region.sum(1) / masks.sum(1))
