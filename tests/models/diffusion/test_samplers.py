"""The samplers against diffusers, the exact denoiser of a Gaussian, and an all-knowing one."""

import math

import diffusers
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from diffuserec.models.diffusion import (
    DPMSolver,
    KeyedNoise,
    NoiseSchedule,
    Sampler,
    denoise_with,
    timesteps,
)

from .references import posterior

torch.set_num_threads(1)

# Where annotations are enforced, a literal that does not exist is refused before our own check.
REFUSED = (ValueError, TypeCheckError)
MEAN, DEVIATION = 1.5, 0.4
EVERY_SAMPLER = [Sampler, lambda n: Sampler(n, eta=0.5), lambda n: Sampler(n, eta=1.0), DPMSolver]


def exact_denoiser(schedule, mean=MEAN, deviation=DEVIATION):
    """E[x_0 | x_t] for x_0 ~ N(mean, deviation^2): regression of x_0 on x_t."""

    def denoise(x_t, t):
        alpha_bar = schedule.alpha_bars[t].to(x_t.dtype).view(-1, *[1] * (x_t.ndim - 1))
        slope = deviation**2 * alpha_bar.sqrt() / (alpha_bar * deviation**2 + 1 - alpha_bar)
        return mean + slope * (x_t - alpha_bar.sqrt() * mean)

    return denoise


def curve_end(schedule, x, t, mean=MEAN, deviation=DEVIATION):
    """Where the probability flow takes x_t: it keeps the standard score of a Gaussian."""
    alpha_bar = schedule.alpha_bars[t].item()
    spread = math.sqrt(alpha_bar * deviation**2 + 1 - alpha_bar)
    return mean + deviation * (x - math.sqrt(alpha_bar) * mean) / spread


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rowwise(n_rows, seed=0):
    return KeyedNoise(seed, torch.arange(n_rows)).normal


def a_denoiser(x_t, t):
    """Some smooth function without a meaning."""
    return torch.tanh(x_t) * 0.7 + torch.cos(t / 10.0).view(-1, *[1] * (x_t.ndim - 1)).to(x_t.dtype)


@given(st.data())
def test_timesteps_are_evenly_spaced_from_the_last_to_clean(data):
    n_steps = data.draw(st.integers(1, 3000))
    n = data.draw(st.integers(1, n_steps))
    steps = timesteps(n, n_steps)
    gaps = [a - b for a, b in zip(steps, [*steps[1:], -1], strict=True)]

    assert steps[0] == n_steps - 1
    assert steps[-1] >= 0
    assert len(steps) == n
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_timesteps_by_hand():
    assert timesteps(5, 1000) == [999, 799, 599, 399, 199]
    assert timesteps(1, 7) == [6]
    assert timesteps(4, 4) == [3, 2, 1, 0]


@pytest.mark.parametrize("n", [0, -1, 11])
def test_impossible_numbers_of_steps_are_refused(n):
    schedule = NoiseSchedule.named("cosine", 10)
    with pytest.raises(ValueError, match="num_inference_steps must be"):
        timesteps(n, 10)
    for sampler in (Sampler, DPMSolver):
        with pytest.raises(ValueError, match="num_inference_steps must be"):
            sampler(n)(a_denoiser, normal(2, 3), schedule)


def test_bad_arguments_are_refused():
    schedule = NoiseSchedule.named("cosine", 10)
    with pytest.raises(ValueError, match="eta must be between"):
        Sampler(5, eta=1.5)
    with pytest.raises(ValueError, match="pass draw"):
        Sampler(5, eta=1.0)(a_denoiser, normal(2, 3), schedule)
    with pytest.raises(ValueError, match=r"shape \(1, 3\), expected \(2, 3\)"):
        Sampler(5, eta=1.0)(a_denoiser, normal(2, 3), schedule, draw=lambda *s: torch.ones(1, *s))
    with pytest.raises(ValueError, match="from_step must be between 1 and T = 10"):
        Sampler(5)(a_denoiser, normal(2, 3), schedule, from_step=11)
    with pytest.raises(ValueError, match="between 1 and the 4 steps"):
        Sampler(5)(a_denoiser, normal(2, 3), schedule, from_step=4)
    with pytest.raises(REFUSED):
        denoise_with(a_denoiser, schedule, "epsilom")


@pytest.mark.parametrize("make", EVERY_SAMPLER)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("name", ["linear", "cosine", "sqrt"])
def test_a_denoiser_that_knows_x_0_recovers_it_exactly(make, n, name):
    schedule = NoiseSchedule.named(name, 50)
    x_0, x_T = normal(2, 4, 3, seed=1, dtype=torch.float32)
    result = make(n)(lambda x_t, t: x_0, x_T, schedule, draw=rowwise(4))

    assert torch.equal(result, x_0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("make", [Sampler, DPMSolver])
def test_a_network_that_knows_the_noise_recovers_x_0(prediction_type, make):
    schedule = NoiseSchedule.named("linear", 50)
    x_0, noise = normal(2, 4, 3, seed=2)
    last = torch.full((4,), 49)
    x_T = schedule.add_noise(x_0, noise, last)

    def network(x_t, t):
        return schedule.target(x_0, noise, t, prediction_type)

    denoise = denoise_with(network, schedule, prediction_type)
    for n in (1, 2, 5, 50):
        torch.testing.assert_close(make(n)(denoise, x_T, schedule), x_0)


@pytest.mark.parametrize("make", EVERY_SAMPLER)
@pytest.mark.parametrize("from_step", [None, 30])
def test_the_denoiser_is_called_once_at_each_timestep(make, from_step):
    schedule = NoiseSchedule.named("cosine", 40)
    visited = []

    def denoise(x_t, t):
        assert t.shape == (3,)
        assert t.dtype == torch.int64
        assert not torch.is_grad_enabled()
        visited.append(t.unique().item())
        return x_t

    make(7)(denoise, normal(3, 2), schedule, draw=rowwise(3), from_step=from_step)

    assert visited == timesteps(7, from_step or 40)
    assert visited[0] == (29 if from_step else 39)


@pytest.mark.parametrize("n", [1, 4, 10, 100])
def test_ddim_matches_diffusers_at_every_step(n):
    """n divides 100: otherwise diffusers goes to a step other than the one it visits next."""
    schedule = NoiseSchedule.named("linear", 100)
    other = diffusers.DDIMScheduler(
        num_train_timesteps=100,
        trained_betas=schedule.betas.numpy(),
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    other.set_timesteps(n)
    x_T = normal(4, 3, seed=3)
    for eta in (0.0, 0.6, 1.0):
        draws = iter(normal(100, 4, 3, seed=4))
        x, mine = x_T, iter(normal(100, 4, 3, seed=4))
        seen = []

        def denoise(x_t, t, seen=seen):
            seen.append(x_t)
            return a_denoiser(x_t, t)

        result = Sampler(n, eta)(denoise, x_T, schedule, draw=lambda *shape, mine=mine: next(mine))
        for index, step in enumerate(other.timesteps):
            torch.testing.assert_close(seen[index], x, rtol=1e-4, atol=1e-4)
            prediction = a_denoiser(x, step.expand(4))
            x = other.step(prediction, step, x, eta=eta, variance_noise=next(draws)).prev_sample
        torch.testing.assert_close(result, x, rtol=1e-4, atol=1e-4)


def test_eta_1_with_all_steps_is_the_posterior_chain():
    schedule = NoiseSchedule.named("cosine", 30)
    draws = normal(30, 4, 3, seed=5)
    mine = iter(draws)
    x_T = normal(4, 3, seed=6)
    result = Sampler(30, eta=1.0)(a_denoiser, x_T, schedule, draw=lambda *shape: next(mine))

    x = x_T
    for step, noise in zip(range(29, -1, -1), draws, strict=True):
        t = torch.full((4,), step)
        mean, variance = posterior(schedule, a_denoiser(x, t), x, t)
        x = mean + variance.sqrt() * noise
    torch.testing.assert_close(result, x)


# diffusers hands tensors to numpy in a way that numpy 2 warns of.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("n", [1, 2, 5, 10, 25])
def test_dpm_solver_matches_diffusers(n):
    schedule = NoiseSchedule.named("linear", 100)
    other = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=100,
        trained_betas=schedule.betas.numpy(),
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    other.set_timesteps(n)
    x = x_T = normal(4, 3, seed=7)
    for step in other.timesteps:
        x = other.step(a_denoiser(x, step.expand(4)), step, x).prev_sample

    assert other.timesteps.tolist() == timesteps(n, 100)
    result = DPMSolver(n)(a_denoiser, x_T, schedule)
    torch.testing.assert_close(result, x, rtol=1e-3, atol=1e-3, check_dtype=False)


def test_ancestral_samples_of_a_gaussian_have_its_moments():
    schedule = NoiseSchedule.named("linear", 1000)
    samples = Sampler(1000, eta=1.0)(
        exact_denoiser(schedule), normal(20_000, 1, seed=8), schedule, draw=rowwise(20_000)
    )

    assert samples.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / math.sqrt(20_000))
    # The variance given x_0 leaves out that x_0 itself is uncertain: 1 % less spread at 1000
    # steps (7 % at 100). One standard error is 0.5 %.
    assert samples.std().item() == pytest.approx(DEVIATION, rel=0.025)


def test_samples_from_an_intermediate_step_have_the_moments_too():
    schedule = NoiseSchedule.named("cosine", 200)
    x_0 = MEAN + DEVIATION * normal(20_000, 1, seed=9)
    t = torch.full((20_000,), 59)
    corrupted = schedule.add_noise(x_0, normal(20_000, 1, seed=10), t)
    samples = Sampler(60, eta=1.0)(
        exact_denoiser(schedule), corrupted, schedule, draw=rowwise(20_000), from_step=60
    )

    assert samples.mean().item() == pytest.approx(MEAN, abs=4 * DEVIATION / math.sqrt(20_000))
    assert samples.std().item() == pytest.approx(DEVIATION, rel=0.05)
    together = torch.stack([x_0[:, 0], samples[:, 0]])
    assert torch.corrcoef(together)[0, 1] > 0.2


@pytest.mark.parametrize(("make", "order"), [(Sampler, 1), (DPMSolver, 2)])
def test_deterministic_samplers_converge_at_their_order(make, order):
    """Halving the steps' size divides the error by about 2^order."""
    schedule = NoiseSchedule.named("linear", 4000)
    x_T = normal(64, 1, seed=11)
    denoise = exact_denoiser(schedule)
    target = curve_end(schedule, x_T, 3999)

    def error(n):
        return (make(n)(denoise, x_T, schedule) - target).abs().max().item()

    errors = [error(n) for n in (20, 40, 80)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] / errors[2] > 2 ** (2 * order) * 0.7
    assert errors[2] < 0.05


@pytest.mark.parametrize("name", ["linear", "cosine", "quad"])
@pytest.mark.parametrize(("n", "deviation", "share"), [(5, 1, 0.85), (10, 1, 0.35), (8, 0.4, 0.95)])
def test_dpm_solver_beats_ddim_in_few_steps(name, n, deviation, share):
    schedule = NoiseSchedule.named(name, 1000)
    x_T = normal(256, 1, seed=12)
    target = curve_end(schedule, x_T, 999, deviation=deviation)
    denoise = exact_denoiser(schedule, deviation=deviation)

    def error(sampler):
        return (sampler(denoise, x_T, schedule) - target).square().mean().sqrt().item()

    assert error(DPMSolver(n)) < share * error(Sampler(n))


@pytest.mark.parametrize("make", EVERY_SAMPLER)
def test_a_row_does_not_depend_on_the_batch(make):
    schedule = NoiseSchedule.named("linear", 60)
    x_T = normal(6, 4, 3, seed=13, dtype=torch.float32)
    keys = torch.tensor([4, 8, 15, 16, 23, 42])
    together = make(9)(a_denoiser, x_T, schedule, draw=KeyedNoise(1, keys).normal)
    rows = torch.tensor([3, 0])
    some = make(9)(a_denoiser, x_T[rows], schedule, draw=KeyedNoise(1, keys[rows]).normal)

    torch.testing.assert_close(together[rows], some, rtol=1e-6, atol=1e-6)
    assert together.dtype == torch.float32


def test_eta_0_never_draws_and_more_eta_changes_more():
    schedule = NoiseSchedule.named("linear", 60)
    x_T = normal(5, 3, seed=14)

    def refuse(*shape):
        raise AssertionError("drawn")

    plain = Sampler(6)(a_denoiser, x_T, schedule, draw=refuse)
    assert torch.equal(
        DPMSolver(6)(a_denoiser, x_T, schedule, draw=refuse),
        DPMSolver(6)(a_denoiser, x_T, schedule),
    )
    moved = [
        (Sampler(6, eta)(a_denoiser, x_T, schedule, draw=rowwise(5)) - plain).abs().mean()
        for eta in (0.1, 0.3, 1.0)
    ]
    assert 0 < moved[0] < moved[1] < moved[2]
