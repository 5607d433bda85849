"""Skills and mistakes: frozen values whose ids never change meaning, and what they come from."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, TypeAlias

from pydantic import ConfigDict

from sgsd.errors import BankError
from sgsd.validation import nearest

MAX_ID_CHARACTERS = 128


class Origin(StrEnum):
    """Where an item comes from. ``ONLINE`` items are the dynamic part of a bank, the others the static part."""

    SEED = "seed"
    COLD_START = "cold_start"
    ONLINE = "online"


@dataclass(frozen=True, slots=True)
class Skill:
    """Something worth doing: g in the method's pairs (g_k, e_k).

    Attributes:
        id: unique in a bank, skills and mistakes together; ``Skill.new`` derives it from the content.
        title: a few words, may be empty.
        text: the principle, as an instruction; never blank.
        when: when to apply it, may be empty.
        origin: see ``Origin``.
        parents: ids of the items it was merged or refined from.

    Raises:
        BankError: a blank text, an unusable id, an unknown origin, or a lone surrogate or control character (other than
            tab, line feed, carriage return) anywhere.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    title: str
    text: str
    when: str = ""
    origin: Origin = Origin.SEED
    parents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _validate(self)

    @classmethod
    def new(cls, text: str, *, title: str = "", when: str = "", origin: Origin, parents: Iterable[str] = ()) -> Skill:
        """A skill with the id derived from its stripped content (``skill-`` and 12 hex digits of SHA-256)."""
        title, text, when = title.strip(), text.strip(), when.strip()
        return cls(content_id("skill", title, text, when), title, text, when, origin, tuple(parents))

    @property
    def note(self) -> str:
        """``when``: the field that a mistake has as ``avoid``."""
        return self.when


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something that goes wrong: e in the method's pairs (g_k, e_k).

    Attributes:
        id, title, origin, parents: as of a ``Skill``.
        text: what goes wrong, and why; never blank.
        avoid: how to avoid it, may be empty.

    Raises:
        BankError: as ``Skill``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    title: str
    text: str
    avoid: str = ""
    origin: Origin = Origin.SEED
    parents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _validate(self)

    @classmethod
    def new(
        cls, text: str, *, title: str = "", avoid: str = "", origin: Origin, parents: Iterable[str] = ()
    ) -> Mistake:
        """A mistake with the id derived from its stripped content (``mistake-`` and 12 hex digits of SHA-256)."""
        title, text, avoid = title.strip(), text.strip(), avoid.strip()
        return cls(content_id("mistake", title, text, avoid), title, text, avoid, origin, tuple(parents))

    @property
    def note(self) -> str:
        """``avoid``: the field that a skill has as ``when``."""
        return self.avoid


Item: TypeAlias = Skill | Mistake


def item_document(item: Item) -> dict[str, object]:
    """The item as JSON values, in the order of its file."""
    note = "when" if isinstance(item, Skill) else "avoid"
    document: dict[str, object] = {"id": item.id, "title": item.title, "text": item.text, note: item.note}
    return document | {"origin": str(item.origin), "parents": list(item.parents)}


def canonical(value: object) -> str:
    """The one text of a JSON value: sorted keys, no spaces, no escapes beyond what JSON demands.

    Raises:
        ValueError, TypeError: the value is not JSON (NaN, infinities, objects).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_id(kind: str, title: str, text: str, note: str) -> str:
    """``<kind>-<12 hex digits>``: SHA-256 over what an item says, so that an id can never come to mean something else.

    Args:
        kind: ``skill`` or ``mistake``.
        title, text: the item's own fields.
        note: a skill's ``when`` or a mistake's ``avoid``.

    Raises:
        BankError: a character that no text may hold, see ``refuse_control_characters``.
    """
    for value in (title, text, note):
        refuse_control_characters(value, f"a {kind}")
    return f"{kind}-{hashlib.sha256(canonical([kind, title, text, note]).encode()).hexdigest()[:12]}"


def refuse_control_characters(text: str, what: str) -> None:
    """Raise ``BankError`` for a lone surrogate, or a control character other than tab, line feed, carriage return.

    They break files and tokenizers, and a form feed or backspace is what JSON makes of an undoubled ``\\frac`` or
    ``\\beta``.
    """
    for character in text:
        if character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cs"):
            raise BankError(
                f"{what}: a character that no text may hold",
                got=f"U+{ord(character):04X}",
                expected="text without control characters and lone surrogates",
                remedy="a LaTeX backslash must be doubled in JSON" if character in "\b\f" else "remove it",
            )


def ancestors(id: str, parents: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Everything an item comes from, nearest first, each id once; a circle does no harm.

    Args:
        id: of the item.
        parents: id → the ids it comes from directly.
    """
    return tuple(dict.fromkeys(below for _, below in descent(id, parents)))


def descent(id: str, parents: Mapping[str, Sequence[str]]) -> Iterator[tuple[int, str]]:
    """(depth, id) of everything an item comes from, as a tree is printed: each one before what it comes from.

    What comes up a second time is told again, but not followed again.
    """
    seen = {id}
    waiting = [(1, parent) for parent in reversed(parents.get(id, ()))]
    while waiting:
        level, at = waiting.pop()
        yield level, at
        if at not in seen:
            seen.add(at)
            waiting += [(level + 1, parent) for parent in reversed(parents.get(at, ()))]


def _validate(item: Item) -> None:
    what = f"{'skill' if isinstance(item, Skill) else 'mistake'} {item.id!r}"
    if item.origin not in tuple(Origin):
        raise BankError(f"{what}: unknown origin", got=repr(item.origin), expected=nearest(str(item.origin), Origin))
    object.__setattr__(item, "origin", Origin(item.origin))
    object.__setattr__(item, "parents", tuple(item.parents))
    if not item.id or item.id != item.id.strip() or len(item.id) > MAX_ID_CHARACTERS or not item.id.isprintable():
        raise BankError(
            f"{what}: unusable id",
            got=f"{len(item.id)} characters",
            expected=f"1 to {MAX_ID_CHARACTERS} printable characters without outer spaces",
        )
    if not item.text.strip():
        raise BankError(f"{what}: blank text", got=repr(item.text), expected="what the item says")
    for value in (item.title, item.text, item.note, *item.parents):
        refuse_control_characters(value, what)
