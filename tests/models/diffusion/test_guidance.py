"""Guidance against the exact posterior of a Gaussian, and against its definition on noise."""

import pytest
import torch
from jaxtyping import TypeCheckError

from diffuserec.models.diffusion import (
    DPMSolver,
    NoiseSchedule,
    Sampler,
    classifier_free_network,
    classifier_guidance,
    denoise_with,
)

from .references import classifier_free, noise_between

torch.set_num_threads(1)

SCHEDULE = NoiseSchedule.named("linear", 100)
MEAN, DEVIATION = 0.5, 0.8
OBSERVED, OBSERVATION_DEVIATION = 2.0, 0.6


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def alpha_bar_at(t, like):
    return SCHEDULE.alpha_bars[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def moments_given_x_t(x_t, t):
    """Mean and variance of x_0 ~ N(MEAN, DEVIATION^2) given x_t, by adding precisions."""
    alpha_bar = alpha_bar_at(t, x_t)
    precision = 1 / DEVIATION**2 + alpha_bar / (1 - alpha_bar)
    mean = (MEAN / DEVIATION**2 + alpha_bar.sqrt() * x_t / (1 - alpha_bar)) / precision
    return mean, 1 / precision


def denoise(x_t, t):
    return moments_given_x_t(x_t, t)[0]


def mean_given_observation(x_t, t):
    """E[x_0 | x_t, y] for y = x_0 + N(0, OBSERVATION_DEVIATION^2)."""
    mean, variance = moments_given_x_t(x_t, t)
    gain = variance / (variance + OBSERVATION_DEVIATION**2)
    return mean + gain * (OBSERVED - mean)


def log_prob_at_x_t(x_t, t):
    """log p(y | x_t), up to a constant."""
    mean, variance = moments_given_x_t(x_t, t)
    return (-((OBSERVED - mean) ** 2) / (2 * (variance + OBSERVATION_DEVIATION**2))).sum(-1)


def log_prob_at_x_0(x_0, t):
    """The same, as a function of the estimate of x_0."""
    variance = moments_given_x_t(x_0, t)[1]
    return (-((OBSERVED - x_0) ** 2) / (2 * (variance + OBSERVATION_DEVIATION**2))).sum(-1)


BOTH_PLACES = [("x_t", log_prob_at_x_t), ("x_0", log_prob_at_x_0)]


@pytest.mark.parametrize(("at", "log_prob"), BOTH_PLACES)
def test_classifier_guidance_of_a_gaussian_is_its_posterior(at, log_prob):
    t = torch.arange(100)
    x_t = normal(100, 3)
    guided = classifier_guidance(denoise, log_prob, SCHEDULE, 1.0, at=at)

    torch.testing.assert_close(guided(x_t, t), mean_given_observation(x_t, t))


@pytest.mark.parametrize(("at", "log_prob"), BOTH_PLACES)
def test_guided_samples_have_the_posteriors_moments(at, log_prob):
    guided = classifier_guidance(denoise, log_prob, SCHEDULE, 1.0, at=at)
    samples = DPMSolver(50)(guided, normal(5000, 1, seed=1), SCHEDULE)
    gain = DEVIATION**2 / (DEVIATION**2 + OBSERVATION_DEVIATION**2)

    assert samples.mean().item() == pytest.approx(MEAN + gain * (OBSERVED - MEAN), abs=0.05)
    assert samples.std().item() == pytest.approx(DEVIATION * (1 - gain) ** 0.5, rel=0.05)


def test_classifier_guidance_is_its_definition_on_noise():
    t = torch.tensor([0, 10, 50, 99])
    x_t = normal(4, 3, seed=2)
    target = normal(3, seed=3)
    guided = classifier_guidance(
        denoise, lambda x, t: -(x - target).square().sum(-1) / 2, SCHEDULE, 0.7
    )

    noise = noise_between(SCHEDULE, denoise(x_t, t), x_t, t)
    gradient = target - x_t
    noise = noise - 0.7 * (1 - alpha_bar_at(t, x_t)).sqrt() * gradient
    torch.testing.assert_close(guided(x_t, t), SCHEDULE.x_0_from(noise, x_t, t, "epsilon"))


def test_more_classifier_guidance_means_more_log_prob():
    x_T = normal(200, 2, seed=4)
    reached = []
    for scale in (-1.0, 0.0, 0.5, 1.0, 2.0):
        guided = classifier_guidance(denoise, log_prob_at_x_t, SCHEDULE, scale)
        samples = Sampler(20)(guided, x_T, SCHEDULE)
        reached.append(-(samples - OBSERVED).square().mean().item())

    assert reached == sorted(reached)
    assert len(set(reached)) == 5


@pytest.mark.parametrize(("at", "log_prob"), BOTH_PLACES)
def test_classifier_guidance_works_where_gradients_are_off_and_leaves_none(at, log_prob):
    weights = torch.ones(100, 1, dtype=torch.float64, requires_grad=True)

    def with_weight(x_t, t):
        return torch.nn.functional.embedding(t, weights) * denoise(x_t, t)

    def log_prob_with_weight(x, t):
        return torch.nn.functional.embedding(t, weights)[:, 0] * log_prob(x, t)

    guided = classifier_guidance(with_weight, log_prob_with_weight, SCHEDULE, 1.0, at=at)
    with torch.inference_mode():
        # All of these are tensors that autograd refuses as they are.
        x_t, t = normal(5, 3, seed=5), torch.arange(5)
        inside = guided(x_t, t)
    outside = guided(normal(5, 3, seed=5), torch.arange(5))

    torch.testing.assert_close(inside, mean_given_observation(x_t, t))
    assert torch.equal(inside, outside)
    assert weights.grad is None


def test_scale_0_is_the_unguided_denoiser():
    def fail(*arguments):
        raise AssertionError("called")

    x_t, t = normal(6, 3, seed=6), torch.arange(6)
    assert torch.equal(classifier_guidance(denoise, fail, SCHEDULE, 0.0)(x_t, t), denoise(x_t, t))

    calls = []

    def network(x_t, t, condition):
        calls.append(len(x_t))
        return x_t * condition

    condition, null = normal(6, 3, seed=7), torch.zeros(3, dtype=torch.float64)
    guided = classifier_free_network(network, condition, null, 0.0)
    assert torch.equal(guided(x_t, t), x_t * condition)
    assert calls == [6]


def test_unknown_places_are_refused():
    # Where annotations are enforced, those refuse it before our own check.
    with pytest.raises((ValueError, TypeCheckError), match="x_1"):
        classifier_guidance(denoise, log_prob_at_x_t, SCHEDULE, 1.0, at="x_1")


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("scale", [-0.5, 0.3, 4.0])
def test_the_classifier_free_combination_is_the_same_on_x_0_and_on_noise(prediction_type, scale):
    t = torch.tensor([0, 3, 40, 99])
    x_t, noise_c, noise_u = normal(3, 4, 5, seed=8)
    guided_noise = (1 + scale) * noise_c - scale * noise_u
    expected = (x_t - (1 - alpha_bar_at(t, x_t)).sqrt() * guided_noise) / alpha_bar_at(
        t, x_t
    ).sqrt()

    def predicting(noise):
        x_0 = SCHEDULE.x_0_from(noise, x_t, t, "epsilon")
        return lambda x_t, t: SCHEDULE.target(x_0, noise, t, prediction_type)

    on_x_0 = classifier_free(
        denoise_with(predicting(noise_c), SCHEDULE, prediction_type),
        denoise_with(predicting(noise_u), SCHEDULE, prediction_type),
        scale,
    )
    on_predictions = denoise_with(
        classifier_free(predicting(noise_c), predicting(noise_u), scale), SCHEDULE, prediction_type
    )
    torch.testing.assert_close(on_x_0(x_t, t), expected)
    torch.testing.assert_close(on_predictions(x_t, t), expected)


@pytest.mark.parametrize("null_shape", [(5,), (2, 5), (4, 2, 5)])
def test_the_doubled_batch_is_one_call_and_the_same_result(null_shape):
    condition, null = normal(4, 2, 5, seed=9), normal(*null_shape, seed=10)
    x_t, t = normal(4, 3, seed=11), torch.tensor([5, 1, 99, 7])
    calls = []

    def network(x_t, t, condition):
        calls.append(len(x_t))
        return torch.sin(x_t + t[:, None]) * condition.sum((1, 2))[:, None]

    doubled = classifier_free_network(network, condition, null, 1.7)(x_t, t)
    assert calls == [8]

    two_calls = classifier_free(
        lambda x_t, t: network(x_t, t, condition),
        lambda x_t, t: network(x_t, t, null.expand_as(condition)),
        1.7,
    )
    torch.testing.assert_close(doubled, two_calls(x_t, t))
