"""Guidance: steering a denoiser while sampling, without training it again.

Guidance is defined on the predicted noise. Since x_0 = (x_t - sqrt(1 - alpha_bar) eps) /
sqrt(alpha_bar), the same can be said about x_0, which is what samplers see:

- classifier-free: eps = (1 + g) eps_c - g eps_u. The weights sum to 1, so the very same combination
  holds for x_0 (and for velocities).
- classifier: eps - g sqrt(1 - alpha_bar) grad log p becomes
  x_0 + g (1 - alpha_bar) / sqrt(alpha_bar) grad log p: *towards* higher log p.

Sources:
    Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", NeurIPS 2021: algorithm 2.
    Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022: eq. 6.
    Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", ICLR 2023:
    eq. 7-8, the classifier evaluated at the estimate of x_0.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuserec.models.diffusion.samplers import Denoise, Network
from diffuserec.models.diffusion.schedule import NoiseSchedule

ConditionalNetwork = Callable[
    [Float[Tensor, "B ..."], Int[Tensor, " B"], Float[Tensor, "B ..."]], Float[Tensor, "B ..."]
]
"""`(x_t, t, condition) -> prediction` of any prediction type."""

LogProb = Callable[[Float[Tensor, "B ..."], Int[Tensor, " B"]], Float[Tensor, " B"]]
"""`(x, t) -> log p`, row by row: row i must depend on row i of x only."""


def classifier_free_network(
    network: ConditionalNetwork,
    condition: Float[Tensor, "B ..."],
    null_condition: Float[Tensor, "..."],
    scale: float,
) -> Network:
    """Guides by the difference a condition makes: (1 + scale) conditional - scale unconditional.

    Both come from one call on a doubled batch per step.

    Args:
        network: Takes `(x_t, t, condition)`; any prediction type.
        condition: One row per row of x_t.
        null_condition: What stands for "no condition"; broadcast to the shape of `condition`.
        scale: Guidance scale. 0 calls the network on the conditional batch only.

    Returns:
        A network `(x_t, t) -> prediction`, of the same prediction type.
    """
    if scale == 0:
        return lambda x_t, t: network(x_t, t, condition)
    both = torch.cat([condition, null_condition.expand_as(condition)])

    def guided(x_t: Float[Tensor, "B ..."], t: Int[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        prediction = network(torch.cat([x_t, x_t]), torch.cat([t, t]), both)
        n = condition.shape[0]
        conditional, unconditional = prediction[:n], prediction[n:]
        return (1 + scale) * conditional - scale * unconditional

    return guided


def classifier_guidance(
    denoise: Denoise,
    log_prob: LogProb,
    schedule: NoiseSchedule,
    scale: float,
    at: Literal["x_t", "x_0"] = "x_t",
) -> Denoise:
    """Guides by the gradient of a classifier, taken with respect to x_t.

    The gradient is weighted by (1 - alpha_bar) / sqrt(alpha_bar), which grows without bound with
    the noise: a classifier whose gradient does not vanish there throws the first steps far out.

    Args:
        denoise: The denoiser to guide.
        log_prob: log p(label | x) per row, up to a constant.
        schedule: The schedule that the denoiser was trained with.
        scale: Guidance scale; 0 is the denoiser itself, 1 the exact posterior if log_prob is.
        at: Where the classifier looks. "x_t": at the noisy vectors, for a classifier that knows
            noise. "x_0": at the denoiser's estimate, for one trained on clean data; the gradient
            then goes through the denoiser.

    Raises:
        ValueError: If `at` is neither.
    """
    if at not in ("x_t", "x_0"):
        raise ValueError(f"classifier guidance works at 'x_t' or 'x_0', got {at!r}")
    if scale == 0:
        return denoise

    def guided(x_t: Float[Tensor, "B ..."], t: Int[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        # Samplers run without gradients, callers perhaps in inference mode: both end here, and
        # the clones are what autograd accepts from inside inference mode.
        with torch.inference_mode(False), torch.enable_grad():
            t = t.clone()
            x = x_t.detach().clone().requires_grad_()
            if at == "x_0":
                x_0 = denoise(x, t)
                log_p = log_prob(x_0, t)
            else:
                log_p = log_prob(x, t)
            (gradient,) = torch.autograd.grad(log_p.sum(), x)
        x_0 = x_0.detach() if at == "x_0" else denoise(x_t, t)
        signal_scale, noise_scale = schedule.signal_and_noise(t, x_t)
        return x_0 + scale * noise_scale.square() / signal_scale * gradient

    return guided
