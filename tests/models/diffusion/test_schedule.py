"""The schedules against published values, Bayes' rule and diffusers."""

import math

import diffusers
import pytest
import torch

from diffuserec.models.diffusion import SCHEDULES, NoiseSchedule
from diffuserec.models.diffusion.schedule import check_prediction_type

from .references import noise_between, posterior

torch.set_num_threads(1)

ANCHORS = [
    (1000, "linear", 1e-4, 0.02, (0.9999, 0.99978, 0.0785872, 4.11819e-5, 4.03583e-5)),
    (1000, "cosine", 4.12842e-5, 0.999, (0.999959, 0.999913, 0.493844, 2.42877e-6, 2.42877e-9)),
    (1000, "sqrt", 0.0234003, 0.999, (0.9766, 0.963812, 0.29578, 4.54648e-4, 4.54648e-7)),
    (10, "cosine", 0.0279073, 0.999, (0.972093, 0.898706, 0.493844, 0.0240917, 2.40917e-5)),
    (10, "sqrt", 0.309481, 0.999, (0.690519, 0.558257, 0.29578, 0.0517818, 5.17818e-5)),
]

# alpha_bar at t = 199, 400, 600, 800, 999 of 1000, to the digits given.
COARSE_ANCHORS = {
    "linear": (0.659, 0.194, 0.0256, 0.00151, 4e-5),
    "quad": (0.889, 0.537, 0.167, 0.0203, 7.3e-4),
    "sigmoid": (0.941, 0.621, 0.0814, 0.00212, 4e-5),
    "cosine": (0.898, 0.646, 0.339, 0.0931, 0.0),
    "sqrt": (0.558, 0.370, 0.227, 0.106, 0.0),
}


def some_batch(n_steps, seed=0, shape=(3, 4)):
    generator = torch.Generator().manual_seed(seed)
    t = torch.arange(n_steps)
    x_0, noise = torch.randn(2, n_steps, *shape, generator=generator, dtype=torch.float64)
    return x_0, noise, t


@pytest.mark.parametrize(("n_steps", "name", "first", "last", "alpha_bars"), ANCHORS)
def test_anchor_values(n_steps, name, first, last, alpha_bars):
    schedule = NoiseSchedule.named(name, n_steps)
    at = [0, 1, n_steps // 2 - 1, n_steps - 2, n_steps - 1]

    assert schedule.betas[0].item() == pytest.approx(first, rel=1e-5)
    assert schedule.betas[-1].item() == pytest.approx(last, rel=1e-5)
    assert schedule.alpha_bars[at].tolist() == pytest.approx(list(alpha_bars), rel=1e-5)


@pytest.mark.parametrize("name", COARSE_ANCHORS)
def test_coarse_anchor_values(name):
    values = NoiseSchedule.named(name, 1000).alpha_bars[[199, 400, 600, 800, 999]].tolist()

    assert values == pytest.approx(list(COARSE_ANCHORS[name]), rel=0.02, abs=1e-6)


def test_trunc_linear_is_linear_raised_by_a_hundredth():
    raised = NoiseSchedule.named("trunc_linear", 32).betas
    linear = NoiseSchedule.named("linear", 32).betas

    torch.testing.assert_close(raised - linear, torch.full_like(linear, 0.01))
    assert raised[0].item() == pytest.approx(0.013125)
    assert raised[-1].item() == pytest.approx(0.635)


def test_exp_by_hand():
    # T = 10: beta = 1 - exp(-0.01 - x * 9.9 / 200), x from 1 to 21.
    betas = NoiseSchedule.named("exp", 10).betas

    assert betas[0].item() == pytest.approx(1 - math.exp(-0.0595))
    assert betas[-1].item() == pytest.approx(1 - math.exp(-1.0495))
    # The rate integrates to 0.1 + 9.9 / 2 over unit time, plus half a step's share.
    assert NoiseSchedule.named("exp", 100_000).alpha_bars[-1].log().item() == pytest.approx(
        -5.05, rel=1e-4
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_are_float64_and_decrease(name):
    schedule = NoiseSchedule.named(name, 50)

    assert schedule.num_train_timesteps == 50
    for table in (schedule.betas, schedule.alphas, schedule.alpha_bars):
        assert table.dtype == torch.float64
        assert table.shape == (50,)
    assert (schedule.alpha_bars.diff() < 0).all()
    assert 0 < schedule.alpha_bars[-1] < schedule.alpha_bars[0] < 1


@pytest.mark.parametrize("n_steps", [2, 10, 20])
def test_linear_with_few_steps_says_which_beta(n_steps):
    with pytest.raises(ValueError, match=rf"beta at step \d+ of {n_steps} is .* outside \(0, 1\)"):
        NoiseSchedule.named("linear", n_steps)
    NoiseSchedule.named("linear", 21)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1, 0.0, 0.2], "step 1 of 3 is 0,"),
        ([0.1, 0.2, 1.0], "step 2 of 3 is 1,"),
        ([float("nan")], "step 0 of 1 is nan"),
        ([], "non-empty"),
    ],
)
def test_betas_outside_the_unit_interval_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(torch.tensor(betas))


def test_unknown_names_are_refused_with_a_suggestion():
    with pytest.raises(ValueError, match=r"did you mean 'cosine'.*linear.*trunc_linear"):
        NoiseSchedule.named("cosin", 100)
    with pytest.raises(ValueError, match=r"must lie in 2\.\.1000000"):
        NoiseSchedule.named("cosine", 1)
    with pytest.raises(
        ValueError, match=r"did you mean 'epsilon'.*known are epsilon, sample, v_pred"
    ):
        check_prediction_type("epsilom")
    with pytest.raises(ValueError, match="unknown prediction type 'v'"):
        check_prediction_type("v")


def test_the_callers_table_is_not_shared():
    betas = torch.tensor([0.1, 0.2], dtype=torch.float64)
    schedule = NoiseSchedule(betas)
    betas[0] = 0.9

    assert schedule.betas[0] == 0.1


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_rule(name):
    """Product of the Gaussians q(x_{t-1} | x_0) and q(x_t | x_{t-1}), by adding precisions."""
    schedule = NoiseSchedule.named(name, 30)
    x_0, x_t, t = some_batch(30)
    mean, variance = posterior(schedule, x_0, x_t, t)

    for step in range(1, 30):
        beta = schedule.betas[step].item()
        before = schedule.alpha_bars[step - 1].item()
        prior, likelihood = 1 / (1 - before), (1 - beta) / beta
        expected_mean = (prior * before**0.5 * x_0[step] + (1 - beta) ** 0.5 / beta * x_t[step]) / (
            prior + likelihood
        )
        torch.testing.assert_close(mean[step], expected_mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            variance[step], torch.full_like(x_0[step], 1 / (prior + likelihood)), rtol=1e-9, atol=0
        )
    torch.testing.assert_close(mean[0], x_0[0])
    assert (variance[0] == 0).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_matches_diffusers_ddpm(prediction_type):
    schedule = NoiseSchedule.named("linear", 100)
    other = diffusers.DDPMScheduler(
        num_train_timesteps=100,
        trained_betas=schedule.betas.numpy(),
        prediction_type=prediction_type,
        clip_sample=False,
    )
    x_0, noise, t = some_batch(100)
    x_t = schedule.add_noise(x_0, noise, t)
    torch.testing.assert_close(x_t, other.add_noise(x_0, noise, t), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        schedule.target(x_0, noise, t, "v_prediction"),
        other.get_velocity(x_0, noise, t),
        rtol=1e-4,
        atol=1e-5,
    )

    prediction = noise.flip(0)
    estimate = schedule.x_0_from(prediction, x_t, t, prediction_type)
    mean, variance = posterior(schedule, estimate, x_t, t)
    for step in (0, 1, 2, 17, 50, 98, 99):
        theirs = other.step(
            prediction[step], step, x_t[step], generator=torch.Generator().manual_seed(step)
        )
        torch.testing.assert_close(
            estimate[step], theirs.pred_original_sample, rtol=1e-3, atol=1e-4
        )
        fresh = torch.randn(
            x_t[step].shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64
        )
        ours = mean[step] + variance[step].sqrt() * fresh
        torch.testing.assert_close(ours, theirs.prev_sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_targets_and_estimates_are_inverse(prediction_type, shape):
    schedule = NoiseSchedule.named("linear", 40)
    x_0, noise, t = some_batch(40, shape=shape)
    x_t = schedule.add_noise(x_0, noise, t)
    target = schedule.target(x_0, noise, t, prediction_type)

    torch.testing.assert_close(schedule.x_0_from(target, x_t, t, prediction_type), x_0)
    torch.testing.assert_close(noise_between(schedule, x_0, x_t, t), noise)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_keep_the_dtype_of_the_data(dtype):
    schedule = NoiseSchedule.named("cosine", 8)
    x_0, noise, t = some_batch(8)
    x_0, noise = x_0.to(dtype), noise.to(dtype)

    assert schedule.add_noise(x_0, noise, t).dtype == dtype
    for prediction_type in ("epsilon", "v_prediction"):
        assert schedule.x_0_from(x_0, noise, t, prediction_type).dtype == dtype
        assert schedule.target(x_0, noise, t, prediction_type).dtype == dtype


def test_each_row_has_its_own_step():
    schedule = NoiseSchedule.named("cosine", 100)
    x_0, noise, t = some_batch(100)
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    together = schedule.add_noise(x_0[shuffled], noise[shuffled], t[shuffled])

    for row, step in enumerate(shuffled.tolist()):
        alone = schedule.add_noise(
            x_0[step : step + 1], noise[step : step + 1], torch.tensor([step])
        )
        assert torch.equal(together[row : row + 1], alone)


def test_tables_cast_in_inference_mode_serve_training():
    schedule = NoiseSchedule.named("cosine", 6)
    x_0, noise, t = some_batch(6)
    x_0, noise = x_0.float(), noise.float()
    with torch.inference_mode():
        schedule.add_noise(x_0, noise, t)
    x_0.requires_grad_()
    schedule.add_noise(x_0, noise, t).sum().backward()

    expected = schedule.alpha_bars.sqrt().float()[:, None, None].expand_as(x_0)
    torch.testing.assert_close(x_0.grad, expected)
