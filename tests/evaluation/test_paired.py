"""Differences of methods with users and seeds as random effects, against theory and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffuserec.errors import ConfigError
from diffuserec.evaluation import holm, holm_levels, paired_difference

N_USERS = 150


def study(generator, n_seeds=3, gain=0.0, seed_sd=0.1, n_seeds_reference=None):
    """Metrics of two methods of the model that the test assumes."""
    sides = []
    users = generator.normal(0, 1, N_USERS)
    for seeds, mean in ((n_seeds, gain), (n_seeds_reference or n_seeds, 0.0)):
        own = generator.normal(0, 0.7, N_USERS)
        trained = generator.normal(0, seed_sd, (seeds, 1))
        sides.append(mean + users + own + trained + generator.normal(0, 1, (seeds, N_USERS)))
    return sides


def test_one_seed_each_is_the_paired_t_test():
    ours, reference = study(np.random.default_rng(0), n_seeds=1, gain=0.2)
    found = paired_difference(ours, reference)
    theory = stats.ttest_rel(ours[0], reference[0])
    assert found.p == pytest.approx(theory.pvalue)
    assert found.interval() == pytest.approx(tuple(theory.confidence_interval()))
    assert found.interval(0.01) == pytest.approx(tuple(theory.confidence_interval(0.99)))
    gain = ours[0] - reference[0]
    assert found.effect_size == pytest.approx(gain.mean() / gain.std(ddof=1))
    assert found.relative == pytest.approx(gain.mean() / reference.mean())
    assert (found.df, found.se_seeds) == (N_USERS - 1, 0)


def test_seeds_alone_are_welch_s_t_test():
    generator = np.random.default_rng(1)
    ours, reference = generator.normal(0.5, 1, 4), generator.normal(0, 2, 7)
    users = generator.normal(0, 1, 30)  # the same for both, so that nothing of them is left
    found = paired_difference(ours[:, None] + users, reference[:, None] + users)
    theory = stats.ttest_ind(ours, reference, equal_var=False)
    assert found.p == pytest.approx(theory.pvalue)
    assert found.df == pytest.approx(theory.df)
    assert found.interval() == pytest.approx(tuple(theory.confidence_interval()))
    assert found.se_users == pytest.approx(0, abs=1e-9)


def test_a_reference_with_one_run_leaves_the_seeds_of_the_other():
    ours = np.random.default_rng(2).normal(0.5, 1, 5)
    found = paired_difference(np.tile(ours[:, None], 20), np.zeros((1, 20)))
    assert found.p == pytest.approx(stats.ttest_1samp(ours, 0).pvalue)
    assert (found.n_seeds, found.n_seeds_reference, found.relative) == (5, 1, None)


def test_components_are_those_of_the_two_way_table():
    """Means of squares written out, one cell at a time."""
    ours, reference = study(np.random.default_rng(3), n_seeds=3, n_seeds_reference=2, seed_sd=0.5)
    found = paired_difference(ours, reference)
    seeds = 0.0
    for side in (ours, reference):
        n, overall = len(side), side.mean()
        between = sum(N_USERS * (row.mean() - overall) ** 2 for row in side) / (n - 1)
        rest = sum(
            (side[s, u] - side[s].mean() - side[:, u].mean() + overall) ** 2
            for s in range(n)
            for u in range(N_USERS)
        ) / ((n - 1) * (N_USERS - 1))
        seeds += (between - rest) / (n * N_USERS)
    assert found.se_seeds == pytest.approx(math.sqrt(seeds))
    gain = ours.mean(0) - reference.mean(0)
    assert found.se_users == pytest.approx(gain.std(ddof=1) / math.sqrt(N_USERS))
    assert found.se == pytest.approx(math.hypot(found.se_users, found.se_seeds))


@pytest.mark.parametrize(("n_seeds", "seed_sd"), [(2, 0.05), (3, 0.1), (5, 0.4)])
def test_intervals_hold_the_truth_19_times_in_20(n_seeds, seed_sd):
    generator, n_studies, truth = np.random.default_rng(n_seeds), 800, 0.3
    found = [
        paired_difference(*study(generator, n_seeds, truth, seed_sd)) for _ in range(n_studies)
    ]
    missed = sum(not low <= truth <= high for low, high in (f.interval() for f in found))
    # 5 % of 800 are 40 with a standard deviation of 6; seeds that hardly matter make it fewer
    assert 8 <= missed <= 60
    false_alarms = sum(
        paired_difference(*study(generator, n_seeds, 0.0, seed_sd)).p < 0.05
        for _ in range(n_studies)
    )
    assert false_alarms <= 60


def test_leaving_seeds_out_would_be_wrong():
    """Users alone, as if the trained models were the methods, give one false alarm in three."""
    generator, alarms = np.random.default_rng(4), {"users": 0, "both": 0}
    for _ in range(500):
        ours, reference = study(generator, 3, 0.0, seed_sd=0.2)
        alarms["both"] += paired_difference(ours, reference).p < 0.05
        alarms["users"] += stats.ttest_rel(ours.mean(0), reference.mean(0)).pvalue < 0.05
    assert alarms["both"] <= 38
    assert alarms["users"] > 120


def test_a_difference_as_large_as_detectable_is_found_four_times_in_five():
    generator = np.random.default_rng(5)
    # of the model: users (2 * .7^2 + 2 / 3) / 150, seeds 2 * .2^2 / 3
    se = math.sqrt((2 * 0.49 + 2 / 3) / N_USERS + 2 * 0.04 / 3)
    some = [paired_difference(*study(generator, 3, 0.0, 0.2)) for _ in range(200)]
    factor = np.median([f.detectable() / f.se for f in some])
    found = [paired_difference(*study(generator, 3, factor * se, 0.2)).p < 0.05 for _ in range(600)]
    assert 0.7 <= np.mean(found) <= 0.9


def test_detectable_is_that_of_the_t_test_s_tables():
    """A paired effect of one half needs 34 pairs for power .8 at .05 (Cohen 1988)."""
    for n, enough in ((33, False), (34, True)):
        gain = np.random.default_rng(6).normal(0, 1, n)
        gain /= gain.std(ddof=1)
        found = paired_difference(gain[None], np.zeros((1, n)))
        assert (found.detectable() <= 0.5) == enough
    assert found.detectable(0.05 / 6) > found.detectable() > found.detectable(power=0.5)


def test_without_spread_there_is_nothing_to_doubt():
    same = paired_difference(np.ones((1, 5)), np.zeros((1, 5)))
    assert (same.p, same.interval(), same.effect_size) == (0.0, (1.0, 1.0), None)
    none = paired_difference(np.ones((2, 5)), np.ones((3, 5)))
    assert (none.p, none.interval(), none.detectable()) == (1.0, (0.0, 0.0), 0.0)


def test_one_user_shows_nothing():
    found = paired_difference(np.ones((2, 1)), np.zeros((2, 1)))
    assert found.p == 1.0
    assert found.interval() == (-math.inf, math.inf)
    assert found.detectable() == math.inf


@pytest.mark.parametrize("shapes", [((3,), (3,)), ((1, 3), (1, 4)), ((0, 3), (1, 3))])
def test_other_shapes_are_refused(shapes):
    ours, reference = map(np.zeros, shapes)
    with pytest.raises((ConfigError, TypeError)):
        paired_difference(ours, reference)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]).tolist() == [1.0, 1.0]
    assert holm([0.02]).tolist() == [0.02]
    assert len(holm([])) == 0


def test_holm_levels_by_hand():
    # .01 at .05 / 3; .03 at .05 / 2 fails, and .04 stays there
    assert holm_levels([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.05 / 3, 0.025, 0.025])
    assert holm_levels([0.01, 0.02, 0.03]).tolist() == pytest.approx([0.05 / 3, 0.025, 0.05])
    assert len(holm_levels([])) == 0


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_an_interval_leaves_out_zero_exactly_if_the_corrected_p_is_below_alpha(p_values):
    for p, corrected, level in zip(p_values, holm(p_values), holm_levels(p_values), strict=True):
        if abs(corrected - 0.05) > 1e-12:
            assert (p < level) == (corrected < 0.05)


def test_few_users_whom_all_methods_treat_alike_leave_some_freedom():
    """Seeds differ a little more than chance, users hardly: Satterthwaite's number is below 1."""
    rest = np.array([[0.1, -0.1, 0.0], [-0.1, 0.1, 0.0]])  # mean square .02
    seeds = np.sqrt(0.0201 / 6) * np.array([[1.0], [-1.0]])  # .0201
    found = paired_difference(rest + seeds, np.zeros((1, 3)))
    assert found.se == pytest.approx(math.sqrt(0.0001 / 6))
    assert found.df == 1
    assert 0 < found.detectable(0.05 / 20) < math.inf
