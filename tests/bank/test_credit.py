"""The credit of simulated items of known worth: coverage, ranking, bounds that hold at all looks."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sgsd.bank import ItemRecord
from sgsd.bank.credit import (
    CONFIDENCE,
    credit,
    credit_within,
    lasting_bound,
    positive_share,
    separation,
    sure_worth,
    trust,
    worth,
)

WORTHS = (0.9, 0.5, 0.1)
SURE = 1e-4  # how often a test of this file may fail by chance
counts = st.integers(0, 60)


def record(successes=(0, 0), failures=(0, 0)):
    """Of an item with these (positive, negative) active uses."""
    return ItemRecord(
        uses=sum(successes + failures),
        active=sum(successes + failures),
        positive=successes[0] + failures[0],
        negative=successes[1] + failures[1],
        successes=sum(successes),
        failures=sum(failures),
        positive_success=successes[0],
        negative_success=successes[1],
        positive_failure=failures[0],
        negative_failure=failures[1],
    )


def simulated(rng, supports, successes, failures):
    """A record of as many uses, positive with these probabilities on successes and on failures."""
    right = rng.binomial(successes, supports[0]), rng.binomial(failures, supports[1])
    return record(
        (int(right[0]), int(successes - right[0])),
        (int(right[1]), int(failures - right[1])),
    )


@pytest.mark.parametrize("success_rate", [0.2, 0.5])
@pytest.mark.parametrize("uses", [20, 100])
@pytest.mark.parametrize("worth", WORTHS)
@pytest.mark.parametrize("estimate", [credit, positive_share])
def test_intervals_hold_the_truth_at_their_rate(estimate, worth, uses, success_rate):
    """Fewer holds than all but one of 10,000 series of true 95 % intervals would show is a failure."""
    repeats = 1000
    rng = np.random.default_rng(uses)
    held = 0
    for _ in range(repeats):
        successes = rng.binomial(uses, success_rate)
        found = estimate(simulated(rng, (worth, worth), successes, uses - successes))
        held += found.low <= worth <= found.high
    assert held >= stats.binom.ppf(SURE, repeats, CONFIDENCE)


@given(counts, counts)
def test_the_share_of_positive_uses_has_wilson_s_interval(positive, negative):
    found = positive_share(record((positive, negative)))
    if positive + negative:
        expected = stats.binomtest(positive, positive + negative).proportion_ci(0.95, method="wilson")
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    else:
        assert (found.value, found.low, found.high) == (0.5, 0, 1)


@given(counts, counts, counts, counts, st.floats(0.5, 0.999))
def test_the_credit_by_its_formula(a, b, c, d, confidence):
    found = credit(record((a, b), (c, d)), confidence=confidence)
    p, q = (a + 1) / (a + b + 2), (c + 1) / (c + d + 2)
    half = stats.norm.ppf((1 + confidence) / 2) * math.sqrt(p * (1 - p) / (a + b + 2) + q * (1 - q) / (c + d + 2)) / 2
    assert found.value == pytest.approx((p + q) / 2)
    assert (found.low, found.high) == pytest.approx((max(0, (p + q) / 2 - half), min(1, (p + q) / 2 + half)))


@given(counts, counts, counts, counts)
def test_what_is_good_on_successes_and_on_failures_counts_alike(a, b, c, d):
    assert credit(record((a, b), (c, d))) == credit(record((c, d), (a, b)))
    mirrored = credit(record((b, a), (d, c)))
    assert mirrored.value == pytest.approx(1 - credit(record((a, b), (c, d))).value)


@pytest.mark.parametrize("success_rate", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("supports", [(1, 0), (0, 1)], ids=["supports all", "suppresses all"])
def test_an_item_that_says_the_same_of_all_rollouts_is_worth_nothing_whatever_the_success_rate(supports, success_rate):
    """Its share of positive uses is the success rate, or one minus it."""
    rng = np.random.default_rng(0)
    successes = round(1000 * success_rate)
    found = simulated(rng, supports, successes, 1000 - successes)
    assert credit(found).value == pytest.approx(0.5, abs=0.05)
    assert lasting_bound(found) > 0.5
    expected = success_rate if supports == (1, 0) else 1 - success_rate
    assert positive_share(found).value == pytest.approx(expected)


def test_an_item_whose_stance_follows_the_success_rate_is_told_from_one_that_harms():
    early, late = record((20, 0), (0, 80)), record((0, 80), (20, 0))
    assert credit(early + late).high < 0.5
    assert credit_within([early, late]).value == 0.5
    assert (
        credit_within([]) == credit_within([record((5, 5))]) == credit_within([record((5, 5)), record((0, 0), (5, 5))])
    )
    assert (credit_within([]).value, credit_within([]).low, credit_within([]).high) == (0.5, 0, 1)


@pytest.mark.parametrize("worth", WORTHS)
def test_intervals_within_phases_hold_the_truth_at_their_rate(worth):
    """Eight phases of about 25 active uses, while the success rate rises from 10 to 80 %."""
    repeats = 1000
    rng = np.random.default_rng(8)
    held = 0
    for _ in range(repeats):
        phases = [
            simulated(rng, (worth, worth), rng.poisson(25 * rate), rng.poisson(25 * (1 - rate)))
            for rate in np.linspace(0.1, 0.8, 8)
        ]
        found = credit_within(phases)
        held += found.low <= worth <= found.high
    assert held >= stats.binom.ppf(SURE, repeats, CONFIDENCE)


def test_items_of_known_worth_are_ranked_right():
    """Of items with 40 active uses, each of the better kind ranks above each of the worse."""
    rng = np.random.default_rng(1)
    values = {
        worth: [credit(simulated(rng, (worth, worth), 12, 28)).value for _ in range(200)] for worth in (0.9, 0.5, 0.1)
    }
    for better, worse in itertools.pairwise(values.values()):
        assert stats.mannwhitneyu(better, worse).statistic / (200 * 200) > 0.999
    assert min(values[0.9]) > max(values[0.1])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_separation_is_the_area_under_the_roc_curve(better, worse):
    expected = stats.mannwhitneyu(better, worse).statistic / (len(better) * len(worse))
    assert separation(better, worse) == pytest.approx(expected)


def test_separation_needs_both_kinds():
    with pytest.raises(ValueError, match="both kinds"):
        separation([1.0], [])


# ---- the bound of all looks


def log_evidence(positive, negative, p):
    """Log of the mixture over the likelihood, of one part."""
    marginal = stats.betabinom.logpmf(positive, positive + negative, 0.5, 0.5)
    return marginal - stats.binom.logpmf(positive, positive + negative, p)


@settings(max_examples=30)
@given(counts, counts, counts, counts, st.sampled_from([0.01, 0.05, 0.5]))
def test_the_lasting_bound_is_the_largest_credit_that_is_not_refuted(a, b, c, d, error):
    grid = np.linspace(0, 1, 401)
    with np.errstate(divide="ignore"):
        evidence = log_evidence(a, b, grid)[:, None] + log_evidence(c, d, grid)[None]
    credits = (grid[:, None] + grid[None]) / 2
    largest = credits[evidence < -math.log(error)].max()
    found = lasting_bound(record((a, b), (c, d)), error=error)
    assert largest - 1e-6 <= found <= largest + 2 / 400


@given(counts, counts, counts, counts)
def test_the_lasting_bound_lies_above_the_interval_of_one_look_and_below_one(a, b, c, d):
    found = record((a, b), (c, d))
    assert credit(found).value - 0.01 <= lasting_bound(found) <= 1
    assert lasting_bound(found, error=0.01) >= lasting_bound(found)
    if not b and not d:
        assert lasting_bound(found) == 1


def looks(rng, worth, count=12, uses=20):
    total = ItemRecord()
    for _ in range(count):
        total += simulated(rng, (worth, worth), *rng.poisson(uses / 2, 2))
        yield total


def ever_below(bound, worth, limit=0.5, repeats=150):
    """Of as many items, those whose bound was below the limit at one look or another."""
    rng = np.random.default_rng(3)
    return sum(any(bound(total) < limit for total in looks(rng, worth)) for _ in range(repeats))


def test_bounds_of_all_looks_refute_the_bad_and_spare_the_rest():
    """Items as good as chance may be refuted in 5 % of all cases; an interval of one look does so more often."""
    repeats = 150
    assert ever_below(lasting_bound, 0.1) == repeats
    assert ever_below(lasting_bound, 0.9) == 0
    assert ever_below(lasting_bound, 0.5) <= stats.binom.ppf(1 - SURE, repeats, 1 - CONFIDENCE)


@pytest.mark.slow
def test_one_look_s_interval_would_refute_chance_too_often():
    repeats = 1000
    often = ever_below(lambda total: credit(total).high, 0.5, repeats=repeats)
    assert often > stats.binom.ppf(1 - SURE, repeats, (1 - CONFIDENCE) / 2)
    assert ever_below(lasting_bound, 0.5, repeats=repeats) <= stats.binom.ppf(1 - SURE, repeats, 1 - CONFIDENCE)


shares = st.floats(0, 1)


@given(active=counts, supported=counts, prior=shares)
def test_an_item_that_was_seen_with_one_outcome_alone_is_worth_no_more_than_the_prior(active, supported, prior):
    supported = min(supported, active)
    for item in (record((supported, active - supported)), record(failures=(active - supported, supported))):
        assert worth(item) == pytest.approx(0)
        assert worth(item, prior=prior) == pytest.approx(prior * (1 / 2 + 1 / (active + 2)))
    assert credit(record(failures=(30, 0))).value > 0.7  # which trust takes for help
    assert trust(record(failures=(30, 0))) > 0.85


@given(successes=st.tuples(counts, counts), failures=st.tuples(counts, counts), prior=shares)
def test_worth_equals_its_definition_and_is_of_the_worst_item(successes, failures, prior):
    item = record(successes, failures)
    active = sum(successes) + sum(failures)
    support = (successes[0] + failures[1]) / active if active else 0.5
    right = (successes[0] + 2 * (support + prior / 2)) / (sum(successes) + 2)
    righted = (failures[0] + 2 * (1 - support + prior / 2)) / (sum(failures) + 2)
    assert worth(item, prior=prior) == pytest.approx(max(0, right + righted - 1))
    assert 0 <= worth(item, prior=prior) <= 1
    assert worth(item, record((30, 1), (30, 1)), prior=prior) <= worth(item, prior=prior)
    assert worth(record((0, 30), (0, 30)), item) == 0


def test_worth_tends_to_what_the_item_tells_apart():
    """p₊ + p₋ − 1, whatever the rate of success and the prior; 0 for what harms."""
    for supports in ((0.9, 0.8), (0.6, 0.6), (0.2, 0.9), (0.3, 0.4)):
        rng = np.random.default_rng(0)
        found = [worth(simulated(rng, supports, 3000, 12000), prior=prior) for prior in np.linspace(0, 1, 20)]
        assert np.mean(found) == pytest.approx(max(0, sum(supports) - 1), abs=0.01)


@pytest.mark.parametrize("support", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(("successes", "failures"), [(5, 50), (30, 30), (200, 800)])
def test_of_items_that_say_the_same_of_all_rollouts_the_best_is_sure_to_be_worth_little(support, successes, failures):
    rng = np.random.default_rng(1)
    banks = [[simulated(rng, (support, 1 - support), successes, failures) for _ in range(30)] for _ in range(50)]
    assert np.mean([sure_worth(bank) for bank in banks]) < 0.05
    assert sure_worth([*banks[0], record((60, 0), (60, 0))]) > 0.8
    assert sure_worth([]) == sure_worth([record(), record(failures=(50, 0)), record((0, 9), (0, 9))]) == 0
