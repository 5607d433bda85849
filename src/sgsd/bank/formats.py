"""Bank files as plain JSON documents: syntax, canonical text, and the common ``general_skills`` format.

Two formats are read. The *native* one holds everything a ``SkillBank`` is. The *common* one is what most public code of
this family exchanges: ``general_skills`` (``skill_id``, ``title``, ``principle``, ``when_to_apply``),
``common_mistakes`` (``mistake_id``, ``description``, ``why_it_happens``, ``how_to_avoid``), ``task_specific_skills`` by
category, ``metadata``. This module turns documents into documents; ``skills.py`` turns native documents into values.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import unicodedata
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import TypeAlias, cast

from sgsd.errors import BankError

Document: TypeAlias = dict[str, object]

COMMON_KEYS = ("general_skills", "task_specific_skills", "common_mistakes")
NATIVE_KEYS = ("schema_version", "name", "metadata", "skills", "mistakes")

# Native field -> the names it goes by in common files, best first.
_SKILL_FIELDS = {
    "id": ("skill_id", "id"),
    "title": ("title", "name"),
    "text": ("principle", "text", "description"),
    "when": ("when_to_apply", "when"),
    "origin": ("origin",),
    "parents": ("parents",),
}
_MISTAKE_FIELDS = {
    "id": ("mistake_id", "id"),
    "title": ("description", "title", "mistake"),
    "text": ("why_it_happens", "text", "why"),
    "avoid": ("how_to_avoid", "avoid"),
    "origin": ("origin",),
    "parents": ("parents",),
}


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


def pretty(document: Document) -> str:
    """A document as it is written to disk: one field a line, items in bank order, final newline."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that hold or resemble ``name``, or else all (at most 12): the ``expected`` part of an error."""
    names = list(known)
    holding = [candidate for candidate in names if name and name.lower() in candidate.lower()][:3]
    close = list(dict.fromkeys(holding + difflib.get_close_matches(name, names, n=3, cutoff=0.6)))
    return " or ".join(map(repr, close)) if close else "one of " + ", ".join(map(repr, names[:12]))


def parse(text: str, source: str) -> Document:
    """JSON text → document.

    Args:
        text: the file's text.
        source: what to call it in errors.

    Raises:
        BankError: malformed JSON (with line and column), a repeated key, NaN or an infinity, or no object at the top.
    """

    def unique(pairs: list[tuple[str, object]]) -> Document:
        document = dict(pairs)
        if len(document) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated = sorted({key for key in keys if keys.count(key) > 1})
            raise BankError(
                f"{source}: a JSON object repeats a key", got=repr(repeated[0]), expected="each key once per object"
            )
        return document

    def refuse(constant: str) -> object:
        raise BankError(f"{source}: not valid JSON", got=constant, expected="finite numbers")

    try:
        value: object = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise BankError(
            f"{source}: malformed JSON",
            got=f"{error.msg} at line {error.lineno} column {error.colno}",
            expected="a JSON object",
            remedy="a LaTeX backslash must be doubled in JSON" if "escape" in error.msg else "mend the file",
        ) from error
    except BankError:
        raise
    except (ValueError, RecursionError) as error:
        raise BankError(f"{source}: unreadable JSON", got=" ".join(str(error).split())) from error
    return as_object(value, source)


@contextmanager
def located(where: str) -> Generator[None, None, None]:
    """Put ``where`` before the message of a ``BankError`` raised inside."""
    try:
        yield
    except BankError as error:
        raise BankError(
            f"{where}: {error.what}", got=error.got, expected=error.expected, remedy=error.remedy
        ) from error


def as_object(value: object, where: str) -> Document:
    """The value, which must be a JSON object; else ``BankError`` naming ``where``."""
    if not isinstance(value, dict):
        raise BankError(f"{where}: wrong type", got=json_type(value), expected="a JSON object")
    return cast(Document, value)


def as_list(value: object, where: str) -> list[object]:
    """The value, which must be a JSON array; else ``BankError`` naming ``where``."""
    if not isinstance(value, list):
        raise BankError(f"{where}: wrong type", got=json_type(value), expected="a JSON array")
    return cast(list[object], value)


def json_type(value: object) -> str:
    """The JSON name of a value's type, for errors."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an object" if isinstance(value, dict) else "an array" if isinstance(value, list) else type(value).__name__


def refuse_unknown_keys(document: Mapping[str, object], known: Iterable[str], where: str) -> None:
    """Raise ``BankError`` for the first key outside ``known``, naming the nearest known one."""
    names = tuple(known)
    for key in document:
        if key not in names:
            raise BankError(f"{where}: unknown key", got=repr(key), expected=nearest(key, names))


def is_common(document: Document) -> bool:
    """Whether a document is in the common format: one of its lists is there and nothing native is."""
    native = any(key in document for key in ("schema_version", "skills", "mistakes"))
    return not native and any(key in document for key in COMMON_KEYS)


def common_to_native(document: Document, source: str) -> Document:
    """Common document → native document.

    Read tolerantly: ids may be missing (they are then derived) or numbers, an item may be a bare string, an item's
    field may be null or go by a near name (``text`` for ``principle``). Task-specific skills become skills like any
    other; their categories are kept in ``metadata["task_specific_skills"]``, so that ``native_to_common`` puts them
    back. Keys that mean nothing here are not carried, and are listed in ``metadata["ignored_keys"]``. A mistake's
    ``description`` is its title where ``why_it_happens`` gives the text, and its text where nothing else does.

    Raises:
        BankError: a list that is not a list, an item or field of the wrong type, an item without any text.
    """
    ignored = {key for key in document if key not in (*COMMON_KEYS, "name", "metadata")}

    def items(value: object, where: str, fields: Mapping[str, tuple[str, ...]]) -> list[Document]:
        found: list[Document] = []
        for position, entry in enumerate(as_list(value, f"{source}: {where}")):
            item, dropped = _read_common_item(entry, f"{source}: {where}[{position}]", fields)
            ignored.update(f"{where}[].{key}" for key in dropped)
            found.append(item)
        return found

    skills = items(document.get("general_skills", []), "general_skills", _SKILL_FIELDS)
    categories: dict[str, list[str]] = {}
    specific = as_object(document.get("task_specific_skills", {}), f"{source}: task_specific_skills")
    for category, entries in specific.items():
        members = items(entries, f"task_specific_skills.{category}", _SKILL_FIELDS)
        categories[category] = [cast(str, member["id"]) for member in members]
        skills += members
    mistakes = items(document.get("common_mistakes", []), "common_mistakes", _MISTAKE_FIELDS)
    metadata = dict(as_object(document.get("metadata", {}), f"{source}: metadata"))
    # Last, also where an earlier reading put it, so that a file written and read again is the same to the last byte.
    before = {name: metadata.pop(name) for name in ("ignored_keys",) if name in metadata}
    if categories:
        metadata["task_specific_skills"] = categories
    metadata |= {"ignored_keys": sorted(ignored)} if ignored else before
    native: Document = {"schema_version": 1, "metadata": metadata, "skills": skills, "mistakes": mistakes}
    if "name" in document:
        native["name"] = document["name"]
    return native


def _read_common_item(
    entry: object, where: str, fields: Mapping[str, tuple[str, ...]]
) -> tuple[Document, tuple[str, ...]]:
    """One entry of a common list → (native item with an id, the keys that were not used)."""
    kind, note = ("skill", "when") if "when" in fields else ("mistake", "avoid")
    entry = {"text": entry} if isinstance(entry, str) else entry
    raw = as_object(entry, where)
    item: Document = {}
    used: set[str] = set()
    if kind == "mistake" and raw.get("title") and not any(raw.get(name) for name in fields["text"]):
        # Title and description without a why: the title is the shorter of the two.
        fields = {**fields, "title": ("title",), "text": ("description", "mistake")}
    for field, names in fields.items():
        for name in names:
            if name in raw and raw[name] is not None and raw[name] != "":
                item[field] = raw[name]
                used.add(name)
                break
        else:
            used.update(name for name in names if name in raw)
    if isinstance(item.get("id"), int) and not isinstance(item["id"], bool):
        item["id"] = str(item["id"])
    for field in ("id", "title", "text", note):
        if not isinstance(item.get(field, ""), str):
            raise BankError(f"{where}.{field}: wrong type", got=json_type(item[field]), expected="a string")
    if "text" not in item and "title" in item:
        item["text"] = item.pop("title")
    if "text" not in item:
        raise BankError(f"{where}: the {kind} says nothing", got=canonical(raw)[:80], expected=repr(fields["text"][0]))
    if "id" not in item:
        title, text, extra = (cast(str, item.get(field, "")) for field in ("title", "text", note))
        with located(where):
            item["id"] = content_id(kind, title, text, extra)
    return item, tuple(key for key in raw if key not in used)


def native_to_common(document: Document) -> Document:
    """Native document → common document, the inverse of ``common_to_native``.

    ``origin`` (unless ``seed``) and ``parents`` (unless empty) travel as extra keys of an item, which readers of the
    common format pass over; nothing of a bank is lost but the order between general and task-specific skills.
    """
    metadata = dict(cast(Document, document.get("metadata", {})))
    categories = _categories(metadata.get("task_specific_skills"))
    if categories:
        del metadata["task_specific_skills"]
    skills = [
        _write_common_item(item, {"id": "skill_id", "title": "title", "text": "principle", "when": "when_to_apply"})
        for item in cast(list[Document], document["skills"])
    ]
    mistakes: list[Document] = []
    for item in cast(list[Document], document["mistakes"]):
        names = {"id": "mistake_id", "title": "description", "text": "why_it_happens", "avoid": "how_to_avoid"}
        if not item.get("title"):
            names = {"id": "mistake_id", "text": "description", "avoid": "how_to_avoid"}
        mistakes.append(_write_common_item(item, names))
    by_id = {skill["skill_id"]: skill for skill in skills}
    specific = {
        category: [by_id[member] for member in members if member in by_id] for category, members in categories.items()
    }
    placed = {member for members in categories.values() for member in members}
    common: Document = {"name": document["name"]} if document.get("name") else {}
    common["general_skills"] = [skill for skill in skills if skill["skill_id"] not in placed]
    if specific:
        common["task_specific_skills"] = specific
    common["common_mistakes"] = mistakes
    if metadata:
        common["metadata"] = metadata
    return common


def _write_common_item(item: Document, names: Mapping[str, str]) -> Document:
    written: Document = {name: item[field] for field, name in names.items() if item.get(field)}
    if item.get("origin", "seed") != "seed":
        written["origin"] = item["origin"]
    if item.get("parents"):
        written["parents"] = item["parents"]
    return written


def _categories(value: object) -> dict[str, list[str]]:
    """``metadata["task_specific_skills"]`` where it has the shape ``common_to_native`` writes, else nothing."""
    if not isinstance(value, dict):
        return {}
    categories = cast(Mapping[str, object], value)
    for members in categories.values():
        if not isinstance(members, list) or not all(isinstance(member, str) for member in cast(list[object], members)):
            return {}
    return cast(dict[str, list[str]], categories)
