"""Means over problems with 95 % intervals, and differences paired by problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % confidence interval.

    Attributes:
        mean: over problems.
        low, high: the interval.
    """

    mean: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        """Whether the interval holds 0: no difference shown."""
        return self.low <= 0 <= self.high


def mean_estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of per-problem values, problems being the unit of chance.

    Values that are all 0 or 1 get a Wilson interval; others a percentile bootstrap over problems.

    Args:
        values: one per problem.
        seed: of the bootstrap.

    Raises:
        ValueError: without values.
    """
    if not len(values):
        raise ValueError("an estimate needs at least one value")
    data = np.asarray(values, dtype=float)
    if set(data.tolist()) <= {0.0, 1.0}:
        interval = stats.binomtest(int(data.sum()), len(data)).proportion_ci(method="wilson")
        return Estimate(float(data.mean()), float(interval.low), float(interval.high))
    return _bootstrap(data, seed)


def paired_difference(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of ``after − before``, paired by problem: a percentile bootstrap over problems.

    Args:
        before, after: one value per problem, in the same order.
        seed: of the bootstrap.

    Raises:
        ValueError: if the counts differ, or without values.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired difference needs the same problems: got {len(before)} and {len(after)}")
    if not len(before):
        raise ValueError("an estimate needs at least one value")
    return _bootstrap(np.asarray(after, dtype=float) - np.asarray(before, dtype=float), seed)


def _bootstrap(data: np.ndarray, seed: int) -> Estimate:
    mean = float(data.mean())
    if len(data) == 1 or not data.std():
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (data,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(seed), batch=1000
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))
