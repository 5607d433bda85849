"""Equality of two expressions, by their values. Runs in a worker process.

Two expressions are equal if their values agree at several random points. Two equations are equal if the difference of
the sides of one is a constant multiple of that of the other. An answer with operations that the reference does not have
(integrals, trigonometric functions, …) is not computed yet, and is not equal.
"""

from __future__ import annotations

import importlib
import re
from fractions import Fraction
from typing import Any

from sgsd.verifiers.expressions import COMMAND, SETS, as_latex, is_verbatim, parse, sympy
from sgsd.verifiers.numerals import Numeral, approximates, read_numeral, read_unit, rounds_to, units_differ
from sgsd.verifiers.values import Value, close, mp, number, values

math_verify: Any = importlib.import_module("math_verify")  # has no type stubs


_MIRRORED = {">": "<", ">=": "<="}


class UnreadableError(ValueError):
    """The reference answer cannot be parsed."""


# Operations that an answer leaves to be computed, unless the reference has one of the same kind.
UNCOMPUTED = tuple(
    re.compile(rf"(?:{pattern})(?![A-Za-z])")
    for pattern in (
        r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?",
        r"\\(?:log|ln)",
        r"\\int",
        r"\\(?:sum|prod|ldots|cdots)",
        r"\\lim",
        r"\\frac ?\{ ?(?:d|\\partial)|\\partial",
        r"\\[lr](?:floor|ceil)",
        r"\\begin ?\{vmatrix(?=\})",
    )
)
_CALCULUS = re.compile(r"\\(?:int|sum|prod|lim)(?![A-Za-z])")
_LETTER = re.compile(r"(?<![A-Za-z\\])d?[A-Za-z](?![A-Za-z])| ")
_MAX_MEMBERS = 10
_COUNTING = re.compile(r"!|\\binom")
BASED = re.compile(
    r"(?<![0-9A-Fa-f])0[xob][0-9A-Fa-f]+|(?<![0-9A-F])[0-9A-F]+ ?_ ?(?:\d+|\{ ?\d+ ?\}"
    r"|\{? ?\\text ?\{[^{}]*\} ?\}?)"
)
_VARIABLE = re.compile(r"[A-Za-df-hj-z]")
_CAPITALS = re.compile(r"(\\(?:measured)?angle ?)?([A-Z](?: ?[A-Z]){2,})")
_UNIT = re.compile(
    r"(?<=[^\s+\-*/=^_({])(?: ?(?=\\text)| )"
    r"((?:\\text ?\{[^{}]*\}|(?:square |sq\.? |cubic )?(?:[cmk]m|ft|feet|foot|inch(?:es)?|units?|rad(?:ian)?s?"
    r"|degrees?"
    r"|(?:centi|milli|kilo)?met(?:er|re)s?)) ?(?:\^ ?\{? ?[1-4] ?\}?)?)$"
)


def _renamed(text: str) -> str:
    return _LETTER.sub(lambda name: "" if name[0] == " " else "a", text)


def equal(reference: str, given: str, digits: int = 4) -> bool:
    """Whether two expressions are equal. An answer that the parser's guards refuse is not.

    Args:
        reference: tidy text.
        given: tidy text.
        digits: significant digits that a decimal needs to stand for an irrational reference. 0 compares two expressions
            of one answer: a decimal may then approximate any number, to its own last digit.

    Raises:
        UnreadableError: if the reference cannot be parsed.
    """
    if BASED.fullmatch(reference) or BASED.fullmatch(given):
        return re.sub(r"[\s{}]", "", reference).lower() == re.sub(r"[\s{}]", "", given).lower()
    if ":" in reference and (":" in given or re.search(r"\bto\b", given)):
        return _same_ratio(reference, given)
    if (named := _CAPITALS.fullmatch(reference)) and (other := _CAPITALS.fullmatch(given)):
        # Points and strings, not products: the order of the letters counts. The angle ABC is also CBA.
        first, second = named[2].replace(" ", ""), other[2].replace(" ", "")
        return first == second or bool(named[1] and len(first) == 3 and first == second[::-1])
    reference, wanted = without_unit(reference)
    given, unit = without_unit(given)
    if units_differ(wanted, unit):
        return False
    if r"\pi" in reference and not wanted and "°" not in reference and ("°" in given or unit.startswith("degree")):
        return False
    reference, given, written = as_latex(reference), as_latex(given), reference
    sets = bool(SETS.search(reference) or SETS.search(given))
    gold = parse(reference, sets)
    if gold is None and sets and parse(reference) is not None:
        return False  # only the completion has set notation
    if gold is None:
        if digits and is_verbatim(written):
            return False
        raise UnreadableError(reference)
    literal = read_numeral(given)
    if literal is not None:
        value = number(gold) if isinstance(gold, sympy.Expr) else None
        exact = literal.value / 100 if literal.percent else literal.value
        if value is None or units_differ(wanted, literal.unit):
            return False
        return close(value, exact) or _rounded(value, literal, digits)
    if any(kind.search(given) and not kind.search(reference) for kind in UNCOMPUTED):
        return False
    if _COUNTING.search(given) and not _COUNTING.search(reference) and not _VARIABLE.search(COMMAND.sub(" ", given)):
        return False
    if _CALCULUS.search(given) and sorted(_renamed(given)) != sorted(_renamed(reference)):
        return False  # to be computed, and it may take long; the reference with other names does not
    if sets and (given.count(",") > _MAX_MEMBERS or given.count(r"\sqrt") > 2):
        return False
    target = parse(given, sets)
    return target is not None and _same(gold, target)


def without_unit(text: str) -> tuple[str, str]:
    """An expression without the unit in words behind it, and the unit."""
    found = _UNIT.search(text)
    unit = read_unit(" " + found[1]) if found else None
    if found is None or unit is None or unit[0] or unit[1] != 1:
        return text, ""
    return text[: found.start()], unit[2]


def _same_ratio(first: str, second: str) -> bool:
    """Whether two ratios are the same: equally many parts, in proportion."""
    parts: list[list[Fraction]] = []
    for text in (first, second):
        text = re.sub(r" ?(?:\\text ?\{ ?to ?\}|\bto\b) ?", ":", text)
        numerals = [read_numeral(part.strip()) for part in text.split(":")]
        if len(numerals) > 100 or any(numeral is None for numeral in numerals):
            return False
        parts.append([numeral.value for numeral in numerals if numeral is not None])
    a, b = parts
    return len(a) == len(b) and sum(b) != 0 and all(x * sum(b) == y * sum(a) for x, y in zip(a, b, strict=True))


def _rounded(value: Value, literal: Numeral, digits: int) -> bool:
    """Whether a literal rounds an irrational number; with ``digits`` 0, whether it approximates any number."""
    if not isinstance(value, Fraction):
        if not mp.isfinite(value) or abs(mp.im(value)) > abs(value) * mp.mpf("1e-30"):
            return False
        value = Fraction(int(mp.floor(mp.re(value) * 10**30)), 10**30)
    elif digits:
        return False
    return rounds_to(value, literal, digits) if digits else approximates(value, literal)


def _same(gold: Any, target: Any) -> bool:
    matrices = sympy.MatrixBase | sympy.MatrixExpr
    if isinstance(gold, sympy.core.relational.Relational):
        return isinstance(target, sympy.core.relational.Relational) and _same_relation(gold, target)
    if isinstance(gold, matrices) or isinstance(target, matrices):
        sides = [side.doit() for side in (gold, target) if isinstance(side, matrices)]
        if len(sides) < 2 or not all(isinstance(side, sympy.MatrixBase) for side in sides):
            return False
        return sides[0].shape == sides[1].shape and all(_same(a, b) for a, b in zip(*sides, strict=True))
    if isinstance(gold, sympy.Expr) and isinstance(target, sympy.Expr):
        rows = values(gold, target)
        return all(close(a, b) for a, b in zip(*rows, strict=True)) if rows else gold == target
    if isinstance(gold, sympy.Expr) or isinstance(target, sympy.Expr):
        return False
    return bool(math_verify.verify(gold, target, timeout_seconds=None))


def _same_relation(gold: Any, target: Any) -> bool:
    """Whether the difference of the sides of one is a constant multiple of the other's, for inequalities a positive
    one."""
    sides: list[Any] = []
    signs: list[str] = []
    for relation in (gold, target):
        first, second, sign = relation.lhs, relation.rhs, relation.rel_op
        if not isinstance(first, sympy.Expr) or not isinstance(second, sympy.Expr):
            return False
        if sign in _MIRRORED:
            first, second, sign = second, first, _MIRRORED[sign]
        sides.append(sympy.Add(first, sympy.Mul(-1, second, evaluate=False), evaluate=False))
        signs.append(sign)
    rows = values(*sides)
    if signs[0] != signs[1] or not rows or any(value == 0 for row in rows for value in row):
        return False
    first, second = ([mp.convert(value) for value in row] for row in rows)
    ratio = first[0] / second[0]
    if signs[0] in {"<", "<="} and not (mp.im(ratio) == 0 and mp.re(ratio) > 0):
        return False
    return all(close(a, ratio * b) for a, b in zip(first, second, strict=True))
