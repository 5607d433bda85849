"""What a line of text names: its values (numbers, expressions, equations, lists), each with all that belongs to it, and
its options."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import NamedTuple

from sgsd.verifiers import phrases
from sgsd.verifiers.boxes import mathematics
from sgsd.verifiers.numerals import read_numeral
from sgsd.verifiers.tidy import key, tidy, words

_AROUND = 80
_DIGITS = r"\d+(?:[.,:]\d+)*+|\.\d+"
NUMBER = re.compile(rf"\0+|{_DIGITS}")
"""A number, or mathematics in a ``hidden`` text."""
_TEXT = re.compile(r"\\(?:begin|end)\{[^{}]*\}|\\text(?:bf|rm|normal)?\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"(?<![0-9A-Za-zÀ-ɏ])[A-Za-zÀ-ɏ]{2,}(?![0-9A-Za-zÀ-ɏ])")
_FOREIGN = re.compile(r"(?![\d×÷])(?:[\u0370-\u03ff]{4}|[À-ɏ\u0400-\u1eff\u3040-\u9fff\uac00-\ud7a3])")
_TABLE = re.compile(r"\|[^|]*\|[^|]*\|")
_NO_PROSE = frozenset(
    "and or sqrt pi approximately approx about exactly only roughly around ln log sin cos tan exp rs usd eur us".split()  # noqa: SIM905
)
# A word in lower case right before a number: "equals 63", "il y a 63"; not "Room 63".
_LED = re.compile(r"(?<![^\s'’])[a-z]+ \Z")


class Value(NamedTuple):
    """A value, or a sign between two (then not ``solid``), and its place in the line."""

    start: int
    end: int
    text: str
    solid: bool = True


def identity(answer: str) -> str:
    """Equal for answers that say the same: one number, or one text."""
    text = tidy(answer)
    numeral = read_numeral(text)
    return key(text) if numeral is None else f"{numeral.value / (100 if numeral.percent else 1)} {numeral.unit}"


def hidden(text: str) -> str:
    """A text of the same length, with NUL characters in place of its mathematics: patterns for words skip it."""
    parts: list[str] = []
    position = 0
    for piece in mathematics(text):
        parts += [text[position : piece.start], "\0" * (piece.end - piece.start)]
        position = piece.end
    return "".join([*parts, text[position:]])


def is_prose(text: str) -> bool:
    """Whether a text is a sentence about an answer rather than an answer, with its unit perhaps."""
    plain = _TEXT.sub(" ", hidden(text))
    found = [word for word in _WORD.finditer(plain) if word[0].lower() not in _NO_PROSE]
    value = NUMBER.search(plain)
    if value is None:
        return len(found) > 8 and not NUMBER.search(text)
    if any(pattern.search(plain) for pattern in (phrases.PREDICATE, phrases.NOT_ELSEWHERE, _FOREIGN, _TABLE)):
        return True
    before = sum(word.start() < value.start() for word in found)
    return len(found) > 4 or before > 1 or (before > 0 and _LED.search(plain[: value.start()]) is not None)


# What may stand between two numbers and make them one expression, equation or list.
_TOKEN = re.compile(
    rf"(?P<number>{_DIGITS})|\\(?:frac|dfrac|sqrt|times|cdot|div|pm|approx|left|right|pi|leq?|geq?)(?![A-Za-z])"
    r"|(?<![A-Za-z])(?:or|and|to|through|minus|plus|times|mod|sqrt|pi|x)(?![A-Za-z])"
    r"|[-+*/^=×÷·!%(){}\[\],;<>≤≥±≈√π€£¥₹$・、]",
    re.IGNORECASE,
)
_JOINTS = frozenset(("and", "to", "through", *"),;=]}!%、・"))
_OPERATORS = frozenset(("times", "plus", "mod", *"+*/^×÷·"))
_LOOSE_ENDS = frozenset(("or", "and", "to", "through", *",;([{<>-$"))
_GLUED = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z0-9_]++ ?\Z")
_MINUS = re.compile(r"\b(?:minus|negative) \Z", re.IGNORECASE)
_OR = re.compile(r",? \(?or ", re.IGNORECASE)
_SCALE = (
    r" ?(?:\\?%|percent\b|pct\b|°|\^\\circ)"
    r"| (?:hundred|thousand|million|billion|trillion|dozen|score|lakh|crore|\w{3,9}(?:ths|rds))\b"
)
_UNIT = r" ?(?:\\text\{[^{}]*\}|(?:€|£|m²|m\^2|cm|km|(?i:[ap]\.?m\b))(?![A-Za-z]))|[A-Za-z]\w{0,30}+"
_SCALED, _MEASURED = re.compile(_SCALE), re.compile(f"{_SCALE}|{_UNIT}")


def values_in(line: str) -> list[Value]:
    """Every value of a line. Of ``54, 55, 56`` or ``28 + 28`` that is the whole."""
    signs = (Value(m.start(), m.end(), m[0], m["number"] is not None) for m in _TOKEN.finditer(hidden(line)))
    pieces = sorted([*(Value(piece.start, piece.end, piece.inner) for piece in mathematics(line)), *signs])
    found: list[Value] = []
    first = 0
    for place in range(1, len(pieces) + 1):
        if place == len(pieces) or line[pieces[place - 1].end : pieces[place].start].strip(" "):
            value = _value(line, pieces[first:place])
            found += [value] if value else []
            first = place
    return found


def _value(line: str, run: list[Value]) -> Value | None:
    """What a run of numbers, signs and mathematics says, without the signs that only join it to the sentence."""
    if not any(piece.solid for piece in run):
        return None
    first, last = 0, len(run)
    while not run[first].solid and (run[first].text.lower() in _JOINTS or _is_dash(line, run[first])):
        first += 1
    while not run[last - 1].solid and run[last - 1].text.lower() in _LOOSE_ENDS:
        last -= 1
    run = run[first + (run[first].text.lower() == "minus") : last]
    start, end = run[0].start, run[-1].end
    text = run[0].text + "".join(line[one.end : other.start] + other.text for one, other in pairwise(run))
    alternatives = [part for part in _OR.split(text) if part]
    if len(alternatives) > 1 and len({identity(part.rstrip(" )")) for part in alternatives}) == 1:
        text = alternatives[0]  # 3/4, or 75 %
    before = line[max(0, start - _AROUND) : start]
    glued = None if run[0].text.startswith("\\") else _GLUED.search(before)
    if glued and run[0].text == "^" and glued[0].isalpha() and len(glued[0]) > 1:
        return None  # of a unit
    if glued and (run[0].text.lower() in _OPERATORS or not before.endswith(" ")):
        text = glued[0] + text
    elif _MINUS.search(before):
        text = f"-{text}"
    after = (_MEASURED if run[-1].text[-1].isdigit() else _SCALED).match(line, end)
    return Value(start, after.end() if after else end, text + (after[0] if after else ""))


def _is_dash(line: str, sign: Value) -> bool:
    """``- 5`` in a list, or ``total - 5``; not ``x - 5``."""
    before = line[max(0, sign.start - 5) : sign.start].rstrip()[-2:]
    apart = sign.text == "-" and line[sign.end : sign.end + 1] == " "
    return apart and (not before or (before.isalpha() and len(before) == 2))


# ---- options of a multiple-choice question

_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_OPTION_MARK = re.compile(r"(?<![A-Za-z'])\(?([A-Z])(?:\)|[.:](?=\s|$))")
_JOINED = re.compile(
    r"(?:\b(?:or|and)\b|[,;/&])\s*(?!(?:A|I) (?!(?:or|and|is|because|since|must)\b)[a-z])([A-Z])(?![A-Za-z'])"
)
_ALONE = re.compile(r"(?!(?:A|I) (?!(?:or|and|is|because|since|must)\b)[a-z])(?<![A-Za-z'\\])([A-Z])(?![A-Za-z'])")


def option(text: str) -> str | None:
    """The letter of a reference: ``B``, ``(B)``, ``b``, ``\\text{(B)}``, ``B. Paris``; ``None`` if it is none."""
    letters = letters_of(text)
    return letters[0] if len(letters) == 1 else None


def letters_of(text: str) -> list[str]:
    """The distinct options that an answer names.

    An answer that is a letter is that letter in either case. Elsewhere, marked letters (``(B)``, ``B.``) count if there
    are any, and what is joined to one (``(B) or C``); else upper-case letters that stand alone and do not begin a
    phrase (``I think``, ``A cat``).
    """
    plain = words(tidy(text))
    whole = _LETTER.fullmatch(plain)
    if whole:
        return [whole[1].upper()]
    marked = _OPTION_MARK.findall(plain)
    return list(dict.fromkeys([*marked, *_JOINED.findall(plain)] if marked else _ALONE.findall(plain)))
