"""The verdicts of ``cases/*.jsonl``, each by its grader, without the pool."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sgsd.verifiers import Extraction, Outcome, Verdict, choice, exact, reasoning_gym
from sgsd.verifiers import math as maths

from .read_cases import Case, read_cases, read_forms

GRADERS: dict[str, Callable[[str, str], Verdict]] = {
    "math": maths.grade_math,
    "choice": choice.make_grader(),
    "exact": exact.make_grader(ignore_case=True),
    "reasoning_gym": reasoning_gym.make_grader(),
}


def boxed(case: Case) -> Verdict:
    return maths.grade_math(rf"\boxed{{{case.completion}}}", case.reference)


def announced(case: Case) -> Verdict:
    return maths.grade_math(f"Answer: {case.completion}", case.reference)


def alone(case: Case) -> Verdict:
    return GRADERS[case.verifier](case.completion, case.reference)


def extracted(case: Case) -> Verdict:
    """The extraction left out: what stands in the box."""
    reading = maths.read_reference(case.reference)
    assert reading is not None
    return maths.grade_extraction(Extraction(case.completion), reading)


@pytest.mark.parametrize("expected", ["correct", "incorrect"])
@pytest.mark.parametrize(
    ("name", "judge"),
    [
        ("completions", alone),  # what commits to an answer, and what does not
        ("near_misses", alone),  # what is nearly right, and what is right beside it
        ("pairs", alone),
        ("pairs", boxed),
        ("pairs", announced),
        ("answers", extracted),
    ],
)
def test_cases_get_their_verdict(name: str, judge: Callable[[Case], Verdict], expected: str):
    cases = [case for case in read_cases(name) if case.expected == expected]
    assert cases
    other = [(case, verdict) for case in cases if (verdict := judge(case)).outcome is not Outcome(expected)]
    assert not other, f"{len(other)} of {len(cases)}:\n" + "\n".join(map(str, other))


@pytest.mark.parametrize("expected", ["correct", "incorrect"])
def test_forms_get_their_verdict(expected: str):
    cases = [case for case in read_forms() if case.expected == expected]
    assert len(cases) > 2_000
    other = [(case, verdict) for case in cases if (verdict := alone(case)).outcome is not Outcome(expected)]
    assert not other, f"{len(other)} of {len(cases)}:\n" + "\n".join(map(str, other[:60]))
