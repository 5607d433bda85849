"""What the mathematics verifier calls right, without the pool: the policy itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsd.verifiers import Outcome, Verdict
from sgsd.verifiers.math import grade_math, why_unreadable

from .read_cases import read_cases


def is_correct(completion: str, answer: str) -> bool:
    return grade_math(completion, answer).outcome is Outcome.CORRECT


def box(answer: str) -> str:
    return rf"The answer is $\boxed{{{answer}}}$."


@pytest.mark.parametrize(
    "answer", ["", "  ", "$$", r"\boxed{}", "???", r"\frac{1}{", "x^", r"\begin{pmatrix} 1 \\", "☃", r"\mystery x'"]
)
def test_an_unreadable_reference_leaves_the_completion_undecided(answer: str):
    verdict = grade_math(r"\boxed{5}", answer)
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.reason == "unreadable reference"
    assert why_unreadable(answer) == "unreadable reference"


@pytest.mark.parametrize(
    "answer", ["x+1", "(1,2)", "5", r"\frac{m}{n}", "odd", r"\text{(B)}", "204_5", "3:4", "[1,2)", "y=2x"]
)
def test_an_answer_equals_itself_and_can_be_read(answer: str):
    assert is_correct(box(answer), answer)
    assert why_unreadable(answer) is None


def test_the_reason_tells_no_answer_from_a_wrong_one():
    assert grade_math("I do not know.", "5").reason is None  # words are an answer, too
    assert grade_math("", "5").reason == "no answer"
    assert grade_math(r"\boxed{5", "5").reason == "unclosed box"
    assert grade_math(r"\boxed{4}, \boxed{5}", "5").reason == "several answers"
    assert grade_math("The answer is not 5.", "5").reason == "denied answer"
    assert grade_math(r"\boxed{4}", "5") == Verdict(Outcome.INCORRECT, None, "4")


INTEGERS = st.integers(min_value=-(10**12), max_value=10**12)


@given(INTEGERS)
def test_every_integer_equals_itself(number: int):
    assert is_correct(box(str(number)), str(number))
    assert is_correct(box(f"{number:,}"), str(number))
    assert is_correct(f"The answer is {number}.", f"{number:,}")


@given(INTEGERS, INTEGERS)
def test_different_integers_are_never_equal(first: int, second: int):
    assert is_correct(box(str(first)), str(second)) == (first == second)
    assert is_correct(f"It is {first}.", str(second)) == (first == second)


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**4))
def test_a_fraction_equals_itself_in_both_spellings(numerator: int, denominator: int):
    assert is_correct(box(rf"\frac{{{numerator}}}{{{denominator}}}"), f"{numerator}/{denominator}")
    assert is_correct(box(f"{numerator}/{denominator}"), rf"\frac{{{numerator}}}{{{denominator}}}")


@given(st.integers(-(10**6), 10**6), st.integers(1, 6))
def test_a_decimal_equals_itself_and_its_fraction(mantissa: int, places: int):
    decimal = f"{mantissa / 10**places:.{places}f}"
    assert is_correct(box(decimal), decimal)
    # A quotient that is an integer is still to be computed.
    assert is_correct(box(rf"\frac{{{mantissa}}}{{{10**places}}}"), decimal) == (mantissa % 10**places != 0)


@given(st.integers(-500, 500), st.integers(-500, 500), st.sampled_from(["+", "-", "*", r"\times", r"\cdot"]))
def test_an_expression_still_to_be_computed_is_never_a_number(left: int, right: int, operator: str):
    value = left + right if operator == "+" else left - right if operator == "-" else left * right
    assert not is_correct(box(f"{left} {operator} {right}"), str(value)) or (left == 0 and operator in "+-")
    assert is_correct(box(f"{left} {operator} ({right}) = {value}"), str(value)) or left == value


PLAIN = st.one_of(
    INTEGERS.map(str),
    st.decimals(-1000, 1000, places=3).map(str),
    st.sampled_from([case.reference for case in read_cases("pairs")[:60]]),
)


@settings(max_examples=60, deadline=None)
@given(PLAIN, PLAIN)
def test_equality_of_answers_is_symmetric(first: str, second: str):
    assert is_correct(box(first), second) == is_correct(box(second), first)


MATHS = st.text(st.sampled_from(list(r"0123456789+-*/^=<>(){}[]\,.;:$%|&_ !'xyzfracsqtboxed" + "≤√π±\n")), max_size=60)


@settings(max_examples=700, deadline=None)
@given(st.text(max_size=200) | MATHS, st.sampled_from(["5", "1/2", "(1,2)", "yes", ""]))
def test_any_text_gets_a_verdict(completion: str, answer: str):
    assert isinstance(grade_math(completion, answer), Verdict)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=100) | MATHS)
def test_any_reference_gets_a_verdict(answer: str):
    assert isinstance(grade_math(r"\boxed{5}", answer), Verdict)
    assert why_unreadable(answer) in {None, "unreadable reference"}


@pytest.mark.parametrize(("stem", "least"), [("verifier_cases", 0.97), ("responses", 0.99)])
def test_it_agrees_with_known_verdicts(shared_data: Path, stem: str, least: float):
    lines = [
        line
        for name in (f"{stem}.jsonl", f"{stem}_2.jsonl")
        for line in (shared_data / name).read_text(encoding="utf-8").splitlines()
    ]
    rows = [row for row in map(json.loads, lines) if not row.get("doubtful") and row.get("verifier", "math") == "math"]
    agreed = sum(
        is_correct(row.get("response") or row["pred"], row.get("gold", row.get("answer")))
        == row.get("equal", row.get("correct"))
        for row in rows
        if row.get("response") or "pred" in row
    )
    assert agreed >= least * len(rows)
