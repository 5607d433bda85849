"""Equality of two mathematical expressions, by math-verify. The only module that imports it; runs in a worker
process."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sgsd.verifiers.compare import UnreadableError
from sgsd.verifiers.grade import UNREADABLE, grade, read_reference
from sgsd.verifiers.numerals import Numeral, read_numeral
from sgsd.verifiers.reading import expression_text
from sgsd.verifiers.verdict import Outcome, Verdict
from sgsd.verifiers.worker import Grader

# Neither has type stubs.
math_verify: Any = importlib.import_module("math_verify")
sympy: Any = importlib.import_module("sympy")

# Its own timeouts need SIGALRM in the main thread; the pool has a harder one. It warns when they are off.
for _name in ("math_verify", "math_verify.parser", "math_verify.grader", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_MAX_LENGTH = 2_000
_MAX_DEPTH = 60
_CONFIG = [math_verify.LatexExtractionConfig()]
_COMMAND = re.compile(r"\\[A-Za-z]+")
_BASED = re.compile(r"0x[0-9A-Fa-f]+|0o[0-7]+|0b[01]+|[0-9A-F]+ ?_ ?(?:\d+|\{ ?\d+ ?\}|\{? ?\\text ?\{[^{}]*\} ?\}?)")
_LAST_FACTOR = re.compile(r"(?:(?<=[\d)}])|(?<=(?<![A-Za-z])[A-Za-z])|(?<=\\pi)) ?([A-Za-z])$")
_RATIO = re.compile(r"\d+(?: ?: ?\d+){2,}")
_CAPITALS = re.compile(r"(\\(?:measured)?angle ?)?([A-Z](?: ?[A-Z]){2,})")


@lru_cache(maxsize=2_048)
def _parse(text: str) -> Any:
    """The expression, or ``None`` where math-verify cannot parse it, or parses only a part of it."""
    if len(text) > _MAX_LENGTH or not text.isascii() or _nesting(text) > _MAX_DEPTH:
        return None
    # The parser takes a last letter for a unit: of \pi r^2 h it drops the h.
    for spelling in dict.fromkeys((text, _LAST_FACTOR.sub(r" {\1}", text))):
        parsed: list[Any] = math_verify.parse(f"${spelling}$", _CONFIG, parsing_timeout=None)
        expression = next((item for item in parsed if not isinstance(item, str)), None)
        if expression is not None and _complete(text, expression):
            return expression
    return None


def _nesting(text: str) -> int:
    deepest = depth = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth -= 1
    return deepest


def _complete(text: str, expression: Any) -> bool:
    """Whether the variables of the text are all in the expression. The parser drops what it does not understand."""
    bare = re.sub(r"\\text ?\{[^{}]*\}|_(?:\{[^{}]*\}|\w)", " ", text)
    letters = {
        letter.lower()
        for letter in re.findall(
            r"[A-Za-z]", _COMMAND.sub(" ", re.sub(r"\\begin\{[^{}]*\}(?:\{[^{}]*\})?|\\end\{[^{}]*\}", " ", bare))
        )
    }
    printed = str(expression).lower()
    return all(letter in printed for letter in letters - {"e", "i", "d"})


def equal(reference: str, given: str) -> bool:
    """Whether two expressions are equal, as math-verify sees it, with guards against what it is known to get wrong.

    Raises:
        UnreadableError: if the reference cannot be parsed.
    """
    if _BASED.fullmatch(reference) or _BASED.fullmatch(given):
        return re.sub(r"[\s{}]", "", reference).lower() == re.sub(r"[\s{}]", "", given).lower()
    if len(reference) == len(given) == 1 and reference.isalpha() and given.isalpha():
        return reference == given  # the parser does not tell e from E
    ratios = [[int(part) for part in text.split(":")] if _RATIO.fullmatch(text) else [] for text in (reference, given)]
    if any(ratios):
        return _proportional(*ratios)
    if (named := _CAPITALS.fullmatch(reference)) and (other := _CAPITALS.fullmatch(given)):
        # Points and strings, not products: their order counts; an angle may be read from either side.
        first, second = named[2].replace(" ", ""), other[2].replace(" ", "")
        return first == second or bool(named[1] and len(first) == 3 and first == second[::-1])
    if reference.count("'") != given.count("'"):
        return False  # the parser drops primes
    gold = _parse(reference)
    if gold is None:
        raise UnreadableError(reference)
    numeral = read_numeral(given)
    if numeral is not None and isinstance(gold, sympy.Expr) and not gold.free_symbols and not numeral.percent:
        return _states(gold, numeral)
    target = _parse(given)
    if target is None:
        return False
    return math_verify.verify(gold, target, timeout_seconds=None)


def _proportional(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two ratios are the same: equally many parts, none of which is larger for its share."""
    return (
        len(first) == len(second)
        and all(a * second[0] == b * first[0] for a, b in zip(first, second, strict=True))
        and (first[0] != 0 or first == second)
    )


def _states(gold: Any, numeral: Numeral) -> bool:
    """Whether a literal is the value of an exact expression, or its rounding to four significant digits or more."""
    value = sympy.Rational(numeral.value.numerator, numeral.value.denominator)
    exact = gold.doit()
    difference: Any = sympy.N(exact - value, 30)
    if not difference.is_number or not difference.is_real:
        return False
    scale = abs(value) if value != 0 else sympy.Integer(1)
    if abs(difference) <= sympy.Float("1e-20") * scale:
        return True
    if numeral.form != "decimal" or numeral.digits < 4:
        return False
    return bool(abs(difference) * 2 * 10**numeral.places <= 1)


def grade_math(completion: str, answer: str) -> Verdict:
    """Judge one completion by the mathematics policy."""
    return grade(completion, answer, equal)


_FAMILIAR = (
    r"\frac{m}{n}",
    r"2\sqrt{3}+1",
    "x^2+2x+1",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    r"3\pi r^{2}",
    r"y=2x-3",
)


def make_grader(*, check: bool = False) -> Grader:
    """The mathematics policy; with ``check``, only whether the reference can be read.

    The parser builds its tables as it goes: a few usual expressions first, so that no item pays for that.
    """
    for text in _FAMILIAR:
        equal(text, text + " + 0")
    return (lambda _, answer: check_reference(answer)) if check else grade_math


def check_reference(answer: str) -> Verdict:
    """``CORRECT`` if the reference can be read, undecided otherwise."""
    reading = read_reference(answer)
    if reading is None:
        return UNREADABLE
    leaves = [reading]
    while leaves:
        leaf = leaves.pop()
        leaves.extend(leaf.items)
        if leaf.items or leaf.shape in {"number", "words"}:
            continue
        text = expression_text(leaf)
        if not _BASED.fullmatch(text) and _parse(text) is None and _parse(leaf.whole) is None:
            return UNREADABLE
    return Verdict(Outcome.CORRECT)
