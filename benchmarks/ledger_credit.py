"""What items of known worth are credited with, and which are retired, by simulation.

    python benchmarks/ledger_credit.py [--repeats 2000]

Each item takes part in rollouts whose success rate is 20, 50 or 80 %; an active use of it is positive with a known
probability. The trainer's looks are imitated: one every 25 optimizer steps, 12 or 100 of them. With 2,000 repetitions a
figure is good to ± 1 point. Tables are in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sgsd.bank import ItemRecord
from sgsd.bank.credit import Credit, credit, lasting_bound, positive_share

WORTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
SUCCESS_RATES = (0.2, 0.5, 0.8)
USES_A_LOOK = (5, 20, 100)


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
    rng: np.random.Generator, supports: tuple[float, float], success_rates: Sequence[float], uses: float
) -> Iterator[ItemRecord]:
    """The record at each look.

    Args:
        rng: draws.
        supports: probabilities that an active use on a success, on a failure, is positive.
        success_rates: up to each look, since the one before.
        uses: active uses between two looks, on average.
    """
    total = ItemRecord()
    for rate in success_rates:
        successes, failures = rng.poisson(uses * rate), rng.poisson(uses * (1 - rate))
        right = rng.binomial(successes, supports[0]), rng.binomial(failures, supports[1])
        total += record(int(right[0]), int(successes - right[0]), int(right[1]), int(failures - right[1]))
        yield total


def coverage(estimate: Callable[[ItemRecord], Credit], worth: float, rate: float, uses: float, repeats: int) -> float:
    """Share of the repetitions whose interval, at one look, holds the worth."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(repeats):
        interval = estimate(next(looks(rng, (worth, worth), [rate], uses)))
        held += interval.low <= worth <= interval.high
    return held / repeats


def retired(
    bound: Callable[[ItemRecord], float],
    supports: tuple[float, float],
    success_rates: Sequence[float],
    uses: float,
    repeats: int,
    *,
    limit: float = 0.5,
    min_active: int = 50,
) -> float:
    """Share of the items whose bound is below the limit at any look."""
    rng = np.random.default_rng(0)
    return (
        sum(
            any(
                total.positive + total.negative >= min_active and bound(total) < limit
                for total in looks(rng, supports, success_rates, uses)
            )
            for _ in range(repeats)
        )
        / repeats
    )


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


BOUNDS: dict[str, Callable[[ItemRecord], float]] = {
    "share of positive, Wilson": lambda total: positive_share(total).high,
    "credit, interval of one look": lambda total: credit(total).high,
    "credit, bound of all looks": lasting_bound,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats: int = parser.parse_args().repeats
    estimates = {"share of positive": positive_share, "credit": credit}
    rows = [
        [name, f"{100 * rate:.0f} %", str(uses), *(f"{100 * coverage(of, w, rate, uses, repeats):.1f}" for w in WORTHS)]
        for name, of in estimates.items()
        for rate in SUCCESS_RATES
        for uses in (20, 100)
    ]
    header = ["estimate", "success rate", "active uses", *(f"worth {worth}" for worth in WORTHS)]
    table("Coverage of 95 % intervals at one look, in %", header, rows)
    rows = []
    for name, bound in BOUNDS.items():
        for count in (12, 100):
            for uses in USES_A_LOOK:
                rates = [0.5] * count
                shares = [retired(bound, (w, w), rates, uses, max(repeats // 4, 1)) for w in WORTHS]
                rows.append([name, str(count), str(uses), *(f"{100 * share:.1f}" for share in shares)])
    header = ["bound", "looks", "active uses a look", *(f"worth {worth}" for worth in WORTHS)]
    table("Retired where the bound fell below 0.5 at any look, in % of the items", header, rows)
    rows = []
    for stance, supports in (("supports all", (1.0, 0.0)), ("suppresses all", (0.0, 1.0)), ("at random", (0.5, 0.5))):
        for drift, (first, last) in (("rises from 20 to 90 %", (0.2, 0.9)), ("falls from 50 to 0 %", (0.5, 0.0))):
            rates = list(np.linspace(first, last, 12))
            shares = [retired(bound, supports, rates, 20, max(repeats // 4, 1)) for bound in BOUNDS.values()]
            rows.append([stance, drift, *(f"{100 * share:.1f}" for share in shares)])
    table("Items that tell nothing apart: retired below 0.5, in %", ["stance", "success rate", *BOUNDS], rows)


if __name__ == "__main__":
    main()
