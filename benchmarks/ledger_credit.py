"""How often the interval of a credit holds the truth, by simulation.

    python benchmarks/ledger_credit.py [--repeats 2000]

An item of known worth teaches the 8 rollouts of each of 10 to 400 problems, which are alike in several ways (KINDS).
With 2,000 repetitions coverage is good to ± 1 point. Tables are in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sgsd.bank import ItemRecord
from sgsd.bank.credit import credit

ROLLOUTS = 8
PROBLEMS = (10, 40, 100, 400)
WORTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
SUCCESS_RATES = (0.2, 0.5, 0.8)
CORRELATION = 0.4
"""Of two rollouts of one problem, where problems have effects."""

Draw = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Whether a rollout succeeds, and whether the item is right about it, ``[repeats, problems, ROLLOUTS]``."""


def independent(rng: np.random.Generator, shape: tuple[int, int], worth: float, rate: float) -> Draw:
    """All rollouts are independent of each other."""
    rollouts = (*shape, ROLLOUTS)
    return rng.random(rollouts) < rate, rng.random(rollouts) < worth


def shared_stances(rng: np.random.Generator, shape: tuple[int, int], worth: float, rate: float) -> Draw:
    """The item is right about all rollouts of a problem, or about none."""
    success, _ = independent(rng, shape, worth, rate)
    return success, np.broadcast_to(rng.random((*shape, 1)) < worth, success.shape)


def all_or_none(rng: np.random.Generator, shape: tuple[int, int], worth: float, rate: float) -> Draw:
    """All rollouts of a problem succeed, or none."""
    _, right = independent(rng, shape, worth, rate)
    return np.broadcast_to(rng.random((*shape, 1)) < rate, right.shape), right


def both_shared(rng: np.random.Generator, shape: tuple[int, int], worth: float, rate: float) -> Draw:
    """Both: a problem tells no more than one rollout."""
    return all_or_none(rng, shape, worth, rate)[0], shared_stances(rng, shape, worth, rate)[1]


def effects(rng: np.random.Generator, shape: tuple[int, int], worth: float, rate: float) -> Draw:
    """Each problem has a success rate and a worth of the item, drawn apart."""
    rollouts = (*shape, ROLLOUTS)
    rates, worths = (_effect(rng.random((*shape, 1)), mean) for mean in (rate, worth))
    return rng.random(rollouts) < rates, rng.random(rollouts) < worths


def one_effect(rng: np.random.Generator, shape: tuple[int, int], worth: float, rate: float) -> Draw:
    """The item is right most often about the easiest problems."""
    rollouts = (*shape, ROLLOUTS)
    ease = rng.random((*shape, 1))
    return rng.random(rollouts) < _effect(ease, rate), rng.random(rollouts) < _effect(ease, worth)


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int], float, float], Draw]] = {
    "independent rollouts": independent,
    "stances shared": shared_stances,
    "outcomes all or none": all_or_none,
    "both": both_shared,
    "effects of problems": effects,
    "one effect on both": one_effect,
}


def _effect(quantile: NDArray[np.float64], mean: float) -> NDArray[np.float64]:
    """Of a beta distribution, by which two rollouts of one problem correlate by ``CORRELATION``."""
    size = 1 / CORRELATION - 1
    return np.asarray(stats.beta.ppf(quantile, mean * size, (1 - mean) * size))


def true_credit(kind: str, worth: float, rate: float) -> float:
    """(p₊ + p₋) / 2 over all problems there could be."""
    if KINDS[kind] is not one_effect:
        return worth
    ease = (np.arange(100_000) + 0.5) / 100_000
    rates, worths = _effect(ease, rate), _effect(ease, worth)
    return float(np.average(worths, weights=rates) + np.average(worths, weights=1 - rates)) / 2


def records(success: NDArray[np.bool_], right: NDArray[np.bool_]) -> list[ItemRecord]:
    """One for each repetition, of an item that has a stance on every rollout."""
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


def coverage(found: Sequence[ItemRecord], truth: float) -> float:
    """Share of the records whose interval holds the truth."""
    return sum((interval := credit(one)).low <= truth <= interval.high for one in found) / len(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats: int = parser.parse_args().repeats
    print(
        "Coverage of 95 % intervals in %, lowest and mean over worths and success rates; their mean width\n\n"
        "| rollouts of a problem | problems | by problem | width | as if rollouts were independent | width |\n"
        "|---|---|---|---|---|---|"
    )
    for kind, problems in product(KINDS, PROBLEMS):
        held: dict[bool, list[float]] = {True: [], False: []}
        widths: dict[bool, list[float]] = {True: [], False: []}
        for worth, rate in product(WORTHS, SUCCESS_RATES):
            found = records(*KINDS[kind](np.random.default_rng(0), (repeats, problems), worth, rate))
            truth = true_credit(kind, worth, rate)
            for clustered in held:
                counted = found if clustered else [replace(one, products=()) for one in found]
                held[clustered].append(100 * coverage(counted, truth))
                widths[clustered] += [(interval := credit(one)).high - interval.low for one in counted]
        cells = [f"{min(held[c]):.1f}, {np.mean(held[c]):.1f} | {np.mean(widths[c]):.3f}" for c in held]
        print(f"| {kind} | {problems} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
