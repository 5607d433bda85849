"""What makes a written item worth nothing to another problem, and can be told from its words alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sgsd.bank.writing import UnfitError

COPIED_WORDS = 8
"""So many words in a row are copied, not found again."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\w)")
_NAME = re.compile(r"\b[A-Z][a-z]{2,}\b")
_NAME_INSIDE = re.compile(r"(?<=[a-z0-9,;] )[A-Z][a-z]{2,}\b")  # a sentence, not at its beginning
_PIECES_OF_JSON = re.compile(r'\}"?\s*,\s*"?\{|"\s*:\s*["{\[]')
# Numbers that general advice holds, too; two of a problem's together are no chance.
_COMMON_NUMBERS = frozenset([*map(str, range(11)), "100"])
# Ends in a word or sign after which something must follow.
_UNFINISHED = re.compile(
    r"(?:[,;:–—(\[{=+*/<-]|\b(?:an?|and|are|as|at|be|because|but|by|can|for|from|has|have|if|into|is|its|may|must|of|on|or|so|"
    r"such|than|that|the|their|then|these|this|to|was|were|when|where|which|while|will|with|your))$",
    re.IGNORECASE,
)


def refuse_faults(fields: Mapping[str, str], *, problem: str = "", shown: Sequence[str] = (), template: str) -> None:
    """Refuse an item that repeats its problem or its prompt, or was cut in mid-sentence.

    Args:
        fields: name → text, the title first.
        problem: whose names and numbers it must not hold.
        shown: what the writer was shown and must not copy.
        template: what it was asked in, without what it was shown.

    Raises:
        UnfitError: saying which field, and what is wrong with it.
    """
    title, *sentences = fields
    for name, text in fields.items():
        if _PIECES_OF_JSON.search(text):
            raise UnfitError(f"a field holds pieces of JSON: got {name} {text[-40:]!r}")
        if found := _copied(text, shown, template):
            raise UnfitError(f"the prompt is copied: got {name} {found!r}")
    for name in sentences:
        if _UNFINISHED.search(fields[name]):
            raise UnfitError(f"a field is cut in mid-sentence: got {name} {fields[name][-40:]!r}")
    whole = ". ".join(fields.values())
    numbers = _numbers(whole) & _numbers(problem)
    if numbers - _COMMON_NUMBERS or len(numbers) > 1:
        raise UnfitError(f"numbers of the problem are repeated: got {', '.join(sorted(numbers))}")
    if names := _names(problem, whole.removeprefix(fields[title])):
        raise UnfitError(f"names of the problem are repeated: got {', '.join(sorted(names))}")


def _copied(text: str, shown: Sequence[str], template: str) -> str | None:
    """The first words in a row that are copied; a short text only where all of it stands in the template."""
    words = _words(text)
    for source, least in [(template, 3), *((source, COPIED_WORDS) for source in shown)]:
        length = min(COPIED_WORDS, len(words))
        if length >= least:
            known = _runs(_words(source), length)
            for run in _runs(words, length):
                if run in known:
                    return " ".join(run)
    return None


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _runs(words: Sequence[str], length: int) -> dict[tuple[str, ...], None]:
    return dict.fromkeys(tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _numbers(text: str) -> set[str]:
    return {found.replace(",", "").rstrip(".") for found in _NUMBER.findall(text)}


def _names(problem: str, text: str) -> set[str]:
    """Capitalised words of both that do not merely begin a sentence in both, nor are common words of the problem."""
    found = set(_NAME.findall(text)) & set(_NAME_INSIDE.findall(problem))
    found |= set(_NAME_INSIDE.findall(text)) & set(_NAME.findall(problem))
    common = set(re.findall(r"\w+", problem))
    return {name for name in found if name.lower() not in common}
