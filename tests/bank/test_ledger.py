"""The ledger against plain loops, and what must hold of any ledger."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank import ItemRecord, Ledger
from sgsd.bank.ledger import MAX_PHASES
from sgsd.errors import BankError

finite = st.floats(-3, 3, width=32)


@st.composite
def batches(draw, max_rollouts=4, max_teachers=3):
    """``(pairs, support, stance, outcome)``; padding holds numbers that must never be read."""
    B, K = draw(st.integers(1, max_rollouts)), draw(st.integers(1, max_teachers))
    ids = st.tuples(st.sampled_from("abc").map("skill-{}".format), st.sampled_from("xyz").map("mistake-{}".format))
    pairs = draw(st.lists(st.lists(ids, max_size=K), min_size=B, max_size=B))
    support = draw(st.lists(st.lists(finite, min_size=K, max_size=K), min_size=B, max_size=B))
    stance = draw(st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=K, max_size=K), min_size=B, max_size=B))
    outcome = draw(st.lists(st.sampled_from([-1, 0, 1]), min_size=B, max_size=B))
    return pairs, support, stance, outcome


def credited(ledger, batch, step=None):
    pairs, support, stance, outcome = batch
    return ledger.credited(pairs, support=support, stance=stance, outcome=outcome, step=step)


def by_loops(batch):
    records = {}
    for pairs, supports, stances, r in zip(*batch, strict=True):
        for (skill, mistake), support, stance in zip(pairs, supports, stances, strict=False):
            for id in (skill, mistake):
                record = records.setdefault(id, dict.fromkeys(ItemRecord.__dataclass_fields__, 0))
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
    return records


def assert_same(ledger, records):
    assert set(ledger.items) == set(records)
    for id, expected in records.items():
        record = ledger.record(id)
        for name, value in expected.items():
            found = getattr(record, name)
            assert found == value if isinstance(found, int) else math.isclose(found, value, abs_tol=1e-9), (id, name)


@given(batches())
def test_a_batch_is_credited_as_plain_loops_credit_it(batch):
    assert_same(credited(Ledger(), batch), by_loops(batch))


@given(batches())
def test_the_four_polarities_make_up_the_uses(batch):
    for record in credited(Ledger(), batch).items.values():
        assert record.uses == record.positive + record.negative + record.neutral + record.undecided
        assert record.active >= record.positive + record.negative
        assert record.uses - record.undecided == record.successes + record.failures
        assert record.positive == record.positive_success + record.positive_failure
        assert record.negative == record.negative_success + record.negative_failure


@given(batches(), batches())
def test_two_batches_one_after_the_other_are_the_sum_of_their_ledgers(first, second):
    one_after_the_other = credited(credited(Ledger(), first), second)
    assert one_after_the_other == credited(Ledger(), first) + credited(Ledger(), second)


@given(batches())
def test_a_pair_credits_its_skill_and_its_mistake_alike(batch):
    items = credited(Ledger(), batch).items
    totals = [sum(r.uses for id, r in items.items() if id.startswith(kind)) for kind in ("skill", "mistake")]
    assert totals[0] == totals[1] == sum(map(len, batch[0]))


@given(batches(), batches())
def test_json_gives_the_same_ledger_back(first, second):
    ledger = credited(credited(Ledger(), first), second)
    again = Ledger.from_json(ledger.to_json())
    assert again == ledger
    assert list(again.items) == list(ledger.items)


@given(st.lists(st.tuples(batches(2, 2), st.integers(1, 400)), max_size=12))
def test_phases_hold_the_uses_of_their_steps_and_are_few(steps):
    ledger = Ledger(phase_steps=2)
    for batch, step in steps:
        ledger = credited(ledger, batch, step)
    assert len(ledger.phases) <= MAX_PHASES
    numbers = [phase.number for phase in ledger.phases]
    assert numbers == sorted(set(numbers))
    for phase in ledger.phases:
        expected = Ledger()
        for batch, step in steps:
            if (step - 1) // ledger.phase_steps == phase.number:
                expected = credited(expected, batch)
        assert {id: r.counts for id, r in phase.items.items()} == {id: r.counts for id, r in expected.items.items()}
    for id, record in ledger.items.items():
        assert sum(ledger.by_phase(id), ItemRecord()).counts == record.counts
    assert Ledger.from_json(ledger.to_json()) == ledger


def test_phases_become_longer_when_there_would_be_too_many():
    batch = [[("s", "m")]], [[1.0]], [[1]], [1]
    ledger = Ledger(phase_steps=10)
    for step in range(1, 10 * MAX_PHASES + 1):
        ledger = credited(ledger, batch, step)
    assert (ledger.phase_steps, [phase.record("s").uses for phase in ledger.phases]) == (10, [10] * MAX_PHASES)
    ledger = credited(ledger, batch, 10 * MAX_PHASES + 1)
    assert (ledger.phase_steps, len(ledger.phases)) == (20, MAX_PHASES // 2 + 1)
    assert [record.uses for record in ledger.by_phase("s")] == [20] * (MAX_PHASES // 2) + [1]


def test_an_interrupted_ledger_goes_on_to_the_last_bit():
    def batch(step):
        return [[("s", "m")]], [[0.1 * step]], [[1]], [(-1) ** step]

    straight = resumed = Ledger(phase_steps=1)
    for step in range(1, 40):
        straight = credited(straight, batch(step), step)
        resumed = credited(Ledger.from_json(resumed.to_json()), batch(step), step)
    assert resumed == straight
    assert resumed.to_json() == straight.to_json()


def test_ledgers_of_unlike_phases_meet_in_the_shortest_that_holds_both():
    batch = [[("s", "m")]], [[1.0]], [[1]], [1]
    both = credited(Ledger(phase_steps=4), batch, 5) + credited(Ledger(phase_steps=6), batch, 13)
    assert (both.phase_steps, [phase.number for phase in both.phases]) == (12, [0, 1])
    assert (both + Ledger(phase_steps=7)).phase_steps == 12  # without phases there is nothing to meet
    assert (Ledger(phase_steps=7) + Ledger()).phase_steps == 7


def test_the_ledger_of_an_earlier_step_is_that_of_the_phases_that_had_ended():
    batch = [[("s", "m")]], [[1.0]], [[1]], [1]
    ledger = Ledger(phase_steps=10)
    for step in range(1, 41):
        ledger = credited(ledger, batch, step)
    assert ledger.until(29).record("s").uses == 20
    assert ledger.until(30).record("s").uses == 30
    assert ledger.until(1000) == ledger
    with pytest.raises(BankError, match="no phase had ended"):
        ledger.until(9)


def test_the_total_is_over_all_items():
    ledger = Ledger().credited([[("s", "m")]] * 2, support=[[1.0], [0.5]], stance=[[1], [0]], outcome=[1, -1])
    assert (ledger.total.uses, ledger.total.positive, ledger.total.neutral) == (4, 2, 2)


def test_padding_is_never_read():
    ledger = Ledger().credited([[("s", "m")]], support=[[0.5, math.nan]], stance=[[1, 1]], outcome=[1])
    assert ledger.record("s") == ledger.record("m")
    assert ledger.record("s") == ItemRecord(
        uses=1, active=1, positive=1, successes=1, positive_success=1, support_success=0.5
    )


def test_means_are_over_rollouts_of_that_outcome():
    pairs = [[("s", "m")]] * 3
    ledger = Ledger().credited(pairs, support=[[1.0], [0.5], [-0.5]], stance=[[1], [1], [-1]], outcome=[1, 1, -1])
    record = ledger.record("s")
    assert (record.mean_support_success, record.mean_support_failure, record.active_share) == (0.75, -0.5, 1.0)
    unused = ledger.record("never")
    assert (unused.mean_support_success, unused.mean_support_failure, unused.active_share) == (None, None, None)


def test_an_older_ledger_reads_with_zeros_for_what_it_did_not_count():
    text = json.dumps({"version": 1, "items": {"s": {"uses": 3}}})
    assert Ledger.from_json(text).record("s") == ItemRecord(uses=3)


def test_a_ledger_cannot_be_changed_in_place():
    with pytest.raises(TypeError):
        Ledger().items["s"] = ItemRecord()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "not a ledger"),
        ('{"version": 1}', "not a ledger"),
        ('{"version": 3, "items": {}}', "newer version"),
        ('{"version": 2, "items": {}, "phases": []}', "phases cannot be read"),
        ('{"version": 2, "items": {}, "phase_steps": 0}', "phases cannot be read"),
        ('{"version": 2, "items": {}, "phases": {"first": {}}}', "not the number of a phase"),
        ('{"version": 2, "items": {}, "phases": {"1": []}}', "not records"),
        ('{"version": 1, "items": {"s": 3}}', "not a record"),
        ('{"version": 1, "items": {"s": {"used": 3}}}', "unknown count"),
        ('{"version": 1, "items": {"s": {"uses": 3.5}}}', "wrong type"),
        ('{"version": 1, "items": {"s": {"support_success": "1"}}}', "wrong type"),
    ],
)
def test_what_is_no_ledger_is_refused_in_one_line(text, complaint):
    with pytest.raises(BankError, match=complaint):
        Ledger.from_json(text)


@pytest.mark.parametrize(
    "batch",
    [
        ([[("s", "m")]], [0.5], [[1]], [1]),
        ([[("s", "m")]], [[0.5]], [[1, 1]], [1]),
        ([[("s", "m")]], [[0.5]], [[1]], [1, 1]),
        ([[("s", "m")] * 2], [[0.5]], [[1]], [1]),
        ([], [[0.5]], [[1]], [1]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(batch):
    with pytest.raises(ValueError, match="must be"):
        credited(Ledger(), batch)
