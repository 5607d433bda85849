"""The skill bank: skills and mistakes as one frozen value with a digest.

A bank is never changed in place: ``with_items`` and ``without`` return new ones, so a bank, its ``digest`` and the diff
between two of them can be kept with every run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

from sgsd import runfolder
from sgsd.bank import formats
from sgsd.bank.checks import Finding, check_items
from sgsd.bank.items import Item, Mistake, Origin, Skill, canonical, item_document, refuse_control_characters
from sgsd.errors import BankError
from sgsd.validation import nearest

SEED_PREFIX = "seed:"


@dataclass(frozen=True, slots=True)
class BankDiff:
    """The difference between two banks; ``changed`` holds (old, new) pairs of items that share an id."""

    added: tuple[Item, ...]
    removed: tuple[Item, ...]
    changed: tuple[tuple[Item, Item], ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        lines = [f"+ {item.id}  {item.title or item.text}" for item in self.added]
        lines += [f"- {item.id}  {item.title or item.text}" for item in self.removed]
        lines += [f"~ {new.id}  {new.title or new.text}" for _, new in self.changed]
        return "\n".join(lines)


@dataclass(frozen=True)
class SkillBank:
    """Skills and mistakes, in bank order.

    Attributes:
        skills: the general skills g.
        mistakes: the common mistakes e.
        name: a label; not part of the digest.
        metadata: JSON values stored with the bank, such as sources and counts; not part of the digest.

    Raises:
        BankError: two items share an id, or the metadata is not JSON.
    """

    skills: tuple[Skill, ...] = ()
    mistakes: tuple[Mistake, ...] = ()
    name: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict[str, object], hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "skills", tuple(self.skills))
        object.__setattr__(self, "mistakes", tuple(self.mistakes))
        seen: set[str] = set()
        for item in self.items:
            if item.id in seen:
                raise BankError(
                    "two items of a bank share an id",
                    got=repr(item.id),
                    expected="one id per item, skills and mistakes together",
                    remedy="rename one of them, or leave the ids out to have them derived from the content",
                )
            seen.add(item.id)
        refuse_control_characters(self.name, "the bank's name")
        try:
            # Key order is kept: it is the order in which task-specific skills are written back.
            text = json.dumps(dict(self.metadata), ensure_ascii=False, allow_nan=False)
            text.encode()
        except (TypeError, ValueError) as error:
            raise BankError("the bank's metadata is not JSON", got=str(error), expected="JSON values") from error
        object.__setattr__(self, "metadata", MappingProxyType(cast(dict[str, object], json.loads(text))))

    def __reduce__(self) -> tuple[type[SkillBank], tuple[object, ...]]:
        # A mapping proxy can be neither pickled nor copied.
        return SkillBank, (self.skills, self.mistakes, self.name, dict(self.metadata))

    @property
    def items(self) -> tuple[Item, ...]:
        """All skills, then all mistakes."""
        return (*self.skills, *self.mistakes)

    @property
    def static(self) -> SkillBank:
        """The bank without its online items."""
        return self._only(lambda item: item.origin is not Origin.ONLINE)

    @property
    def dynamic(self) -> SkillBank:
        """The bank with its online items alone, which maintenance may change."""
        return self._only(lambda item: item.origin is Origin.ONLINE)

    @property
    def max_pairs(self) -> int:
        """The largest K this bank can serve: the length of its shorter list."""
        return min(len(self.skills), len(self.mistakes))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) over all items in bank order: equal for files that differ in spacing or key order."""
        document = self._document()
        content = {name: document[name] for name in ("skills", "mistakes")}
        return hashlib.sha256(canonical(content).encode()).hexdigest()

    def get(self, id: str) -> Item:
        """The item with this id; raises ``BankError`` with similar ids if there is none."""
        for item in self.items:
            if item.id == id:
                return item
        raise self._unknown(id)

    def with_items(self, items: Iterable[Item]) -> SkillBank:
        """A new bank with these items appended to their lists; items that the bank has already are skipped.

        Raises:
            BankError: the bank has a different item with the same id.
        """
        present: dict[str, Item] = {item.id: item for item in self.items}
        skills, mistakes = list(self.skills), list(self.mistakes)
        for item in items:
            old = present.get(item.id)
            if old == item:
                continue
            if old is not None:
                raise BankError(
                    "two different items share an id",
                    got=f"{item.id!r} for {item.text[:40]!r}",
                    expected=f"{old.text[:40]!r}",
                    remedy="give the new item its own id",
                )
            present[item.id] = item
            if isinstance(item, Skill):
                skills.append(item)
            else:
                mistakes.append(item)
        return replace(self, skills=tuple(skills), mistakes=tuple(mistakes))

    def without(self, ids: Iterable[str]) -> SkillBank:
        """A new bank without these items; raises ``BankError`` for an unknown id."""
        gone = {ids} if isinstance(ids, str) else set(ids)
        for missing in sorted(gone - {item.id for item in self.items}):
            raise self._unknown(missing)
        return self._only(lambda item: item.id not in gone)

    def require_pairs(self) -> None:
        """Raise ``BankError`` unless the bank has a skill and a mistake; a teacher needs one of each."""
        for items, name in ((self.skills, "skills"), (self.mistakes, "mistakes")):
            if not items:
                raise BankError(
                    f"bank {self.name!r} has no {name}",
                    got=f"{len(self.skills)} skills and {len(self.mistakes)} mistakes",
                    expected="at least one of each",
                    remedy=f"add {name}, or start from a shipped bank such as {SEED_PREFIX}{seed_banks()[0]}",
                )

    def check(self) -> tuple[Finding, ...]:
        """Warnings about the content of the bank; see ``checks.check_items``."""
        return check_items(self.skills, self.mistakes, rules="document" in self.metadata)

    def diff(self, other: SkillBank) -> BankDiff:
        """The difference from this bank to ``other``."""
        mine: dict[str, Item] = {item.id: item for item in self.items}
        theirs: dict[str, Item] = {item.id: item for item in other.items}
        return BankDiff(
            added=tuple(item for item in other.items if item.id not in mine),
            removed=tuple(item for item in self.items if item.id not in theirs),
            changed=tuple((mine[i], theirs[i]) for i in mine if i in theirs and mine[i] != theirs[i]),
        )

    def to_json(self) -> str:
        """The bank as native JSON text: one field a line, items in bank order."""
        return formats.pretty(self._document())

    def to_common_json(self) -> str:
        """The bank in the common ``general_skills`` / ``common_mistakes`` format; see ``formats.native_to_common``."""
        return formats.pretty(formats.native_to_common(self._document()))

    @classmethod
    def from_json(cls, text: str, *, source: str = "bank") -> SkillBank:
        """The bank in a JSON text.

        Args:
            text: JSON in any format of ``formats.read``.
            source: the name of the text in error messages.

        Raises:
            BankError: as ``formats.read``, or two different items share an id.
        """
        file = formats.read(text, source)
        return SkillBank(name=file.name, metadata=file.metadata).with_items(file.items)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SkillBank:
        """Read a bank file, or a shipped bank as ``seed:<name>`` (see ``seed_banks``).

        A bank without skills or without mistakes loads; ``require_pairs`` refuses it.

        Raises:
            BankError: the file cannot be read, or as ``from_json``.
        """
        source = os.fspath(path)
        if source.startswith(SEED_PREFIX):
            return cls.from_json(_seed_text(source.removeprefix(SEED_PREFIX)), source=source)
        if not os.path.exists(source):
            seeds = ", ".join(SEED_PREFIX + name for name in seed_banks())
            raise BankError("no such bank file", got=repr(source), expected=f"a JSON file or one of {seeds}")
        return cls.from_json(runfolder.read_text(Path(source), BankError), source=source)

    def save(self, path: str | os.PathLike[str], *, format: Literal["native", "common"] = "native") -> Path:
        """Write the bank, atomically: readers see the old file or the new one, never a part.

        Args:
            path: the destination; missing folders are created, a symbolic link is replaced.
            format: ``native``, or ``common`` for the ``general_skills`` format.

        Returns:
            The path written.

        Raises:
            BankError: the path is a ``seed:`` name or cannot be written.
        """
        source = os.fspath(path)
        if source.startswith(SEED_PREFIX):
            raise BankError("shipped banks are read-only", got=source, expected="a file path")
        if format not in ("native", "common"):
            raise BankError("unknown bank format", got=repr(format), expected="'native' or 'common'")
        text = self.to_json() if format == "native" else self.to_common_json()
        try:
            runfolder.write_text(Path(source), text)
        except OSError as error:
            raise BankError("bank file cannot be written", got=f"{source} ({error.strerror})") from error
        return Path(source)

    def _only(self, keep: Callable[[Item], bool]) -> SkillBank:
        return replace(self, skills=tuple(filter(keep, self.skills)), mistakes=tuple(filter(keep, self.mistakes)))

    def _document(self) -> formats.Document:
        return {
            "schema_version": formats.SCHEMA_VERSION,
            "name": self.name,
            "metadata": dict(self.metadata),
            "skills": [item_document(skill) for skill in self.skills],
            "mistakes": [item_document(mistake) for mistake in self.mistakes],
        }

    def _unknown(self, id: str) -> BankError:
        known = [item.id for item in self.items]
        return BankError("no such item in the bank", got=repr(id), expected=nearest(id, known) if known else None)


def seed_banks() -> tuple[str, ...]:
    """The names of the shipped banks, sorted; load one with ``SkillBank.load("seed:<name>")``."""
    folder = resources.files("sgsd.bank") / "seeds"
    return tuple(sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")))


def _seed_text(name: str) -> str:
    names = seed_banks()
    if name not in names:
        raise BankError("no such shipped bank", got=repr(name), expected=nearest(name, names))
    return (resources.files("sgsd.bank") / "seeds" / f"{name}.json").read_text(encoding="utf-8")
