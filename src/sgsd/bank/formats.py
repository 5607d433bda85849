"""Formats of bank files: native, common (``general_skills`` and ``common_mistakes``), and ACE's playbooks.

A native file holds every field of a ``SkillBank``. ``docs/bank.md`` maps the keys of the other formats.
"""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Annotated, Any, TypeAlias, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from sgsd.bank.items import Item, Mistake, Skill, content_id
from sgsd.errors import BankError
from sgsd.validation import parse_json, validated

Document: TypeAlias = dict[str, object]
SCHEMA_VERSION = 1
FORBIDS = re.compile(
    # A word that forbids, a cross, or a label such as "Wrong:" or "**Incorrect (slow)**".
    r"[\W_]*?(?:(?:never|don['’]?t|do[ *_]+not|must(?:n['’]t|[ *_]+not)|should(?:n['’]t|[ *_]+not)|avoid|refrain from)"
    r"(?![a-z])|[❌🚫✗✘]|不要|不得|切勿|[请請]勿|禁止|[严嚴]禁|避免|[绝絕]不"
    r"|(?:incorrect|wrong|bad|mistake|pitfall|anti-?pattern)[*_ ]*(?:[:：(\n>]|$))",
    re.IGNORECASE,
)
"""Matches the beginning of a rule that forbids something."""
_OF_MISTAKES = re.compile(
    r"(?<![a-z/])(?:mistakes|pitfalls?|anti-?patterns?|red flags?|don['’]?ts|what not to do)(?![a-z]|\.\w)|to avoid\W*$"
    r"|^[\W\d_]*(?:common )?mistake(?![a-z])|^\W*(?:never|don['’]?t|do not|avoid|bad|wrong|incorrect)\W*$"
    r"|^\W*?[❌🚫✗✘]|反模式|禁忌|禁止事[项項]|常[见見][错錯][误誤]|アンチパターン|よくある(?:間違い|失敗|ミス)",
    re.IGNORECASE,
)
_OF_BOTH = re.compile(
    r"(?<![a-z])do['’]?s?\W+(?:(?:and|or|vs)\W+)?(?:don['’]?ts|what not to do)"
    r"|don['’]?ts\W+(?:(?:and|or|vs)\W+)?do['’]?s?(?![a-z])",
    re.IGNORECASE,
)


def _with_defaults(values: object, *, kind: str, note: str) -> object:
    """An item of a file with defaults for missing fields; the default id is derived from the content."""
    if not isinstance(values, dict):
        raise BankError("cannot be used", got=json.dumps(values, default=repr), expected="a JSON object")
    item: Document = {"id": None, "title": "", "text": "", note: "", **cast(Document, values)}
    content = [item["title"], item["text"], item[note]]
    if item["id"] is None:
        item["id"] = content_id(kind, *map(str, content)) if all(isinstance(part, str) for part in content) else "?"
    return item


_Skill: TypeAlias = Annotated[Skill, BeforeValidator(partial(_with_defaults, kind="skill", note="when"))]
_Mistake: TypeAlias = Annotated[Mistake, BeforeValidator(partial(_with_defaults, kind="mistake", note="avoid"))]


class BankFile(BaseModel):
    """The content of a native file."""

    model_config = ConfigDict(extra="forbid")
    schema_version: Annotated[int, Strict(), Field(ge=1)] = SCHEMA_VERSION
    name: str = ""
    metadata: dict[str, object] = {}
    skills: list[_Skill] = []
    mistakes: list[_Mistake] = []

    @property
    def items(self) -> list[Item]:
        return [*self.skills, *self.mistakes]


class _CommonFile(BaseModel):
    """The content of a file in the common format; its items are validated later."""

    model_config = ConfigDict(extra="allow")
    name: str = ""
    metadata: dict[str, object] = {}
    general_skills: list[object] = []
    task_specific_skills: dict[str, list[object]] = {}
    common_mistakes: list[object] = []


class _Bullet(BaseModel):
    """An entry of an ACE playbook (arXiv 2510.04618), without its counters."""

    section: str = ""
    content: str


class _Playbook(BaseModel):
    bullets: dict[str, _Bullet]


_NATIVE, _COMMON, _PLAYBOOK = TypeAdapter(BankFile), TypeAdapter(_CommonFile), TypeAdapter(_Playbook)
_ITEMS: dict[str, TypeAdapter[Any]] = {"skill": TypeAdapter(_Skill), "mistake": TypeAdapter(_Mistake)}
_CATEGORIES = TypeAdapter(dict[str, list[str]])
_COMMON_KEYS = ("general_skills", "task_specific_skills", "common_mistakes")
_KEYS = (*BankFile.model_fields, "id", "title", "text", "when", "avoid", "origin", "parents")
# Field of an item → its names in common files, by preference. Files are written with the first name.
_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "skill": {
        "id": ("skill_id", "id"),
        "title": ("title", "name"),
        "text": ("principle", "text", "description", "title", "name"),
        "when": ("when_to_apply", "when"),
    },
    "mistake": {
        "id": ("mistake_id", "id"),
        "title": ("description", "title", "mistake"),
        "text": ("why_it_happens", "text", "why", "description", "mistake", "title"),
        "avoid": ("how_to_avoid", "avoid"),
    },
}


def read(text: str, source: str) -> BankFile:
    """Parse and validate JSON text in any of the formats.

    Args:
        text: the content of the file.
        source: the name of the file in error messages.

    Raises:
        BankError: malformed JSON, unknown keys (native), a newer schema version, wrong types, a control character.
    """
    document = parse_json(text, source, BankError)
    version = document.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BankError(
            f"{source}: the bank was written by a newer version",
            got=f"schema_version {version}",
            expected=f"at most {SCHEMA_VERSION}",
            remedy="upgrade sgsd",
        )
    if "skills" in document or "mistakes" in document:
        return validated(_NATIVE, document, source, BankError, known=_KEYS)
    if version is None and any(key in document for key in _COMMON_KEYS):
        return _from_common(validated(_COMMON, document, source, BankError), source)
    if version is None and "bullets" in document:
        return _from_playbook(validated(_PLAYBOOK, document, source, BankError), source)
    raise BankError(
        f"{source}: not a bank",
        got=f"keys {sorted(document)}",
        expected="'skills' and 'mistakes' (or 'general_skills' and 'common_mistakes')",
    )


def lists_mistakes(heading: str) -> bool:
    """Whether every rule under a heading or section of this name is a mistake."""
    return bool(_OF_MISTAKES.search(heading)) and not _OF_BOTH.search(heading)


def pretty(document: Document) -> str:
    """JSON text as it is written to disk: one field a line and a final newline."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# ---- the common format


def _from_common(file: _CommonFile, source: str) -> BankFile:
    """Convert a common file. The metadata hold the skills' categories, for ``native_to_common``, and ignored keys."""
    ignored = set(file.model_extra or {})

    def items(kind: str, place: str, entries: list[object]) -> list[Any]:
        read = [_common_item(kind, entry, f"{source}: {place}[{n}]") for n, entry in enumerate(entries)]
        ignored.update(f"{place}[].{key}" for _, left in read for key in left)
        return [item for item, _ in read]

    skills = items("skill", "general_skills", file.general_skills)
    specific = {
        category: items("skill", f"task_specific_skills.{category}", entries)
        for category, entries in file.task_specific_skills.items()
    }
    mistakes = items("mistake", "common_mistakes", file.common_mistakes)
    metadata = dict(file.metadata)
    # ``ignored_keys`` comes last, so that a file which is read and written again stays the same.
    before = metadata.pop("ignored_keys", None)
    if specific:
        metadata["task_specific_skills"] = {name: [skill.id for skill in own] for name, own in specific.items()}
    if ignored or before is not None:
        metadata["ignored_keys"] = sorted(ignored) if ignored else before
    skills += [skill for own in specific.values() for skill in own]
    return BankFile.model_construct(name=file.name, metadata=metadata, skills=skills, mistakes=mistakes)


def _common_item(kind: str, entry: object, where: str) -> tuple[Item, Document]:
    """An item of a common file, and its unknown keys. A bare string, or a title without a text, is the text. Null and
    empty fields count as missing."""
    names = _NAMES[kind]
    if not isinstance(entry, str | dict):
        return validated(_ITEMS[kind], entry, where, BankError), {}  # which raises BankError
    values = {"text": entry} if isinstance(entry, str) else cast(Document, entry)
    left = {key: value for key, value in values.items() if value is not None and value != ""}
    found: Document = {"origin": left.pop("origin", "seed"), "parents": left.pop("parents", [])}

    for field in ("text", *names):  # text first: a name that it does not use may be the title
        name = next((name for name in names[field] if name in left), None)
        if name is not None and field not in found:
            found[field] = left.pop(name)
    if "text" not in found:
        raise BankError(f"{where}.{names['text'][0]} is missing")
    if isinstance(id := found.get("id"), int) and not isinstance(id, bool):
        found["id"] = str(id)
    return validated(_ITEMS[kind], found, where, BankError), left


def _from_playbook(file: _Playbook, source: str) -> BankFile:
    """Convert a playbook. Sections become titles; bullets under a section that ``lists_mistakes`` are mistakes."""
    skills, mistakes = list[Document](), list[Document]()
    for id, one in file.bullets.items():
        items = mistakes if lists_mistakes(one.section) else skills
        items.append({"id": id, "title": one.section, "text": one.content})
    return validated(_NATIVE, {"skills": skills, "mistakes": mistakes}, source, BankError)


def native_to_common(document: Document) -> Document:
    """Convert a native document to the common format.

    ``origin`` (unless ``seed``) and ``parents`` (unless empty) become extra keys of an item, which other readers of the
    common format ignore. Only the order between general and task-specific skills is lost.
    """
    metadata = dict(cast(Document, document.get("metadata", {})))
    categories = _categories(metadata.get("task_specific_skills"))
    if categories:
        del metadata["task_specific_skills"]
    skills = [_common_entry("skill", item) for item in cast(list[Document], document["skills"])]
    by_id = {skill["skill_id"]: skill for skill in skills}
    placed = {member for members in categories.values() for member in members}
    common: Document = {"name": document["name"]} if document.get("name") else {}
    common["general_skills"] = [skill for skill in skills if skill["skill_id"] not in placed]
    if categories:
        common["task_specific_skills"] = {
            category: [by_id[member] for member in members if member in by_id]
            for category, members in categories.items()
        }
    common["common_mistakes"] = [_common_entry("mistake", item) for item in cast(list[Document], document["mistakes"])]
    if metadata:
        common["metadata"] = metadata
    return common


def _common_entry(kind: str, item: Document) -> Document:
    names = {field: names[0] for field, names in _NAMES[kind].items()}
    if kind == "mistake" and not item.get("title"):
        names["text"] = names["title"]
    written: Document = {name: item[field] for field, name in names.items() if item.get(field)}
    if item.get("origin", "seed") != "seed":
        written["origin"] = item["origin"]
    if item.get("parents"):
        written["parents"] = item["parents"]
    return written


def _categories(value: object) -> dict[str, list[str]]:
    """``metadata["task_specific_skills"]`` if it has the shape that ``_from_common`` writes, else an empty dict."""
    try:
        return _CATEGORIES.validate_python(value, strict=True)
    except ValidationError:
        return {}
