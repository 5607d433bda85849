"""Warnings about the content of a bank: ``SkillBank.check``."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil

from sgsd.bank.items import Item
from sgsd.controls import KNOWN

MAX_ITEM_CHARACTERS = 800
MAX_TITLE_CHARACTERS = 120
NEAR_DUPLICATE_OVERLAP = 0.8

# JSON reads an undoubled \times as a tab and "imes", and \neq as a newline and "eq".
BROKEN_LATEX = re.compile(
    r"\t(?:imes|heta|ext|frac|riangle|an\b|au\b|o\b)|\n(?:abla|eq?\b(?![.)])|ot\b|u\b|mid\b)|\r(?:ight|floor|ceil|angle|ho\b)"
)
_WORD = re.compile(r"\w+")


class FindingKind(StrEnum):
    """The kind of a finding."""

    EMPTY_LIST = "empty-list"
    UNEQUAL_LISTS = "unequal-lists"
    DUPLICATE_TEXT = "duplicate-text"
    NEAR_DUPLICATE = "near-duplicate"
    TOO_LONG = "too-long"
    NO_WHEN = "no-when"
    NO_AVOID = "no-avoid"
    CONTROL_TOKEN = "control-token"
    BROKEN_LATEX = "broken-latex"


@dataclass(frozen=True, slots=True)
class Finding:
    """One warning: its kind, the ids of its items (none for the bank as a whole) and a message of one line."""

    kind: FindingKind
    ids: tuple[str, ...]
    message: str


def check_items(skills: Sequence[Item], mistakes: Sequence[Item], *, rules: bool = False) -> tuple[Finding, ...]:
    """All findings, bank-wide ones first, then in bank order.

    With ``rules``, as of a document, each item teaches alone: it needs no note, and its list no other list.

    Near-duplicates are two items of one list whose titles and texts have a Jaccard index of at least 0.8, as sets of
    lower-cased words. Texts that are equal up to case and spacing are reported as duplicates instead.
    """
    found: list[Finding] = []
    for name, items in (("skills", skills), ("mistakes", mistakes)):
        if not items and not (rules and (skills or mistakes)):
            found.append(Finding(FindingKind.EMPTY_LIST, (), f"the bank has no {name}: it cannot make pairs"))
    if skills and mistakes and len(skills) != len(mistakes) and not rules:
        cap = min(len(skills), len(mistakes))
        message = f"{len(skills)} skills and {len(mistakes)} mistakes: K is capped at {cap}"
        found.append(Finding(FindingKind.UNEQUAL_LISTS, (), message))
    for items, empty_note in ((skills, FindingKind.NO_WHEN), (mistakes, FindingKind.NO_AVOID)):
        for item in items:
            found += _check_item(item, None if rules else empty_note)
        found += _check_repeats(items)
    return tuple(found)


def _check_item(item: Item, empty_note: FindingKind | None) -> list[Finding]:
    found: list[Finding] = []
    length = len(item.title) + len(item.text) + len(item.note)
    if length > MAX_ITEM_CHARACTERS:
        message = f"{item.id} has {length} characters; more than {MAX_ITEM_CHARACTERS} crowd the teacher's prompt"
        found.append(Finding(FindingKind.TOO_LONG, (item.id,), message))
    if len(item.title) > MAX_TITLE_CHARACTERS:
        message = f"{item.id} has a title of {len(item.title)} characters; a title has at most {MAX_TITLE_CHARACTERS}"
        found.append(Finding(FindingKind.TOO_LONG, (item.id,), message))
    if empty_note and not item.note.strip():
        what = "when to apply it" if empty_note is FindingKind.NO_WHEN else "how to avoid it"
        found.append(Finding(empty_note, (item.id,), f"{item.id} does not say {what}"))
    parts = (item.title, item.text, item.note)
    for token in dict.fromkeys(KNOWN.findall("\n".join(parts))):
        message = f"{item.id} holds {token!r}, which a chat template may read as structure"
        found.append(Finding(FindingKind.CONTROL_TOKEN, (item.id,), message))
    if any(map(BROKEN_LATEX.search, parts)):
        message = f"{item.id} seems to hold a LaTeX command whose backslash was not doubled in JSON"
        found.append(Finding(FindingKind.BROKEN_LATEX, (item.id,), message))
    return found


def _check_repeats(items: Sequence[Item]) -> list[Finding]:
    found: list[Finding] = []
    by_text: defaultdict[str, list[str]] = defaultdict(list)
    for item in items:
        by_text[" ".join(item.text.casefold().split())].append(item.id)
    same = [tuple(ids) for ids in by_text.values() if len(ids) > 1]
    found += [Finding(FindingKind.DUPLICATE_TEXT, ids, f"{' and '.join(ids)} have the same text") for ids in same]
    group = {id: place for place, ids in enumerate(same) for id in ids}
    words = {item.id: set(_WORD.findall(f"{item.title} {item.text}".casefold())) for item in items}
    counts = Counter(word for of_one in words.values() for word in of_one)
    holding: defaultdict[str, list[int]] = defaultdict(list)
    near: list[tuple[int, int, float]] = []
    for place, item in enumerate(items):
        # Prefix filter: two sets with a Jaccard index of 0.8 share a word of each one's rarest fifth.
        own = sorted(words[item.id], key=lambda word: (counts[word], word))
        rare = own[: len(own) - ceil(NEAR_DUPLICATE_OVERLAP * len(own) - 1e-9) + 1]
        for other in {other for word in rare for other in holding[word]}:
            both = words[item.id] & words[items[other].id]
            overlap = len(both) / (len(words[item.id]) + len(words[items[other].id]) - len(both))
            if overlap >= NEAR_DUPLICATE_OVERLAP:
                near.append((other, place, overlap))
        for word in rare:
            holding[word].append(place)
    for one, other, overlap in sorted(near):
        first, second = items[one].id, items[other].id
        if first not in group or group[first] != group.get(second):
            message = f"{first} and {second} share {overlap:.0%} of their words"
            found.append(Finding(FindingKind.NEAR_DUPLICATE, (first, second), message))
    return found
