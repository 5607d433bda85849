"""Normalised equality of texts."""

from __future__ import annotations

import re
import unicodedata

from sgsd.verifiers.extract import NO_ANSWER, extract_answer
from sgsd.verifiers.tidy import words
from sgsd.verifiers.verdict import UNREADABLE, Grader, Outcome, Verdict


def normalise(text: str, *, ignore_case: bool) -> str:
    r"""The text in NFKC with ``\text{…}`` replaced by its content, white space collapsed and final full stops dropped;
    case is folded if asked."""
    text = re.sub("([⁰¹²³⁴-⁹]+)|([₀-₉]+)", lambda digits: f"{'^' if digits[1] else '_'}{digits[0]}", words(text))
    text = " ".join(unicodedata.normalize("NFKC", text).split()).rstrip(".")
    return text.casefold() if ignore_case else text


def why_unreadable(answer: str) -> str | None:
    """The reason if ``normalise`` leaves nothing of a reference; ``None`` if it leaves something."""
    return None if normalise(answer, ignore_case=True) else UNREADABLE.reason


def make_grader(*, ignore_case: bool) -> Grader:
    """A grader: correct if the extracted answer equals the reference, both after ``normalise``."""

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
