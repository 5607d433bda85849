"""Mathematics: completion and reference → verdict."""

from __future__ import annotations

import re

from sgsd.verifiers.compare import same_answer
from sgsd.verifiers.equality import BASED, UnreadableError, equal, without_unit
from sgsd.verifiers.expressions import SETS, as_latex, parse, spelled
from sgsd.verifiers.extract import NO_ANSWER, Extraction, extract_answer
from sgsd.verifiers.reading import Reading, Shape, read_answer
from sgsd.verifiers.spans import boxes
from sgsd.verifiers.tidy import key, tidy
from sgsd.verifiers.values import number
from sgsd.verifiers.verdict import UNREADABLE, Outcome, Verdict
from sgsd.verifiers.worker import Grader

_LABEL = re.compile(r"\(?[A-H][.)](?:\\? )++(?=[$\d\\-])")  # of an option: "A. 56"
_MARKED = re.compile(r"####|final answer", re.IGNORECASE)
_CALCULUS = re.compile(r"\\(?:int|sum|prod|lim)(?![A-Za-z])")


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


def grade_math(completion: str, answer: str) -> Verdict:
    """Judge one completion by the mathematics policy."""
    reference = read_reference(answer)
    if reference is None:
        return UNREADABLE
    extraction = extract_answer(completion)
    if extraction.text is None or not extraction.text.strip():
        return Verdict(Outcome.INCORRECT, extraction.reason or NO_ANSWER)
    return grade_extraction(extraction, reference)


def grade_extraction(extraction: Extraction, reference: Reading) -> Verdict:
    """Judge an extracted answer against a reference that was read."""
    shown = (extraction.text or "")[:200]
    if extraction.reason is not None:
        return Verdict(Outcome.INCORRECT, extraction.reason, shown)
    text = extraction.text or ""
    label = _LABEL.match(text) if reference.shape is Shape.NUMBER and not reference.items else None
    given = read_answer(text[label.end() :] if label else text)
    try:
        if same_answer(reference, given):
            return Verdict(Outcome.CORRECT, None, shown)
    except UnreadableError:
        return Verdict(Outcome.UNDECIDED, UNREADABLE.reason, shown)
    return Verdict(Outcome.INCORRECT, "several answers" if extraction.several else None, shown)


_FAMILIAR = (
    *(r"\frac{m}{n}", r"2\sqrt{3}+1", "x^{2}+2x+1", r"3\pi r^{2}", "y=2x-3", r"\log_{2}{3}", r"2\sin (x) \cos ^{2} y"),
    r"\frac{-b+\sqrt[3]{b^{2}-4a!c}}{2|a|}-e^{-x/2}",
    r"\{1,2\} \cup \mathbb{R} \setminus \{3\}",
)


def make_grader() -> Grader:
    """The mathematics policy. The parser builds its tables as it goes: a few usual expressions first, so that no item
    pays for that.

    Raises:
        RuntimeError: a right answer is not called correct: every rollout would be a failure.
    """
    for text in _FAMILIAR:
        equal(text, f"{text} ")
    for text in ("56", "x^2+1"):
        if (verdict := grade_math(rf"\boxed{{{text}}}", text)).outcome is not Outcome.CORRECT:
            raise RuntimeError(f"the mathematics verifier does not work here: {text} for {text} is {verdict}")
    return grade_math


def why_unreadable(answer: str) -> str | None:
    """Why a reference cannot be read; ``None`` if it can."""
    reading = read_reference(answer)
    if reading is None:
        return UNREADABLE.reason
    leaves = [reading]
    while leaves:
        leaf = leaves.pop()
        leaves.extend([*leaf.items, *filter(None, [leaf.rounded])])
        if leaf.items or leaf.shape in {"number", "words"} or BASED.fullmatch(leaf.text):
            continue
        text = as_latex(without_unit(leaf.text)[0])
        expression = parse(text, bool(SETS.search(text)))
        if expression is None and not spelled(leaf.text):
            return UNREADABLE.reason
        if expression is not None and _CALCULUS.search(text):
            number(expression)  # here, so that one which takes too long is refused, and not tried with every completion
    return None
