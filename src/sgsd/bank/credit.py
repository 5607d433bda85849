"""The credit of a bank item: how well it tells successes from failures, with a confidence interval.

Let p₊ be the probability that an item with a stance on a success supports it, and p₋ the probability that an item with
a stance on a failure suppresses it. The *credit* is their mean,

    c = (p₊ + p₋) / 2,

the balanced accuracy of the item's stances: 1 if they are always right, 0 if they are always wrong, 0.5 if the item
says the same of every rollout. The plain share of positive uses is not balanced: for an item that suppresses every
rollout it is the failure rate, and falls while the policy learns.

**Estimate.** p̃ = (s + 1) / (n + 2) for s positive among n active uses (Laplace's rule); the credit is the mean of both.
An item without uses has 0.5. Items are ranked by this estimate.

**Interval.** Rollouts of one problem are judged and scored alike. The sample is therefore one of problems (clusters),
which count as independent. Problem i has n_i active uses, s_i of them positive; w = Σ n_i² / n is the mean cluster size
seen by a use. Two problems of w uses are added, one all positive and one all negative (Agresti & Caffo 2000, by
clusters):

    p = (s + w) / (n + 2 w),    r_i = (s_i − p n_i) / (n + 2 w),

and the variance of c is that of a sum of ratio estimators over clusters (Cochran 1977, ch. 6), ¼ Σ_i (r₊_i + r₋_i)²,
with the added problems among the i. The interval is (p₊ + p₋) / 2 ± t √variance, with Student's quantile t and degrees
of freedom by Satterthwaite's rule from n / w + 1 for each outcome. ``docs/credit.md`` has its measured coverage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

from scipy.special import stdtr, stdtrit  # pyright: ignore[reportMissingTypeStubs]

from sgsd.bank.ledger import ItemRecord

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Credit:
    """An estimate from 0 to 1 and its confidence interval, which is valid for a single look at the data."""

    value: float
    low: float
    high: float


def credit(record: ItemRecord) -> Credit:
    """An item's credit with a 95 % interval; 0.5 and [0, 1] for an item without active uses."""
    value = sum((positive + 1) / (active + 2) for positive, active in _by_outcome(record)) / 2
    centre, error, freedom = _interval(record)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Credit(value, max(min(centre - half, value), 0.0), min(max(centre + half, value), 1.0))


def trust(*records: ItemRecord) -> float:
    """The confidence that a teacher made of these items helps: the smallest P(c > ½) among them.

    P is Student's distribution behind the interval of the credit: 0.5 without uses, near 1 for an item that helps, near
    0 for an item that harms.
    """
    intervals = map(_interval, records)
    return min(float(stdtr(freedom, (centre - 0.5) / error)) for centre, error, freedom in intervals)


def vouched(*records: ItemRecord) -> float:
    """Trust in a teacher whose items are presumed to help: min(1, 2 P(c > ½)), see ``trust``.

    1 without uses and for items that help, near 0 for an item that harms.
    """
    return min(1.0, 2 * trust(*records))


def worth(*records: ItemRecord, prior: float = 0.0) -> float:
    """How well a teacher made of these items tells successes from failures, from 0 to 1: the lowest of their values.

    The value of an item is Youden's J, max(0, 2 c − 1) = max(0, p₊ + p₋ − 1). Two pseudo-uses shrink each share not to
    ½ but to the rate at which the item supports (suppresses) rollouts of any outcome, plus ``prior / 2``. An item
    without uses has the value ``prior``; for an item that says the same of every rollout it falls to 0.
    """
    return max(0.0, min(2 * _shrunken_credit(record, prior) - 1 for record in records))


def cautious_worth(*records: ItemRecord, prior: float = 0.0) -> float:
    """As ``worth``, but at the lower end of the credit's 80 % interval, so chance gives a teacher hardly any value.

    The value of an item is (m v + 2 prior) / (m + 2), with v = max(0, 2 c − 1) at that end, and m the smaller number of
    active uses, on successes or on failures. So an item keeps ``prior`` until it has uses of both outcomes.
    """
    return min(_cautious(record, prior) for record in records)


def sure_worth(records: Iterable[ItemRecord]) -> float:
    """A lower bound on the value of the best item: max(0, 2 c − 1) at the highest lower end of a credit's interval.

    0 if no interval lies above ½.
    """
    return max([0.0, *(2 * credit(record).low - 1 for record in records)])


def _interval(record: ItemRecord) -> tuple[float, float, float]:
    """Centre, standard error and degrees of freedom of the credit's interval."""
    # In a problem, s of n active uses on successes are positive, and f of m on failures. Sums over problems:
    ss, sn, sf, sm, nn, nf, nm, ff, fm, mm = record.products
    (s, n), (f, m) = _by_outcome(record)
    p, v = _share(s, n, ss, sn, nn)
    q, u = _share(f, m, ff, fm, mm)
    covariance = (sf - q * sm - p * nf + p * q * nm) / (v.weight * u.weight)
    # The added problems' part is a lower bound, up to rounding.
    variance = max(v.variance + u.variance + 2 * covariance, v.added + u.added)
    freedom = (v.variance + u.variance) ** 2 / (v.variance**2 / v.freedom + u.variance**2 / u.freedom)
    return (p + q) / 2, sqrt(variance) / 2, freedom


@dataclass(frozen=True, slots=True)
class _ShareVariance:
    """n + 2 w of a share, its variance, the part of the variance from added problems, degrees of freedom."""

    weight: float
    variance: float
    added: float
    freedom: float


def _share(s: int, n: int, ss: int, sn: int, nn: int) -> tuple[float, _ShareVariance]:
    """p of the module's docstring and its variance, from s, n, Σ s_i², Σ s_i n_i, Σ n_i²."""
    w = nn / n if n else 1.0
    weight = n + 2 * w
    p = (s + w) / weight
    added = (w / weight) ** 2 * (p**2 + (1 - p) ** 2)
    return p, _ShareVariance(weight, max(ss - 2 * p * sn + p**2 * nn, 0.0) / weight**2 + added, added, n / w + 1)


def _shrunken_credit(record: ItemRecord, prior: float) -> float:
    """The credit with shares that are shrunk as ``worth`` says."""
    (supported, successes), (suppressed, failures) = _by_outcome(record)
    uses = successes + failures
    support = (supported + failures - suppressed) / uses if uses else 0.5
    on_successes = (supported + 2 * support + prior) / (successes + 2)
    on_failures = (suppressed + 2 * (1 - support) + prior) / (failures + 2)
    return (on_successes + on_failures) / 2


def _cautious(record: ItemRecord, prior: float) -> float:
    uses = min(active for _, active in _by_outcome(record))
    centre, error, freedom = _interval(record)
    low = centre - float(stdtrit(freedom, 0.9)) * error
    return (uses * max(0.0, 2 * low - 1) + 2 * prior) / (uses + 2)


def _by_outcome(record: ItemRecord) -> tuple[tuple[int, int], tuple[int, int]]:
    """(positive, active) on successes, and on failures."""
    return (
        (record.positive_success, record.positive_success + record.negative_success),
        (record.positive_failure, record.positive_failure + record.negative_failure),
    )
