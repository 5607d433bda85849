"""The verdict of SGSD's authors: a box in the last 100 characters, else an ``Answer:`` line in the last 500."""

from __future__ import annotations

import pytest

from sgsd.verifiers import Outcome, get_verifier
from sgsd.verifiers.dapo import reward

FAR = "x" * 101  # pushes what stands before it out of the box's window
FARTHER = "x" * 501


def judged(completion: str, reference: str = "34") -> float:
    (score,) = reward([[{"role": "assistant", "content": completion}]], answer=[reference])
    return score


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (r"So the sum is \boxed{34}.", True),
        (r"So the sum is \boxed{35}.", False),
        (r"First \boxed{35}, then \boxed{34}.", True),
        (r"First \boxed{34}, then \boxed{35}.", False),
        (r"\boxed{34}" + FAR, False),
        (r"\boxed{34}" + "x" * 90, True),
        (r"\boxed{34}" + "x" * 91, False),
        (r"\boxed{34}" + FARTHER + "\nAnswer: 34", True),
        (r"\boxed{34", False),
        ("Answer: 34", True),
        ("answer : $34$", True),
        ("Answer: 35\nAnswer: 34", True),
        ("Answer: 34\nAnswer: 35", False),
        ("Answer: 34\n" + "x" * 489, True),
        ("Answer: 34\n" + "x" * 493, False),
        ("Answer: 34\n" + r"or \boxed{35}", False),
        ("The result is 34.", False),
        ("", False),
    ],
)
def test_only_the_windows_count(completion: str, right: bool) -> None:
    assert judged(completion) == float(right)


def test_a_box_beyond_its_window_hides_an_answer_line() -> None:
    assert judged(r"\boxed{34}" + FAR + "\nAnswer: 34") == 0.0


def test_an_expression_that_still_has_to_be_computed_counts_as_math_verify_has_it() -> None:
    assert judged(r"\boxed{17 + 17}") == 1.0


def test_it_is_a_verifier_by_its_dotted_path() -> None:
    with get_verifier("sgsd.verifiers.dapo:reward", workers=1) as verifier:
        verdicts = verifier.verify_many([r"\boxed{34}", r"\boxed{35}"], ["34", "34"])
    assert [verdict.outcome for verdict in verdicts] == [Outcome.CORRECT, Outcome.INCORRECT]
