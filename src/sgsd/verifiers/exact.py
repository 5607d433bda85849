"""Normalised equality of texts."""

from __future__ import annotations

import unicodedata

from sgsd.verifiers.extract import NO_ANSWER, extract_answer
from sgsd.verifiers.tidy import words
from sgsd.verifiers.verdict import UNREADABLE, Grader, Outcome, Verdict


def normalise(text: str, *, ignore_case: bool) -> str:
    r"""NFKC, ``\text{}`` opened, white space collapsed, final stop dropped, case folded if asked."""
    text = " ".join(unicodedata.normalize("NFKC", words(text)).split()).rstrip(".")
    return text.casefold() if ignore_case else text


def why_unreadable(answer: str) -> str | None:
    """Why a reference cannot be read: nothing is left of it."""
    return None if normalise(answer, ignore_case=True) else UNREADABLE.reason


def make_grader(*, ignore_case: bool) -> Grader:
    """Correct if the extracted answer is the reference, after ``normalise``."""

    def grade(completion: str, answer: str) -> Verdict:
        expected = normalise(answer, ignore_case=ignore_case)
        if not expected:
            return UNREADABLE
        found = extract_answer(completion)
        if found.text is None:
            return Verdict(Outcome.INCORRECT, found.reason or NO_ANSWER)
        same = normalise(found.text, ignore_case=ignore_case) == expected
        reason = "several answers" if found.several and not same else None
        return Verdict(Outcome.CORRECT if same else Outcome.INCORRECT, reason, found.text[:200])

    return grade
