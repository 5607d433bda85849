from __future__ import annotations

import pytest

from sgsd.verifiers import Outcome, get_verifier

from .near_misses import HONEST, NEAR_MISSES, VERIFIERS


def test_there_are_at_least_two_hundred_and_no_two_the_same():
    cases = [(reference, completion) for cases in NEAR_MISSES.values() for reference, completion, _ in cases]
    assert len(set(cases)) == len(cases) >= 200


@pytest.mark.parametrize("kind", NEAR_MISSES)
def test_nearly_right_is_not_right(kind):
    cases = NEAR_MISSES[kind]
    verifier = get_verifier(VERIFIERS.get(kind, "math"), workers=2)
    verdicts = verifier.verify_many([case[1] for case in cases], [case[0] for case in cases])
    called_right = [c for c, verdict in zip(cases, verdicts, strict=True) if verdict.outcome is Outcome.CORRECT]
    assert called_right == []


def test_what_is_right_beside_them_is_right():
    verdicts = get_verifier("math", workers=2).verify_many([case[1] for case in HONEST], [case[0] for case in HONEST])
    judged_wrong = [c for c, verdict in zip(HONEST, verdicts, strict=True) if verdict.outcome is not Outcome.CORRECT]
    assert judged_wrong == []
