"""Verified rollouts as memories."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sgsd.data.problems import Problem
from sgsd.errors import DataError
from sgsd.memories import MAX_STEP_CHARACTERS, MAX_STEPS, FailureMode, compact_steps, memory_of, read_memory
from sgsd.verifiers import Outcome, Verdict

PROBLEM = Problem("p1", "What is 2 + 3?", "5")


def remember(outcome=Outcome.INCORRECT, reason=None, *, truncated=False, completion="It is 6.", source="p1#0"):
    return memory_of(PROBLEM, completion, Verdict(outcome, reason, "6"), truncated=truncated, source=source)


def test_what_could_not_be_judged_is_no_memory():
    assert remember(Outcome.UNDECIDED, "timeout") is None


@pytest.mark.parametrize(
    ("reason", "truncated", "mode"),
    [
        ("no answer", False, FailureMode.NO_ANSWER),
        ("unclosed think tag", False, FailureMode.NO_ANSWER),
        ("no answer", True, FailureMode.TRUNCATED),
        (None, True, FailureMode.TRUNCATED),
        ("several answers", False, FailureMode.WRONG_FORM),
        ("empty box", False, FailureMode.WRONG_FORM),
        (None, False, FailureMode.WRONG_VALUE),
    ],
)
def test_a_failure_has_a_mode(reason, truncated, mode):
    assert remember(reason=reason, truncated=truncated).failure_mode is mode


def test_a_success_has_none_even_where_the_limit_cut_it():
    assert remember(Outcome.CORRECT, truncated=True).failure_mode is None


def test_the_id_depends_on_what_was_remembered_and_on_nothing_else():
    assert remember().id == remember().id
    others = [remember(completion="It is 7."), remember(source="p1#1"), remember(Outcome.CORRECT), remember(reason="x")]
    assert len({remember().id, *(other.id for other in others)}) == 5
    assert remember(completion="\ud800").id.startswith("memory-")


def test_steps_keep_both_ends_of_a_long_completion():
    completion = "<think>\n" + "\n\n".join(f"line {n}" for n in range(40)) + "\n</think>x" * 1 + "y" * 999
    steps = compact_steps(completion)
    assert len(steps) == MAX_STEPS
    assert steps[0] == "line 0"
    assert steps[-1].startswith("xyy")
    assert max(map(len, steps)) == MAX_STEP_CHARACTERS
    assert "… 30 lines …" in steps
    assert compact_steps(" \n ") == ()


def test_a_memory_comes_back_from_json():
    for memory in (remember(), remember(Outcome.CORRECT, "said so")):
        assert read_memory(json.loads(json.dumps(memory.as_dict())), "here") == memory


@pytest.mark.parametrize(
    "change",
    [{"steps": "one"}, {"outcome": "undecided"}, {"failure_mode": "bad luck"}, {"problem": None}, {"extra": 1}],
)
def test_what_is_no_memory_is_refused(change):
    with pytest.raises(DataError, match="line 3: not a memory"):
        read_memory(remember().as_dict() | change, "line 3")


def test_memories_are_values():
    assert replace(remember(), source="p1#0") == remember()
