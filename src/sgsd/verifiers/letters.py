"""The options of a multiple-choice question that a text names."""

from __future__ import annotations

import re

from sgsd.verifiers.tidy import tidy, words

_LETTER = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_OPTION = re.compile(r"(?<![A-Za-z'])\(?([A-Z])(?:\)|[.:](?=\s|$))")
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
    marked = _OPTION.findall(plain)
    return list(dict.fromkeys([*marked, *_JOINED.findall(plain)] if marked else _ALONE.findall(plain)))
