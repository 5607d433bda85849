"""Means over problems with 95 % intervals, and differences paired by problem; one seed or several.

The value of a problem is the share of its k samples that are correct. Problems are the sampling unit; the seeds of a
method that was trained several times are a second one. Let ``v[s, i]`` be the value of problem i = 1..N under seed
s = 1..S, ``v[i]`` its mean over the seeds, ``m[s]`` a seed's mean, ``m`` the mean of all. The variance of m is

    V_problems = var_i(v[i]) / N                                           problems and sampled completions
    V_seeds    = max(0, var_s(m[s]) / S − var(v[s, i] − v[i] − m[s] + m) / (N S))     seeds beyond that

by the method of moments for a crossed design (Searle, Casella & McCulloch, *Variance Components*, 1992, ch. 4). Each
part keeps its own Student quantile: ``h² = t²(N − 1) V_problems + t²(S − 1) V_seeds``. Several evaluations are averaged
with equal weights; their V_problems add up, with Satterthwaite's degrees of freedom (1946).

- A difference d, paired by problem, gets d ± h, after two problems have been added that differ by ± the root mean
  square of the nonzero differences. For 0/1 values that is the adjustment of Bonett & Price (2012).
- A mean gets Wilson's score interval (1927) of ``m (1 − m) / V`` effective problems (Korn & Graubard 1998) with h² / V
  for z². For values that are all 0 or 1, that is Wilson's interval itself.

``docs/statistics.md`` has their coverage, measured by ``benchmarks/interval_coverage.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import stats

Values: TypeAlias = Sequence[float] | Sequence[Sequence[float]] | np.ndarray
"""One value a problem, from 0 to 1: ``[N]`` of one seed, or ``[S, N]`` of several over the same problems."""

CONFIDENCE = 0.95
_ROUNDING = 1e-12  # equal means of shares differ by less than this


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and the ends of its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def covers_zero(self) -> bool:
        """Whether the interval contains 0."""
        return self.low <= 0 <= self.high


def mean_estimate(values: Values) -> Estimate:
    """The mean of per-problem values and its interval: ``mean_over`` for one evaluation."""
    return mean_over([values])


def mean_over(evaluations: Sequence[Values]) -> Estimate:
    """The unweighted mean of several evaluations' means.

    Args:
        evaluations: the values of each evaluation; all with the same seeds, in one order.

    Raises:
        ValueError: no values, or different numbers of seeds.
    """
    tables = _tables(evaluations)
    mean = float(np.mean([table.mean() for table in tables]))
    problems = len(tables) ** 2 / sum(1 / table.shape[1] for table in tables)
    seeds = _seed_variance(tables)
    variance = sum(_problem_variances(tables)) + seeds
    binary = len(tables) == 1 and len(tables[0]) == 1 and set(np.unique(tables[0])) <= {0.0, 1.0}
    if binary or variance < _ROUNDING**2 or problems <= 1:  # no estimate of the variance: as for 0/1 values
        effective, z2 = problems, float(stats.norm.ppf((1 + CONFIDENCE) / 2)) ** 2
    else:
        squared = _squared_half_width(tables, [(seeds, len(tables[0]))])
        effective, z2 = mean * (1 - mean) / variance, squared / variance
    centre = (mean + z2 / (2 * effective)) / (1 + z2 / effective)
    half = np.sqrt(z2 * (mean * (1 - mean) / effective + z2 / (4 * effective**2))) / (1 + z2 / effective)
    return Estimate(mean, float(max(0.0, centre - half)), float(min(1.0, centre + half)))


def paired_difference(before: Values, after: Values, *, same_seeds: bool = False) -> Estimate:
    """The mean of ``after − before``, paired by problem: ``difference_over`` for one evaluation."""
    return difference_over([before], [after], same_seeds=same_seeds)


def difference_over(before: Sequence[Values], after: Sequence[Values], *, same_seeds: bool = False) -> Estimate:
    """The unweighted mean over several evaluations of ``after − before``, paired by problem.

    Args:
        before, after: for each evaluation the values of the same problems in one order; the numbers of seeds may
            differ.
        same_seeds: row s of both has the same seed, so that effects of the seed on both cancel.

    Raises:
        ValueError: no values, or different numbers of problems or of paired seeds.
    """
    firsts, seconds = _tables(before), _tables(after)
    for first, second in zip(firsts, seconds, strict=True):
        if first.shape[1] != second.shape[1]:
            raise ValueError(f"a paired difference needs the same problems: got {first.shape[1]} and {second.shape[1]}")
        if same_seeds and first.shape[0] != second.shape[0]:
            raise ValueError(
                f"a difference paired by seed needs the same seeds: got {first.shape[0]} and {second.shape[0]}"
            )
    if same_seeds:
        tables = [second - first for first, second in zip(firsts, seconds, strict=True)]
        seeds = [(_seed_variance(tables), len(tables[0]))]
    else:
        means = [[table.mean(axis=0, keepdims=True) for table in side] for side in (firsts, seconds)]
        tables = [second - first for first, second in zip(*means, strict=True)]
        seeds = [(_seed_variance(side), len(side[0])) for side in (firsts, seconds)]
    mean = float(np.mean([table.mean() for table in tables]))
    half = _squared_half_width([_with_two_problems(table) for table in tables], seeds) ** 0.5
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half))


def _tables(evaluations: Sequence[Values]) -> list[np.ndarray]:
    """Each evaluation as ``[S, N]``."""
    tables = [np.atleast_2d(np.asarray(values, dtype=float)) for values in evaluations]
    if not tables or any(table.size == 0 for table in tables):
        raise ValueError("an estimate needs at least one value")
    if len({table.shape[0] for table in tables}) > 1:
        raise ValueError(f"different numbers of seeds: got {', '.join(str(table.shape[0]) for table in tables)}")
    return tables


def _problem_variances(tables: Sequence[np.ndarray]) -> list[float]:
    """The share of each table's V_problems in the variance of the mean of the tables' means."""
    return [
        float(table.mean(axis=0).var(ddof=1)) / table.shape[1] / len(tables) ** 2 if table.shape[1] > 1 else 0.0
        for table in tables
    ]


def _seed_variance(tables: Sequence[np.ndarray]) -> float:
    """V_seeds of the mean of the tables' means."""
    S, C = tables[0].shape[0], len(tables)
    if S == 1:
        return 0.0
    explained = 0.0
    for table in tables:
        N = table.shape[1]
        if N > 1:
            residual = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
            explained += float((residual**2).sum()) / ((S - 1) * (N - 1)) / (N * S) / C**2
    by_seed = np.mean([table.mean(axis=1) for table in tables], axis=0)
    return max(0.0, float(by_seed.var(ddof=1)) / S - explained)


def _squared_half_width(tables: Sequence[np.ndarray], seeds: Sequence[tuple[float, int]]) -> float:
    """``h²`` from the tables' problems and (V_seeds, number of seeds) of each method.

    Degrees of freedom are pooled over evaluations, but not with those of the seeds: three seeds that happen to agree
    would count as many.
    """
    own = _problem_variances(tables)
    pairs = zip(own, tables, strict=True)
    pooled = sum(variance**2 / (table.shape[1] - 1) for variance, table in pairs if variance > 0)
    parts = [(sum(own), sum(own) ** 2 / pooled if pooled else np.inf)]
    parts += [(variance, number - 1) for variance, number in seeds if variance > 0]
    return sum(float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) ** 2 * variance for variance, freedom in parts)


def _with_two_problems(table: np.ndarray) -> np.ndarray:
    """The table with two more problems: plus and minus the root mean square of the nonzero differences."""
    means = table.mean(axis=0)
    differing = means[np.abs(means) > _ROUNDING]
    size = float(np.sqrt(np.mean(differing**2))) if differing.size else 1.0
    added = np.full((table.shape[0], 1), size)
    return np.concatenate([table, added, -added], axis=1)
