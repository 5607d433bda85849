"""A text as words, with every number in it by value: 3 1/2, 3.5, three and a half, 350 %."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from sgsd.contamination import words

MOST_UNIT_WORDS = 3

_LETTER_UNITS = frozenset("mlghs")

_SMALL = {
    name: value
    for value, name in enumerate(
        [
            *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
            *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
        ]
    )
}
_TENS = {
    name: 10 * value
    for value, name in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
_DECADES = frozenset(_TENS.values())
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALE_WORDS = frozenset({"hundred", "dozen", *_SCALES})
_ORDINALS = {
    name + plural: value
    for plural in ("", "s")
    for name, value in (
        ("half", 2),
        ("third", 3),
        ("quarter", 4),
        ("fourth", 4),
        ("fifth", 5),
        ("sixth", 6),
        ("seventh", 7),
        ("eighth", 8),
        ("ninth", 9),
        ("tenth", 10),
        ("eleventh", 11),
        ("twelfth", 12),
        ("hundredth", 100),
        ("thousandth", 1000),
    )
} | {"halves": 2}
_BEGINS = frozenset({"frac", "a", "an", *_SMALL, *_TENS, "half"})
NUMERAL = re.compile(r"\d+(?:\.\d+)?")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_SPELLINGS = (
    (re.compile("\u2044"), "/"),
    (re.compile("[\u2212\u2010\u2011]"), "-"),
    (re.compile("\u00f7"), "/"),
    (re.compile("\u221a"), " sqrt "),
    (re.compile("[\u03c0\U0001d70b]"), " pi "),
    (re.compile(r"#{3,}|\bA(?=:)"), " answer "),
    (re.compile(r"[=-]+>|:=|≈|≅|→|⇒|⟹|⟶|\\(?:approx|implies|Rightarrow|rightarrow)(?![a-z])"), " = "),
    (re.compile(r"(?<![\d.])\.(?=\d)"), " 0."),
    (re.compile(r"(?<=\d)\s*:\s*(?=\d)"), " to "),
    (re.compile(r"\bper\s?cent\b|\bpct\b", re.IGNORECASE), "%"),
    (re.compile(r"(?<=\d)\s*\*\*\s*(?=\d)"), "^"),
    (re.compile(r"(?<=\d)\s+(?:over)\s+(?=\d)"), "/"),
)
_SENTENCE = re.compile(r"[!?;\n]+|\.(?!\d)")
_CLAUSE = re.compile(r"[,:](?!\d)|[()\"]|\s[-\u2013\u2014]\s(?![\d\s])|[\u2013\u2014]")
_MOST_EXPONENT = 64


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text: its words are ``[start, end)``. ``face`` is as written, 25 of 25 %."""

    start: int
    end: int
    face: Fraction
    percent: bool
    spelled: bool

    def means(self, other: Number) -> bool:
        """Whether both may be the same amount: 25 % is 0.25, and 25 where only one says percent."""
        if self.face == other.face:
            return True
        if self.percent == other.percent:
            return False
        return self.face / 100 == other.face if self.percent else other.face / 100 == self.face


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as words, with its numbers, by ``Reading.of``.

    Attributes:
        words: as ``contamination.words`` has them, signs and fractions spelled alike.
        numbers: in order; those inside others too, as 3 and 1/2 of 3 1/2.
        clause_ends: places of words before punctuation.
        clauses, sentences: for each word, where its clause and its sentence begin.
    """

    words: tuple[str, ...]
    numbers: tuple[Number, ...]
    clause_ends: frozenset[int]
    clauses: tuple[int, ...]
    sentences: tuple[int, ...]

    @classmethod
    def of(cls, text: str) -> Reading:
        """Read a text."""
        plain = _VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]), text)
        plain = _RAISED.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]), plain)
        for spelling, usual in _SPELLINGS:
            plain = spelling.sub(usual, plain)
        tokens: list[str] = []
        ends: set[int] = set()
        clauses: list[int] = []
        sentences: list[int] = []
        for sentence in _SENTENCE.split(plain):
            begun = len(tokens)
            for clause in _CLAUSE.split(sentence):
                found = words(clause)
                clauses += [len(tokens)] * len(found)
                tokens += found
                ends.add(len(tokens) - 1)
            sentences += [begun] * (len(tokens) - begun)
        return cls(tuple(tokens), tuple(_numbers(tokens)), frozenset(ends), tuple(clauses), tuple(sentences))

    @property
    def only_number(self) -> Number | None:
        """The number, where the text is one and at most a sign and ``MOST_UNIT_WORDS`` plain words after it."""
        start = 1 if self.words[:1] in (("-",), ("+",)) else 0
        whole = max((n for n in self.numbers if n.start == start), key=lambda n: n.end, default=None)
        if whole is None:
            return None
        rest = [word for word in self.words[whole.end :] if word != "%"]
        if len(rest) > 2 and rest[-2] == "^" and rest[-1] in ("2", "3"):  # of a unit
            rest = rest[:-2]
        plain = all(word.isalpha() and (len(word) > 1 or word in _LETTER_UNITS) for word in rest)
        named = {"pi", "sqrt", "frac", *_SMALL, *_TENS} & set(rest)
        return whole if plain and not named and len(rest) <= MOST_UNIT_WORDS else None


def _numbers(tokens: list[str]) -> Iterator[Number]:
    """Every number, those inside others too: 3, 1/2 and 3 1/2."""
    for start, token in enumerate(tokens):
        if token not in _BEGINS and not token[0].isdigit():
            continue
        found = dict.fromkeys(_at(tokens, start))
        for end, value in found:
            percent = tokens[end : end + 1] == ["%"]
            yield Number(start, end, value, percent, not any(map(NUMERAL.fullmatch, tokens[start:end])))


def _at(tokens: list[str], start: int) -> Iterator[tuple[int, Fraction]]:
    """(end, value) of the numbers that begin at a place, the shortest first."""
    part = _fraction(tokens, start)
    if part is not None:
        yield part
    whole = _whole(tokens, start)
    if whole is None:
        return
    end, value = whole
    if part is None:
        yield whole
    if value.denominator != 1:
        return
    joined = end + 1 if tokens[end : end + 1] == ["and"] else end
    rest = _fraction(tokens, joined)
    if rest is not None and 0 < rest[1] < 1:
        yield rest[0], value + rest[1]


def _whole(tokens: list[str], start: int) -> tuple[int, Fraction] | None:
    """A numeral, a power or a number in words, with what scales it."""
    token = tokens[start]
    if not NUMERAL.fullmatch(token):
        return _spelled(tokens, start)
    end, value = start + 1, Fraction(token)
    if tokens[end : end + 2] == ["*", "10"] and tokens[end + 2 : end + 3] == ["^"]:
        power = _power(tokens, end + 1)
        return (end, value) if power is None else (power[0], value * power[1])
    power = _power(tokens, start)
    if power is not None:
        return power
    if tokens[end : end + 1] == ["dozen"]:
        return end + 1, value * 12
    if tokens[end : end + 1] == ["hundred"]:
        return end + 1, value * 100
    if end < len(tokens) and tokens[end] in _SCALES:
        return end + 1, value * _SCALES[tokens[end]]
    return end, value


def _power(tokens: list[str], start: int) -> tuple[int, Fraction] | None:
    exponent = tokens[start + 2 : start + 3]
    if tokens[start + 1 : start + 2] != ["^"] or not exponent or not exponent[0].isdecimal():
        return None
    if not tokens[start].isdecimal() or int(exponent[0]) > _MOST_EXPONENT:
        return None
    return start + 3, Fraction(tokens[start]) ** int(exponent[0])


def _fraction(tokens: list[str], start: int) -> tuple[int, Fraction] | None:
    r"""``\frac{3}{4}``, 3/4, three quarters, a half."""
    if tokens[start : start + 1] == ["frac"]:
        pair = tokens[start + 1 : start + 3]
        if len(pair) == 2 and all(map(NUMERAL.fullmatch, pair)) and Fraction(pair[1]):
            return start + 3, Fraction(pair[0]) / Fraction(pair[1])
        return None
    if start >= len(tokens):
        return None
    word = tokens[start]
    if word == "half":
        return start + 1, Fraction(1, 2)
    if NUMERAL.fullmatch(word):
        below = tokens[start + 2 : start + 3]
        if tokens[start + 1 : start + 2] == ["/"] and below and NUMERAL.fullmatch(below[0]) and Fraction(below[0]):
            return start + 3, Fraction(word) / Fraction(below[0])
        return None
    top = (start + 1, Fraction(1)) if word in ("a", "an") else _spelled(tokens, start)
    if top is None and word in _SMALL:
        top = start + 1, Fraction(_SMALL[word])
    if top is None:
        return None
    # In "seventeen twenty-thirds" the tens belong to the denominator.
    end, value = top
    tens = _TENS.get(tokens[end], 0) if end < len(tokens) else 0
    name = tokens[end + 1 : end + 2] if tens else tokens[end : end + 1]
    if not name or name[0] not in _ORDINALS or (tens and _ORDINALS[name[0]] > 9) or not value:
        return None
    if value == 1 and name[0].endswith("s"):
        return None
    return end + (2 if tens else 1), value / (tens + _ORDINALS[name[0]])


def _spelled(tokens: list[str], start: int) -> tuple[int, Fraction] | None:
    """Three hundred and five, twenty-one, a dozen."""
    total = current = 0
    end = place = start
    while place < len(tokens):
        word = tokens[place]
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        if word in ("a", "an") and place == start and following in _SCALE_WORDS:
            current = 1
        elif word in _TENS and current % 100 == 0:
            current += _TENS[word]
        elif word in _SMALL and (current % 100 == 0 or (_SMALL[word] in range(1, 10) and current % 100 in _DECADES)):
            current += _SMALL[word]
        elif word == "hundred" and 0 < current < 100:
            current *= 100
        elif word == "dozen" and 0 < current < 100:
            return place + 1, Fraction(12 * current)
        elif word in _SCALES and current:
            total, current = total + current * _SCALES[word], 0
        elif word == "and" and place > start and tokens[place - 1] in _SCALE_WORDS and following in {**_SMALL, **_TENS}:
            place += 1
            continue
        else:
            break
        place += 1
        end = place
        if word == "zero":
            break
    return None if end == start else (end, Fraction(total + current))
