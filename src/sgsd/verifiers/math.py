"""Equality of two mathematical expressions: math-verify's parser and comparison, with guards around both. The only
module that imports it; runs in a worker process.

The guards, since a policy searches for what the parser and the comparison let through:

- An expression is parsed only if its text is short, not nested deep, of known commands, and of bounded size: no tower
  of powers, factorial or binomial coefficient whose value would not fit into a page.
- The grammar then reads the whole text or nothing. Marks that it reads and drops are refused beforehand.
- Two expressions are equal if their values are, to 30 digits relative to their size, at several points; two equations,
  if left minus right of one is a multiple of the other's.
- What the reference has no need of (integrals, sums, trigonometric functions, …) is still to be computed.
"""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from sgsd.verifiers.compare import UnreadableError
from sgsd.verifiers.grade import UNREADABLE, grade, read_reference
from sgsd.verifiers.numerals import read_numeral, read_unit, rounds_to, units_differ
from sgsd.verifiers.plain import to_latex
from sgsd.verifiers.verdict import Outcome, Verdict
from sgsd.verifiers.worker import Grader

# None has type stubs.
math_verify: Any = importlib.import_module("math_verify")
sympy: Any = importlib.import_module("sympy")
latex2sympy: Any = importlib.import_module("latex2sympy2_extended.latex2sympy2")
_SHORT_SIGHTED = importlib.import_module("antlr4").PredictionMode.SLL  # the other mode is exponential in nesting
_CONVERSION = latex2sympy.ConversionConfig(lowercase_symbols=False, interpret_contains_as_eq=False)

# Its own timeouts need SIGALRM in the main thread; the pool has a harder one. It warns when they are off.
for _name in ("math_verify", "math_verify.parser", "math_verify.grader", "latex2sympy2_extended"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


# sympy evaluates texts as Python: math-verify hands it digits. Nothing but numbers and arithmetic gets there.
_sympy_parser: Any = importlib.import_module("sympy.parsing.sympy_parser")
_to_python = _sympy_parser.stringify_expr
_NUMBERS_ONLY = re.compile(r"(?:Integer|Float|Rational|'\d[\d.]*'|\d+(?:\.\d*)?|[ ()+\-*/,])*")


def _numbers_to_python(*arguments: Any) -> str:
    code = _to_python(*arguments)
    if not _NUMBERS_ONLY.fullmatch(code):
        raise ValueError(f"not evaluated: {code[:80]}")
    return code


_sympy_parser.stringify_expr = _numbers_to_python

_MAX_LENGTH = 400
_MAX_DEPTH = 12
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)")
_KNOWN = frozenset(
    r"\frac \sqrt \cdot \times \div \pi \infty \binom \log \ln \exp \sin \cos \tan \cot \sec \csc \arcsin \arccos"
    r" \arctan \sinh \cosh \tanh \leq \geq \neq \approx \lfloor \rfloor \lceil \rceil \lvert \rvert \vert"
    r" \alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \vartheta \iota \kappa \lambda \mu"
    r" \nu \xi \rho \sigma \tau \upsilon \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Xi \Sigma \Phi"
    r" \Psi \Omega \int \sum \prod \lim \to \rightarrow \partial \begin \end \\ \overline \vec \overrightarrow \hat"
    r" \bar \hbar \angle \triangle \ell \mathbb \setminus \cup \cap \emptyset \{ \}".split()
)
# What the grammar reads and drops: subscripts of numbers and functions, values at a point, primes.
_DROPPED = re.compile(
    r"['\"`~#@?$°]|[fgFG] ?\([^()]*\(|\\frac ?\{ ?d[^{}]*\} ?\{ ?d ?[A-Za-z]|\d ?_|\^ ?(?:\{[^{}]*\}|\w) ?_|\| ?[_^]|\\(?:sin|cos|tan|cot|sec|csc|arc\w+|ln|exp) ?_"
)
# Powers, factorials and binomial coefficients too large to be meant; towers of powers.
_TOO_LARGE = re.compile(
    r"\d{5} ?!|! ?\)? ?!|\\binom ?\{[^{}]*(?:\d{5}|[\^!])|\^ ?\{? ?-? ?\d{6}|\^ ?\{[^{}]*(?:[\d)}] ?\^|\^ ?\{? ?\d\d|!)"
)
# Kinds of what is still to be computed, unless the reference holds the same kind.
_UNCOMPUTED = tuple(
    re.compile(pattern)
    for pattern in (
        r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?(?![A-Za-z])",
        r"\\(?:log|ln)(?![A-Za-z])",
        r"\\int(?![A-Za-z])",
        r"\\(?:sum|prod)(?![A-Za-z])|\\ldots|\\cdots",
        r"\\lim(?![A-Za-z])",
        r"\\frac ?\{ ?(?:d|\\partial)(?![A-Za-z])|\\partial",
        r"\\[lr](?:floor|ceil)",
        r"\\begin ?\{vmatrix\}",
    )
)
_COUNTING = re.compile(r"!|\\binom")
_SET = re.compile(r"\\(?:mathbb|setminus|cup|cap|emptyset)(?![A-Za-z])|\\\{")
_POWERFUL = re.compile(r"\^ ?\{? ?-? ?\d\d|!|\\binom|\\%|%")  # what comparing sets would compute
_BASED = re.compile(r"0[xob][0-9A-Fa-f]+|[0-9A-F]+ ?_ ?(?:\d+|\{ ?\d+ ?\}|\{? ?\\text ?\{[^{}]*\} ?\}?)")
_CAPITALS = re.compile(r"(\\(?:measured)?angle ?)?([A-Z](?: ?[A-Z]){2,})")
_DEGREES = re.compile(r"(?:\{ ?)?(\d+(?:\.\d+)?) ?°(?: ?\})?")
_UNIT = re.compile(r"(?<=[^\s+\-*/=^_({]) ?(\\text ?\{[^{}]*\} ?(?:\^ ?\{? ?[1-4] ?\}?)?)$")
_MIXED = re.compile(r"(?<![\d.^_{])\d+ ?\\frac ?\{(\d{1,9})\} ?\{(\d{1,9})\}")
_UNIT_WORD = re.compile(r"\\text ?\{ ?([A-Za-z]{1,12}) ?\}")
_POWER_FIRST = re.compile(r"\^ ?(\{[^{}]*\}|\w) ?_ ?(\{[^{}]*\}|\w)")


def _nesting(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _latex(text: str) -> str:
    """A tidy text as the grammar reads it: plain names as commands, degrees as radians where a trigonometric function
    takes them and as nothing elsewhere."""
    text = to_latex(text)
    if _UNCOMPUTED[0].search(text):
        text = _DEGREES.sub(r"(\1 \\cdot \\pi / 180)", text)
    text = _MIXED.sub(lambda m: f"({m[0]})".replace("\\", "+\\", 1) if int(m[1]) < int(m[2]) else m[0], text)
    text = _POWER_FIRST.sub(r"_\2^\1", text.replace("°", ""))
    return _UNIT_WORD.sub(r" \1 ", text)


_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau"
    "|upsilon|phi|varphi|chi|psi|omega|Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega|ell|hbar"
)
_SYMBOL = re.compile(
    r"\\(?P<over>overline|vec|overrightarrow|hat|bar) ?\{(?P<body>[A-Za-z0-9 ]*)\}"
    r"|\\(?P<figure>angle|triangle) ?(?P<points>[A-Z](?: ?[A-Z]){0,2})"
    r"|(?P<kept>\\(?:begin|end|mathbb) ?\{[^{}]*\}(?:\{[lcr]*\})?|\\lim ?_ ?\{ ?[a-z]"
    rf"|\\(?!(?:{_GREEK})(?![A-Za-z]))(?:[A-Za-z]+|.))"
    r"|(?P<differential>d ?[a-z](?![A-Za-z]))"
    r"|(?P<function>[fgFG]) ?\((?P<argument>[^()]*)\)"
    r"|(?P<letter>\\[A-Za-z]+|[A-Za-z])(?: ?_ ?(?:(?P<mark>[A-Za-z0-9])|\{(?P<marks>[^{}]*)\}))?"
)
_NAME_PARTS = ("over", "body", "figure", "points", "function", "argument", "letter", "mark", "marks")


def _symbols(text: str) -> str:
    """The text with each name in it as one variable: a letter with its subscript, a function with its argument, a
    segment. The grammar has words (``tr``, ``eye``, ``dx``) that letters side by side are not, and reads powers of bare
    letters in two ways, for which it takes time that doubles with every level.
    """
    integral = r"\int" in text

    def named(match: re.Match[str]) -> str:
        if match["kept"] or (integral and match["differential"]):
            return match[0]
        if match["differential"]:
            return "".join(rf"\variable{{{letter}}} " for letter in match[0].replace(" ", ""))
        name = "".join(match[part] or "" for part in _NAME_PARTS).replace(" ", "").lstrip("\\")
        return rf"\variable{{{re.sub('[^A-Za-z0-9]', lambda m: f'Z{ord(m[0])}', name)}}} "

    return _SYMBOL.sub(named, text)


class _Converter(latex2sympy._Latex2Sympy):
    """The parser, with numbers read by themselves: it hands their digits to sympy, which evaluates text."""

    def parse_number(self, text: str) -> Any:
        return sympy.Rational(text.replace(",", ""))

    def convert_binom(self, binom: Any) -> Any:
        return sympy.binomial(self.convert_expr(binom.upper), self.convert_expr(binom.lower), evaluate=False)


@lru_cache(maxsize=2_048)
def _parse(text: str, sets: bool = False) -> Any:
    """The expression, or ``None`` where it is too long, too large, or not all of it can be read."""
    if len(text) > _MAX_LENGTH or not text.isascii() or _nesting(text) > _MAX_DEPTH:
        return None
    if not _KNOWN.issuperset(_COMMAND.findall(text)) or _DROPPED.search(text) or _TOO_LARGE.search(text):
        return None
    converter = _Converter(config=_CONVERSION)
    try:
        if sets and _POWERFUL.search(text):
            return None
        if sets:
            return converter.parse(_symbols(text))
        parser = converter.create_parser(_symbols(text))
        if r"\int" not in text:
            parser._interp.predictionMode = _SHORT_SIGHTED
        tree = parser.relation()
        if parser.getTokenStream().LA(1) != -1:
            return None
        return converter.convert_relation(tree)
    except Exception:  # noqa: BLE001 - the listener raises bare Exceptions, the converter whatever sympy does
        return None


def _has_variable(text: str) -> bool:
    return bool(re.search(r"[A-Za-df-hj-z]", _COMMAND.sub(" ", text)))


def equal(reference: str, given: str, digits: int = 4) -> bool:
    """Whether two expressions are equal, as far as the guards let the parser decide.

    Raises:
        UnreadableError: if the reference cannot be parsed.
    """
    if _BASED.fullmatch(reference) or _BASED.fullmatch(given):
        return re.sub(r"[\s{}]", "", reference).lower() == re.sub(r"[\s{}]", "", given).lower()
    if ":" in reference and ":" in given:
        return _same_ratio(reference, given)
    if (named := _CAPITALS.fullmatch(reference)) and (other := _CAPITALS.fullmatch(given)):
        # Points and strings, not products: their order counts; an angle may be read from either side.
        first, second = named[2].replace(" ", ""), other[2].replace(" ", "")
        return first == second or bool(named[1] and len(first) == 3 and first == second[::-1])
    reference, wanted = _without_unit(reference)
    given, unit = _without_unit(given)
    if units_differ(wanted, unit):
        return False
    reference, given = _latex(reference), _latex(given)
    sets = bool(_SET.search(reference) or _SET.search(given))
    gold = _parse(reference, sets)
    if gold is None and sets and _parse(reference) is not None:
        return False
    if gold is None:
        raise UnreadableError(reference)
    literal = read_numeral(given)
    if literal is not None:
        value = _number(gold) if isinstance(gold, sympy.Expr) else None
        exact = literal.value / 100 if literal.percent else literal.value
        if value is None or literal.unit:
            return False
        return _close(value, exact) or _rounded(value, literal, digits)
    if any(kind.search(given) and not kind.search(reference) for kind in _UNCOMPUTED):
        return False
    if _COUNTING.search(given) and not _COUNTING.search(reference) and not _has_variable(given):
        return False
    target = _parse(given, sets)
    return target is not None and _same(gold, target)


def _without_unit(text: str) -> tuple[str, str]:
    """An expression without the unit in words behind it, and the unit."""
    found = _UNIT.search(text)
    unit = read_unit(" " + found[1]) if found else None
    if found is None or unit is None or unit[0] or unit[1] != 1:
        return text, ""
    return text[: found.start()], unit[2]


def _same_ratio(first: str, second: str) -> bool:
    """Whether two ratios are the same: equally many parts, none of which is larger for its share."""
    parts: list[list[Fraction]] = []
    for text in (first, second):
        numerals = [read_numeral(part.strip()) for part in text.split(":")]
        if len(numerals) > 100 or any(numeral is None for numeral in numerals):
            return False
        parts.append([numeral.value for numeral in numerals if numeral is not None])
    a, b = parts
    return len(a) == len(b) and any(a) and any(b) and all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True))


mpmath: Any = importlib.import_module("mpmath")
_mp = mpmath.MPContext()
_mp.dps = 100
_CONSTANTS = {"i": _mp.mpc(0, 1), "e": _mp.e, "pi": _mp.pi}
_FUNCTIONS = {
    **{"exp": _mp.exp, "sin": _mp.sin, "cos": _mp.cos, "tan": _mp.tan, "cot": _mp.cot, "sec": _mp.sec, "csc": _mp.csc},
    **{"asin": _mp.asin, "acos": _mp.acos, "atan": _mp.atan, "sinh": _mp.sinh, "cosh": _mp.cosh, "tanh": _mp.tanh},
    **{"Abs": _mp.fabs, "floor": _mp.floor, "ceiling": _mp.ceil},
}
_CALCULUS = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)
_LARGEST = 10_000
Value = Any  # a Fraction as long as the value is rational, else a number of mpmath


class _UnknownValueError(ValueError):
    """An expression has no value: a function that nobody knows, a division by zero."""


def _value(expression: Any, point: dict[str, Fraction]) -> Value:
    """The value of an expression with its variables at a point: exact as long as it is rational, else to 100 digits.

    Raises:
        _UnknownValueError: if it has none.
    """
    name = expression.func.__name__
    if expression.is_Rational:
        return Fraction(expression.p, expression.q)
    if expression.is_Symbol:
        return (_CONSTANTS | point)[expression.name]
    if expression in (sympy.oo, -sympy.oo):
        return _mp.inf if expression is sympy.oo else -_mp.inf
    if expression is sympy.E:
        return _mp.e
    values = [_value(argument, point) for argument in expression.args]
    if name in {"Add", "Mul"}:
        total = values[0]
        for value in values[1:]:
            if not (isinstance(total, Fraction) and isinstance(value, Fraction)):
                total, value = _mp.convert(total), _mp.convert(value)
            total = total + value if name == "Add" else total * value
        return total
    if name == "Pow":
        return _power(*values)
    if name == "log":
        logarithms = [_mp.log(_mp.convert(value)) for value in values]
        return logarithms[0] / (logarithms[1] if len(values) > 1 else 1)
    small = all(isinstance(value, Fraction) and value.denominator == 1 and 0 <= value <= _LARGEST for value in values)
    if name == "factorial":
        return Fraction(math.factorial(int(values[0]))) if small else _mp.gamma(_mp.convert(values[0]) + 1)
    if name == "binomial":
        return Fraction(math.comb(*map(int, values))) if small else _mp.binomial(*map(_mp.convert, values))
    if name in _FUNCTIONS and len(values) == 1:
        return _FUNCTIONS[name](_mp.convert(values[0]))
    raise _UnknownValueError(name)


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(base, Fraction) and isinstance(exponent, Fraction):
        if base == 0 and exponent <= 0:
            raise _UnknownValueError("0^0")
        bits = base.numerator.bit_length() + base.denominator.bit_length()
        if exponent.denominator == 1 and abs(exponent) * bits <= 10 * _LARGEST:
            return base ** int(exponent)
    return _mp.power(_mp.convert(base), _mp.convert(exponent))


def _number(expression: Any, point: dict[str, Fraction] | None = None) -> Value | None:
    """The value of a constant, or of an expression at a point; ``None`` if it has none."""
    try:
        value = _value(expression.doit() if expression.has(*_CALCULUS) else expression, point or {})
    except (_UnknownValueError, KeyError, ArithmeticError, ValueError, TypeError, RecursionError, NotImplementedError):
        return None
    return None if not isinstance(value, Fraction) and _mp.isnan(value) else value


def _close(first: Value, second: Value) -> bool:
    """Whether two numbers are equal: exactly if they are rational, else to 30 digits relative to their size."""
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    first, second = _mp.convert(first), _mp.convert(second)
    if first == second or _mp.isinf(first) or _mp.isinf(second):
        return bool(first == second)
    return bool(abs(first - second) <= (abs(first) + abs(second)) * _mp.mpf("1e-30"))


def _rounded(value: Value, literal: Any, digits: int) -> bool:
    """Whether a literal rounds an irrational number."""
    if isinstance(value, Fraction) or not _mp.isfinite(value) or abs(_mp.im(value)) > abs(value) * _mp.mpf("1e-30"):
        return False
    return rounds_to(Fraction(int(_mp.floor(_mp.re(value) * 10**30)), 10**30), literal, digits)


def _same(gold: Any, target: Any) -> bool:
    if isinstance(gold, sympy.core.relational.Relational):
        return isinstance(target, sympy.core.relational.Relational) and _same_relation(gold, target)
    if isinstance(gold, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(target, sympy.MatrixBase | sympy.MatrixExpr):
        return _same_matrix(gold, target)
    if isinstance(gold, sympy.Expr) and isinstance(target, sympy.Expr):
        decided = _same_values(gold, target)
        if decided is not None:
            return decided
    return bool(math_verify.verify(gold, target, timeout_seconds=None))


def _same_matrix(gold: Any, target: Any) -> bool:
    sides = [side.doit() for side in (gold, target) if isinstance(side, sympy.MatrixBase | sympy.MatrixExpr)]
    if len(sides) < 2 or not all(isinstance(side, sympy.MatrixBase) for side in sides):
        return False
    return sides[0].shape == sides[1].shape and all(_same(a, b) for a, b in zip(*sides, strict=True))


def _values(*expressions: Any) -> list[list[Value]]:
    """The values of each expression at points: none of them special, of both signs. Empty where one has no value."""
    names = sorted({symbol.name for e in expressions for symbol in e.free_symbols} - _CONSTANTS.keys())
    columns: list[list[Value]] = []
    for start, sign in ((31, 1), (113, 1), (53, -1)):
        point = {name: Fraction(sign * (start + 37 * position), 89) for position, name in enumerate(names)}
        columns.append([_number(expression, point) for expression in expressions])
    return [list(row) for row in zip(*columns, strict=True)] if all(v is not None for c in columns for v in c) else []


def _same_values(gold: Any, target: Any) -> bool | None:
    """Whether two expressions have the same values; ``None`` if that cannot be told."""
    values = _values(gold, target)
    return all(_close(a, b) for a, b in zip(*values, strict=True)) if values else None


_MIRRORED = {">": "<", ">=": "<="}


def _same_relation(gold: Any, target: Any) -> bool:
    """Whether left minus right of one is a multiple of the other's: a positive one, for inequalities."""
    sides: list[Any] = []
    signs: list[str] = []
    for relation in (gold, target):
        if not isinstance(relation.lhs, sympy.Expr) or not isinstance(relation.rhs, sympy.Expr):
            return False
        first, second = (relation.rhs, relation.lhs) if relation.rel_op in _MIRRORED else (relation.lhs, relation.rhs)
        sides.append(sympy.Add(first, sympy.Mul(-1, second, evaluate=False), evaluate=False))
        signs.append(_MIRRORED.get(relation.rel_op, relation.rel_op))
    values = _values(*sides)
    if signs[0] != signs[1] or not values or any(value == 0 for row in values for value in row):
        return False
    first, second = ([_mp.convert(value) for value in row] for row in values)
    ratio = first[0] / second[0]
    if signs[0] in {"<", "<="} and not (_mp.im(ratio) == 0 and _mp.re(ratio) > 0):
        return False
    return all(_close(a, ratio * b) for a, b in zip(first, second, strict=True))


def grade_math(completion: str, answer: str) -> Verdict:
    """Judge one completion by the mathematics policy."""
    return grade(completion, answer, equal)


_FAMILIAR = (
    r"\frac{m}{n}",
    r"2\sqrt{3}+1",
    "x^{2}+2x+1",
    r"3\pi r^{2}",
    "y=2x-3",
    r"\log_{2}{3}",
    r"2\sin x \cos y",
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
        if leaf.items or leaf.shape in {"number", "words"} or _BASED.fullmatch(leaf.text):
            continue
        texts = [_latex(_without_unit(text)[0]) for text in (leaf.text, leaf.whole)]
        if all(_parse(text, bool(_SET.search(text))) is None for text in texts):
            return UNREADABLE
    return Verdict(Outcome.CORRECT)
