"""What a bank item is worth, from its record in the ledger, with an interval.

Let p₊ be the probability that an item with a stance on a success supports it, and p₋ that with a stance on a failure it
suppresses it. The *credit* is their mean,

    c = (p₊ + p₋) / 2,

the probability that an active use is positive if as many successes as failures were judged: 1 helps, 0 harms, and an
item that says the same of every rollout has 0.5. The plain share of positive uses does not do that: of an item that
suppresses everything it is the share of failures, and falls while the policy learns.

- Each p is estimated by p̃ = (s + 1) / (n + 2) of s positive among n active uses, the credit by the mean of both, with
  the interval ± z/2 √(Σ p̃ (1 − p̃) / (n + 2)) (Agresti & Caffo 2000). An item without evidence has 0.5, and moves from
  there as evidence comes in: items are ranked by the estimate itself.
- Whoever looks again and again while uses come in, as retirement does, needs a bound that holds at all looks at once.
  Under p, B(½ + s, ½ + n − s) / B(½, ½) / (p^s (1 − p)^(n − s)) is a martingale of mean 1, and so is the product over
  successes and failures. By Ville's inequality (1939) it ever reaches 1/α with a probability of at most α (Robbins
  1970); the bound is the largest c of all (p₊, p₋) for which it has not.

- An item may change with the policy and its teacher. One that supports everything while few rollouts succeed and
  suppresses everything once many do tells nothing apart at any time, yet p₊ and p₋ over the whole run are both low
  (Simpson's paradox). So the credit *within phases* compares successes with failures of one phase only: the mean of the
  phases' credits, weighted by n₊ n₋ / (n₊ + n₋) (Mantel & Haenszel 1959). Retirement asks for both.

All take uses for independent of each other. Uses on rollouts of one problem are not quite.
``benchmarks/ledger_credit.py`` measures coverage and retirements; ``docs/bank.md`` has the figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import lgamma, log, sqrt
from statistics import NormalDist

from sgsd.bank.ledger import ItemRecord

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Credit:
    """An estimate from 0 to 1 and its confidence interval at one look."""

    value: float
    low: float
    high: float


def credit(record: ItemRecord, *, confidence: float = CONFIDENCE) -> Credit:
    """An item's credit; 0.5, from 0.01 to 0.99, for one without active uses.

    Args:
        record: of the item.
        confidence: of the interval, between 0 and 1.
    """
    value, error = _estimate(record)
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return Credit(value, max(value - half, 0.0), min(value + half, 1.0))


def trust(*records: ItemRecord) -> float:
    """How sure it is that a teacher made of these items helps: Φ((c − ½) / its standard error), of the least sure one.

    0.5 without evidence; towards 1 for items that help, towards 0 for those that harm.
    """
    standardised = [(value - 0.5) / error for value, error in map(_estimate, records)]
    return NormalDist().cdf(min(standardised))


def worth(*records: ItemRecord, prior: float = 0.0) -> float:
    """How far a teacher made of these items tells successes from failures, from 0 to 1, by the worst one.

    max(0, 2 c − 1) = max(0, p₊ + p₋ − 1): 0 for an item that says the same of all rollouts, or harms; 1 for one that is
    never wrong. Here each p̃ is drawn by two uses not to ½ but to what the item says of all rollouts, plus half the
    prior. So an unknown item is worth ``prior``; and one that suppresses everything, whose ``credit`` is above ½ while
    nothing succeeds, half of it.

    Args:
        records: of the items.
        prior: what an unknown item is taken to be worth, from 0 to 1.
    """
    return max(0.0, min(2 * _expected(record, prior) - 1 for record in records))


def sure_worth(records: Iterable[ItemRecord]) -> float:
    """What the best of some items is sure to be worth: max(0, 2 c − 1) of the highest lower end of a credit's interval.

    0 for a bank none of whose items has told successes from failures yet.
    """
    return max([0.0, *(2 * credit(record).low - 1 for record in records)])


def credit_within(phases: Iterable[ItemRecord], *, confidence: float = CONFIDENCE) -> Credit:
    """An item's credit within phases; 0.5, from 0 to 1, where no phase has both successes and failures.

    Args:
        phases: its records.
        confidence: of the interval at one look, between 0 and 1.
    """
    weights, weighted, variance = 0.0, 0.0, 0.0
    for record in phases:
        counts = _by_outcome(record)
        if not all(active for _, active in counts):
            continue
        weight = 1 / sum(1 / active for _, active in counts)
        weights += weight
        weighted += weight * sum(positive / active for positive, active in counts) / 2
        smoothed = [((positive + 1) / (active + 2), active) for positive, active in counts]
        # p̃ (1 − p̃) is too small for p (1 − p) by about (n + 1) / (n + 2), most of all at p = ½.
        variance += weight**2 * sum(p * (1 - p) * (n + 2) / (n * (n + 1)) for p, n in smoothed) / 4
    if not weights:
        return Credit(0.5, 0.0, 1.0)
    value, half = weighted / weights, NormalDist().inv_cdf((1 + confidence) / 2) * sqrt(variance) / weights
    return Credit(value, max(value - half, 0.0), min(value + half, 1.0))


def positive_share(record: ItemRecord, *, confidence: float = CONFIDENCE) -> Credit:
    """The probability that an active use is positive, as successes and failures come; Wilson's interval (1927).

    0.5 with all that is possible without active uses on rollouts with a verdict.
    """
    uses = record.positive + record.negative
    if not uses:
        return Credit(0.5, 0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = record.positive / uses
    centre = (share + z * z / (2 * uses)) / (1 + z * z / uses)
    half = z * sqrt(share * (1 - share) / uses + (z / (2 * uses)) ** 2) / (1 + z * z / uses)
    # At the ends the interval reaches them on paper.
    return Credit(share, centre - half if record.positive else 0.0, centre + half if record.negative else 1.0)


def lasting_bound(record: ItemRecord, *, error: float = 1 - CONFIDENCE) -> float:
    """An upper bound of the credit; it is ever too low, at all looks together, with a probability of at most ``error``.

    Args:
        record: of the item.
        error: above 0, below 1.
    """
    counts = _by_outcome(record)
    evidence = sum(
        _log_beta(0.5 + positive, 0.5 + active - positive) - _log_beta(0.5, 0.5) for positive, active in counts
    )

    def point(weight: float) -> list[float]:
        """The p that maximise Σ p + weight · log likelihood: 1 for weight 0, the shares as it grows."""
        found: list[float] = []
        for positive, active in counts:
            b = weight * active - 1  # p² + b p − weight · positive = 0, the positive root, without cancellation
            root = sqrt(b * b + 4 * weight * positive)
            found.append(min(2 * weight * positive / (b + root) if b > 0 else (root - b) / 2, 1.0))
        return found

    def possible(shares: list[float]) -> bool:
        likelihood = sum(
            _times_log(positive, p) + _times_log(active - positive, 1 - p)
            for p, (positive, active) in zip(shares, counts, strict=True)
        )
        return evidence - likelihood < -log(error)

    low, high = 1e-12, 1e12  # bisected by their logarithms
    if possible(point(low)):
        return 1.0
    for _ in range(80):
        middle = sqrt(low * high)
        low, high = (low, middle) if possible(point(middle)) else (middle, high)
    return sum(point(high)) / 2


def separation(better: Sequence[float], worse: Sequence[float]) -> float:
    """Probability that one of ``better`` is above one of ``worse``, equal ones counting half: the area under the ROC.

    Raises:
        ValueError: one is empty.
    """
    if not better or not worse:
        raise ValueError(f"both kinds must be there: got {len(better)} and {len(worse)}")
    above = sum((high > low) + (high == low) / 2 for high in better for low in worse)
    return above / (len(better) * len(worse))


def _estimate(record: ItemRecord) -> tuple[float, float]:
    """The credit and its standard error."""
    shares = [((positive + 1) / (active + 2), active + 2) for positive, active in _by_outcome(record)]
    value = sum(share for share, _ in shares) / 2
    return value, sqrt(sum(share * (1 - share) / uses for share, uses in shares)) / 2


def _expected(record: ItemRecord, prior: float) -> float:
    """The credit with each outcome's share drawn to that of all uses, and half of ``prior`` beyond."""
    (supported, successes), (suppressed, failures) = _by_outcome(record)
    uses = successes + failures
    support = (supported + failures - suppressed) / uses if uses else 0.5
    right = (supported + 2 * support + prior) / (successes + 2)
    righted = (suppressed + 2 * (1 - support) + prior) / (failures + 2)
    return (right + righted) / 2


def _by_outcome(record: ItemRecord) -> tuple[tuple[int, int], tuple[int, int]]:
    """(positive, active) on successes, and on failures."""
    return (
        (record.positive_success, record.positive_success + record.negative_success),
        (record.positive_failure, record.positive_failure + record.negative_failure),
    )


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _times_log(count: int, p: float) -> float:
    """count · log p, where nothing times minus infinity is nothing."""
    if not count:
        return 0.0
    return count * log(p) if p > 0 else float("-inf")
