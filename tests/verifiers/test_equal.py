"""Does an answer text state the reference? The extraction left out: what stands in the box."""

from __future__ import annotations

import re
import time
from fractions import Fraction

import pytest

from sgsd.verifiers import Extraction, Outcome
from sgsd.verifiers.expressions import (
    NUMBERS_ONLY,
    as_latex,
    close_evaluation,
    parse,
    sympy,
)
from sgsd.verifiers.math import grade_extraction, read_reference
from sgsd.verifiers.tidy import tidy
from sgsd.verifiers.values import number, values


def judged(reference: str, text: str) -> Outcome:
    reading = read_reference(reference)
    assert reading is not None
    return grade_extraction(Extraction(text), reading).outcome


@pytest.mark.parametrize(
    "text",
    [
        r"2\sqrt{3}+5x^{7}",
        r"\frac{11x}{13}-\sin 17",
        "x_1+3y_2",
        r"\log_{2}{19}+x^{3/4}",
        r"\binom{9}{4}+5!x",
        r"3\frac{1}{2}x",
        r"|x-3|+\lfloor 5x \rfloor",
        r"\int_0^7 x^3 dx",
        r"\sum_{k=3}^{9} 2k",
        "7x+2=5y",
        r"f(3)+4\overline{A2}",
    ],
)
def test_no_number_of_a_text_is_dropped(text: str):
    """A number that the parser dropped could be any other."""
    whole = parse(as_latex(tidy(text)))
    assert whole is not None
    for literal in re.finditer(r"\d+", text):
        other = f"{text[: literal.start()]}{int(literal[0]) + 1}{text[literal.end() :]}"
        assert parse(as_latex(tidy(other))) != whole, other


@pytest.mark.parametrize(
    "text", ["2x+y", "x_a+b", "f(x)+g", r"\overline{AB}+c", "e^{k}", r"\alpha b", r"\angle ABC + d"]
)
def test_no_letter_of_a_text_is_dropped(text: str):
    whole = parse(as_latex(tidy(text)))
    assert whole is not None
    for letter in re.finditer(r"(?<![\\A-Za-z])[A-Za-z](?![a-z])", text):
        other = f"{text[: letter.start()]}{'w' if letter[0].islower() else 'W'}{text[letter.end() :]}"
        assert parse(as_latex(tidy(other))) != whole, other


@pytest.mark.parametrize("code", ["Symbol ('x' )", "__import__ ('os' )", "Integer (1 ).real", "Integer .mro ()"])
def test_sympy_evaluates_numbers_alone_in_a_worker(code: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sympy.parsing.sympy_parser, "stringify_expr", sympy.parsing.sympy_parser.stringify_expr)
    close_evaluation()
    assert not NUMBERS_ONLY.fullmatch(code)
    assert sympy.Number("12") == 12
    with pytest.raises(Exception, match="not evaluated"):
        sympy.sympify("open('/tmp/x')")


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^{9}}}",
        "(x+1)^{1000000}",
        "10000000!",
        r"\binom{10^9}{5*10^8}",
        "((9!)!)!",
        r"\sqrt[9^{9^{9}}]{2}",
        "2^{2^{2^{2^{2^2}}}}",
        r"\operatorname{eye}(100000)",
        r"\begin{pmatrix}1\\2\end{pmatrix}^{99999}",
        "x" * 3_000,
        "(" * 300 + "x" + ")" * 300,
        r"\sqrt{x+" * 12 + "x" + "}" * 12,
        "x^{" * 12 + "x" + "}" * 12,
        "|x|" * 60,
        "f(x," * 12 + "x" + ")" * 12,
        r"\sum_{k=1}^{1000000000} k",
        r"37\%^15554",
    ],
)
@pytest.mark.parametrize("reference", ["x+1", r"\sqrt{2}", "(1,2)", r"\mathbb{R}", r"\begin{pmatrix}1\\2\end{pmatrix}"])
def test_what_is_too_large_is_incorrect_at_once(reference: str, text: str):
    start = time.process_time()
    assert judged(reference, text) is Outcome.INCORRECT
    assert time.process_time() - start < 1.0


def test_a_high_power_is_large_at_one_of_the_points():
    """``x`` does not equal ``x + x^{9999}``, which differ by next to nothing where all points are below 1."""
    (row,) = values(sympy.Symbol("x") ** 9_999)
    assert max(map(abs, row)) > 1e30
    assert judged("x", "x+x^{9999}") is Outcome.INCORRECT


def test_values_stay_exact_while_they_are_rational():
    assert number(parse("2^{200}+1")) == Fraction(2**200 + 1)
    assert judged("2^{200}+1", "2^{200}") is Outcome.INCORRECT
    assert judged("2^{200}+1", str(2**200 + 1)) is Outcome.CORRECT
