"""Whether a text gives an answer away: numbers by value in whatever spelling, other answers word for word.

A number that general advice seldom holds gives itself away wherever it stands. ``COMMON_NUMBERS``, facts such as
*24 hours* or *90 degrees*, and words (*even*) do so only where the text presents them as a result: "the answer is 7",
"to get 7", "7 apples are left", "3 + 4 = 7".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from sgsd.contamination import words

TELLING_WORDS = 3
"""Words and signs from which on an answer that is no number says something by itself."""
COMMON_NUMBERS = frozenset(
    {Fraction(n) for n in (*range(13), 60, 90, 100, 180, 360, 1000)}
    | {Fraction(n, d) for n, d in ((1, 2), (1, 3), (2, 3), (1, 4), (3, 4), (1, 5), (1, 10), (1, 100))}
)
"""What general advice holds by itself: small numbers, what units and angles are multiplied by, simple fractions."""
MOST_FILLERS = 4
MOST_UNIT_WORDS = 3
MOST_SIDE_WORDS = 6
"""How far before an equals sign the last number of a calculation may be."""

_LETTER_UNITS = frozenset("mlghs")
_DEGREES = frozenset({"degree", "degrees", "angle", "angles", "triangle", "triangles"})
_FACTS: Mapping[int, frozenset[str]] = {
    **dict.fromkeys((30, 45, 60, 90, 120, 180, 270, 360), _DEGREES),
    **dict.fromkeys((10, 20, 25, 50, 75, 100), frozenset({"%"})),
    7: frozenset({"day", "days"}),
    12: frozenset({"month", "months", "inch", "inches"}),
    16: frozenset({"ounce", "ounces"}),
    24: frozenset({"hour", "hours"}),
    28: frozenset({"day", "days"}),
    31: frozenset({"day", "days"}),
    52: frozenset({"week", "weeks", "card", "cards"}),
    365: frozenset({"day", "days"}),
    366: frozenset({"day", "days"}),
    3600: frozenset({"second", "seconds"}),
}
_MORE_FACTS: Mapping[int, frozenset[str]] = {
    30: frozenset({"day", "days"}),
    60: frozenset({"minute", "minutes", "second", "seconds"}),
    100: frozenset({"cent", "cents", "penny", "pennies", "centimetres", "centimeters", "cm", "years"}),
    1000: frozenset({"metres", "meters", "m", "grams", "g", "millilitres", "milliliters", "ml", "milligrams", "mg"}),
}
_CONTINUES = frozenset(
    {"number", "numbers", "digit", "digits", "part", "parts", "step", "steps", "line", "lines", "unit", "term", "terms"}
    | {"equation", "equations", "unknown", "unknowns", "variable", "variables", "case", "cases", "root", "roots"}
    | {"solution", "solutions", "value", "values", "factor", "factors", "side", "sides", "way", "ways", "group"}
    | {"groups", "set", "sets", "amount", "amounts", "quantity", "quantities", "result", "results", "answers", "time"}
    | {"times", "place", "places", "decimal", "decimals", "significant", "example", "examples", "point", "points"}
    | {"condition", "conditions", "operation", "operations", "thing", "things", "more", "less", "fewer", "other"}
    | {"others", "or", "to", "by", "out", "of", "+", "-", "*", "/", "^", "<", ">", "digit", "at", "possible"}
)
"""What makes a number part of general advice when it follows: 2 equations, 3 times, 4 more, 5 or …"""
_STRONG = frozenset({"answer", "answers", "ans", "result", "results", "solution", "solutions", "boxed", "output"})
_STRONG_FILLERS = frozenset(
    {"is", "are", "was", "be", "must", "should", "would", "will", "then", "thus", "therefore", "so", "a", "an", "the"}
    | {"exactly", "equal", "equals", "to", "=", "of", "final", "correct", "here", "always", "just", "only", "-", "+"}
    | {
        "that",
        "comes",
        "out",
        "as",
        "it",
        "hence",
        "about",
        "namely",
        "ought",
        "read",
        "reads",
        "simply",
        "minus",
        "negative",
        "option",
    }
)
_REACHES = frozenset(
    {
        "give",
        "ends",
        "end",
        "left",
        "keeps",
        "says",
        "down",
        "get",
        "gets",
        "got",
        "getting",
        "gives",
        "gave",
        "giving",
        "yield",
        "yields",
        "yielding",
        "leaves",
        "leaving",
    }
    | {"makes", "made", "making", "obtain", "obtains", "obtained", "obtaining", "reach", "reaches", "reaching", "find"}
    | {"finds", "found", "finding", "comes", "come", "coming", "came", "amounts", "adds", "equals", "becomes", "became"}
    | {"evaluates", "simplifies", "reduces", "returns", "produces", "shows", "costs", "cost", "takes", "needs", "earns"}
    | {"pays", "spends", "total", "totals", "totaling", "totalling", "sum", "product", "difference", "quotient"}
    | {"remainder", "turns", "works", "conclude", "deduce", "arrive", "arrives", "receive", "receives", "have", "has"}
)
_REACH_FILLERS = frozenset(
    {
        "with",
        "being",
        "quotient",
        "difference",
        "product",
        "sum",
        "remainder",
        "us",
        "you",
        "him",
        "her",
        "them",
        "me",
        "a",
        "an",
        "the",
        "total",
        "up",
        "to",
        "out",
        "back",
        "down",
        "final",
    }
    | {"exactly", "just", "only", "about", "that", "it", "at", "as", "be", "is", "are", "=", "-", "+", "minus", "of"}
    | {"negative", "therefore", "so", "grand", "value", "answer", "result", "equal"}
)
_PARTS = frozenset({"sum", "product", "difference", "quotient", "remainder", "have", "has"})
"""Of these, *of 12* is no result, nor is 12 by itself: *the sum of 12 and 5*; *the sum is 12* is one."""
_COPULAS = frozenset({"is", "are", "was", "were", "be", "equals", "equal", "=", "becomes"})
_COPULA_FILLERS = frozenset(
    {"exactly", "just", "only", "about", "therefore", "thus", "so", "then", "simply", "a", "an", "the", "to", "now"}
    | {"-", "+", "minus", "negative", "equal", "also", "always", "actually", "approximately"}
)
_CONDITIONS = frozenset({"if", "when", "whenever", "whether", "unless", "until", "suppose", "where", "while", "once"})
_CONCLUDES = frozenset({"so", "thus", "hence", "therefore", "finally"})
_OPERATORS = frozenset("+-*/^")
_REST = frozenset({"left", "remaining", "remain", "remains", "altogether", "overall", "total", "all"})
_AFTER_FILLERS = frozenset({"is", "are", "was", "were", "as", "the", "your", "our", "final", "correct", "right", "in"})
_CHOICES = frozenset({"option", "choice", "choose", "pick", "select", "answer"})

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
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
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
class _Number:
    """A number in a text: its words are ``[start, end)``. ``face`` is as written, 25 of 25 %."""

    start: int
    end: int
    face: Fraction
    percent: bool
    spelled: bool

    def means(self, other: _Number) -> bool:
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
    numbers: tuple[_Number, ...]
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
    def only_number(self) -> _Number | None:
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


def holds_answer(text: str, answer: str) -> bool:
    """Whether a text gives an answer away."""
    return held_answer(Reading.of(text), answer_of(answer)) is not None


def answer_of(answer: str) -> Reading:
    """A reference answer, read: without a box or ``x =`` before it."""
    plain = re.sub(r"\\(?:boxed|fbox)(?![a-z])", " ", answer)
    return Reading.of(re.sub(r"^[\s$({]*[a-zA-Z]\s*=(?!=)", "", plain))


def held_answer(text: Reading, answer: Reading) -> str | None:
    """The words of the text around the answer, if it gives it away."""
    number = answer.only_number
    if number is not None:
        for found in text.numbers:
            # 3 and 1/2 inside 3 1/2 are no numbers of their own.
            if found.means(number) and not _inside(text, found) and _gives_away(text, found):
                return _around(text, found.start, found.end)
        return None
    # Multiplication may be written or not.
    sought = tuple(word for word in answer.words if word != "*")
    if not sought:
        return None
    kept = [place for place, word in enumerate(text.words) if word != "*"]
    counts = {number.face for number in answer.numbers}
    telling = len(sought) >= TELLING_WORDS or (len(sought) > 1 and not counts <= COMMON_NUMBERS)
    for first in range(len(kept) - len(sought) + 1):
        places = kept[first : first + len(sought)]
        if tuple(text.words[place] for place in places) == sought:
            start, end = places[0], places[-1] + 1
            if telling or _is_named(text, start, end, number=bool(counts)):
                return _around(text, start, end)
            if counts and _is_reached(text, start, end, max(counts), spelled=False):
                return _around(text, start, end)
    return None


def _around(text: Reading, start: int, end: int) -> str:
    return " ".join(text.words[max(0, start - 5) : end + 2])


def _inside(text: Reading, found: _Number) -> bool:
    return any(
        n.start <= found.start and found.end <= n.end and n.end - n.start > found.end - found.start
        for n in text.numbers
    )


def _gives_away(text: Reading, found: _Number) -> bool:
    fact = _is_fact(text, found)
    if found.face not in COMMON_NUMBERS and not fact:
        return True
    if _is_named(text, found.start, found.end, number=True) or _is_computed(text, found, fact=fact):
        return True
    return not fact and _is_reached(text, found.start, found.end, found.face, spelled=found.spelled)


def _is_fact(text: Reading, found: _Number) -> bool:
    """Whether the number is one that everybody knows of its unit: 24 hours, 45 degrees, an angle of 45."""
    if found.face.denominator != 1:
        return False
    units = _FACTS.get(int(found.face), frozenset()) | _MORE_FACTS.get(int(found.face), frozenset())
    if {"%"} & units and found.percent:
        return True
    before = set(text.words[max(0, found.start - 3) : found.start])
    return bool(units & set(text.words[found.end : found.end + 2]) or (units & _DEGREES and before & _DEGREES))


def _is_named(text: Reading, start: int, end: int, *, number: bool) -> bool:
    """Whether what stands at ``[start, end)`` is called the answer, or chosen where it is a letter."""
    before, after = text.words[:start], text.words[end:]
    part = _continues(text, end) and text.words[end] != "of"
    if _before(before, _STRONG, _STRONG_FILLERS) is not None and not (number and part):
        return True
    letter = end == start + 1 and len(text.words[start]) == 1 and text.words[start].isalpha()
    if letter and _before(before, _CHOICES, _STRONG_FILLERS) is not None:
        return True
    return _followed(after, _STRONG | {"value"}) or _before(before, frozenset({"turns"}), _REACH_FILLERS) is not None


def _is_computed(text: Reading, found: _Number, *, fact: bool) -> bool:
    """Whether a calculation ends in the number, as in 48 apples / 6 = 8 apples; 1 hour = 60 minutes is none."""
    equals = found.start - 1
    if text.words[equals : equals + 1] != ("=",) or equals < 1:
        return False
    first, second = (*text.words[found.end : found.end + 2], "", "")[:2]
    if first in _OPERATORS and _NUMBER.fullmatch(second):
        return False
    side = range(max(text.clauses[equals], equals - MOST_SIDE_WORDS), equals)
    operated = any(text.words[place] in _OPERATORS for place in side)
    return any(number.start in side and (operated or not fact) for number in text.numbers)


def _is_reached(text: Reading, start: int, end: int, value: Fraction, *, spelled: bool) -> bool:
    """Whether the number at ``[start, end)`` is what something gives, is, or leaves."""
    if _continues(text, end):
        return False
    before, after = text.words[:start], text.words[end:]
    conditional = bool(set(text.words[text.clauses[start] : start]) & _CONDITIONS)
    # Small numbers are often no result: "gives two equations", "one".
    closed = (end - 1) in text.clause_ends
    large = value >= 3 or value.denominator > 1
    reached = _before(before, _REACHES, _REACH_FILLERS)
    if reached is not None and (large or (closed and not (spelled and value == 1))):
        between, verb = set(before[reached + 1 :]), before[reached]
        general = (verb == "reach" and conditional) or (verb in ("leaves", "leaving") and "out" in between)
        general = general or (verb == "made" and "of" in between)
        if (verb not in _PARTS and not general) or ("of" not in between and between & _COPULAS and not conditional):
            return True
    if not large and not (closed and set(text.words[text.sentences[start] : start]) & _CONCLUDES):
        return False
    if conditional:
        return False
    return _before(before, _COPULAS, _COPULA_FILLERS) is not None or (large and bool(set(after[:3]) & _REST))


def _continues(text: Reading, end: int) -> bool:
    return end < len(text.words) and text.words[end] in _CONTINUES and (end - 1) not in text.clause_ends


def _before(before: tuple[str, ...], sought: frozenset[str], fillers: frozenset[str]) -> int | None:
    """The place of the nearest of ``sought`` that only ``fillers`` follow, ``MOST_FILLERS`` at most."""
    for place in range(len(before) - 1, max(-1, len(before) - 2 - MOST_FILLERS), -1):
        if before[place] in sought:
            return place
        if before[place] not in fillers:
            return None
    return None


def _followed(after: tuple[str, ...], sought: frozenset[str]) -> bool:
    """*is the answer*, *as your final result*: a verb or *as*, then fillers, then one of ``sought``."""
    if not after or after[0] not in ("is", "are", "was", "as"):
        return False
    for word in after[1 : 2 + MOST_FILLERS]:
        if word in sought:
            return True
        if word not in _AFTER_FILLERS:
            return False
    return False


def _numbers(tokens: list[str]) -> Iterator[_Number]:
    """Every number, those inside others too: 3, 1/2 and 3 1/2."""
    for start, token in enumerate(tokens):
        if token not in _BEGINS and not token[0].isdigit():
            continue
        found = dict.fromkeys(_at(tokens, start))
        for end, value in found:
            percent = tokens[end : end + 1] == ["%"]
            yield _Number(start, end, value, percent, not any(map(_NUMBER.fullmatch, tokens[start:end])))


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
    if not _NUMBER.fullmatch(token):
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
        if len(pair) == 2 and all(map(_NUMBER.fullmatch, pair)) and Fraction(pair[1]):
            return start + 3, Fraction(pair[0]) / Fraction(pair[1])
        return None
    if start >= len(tokens):
        return None
    word = tokens[start]
    if word == "half":
        return start + 1, Fraction(1, 2)
    if _NUMBER.fullmatch(word):
        below = tokens[start + 2 : start + 3]
        if tokens[start + 1 : start + 2] == ["/"] and below and _NUMBER.fullmatch(below[0]) and Fraction(below[0]):
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


_DECADES = frozenset(_TENS.values())
