r"""Boxes in a completion: ``\boxed{}`` and ``\fbox{}``, found, opened, and looked at from outside."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:(\{)|([^\s${}\\]+))?")


def boxes(text: str) -> tuple[list[tuple[int, int, str]], bool]:
    """Start, end and content of every outermost box, and whether the last one is unclosed."""
    found: list[tuple[int, int, str]] = []
    position = 0
    while (match := _BOX.search(text, position)) is not None:
        if match[1] is None:
            content = (match[2] or "").rstrip(".,;:")
            found.append((match.start(), match.end(), content))
            position = match.end()
            continue
        end = _closing(text, match.end())
        if end is None:
            return found, True
        found.append((match.start(), end + 1, text[match.end() : end]))
        position = end + 1
    return found, False


def _closing(text: str, start: int) -> int | None:
    depth = 1
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        if brace[0] == "{":
            depth += 1
        elif brace[0] == "}":
            depth -= 1
            if depth == 0:
                return brace.start()
    return None


def opened(content: str) -> str:
    r"""A box's content with the boxes inside it opened, without ``$`` around it: of ``\boxed{12} + 1`` the whole."""
    content = content.strip()
    for _ in range(8):
        found, unclosed = boxes(content)
        if not found or unclosed:
            break
        pieces: list[str] = []
        position = 0
        for start, end, inside in found:
            before = content[position:start]
            pieces += [before, f"{{{inside}}}" if before[-1:] in ("^", "_") else f" {inside} "]
            position = end
        content = "".join([*pieces, content[position:]]).strip()
    return content.strip("$ ") if content.count("$") in {1, 2} and not content.strip("$ ").count("$") else content


_BEFORE = re.compile(
    r"(?:[=$({\[\d)}]\s*-|^-|[\d)}]\s*\+\s*|[\d)}]/|\^\{?|\\(?:cdot|times|div)\s*"
    r"|\\[dtc]?frac\s*\{(?:[^{}]*\}\s*\{)?|\\sqrt(?:\[[^\[\]]*\])?\s*\{?)$",
    re.MULTILINE,
)
_AFTER = re.compile(
    r"\s?(?:\\(?:cdot|times|div)(?![A-Za-z])|\^(?!\s*\{?\s*\\(?:circ|text|mathrm))|[*/]\s?[\d\\]|\+\s?[\dA-Za-z\\]|-\d)"
)


def inside_expression(text: str, start: int, end: int) -> bool:
    r"""Whether the box at ``start`` to ``end`` is but a part of an expression, and so not its value: ``-\boxed{3}``,
    ``\frac{\boxed{3}}{4}``. Not where an equality sign follows: that is how blanks are filled in.
    """
    after = text[end : end + 80].split("\n", 1)[0]
    return "=" not in after and bool(_BEFORE.search(text[max(0, start - 80) : start]) or _AFTER.match(after))
