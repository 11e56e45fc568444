"""Noise schedules: how much of the signal is left after each step, and what follows from that.

A diffusion model corrupts clean vectors x_0 in T steps. The only free choice is the list of
`betas`, the variance that each step adds; everything else here is arithmetic on it, with
`alpha_bar_t = prod(1 - beta)` up to and including step t:

    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise

Steps are counted from 0: `t = 0` is the least noisy step, `t = T - 1` the noisiest, and before
step 0 alpha_bar is 1 (clean data). Tables are float64 because `alpha_bar` spans nine orders of
magnitude and is subtracted from 1; they are cast to the dtype and device of the data when used.

Sources:
    Ho, Jain and Abbeel, "Denoising Diffusion Probabilistic Models", NeurIPS 2020: eq. 4 (forward
    process), linear betas.
    Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", ICML 2021: eq. 17
    (cosine), betas capped at 0.999.
    Li et al., "Diffusion-LM Improves Controllable Text Generation", NeurIPS 2022, appendix A: sqrt.
    Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022:
    v-prediction.
    Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations",
    ICLR 2021, appendix C: the discretized variance-preserving process, here `exp`.
    Li, Sun and Li, "DiffuRec", TOIS 2023: `trunc_linear`.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction"]

MAX_BETA = 0.999
MAX_STEPS = 1_000_000

_Ends = tuple[float, float]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The forward process: T variances and the tables derived from them.

    Methods take batches of any trailing shape with one step per row, `t` in 0..T-1.

    Attributes:
        betas: Variance added at each step, float64, each inside (0, 1).
        alphas: `1 - betas`.
        alpha_bars: Cumulative product of `alphas`: the share of x_0's variance left at step t.
        levels: `alpha_bars` as plain numbers, for code that no graph of tensors follows.

    Raises:
        ValueError: If `betas` is empty, not one-dimensional, or leaves (0, 1).
    """

    betas: Float[Tensor, " T"]
    alphas: Float[Tensor, " T"] = field(init=False, repr=False)
    alpha_bars: Float[Tensor, " T"] = field(init=False, repr=False)
    levels: tuple[float, ...] = field(init=False, repr=False)
    _tables: dict[str, Tensor] = field(init=False, repr=False)
    _cast: dict[tuple[str, torch.dtype, torch.device], Tensor] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        betas = self.betas.detach().to("cpu", torch.float64).clone()
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(
                f"betas must be a non-empty one-dimensional table, got shape {tuple(betas.shape)}"
            )
        invalid = ~((betas > 0) & (betas < 1))
        if invalid.any():
            step = int(invalid.nonzero()[0])
            raise ValueError(
                f"beta at step {step} of {len(betas)} is {betas[step].item():.6g}, outside (0, 1): "
                "use more training steps or smaller betas (linear needs num_train_timesteps > 20)"
            )
        alphas = 1 - betas
        alpha_bars = alphas.cumprod(0)
        tables = {"signal": alpha_bars.sqrt(), "noise": (1 - alpha_bars).sqrt()}
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "alphas", alphas)
        object.__setattr__(self, "alpha_bars", alpha_bars)
        object.__setattr__(self, "levels", tuple(alpha_bars.tolist()))
        object.__setattr__(self, "_tables", tables)

    @classmethod
    def named(cls, name: str, num_train_timesteps: int) -> "NoiseSchedule":
        """Builds one of the schedules of the literature.

        With s = 1000 / T, so that the total noise is about the same for every T:

        - `linear`: straight line from 1e-4 s to 0.02 s.
        - `quad`: straight line between the square roots of those ends, squared.
        - `sigmoid`: logistic curve over [-6, 6] between those ends.
        - `trunc_linear`: straight line from 1e-4 s + 0.01 to 0.02 s + 0.01.
        - `exp`: variance-preserving process with a rate rising from 0.1 to 10 per unit of time.
        - `cosine`: alpha_bar follows a squared cosine; betas capped at 0.999.
        - `sqrt`: alpha_bar(u) = 1 - sqrt(u + 1e-4), betas from ratios; capped at 0.999.

        Raises:
            ValueError: If the name is unknown, T is outside 2..1,000,000, or a beta leaves (0, 1).
        """
        if not 2 <= num_train_timesteps <= MAX_STEPS:
            raise ValueError(
                f"num_train_timesteps must lie in 2..{MAX_STEPS}, got {num_train_timesteps}"
            )
        with torch.device("cpu"):  # a table of numbers, wherever the model is being built
            if name in _RATIO:
                return cls(_betas_from_alpha_bar(_RATIO[name], num_train_timesteps))
            if name not in _BETWEEN:
                raise _unknown("noise schedule", name, SCHEDULES)
            ends, betas = _BETWEEN[name]
            return cls(betas(*ends(num_train_timesteps), num_train_timesteps))

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of steps."""
        return len(self.betas)

    def signal_and_noise(
        self, t: Int[Tensor, " B"], like: Float[Tensor, "B ..."]
    ) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B ..."]]:
        """sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t), shaped (B, 1, ...) to multiply `like`."""
        return self._at("signal", t, like), self._at("noise", t, like)

    def add_noise(
        self,
        x_0: Float[Tensor, "B *rest"],
        noise: Float[Tensor, "B *rest"],
        t: Int[Tensor, " B"],
    ) -> Float[Tensor, "B *rest"]:
        """The forward process in one jump: x_t, for standard normal `noise`."""
        signal_scale, noise_scale = self.signal_and_noise(t, x_0)
        return signal_scale * x_0 + noise_scale * noise

    def x_0_from(
        self,
        prediction: Float[Tensor, "B *rest"],
        x_t: Float[Tensor, "B *rest"],
        t: Int[Tensor, " B"],
        prediction_type: PredictionType,
    ) -> Float[Tensor, "B *rest"]:
        """The clean x_0 that a network's prediction stands for.

        From a predicted noise this divides by sqrt(alpha_bar_t): at high noise small errors of
        the network become large x_0.

        Raises:
            ValueError: If the prediction type is unknown.
        """
        check_prediction_type(prediction_type)
        if prediction_type == "sample":
            return prediction
        signal_scale, noise_scale = self.signal_and_noise(t, x_t)
        if prediction_type == "epsilon":
            return (x_t - noise_scale * prediction) / signal_scale
        return signal_scale * x_t - noise_scale * prediction

    def target(
        self,
        x_0: Float[Tensor, "B *rest"],
        noise: Float[Tensor, "B *rest"],
        t: Int[Tensor, " B"],
        prediction_type: PredictionType,
    ) -> Float[Tensor, "B *rest"]:
        """What a network of this prediction type is trained to say: the inverse of `x_0_from`.

        Raises:
            ValueError: If the prediction type is unknown.
        """
        check_prediction_type(prediction_type)
        if prediction_type == "sample":
            return x_0
        if prediction_type == "epsilon":
            return noise
        signal_scale, noise_scale = self.signal_and_noise(t, x_0)
        return signal_scale * noise - noise_scale * x_0

    def _at(
        self, name: str, t: Int[Tensor, " B"], like: Float[Tensor, "B ..."]
    ) -> Float[Tensor, "B ..."]:
        key = (name, like.dtype, like.device)
        if key not in self._cast:
            # Two moves, because some devices have no float64.
            self._cast[key] = self._tables[name].to(like.dtype).to(like.device)
        return self._cast[key][t].view(-1, *(1,) * (like.ndim - 1))


def check_prediction_type(prediction_type: str) -> None:
    """Raises a `ValueError` unless the prediction type is one of `PredictionType`."""
    known = get_args(PredictionType)
    if prediction_type not in known:
        raise _unknown("prediction type", prediction_type, known)


def _unknown(what: str, given: str, known: Iterable[str]) -> ValueError:
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return ValueError(f"unknown {what} {given!r}: {hint}known are {', '.join(names)}")


def _line(start: float, end: float, n: int) -> Float[Tensor, " T"]:
    return torch.linspace(start, end, n, dtype=torch.float64)


def _quad(start: float, end: float, n: int) -> Float[Tensor, " T"]:
    return _line(math.sqrt(start), math.sqrt(end), n).square()


def _sigmoid(start: float, end: float, n: int) -> Float[Tensor, " T"]:
    return _line(-6.0, 6.0, n).sigmoid() * (end - start) + start


def _exp(start: float, end: float, n: int) -> Float[Tensor, " T"]:
    position = _line(1.0, 2.0 * n + 1, n)
    return 1 - torch.exp(-start / n - position * (end - start) / (2 * n * n))


def _scaled_ends(n: int) -> _Ends:
    return 0.1 / n, 20 / n


def _raised_ends(n: int) -> _Ends:
    return 0.1 / n + 0.01, 20 / n + 0.01


def _rates(n: int) -> _Ends:
    return 0.1, 10.0


def _betas_from_alpha_bar(alpha_bar: Callable[[Tensor], Tensor], n: int) -> Float[Tensor, " T"]:
    """Betas whose products follow `alpha_bar(u)`, u in [0, 1], capped where it reaches 0."""
    values = alpha_bar(torch.arange(n + 1, dtype=torch.float64) / n)
    return (1 - values[1:] / values[:-1]).clamp(max=MAX_BETA)


_BETWEEN: dict[
    str, tuple[Callable[[int], _Ends], Callable[[float, float, int], Float[Tensor, " T"]]]
] = {
    "linear": (_scaled_ends, _line),
    "quad": (_scaled_ends, _quad),
    "sigmoid": (_scaled_ends, _sigmoid),
    "trunc_linear": (_raised_ends, _line),
    "exp": (_rates, _exp),
}

_RATIO: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": lambda u: torch.cos((u + 0.008) / 1.008 * (math.pi / 2)).square(),
    # At u = 1 this is slightly below 0, so the last beta exceeds 1 before the cap.
    "sqrt": lambda u: 1 - torch.sqrt(u + 1e-4),
}

SCHEDULES: tuple[str, ...] = (*_BETWEEN, *_RATIO)
