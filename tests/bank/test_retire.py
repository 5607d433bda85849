"""Who is retired and who is not, and that retirement leaves nothing behind when it is undone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sgsd.bank import ItemRecord, Ledger, Mistake, Origin, Phase, Skill, SkillBank
from sgsd.bank.credit import lasting_bound
from sgsd.bank.extract import Candidate
from sgsd.bank.maintain import Action, maintain
from sgsd.bank.retire import RETIRED_KEY, RetirementRule, restore, retire, retired_items
from sgsd.errors import BankError, ConfigError

HARMFUL = ItemRecord(
    uses=60,
    active=60,
    positive=2,
    negative=58,
    successes=30,
    failures=30,
    positive_success=1,
    negative_success=29,
    positive_failure=1,
    negative_failure=29,
)
RULE = RetirementRule(0.5)


def make_bank(pairs=4, origin=Origin.ONLINE):
    return SkillBank(
        tuple(Skill.new(f"Do {n}.", title=f"t{n}", when="now", origin=origin) for n in range(pairs)),
        tuple(Mistake.new(f"Slip {n}.", avoid="look", origin=origin) for n in range(pairs)),
        name="b",
        metadata={"worth": {"x": "y"}},
    )


def ledger_of(bank, *harmful):
    """The first skills and mistakes of these places harm."""
    items = [listed[place] for listed in (bank.skills, bank.mistakes) for place in harmful]
    return phased({item.id: HARMFUL for item in items})


def phased(records, *more):
    """The ledger of one phase with these records, and of one more for each further ones."""
    ledger = Ledger()
    for number, one in enumerate((records, *more)):
        ledger += Ledger(one, (Phase(number, one),))
    return ledger


def test_a_harmful_item_leaves_its_list_and_is_kept_with_the_evidence():
    bank = make_bank()
    left, gone = retire(bank, phased({bank.skills[1].id: HARMFUL}), RULE, step=50)
    assert left.skills == (bank.skills[0], *bank.skills[2:])
    assert left.mistakes == bank.mistakes
    assert retired_items(left) == (bank.skills[1],)
    (entry,) = gone
    assert (entry.kind, entry.id, entry.step, entry.active, entry.position) == ("skill", bank.skills[1].id, 50, 60, 1)
    assert entry.low <= entry.credit <= entry.high < 0.5
    assert entry.high <= entry.bound < entry.limit == 0.5
    assert entry.within == pytest.approx(2 / 60)
    assert entry.within < entry.within_high < 0.5
    assert left.metadata["worth"] == {"x": "y"}
    assert SkillBank.from_json(left.to_json()) == left
    assert retire(left, ledger_of(bank, 1), RetirementRule(0.5, keep=4)) == (left, ())


@pytest.mark.parametrize(
    ("record", "rule"),
    [
        (ItemRecord(), RULE),
        (HARMFUL, RetirementRule(0.5, min_active=61)),
        (HARMFUL, RetirementRule(0.05)),
        (ItemRecord(positive=58, negative=2, positive_success=29, negative_success=1, positive_failure=29), RULE),
        # It suppresses whatever it sees, and has seen successes alone: nothing is known of failures.
        (ItemRecord(negative=60, negative_success=60), RULE),
    ],
)
def test_whoever_is_not_surely_harmful_stays(record, rule):
    bank = make_bank()
    assert retire(bank, phased({bank.skills[0].id: record}), rule) == (bank, ())


def test_an_item_that_changed_with_the_success_rate_stays():
    """It supports all while few rollouts succeed, and suppresses all once many do: it never told anything apart."""
    early = ItemRecord(positive=20, negative=80, positive_success=20, negative_failure=80)
    late = ItemRecord(positive=20, negative=80, negative_success=80, positive_failure=20)
    bank = make_bank()
    id = bank.skills[0].id
    assert lasting_bound(early + late) < 0.5
    assert retire(bank, phased({id: early}, {id: late}), RULE) == (bank, ())
    assert retire(bank, Ledger({id: HARMFUL}), RULE) == (bank, ())  # nothing is known of phases


def test_static_items_go_only_where_that_is_said():
    bank = make_bank(origin=Origin.SEED)
    ledger = ledger_of(bank, 0)
    assert retire(bank, ledger, RULE) == (bank, ())
    left, gone = retire(bank, ledger, RetirementRule(0.5, static=True))
    assert {entry.id for entry in gone} == {bank.skills[0].id, bank.mistakes[0].id}
    assert (len(left.skills), len(left.mistakes)) == (3, 3)


@pytest.mark.parametrize("keep", [1, 3])
def test_a_list_never_shrinks_below_what_is_to_be_kept_and_the_worst_go_first(keep):
    bank = make_bank()
    items = dict(ledger_of(bank, 0, 1, 2, 3).items)
    items[bank.skills[2].id] = HARMFUL + HARMFUL  # surer than the others
    left, gone = retire(bank, phased(items), RetirementRule(0.5, keep=keep))
    assert (len(left.skills), len(left.mistakes)) == (keep, keep)
    assert gone[0].id == bank.skills[2].id
    left.require_pairs()


@given(st.lists(st.integers(0, 3), unique=True, max_size=3), st.lists(st.integers(0, 3), unique=True, max_size=3))
def test_restoring_all_gives_the_same_bank_to_the_last_byte(first, second):
    """The second look may be of another run, and earlier in it."""
    bank = make_bank(5)
    once, _ = retire(bank, ledger_of(bank, *first), RULE, step=50)
    twice, _ = retire(once, ledger_of(bank, *first, *second), RULE, step=25)
    assert restore(SkillBank.from_json(twice.to_json())).to_json() == bank.to_json()


def test_one_item_can_come_back_and_the_others_stay_away():
    bank = make_bank()
    left, _ = retire(bank, ledger_of(bank, 0, 2), RULE, step=25)
    back = restore(left, [bank.skills[2].id])
    assert back.skills == (bank.skills[1], bank.skills[2], bank.skills[3])
    assert {item.id for item in retired_items(back)} == {bank.skills[0].id, bank.mistakes[0].id, bank.mistakes[2].id}
    with pytest.raises(BankError, match="no such item among the retired"):
        restore(back, [bank.skills[2].id])


@pytest.mark.parametrize("entries", ["x", [3], [{"id": "s"}], [{"id": "s", "kind": "skill", "item": {"id": 3}}]])
def test_a_damaged_list_of_retired_items_is_refused_in_one_line(entries):
    bank = SkillBank(metadata={RETIRED_KEY: entries})
    with pytest.raises(BankError, match="retired item"):
        retired_items(bank)


@pytest.mark.parametrize("settings", [{"below": 0}, {"below": 1}, {"min_active": 0}, {"keep": 0}])
def test_rules_that_cannot_be_are_refused(settings):
    with pytest.raises(ConfigError, match="retire"):
        RetirementRule(**{"below": 0.5} | settings)


def test_what_a_retired_item_said_is_not_written_again():
    bank = make_bank()
    left, _ = retire(bank, phased({bank.skills[0].id: HARMFUL}), RULE)
    again = Candidate(kind="skill", title="other", text="do  0.", note="", parents=("m",))
    update = maintain(left, [again])
    assert update.bank == left
    assert [(entry.action, entry.reason) for entry in update.log] == [(Action.PASSED_OVER, "retired")]


def test_simulated_items_of_known_worth():
    """40 items of each worth, 12 looks of 20 active uses: the harmful ones go, the helpful ones stay."""
    rng = np.random.default_rng(0)
    worth = dict.fromkeys(range(40), 0.1) | dict.fromkeys(range(40, 80), 0.5) | dict.fromkeys(range(80, 120), 0.9)
    bank = SkillBank(tuple(Skill.new(f"s{n}", origin=Origin.ONLINE) for n in worth), (Mistake.new("m", origin="seed"),))
    ledger, left = Ledger(), bank
    for look in range(12):
        for _ in range(20):
            pairs = [[(skill.id, "m")] for skill in bank.skills]
            outcome = rng.choice([-1, 1], len(pairs))
            right = rng.random(len(pairs)) < np.array(list(worth.values()))
            stance = np.where(right, outcome, -outcome)[:, None]
            ledger = ledger.credited(pairs, support=0.3 * stance, stance=stance, outcome=outcome, step=look + 1)
        left, _ = retire(left, ledger, RULE, step=look + 1)
    gone = {item.id for item in retired_items(left)}
    counts = {kind: sum(bank.skills[n].id in gone for n in worth if worth[n] == kind) for kind in (0.1, 0.5, 0.9)}
    assert counts[0.1] == 40
    assert counts[0.9] == 0
    assert counts[0.5] <= stats.binom.ppf(1 - 1e-4, 40, RULE.error)
