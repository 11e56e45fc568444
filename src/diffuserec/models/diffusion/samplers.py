"""Samplers: from noise back to data, given anything that estimates the clean x_0.

A sampler only ever sees `denoise(x_t, t) -> x_0`. Conditions are bound by closure, guidance is a
wrapper (`guidance.py`), and networks that predict noise or velocity are turned into a denoiser by
`denoise_with`. Whatever the number of steps, the first visited step is the noisiest and the last
transition ends at the clean estimate itself.

Sources:
    Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020: algorithm 2,
    which is `Sampler` with eta = 1 and all steps.
    Song, Meng and Ermon, "Denoising Diffusion Implicit Models", ICLR 2021: eq. 12 and 16, which is
    `Sampler`.
    Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
    2022: algorithm 2 (2M), which is `DPMSolver`.
    Lin et al., "Common Diffusion Noise Schedules and Sample Steps Are Flawed", WACV 2024: why
    sampling must start at the last step, and the spacing used here.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffuserec.models.diffusion.schedule import (
    NoiseSchedule,
    PredictionType,
    check_prediction_type,
)

Denoise = Callable[[Float[Tensor, "B ..."], Int[Tensor, " B"]], Float[Tensor, "B ..."]]
"""`(x_t, t) -> x_0`: the estimate of the clean vectors."""

Network = Callable[[Float[Tensor, "B ..."], Int[Tensor, " B"]], Float[Tensor, "B ..."]]
"""`(x_t, t) -> prediction`: noise, velocity or x_0, as its prediction type says."""

Draw = Callable[..., Float[Tensor, "B ..."]]
"""`draw(*row_shape) -> (B, *row_shape)`: standard normal noise, as `KeyedNoise.normal` gives."""


_INSTEAD: ContextVar[Callable[[Denoise, Tensor], Tensor] | None] = ContextVar(
    "_INSTEAD", default=None
)


@contextmanager
def sampling_by(sample: Callable[[Denoise, Tensor], Tensor]) -> Iterator[None]:
    """Within it, every :class:`Sampler` gives what this makes of its denoiser and x_T.

    For whoever wants a denoiser alone, with all that is bound to it.
    """
    token = _INSTEAD.set(sample)
    try:
        yield
    finally:
        _INSTEAD.reset(token)


def denoise_with(
    network: Network, schedule: NoiseSchedule, prediction_type: PredictionType
) -> Denoise:
    """Turns a network of any prediction type into a denoiser.

    Raises:
        ValueError: If the prediction type is unknown.
    """
    check_prediction_type(prediction_type)
    if prediction_type == "sample":
        return network

    def denoise(x_t: Float[Tensor, "B ..."], t: Int[Tensor, " B"]) -> Float[Tensor, "B ..."]:
        return schedule.x_0_from(network(x_t, t), x_t, t, prediction_type)

    return denoise


def timesteps(num_inference_steps: int, num_train_timesteps: int) -> list[int]:
    """The steps a sampler visits, in order: strictly decreasing from T - 1.

    The gaps are as even as integers allow, and the last transition, from the last visited step to
    clean data, counts as one of them: 5 of 1000 steps are 999, 799, 599, 399, 199, then clean.
    Going down to step 0 instead would spend a whole network call on removing next to no noise, and
    make `DPMSolver` extrapolate across a gap in log signal-to-noise ratio that is far too wide.

    Raises:
        ValueError: If `num_inference_steps` is not in 1..T.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must be between 1 and the {num_train_timesteps} steps there are "
            f"to sample from, got {num_inference_steps}"
        )
    return [
        num_train_timesteps * left // num_inference_steps - 1
        for left in range(num_inference_steps, 0, -1)
    ]


@dataclass(frozen=True)
class Sampler:
    """First-order sampling: deterministic DDIM, ancestral DDPM, and all between.

    Attributes:
        num_inference_steps: Calls of the denoiser, 1..T.
        eta: Share of fresh noise in [0, 1]. 0 is DDIM: the result is a function of x_T. 1 is
            DDPM: with all T steps, each one samples the posterior (Ho et al., eq. 6-7).
    """

    num_inference_steps: int
    eta: float = 0.0

    def __post_init__(self) -> None:
        _check_steps(self.num_inference_steps)
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be between 0 (DDIM) and 1 (DDPM), got {self.eta}")

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        x_T: Float[Tensor, "B *rest"],
        schedule: NoiseSchedule,
        draw: Draw | None = None,
        from_step: int | None = None,
    ) -> Float[Tensor, "B *rest"]:
        """Samples x_0.

        Args:
            denoise: Estimates x_0 from x_t and t.
            x_T: Where to start: standard normal noise or, with `from_step`, noised data.
            schedule: The schedule that the denoiser was trained with.
            draw: Source of standard normal noise, called with the shape of one row; only asked
                when `eta` > 0.
            from_step: How many noising steps x_T went through, 1..T: start at step
                `from_step - 1`, from `schedule.add_noise(x_0, noise, from_step - 1)`, and spread
                the inference steps over what is left. All T when left out.

        Raises:
            ValueError: If there are more inference steps than steps to sample from, or noise is
                needed and `draw` is missing or returns another shape.
        """
        if self.eta > 0 and draw is None:
            raise ValueError(f"eta = {self.eta} adds fresh noise at every step: pass draw")
        instead = _INSTEAD.get()
        if instead is not None:
            return instead(denoise, x_T)
        x = x_T
        for t, alpha_bar, next_alpha_bar in _path(self.num_inference_steps, schedule, from_step):
            x_0 = denoise(x, _per_row(t, x))
            if next_alpha_bar == 1.0:
                return x_0
            variance = (
                self.eta**2
                * (1 - alpha_bar / next_alpha_bar)
                * (1 - next_alpha_bar)
                / (1 - alpha_bar)
            )
            kept = math.sqrt(max(0.0, 1 - next_alpha_bar - variance) / (1 - alpha_bar))
            x = kept * x + (math.sqrt(next_alpha_bar) - kept * math.sqrt(alpha_bar)) * x_0
            if self.eta > 0 and draw is not None:
                noise = draw(*x.shape[1:])
                if noise.shape != x.shape:
                    raise ValueError(
                        f"draw returned shape {tuple(noise.shape)}, expected {tuple(x.shape)}"
                    )
                x = x + math.sqrt(variance) * noise.to(x)
        raise AssertionError("a path always ends clean")


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++ (2M): deterministic and second-order, for few steps.

    It follows the same curve as DDIM but extrapolates the estimate of x_0 linearly in the log
    signal-to-noise ratio from the last two calls. The first step has nothing to extrapolate from,
    and the last one ends at an infinite ratio: both are first-order.

    Attributes:
        num_inference_steps: Calls of the denoiser, 1..T.
    """

    num_inference_steps: int

    def __post_init__(self) -> None:
        _check_steps(self.num_inference_steps)

    @torch.no_grad()
    def __call__(
        self,
        denoise: Denoise,
        x_T: Float[Tensor, "B *rest"],
        schedule: NoiseSchedule,
        draw: Draw | None = None,
        from_step: int | None = None,
    ) -> Float[Tensor, "B *rest"]:
        """Samples x_0; arguments as for `Sampler`. Deterministic, so `draw` is never asked."""
        x = x_T
        last: tuple[Tensor, float] | None = None
        for t, alpha_bar, next_alpha_bar in _path(self.num_inference_steps, schedule, from_step):
            x_0 = denoise(x, _per_row(t, x))
            if next_alpha_bar == 1.0:
                return x_0
            width = _log_snr(next_alpha_bar) - _log_snr(alpha_bar)
            estimate = x_0
            if last is not None:
                last_x_0, last_width = last
                estimate = x_0 + (width / (2 * last_width)) * (x_0 - last_x_0)
            kept = math.sqrt((1 - next_alpha_bar) / (1 - alpha_bar))
            x = kept * x + (math.sqrt(next_alpha_bar) - kept * math.sqrt(alpha_bar)) * estimate
            last = x_0, width
        raise AssertionError("a path always ends clean")


def _check_steps(num_inference_steps: int) -> None:
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")


def _path(
    num_inference_steps: int, schedule: NoiseSchedule, from_step: int | None
) -> list[tuple[int, float, float]]:
    """(t, alpha_bar at t, alpha_bar at the next step) for each call; the last ends at 1."""
    n = schedule.num_train_timesteps
    if from_step is None:
        from_step = n
    elif not 1 <= from_step <= n:
        raise ValueError(f"from_step must be between 1 and T = {n}, got {from_step}")
    steps = timesteps(num_inference_steps, from_step)
    alpha_bars = [schedule.levels[step] for step in steps]
    return list(zip(steps, alpha_bars, [*alpha_bars[1:], 1.0], strict=True))


def _per_row(t: int, x: Float[Tensor, "B ..."]) -> Int[Tensor, " B"]:
    return torch.full(x.shape[:1], t, dtype=torch.int64, device=x.device)


def _log_snr(alpha_bar: float) -> float:
    return 0.5 * (math.log(alpha_bar) - math.log1p(-alpha_bar))
