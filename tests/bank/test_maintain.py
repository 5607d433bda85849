"""Updates of a bank keep its limits and its static part, whatever is offered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.bank.extract import Candidate
from sgsd.bank.maintain import Action, Limits, maintain
from sgsd.errors import ConfigError

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


def test_new_items_are_online_and_keep_their_parents():
    update = maintain(STATIC, [skill("Check units.", "memory-7", "memory-8"), mistake("Forgets units.")])
    assert [item.text for item in update.bank.dynamic.items] == ["Check units.", "Forgets units."]
    assert update.bank.dynamic.skills[0].parents == ("memory-7", "memory-8")
    assert update.bank.dynamic.skills[0].id == skill("Check units.").id
    assert update.diff == STATIC.diff(update.bank)
    assert [entry.action for entry in update.log] == [Action.ADDED, Action.ADDED]
    assert STATIC.dynamic.items == ()


def test_at_most_five_a_list_the_first_ones():
    update = maintain(STATIC, [*(skill(f"Skill {n}.") for n in range(8)), *(mistake(f"Slip {n}.") for n in range(3))])
    assert [item.text for item in update.bank.dynamic.skills] == [f"Skill {n}." for n in range(5)]
    assert len(update.bank.dynamic.mistakes) == 3
    assert [entry.title for entry in update.log if entry.action is Action.PASSED_OVER] == [
        "Skill 5.",
        "Skill 6.",
        "Skill 7.",
    ]


@pytest.mark.parametrize("text", ["Estimate first.", "  estimate   FIRST. "])
def test_what_the_bank_says_already_is_passed_over(text):
    update = maintain(STATIC, [skill(text)])
    assert update.bank == STATIC
    assert not update.diff
    assert update.log[0].reason == "the bank says so already"


def test_a_skill_may_say_what_a_mistake_says():
    assert maintain(STATIC, [skill("Drops the carry.")]).diff


def test_a_repeated_candidate_is_added_once():
    update = maintain(STATIC, [skill("Check units."), skill("Check units.", "memory-9")])
    assert len(update.bank.dynamic.skills) == 1


def test_a_candidate_that_makes_no_item_is_logged_and_stops_nothing():
    update = maintain(STATIC, [skill(" "), skill("Bad \x07 bell."), skill("Check units.")])
    assert [item.text for item in update.bank.dynamic.skills] == ["Check units."]
    assert [(entry.action, entry.id) for entry in update.log[:2]] == [(Action.PASSED_OVER, "")] * 2


def test_without_credit_the_oldest_make_room():
    update = maintain(online(30), [skill("New 1."), skill("New 2.")])
    assert [item.text for item in update.diff.removed] == ["Online 0.", "Online 1."]
    assert len(update.bank.dynamic.skills) == 30
    assert [entry.reason for entry in update.log if entry.action is Action.EVICTED] == ["oldest"] * 2


def test_with_credit_the_worst_make_room_and_the_unproven_before_the_good():
    bank = online(4)
    worth = dict(zip((item.id for item in bank.dynamic.items), (0.9, None, 0.1, 0.5), strict=True))
    removed = []
    for room in range(1, 5):
        limits = Limits(max_added=room, max_dynamic=4)
        update = maintain(bank, [skill(f"New {n}.") for n in range(room)], limits, credit=worth.__getitem__)
        removed.append([item.text for item in update.diff.removed])
    # 0.1, then the one that was never proven and the one of credit 0.5, older first, then 0.9; in bank order.
    assert removed == [
        ["Online 2."],
        ["Online 1.", "Online 2."],
        ["Online 1.", "Online 2.", "Online 3."],
        ["Online 0.", "Online 1.", "Online 2.", "Online 3."],
    ]


def test_the_log_gives_the_credit_of_what_went():
    bank = online(1)
    update = maintain(bank, [skill("New.")], Limits(1, 1), credit=lambda _: 0.25)
    entry = update.log[-1]
    assert (entry.action, entry.reason, entry.credit) == (Action.EVICTED, "lowest credit", 0.25)


@pytest.mark.parametrize(("added", "kept"), [(0, 30), (5, 4), (-1, 30)])
def test_limits_that_cannot_be_are_refused(added, kept):
    with pytest.raises(ConfigError, match="limits"):
        Limits(added, kept)


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


@given(
    updates=st.lists(CANDIDATES, max_size=6), by_credit=st.booleans(), added=st.integers(1, 4), kept=st.integers(4, 9)
)
def test_after_any_updates_the_limits_hold_and_static_items_and_ids_are_untouched(updates, by_credit, added, kept):
    limits = Limits(added, kept)
    bank, meaning = STATIC, {}
    for candidates in updates:
        update = maintain(bank, candidates, limits, credit=(lambda id: int(id[-1], 16) / 15) if by_credit else None)
        assert update.bank.static.to_json() == STATIC.to_json()
        for new, old in (
            (update.bank.dynamic.skills, bank.dynamic.skills),
            (update.bank.dynamic.mistakes, bank.dynamic.mistakes),
        ):
            assert len(new) <= kept
            assert len({item.id for item in new} - {item.id for item in old}) <= added
        assert not update.diff.changed
        for item in update.bank.items:
            assert meaning.setdefault(item.id, item.text) == item.text
        assert sum(entry.action is not Action.EVICTED for entry in update.log) == len(candidates)
        assert {e.id for e in update.log if e.action is Action.EVICTED} == {item.id for item in update.diff.removed}
        bank = update.bank
