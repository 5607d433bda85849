"""How often 95 % intervals hold the truth, by simulation: the package's beside a library's bootstraps.

    python benchmarks/interval_coverage.py [--repeats 2000] [--only mean|difference|seeds|evaluations]

A repetition draws problems (each with its own chance of being solved), then samples; the truth is the mean over the
distribution that the problems come from. With 2,000 repetitions a figure is good to ± 1 point. Tables are in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

from sgsd.evaluation.statistics import Estimate, difference_over, mean_estimate, mean_over, paired_difference

PROBLEMS = (10, 30, 100, 500)
SAMPLES = (1, 4, 12)
BOOTSTRAP_PROBLEMS_AT_MOST = 100  # scipy's own needs minutes beyond
DIFFICULTIES: dict[str, tuple[float, float]] = {
    "uniform": (1.0, 1.0),
    "hard, mean 11 %": (0.5, 4.0),
    "easy, mean 89 %": (4.0, 0.5),
    "all or nothing": (0.3, 0.3),
    "all alike, 30 %": (3000.0, 7000.0),
    "all alike, 5 %": (500.0, 9500.0),
    "few solvable, mean 4 %": (0.2, 5.0),
}
"""Name → the Beta distribution of a problem's chance of being solved."""


def coverage(
    estimate: Callable[..., Estimate],
    draw: Callable[[np.random.Generator], tuple[Any, ...]],
    truth: float,
    repeats: int,
) -> float:
    """Share of the repetitions whose interval holds the truth."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(repeats):
        interval = estimate(*draw(rng))
        held += interval.low <= truth <= interval.high
    return held / repeats


def bootstrap_coverage(
    draw: Callable[[np.random.Generator], np.ndarray], truth: float, repeats: int, method: str
) -> float:
    """The same for ``scipy.stats.bootstrap``; an interval that is not a number holds nothing."""
    rng = np.random.default_rng(0)
    data = np.stack([draw(rng) for _ in range(repeats)])
    with np.errstate(all="ignore"):
        found = stats.bootstrap((data,), np.mean, axis=1, n_resamples=999, method=method, rng=rng, batch=50)
    interval = found.confidence_interval
    return float(np.mean((interval.low <= truth) & (truth <= interval.high)))


def student(values: np.ndarray) -> Estimate:
    """Student's interval, for comparison."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def paired_chances(
    rng: np.random.Generator, n: int, difficulty: tuple[float, float], gain: float
) -> tuple[np.ndarray, np.ndarray]:
    """Chances before and after: the more uncertain a problem, the more it gains, and the more its gain varies."""
    before = rng.beta(*difficulty, n)
    room = before * (1 - before)
    return before, np.clip(before + (4 * gain + 0.3 * rng.standard_normal(n)) * room, 0, 1)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def percent(share: float) -> str:
    """A coverage, marked where it is outside 93 to 97 %."""
    return f"{100 * share:.1f}" if 0.93 <= share <= 0.97 else f"**{100 * share:.1f}**"


def means(repeats: int) -> None:
    """One seed: the package's interval, Student's, and scipy's bootstraps."""
    rows: list[list[str]] = []
    for name, (a, b) in DIFFICULTIES.items():
        for n in PROBLEMS:
            cells: dict[str, list[str]] = {"sgsd": [], "student": [], "percentile": [], "BCa": []}
            for k in SAMPLES:

                def draw(rng: np.random.Generator, n: int = n, k: int = k, a: float = a, b: float = b) -> np.ndarray:
                    return rng.binomial(k, rng.beta(a, b, n)) / k

                truth = a / (a + b)
                for key, estimate in (("sgsd", mean_estimate), ("student", student)):
                    cells[key].append(percent(coverage(estimate, lambda rng: (draw(rng),), truth, repeats)))
                for method in ("percentile", "BCa"):
                    few = n <= BOOTSTRAP_PROBLEMS_AT_MOST
                    found = percent(bootstrap_coverage(draw, truth, min(repeats, 1000), method)) if few else "–"
                    cells[method].append(found)
            rows.append([name, str(n), *(" / ".join(values) for values in cells.values())])
    header = ("problems", "n", "sgsd", "Student", "bootstrap, percentile", "bootstrap, BCa")
    table("Mean, k = 1 / 4 / 12", header, rows)


def differences(repeats: int) -> None:
    """One seed, paired by problem, with no gain and with one of 5 points on a problem at 50 %."""
    rows: list[list[str]] = []
    for name, difficulty in DIFFICULTIES.items():
        for n in PROBLEMS:
            cells: dict[float, list[str]] = {0.0: [], 0.05: []}
            for gain, found in cells.items():
                before, after = paired_chances(np.random.default_rng(1), 4_000_000, difficulty, gain)
                truth = float((after - before).mean())
                for k in SAMPLES:

                    def draw(
                        rng: np.random.Generator, n: int = n, k: int = k, gain: float = gain, name: str = name
                    ) -> tuple[np.ndarray, ...]:
                        chances = paired_chances(rng, n, DIFFICULTIES[name], gain)
                        return tuple(rng.binomial(k, p) / k for p in chances)

                    found.append(percent(coverage(paired_difference, draw, truth, repeats)))
            rows.append([name, str(n), *(" / ".join(values) for values in cells.values())])
    table("Difference, k = 1 / 4 / 12", ("problems", "n", "no gain", "gain"), rows)


def seeds(repeats: int) -> None:
    """Several seeds, each with an effect of its own on all problems; against one untrained model, and seed by seed.

    Seed by seed is the hard case: two trained methods in which the same seed has nothing in common that could cancel.
    """
    rows: list[list[str]] = []
    k = 4
    for spread in (0.0, 0.02, 0.05):
        for S in (2, 3, 5):
            for n in (30, 100, 500):

                def draw(
                    rng: np.random.Generator, S: int = S, n: int = n, spread: float = spread
                ) -> tuple[np.ndarray, np.ndarray]:
                    base = rng.beta(2, 2, n) * 0.6 + 0.15
                    chances = base + 0.05 + spread * rng.standard_normal((S, 1)) + 0.03 * rng.standard_normal((S, n))
                    after = rng.binomial(k, np.clip(chances, 0, 1)) / k
                    return rng.binomial(k, base)[None] / k, after

                def draw_paired(
                    rng: np.random.Generator, S: int = S, n: int = n, spread: float = spread
                ) -> tuple[np.ndarray, np.ndarray]:
                    problems = rng.beta(2, 2, n) * 0.6 + 0.15
                    own = spread * rng.standard_normal((2, S, 1)) + 0.03 * rng.standard_normal((2, S, n))
                    before, after = problems + own
                    return tuple(rng.binomial(k, np.clip(p, 0, 1)) / k for p in (before, after + 0.05))

                mean = coverage(lambda before, after: mean_estimate(after), draw, 0.5, repeats)
                paired = coverage(partial(paired_difference, same_seeds=True), draw_paired, 0.05, repeats)
                difference = coverage(paired_difference, draw, 0.05, repeats)
                naive = coverage(lambda before, after: mean_estimate(after.mean(axis=0)), draw, 0.5, repeats)
                rows.append([f"{100 * spread:.0f}", str(S), str(n), *map(percent, (mean, difference, paired, naive))])
    compared = ("mean", "difference to one model", "difference seed by seed", "mean, seeds ignored")
    header = ("spread of seeds, points", "seeds", "n", *compared)
    table(f"Several seeds, k = {k}", header, rows)


def evaluations(repeats: int) -> None:
    """The mean over three evaluations of 30 problems: AIME24, AIME25 and HMMT25 in size; one of them harder."""
    rows: list[list[str]] = []
    difficulties = ((1.0, 1.0), (0.5, 1.0), (0.5, 2.0))
    truth = float(np.mean([a / (a + b) for a, b in difficulties]))
    gains = [paired_chances(np.random.default_rng(1), 4_000_000, own, 0.05) for own in difficulties]
    gain = float(np.mean([(after - before).mean() for before, after in gains]))
    for k in SAMPLES:

        def draw(rng: np.random.Generator, k: int = k) -> tuple[list[np.ndarray], ...]:
            chances = [paired_chances(rng, 30, own, 0.05) for own in difficulties]
            return tuple([rng.binomial(k, pair[side]) / k for pair in chances] for side in (0, 1))

        mean = coverage(lambda before, after: mean_over(before), draw, truth, repeats)
        difference = coverage(difference_over, draw, gain, repeats)
        rows.append([str(k), percent(mean), percent(difference)])
    table("Mean over three evaluations of 30 problems", ("k", "mean", "difference"), rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    tables = {"mean": means, "difference": differences, "seeds": seeds, "evaluations": evaluations}
    parser.add_argument("--only", choices=tuple(tables))
    options = parser.parse_args()
    for name, print_table in tables.items():
        if options.only in (None, name):
            print_table(options.repeats)


if __name__ == "__main__":
    main()
