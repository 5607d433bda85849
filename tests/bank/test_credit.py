"""The credit of simulated items of known worth: coverage, ranking, worth."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sgsd.bank import ItemRecord
from sgsd.bank.credit import cautious_worth, credit, sure_worth, trust, vouched, worth

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


clusters = st.lists(st.tuples(*[st.integers(0, 4)] * 4), max_size=8)  # (right, wrong) on successes, on failures


def of_clusters(clusters):
    """A record of problems with these active uses."""
    right, wrong, righted, wronged = np.asarray(clusters, dtype=np.int64).reshape(-1, 4).T
    columns = np.stack([right, right + wrong, righted, righted + wronged])
    products = (columns @ columns.T)[np.triu_indices(4)]
    totals = [int(part.sum()) for part in (right, wrong, righted, wronged)]
    return replace(record(tuple(totals[:2]), tuple(totals[2:])), products=tuple(products.tolist()))


def by_loops(clusters):
    """Centre, standard error and degrees of freedom, as the module's docstring has them."""
    shares, residuals, variances, freedoms = [], [[0.0] * len(clusters), [0.0] * len(clusters)], [], []
    added = []
    for part in (0, 1):
        counts = [(one[2 * part], one[2 * part] + one[2 * part + 1]) for one in clusters]
        n = sum(active for _, active in counts)
        w = sum(active**2 for _, active in counts) / n if n else 1
        p = (sum(right for right, _ in counts) + w) / (n + 2 * w)
        residuals[part] = [(right - p * active) / (n + 2 * w) for right, active in counts]
        added.append(((w - p * w) / (n + 2 * w)) ** 2 + ((0 - p * w) / (n + 2 * w)) ** 2)
        variances.append(sum(r**2 for r in residuals[part]) + added[part])
        shares.append(p)
        freedoms.append(n / w + 1)
    variance = (sum((r + q) ** 2 for r, q in zip(*residuals, strict=True)) + sum(added)) / 4
    freedom = sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, freedoms, strict=True))
    return sum(shares) / 2, math.sqrt(variance), stats.t.ppf(0.975, freedom), freedom


@given(clusters)
def test_the_credit_by_its_formula(clusters):
    item = of_clusters(clusters)
    found = credit(item)
    centre, error, t, freedom = by_loops(clusters)
    a, b = item.positive_success, item.positive_success + item.negative_success
    c, d = item.positive_failure, item.positive_failure + item.negative_failure
    assert found.value == ((a + 1) / (b + 2) + (c + 1) / (d + 2)) / 2
    assert found.low == pytest.approx(max(0, min(centre - t * error, found.value)))
    assert found.high == pytest.approx(min(1, max(centre + t * error, found.value)))
    assert trust(item) == pytest.approx(stats.t.cdf((centre - 0.5) / error, freedom))


@given(clusters.filter(len), st.integers(2, 8))
def test_a_problem_whose_rollouts_are_all_alike_tells_as_much_as_one_rollout(clusters, copies):
    once = credit(of_clusters(clusters))
    alike = credit(of_clusters([tuple(copies * count for count in one) for one in clusters]))
    assert alike.low == pytest.approx(min(once.low, alike.value), abs=1e-9)
    assert alike.high == pytest.approx(max(once.high, alike.value), abs=1e-9)
    assert trust(of_clusters(clusters)) == pytest.approx(
        trust(of_clusters([tuple(copies * count for count in one) for one in clusters]))
    )


def test_an_item_without_evidence_may_have_any_credit():
    assert (credit(record()).value, credit(record()).low, credit(record()).high) == (0.5, 0, 1)
    assert trust(record()) == 0.5


# ---- eight rollouts of a problem


def alike(kind, rng, shape, worth, rate):
    """Whether rollouts succeed, and whether an item is right about them, ``[repeats, problems, 8]``."""
    rollouts = (*shape, 8)
    success, right = rng.random(rollouts) < rate, rng.random(rollouts) < worth
    if kind in ("stances", "both"):
        right = np.broadcast_to(rng.random((*shape, 1)) < worth, rollouts)
    if kind in ("outcomes", "both"):
        success = np.broadcast_to(rng.random((*shape, 1)) < rate, rollouts)
    if kind == "effects":  # rollouts of one problem correlate by 0.4
        success, right = (
            rng.random(rollouts) < rng.beta(1.5 * mean, 1.5 * (1 - mean), (*shape, 1)) for mean in (rate, worth)
        )
    return success, right


@pytest.mark.parametrize("problems", [40, 100, 400])
@pytest.mark.parametrize("kind", ["none", "stances", "outcomes", "both", "effects"])
def test_intervals_hold_the_truth_though_rollouts_of_a_problem_are_alike(kind, problems):
    """``benchmarks/interval_coverage.py --only ledger`` in small, with seeds."""
    repeats = 500
    for truth, rate in itertools.product((0.9, 0.5), (0.2, 0.5)):
        success, right = alike(kind, np.random.default_rng(problems), (repeats, problems), truth, rate)
        parts = (success & right, success & ~right, ~success & right, ~success & ~right)
        uses = np.stack([part.sum(axis=2) for part in parts], axis=-1)
        found = [credit(of_clusters(one)) for one in uses]
        assert np.mean([one.low <= truth <= one.high for one in found]) >= 0.92, (truth, rate)


# ---- what the credit means


@given(counts, counts, counts, counts)
def test_what_is_good_on_successes_and_on_failures_counts_alike(a, b, c, d):
    assert credit(record((a, b), (c, d))) == credit(record((c, d), (a, b)))
    mirrored = credit(record((b, a), (d, c)))
    assert mirrored.value == pytest.approx(1 - credit(record((a, b), (c, d))).value)


def test_items_of_known_worth_are_ranked_right():
    """Of items with 40 active uses, each of the better kind ranks above each of the worse."""
    rng = np.random.default_rng(1)
    values = {
        worth: [credit(simulated(rng, (worth, worth), 12, 28)).value for _ in range(200)] for worth in (0.9, 0.5, 0.1)
    }
    for better, worse in itertools.pairwise(values.values()):
        assert stats.mannwhitneyu(better, worse).statistic / (200 * 200) > 0.999
    assert min(values[0.9]) > max(values[0.1])


shares = st.floats(0, 1)


@given(active=counts, supported=counts, prior=shares)
def test_an_item_that_was_seen_with_one_outcome_alone_is_worth_no_more_than_the_prior(active, supported, prior):
    supported = min(supported, active)
    for item in (record((supported, active - supported)), record(failures=(active - supported, supported))):
        assert worth(item) == pytest.approx(0)
        assert worth(item, prior=prior) == pytest.approx(prior * (1 / 2 + 1 / (active + 2)))
    assert credit(record(failures=(30, 0))).value > 0.7  # which trust takes for help
    assert trust(record(failures=(30, 0))) > 0.75


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


@given(clusters=clusters, prior=shares)
def test_cautious_worth_equals_its_definition_and_is_of_the_worst_item(clusters, prior):
    centre, error, _, freedom = by_loops(clusters)
    low = centre - stats.t.ppf(0.9, freedom) * error
    uses = min(sum(row[0] + row[1] for row in clusters), sum(row[2] + row[3] for row in clusters))
    item = of_clusters(clusters)
    expected = (uses * max(0, 2 * low - 1) + 2 * prior) / (uses + 2)
    assert cautious_worth(item, prior=prior) == pytest.approx(expected)
    assert 0 <= cautious_worth(item, prior=prior) <= 1
    assert cautious_worth(item, ItemRecord(), prior=prior) == min(cautious_worth(item, prior=prior), prior)


def test_of_four_items_that_say_the_same_of_all_rollouts_caution_trusts_none_and_of_better_ones_the_best():
    rng = np.random.default_rng(1)
    banks = [[simulated(rng, (0.6, 0.4), 60, 60) for _ in range(4)] for _ in range(200)]
    trusted = {of: np.mean([max(map(of, bank)) for bank in banks]) for of in (worth, cautious_worth)}
    assert trusted[cautious_worth] < 0.02 < 0.08 < trusted[worth]
    assert cautious_worth(record((60, 0), (60, 0))) > 0.9


@pytest.mark.parametrize("support", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(("successes", "failures"), [(5, 50), (30, 30), (200, 800)])
def test_of_items_that_say_the_same_of_all_rollouts_the_best_is_sure_to_be_worth_little(support, successes, failures):
    rng = np.random.default_rng(1)
    banks = [[simulated(rng, (support, 1 - support), successes, failures) for _ in range(30)] for _ in range(50)]
    assert np.mean([sure_worth(bank) for bank in banks]) < 0.05
    assert sure_worth([*banks[0], record((60, 0), (60, 0))]) > 0.8
    assert sure_worth([]) == sure_worth([record(), record(failures=(50, 0)), record((0, 9), (0, 9))]) == 0


def test_an_item_that_somebody_vouches_for_is_trusted_until_the_ledger_speaks_against_it():
    assert vouched(ItemRecord()) == 1
    assert vouched(record((20, 0), (20, 0))) == 1
    trusts = [vouched(record((0, n), (0, n))) for n in (0, 2, 5, 20)]
    assert trusts == sorted(trusts, reverse=True)
    assert trusts[-1] < 0.01
    assert vouched(record((20, 0), (20, 0)), record((0, 20), (0, 20))) < 0.01  # by the worst of a teacher's items
