"""Intervals against brute force, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sgsd.evaluation import mean_estimate, paired_difference

Z = 1.959963984540054


def wilson(successes: int, n: int) -> tuple[float, float]:
    p = successes / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (7, 30), (30, 30), (113, 200)])
def test_zeros_and_ones_get_wilsons_interval(successes, n):
    estimate = mean_estimate([1.0] * successes + [0.0] * (n - successes))
    assert estimate.mean == pytest.approx(successes / n)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(successes, n), abs=1e-9)


def brute_bootstrap(values: np.ndarray, seed: int) -> tuple[float, float]:
    draw = np.random.default_rng(seed)
    means = [values[draw.integers(len(values), size=len(values))].mean() for _ in range(4000)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def test_other_values_get_a_percentile_bootstrap_over_problems():
    values = np.random.default_rng(3).integers(0, 5, size=60) / 4
    estimate = mean_estimate(values.tolist())
    assert estimate.mean == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(brute_bootstrap(values, 1), abs=0.015)


def test_the_same_values_and_seed_give_the_same_interval():
    values = [0.25, 0.5, 0.75, 1.0, 0.0, 0.5]
    assert mean_estimate(values) == mean_estimate(values)
    assert mean_estimate(values, seed=1) == mean_estimate(values, seed=1)


def test_a_difference_is_paired_by_problem():
    draw = np.random.default_rng(0)
    before = draw.random(50)
    after = np.clip(before + 0.05 + 0.01 * draw.standard_normal(50), 0, 1)
    estimate = paired_difference(before.tolist(), after.tolist())
    assert estimate.mean == pytest.approx((after - before).mean())
    assert (estimate.low, estimate.high) == pytest.approx(brute_bootstrap(after - before, 1), abs=2e-3)
    assert not estimate.covers_zero  # unpaired, the spread of the problems would drown it
    swapped = paired_difference(after.tolist(), before.tolist())
    assert swapped.mean == pytest.approx(-estimate.mean)


def test_equal_runs_differ_by_zero():
    values = [0.0, 1.0, 1.0, 0.5]
    estimate = paired_difference(values, values)
    assert estimate.mean == 0
    assert estimate.covers_zero
    assert estimate.low == pytest.approx(-estimate.high)


def test_a_single_problem_shows_nothing():
    assert paired_difference([0.5], [1.0]).covers_zero
    assert paired_difference([0.0], [1.0]).low < 0.5
    alone = mean_estimate([0.5])
    assert alone.high - alone.low > 0.7


def test_values_all_equal_leave_room_for_what_was_not_seen():
    few, many = (mean_estimate([0.5] * n) for n in (10, 1000))
    assert few.low < 0.4 < 0.6 < few.high
    assert 0 < many.high - many.low < 0.01
    # At the ends it is Wilson's interval.
    ends = paired_difference([0.0] * 20, [1.0] * 20)
    assert ends.high == 1
    assert ends.low == pytest.approx(1 - 2 * wilson(0, 20)[1])


def test_what_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        mean_estimate([])
    with pytest.raises(ValueError, match="at least one value"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="same problems: got 1 and 2"):
        paired_difference([1.0], [1.0, 0.0])


def coverage(draw_values, truth: float, repeats: int, estimate) -> float:
    hits = 0
    for seed in range(repeats):
        interval = estimate(draw_values(np.random.default_rng(seed)))
        hits += interval.low <= truth <= interval.high
    return hits / repeats


@pytest.mark.parametrize(("p", "n"), [(0.1, 40), (0.5, 100)])
def test_wilsons_interval_covers_95_percent(p, n):
    found = coverage(lambda draw: (draw.random(n) < p).astype(float), p, 500, mean_estimate)
    assert 0.90 <= found <= 0.98


def test_the_bootstrap_of_avg_at_k_covers_95_percent(monkeypatch):
    monkeypatch.setattr("sgsd.evaluation.statistics._RESAMPLES", 1000)

    def avg_at_4(draw: np.random.Generator) -> np.ndarray:
        difficulty = draw.random(60)
        return draw.binomial(4, difficulty) / 4

    assert 0.90 <= coverage(avg_at_4, 0.5, 300, mean_estimate) <= 0.98


def test_the_bootstrap_of_a_difference_covers_95_percent(monkeypatch):
    monkeypatch.setattr("sgsd.evaluation.statistics._RESAMPLES", 1000)

    def estimate(pair: tuple[np.ndarray, np.ndarray]):
        return paired_difference(*pair)

    def runs(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        difficulty = draw.uniform(0.1, 0.7, size=80)
        return draw.binomial(2, difficulty) / 2, draw.binomial(2, difficulty + 0.1) / 2

    assert 0.90 <= coverage(runs, 0.1, 300, estimate) <= 0.98
