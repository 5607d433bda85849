"""The numerical values of expressions: exact as long as they are rational, else to 400 digits. No simplification."""

from __future__ import annotations

import importlib
import math
import random
from fractions import Fraction
from typing import Any

from sgsd.verifiers.tidy import names

sympy: Any = importlib.import_module("sympy")
mpmath: Any = importlib.import_module("mpmath")
mp = mpmath.MPContext()
mp.dps = 400
_CONSTANTS = {"i": mp.mpc(0, 1), "e": mp.e, "pi": mp.pi}
_FUNCTIONS = {
    **{name: getattr(mp, name) for name in names("exp sin cos tan cot sec csc asin acos atan sinh cosh tanh floor")},
    "Abs": mp.fabs,
    "ceiling": mp.ceil,
}
_CALCULUS = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)
_LARGEST = 10_000
_EXACT_BITS = 40_000
_LARGEST_EXPONENT = 10**6
_DRAW = random.SystemRandom()  # secret points: no answer can be built to agree at them
# Below 1, beyond 1 (where high powers are not small) and negative.
_RANGES = ((200_000, 900_000), (1_100_000, 1_700_000), (-1_700_000, -200_000))
_POINTS = [[Fraction(_DRAW.randrange(*span), 1_000_003) for _ in range(60)] for span in _RANGES]
# For absolute values: points far out and of mixed signs, where the signs of their arguments differ.
_FAR = [[x * sign * (-1) ** place for place, x in enumerate(_POINTS[0])] for sign in (1, -1, 1_000, -1_000)]
Value = Any  # a Fraction as long as the value is rational, else a number of mpmath


class _UnknownValueError(ValueError):
    """An expression has no value: an unknown function, a division by zero, a number too large."""


def _value(expression: Any, point: dict[str, Fraction]) -> Value:
    name = expression.func.__name__
    if expression.is_Rational:
        return Fraction(expression.p, expression.q)
    if expression.is_Symbol:
        return (_CONSTANTS | point)[expression.name]
    if expression in (sympy.oo, -sympy.oo):
        return mp.inf if expression is sympy.oo else -mp.inf
    if expression is sympy.E:
        return mp.e
    values = [_value(argument, point) for argument in expression.args]
    if name in {"Add", "Mul"}:
        total = values[0]
        for value in values[1:]:
            if not (isinstance(total, Fraction) and isinstance(value, Fraction)):
                total, value = mp.convert(total), mp.convert(value)
            total = total + value if name == "Add" else total * value
            if isinstance(total, Fraction) and total.denominator.bit_length() > _EXACT_BITS:
                total = mp.convert(total)
        return total
    if name == "Pow":
        return _power(*values)
    if name == "log":
        logarithms = [mp.log(mp.convert(value)) for value in values]
        return logarithms[0] / (logarithms[1] if len(values) > 1 else 1)
    if name == "UnevaluatedExpr":
        return values[0]
    small = all(isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= _LARGEST for value in values)
    if name == "factorial":
        return Fraction(math.factorial(int(values[0]))) if small else mp.gamma(_moderate(values[0]) + 1)
    if name == "binomial":
        return Fraction(math.comb(*map(int, values))) if small else mp.binomial(*map(_moderate, values))
    if name in _FUNCTIONS and len(values) == 1:
        value = _FUNCTIONS[name](_moderate(values[0]))
        # A step function hides differences of its argument. At a point, a term that is zero at integers shows them.
        return value + mp.sinpi(2 * mp.convert(values[0])) if name in {"floor", "ceiling"} and point else value
    raise _UnknownValueError(name)


def _moderate(value: Value) -> Value:
    """The value as an mpmath number, if its exponential is not too large."""
    value = mp.convert(value)
    if not abs(value) <= _LARGEST_EXPONENT:
        raise _UnknownValueError("too large")
    return value


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if base == 0 and exponent <= 0:
            raise _UnknownValueError("0^0")
        bits = base.numerator.bit_length() + 8 * (base.denominator.bit_length() - 1)
        if exponent.denominator == 1 and abs(exponent) * bits <= _EXACT_BITS:
            return base ** int(exponent)
    if abs(_moderate(exponent)) * max(1, abs(mp.mag(base)) if base else 1) > _LARGEST_EXPONENT:
        raise _UnknownValueError("too large")
    return mp.power(mp.convert(base), mp.convert(exponent))


def number(expression: Any, point: dict[str, Fraction] | None = None) -> Value | None:
    """The value of a constant, or of an expression at a point; ``None`` if it has none."""
    try:
        value = _value(expression.doit() if expression.has(*_CALCULUS) else expression, point or {})
    # What sympy and mpmath raise for an expression that has no value; ``None`` says so to every caller.
    except (ValueError, KeyError, ArithmeticError, TypeError, RecursionError, NotImplementedError):
        return None
    return None if not isinstance(value, Fraction) and mp.isnan(value) else value


def close(first: Value, second: Value) -> bool:
    """Whether two numbers are equal: exactly if both are rational. Otherwise the tolerance is 1e-30, relative to their
    size s = |a| + |b| if that is below 1 and absolute above, and at least 1e-350 s."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    first, second = mp.convert(first), mp.convert(second)
    if first == second or mp.isinf(first) or mp.isinf(second):
        return bool(first == second)
    size = abs(first) + abs(second)
    return bool(abs(first - second) <= max(min(size, 1) * mp.mpf("1e-30"), size * mp.mpf("1e-350")))


def values(*expressions: Any) -> list[list[Value]]:
    """One row for each expression: its values at random points of both signs. Empty if any value does not exist."""
    points = _POINTS + (_FAR if any(expression.has(sympy.Abs) for expression in expressions) else [])
    symbols = sorted({symbol.name for e in expressions for symbol in e.free_symbols} - _CONSTANTS.keys())
    rows: list[list[Value]] = [[] for _ in expressions]
    for draws in points:
        point = {name: draws[place % len(draws)] + place // len(draws) for place, name in enumerate(symbols)}
        for row, expression in zip(rows, expressions, strict=True):
            row.append(number(expression, point))
    return rows if all(value is not None for row in rows for value in row) else []
