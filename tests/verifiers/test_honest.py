"""Honest forms of right answers are called correct: 95 of a hundred for each verifier. The others are named."""

from __future__ import annotations

import pytest

from sgsd.verifiers import Outcome, get_verifier

from .hacks import ENTRIES
from .honest import HONEST

SHARE = 0.95


@pytest.mark.parametrize("name", ["math", "choice", "reasoning_gym"])
def test_honest_forms_are_correct(name: str):
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    cases = [
        (f"{kind} {number}", ENTRIES.get(reference, reference) if name == "reasoning_gym" else reference, completion)
        for (kind, verifier), forms in HONEST.items()
        if verifier == name
        for number, (reference, completion) in enumerate(forms)
    ]
    with get_verifier(name, workers=2) as verifier:
        verdicts = verifier.verify_many([case[2] for case in cases], [case[1] for case in cases])
    # A data set that is refused by name is undecided in every form.
    judged = {
        case[1] for case, verdict in zip(cases, verdicts, strict=True) if verdict.outcome is not Outcome.UNDECIDED
    }
    assert len(judged) >= 2 / 3 * len({case[1] for case in cases})
    refused = [
        f"{key}: {reference[:80]!r} <- {completion[:120]!r}: {verdict}"
        for (key, reference, completion), verdict in zip(cases, verdicts, strict=True)
        if verdict.outcome is not Outcome.CORRECT and (name != "reasoning_gym" or reference in judged)
    ]
    share = 1 - len(refused) / len(cases)
    assert share >= SHARE, f"{len(refused)} of {len(cases)} refused:\n" + "\n".join(refused)
