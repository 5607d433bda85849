"""Bank files: their schemas, their canonical text, and the common ``general_skills`` format.

Two formats are read. The *native* one holds everything a ``SkillBank`` is. The *common* one is what most public code of
this family exchanges: ``general_skills`` (``skill_id``, ``title``, ``principle``, ``when_to_apply``),
``common_mistakes`` (``mistake_id``, ``description``, ``why_it_happens``, ``how_to_avoid``), ``task_specific_skills`` by
category, ``metadata``. ``skills.py`` turns what is read here into values.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self, TypeAlias, TypeVar, cast

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

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
"""How a rule begins that says what not to do."""
OF_MISTAKES = re.compile(
    r"(?<![a-z/])(?:mistakes|pitfalls?|anti-?patterns?|red flags?|don['’]?ts|what not to do)(?![a-z]|\.\w)|to avoid\W*$"
    r"|^[\W\d_]*(?:common )?mistake(?![a-z])|^\W*(?:never|don['’]?t|do not|avoid|bad|wrong|incorrect)\W*$"
    r"|^\W*?[❌🚫✗✘]|反模式|禁忌|禁止事[项項]|常[见見][错錯][误誤]|アンチパターン|よくある(?:間違い|失敗|ミス)",
    re.IGNORECASE,
)
"""A heading or section below which everything is a mistake."""


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Entry(BaseModel):
    """An item of a file; an id that is missing is derived from the content."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: ClassVar[str]
    id: str | None = None
    title: str = ""
    text: str = ""
    origin: str = "seed"
    parents: list[str] = []

    @property
    def note(self) -> str:
        """A skill's ``when``, a mistake's ``avoid``."""
        return str(vars(self)["when" if self.kind == "skill" else "avoid"])

    @model_validator(mode="after")
    def _identify(self) -> Self:
        own = content_id(self.kind, self.title, self.text, self.note)  # which refuses control characters
        self.id = own if self.id is None else self.id
        return self


class SkillEntry(Entry):
    """A skill of a native file."""

    kind: ClassVar[str] = "skill"
    when: str = ""


class MistakeEntry(Entry):
    """A mistake of a native file."""

    kind: ClassVar[str] = "mistake"
    avoid: str = ""


_Items = TypeVar("_Items", bound=Entry)


class BankFile(BaseModel):
    """A native file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    schema_version: Annotated[int, Field(ge=1)] = SCHEMA_VERSION
    name: str = ""
    metadata: dict[str, object] = {}
    skills: list[SkillEntry] = []
    mistakes: list[MistakeEntry] = []


def _names(*names: str) -> Any:
    return Field("", validation_alias=AliasChoices(*names))


def _tolerant(entry: object, names: tuple[str, ...], fallbacks: tuple[str, ...]) -> object:
    """A bare string is the text, null and empty fields are none, and a title that stands alone is the text."""
    if isinstance(entry, str):
        return {names[0]: entry}
    if not isinstance(entry, dict):
        return entry
    values = {key: value for key, value in cast(Document, entry).items() if value is not None and value != ""}
    if not any(name in values for name in names):
        for name in fallbacks:
            if name in values:
                return {names[0]: values.pop(name), **values}
    return values


class CommonSkill(SkillEntry):
    """A skill of a common file, by the names its fields go by, best first."""

    model_config = ConfigDict(extra="allow", strict=True)
    id: Annotated[str | None, BeforeValidator(_number_as_text)] = Field(
        None, validation_alias=AliasChoices("skill_id", "id")
    )
    title: str = _names("title", "name")
    text: str = Field(validation_alias=AliasChoices("principle", "text", "description"))
    when: str = _names("when_to_apply", "when")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, entry: object) -> object:
        return _tolerant(entry, ("principle", "text", "description"), ("title", "name"))


class CommonMistake(MistakeEntry):
    """A mistake of a common file.

    Its ``description`` is its title where ``why_it_happens`` gives the text, and its text where nothing else does.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    id: Annotated[str | None, BeforeValidator(_number_as_text)] = Field(
        None, validation_alias=AliasChoices("mistake_id", "id")
    )
    title: str = _names("description", "title", "mistake")
    text: str = Field(validation_alias=AliasChoices("why_it_happens", "text", "why"))
    avoid: str = _names("how_to_avoid", "avoid")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, entry: object) -> object:
        return _tolerant(entry, ("why_it_happens", "text", "why"), ("description", "mistake", "title"))


class CommonFile(BaseModel):
    """A common file."""

    model_config = ConfigDict(extra="allow", strict=True)
    name: str = ""
    metadata: dict[str, object] = {}
    general_skills: list[CommonSkill] = []
    task_specific_skills: dict[str, list[CommonSkill]] = {}
    common_mistakes: list[CommonMistake] = []

    def native(self) -> BankFile:
        """The file as a native one.

        Task-specific skills become skills like any other; their categories are kept in
        ``metadata["task_specific_skills"]``, so that ``native_to_common`` puts them back. Keys that mean nothing here
        are not carried, and are listed in ``metadata["ignored_keys"]``.
        """
        lists: dict[str, list[Any]] = {"general_skills": self.general_skills, "common_mistakes": self.common_mistakes}
        lists |= {f"task_specific_skills.{category}": own for category, own in self.task_specific_skills.items()}
        ignored = {f"{where}[].{key}" for where, entries in lists.items() for one in entries for key in one.model_extra}
        ignored |= set(self.model_extra or {})
        metadata = dict(self.metadata)
        # Last, also where an earlier reading put it: a file written and read again is the same to the last byte.
        before = {name: metadata.pop(name) for name in ("ignored_keys",) if name in metadata}
        if self.task_specific_skills:
            metadata["task_specific_skills"] = {
                category: [one.id for one in own] for category, own in self.task_specific_skills.items()
            }
        metadata |= {"ignored_keys": sorted(ignored)} if ignored else before
        skills = [*self.general_skills, *(one for own in self.task_specific_skills.values() for one in own)]
        return BankFile.model_construct(
            name=self.name, metadata=metadata, skills=skills, mistakes=list(self.common_mistakes)
        )


class Bullet(BaseModel):
    """An entry of a playbook, as ACE (arXiv 2510.04618) keeps them, but for its counters."""

    section: str = ""
    content: str


class PlaybookFile(BaseModel):
    """A playbook's file."""

    bullets: dict[str, Bullet]

    def native(self) -> BankFile:
        """The file as a native one; sections become titles, and those of mistakes mistakes."""
        skills, mistakes = list[SkillEntry](), list[MistakeEntry]()
        for id, one in self.bullets.items():
            if OF_MISTAKES.search(one.section):
                mistakes.append(MistakeEntry(id=id, title=one.section, text=one.content))
            else:
                skills.append(SkillEntry(id=id, title=one.section, text=one.content))
        return BankFile(skills=skills, mistakes=mistakes)


_NATIVE, _COMMON, _PLAYBOOK = TypeAdapter(BankFile), TypeAdapter(CommonFile), TypeAdapter(PlaybookFile)
_COMMON_KEYS = ("general_skills", "task_specific_skills", "common_mistakes")
_KEYS = (*BankFile.model_fields, *SkillEntry.model_fields, "avoid")


def read(text: str, source: str) -> BankFile:
    """JSON text of either format → what a bank is made of.

    Args:
        text: the file's.
        source: what to call it in errors.

    Raises:
        BankError: malformed JSON, unknown keys (native), a newer schema version, wrong types, a character that no text
            may hold.
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
        return validated(_COMMON, document, source, BankError).native()
    if version is None and "bullets" in document:
        return validated(_PLAYBOOK, document, source, BankError).native()
    raise BankError(
        f"{source}: not a bank",
        got=f"keys {sorted(document)}",
        expected="'skills' and 'mistakes' (or 'general_skills' and 'common_mistakes')",
    )


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


@contextmanager
def located(where: str) -> Generator[None, None, None]:
    """Put ``where`` before the message of a ``BankError`` raised inside."""
    try:
        yield
    except BankError as error:
        raise BankError(
            f"{where}: {error.what}", got=error.got, expected=error.expected, remedy=error.remedy
        ) from error


def native_to_common(document: Document) -> Document:
    """Native document → common document, the inverse of ``CommonFile.native``.

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
    """``metadata["task_specific_skills"]`` where it has the shape ``CommonFile.native`` writes, else nothing."""
    if not isinstance(value, dict):
        return {}
    categories = cast(Mapping[str, object], value)
    for members in categories.values():
        if not isinstance(members, list) or not all(isinstance(member, str) for member in cast(list[object], members)):
            return {}
    return cast(dict[str, list[str]], categories)
