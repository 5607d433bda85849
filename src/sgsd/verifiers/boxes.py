r"""What is set apart in a text: boxes (``\boxed{}``, ``\fbox{}``) and mathematics (``$…$``, ``\(…\)``, ``\[…\]``).

Every function takes time linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

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
    r"""A box's content without ``$`` around it, and without a box that is all there is in it."""
    for _ in range(8):
        bare = content.strip().strip("$ ")
        content = content.strip() if "$" in bare else bare
        found, _ = boxes(content)
        if [(start, end) for start, end, _ in found] != [(0, len(content))]:
            break
        content = found[0][2]
    return content


# A box is read with what stands right around it: an operator, a factor, a function, an argument's bracket.
_BEFORE = re.compile(
    r"(?:[=$({\[] ?-|[\d)}] ?- ?|(?:\A|\n)-|[\d)}] ?\+ ?|[\d)}]/|\d|[\^_]\{?|[A-Za-z]\("
    r"|\\(?:cdot|times|div|pm|ln|log|sin|cos|tan|pi|lfloor|lceil) ?"
    r"|\\(?:[dtc]?frac|binom) ?\{(?:[^{}]{0,60}\} ?\{)?|\\sqrt(?:\[[^\[\]]{0,9}\])? ?\{?)\Z"
)
_HEADING = re.compile(r"(?:step|part|case|problem|question|answer|example) \d{1,3} ?[-–—:.] ?\Z", re.IGNORECASE)
_AFTER = re.compile(
    r"[)|\]!]{0,3} ?(?:\\(?:cdot|times|div|pi|sqrt|pm|d?frac)(?![A-Za-z])|\^(?! ?\{? ?\\(?:circ|text|mathrm))"
    r"|[*/] ?[\d\\]|\+ ?[\dA-Za-z\\]|-\d)|[A-Za-z](?![A-Za-z])"
)


def inside_expression(text: str, start: int, end: int) -> bool:
    r"""Whether the box at ``start`` to ``end`` is but a part of an expression, and so not its value: ``-\boxed{3}``,
    ``\frac{\boxed{3}}{4}``. Not where an equality sign follows: that is how blanks are filled in.
    """
    before, after = text[max(0, start - 80) : start], text[end : end + 80].split("\n", 1)[0]
    if _HEADING.search(before):
        before = ""
    return "=" not in after and bool(_BEFORE.search(before) or _AFTER.match(after))


@dataclass(frozen=True, slots=True)
class Mathematics:
    """A piece of mathematics between delimiters, and its place in the text."""

    start: int
    end: int
    inner: str


_DISPLAYED = r"(?:align|equation|gather|eqnarray|multline)\*?\}"
_DELIMITER = re.compile(rf"(?P<begin>\\begin\{{{_DISPLAYED})|(?P<end>\\end\{{{_DISPLAYED})|\\.|\$\$?", re.DOTALL)
_PAIRS = {r"\(": r"\)", r"\[": r"\]", "$": "$", "$$": "$$", "begin": "end"}
_ALIGNED = re.compile(r"\\(?:begin|end)\{(?:aligned|split|gathered)\}|&")
_LONGEST = 2_000


def mathematics(text: str) -> list[Mathematics]:
    """Every piece of mathematics, in order. A dollar sign before an amount of money opens none."""
    found: list[Mathematics] = []
    opening: re.Match[str] | None = None
    delimiter = ""
    for mark in _DELIMITER.finditer(text):
        kind = mark.lastgroup or mark[0]
        if opening is not None and kind == _PAIRS[delimiter]:
            inner = text[opening.end() : mark.start()]
            if (
                inner.strip()
                and len(inner) <= _LONGEST
                and not _money(delimiter, inner, text[mark.end() : mark.end() + 1])
            ):
                found.append(Mathematics(opening.start(), mark.end(), _last_row(inner.strip())))
                opening = None
                continue
        if kind in _PAIRS:
            opening, delimiter = mark, kind
    return found


def _last_row(inner: str) -> str:
    """Of a computation in aligned rows, the row that it ends in: ``= 63``."""
    if "&" not in inner or r"\begin" in _ALIGNED.sub("", inner):
        return inner
    rows = [row.strip() for row in _ALIGNED.sub(" ", inner).split("\\\\") if row.strip()]
    sides = [row.partition("=")[0].strip() for row in rows]
    return rows[-1] if rows and "=" in rows[-1] and (not sides[-1] or sides[-1] not in sides[:-1]) else inner


def _money(delimiter: str, inner: str, after: str) -> bool:
    """``$10 and $20``; ``$10.`` and ``$20`` in the next line."""
    if delimiter != "$":
        return False
    return (inner[-1].isspace() and after.isdigit()) or ("\n" in inner.strip())
