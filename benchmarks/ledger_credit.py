"""What items of known worth are credited with, and which are retired, by simulation.

    python benchmarks/ledger_credit.py [--repeats 2000]

An active use of an item is positive with a known probability. The trainer's looks are imitated, one after each phase of
25 optimizer steps, 12 or 48 of them. With 2,000 repetitions coverage is good to ± 1 point, retirement (a quarter of the
repetitions) to ± 2. Tables are in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from sgsd.bank import ItemRecord
from sgsd.bank.credit import Credit, credit, credit_within, lasting_bound, positive_share

WORTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


def record(positive_success: int, negative_success: int, positive_failure: int, negative_failure: int) -> ItemRecord:
    """The record of an item that had these active uses and no others."""
    successes, failures = positive_success + negative_success, positive_failure + negative_failure
    return ItemRecord(
        uses=successes + failures,
        active=successes + failures,
        positive=positive_success + positive_failure,
        negative=negative_success + negative_failure,
        successes=successes,
        failures=failures,
        positive_success=positive_success,
        negative_success=negative_success,
        positive_failure=positive_failure,
        negative_failure=negative_failure,
    )


def looks(
    rng: np.random.Generator, supports: Iterable[tuple[float, float]], success_rates: Sequence[float], uses: float
) -> Iterator[list[ItemRecord]]:
    """The phases so far, at each look; a phase lies between two of them.

    Args:
        rng: draws.
        supports: of each phase, probabilities that an active use on a success, on a failure, is positive.
        success_rates: of each phase.
        uses: active uses of a phase, on average.
    """
    phases: list[ItemRecord] = []
    for (on_success, on_failure), rate in zip(supports, success_rates, strict=True):
        successes, failures = rng.poisson(uses * rate), rng.poisson(uses * (1 - rate))
        right = rng.binomial(successes, on_success), rng.binomial(failures, on_failure)
        phases.append(record(int(right[0]), int(successes - right[0]), int(right[1]), int(failures - right[1])))
        yield phases


Estimate = Callable[[Sequence[ItemRecord]], Credit]


def total(phases: Sequence[ItemRecord]) -> ItemRecord:
    """All of them together."""
    return sum(phases, ItemRecord())


def coverage(estimate: Estimate, worth: float, rates: Sequence[float], uses: float, repeats: int) -> float:
    """Share of the repetitions whose interval, at the last look alone, holds the worth."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(repeats):
        *_, phases = looks(rng, [(worth, worth)] * len(rates), rates, uses / len(rates))
        interval = estimate(phases)
        held += interval.low <= worth <= interval.high
    return held / repeats


def retired(
    bound: Callable[[Sequence[ItemRecord]], float],
    supports: Sequence[tuple[float, float]],
    success_rates: Sequence[float],
    uses: float,
    repeats: int,
    *,
    limit: float = 0.5,
    min_active: int = 50,
) -> float:
    """Share of the items whose bound is below the limit at any look."""
    rng = np.random.default_rng(0)
    gone = 0
    for _ in range(repeats):
        gone += any(
            total(phases).active >= min_active and bound(phases) < limit
            for phases in looks(rng, supports, success_rates, uses)
        )
    return gone / repeats


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


ESTIMATES: dict[str, Estimate] = {
    "share of positive": lambda phases: positive_share(total(phases)),
    "credit": lambda phases: credit(total(phases)),
    "credit within phases": credit_within,
}
BOUNDS: dict[str, Callable[[Sequence[ItemRecord]], float]] = {
    "share of positive, one look": lambda phases: positive_share(total(phases)).high,
    "credit, one look": lambda phases: credit(total(phases)).high,
    "credit, all looks": lambda phases: lasting_bound(total(phases)),
    "retirement": lambda phases: max(lasting_bound(total(phases)), credit_within(phases).high),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats: int = parser.parse_args().repeats
    worths = [f"worth {worth}" for worth in WORTHS]
    rows: list[list[str]] = []
    for name, estimate in ESTIMATES.items():
        for uses in (20, 100, 400):
            for rate, rates in (("20 %", [0.2] * 4), ("50 %", [0.5] * 4), ("from 10 to 80 %", [0.1, 0.3, 0.6, 0.8])):
                shares = [coverage(estimate, worth, rates, uses, repeats) for worth in WORTHS]
                rows.append([name, str(uses), rate, *(f"{100 * share:.1f}" for share in shares)])
    header = ["estimate", "active uses in 4 phases", "success rate", *worths]
    table("Coverage of 95 % intervals at one look, in %", header, rows)
    repeats = max(repeats // 4, 1)
    rows = []
    for name, bound in BOUNDS.items():
        for count, uses in ((12, 5), (12, 20), (12, 100), (48, 20)):
            shares = [retired(bound, [(w, w)] * count, [0.5] * count, uses, repeats) for w in WORTHS]
            rows.append([name, str(count), str(uses), *(f"{100 * share:.1f}" for share in shares)])
    table("Retired below 0.5 at any look, in % of the items", ["bound", "looks", "active uses a look", *worths], rows)
    rows = []
    rising = [float(rate) for rate in np.linspace(0.2, 0.9, 12)]
    stances = {
        "supports everything": [1.0] * 12,
        "suppresses everything": [0.0] * 12,
        "at random": [0.5] * 12,
        "supports ever less": [float(share) for share in np.linspace(0.95, 0.05, 12)],
        "supports ever more": [float(share) for share in np.linspace(0.05, 0.95, 12)],
    }
    for stance, shares in stances.items():
        supports = [(share, 1 - share) for share in shares]
        cells = [retired(bound, supports, rising, 20, repeats) for bound in BOUNDS.values()]
        rows.append([stance, *(f"{100 * cell:.1f}" for cell in cells)])
    title = "Items that tell nothing apart, success rate from 20 to 90 %: retired below 0.5, in %"
    table(title, ["item", *BOUNDS], rows)


if __name__ == "__main__":
    main()
