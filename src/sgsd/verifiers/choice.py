"""Multiple choice: exactly one letter, and the right one."""

from __future__ import annotations

import re

from sgsd.verifiers.extract import NO_ANSWER, extract_choice
from sgsd.verifiers.grade import UNREADABLE
from sgsd.verifiers.tidy import tidy, words
from sgsd.verifiers.verdict import Outcome, Verdict
from sgsd.verifiers.worker import Grader

_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_OPTION = re.compile(r"(?<![A-Za-z'])\(?([A-Z])(?:\)|[.:](?=\s|$))")
_ALONE = re.compile(r"(?!(?:A|I)\s+(?!or\b|and\b)[a-z])(?<![A-Za-z'\\])([A-Z])(?![A-Za-z'])")


def option(text: str) -> str | None:
    """The letter of a reference: ``B``, ``(B)``, ``b``, ``\\text{(B)}``, ``B. Paris``; ``None`` if it is none."""
    letters = letters_of(text)
    return letters[0] if len(letters) == 1 else None


def letters_of(text: str) -> list[str]:
    """The distinct options that an answer names.

    An answer that is a letter is that letter in either case. Elsewhere, marked letters (``(B)``, ``B.``) count if there
    are any, else upper-case letters that stand alone and do not begin a phrase (``I think``, ``A cat``).
    """
    plain = words(tidy(text))
    whole = _LETTER.fullmatch(plain)
    if whole:
        return [whole[1].upper()]
    return list(dict.fromkeys(_OPTION.findall(plain) or _ALONE.findall(plain)))


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
