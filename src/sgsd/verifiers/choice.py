"""Multiple choice: exactly one letter, and the right one."""

from __future__ import annotations

from sgsd.verifiers.extract import NO_ANSWER, extract_choice
from sgsd.verifiers.grade import UNREADABLE
from sgsd.verifiers.letters import letters_of, option
from sgsd.verifiers.verdict import Outcome, Verdict
from sgsd.verifiers.worker import Grader


def make_grader() -> Grader:
    """Correct if the extracted answer names one option, the reference's."""

    def grade(completion: str, answer: str) -> Verdict:
        expected = option(answer)
        if expected is None:
            return UNREADABLE
        found = extract_choice(completion)
        if found.text is None:
            return Verdict(Outcome.INCORRECT, found.reason or NO_ANSWER)
        named = letters_of(found.text)
        if len(named) == 1:
            return Verdict(Outcome.CORRECT if named[0] == expected else Outcome.INCORRECT, None, named[0])
        return Verdict(Outcome.INCORRECT, "several answers" if named else NO_ANSWER, found.text[:200])

    return grade
