"""Whether a text gives an answer away: numbers by value in whatever spelling, other answers word for word.

A number that general advice seldom holds gives itself away wherever it stands. ``COMMON_NUMBERS``, facts such as
*24 hours* or *90 degrees*, and words (*even*) do so only where the text presents them as a result: "the answer is 7",
"to get 7", "7 apples are left", "3 + 4 = 7".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from sgsd.bank.reading import NUMERAL, Number, Reading

TELLING_WORDS = 3
"""Words and signs from which on an answer that is no number says something by itself."""
COMMON_NUMBERS = frozenset(
    {Fraction(n) for n in (*range(13), 60, 90, 100, 180, 360, 1000)}
    | {Fraction(n, d) for n, d in ((1, 2), (1, 3), (2, 3), (1, 4), (3, 4), (1, 5), (1, 10), (1, 100))}
)
"""What general advice holds by itself: small numbers, what units and angles are multiplied by, simple fractions."""
MOST_FILLERS = 4
MOST_SIDE_WORDS = 6
"""How far before an equals sign the last number of a calculation may be."""

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


def _inside(text: Reading, found: Number) -> bool:
    return any(
        n.start <= found.start and found.end <= n.end and n.end - n.start > found.end - found.start
        for n in text.numbers
    )


def _gives_away(text: Reading, found: Number) -> bool:
    fact = _is_fact(text, found)
    if found.face not in COMMON_NUMBERS and not fact:
        return True
    if _is_named(text, found.start, found.end, number=True) or _is_computed(text, found, fact=fact):
        return True
    return not fact and _is_reached(text, found.start, found.end, found.face, spelled=found.spelled)


def _is_fact(text: Reading, found: Number) -> bool:
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


def _is_computed(text: Reading, found: Number, *, fact: bool) -> bool:
    """Whether a calculation ends in the number, as in 48 apples / 6 = 8 apples; 1 hour = 60 minutes is none."""
    equals = found.start - 1
    if text.words[equals : equals + 1] != ("=",) or equals < 1:
        return False
    first, second = (*text.words[found.end : found.end + 2], "", "")[:2]
    if first in _OPERATORS and NUMERAL.fullmatch(second):
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
