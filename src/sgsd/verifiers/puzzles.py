r"""Scorers of our own for reasoning-gym's data sets: text in, right or wrong out.

Where there is one answer, a *reader* makes of a text what is compared with the reference; where there are many, a
*scorer* tries the answer out. Both read by a grammar of the task (digits, operators, its own names) and compute with
what they read. None evaluates text, none tolerates what is nearly right, and a problem restated is no answer. On what
they cannot read they raise ``ValueError`` or its like (``KeyError``, ``TypeError``, ``ArithmeticError`` …).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any, cast

Entry = Mapping[str, Any]
"""``question``, ``answer`` and ``metadata`` of an item of a data set."""
Reader = Callable[[str], object]
Scorer = Callable[[str, Entry], bool]

MAX_CHARACTERS = 20_000
_MAX_DEPTH = 30

_SPELLINGS = (
    (re.compile(r"\{,\}|(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"\$|\\[()\[\],;!]|\\(?:left|right|quad)(?![A-Za-z])|~"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"[×·⋅∙∗✕]|\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"÷|\\div(?![A-Za-z])"), "/"),
    (re.compile(r"[−–]"), "-"),
)
_BROKEN = re.compile(r"[0-9.]\s+[0-9.]")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,200})?(?:\.[0-9]{0,200})?")
_DEGREES = re.compile(r"°|\^\{?\\circ\}?|(?<=[0-9]) degrees?$")
_SCIENTIFIC = r"(?P<m>[^*e]+?)(?:(?:e|\*10\^)\{?(?P<x>[+-]?[0-9]{1,5})\}?)?"


def mathematics(text: str) -> str:
    """Plain operators in place of TeX's and Unicode's; no white space, no delimiters."""
    for pattern, plain in _SPELLINGS:
        text = pattern.sub(plain, text)
    if _BROKEN.search(text.strip()):
        raise ValueError("two numbers without an operator")
    return "".join(text.split())


def decimal(text: str) -> Decimal:
    """A decimal numeral, thousands in groups or not."""
    text = mathematics(text)
    if not _DECIMAL.fullmatch(text) or not any(map(str.isdigit, text)):
        raise ValueError(text)
    return Decimal(text.replace(",", ""))


# ---- readers: an answer is right if it reads as the reference does


def rows(text: str) -> list[str]:
    """The lines that are not blank, white space collapsed."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def caseless(text: str) -> list[str]:
    return [row.casefold() for row in rows(text)]


def sentence(text: str) -> str:
    """Without the final stop, which an extractor takes for the sentence's around it."""
    return " ".join(text.split()).casefold().rstrip(". ")


def letters(text: str) -> str:
    """Without spaces: of a picture nobody can tell where they are."""
    return "".join(text.split()).casefold()


def items(text: str) -> list[str]:
    """Texts with commas between them, in order."""
    return [" ".join(part.split()) for part in text.split(",")]


def number(text: str) -> Decimal:
    return decimal(_DEGREES.sub("", text))


def numbers(text: str) -> list[list[Decimal]]:
    """Coordinates, grids of decimals."""
    lines = rows(re.sub(r"[()\[\],$]|\\(?:left|right)(?![A-Za-z])", " ", _DEGREES.sub("", text.strip())))
    return [[decimal(part) for part in line.split()] for line in lines]


def roots(text: str) -> Counter[Decimal]:
    """Decimals, in any order."""
    return Counter(decimal(part) for part in text.split(","))


def hexadecimal(text: str) -> int:
    found = _match(r"([+-]?)0x([0-9a-f]{1,500})", text.strip().strip("$`").lower())
    return int(found[1] + found[2], 16)


def fraction(text: str) -> tuple[int, int]:
    """Numerator and denominator: a fraction that could be reduced is another."""
    found = _match(r"(-?)(?:\\frac\{(\d{1,50})\}\{(\d{1,50})\}|\(?(\d{1,50})/(\d{1,50})\)?)", mathematics(text))
    return int(found[1] + (found[2] or found[4])), int(found[3] or found[5])


def complex_number(text: str) -> tuple[Decimal, Decimal]:
    found = _match(
        r"\(?(?P<real>[+-]?[\d.]{1,50}(?![\d.]*[ij]))?(?:(?P<sign>[+-]?)(?P<imaginary>[\d.]{0,50})\*?[ij])?\)?",
        mathematics(text),
    )
    real, imaginary = found["real"], found["imaginary"]
    if (real is None and imaginary is None) or (real is not None and imaginary is not None and not found["sign"]):
        raise ValueError(text)
    return decimal(real or "0"), decimal("0" if imaginary is None else found["sign"] + (imaginary or "1"))


def _match(pattern: str, text: str) -> re.Match[str]:
    found = re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)
    if found is None:
        raise ValueError(text)
    return found


def read_json(text: str) -> Any:
    """JSON, with the quotation marks of either kind."""
    try:
        return json.loads(text, parse_float=Decimal)
    except ValueError:
        return json.loads(text.replace("'", '"'), parse_float=Decimal)


def _list(text: str) -> list[Any]:
    found = read_json(text)
    if not isinstance(found, list):
        raise ValueError(text)
    return cast(list[Any], found)


def json_value(text: str) -> Any:
    """A JSON value: 1 is 1.0, and neither is true. What is none is a text."""
    try:
        return _typed(read_json(text))
    except ValueError:
        return rows(text)


def _typed(value: Any) -> Any:
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, list):
        return [_typed(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in cast(dict[str, Any], value).items()}
    return value


def number_list(text: str) -> list[Decimal]:
    return [decimal(str(item)) for item in _list(text)]


def groups(text: str) -> Counter[tuple[str, ...]]:
    """Lists of words: neither the order of the lists nor that in a list counts."""
    return Counter(tuple(sorted(words)) for words in _lists_of_words(text))


def partitions(text: str) -> Counter[tuple[str, ...]]:
    """Lists of parts: the order of the lists does not count."""
    return Counter(tuple(parts) for parts in _lists_of_words(text))


def _lists_of_words(text: str) -> list[list[str]]:
    found = _list(text)
    if not all(
        isinstance(group, list) and all(isinstance(word, str) for word in cast(list[Any], group)) for group in found
    ):
        raise ValueError(text)
    return found


def factors(text: str) -> Counter[int]:
    """Prime factors in any order."""
    return Counter(int(_match(r"[0-9]{1,50}", part)[0]) for part in re.split(r"[*x]", mathematics(text)))


def roles(text: str) -> Counter[str]:
    """``Zoey is a knight, and Ada is a knave``, in any order."""
    parts = re.split(r",(?: ?and)? | and ", " ".join(text.casefold().split()).rstrip("."))
    if not all(re.fullmatch(r"[^\W\d_]+ is an? [a-z]+", part) for part in parts):
        raise ValueError(text)
    return Counter(part.replace(" an ", " a ") for part in parts)


# ---- numbers that may be rounded


def is_probability(answer: str, entry: Entry) -> bool:
    """The fraction, or a decimal: exact, or rounded to four significant digits or more."""
    ratio = entry["metadata"]["rational"]
    exact = Fraction(int(ratio["numerator"]), int(ratio["denominator"]))
    if "/" in answer or "frac" in answer:
        return Fraction(*fraction(answer)) == exact
    return _states(_scientific(answer), exact, digits=4)


def is_power(answer: str, entry: Entry) -> bool:
    """To three significant digits, as the question asks, or to more."""
    return _states(_scientific(answer), Fraction(_scientific(entry["answer"])), digits=3)


def _scientific(text: str) -> Decimal:
    found = _match(_SCIENTIFIC, mathematics(text))
    return Decimal(f"{decimal(found['m'])}e{int(found['x'] or 0)}")  # exact, whatever the context's precision


def _states(given: Decimal, exact: Fraction, *, digits: int) -> bool:
    _, shown, exponent = given.as_tuple()
    if Fraction(given) == exact:
        return True
    return len(shown) >= digits and abs(exact - Fraction(given)) * 2 <= Fraction(10) ** int(exponent)


# ---- arithmetic with given numbers


def reaches_target(answer: str, entry: Entry) -> bool:
    """Countdown: each of the numbers once, and the target's value."""
    metadata = entry["metadata"]
    return _makes(answer, metadata["numbers"], metadata["target"])


def reaches_24(answer: str, entry: Entry) -> bool:
    return _makes(answer, entry["metadata"]["numbers"], 24)


def _makes(answer: str, numbers: list[int], target: int) -> bool:
    text, equals, stated = mathematics(answer).partition("=")
    if equals and stated != str(target):
        return False
    value, used = _Arithmetic(text).read()
    return value == target and Counter(used) == Counter(map(int, numbers))


class _Arithmetic:
    r"""Whole numbers, ``+ - * /``, ``\frac`` and brackets; nothing else."""

    def __init__(self, text: str) -> None:
        self._tokens = re.findall(r"[0-9]+|\\frac|.", text if len(text) <= 1_000 else "?")
        self._used: list[int] = []
        self._depth = 0

    def read(self) -> tuple[Fraction, list[int]]:
        value = self._sum()
        if self._tokens:
            raise ValueError(self._tokens[0])
        return value, self._used

    def _next(self, *wanted: str) -> str | None:
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in wanted else None

    def _sum(self) -> Fraction:
        value = -self._product() if self._next("-") else self._product()
        while sign := self._next("+", "-"):
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while sign := self._next("*", "/"):
            value = value * self._factor() if sign == "*" else value / self._factor()
        return value

    def _factor(self) -> Fraction:
        self._depth += 1
        if self._depth > _MAX_DEPTH or not self._tokens:
            raise ValueError("brackets")
        token = self._tokens.pop(0)
        if token.isdecimal() and len(token) <= 20 and (token == "0" or token[0] != "0"):
            self._used.append(int(token))
            value = Fraction(int(token))
        elif token in ("(", "["):
            value = self._enclosed(")" if token == "(" else "]")
        elif token == "\\frac":
            value = self._group() / self._group()
        else:
            raise ValueError(token)
        self._depth -= 1
        return value

    def _group(self) -> Fraction:
        if not self._next("{"):
            raise ValueError("group")
        return self._enclosed("}")

    def _enclosed(self, close: str) -> Fraction:
        value = self._sum()
        if not self._next(close):
            raise ValueError("brackets")
        return value


# ---- more than one right answer, by listing or looking


def is_board(answer: str, entry: Entry) -> bool:
    return rows(answer) in [rows(board) for board in entry["metadata"]["valid_answers"]]


def is_palindrome(answer: str, entry: Entry) -> bool:
    """A palindrome of exactly the given letters."""
    text = answer.strip().lower()
    return text == text[::-1] and Counter(text) == Counter("".join(entry["metadata"]["letters"]).lower())
