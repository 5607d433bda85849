r"""Finds boxes (``\boxed{}``, ``\fbox{}``) and mathematics (``$…$``, ``\(…\)``, ``\[…\]``) in a text, and in a line
its values (numbers, expressions, equations, lists, each with sign and unit) and the options that it names. Every
function takes time linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from sgsd.verifiers import phrases
from sgsd.verifiers.numerals import FOREIGN_SCALE, PER, read_numeral
from sgsd.verifiers.tidy import FUNCTIONS, key, names, tidy, words

# ---- boxes

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,9}(?:(\{)|([^\s${}\\]+))?")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def boxes(text: str) -> tuple[list[tuple[int, int, str]], bool]:
    """Start, end and content of every outermost box, and whether the last one is unclosed."""
    found: list[tuple[int, int, str]] = []
    position = 0
    while (match := _BOX.search(text, position)) is not None:
        position = match.end()
        if match[1] is None:
            found.append((match.start(), position, (match[2] or "").rstrip(".,;:")))
            continue
        end = _closing(text, position)
        if end is None:
            return found, True
        found.append((match.start(), end + 1, text[position:end]))
        position = end + 1
    return found, False


def _closing(text: str, start: int) -> int | None:
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None


def opened(content: str) -> str:
    r"""A box's content without ``$`` around it, and without further boxes around it."""
    for _ in range(8):
        bare = content.strip().strip("$ ")
        content = content.strip() if "$" in bare else bare
        found, _ = boxes(content)
        if [(start, end) for start, end, _ in found] != [(0, len(content))]:
            break
        content = found[0][2]
    return content


# What right before or after a box makes it a part of an expression: an operator, a factor, a function, a bracket.
_SPACE = r"(?:\s|\\[,;:! ]|\\left(?![A-Za-z])|\\(?:displaystyle|quad|qquad)(?![A-Za-z]))"
_DELIMITERS = re.compile(rf"\A(?:\$\$?|\\[(\[]|\\begin\{{[^{{}}]*\}}|{_SPACE})*|(?:\$\$?|\\[)\]]|{_SPACE}){{0,40}}\Z")
_SPACE_AFTER, _SPACE_BEFORE = re.compile(rf"(?:{_SPACE}|[)}}]|\\right)*"), re.compile(rf"(?:{_SPACE}|[({{]){{0,40}}\Z")
_FONT = re.compile(r"\\(?:text\w{0,9}|math\w{2,6}|boldsymbol|bm|underline|color|[lL]arge|LARGE|huge|bbox)(?![A-Za-z])")
_WORDS_BEFORE = re.compile(r"\\(?:text\w{0,9}|mathrm|mbox) ?\{[^{}]*\}\Z")
_OPERATOR_BEFORE = re.compile(
    r"(?:[-−–+*/^_<>|±×·]|\\(?:cdot|times|div|pm|mp|[lg]eq?|[lg]t|neq?|not ?=|lfloor|lceil|arc\w{3}|sin|cos|tan"
    r"|cot|sec|csc|log|ln|lg"
    r"|exp|sqrt|pi|alpha|beta|gamma|theta|lambda|mu|phi|omega)|\\log ?_ ?(?:\w|\{[^{}]*\})|\d"
    r"|(?<![A-Za-z\\])[A-Za-z])\Z"
)
_OPERATOR_AFTER = re.compile(
    r"[-−–+*/_!<>±×·(\d]|\^(?! ?\{? ?\\(?:circ|text|mathrm))|\\(?!quad|qquad|text|mathrm|mbox|circ|degree|%|,"
    r"|blacksquare|square|checkmark|implies|Rightarrow|Right"
    r"|rightarrow|to|iff|tag|qed|Box|because|therefore|approx|end|\\|!|;|:|\]|\)|\$|hfill|left|right)[A-Za-z]"
    r"|[A-Za-z](?![A-Za-z])|\.\d|,\d"
)
_STRUCK = re.compile(r"(?:\\(?:x?cancel|sout|st|[hv]?phantom) ?\{[^{}]{0,20}|<(?:s|del|strike)>[^<>]{0,20})\Z")
_CHAIN_HEAD = re.compile(r"(?:\A|[=,;]|\\\\|&)([^=,;&]{0,200})=\Z")
_HEADING = re.compile(r"(?:step|part|case|problem|question|answer|example) \d{1,3} ?[-–—:.] ?\Z", re.IGNORECASE)
_PLAIN_BEFORE = re.compile(
    r"(?:[=$({\[] ?[-−] ?|[\d)}] ?[-−] ?|(?<!\S)[-−](?=\S*\Z)|[\d)}] ?\+ ?|[\d)}]/|\d[.,]?|[\^_]\{?|[A-Za-z]\("
    r"|\\(?:cdot|times|div|pm|ln|log|sin|cos|tan|pi|lfloor|lceil) ?|\\(?:[dtc]?frac"
    r"|binom) ?\{(?:[^{}]{0,60}\} ?\{)?"
    r"|\\sqrt(?:\[[^\[\]]{0,9}\])? ?\{?|\b(?:minus|negative) )\Z",
    re.IGNORECASE,
)
_PLAIN_AFTER = re.compile(
    r"[)|\]!]{0,3} ?(?:\\(?:cdot|times|div|pi|sqrt|pm|d?frac)(?![A-Za-z])|\^(?! ?\{? ?\\(?:circ|text|mathrm))"
    r"|[*/] ?[\d\\]|\+ ?[\dA-Za-z\\]|-\d)|[A-Za-z](?![A-Za-z])|_|\d|,\d|\.(?!0+(?!\d))\d| \d"
    r"| (?:plus|minus|times|and a half|in base|mod|modulo)\b"
)
_EQUALS_PLAIN = re.compile(r"(?:\A|(?:[A-Za-z\n]|(?<!\d)[.:;,]) ?)(-?[\d.,]{0,30}\d) ?= ?\$?\Z")


def inside_expression(text: str, start: int, end: int) -> bool:
    r"""Whether a box is only a part of an expression: ``-\boxed{3}``, ``\frac{\boxed{3}}{4}``, ``46 = \boxed{45}``.
    It is not if it fills in a blank: ``12 + \boxed{3} = 15``."""
    if _STRUCK.search(text[max(0, start - 80) : start]):
        return True
    content = opened(text[start:end])
    for piece in mathematics(text):
        if piece.start < start and end < piece.end:
            left = _DELIMITERS.sub("", text[piece.start : start])
            right = _DELIMITERS.sub("", text[end : piece.end])
            outside = text[max(0, piece.start - 2) : piece.start]
            is_negative = not left and re.fullmatch(r"(?:\S| )?[-−]", outside) is not None
            return is_negative or _in_mathematics(left, right, content)
    before, after = text[max(0, start - 80) : start], text[end : end + 80].split("\n", 1)[0]
    if _HEADING.search(before):
        before = ""
    if "=" in after:
        other = re.match(r" ?= ?\$?(-?[\d.,]*\d)(?!\S)", after)
        return other is not None and not before.strip() and identity(other[1]) != identity(content)
    other = _EQUALS_PLAIN.search(before)
    if other and read_numeral(tidy(content)) is not None and identity(other[1]) != identity(content):
        return True
    return bool(_PLAIN_BEFORE.search(before) or _PLAIN_AFTER.match(after))


def _in_mathematics(left: str, right: str, content: str) -> bool:
    """As ``inside_expression``, for a box of this content in mathematics with this text to its left and right."""
    if "=" in right and "=" not in left and left.strip():
        return False
    opener = _unclosed(left)
    if opener is not None:
        said, bracket, inner = left[:opener].rstrip(), left[opener], left[opener + 1 :]
        if bracket == "{" and re.search(r"(?:\\[A-Za-z]+ ?(?:\[[^\[\]]*\])?(?: ?\{[^{}]*\})*|[\^_])\Z", said):
            if not _FONT.search(said[-40:]):
                return True
        elif "," in inner or re.search(r"\A[^)\]}]*,", right):
            return True  # of a list
        left = said + (inner if bracket == "{" else "")
    left = _SPACE_BEFORE.sub("", left)
    right = right[match.end() :] if (match := _SPACE_AFTER.match(right)) else right
    value = read_numeral(tidy(content))
    if "=" in right:
        beside, _, other_side = right.partition("=")
        if beside.strip() or left.rstrip()[-1:] not in ("", "="):
            return True  # of a chain
        other = read_numeral(tidy(other_side.partition("=")[0].strip(" .,;")))
        return bool(other and value and other.value != value.value)
    if value is not None and (head := _CHAIN_HEAD.search(left)):
        constant = read_numeral(tidy(head[1]))
        if constant is not None and constant.value != value.value and not constant.percent:
            return True
        if re.fullmatch(r"\s{0,3}(?:-\s{0,3}\d{0,9}|\d{1,9})\s{0,3}[A-Za-z]\s{0,3}", head[1]):
            return True  # 2x = 14
    before = _OPERATOR_BEFORE.search(left) if not _WORDS_BEFORE.search(left) else None
    return bool(before or _OPERATOR_AFTER.match(right))


def _unclosed(text: str) -> int | None:
    """Where the last bracket begins that is not closed; ``None`` if all are."""
    depth = 0
    for place in range(len(text) - 1, max(-1, len(text) - 400), -1):
        if text[place] in ")]}":
            depth += 1
        elif text[place] in "([{":
            if depth == 0:
                return place
            depth -= 1
    return None


# ---- mathematics


class Value(NamedTuple):
    """A value and its place in the text; or a sign between two values, which is not ``solid``."""

    start: int
    end: int
    text: str
    solid: bool = True


_DISPLAYED = r"(?:align|equation|gather|eqnarray|multline)\*?\}"
_DELIMITER = re.compile(rf"(?P<begin>\\begin\{{{_DISPLAYED})|(?P<end>\\end\{{{_DISPLAYED})|\\.|\$\$?", re.DOTALL)
_PAIRS = {r"\(": r"\)", r"\[": r"\]", "$": "$", "$$": "$$", "begin": "end"}
_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:aligned|split|gathered)\}|&")
_LONGEST = 2_000


def mathematics(text: str) -> list[Value]:
    """Every piece of mathematics, in order. A dollar sign that means money does not count."""
    found: list[Value] = []
    opening: re.Match[str] | None = None
    delimiter = ""
    for mark in _DELIMITER.finditer(text):
        kind = mark.lastgroup or mark[0]
        if opening is not None and kind == _PAIRS[delimiter]:
            inner = text[opening.end() : mark.start()]
            before_digit = inner[-1:].isspace() and text[mark.end() : mark.end() + 1].isdigit()
            money = delimiter == "$" and ("\n" in inner.strip() or before_digit)  # $10 and $20
            if inner.strip() and len(inner) <= _LONGEST and not money:
                found.append(Value(opening.start(), mark.end(), _last_row(inner.strip())))
                opening = None
                continue
        if kind in _PAIRS:
            opening, delimiter = mark, kind
    return found


def _last_row(inner: str) -> str:
    """The last row of a computation in aligned rows: ``= 63``; other mathematics as it is."""
    if "&" not in inner or r"\begin" in _ALIGNED.sub("", inner):
        return inner
    rows = [row.strip() for row in _ALIGNED.sub(" ", inner).split("\\\\") if row.strip()]
    sides = [row.partition("=")[0].strip() for row in rows]
    return rows[-1] if rows and "=" in rows[-1] and (not sides[-1] or sides[-1] not in sides[:-1]) else inner


# ---- values of a line

_AROUND = 80
_DIGITS = r"\d+(?:[.,:]\d+)*+[½¼¾⅓⅔]?|\.\d+|[½¼¾⅓⅔]"
NUMBER = re.compile(rf"\0+|{_DIGITS}")
"""A number, or mathematics in a ``hidden`` text."""
_TEXT = re.compile(r"\\(?:begin|end)\{[^{}]*\}|\\text(?:bf|rm|normal)?\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"(?<![0-9A-Za-zÀ-ɏ])[A-Za-zÀ-ɏ]{2,}(?![0-9A-Za-zÀ-ɏ])")
_FOREIGN = re.compile(r"(?![\d×÷])(?:[\u0370-\u03ff]{4}|[À-ɏ\u0400-\u1eff\u3040-\u9fff\uac00-\ud7a3])")
_TABLE = re.compile(r"\|[^|]*\|[^|]*\|")
_NO_PROSE = frozenset(
    names("and or sqrt pi approximately approx about exactly only roughly around ln log sin cos tan exp rs usd eur us")
)
# A word in lower case right before a number: "equals 63", "il y a 63"; not "Room 63".
_LED = re.compile(r"(?<![^\s'’])[a-z]+ \Z")


@lru_cache(maxsize=256)  # a line may hold one number two thousand times
def identity(answer: str) -> str:
    """Equal for answers that are the same number, or the same text."""
    text = tidy(answer)
    numeral = read_numeral(text)
    if numeral is not None:
        return f"{numeral.value / (100 if numeral.percent else 1)} {numeral.unit}"
    found = key(text)
    return found.casefold() if len(found) > 1 and found.isalpha() else found


def change_mathematics(text: str, change: Callable[[Value], str]) -> str:
    """A text with each piece of mathematics replaced by what ``change`` returns for it."""
    parts: list[str] = []
    position = 0
    for piece in mathematics(text):
        parts += [text[position : piece.start], change(piece)]
        position = piece.end
    return "".join([*parts, text[position:]])


def hidden(text: str) -> str:
    """A text of the same length, with NUL characters in place of its mathematics: patterns for words skip it."""
    return change_mathematics(text, lambda piece: "\0" * (piece.end - piece.start))


def is_prose(text: str) -> bool:
    """Whether a text is a sentence about an answer rather than the answer itself, which may have a unit."""
    plain = _TEXT.sub(" ", hidden(text))
    found = [word for word in _WORD.finditer(plain) if word[0].lower() not in _NO_PROSE]
    value = NUMBER.search(plain)
    if value is None:
        return len(found) > 8 and not NUMBER.search(text)
    if any(pattern.search(plain) for pattern in (phrases.PREDICATE, phrases.NOT_FOREIGN, _FOREIGN, _TABLE)):
        return True
    before = sum(word.start() < value.start() for word in found)
    return len(found) > 4 or before > 1 or (before > 0 and _LED.search(plain[: value.start()]) is not None)


# What may stand between two numbers and make them one expression, equation or list.
_TOKEN = re.compile(
    rf"(?P<number>{_DIGITS})|\\(?:frac|dfrac|sqrt|times|cdot|div|pm|approx|left|right|pi|leq?|geq?)(?![A-Za-z])"
    r"|(?<![A-Za-z])(?:or|and|to|through|minus|plus|times|mod|sqrt|pi|x)(?![A-Za-z])"
    r"|[-−–‒﹣－+*/^=×÷·!%(){}\[\],;<>≤≥±≈√π€£¥₹$・、]|(?<=\d)[—~～](?=\d)",
    re.IGNORECASE,
)
_JOINTS = frozenset(("and", "to", "through", *"),;=]}!%、・"))
_OPERATORS = frozenset(("times", "plus", "mod", *"+*/^×÷·"))
_DASHES = frozenset("-−–‒﹣－")
_LOOSE_ENDS = frozenset(("or", "and", "to", "through", *",;([{<>$", *_DASHES))
_FUNCTIONS = frozenset(FUNCTIONS.split("|"))
_GLUED = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z0-9_]++ ?\Z")
_MINUS = re.compile(
    r"(?:\b(?:minus|neg(?:ative)?|negativ[oea]?|menos|moins|meno|минус) "
    r"|(?:负|負|零下|マイナス|마이너스|[ー一ㅡ־]) ?)\Z",
    re.IGNORECASE,
)
_OR = re.compile(r",? \(?or | \((?=[\d.,]+ ?\\?%?\)\Z)", re.IGNORECASE)
_SCALE = (
    r" ?(?:\\?%|percent\b|pct\b|°|\^\\circ)"
    rf"| ?(?:{FOREIGN_SCALE})(?![A-Za-zÀ-ɏ\u0400-\u04ff])"
    r"| (?i:hundred|thousand|million|billion|trillion|dozen|score|lakh|crore|\w{3,9}(?:ths|rds))\b"
)
_UNIT = r" ?半| ?(?:\\text\{[^{}]*\}|(?:€|£|m²|m\^2|cm|km|(?i:[ap]\.?m\b))(?![A-Za-z]))|[A-Za-z]\w{0,30}+"
_SCALED, _MEASURED = (re.compile(pattern, re.IGNORECASE) for pattern in (_SCALE, f"{_SCALE}|{_UNIT}"))


def values_in(line: str) -> list[Value]:
    """Every value of a line. A list such as ``54, 55, 56`` and an expression such as ``28 + 28`` are one value."""
    signs = (Value(m.start(), m.end(), m[0], m["number"] is not None) for m in _TOKEN.finditer(hidden(line)))
    pieces = sorted([*mathematics(line), *signs])
    found: list[Value] = []
    first = 0
    for place in range(1, len(pieces) + 1):
        if place == len(pieces) or line[pieces[place - 1].end : pieces[place].start].strip(" "):
            value = _value(line, pieces[first:place])
            found += [value] if value else []
            first = place
    return found


def _value(line: str, run: list[Value]) -> Value | None:
    """The value of a run of numbers, signs and mathematics, without signs that only join it to the sentence."""
    if not any(piece.solid for piece in run):
        return None
    first, last = 0, len(run)
    while not run[first].solid and (run[first].text.lower() in _JOINTS or _is_dash(line, run[first])):
        first += 1
    while not run[last - 1].solid and (
        run[last - 1].text.lower() in _LOOSE_ENDS or PER.match(line, run[last - 1].start)
    ):
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
        return None  # the power of a unit
    function = glued and glued[0].strip().lower() in _FUNCTIONS
    if glued and (function or run[0].text.lower() in _OPERATORS or not before.endswith(" ")):
        text = glued[0] + text
    elif _MINUS.search(before):
        text = f"-{text}"
    after = (_MEASURED if run[-1].text[-1].isdigit() else _SCALED).match(line, end)
    return Value(start, after.end() if after else end, text + (after[0] if after else ""))


def _is_dash(line: str, sign: Value) -> bool:
    """Whether a minus sign is a dash: in a list (``- 5``) or after a word (``total - 5``), but not in ``x - 5``."""
    before = line[max(0, sign.start - 5) : sign.start].rstrip()[-2:]
    apart = sign.text in _DASHES and line[sign.end : sign.end + 1] == " "
    return apart and (not before or (before.isalpha() and len(before) == 2))


# ---- options of a multiple-choice question

_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_OPTION_MARK = re.compile(r"(?<![A-Za-z'])\(?([A-Z])(?:\)|[.:](?=\s|$))")
_JOINED = re.compile(
    r"(?:\b(?:or|and)\b|[,;/&])\s*(?!(?:A|I) (?!(?:or|and|is|because|since|must)\b)[a-z])([A-Z])(?![A-Za-z'])"
)
_ALONE = re.compile(
    r"(?!(?:A|I) (?!(?:or|and|is|because|since|must)\b)[a-z]|I(?:,| and| or) II)"
    r"(?<![A-Za-z0-9'\\])([A-Z])(?![A-Za-z0-9'+])"
)


def option(text: str) -> str | None:
    """The letter of a reference: ``B``, ``(B)``, ``b``, ``\\text{(B)}``, ``B. Paris``; ``None`` if not one."""
    letters = letters_of(text)
    return letters[0] if len(letters) == 1 else None


def letters_of(text: str) -> list[str]:
    """The distinct options that an answer names.

    An answer of a single letter, in either case, names that letter. Otherwise it names its marked letters (``(B)``,
    ``B.``) and the letters joined to them (``(B) or C``). Without marked letters, it names the capitals that stand
    alone and do not begin a phrase (``A cat``).
    """
    plain = words(tidy(text))
    if whole := _LETTER.fullmatch(plain):
        return [whole[1].upper()]
    marked = _OPTION_MARK.findall(plain)
    return list(dict.fromkeys([*marked, *_JOINED.findall(plain)] if marked else _ALONE.findall(plain)))
