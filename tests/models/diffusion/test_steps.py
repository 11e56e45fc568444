"""Drawn steps: range, distribution, pairs, the generator, and importance by recorded losses."""

import math
from collections import deque

import pytest
import torch
from scipy import stats

from diffuserec.models.diffusion import ImportanceSteps, antithetic, uniform


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


def test_uniform_until_every_step_is_recorded_often_enough():
    steps = ImportanceSteps(3, n_recorded=2)
    even = torch.full((3,), 1 / 3)
    assert torch.equal(steps.probabilities(), even)
    steps.record(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([9.0, 9.0, 9.0, 1.0, 1.0]))
    assert torch.equal(steps.probabilities(), even)
    steps.record(torch.tensor([2]), torch.tensor([5.0]))
    assert torch.equal(steps.probabilities(), even)  # one of two
    steps.record(torch.tensor([2]), torch.tensor([5.0]))
    # root mean squares 9, 1, 5
    expected = torch.tensor([9.0, 1.0, 5.0]) / 15 * 0.999 + 0.001 / 3
    torch.testing.assert_close(steps.probabilities(), expected)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_importance_by_hand(share):
    steps = ImportanceSteps(3, n_recorded=2, uniform_share=share)
    # sqrt((1 + 49) / 2) = 5, sqrt((9 + 9) / 2) = 3, sqrt((0 + 8) / 2) = 2
    steps.record(torch.tensor([0, 1, 0, 1]), torch.tensor([1.0, 3.0, 7.0, 3.0]))
    steps.record(torch.tensor([2, 2]), torch.tensor([0.0, math.sqrt(8)]))
    expected = (1 - share) * torch.tensor([0.5, 0.3, 0.2]) + share / 3
    torch.testing.assert_close(steps.probabilities(), expected)
    assert float(steps.probabilities().sum()) == pytest.approx(1, abs=1e-6)


def test_a_call_with_more_of_a_step_than_are_kept_keeps_the_newest():
    steps = ImportanceSteps(2, n_recorded=2, uniform_share=0.0)
    losses = torch.tensor([100.0, 2.0, 100.0, 100.0, 6.0, 2.0, 6.0])
    steps.record(torch.tensor([0, 1, 0, 0, 0, 1, 0]), losses)  # the last of 0 are 6 and 6
    torch.testing.assert_close(steps.probabilities(), torch.tensor([0.75, 0.25]))
    steps.record(torch.tensor([0]), torch.tensor([math.sqrt(92)]))  # sqrt((36 + 92) / 2) = 8
    torch.testing.assert_close(steps.probabilities(), torch.tensor([0.8, 0.2]))
    steps.record(torch.tensor([0]), torch.tensor([math.sqrt(92)]))  # the older 6 is gone too
    expected = math.sqrt(92) / (math.sqrt(92) + 2)
    assert float(steps.probabilities()[0]) == pytest.approx(expected)


@pytest.mark.parametrize("n_recorded", [1, 3, 10])
def test_importance_remembers_as_queues_do(n_recorded):
    generator = torch.Generator().manual_seed(0)
    n_steps = 5
    steps = ImportanceSteps(n_steps, n_recorded)
    queues = [deque(maxlen=n_recorded) for _ in range(n_steps)]
    n_uniform = 0
    for size in [0, 1, 4, 40, 3, 200, 1, 17, 60, 2]:
        t = uniform(size, n_steps, generator)
        losses = torch.rand(size, generator=generator) * (1 + t)
        steps.record(t, losses)
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            queues[step].append(loss)
        if any(len(queue) < n_recorded for queue in queues):
            n_uniform += 1
            expected = torch.full((n_steps,), 1 / n_steps)
        else:
            sizes = [math.sqrt(sum(x * x for x in queue) / n_recorded) for queue in queues]
            expected = torch.tensor(sizes) / sum(sizes) * 0.999 + 0.001 / n_steps
        torch.testing.assert_close(steps.probabilities(), expected)
    assert 2 <= n_uniform <= 8


def test_losses_of_zero():
    steps = ImportanceSteps(4, n_recorded=1, uniform_share=0.2)
    every = torch.arange(4)
    steps.record(every, torch.zeros(4))
    assert torch.equal(steps.probabilities(), torch.full((4,), 0.25))
    steps.record(every, torch.tensor([0.0, 1.0, 3.0, 0.0]))
    torch.testing.assert_close(steps.probabilities(), torch.tensor([0.05, 0.25, 0.65, 0.05]))


def test_records_carry_no_graph_and_go_into_the_state():
    steps = ImportanceSteps(3, n_recorded=2)
    losses = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0, 3.0], requires_grad=True)
    steps.record(torch.tensor([0, 1, 2, 0, 1, 2]), losses * 2)
    assert not steps.probabilities().requires_grad
    other = ImportanceSteps(3, n_recorded=2)
    other.load_state_dict(steps.state_dict())
    assert torch.equal(other.probabilities(), steps.probabilities())
    for one in (steps, other):  # and go on alike, from the same place in each ring
        one.record(torch.tensor([1, 0]), torch.tensor([7.0, 4.0]))
    assert torch.equal(other.probabilities(), steps.probabilities())
    assert list(ImportanceSteps(3).parameters()) == []
