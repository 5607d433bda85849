"""Coverage of 95 % confidence intervals, by simulation.

    python benchmarks/interval_coverage.py [--repeats 2000] [--only mean|difference|seeds|evaluations|ledger]

A repetition draws problems, each with its own probability of being solved, and then samples. The true value is the mean
over the distribution of the problems. The last table is about the credit of a bank item (``sgsd.bank.credit``), whose
true value is known; the 8 rollouts of a problem are correlated in several ways (KINDS). With 2,000 repetitions a
coverage is accurate to ± 1 point. Tables are in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from measure import show_table
from sgsd.bank import ItemRecord
from sgsd.bank.credit import credit
from sgsd.evaluation.statistics import Estimate, difference_over, mean_estimate, mean_over, paired_difference

PROBLEMS = (10, 30, 100, 500)
SAMPLES = (1, 4, 12)
DIFFICULTIES: dict[str, tuple[float, float]] = {
    "uniform": (1.0, 1.0),
    "hard, mean 11 %": (0.5, 4.0),
    "easy, mean 89 %": (4.0, 0.5),
    "all or nothing": (0.3, 0.3),
    "all alike, 30 %": (3000.0, 7000.0),
    "all alike, 5 %": (500.0, 9500.0),
    "few solvable, mean 4 %": (0.2, 5.0),
}
"""Name → the parameters of the Beta distribution of a problem's probability of being solved."""


def coverage(
    estimate: Callable[..., Estimate],
    draw: Callable[[np.random.Generator], tuple[Any, ...]],
    truth: float,
    repeats: int,
) -> float:
    """Share of the repetitions whose interval contains the true value."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(repeats):
        interval = estimate(*draw(rng))
        held += interval.low <= truth <= interval.high
    return held / repeats


def paired_chances(
    rng: np.random.Generator, n: int, difficulty: tuple[float, float], gain: float
) -> tuple[np.ndarray, np.ndarray]:
    """Success probabilities before and after: problems near 50 % gain most, and their gains vary most."""
    before = rng.beta(*difficulty, n)
    room = before * (1 - before)
    return before, np.clip(before + (4 * gain + 0.3 * rng.standard_normal(n)) * room, 0, 1)


def percent(share: float) -> str:
    """A coverage, marked where it is outside 93 to 97 %."""
    return f"{100 * share:.1f}" if 0.93 <= share <= 0.97 else f"**{100 * share:.1f}**"


def means(repeats: int) -> None:
    """Means of one seed."""
    rows: list[list[str]] = []
    for name, (a, b) in DIFFICULTIES.items():
        for n in PROBLEMS:
            cells: list[str] = []
            for k in SAMPLES:

                def draw(
                    rng: np.random.Generator, n: int = n, k: int = k, a: float = a, b: float = b
                ) -> tuple[np.ndarray]:
                    return (rng.binomial(k, rng.beta(a, b, n)) / k,)

                cells.append(percent(coverage(mean_estimate, draw, a / (a + b), repeats)))
            rows.append([name, str(n), " / ".join(cells)])
    show_table(("problems", "n", "coverage"), rows, title="Mean, k = 1 / 4 / 12")


def differences(repeats: int) -> None:
    """Differences of one seed, paired by problem, without a gain and with 5 points on a problem at 50 %."""
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
    show_table(("problems", "n", "no gain", "gain"), rows, title="Difference, k = 1 / 4 / 12")


def seeds(repeats: int) -> None:
    """Several seeds, each with an effect of its own on all problems; against one untrained model, and seed by seed.

    Seed by seed is the hard case: the same seed has no common effect on the two methods that could cancel.
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
    show_table(header, rows, title=f"Several seeds, k = {k}")


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
    show_table(("k", "mean", "difference"), rows, title="Mean over three evaluations of 30 problems")


# ---- the ledger's credit

ROLLOUTS = 8
CORRELATION = 0.4
"""Of two rollouts of one problem, where problems have effects."""
ACCURACIES = (0.1, 0.3, 0.5, 0.7, 0.9)
SUCCESS_RATES = (0.2, 0.5, 0.8)
Draw = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Whether a rollout succeeds, and whether the item is right about it, ``[repeats, problems, ROLLOUTS]``."""


def alike(
    rng: np.random.Generator, shape: tuple[int, int], accuracy: float, rate: float, *, what: str = "nothing"
) -> Draw:
    """Independent rollouts; ``what`` (outcomes or stances) is the same for all rollouts of a problem."""
    rollouts = (*shape, ROLLOUTS)
    success, right = rng.random(rollouts) < rate, rng.random(rollouts) < accuracy
    if what == "outcomes":
        success = np.broadcast_to(rng.random((*shape, 1)) < rate, rollouts)
    if what == "stances":
        right = np.broadcast_to(rng.random((*shape, 1)) < accuracy, rollouts)
    return success, right


def both_alike(rng: np.random.Generator, shape: tuple[int, int], accuracy: float, rate: float) -> Draw:
    """Outcomes and stances are the same for all rollouts of a problem."""
    draw = partial(alike, rng, shape, accuracy, rate)
    return draw(what="outcomes")[0], draw(what="stances")[1]


def effects(rng: np.random.Generator, shape: tuple[int, int], accuracy: float, rate: float, *, one: bool) -> Draw:
    """Each problem has its own success rate and accuracy of the item: independent, or one effect on both."""
    rollouts = (*shape, ROLLOUTS)
    ease = rng.random((*shape, 1))
    own = ease if one else rng.random((*shape, 1))
    return rng.random(rollouts) < _effect(ease, rate), rng.random(rollouts) < _effect(own, accuracy)


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int], float, float], Draw]] = {
    "independent rollouts": alike,
    "stances shared": partial(alike, what="stances"),
    "outcomes all or none": partial(alike, what="outcomes"),
    "both": both_alike,
    "effects of problems": partial(effects, one=False),
    "one effect on both": partial(effects, one=True),
}


def _effect(quantile: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """A quantile of the beta distribution that makes ``CORRELATION`` the correlation of two rollouts of a problem."""
    size = 1 / CORRELATION - 1
    return np.asarray(stats.beta.ppf(quantile, mean * size, (1 - mean) * size))


def true_credit(kind: str, accuracy: float, rate: float) -> float:
    """(p₊ + p₋) / 2 over the distribution of problems."""
    if kind != "one effect on both":
        return accuracy
    ease = (np.arange(100_000) + 0.5) / 100_000
    rates, accuracies = _effect(ease, rate), _effect(ease, accuracy)
    return float(np.average(accuracies, weights=rates) + np.average(accuracies, weights=1 - rates)) / 2


def records(success: NDArray[np.bool_], right: NDArray[np.bool_]) -> list[ItemRecord]:
    """The record of each repetition, for an item with a stance on every rollout."""
    of = (success & right, success, ~success & right, ~success)
    uses = np.stack([part.sum(axis=2) for part in of], axis=-1)  # [repeats, problems, 4]
    rows, columns = np.triu_indices(4)
    products = (uses[..., rows] * uses[..., columns]).sum(axis=1)
    found: list[ItemRecord] = []
    for (s, n, f, m), sums in zip(uses.sum(axis=1).tolist(), products.tolist(), strict=True):
        known = {"positive_success": s, "negative_success": n - s, "positive_failure": f, "negative_failure": m - f}
        totals = {"uses": n + m, "active": n + m, "positive": s + f, "negative": n + m - s - f}
        found.append(ItemRecord(**totals, successes=n, failures=m, **known, products=tuple(sums)))
    return found


def ledger(repeats: int) -> None:
    """Lowest and mean coverage over accuracies and success rates, and mean width; clustered, and as if independent."""
    rows: list[list[str]] = []
    for kind, problems in product(KINDS, (10, 40, 100, 400)):
        held: dict[bool, list[float]] = {True: [], False: []}
        widths: dict[bool, list[float]] = {True: [], False: []}
        for accuracy, rate in product(ACCURACIES, SUCCESS_RATES):
            found = records(*KINDS[kind](np.random.default_rng(0), (repeats, problems), accuracy, rate))
            truth = true_credit(kind, accuracy, rate)
            for clustered in held:
                credits = [credit(one if clustered else replace(one, products=())) for one in found]
                held[clustered].append(100 * float(np.mean([each.low <= truth <= each.high for each in credits])))
                widths[clustered] += [each.high - each.low for each in credits]
        cells = [
            cell for c in held for cell in (f"{min(held[c]):.1f}, {np.mean(held[c]):.1f}", f"{np.mean(widths[c]):.3f}")
        ]
        rows.append([kind, str(problems), *cells])
    header = ("rollouts of a problem", "problems", "by problem", "width", "as if independent", "width")
    show_table(header, rows, title="Credit of an item")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    tables = {"mean": means, "difference": differences, "seeds": seeds, "evaluations": evaluations, "ledger": ledger}
    parser.add_argument("--only", choices=tuple(tables))
    options = parser.parse_args()
    for name, print_table in tables.items():
        if options.only in (None, name):
            print_table(options.repeats)


if __name__ == "__main__":
    main()
