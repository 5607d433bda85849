"""Completion and reference → verdict, for mathematics."""

from __future__ import annotations

import re

from sgsd.verifiers.boxes import boxes
from sgsd.verifiers.compare import Equal, UnreadableError, same_answer
from sgsd.verifiers.extract import NO_ANSWER, Extraction, extract_answer
from sgsd.verifiers.reading import Reading, Shape, read_answer
from sgsd.verifiers.tidy import key, tidy
from sgsd.verifiers.verdict import Outcome, Verdict

_LABEL = re.compile(r"\(?[A-H][.)](?:\\? )++(?=[$\d\\-])")  # of an option: "A. 56"
_MARKED = re.compile(r"####|final answer", re.IGNORECASE)
UNREADABLE = Verdict(Outcome.UNDECIDED, "unreadable reference")


def reference_text(answer: str) -> str | None:
    """The answer inside a reference: data sets give it bare, boxed, after ``####``, or at the end of a solution.

    ``None`` where there is none: an empty reference, or one that is nothing but marks.
    """
    text = answer.strip()
    if "boxed" in text or "fbox" in text:
        found, unclosed = boxes(text)
        contents = {key(tidy(content)): content for _, _, content in found if content.strip()}
        if contents:
            return ", ".join(contents.values())
        if unclosed:
            return text.rpartition("boxed{")[2]
        return None
    if _MARKED.search(text) or (len(text) > 200 and "\n" in text):
        return extract_answer(text).text
    return text if re.search(r"[^\W_]|\\[A-Za-z]", text) else None


def read_reference(answer: str) -> Reading | None:
    """The reference, read; ``None`` if it cannot be."""
    text = reference_text(answer)
    if text is None or len(text) > 4_000:
        return None
    reading = read_answer(text)
    return reading if reading.text.strip() else None


def grade(completion: str, answer: str, equal: Equal) -> Verdict:
    """Judge a completion.

    Args:
        completion: what the model wrote.
        answer: the reference.
        equal: decides about expressions, see ``compare.same_answer``.
    """
    reference = read_reference(answer)
    if reference is None:
        return UNREADABLE
    extraction = extract_answer(completion)
    if extraction.text is None or not extraction.text.strip():
        return Verdict(Outcome.INCORRECT, extraction.reason or NO_ANSWER)
    return grade_extraction(extraction, reference, equal)


def grade_extraction(extraction: Extraction, reference: Reading, equal: Equal) -> Verdict:
    """Judge an extracted answer against a reference that was read."""
    shown = (extraction.text or "")[:200]
    if extraction.reason is not None:
        return Verdict(Outcome.INCORRECT, extraction.reason, shown)
    text = extraction.text or ""
    label = _LABEL.match(text) if reference.shape is Shape.NUMBER and not reference.items else None
    given = read_answer(text[label.end() :] if label else text)
    try:
        if same_answer(reference, given, equal):
            return Verdict(Outcome.CORRECT, None, shown)
    except UnreadableError:
        return Verdict(Outcome.UNDECIDED, UNREADABLE.reason, shown)
    return Verdict(Outcome.INCORRECT, "several answers" if extraction.several else None, shown)
