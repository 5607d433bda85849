"""Skills and mistakes, the items of a bank, with their ids and ancestors."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, TypeAlias

from pydantic import ConfigDict

from sgsd.errors import BankError
from sgsd.validation import nearest

MAX_ID_CHARACTERS = 128
MAX_CHARACTERS = 100_000
"""Of a title, a text or a note."""


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
        BankError: a blank text, one of more than ``MAX_CHARACTERS``, an unusable id, an unknown origin, or a character
            that ``refuse_control_characters`` refuses.
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
        """``when``, by the name that skills and mistakes share."""
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
        """``avoid``, by the name that skills and mistakes share."""
        return self.avoid


Item: TypeAlias = Skill | Mistake


def item_document(item: Item) -> dict[str, object]:
    """The item as a JSON object, keys in the order of the file."""
    note = "when" if isinstance(item, Skill) else "avoid"
    document: dict[str, object] = {"id": item.id, "title": item.title, "text": item.text, note: item.note}
    return document | {"origin": str(item.origin), "parents": list(item.parents)}


def canonical(value: object) -> str:
    """A JSON value in canonical form: sorted keys, no spaces, no escapes that JSON does not require.

    Raises:
        ValueError, TypeError: the value is not JSON (NaN, infinities, objects).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def content_id(kind: str, title: str, text: str, note: str) -> str:
    """``<kind>-<12 hex digits>`` of the SHA-256 of an item's content, so that equal ids mean equal content.

    Args:
        kind: ``skill`` or ``mistake``.
        title, text: the item's own fields.
        note: a skill's ``when`` or a mistake's ``avoid``.

    Raises:
        BankError: as ``refuse_control_characters``.
    """
    for value in (title, text, note):
        refuse_control_characters(value, f"a {kind}")
    return f"{kind}-{hashlib.sha256(canonical([kind, title, text, note]).encode()).hexdigest()[:12]}"


def refuse_control_characters(text: str, what: str) -> None:
    """Raise ``BankError`` for a lone surrogate, or a control character other than tab, line feed, carriage return.

    Such characters break files and tokenizers. A form feed or backspace usually comes from ``\\frac`` or ``\\beta``
    whose backslash was not doubled in JSON.
    """
    for character in text:
        if character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cs"):
            raise BankError(
                f"{what}: a control character",
                got=f"U+{ord(character):04X}",
                expected="text without control characters and lone surrogates",
                remedy="a LaTeX backslash must be doubled in JSON" if character in "\b\f" else "remove it",
            )


def ancestors(id: str, parents: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The ids of all ancestors of an item in depth-first order, each once. Cycles are allowed.

    Args:
        id: the id of the item.
        parents: id → ids of its parents.
    """
    found: dict[str, None] = {}
    waiting = [*reversed(parents.get(id, ()))]
    while waiting:
        at = waiting.pop()
        if at not in found:
            found[at] = None
            waiting += reversed(parents.get(at, ()))
    return tuple(found)


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
        raise BankError(f"{what}: blank text", got=repr(item.text), expected="text")
    for value in (item.title, item.text, item.note, *item.parents):
        refuse_control_characters(value, what)
        if len(value) > MAX_CHARACTERS:
            raise BankError(
                f"{what}: too long", got=f"{len(value):,} characters", expected=f"at most {MAX_CHARACTERS:,}"
            )
