"""What a bank item is worth, from its record in the ledger, with an interval.

Let p₊ be the probability that an item with a stance on a success supports it, and p₋ that with a stance on a failure it
suppresses it. The *credit* is their mean,

    c = (p₊ + p₋) / 2,

the probability that an active use is positive if as many successes as failures were judged: 1 helps, 0 harms, and an
item that says the same of every rollout has 0.5. The plain share of positive uses does not do that: of an item that
suppresses everything it is the share of failures, and falls while the policy learns.

**Estimate.** p̃ = (s + 1) / (n + 2) of s positive among n active uses; the credit is the mean of both. An item without
evidence has 0.5, and moves from there as evidence comes in: items are ranked by the estimate itself.

**Interval.** Rollouts of one problem are judged and scored alike, so problems are the sample, not uses, and count as
independent. Problem i has n_i active uses, s_i of them positive; w = Σ n_i² / n is the number of uses that a use finds
in its problem, itself included. Two problems of w uses are added, one all positive and one all negative (Agresti &
Caffo 2000, by clusters):

    p = (s + w) / (n + 2 w),    r_i = (s_i − p n_i) / (n + 2 w),

and the variance of c is that of a sum of ratios over clusters (Cochran 1977, ch. 6), ¼ Σ_i (r₊_i + r₋_i)², the added
problems among the i. The interval is (p₊ + p₋) / 2 ± t √variance, of Student's distribution, with degrees of freedom
by Satterthwaite's rule from the n / w + 1 of either outcome. ``docs/bank.md`` has its measured coverage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from scipy.special import stdtr, stdtrit  # pyright: ignore[reportMissingTypeStubs]

from sgsd.bank.ledger import ItemRecord

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Credit:
    """An estimate from 0 to 1 and its confidence interval at one look."""

    value: float
    low: float
    high: float


def credit(record: ItemRecord, *, confidence: float = CONFIDENCE) -> Credit:
    """An item's credit, with an interval of this confidence; 0.5, from 0 to 1, for one without active uses."""
    value = sum((positive + 1) / (active + 2) for positive, active in _by_outcome(record)) / 2
    centre, error, freedom = _interval(record)
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * error
    return Credit(value, max(min(centre - half, value), 0.0), min(max(centre + half, value), 1.0))


def trust(*records: ItemRecord) -> float:
    """How sure it is that a teacher made of these items helps: P(c > ½), of the least sure one, by its interval.

    0.5 without evidence; towards 1 for items that help, towards 0 for those that harm.
    """
    intervals = map(_interval, records)
    return min(float(stdtr(freedom, (centre - 0.5) / error)) for centre, error, freedom in intervals)


def vouched(*records: ItemRecord) -> float:
    """Trust in a teacher whose items somebody vouches for: 1 until the ledger speaks against one of them.

    min(1, 2 P(c > ½)): 1 without evidence and for items that help, towards 0 for those that harm.
    """
    return min(1.0, 2 * trust(*records))


def worth(*records: ItemRecord, prior: float = 0.0) -> float:
    """How far a teacher made of these items tells successes from failures, from 0 to 1, by the worst one.

    max(0, 2 c − 1) = max(0, p₊ + p₋ − 1), each p̃ drawn by two uses not to ½ but to what the item says of all rollouts,
    plus half the prior: an unknown item is worth ``prior``, one that says the same of all rollouts half of it.
    """
    return max(0.0, min(2 * _expected(record, prior) - 1 for record in records))


def sure_worth(records: Iterable[ItemRecord]) -> float:
    """What the best of some items is sure to be worth: max(0, 2 c − 1) of the highest lower end of a credit's interval.

    0 for a bank none of whose items has told successes from failures yet.
    """
    return max([0.0, *(2 * credit(record).low - 1 for record in records)])


def separation(better: Sequence[float], worse: Sequence[float]) -> float:
    """Probability that one of ``better`` is above one of ``worse``, equal ones counting half: the area under the ROC.

    Raises:
        ValueError: one is empty.
    """
    if not better or not worse:
        raise ValueError(f"both kinds must be there: got {len(better)} and {len(worse)}")
    above = sum((high > low) + (high == low) / 2 for high in better for low in worse)
    return above / (len(better) * len(worse))


def _interval(record: ItemRecord) -> tuple[float, float, float]:
    """Centre of the credit's interval, standard error and degrees of freedom."""
    # Of a problem: s of n are positive on successes, f of m on failures; sums of their products over problems.
    ss, sn, sf, sm, nn, nf, nm, ff, fm, mm = record.products
    (s, n), (f, m) = _by_outcome(record)
    p, v = _share(s, n, ss, sn, nn)
    q, u = _share(f, m, ff, fm, mm)
    covariance = (sf - q * sm - p * nf + p * q * nm) / (v.weight * u.weight)
    # The covariance leaves at least what the added problems bring, but for rounding.
    variance = max(v.variance + u.variance + 2 * covariance, v.added + u.added)
    freedom = (v.variance + u.variance) ** 2 / (v.variance**2 / v.freedom + u.variance**2 / u.freedom)
    return (p + q) / 2, sqrt(variance) / 2, freedom


@dataclass(frozen=True, slots=True)
class _Spread:
    """Of a share: n + 2 w, its variance, the added problems' part of it, degrees of freedom."""

    weight: float
    variance: float
    added: float
    freedom: float


def _share(s: int, n: int, ss: int, sn: int, nn: int) -> tuple[float, _Spread]:
    """p of the docstring, from s, n, Σ s_i², Σ s_i n_i, Σ n_i²."""
    w = nn / n if n else 1.0
    weight = n + 2 * w
    p = (s + w) / weight
    added = (w / weight) ** 2 * (p**2 + (1 - p) ** 2)
    return p, _Spread(weight, max(ss - 2 * p * sn + p**2 * nn, 0.0) / weight**2 + added, added, n / w + 1)


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
