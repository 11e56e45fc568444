"""Discrete diffusion by masks: data whose values disappear one after another.

A sequence of n values loses each to a mask with chance t, which rises from 0 to 1; a network is
asked for the values behind the masks, given the others. The negative evidence lower bound is

    -log p(x) ≤ E_t E_mask [ 1/t · Σ_masked -log p_θ(x_i | what is not masked) ],   t ~ U(0, 1].

The number m of masks is binomial given t, and over t the weight 1/t of one set of m masks
integrates to ∫ 1/t · t^m (1-t)^(n-m) dt = (m-1)! (n-m)! / n! = 1 / (m · C(n, m)): as if m were
drawn uniformly from 1..n, then the set among all of that size, and weighed with n / m. Here it is
drawn that way: no draw has no mask, and no weight is greater than n. Drawn with chance ∝ 1/m
instead, m needs no weight of its own: each set counts H_n = 1 + 1/2 + … + 1/n times its sum,
whatever its size. The bound is the mean over all orders of -log p of filling in one value after
another, so a network that knows all conditional distributions reaches it.

Sources:
    Austin et al., "Structured Denoising Diffusion Models in Discrete State-Spaces", NeurIPS 2021:
    the absorbing state.
    Sahoo et al., "Simple and Effective Masked Diffusion Language Models" (MDLM), NeurIPS 2024, and
    Nie et al., "Large Language Diffusion Models" (LLaDA), 2025: the weight 1/t.
    Hoogeboom et al., "Autoregressive Diffusion Models", ICLR 2022: the form by m, and the orders.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def draw_masks(
    region: Bool[Tensor, "B L"], generator: torch.Generator
) -> tuple[Bool[Tensor, "B L"], Float[Tensor, " B"]]:
    """Masks within the region of each row that may lose values, and the weight of their losses.

    What lies outside the region is never masked: the bound is then that of the region's values
    given the others. The sum over a row's masks of weight · -log p is an unbiased estimate of it.

    Args:
        region: positions that may be masked, on the generator's device.

    Returns:
        The masks, at least one in each row with a region, and n / m for m masks of n positions.
    """
    n = region.sum(1)
    share = torch.rand(len(region), generator=generator, device=region.device)
    m = (share * n).long().clamp(max=n - 1) + 1
    return _chosen(region, m, generator), n / m


def draw_masks_alike(
    region: Bool[Tensor, "B L"], generator: torch.Generator | None = None
) -> Bool[Tensor, "B L"]:
    """Masks as :func:`draw_masks` draws them, but m of n positions with chance 1 / (m · H_n).

    H_n times the sum of -log p over a row's masks is an unbiased estimate of the bound, so that
    among regions of one size all masks count alike.

    Args:
        generator: None takes torch's own.

    Returns:
        The masks, at least one in each row with a region.
    """
    n = region.sum(1)
    steps = torch.arange(1, region.shape[1] + 1, device=region.device)
    harmonic = F.pad((1 / steps).cumsum(0), (1, 0))  # H_0 = 0, H_1, …
    share = torch.rand(len(region), generator=generator, device=region.device)
    m = torch.searchsorted(harmonic, share * harmonic[n], right=True).clamp(max=n)
    return _chosen(region, m, generator)


def _chosen(
    region: Bool[Tensor, "B L"], m: Int[Tensor, " B"], generator: torch.Generator | None
) -> Bool[Tensor, "B L"]:
    """So many random positions of each row's region."""
    order = torch.rand(region.shape, generator=generator, device=region.device)
    rank = order.masked_fill(~region, 2.0).argsort(dim=1).argsort(dim=1)
    return region & (rank < m[:, None])
