"""The ledger against plain loops, and what must hold of any ledger."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank import ItemRecord, Ledger
from sgsd.errors import BankError

finite = st.floats(-3, 3, width=32)


@st.composite
def batches(draw, max_rollouts=4, max_teachers=3):
    """``(pairs, support, stance, outcome, problems)``; padding holds numbers that must never be read."""
    B, K = draw(st.integers(1, max_rollouts)), draw(st.integers(1, max_teachers))
    ids = st.tuples(st.sampled_from("abc").map("skill-{}".format), st.sampled_from("xyz").map("mistake-{}".format))
    pairs = draw(st.lists(st.lists(ids, max_size=K), min_size=B, max_size=B))
    support = draw(st.lists(st.lists(finite, min_size=K, max_size=K), min_size=B, max_size=B))
    stance = draw(st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=K, max_size=K), min_size=B, max_size=B))
    outcome = draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=B, max_size=B))
    problems = draw(st.lists(st.integers(0, 2), min_size=B, max_size=B))
    return pairs, support, stance, outcome, problems


def credited(ledger, batch):
    pairs, support, stance, outcome, problems = batch
    return ledger.credited(pairs, support=support, stance=stance, outcome=outcome, problems=problems)


def by_loops(batch):
    records, clusters = {}, {}
    for pairs, supports, stances, r, problem in zip(*batch, strict=True):
        for (skill, mistake), support, stance in zip(pairs, supports, stances, strict=False):
            for id in (skill, mistake):
                record = records.setdefault(id, dict.fromkeys((item.name for item in fields(ItemRecord)), 0))
                cluster = clusters.setdefault(id, {}).setdefault(problem, [0, 0, 0, 0])
                cluster[0] += (r, stance) == (1, 1)
                cluster[1] += r == 1 and stance != 0
                cluster[2] += (r, stance) == (-1, -1)
                cluster[3] += r == -1 and stance != 0
                record["uses"] += 1
                record["active"] += stance != 0
                record["positive"] += r * stance == 1
                record["negative"] += r * stance == -1
                record["neutral"] += stance == 0 and r != 0
                record["undecided"] += r == 0
                record["successes"] += r == 1
                record["failures"] += r == -1
                record["positive_success"] += (r, stance) == (1, 1)
                record["negative_success"] += (r, stance) == (1, -1)
                record["positive_failure"] += (r, stance) == (-1, -1)
                record["negative_failure"] += (r, stance) == (-1, 1)
                record["support_success"] += support if r == 1 else 0.0
                record["support_failure"] += support if r == -1 else 0.0
    for id, record in records.items():
        record["products"] = tuple(
            sum(counts[one] * counts[other] for counts in clusters[id].values())
            for one in range(4)
            for other in range(one, 4)
        )
    return records


def assert_same(ledger, records):
    assert set(ledger.items) == set(records)
    for id, expected in records.items():
        record = ledger.record(id)
        for name, value in expected.items():
            found = getattr(record, name)
            assert found == value if isinstance(found, int | tuple) else math.isclose(found, value, abs_tol=1e-9), (
                id,
                name,
            )


@given(batches())
def test_a_batch_is_credited_as_plain_loops_credit_it(batch):
    assert_same(credited(Ledger(), batch), by_loops(batch))


@given(batches(), batches())
def test_two_batches_one_after_the_other_are_the_sum_of_their_ledgers(first, second):
    one_after_the_other = credited(credited(Ledger(), first), second)
    assert one_after_the_other == credited(Ledger(), first) + credited(Ledger(), second)


@given(batches(), batches())
def test_json_gives_the_same_ledger_back(first, second):
    ledger = credited(credited(Ledger(), first), second)
    again = Ledger.from_json(ledger.to_json())
    assert again == ledger
    assert list(again.items) == list(ledger.items)


def test_rollouts_of_one_problem_are_one_cluster_whatever_their_order_and_that_of_another_call_is_another():
    batch = [[("s", "m")]] * 4, [[1.0]] * 4, [[1], [1], [-1], [1]], [1, 1, 1, -1], ["b", "a", "b", "b"]
    # Problem b: one of two right on successes, none of one on failures; problem a: one of one.
    once = (1 + 1, 2 + 1, 0, 1, 4 + 1, 0, 2, 0, 0, 1)
    ledger = credited(Ledger(), batch)
    assert ledger.record("s").products == ledger.record("m").products == once
    assert credited(ledger, batch).record("s").products == tuple(2 * value for value in once)


def test_uses_count_as_of_a_problem_each_where_a_record_does_not_know_better():
    batch = [[("s", "m")]] * 4, [[1.0]] * 4, [[1], [-1], [-1], [1]], [1, 1, -1, -1], range(4)
    record = credited(Ledger(), batch).record("s")
    counts = {"positive_success": 1, "negative_success": 1, "positive_failure": 1, "negative_failure": 1}
    assert record.products == ItemRecord(**counts).products == (1, 1, 0, 0, 2, 0, 0, 1, 1, 2)


def test_padding_is_never_read():
    ledger = Ledger().credited([[("s", "m")]], support=[[0.5, math.nan]], stance=[[1, 1]], outcome=[1], problems=[7])
    assert ledger.record("s") == ledger.record("m")
    assert ledger.record("s") == ItemRecord(
        uses=1, active=1, positive=1, successes=1, positive_success=1, support_success=0.5
    )


def test_means_are_over_rollouts_of_that_outcome():
    pairs = [[("s", "m")]] * 3
    ledger = credited(Ledger(), (pairs, [[1.0], [0.5], [-0.5]], [[1], [1], [-1]], [1, 1, -1], [0, 1, 2]))
    record = ledger.record("s")
    assert (record.mean_support_success, record.mean_support_failure) == (0.75, -0.5)
    unused = ledger.record("never")
    assert (unused.mean_support_success, unused.mean_support_failure) == (None, None)


def test_an_older_ledger_reads_with_zeros_for_what_it_did_not_count():
    text = json.dumps({"version": 1, "items": {"s": {"uses": 3}}})
    assert Ledger.from_json(text).record("s") == ItemRecord(uses=3)


def test_a_ledger_with_phases_reads_as_its_totals_each_use_of_a_problem_of_its_own():
    record = {"uses": 3, "active": 3, "positive": 3, "successes": 3, "positive_success": 3, "support_success": 0.5}
    phases = {"0": {"s": record | {"uses": 1}}, "4": {}}
    text = json.dumps({"version": 2, "items": {"s": record}, "phase_steps": 25, "phases": phases})
    ledger = Ledger.from_json(text)
    assert ledger.record("s") == ItemRecord(**record)
    assert ledger.record("s").products[:5] == (3, 3, 0, 0, 3)
    assert json.loads(ledger.to_json())["version"] == 3


def test_a_ledger_cannot_be_changed_in_place():
    with pytest.raises(TypeError):
        Ledger().items["s"] = ItemRecord()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "malformed JSON"),
        ("[]", "expected a JSON object"),
        ('{"version": 1}', "items is missing"),
        ('{"version": 4, "items": {}}', "newer version"),
        ('{"version": 3, "items": {"s": {"products": [1, 2]}}}', "expected 10 counts"),
        ('{"version": 3, "items": {"s": {"products": 3}}}', "expected a valid tuple"),
        (
            '{"version": 3, "items": {"s": {"products": [1, 1, 0, 0, 1, 0, 0, 0, 0, 0.5]}}}',
            r"products\[9\]: cannot be used: got 0.5",
        ),
        ('{"version": 1, "items": {"s": 3}}', "items.s: cannot be used: got 3"),
        ('{"version": 1, "items": {"s": {"used": 3}}}', "unknown key: got 'used'; expected 'uses'"),
        ('{"version": 1, "items": {"s": {"uses": 3.5}}}', "items.s.uses: cannot be used: got 3.5"),
        ('{"version": 1, "items": {"s": {"support_success": "1"}}}', "items.s.support_success: cannot be used"),
    ],
)
def test_what_is_no_ledger_is_refused_in_one_line(text, complaint):
    with pytest.raises(BankError, match=complaint):
        Ledger.from_json(text)


@pytest.mark.parametrize(
    "batch",
    [
        ([[("s", "m")]], [0.5], [[1]], [1], [0]),
        ([[("s", "m")]], [[0.5]], [[1, 1]], [1], [0]),
        ([[("s", "m")]], [[0.5]], [[1]], [1, 1], [0]),
        ([[("s", "m")]], [[0.5]], [[1]], [1], [0, 1]),
        ([[("s", "m")]], [[0.5]], [[1]], [1], [(0, 1)]),
        ([[("s", "m")] * 2], [[0.5]], [[1]], [1], [0]),
        ([], [[0.5]], [[1]], [1], [0]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(batch):
    with pytest.raises(ValueError, match="must be"):
        credited(Ledger(), batch)


def test_a_teacher_of_one_item_credits_that_item_alone():
    one = Ledger().credited(
        [[("s", "")], [("", "m")]], support=[[1.0], [1.0]], stance=[[1], [1]], outcome=[1, -1], problems=[0, 1]
    )
    assert set(one.items) == {"s", "m"}
    assert (one.record("s").positive, one.record("m").negative) == (1, 1)
