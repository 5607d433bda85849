"""Intervals against brute force, and their coverage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy import stats

from sgsd.evaluation import Estimate, mean_estimate, paired_difference
from sgsd.evaluation.statistics import difference_over, mean_over

Z = 1.959963984540054


def wilson(p: float, n: float, z: float = Z) -> tuple[float, float]:
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def bounds(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def half_width(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (7, 30), (30, 30), (113, 200)])
def test_zeros_and_ones_get_wilsons_interval(successes, n):
    estimate = mean_estimate([1.0] * successes + [0.0] * (n - successes))
    assert estimate.mean == pytest.approx(successes / n)
    assert bounds(estimate) == pytest.approx(wilson(successes / n, n), abs=1e-9)


def enumerated_variance(values: list[float]) -> float:
    """The variance of the mean over every resample of the values with replacement: what a bootstrap approaches."""
    means = [sum(resample) / len(values) for resample in itertools.product(values, repeat=len(values))]
    grand = sum(means) / len(means)
    return sum((mean - grand) ** 2 for mean in means) / len(means)


def test_shares_get_wilsons_interval_at_the_variance_over_all_resamples():
    values = [0.25, 0.5, 0.75, 1.0, 0.0]
    n, mean = 5, 0.5
    variance = enumerated_variance(values) * n / (n - 1)  # a bootstrap divides by n
    estimate = mean_estimate(values)
    expected = wilson(mean, mean * (1 - mean) / variance, z=float(stats.t.ppf(0.975, n - 1)))
    assert bounds(estimate) == pytest.approx(expected, abs=1e-12)


def test_a_difference_gets_students_interval_at_the_variance_over_all_resamples():
    before, after = [0.0, 0.5, 1.0, 0.25], [0.25, 0.5, 0.5, 1.0]
    differences = [0.25, 0.0, -0.5, 0.75]
    size = math.sqrt((0.25**2 + 0.5**2 + 0.75**2) / 3)
    n = 6
    variance = enumerated_variance([*differences, size, -size]) * n / (n - 1)
    estimate = paired_difference(before, after)
    assert estimate.mean == pytest.approx(0.125)
    assert half_width(estimate) == pytest.approx(stats.t.ppf(0.975, n - 1) * math.sqrt(variance))
    assert estimate.high - estimate.mean == pytest.approx(estimate.mean - estimate.low)


def test_a_difference_of_zeros_and_ones_is_bonett_and_prices():
    # 3 problems gained, 1 lost, of 20: counts 3 + 1 and 1 + 1 of 22, but for the quantile and n − 1.
    before, after = [0.0] * 3 + [1.0] + [1.0] * 16, [1.0] * 3 + [0.0] + [1.0] * 16
    gained, lost, n = 4 / 22, 2 / 22, 22
    variance = (gained + lost - (3 - 1) ** 2 / 22**2) / (n - 1)
    expected = stats.t.ppf(0.975, n - 1) * math.sqrt(variance)
    assert half_width(paired_difference(before, after)) == pytest.approx(expected)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_with_many_problems_the_intervals_are_the_bootstraps(method):
    draw = np.random.default_rng(3)
    before, after = draw.binomial(4, draw.beta(1, 2, 400)) / 4, draw.binomial(4, draw.beta(1, 1, 400)) / 4

    def bootstrap(values: np.ndarray) -> tuple[float, float]:
        found = stats.bootstrap((values,), np.mean, n_resamples=5000, method=method, rng=0, batch=1000)
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    assert bounds(mean_estimate(before)) == pytest.approx(bootstrap(before), abs=2e-3)
    assert bounds(paired_difference(before, after)) == pytest.approx(bootstrap(after - before), abs=2e-3)


def test_pairing_narrows():
    draw = np.random.default_rng(0)
    before = draw.random(50)
    after = np.clip(before + 0.05 + 0.01 * draw.standard_normal(50), 0, 1)
    estimate = paired_difference(before, after)
    assert estimate.mean == pytest.approx((after - before).mean())
    assert not estimate.covers_zero  # unpaired, the spread of the problems would drown it
    assert 20 * half_width(estimate) < half_width(paired_difference(before, draw.permutation(after)))
    swapped = paired_difference(after, before)
    assert bounds(swapped) == pytest.approx((-estimate.high, -estimate.low))


def test_equal_runs_differ_by_zero():
    values = [0.0, 1.0, 1.0, 0.5]
    estimate = paired_difference(values, values)
    assert estimate.mean == 0
    assert estimate.covers_zero
    assert estimate.low == pytest.approx(-estimate.high)
    assert 0 < half_width(paired_difference(values * 100, values * 100)) < 0.01


def test_a_single_problem_shows_nothing():
    assert paired_difference([0.5], [1.0]).covers_zero
    assert paired_difference([0.0], [1.0]).covers_zero
    for alone in (mean_estimate([0.5]), mean_estimate([[0.5], [0.5]]), mean_estimate([[0.5], [0.6]])):
        assert alone.high - alone.low > 0.7


def test_values_all_equal_are_taken_for_zeros_and_ones():
    assert bounds(mean_estimate([0.5] * 30)) == pytest.approx(wilson(0.5, 30))
    assert bounds(mean_estimate([1 / 12] * 30)) == pytest.approx(wilson(1 / 12, 30))  # whose mean is rounded
    assert bounds(mean_estimate([[0.0] * 30] * 3)) == pytest.approx(wilson(0.0, 30))


def seed_parts_by_loops(values: list[list[float]]) -> tuple[float, float]:
    """V_problems and V_seeds of the module's docstring, in plain loops."""
    S, N = len(values), len(values[0])
    grand = sum(map(sum, values)) / (S * N)
    problem = [sum(values[s][i] for s in range(S)) / S for i in range(N)]
    seed = [sum(row) / N for row in values]
    residual = sum((values[s][i] - problem[i] - seed[s] + grand) ** 2 for s in range(S) for i in range(N))
    v_problems = sum((value - grand) ** 2 for value in problem) / (N - 1) / N
    v_seeds = sum((value - grand) ** 2 for value in seed) / (S - 1) / S - residual / ((S - 1) * (N - 1)) / (N * S)
    return v_problems, max(0.0, v_seeds)


def seeded(draw: np.random.Generator, S: int, N: int, spread: float) -> np.ndarray:
    chances = draw.uniform(0.2, 0.8, N) + spread * draw.standard_normal((S, 1))
    return draw.binomial(4, np.clip(chances, 0, 1)) / 4


def test_several_seeds_add_what_they_differ_by():
    values = seeded(np.random.default_rng(1), S=3, N=40, spread=0.1)
    v_problems, v_seeds = seed_parts_by_loops(values.tolist())
    assert v_seeds > 0
    variance = v_problems + v_seeds
    h2 = stats.t.ppf(0.975, 39) ** 2 * v_problems + stats.t.ppf(0.975, 2) ** 2 * v_seeds
    mean = values.mean()
    expected = wilson(mean, mean * (1 - mean) / variance, z=math.sqrt(h2 / variance))
    estimate = mean_estimate(values)
    assert estimate.mean == pytest.approx(mean)
    assert bounds(estimate) == pytest.approx(expected)
    assert half_width(estimate) > half_width(mean_estimate(values.mean(axis=0)))


def test_seeds_that_agree_add_nothing():
    values = np.random.default_rng(2).random(40)
    assert bounds(mean_estimate([values, values])) == pytest.approx(bounds(mean_estimate(values)))


def test_seeds_that_are_paired_cancel():
    draw = np.random.default_rng(4)
    before = seeded(draw, S=3, N=60, spread=0.1)
    after = before + 0.05
    paired = paired_difference(before, after, same_seeds=True)
    unpaired = paired_difference(before, after)
    assert (paired.mean, unpaired.mean) == pytest.approx((0.05, 0.05))
    assert half_width(paired) < half_width(unpaired) / 3


def test_seeds_that_are_paired_and_repeat_each_other_count_once():
    draw = np.random.default_rng(8)
    before, after = draw.binomial(4, 0.5, 30) / 4, draw.binomial(4, 0.5, 30) / 4
    once = paired_difference(before, after)
    assert bounds(paired_difference([before] * 5, [after] * 5, same_seeds=True)) == pytest.approx(bounds(once))
    noise = 0.2 * (-1.0) ** np.indices((4, 30)).sum(axis=0)  # gone in the mean over seeds, and in each seed's mean
    noisy = paired_difference(np.tile(before, (4, 1)), after + noise, same_seeds=True)
    assert bounds(noisy) == pytest.approx(bounds(once))


def test_seeds_in_another_order_make_no_difference_and_no_false_certainty():
    values = np.random.default_rng(9).integers(0, 13, (3, 30)) / 12
    estimate = paired_difference(values, values[[2, 0, 1]])
    assert estimate.mean == pytest.approx(0)
    assert half_width(estimate) > 0.05


def test_a_difference_of_unlike_numbers_of_seeds_counts_the_seeds_of_both():
    draw = np.random.default_rng(5)
    base, after = draw.random((1, 60)), seeded(draw, S=4, N=60, spread=0.1)
    difference = after.mean(axis=0) - base[0]
    size = math.sqrt(np.mean(difference**2))
    widened = np.concatenate([difference, [size, -size]])
    _, v_seeds = seed_parts_by_loops(after.tolist())
    h2 = stats.t.ppf(0.975, 61) ** 2 * widened.var(ddof=1) / 62 + stats.t.ppf(0.975, 3) ** 2 * v_seeds
    assert half_width(paired_difference(base, after)) == pytest.approx(math.sqrt(h2))
    assert half_width(paired_difference(after, base)) == pytest.approx(math.sqrt(h2))


def test_the_mean_over_evaluations_weighs_each_alike():
    draw = np.random.default_rng(6)
    few, many = draw.random(30), draw.random(500)
    v_few, v_many = few.var(ddof=1) / 30 / 4, many.var(ddof=1) / 500 / 4
    variance = v_few + v_many
    freedom = variance**2 / (v_few**2 / 29 + v_many**2 / 499)
    mean = (few.mean() + many.mean()) / 2
    estimate = mean_over([few, many])
    assert estimate.mean == pytest.approx(mean)
    z = float(stats.t.ppf(0.975, freedom))
    assert bounds(estimate) == pytest.approx(wilson(mean, mean * (1 - mean) / variance, z))
    assert mean_over([few]) == mean_estimate(few)


def test_the_difference_over_evaluations_is_the_mean_of_their_differences():
    draw = np.random.default_rng(7)
    pairs = [(draw.random(n), draw.random(n)) for n in (30, 80)]
    alone = [paired_difference(*pair).mean for pair in pairs]
    together = difference_over(*zip(*pairs, strict=True))
    assert together.mean == pytest.approx(sum(alone) / 2)
    assert half_width(together) < half_width(paired_difference(*pairs[0]))


def test_what_is_refused():
    for nothing in ([], [[]]):
        with pytest.raises(ValueError, match="at least one value"):
            mean_estimate(nothing)
        with pytest.raises(ValueError, match="at least one value"):
            paired_difference(nothing, nothing)
    with pytest.raises(ValueError, match="same problems: got 1 and 2"):
        paired_difference([1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="paired by seed needs the same seeds: got 1 and 2"):
        paired_difference([1.0, 0.0], [[1.0, 0.0]] * 2, same_seeds=True)
    with pytest.raises(ValueError, match="different numbers of seeds: got 1, 2"):
        mean_over([[1.0, 0.0], [[1.0, 0.0]] * 2])


REPEATS = 2000


def coverage(interval: Callable[[np.random.Generator], Estimate], truth: float) -> float:
    draw = np.random.default_rng(0)
    found = [interval(draw) for _ in range(REPEATS)]
    return sum(estimate.low <= truth <= estimate.high for estimate in found) / REPEATS


def shares_of(draw: np.random.Generator, k: int, a: float, b: float) -> Estimate:
    return mean_estimate(draw.binomial(k, draw.beta(a, b, 30)) / k)


def gains(draw: np.random.Generator, k: int, gain: float) -> Estimate:
    chances = draw.uniform(0.1, 0.8, size=30)
    better = chances + gain + draw.uniform(-0.1, 0.1, size=30)
    return paired_difference(draw.binomial(k, chances) / k, draw.binomial(k, better) / k)


def gains_of_five_seeds(draw: np.random.Generator) -> Estimate:
    before, after = draw.uniform(0.2, 0.7, 30) + 0.03 * draw.standard_normal((2, 5, 1))
    sides = [draw.binomial(4, np.clip(side, 0, 1)) / 4 for side in (before, after + 0.05)]
    return paired_difference(*sides, same_seeds=True)


@pytest.mark.parametrize(
    ("interval", "truth"),
    [
        *((partial(shares_of, k=k, a=a, b=b), a / (a + b)) for k in (1, 12) for a, b in ((1, 1), (0.5, 2), (0.3, 0.3))),
        *((partial(gains, k=k, gain=gain), gain) for k in (1, 12) for gain in (0.0, 0.1)),
        (gains_of_five_seeds, 0.05),
        *((lambda draw, s=s: mean_estimate(seeded(draw, S=3, N=100, spread=s)), 0.5) for s in (0.0, 0.02, 0.05)),
    ],
)
def test_95_percent_intervals_hold_the_truth_93_to_97_percent_of_the_time(interval, truth):
    assert 0.93 <= coverage(interval, truth) <= 0.97
