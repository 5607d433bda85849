"""Updates of a bank keep its limits and its static part, whatever is offered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.bank.extract import Candidate
from sgsd.bank.maintain import MAX_ADDED, MAX_DYNAMIC, Action, maintain

STATIC = SkillBank(
    (Skill.new("Estimate first.", origin=Origin.SEED), Skill.new("Draw it.", origin=Origin.COLD_START)),
    (Mistake.new("Drops the carry.", origin=Origin.SEED),),
    name="static",
)


def skill(text: str, *parents: str) -> Candidate:
    return Candidate("skill", "", text, "", parents or ("memory-1",))


def mistake(text: str) -> Candidate:
    return Candidate("mistake", "", text, "", ("memory-2",))


def online(count: int) -> SkillBank:
    return STATIC.with_items(Skill.new(f"Online {n}.", origin=Origin.ONLINE) for n in range(count))


def unproven(id: str) -> None:
    """No item has a credit."""


def test_new_items_are_online_and_keep_their_parents():
    update = maintain(
        STATIC, [skill("Check units.", "memory-7", "memory-8"), mistake("Forgets units.")], credit=unproven
    )
    assert [item.text for item in update.bank.dynamic.items] == ["Check units.", "Forgets units."]
    assert update.bank.dynamic.skills[0].parents == ("memory-7", "memory-8")
    assert update.bank.dynamic.skills[0].id == skill("Check units.").id
    assert update.diff == STATIC.diff(update.bank)
    assert [entry.action for entry in update.log] == [Action.ADDED, Action.ADDED]
    assert STATIC.dynamic.items == ()


def test_at_most_five_a_list_the_first_ones():
    update = maintain(
        STATIC, [*(skill(f"Skill {n}.") for n in range(8)), *(mistake(f"Slip {n}.") for n in range(3))], credit=unproven
    )
    assert [item.text for item in update.bank.dynamic.skills] == [f"Skill {n}." for n in range(5)]
    assert len(update.bank.dynamic.mistakes) == 3
    assert [entry.title for entry in update.log if entry.action is Action.PASSED_OVER] == [
        "Skill 5.",
        "Skill 6.",
        "Skill 7.",
    ]


@pytest.mark.parametrize("text", ["Estimate first.", "  estimate   FIRST. "])
def test_what_the_bank_says_already_is_passed_over(text):
    update = maintain(STATIC, [skill(text)], credit=unproven)
    assert update.bank == STATIC
    assert not update.diff
    assert update.log[0].reason == "the bank has this text"


def test_a_candidate_that_makes_no_item_is_logged_and_stops_nothing():
    update = maintain(STATIC, [skill(" "), skill("Bad \x07 bell."), skill("Check units.")], credit=unproven)
    assert [item.text for item in update.bank.dynamic.skills] == ["Check units."]
    assert [(entry.action, entry.id) for entry in update.log[:2]] == [(Action.PASSED_OVER, "")] * 2


def test_the_worst_make_room_and_the_unproven_before_the_good():
    bank = online(30)
    worth = dict.fromkeys((item.id for item in bank.dynamic.items), 0.95)
    worth |= dict(zip((item.id for item in bank.dynamic.items), (0.9, None, 0.1, 0.5), strict=False))
    removed = []
    for room in range(1, 5):
        update = maintain(bank, [skill(f"New {n}.") for n in range(room)], credit=worth.__getitem__)
        removed.append([item.text for item in update.diff.removed])
    # 0.1, then the one that was never proven and the one of credit 0.5, older first, then 0.9; in bank order.
    assert removed == [
        ["Online 2."],
        ["Online 1.", "Online 2."],
        ["Online 1.", "Online 2.", "Online 3."],
        ["Online 0.", "Online 1.", "Online 2.", "Online 3."],
    ]


def test_the_log_gives_the_credit_of_what_went():
    update = maintain(online(30), [skill("New.")], credit=lambda _: 0.25)
    entry = update.log[-1]
    assert (entry.action, entry.reason, entry.credit) == (Action.EVICTED, "lowest credit", 0.25)


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        kind=st.sampled_from(["skill", "mistake"]),
        title=st.sampled_from(["", "Title"]),
        text=st.sampled_from([f"Text {n}." for n in range(40)] + [" ", "Estimate first."]),
        note=st.sampled_from(["", "Note."]),
        parents=st.just(("memory-1",)),
    ),
    max_size=30,
)


@given(updates=st.lists(CANDIDATES, max_size=6), begun=st.integers(0, 30), proven=st.booleans())
def test_after_any_updates_the_limits_hold_and_static_items_and_ids_are_untouched(updates, begun, proven):
    bank, meaning = online(begun), {}
    for candidates in updates:
        update = maintain(bank, candidates, credit=(lambda id: int(id[-1], 16) / 15) if proven else unproven)
        assert update.bank.static.to_json() == STATIC.to_json()
        for new, old in (
            (update.bank.dynamic.skills, bank.dynamic.skills),
            (update.bank.dynamic.mistakes, bank.dynamic.mistakes),
        ):
            assert len(new) <= MAX_DYNAMIC
            assert len({item.id for item in new} - {item.id for item in old}) <= MAX_ADDED
        assert not update.diff.changed
        for item in update.bank.items:
            assert meaning.setdefault(item.id, item.text) == item.text
        assert sum(entry.action is not Action.EVICTED for entry in update.log) == len(candidates)
        assert {e.id for e in update.log if e.action is Action.EVICTED} == {item.id for item in update.diff.removed}
        bank = update.bank


def test_a_bank_with_more_online_items_than_the_limit_loses_none_until_one_arrives():
    bank = online(MAX_DYNAMIC + 4)
    kept = maintain(bank, [], credit=unproven)
    assert (kept.bank, kept.log) == (bank, ())
