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

    Values that are all 0 or 1 get a Wilson interval; others a percentile bootstrap over problems. Where all values are
    the same the bootstrap knows no chance, and Wilson's bound on what was never seen takes its place.

    Args:
        values: one per problem, from 0 to 1.
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
    return _bootstrap(data, seed, lowest=0.0)


def paired_difference(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Estimate:
    """The mean of ``after − before``, paired by problem: a percentile bootstrap over problems.

    Where all differences are the same, as for a single problem or for twice the same run, the interval is the one that
    Wilson's bound leaves: one problem shows nothing, and a hundred equal ones no difference above 4 points.

    Args:
        before, after: one value per problem, from 0 to 1, in the same order.
        seed: of the bootstrap.

    Raises:
        ValueError: if the counts differ, or without values.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired difference needs the same problems: got {len(before)} and {len(after)}")
    if not len(before):
        raise ValueError("an estimate needs at least one value")
    return _bootstrap(np.asarray(after, dtype=float) - np.asarray(before, dtype=float), seed, lowest=-1.0)


def _bootstrap(data: np.ndarray, seed: int, *, lowest: float) -> Estimate:
    mean = float(data.mean())
    if data.min() == data.max():
        # At most this share of problems, with 95 % confidence, has another value: anything from lowest to 1.
        unseen = stats.binomtest(0, len(data)).proportion_ci(method="wilson").high
        return Estimate(mean, mean - unseen * (mean - lowest), mean + unseen * (1.0 - mean))
    interval = stats.bootstrap(
        (data,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(seed), batch=1000
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))
