"""The versions of a bank file: an append-only log beside it, from which each of them can be rebuilt.

``bank.json`` has ``bank.log.jsonl``, a line a version. A line holds what the version changed: new items whole, the ids
of those that went, the order where it is not that of appending; name and metadata always. So the log alone gives every
version back, to the last byte of its file.

A write goes in three steps: the new file under another name (``.bank.json.next``), the line, the new file in place of
the old one. Each step is on the disk before the next begins. Whoever opens the bank next ends or takes back what was
cut off: with the line whole the version stands, without it there is none. A lock on the log keeps writers apart.

A bank file that is not what its last line says was changed by another hand: the next write first records what it found,
as the version ``edit``.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import cast

from sgsd.bank import formats
from sgsd.bank.skills import SEED_PREFIX, Item, Skill, SkillBank
from sgsd.errors import BankError

_log = logging.getLogger(__name__)

EDIT = "edit"
ROLLBACK = "rollback"
_FIELDS = ("version", "time", "action", "message", "before", "after", "removed", "added", "order")


@dataclass(frozen=True, slots=True)
class Version:
    """One line of the log.

    Attributes:
        version: its number, from 1.
        time: when it was written, ISO 8601 in UTC.
        action: what made it, in a word: ``import``, ``merge``, ``online``, ``edit``, ``rollback`` …
        message: one line for people, may be empty.
        before, after: digests of the bank; ``before`` is ``None`` for the first.
        removed: ids that went, or whose item is another now.
        added: the new items, under the bank's new name and metadata.
        order: all ids in bank order, where the new items do not simply follow the old ones.
    """

    version: int
    time: str
    action: str
    message: str
    before: str | None
    after: str
    removed: tuple[str, ...]
    added: SkillBank
    order: tuple[str, ...] | None

    def follow(self, bank: SkillBank, *, verify: bool = True) -> SkillBank:
        """The bank of this version, from the one before.

        Args:
            bank: of the version before.
            verify: compare digests; they take most of the time.

        Raises:
            BankError: they do not fit together.
        """
        items = [*bank.without(self.removed).items, *self.added.items]
        if self.order is not None:
            by_id = {item.id: item for item in items}
            if by_id.keys() != set(self.order):
                raise BankError("the order does not name the items")
            items = [by_id[id] for id in self.order]
        made = _bank_of(items, self.added)
        if verify and made.digest != self.after:
            raise BankError("another bank comes of it", got=made.digest[:12], expected=self.after[:12])
        return made

    def to_line(self) -> str:
        """The version as one line of JSON, with the line's end."""
        document = {name: getattr(self, name) for name in _FIELDS if name != "added"}
        document["added"] = json.loads(self.added.to_json())
        return json.dumps({name: document[name] for name in _FIELDS}, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str, where: str) -> Version:
        """Read what ``to_line`` wrote; ``BankError`` naming ``where`` if that is not what it is."""
        values = formats.parse(line, where)
        formats.refuse_unknown_keys(values, _FIELDS, where)
        texts = [values.get(name) for name in ("time", "action", "message", "after")]
        number, before = values.get("version"), values.get("before")
        removed = formats.as_list(values.get("removed"), where)
        order = None if values.get("order") is None else formats.as_list(values["order"], where)
        fits = (
            isinstance(number, int)
            and all(isinstance(text, str) for text in (*texts, *removed, *(order or ())))
            and (before is None or isinstance(before, str))
        )
        if not fits:
            raise BankError(f"{where}: not a version of a bank", expected=", ".join(_FIELDS))
        time, action, message, after = cast("list[str]", texts)
        added = SkillBank.from_json(json.dumps(formats.as_object(values.get("added"), where)), source=where)
        return cls(
            cast(int, number),
            time,
            action,
            message,
            cast("str | None", before),
            after,
            tuple(cast("list[str]", removed)),
            added,
            None if order is None else tuple(cast("list[str]", order)),
        )


@dataclass(frozen=True)
class History:
    """The versions of a bank file, oldest first.

    Attributes:
        file: the bank.
        versions: of its log; number n is at place n − 1.
    """

    file: Path
    versions: tuple[Version, ...] = ()

    @cached_property
    def banks(self) -> tuple[SkillBank, ...]:
        """The bank of each version.

        Raises:
            BankError: a line does not follow from the one before.
        """
        return tuple(self._replay(len(self.versions), verify=True))

    @cached_property
    def last(self) -> SkillBank | None:
        """The bank of the last version, if there is one; ``BankError`` as ``banks``."""
        return self.at(len(self.versions)) if self.versions else None

    def at(self, version: int) -> SkillBank:
        """The bank of a version; ``BankError`` if there is no such version, or as ``banks``."""
        if not 1 <= version <= len(self.versions):
            count = len(self.versions)
            raise BankError(
                "no such version of the bank",
                got=f"{self.file}@{version}",
                expected=f"1 to {count}" if count else f"a bank with a log, {log_file(self.file).name}",
            )
        try:
            return self._replay(version, verify=False)[-1]
        except BankError:
            self._replay(version, verify=True)  # finds the first line that is wrong
            raise

    def _replay(self, until: int, *, verify: bool) -> list[SkillBank]:
        """The banks of the first versions; the last one is compared with its digest always, the others on demand."""
        banks: list[SkillBank] = []
        for version in self.versions[:until]:
            with formats.located(_line(self.file, version.version)):
                before = banks[-1] if banks else SkillBank()
                banks.append(version.follow(before, verify=verify or version.version == until))
        return banks


def log_file(file: str | os.PathLike[str]) -> Path:
    """The log of a bank file: ``bank.json`` → ``bank.log.jsonl``, beside it."""
    path = Path(file)
    return path.with_name(f"{path.stem}.log.jsonl")


def read(file: str | os.PathLike[str]) -> History:
    """The versions of a bank file; none where it has no log. What a crash has left half done is put in order first.

    Raises:
        BankError: the log is damaged, or cannot be read.
    """
    target = _target(file)
    if not log_file(target).exists():
        return History(target)
    with _opened(target, create=False) as log:
        return _recover(target, log)


def load(source: str | os.PathLike[str]) -> SkillBank:
    """The bank of a file, of a shipped one (``seed:NAME``), or of version N of a file (``FILE@N``).

    Raises:
        BankError: there is none, or it cannot be read.
    """
    name = os.fspath(source)
    file, number = split_version(name)
    if number is not None:
        return read(file).at(number)
    if not name.startswith(SEED_PREFIX) and _next_file(_target(name)).exists():
        read(name)  # a write was cut off, or is under way
    return SkillBank.load(name)


def split_version(source: str) -> tuple[str, int | None]:
    """``FILE@3`` → ``FILE`` and 3; anything else, also a file whose very name ends so, → itself and ``None``."""
    file, at, number = source.rpartition("@")
    if not at or not (number.isascii() and number.isdecimal()) or source.startswith(SEED_PREFIX):
        return source, None
    return (source, None) if Path(source).exists() else (file, int(number))


def save(file: str | os.PathLike[str], bank: SkillBank, *, action: str, message: str = "", time: datetime) -> int:
    """Write a bank, in the native format, as the next version of a file.

    A bank that is the last version already, name and metadata included, makes no new one.

    Args:
        file: the bank file; missing folders are made.
        bank: its new content.
        action: what made it, in a word: ``import``, ``merge``, ``online``, ``rollback`` …
        message: one line for people.
        time: now, with a time zone.

    Returns:
        The number of the version.

    Raises:
        BankError: the file cannot be written, or holds something that is no bank: nothing is changed then.
        ValueError: ``action`` is not one word, or ``time`` has no time zone.
    """
    target = _target(file)
    if not action.isidentifier() or time.tzinfo is None:
        raise ValueError(f"action must be a word and time have a time zone: got {action!r}, {time!r}")
    formats.refuse_control_characters(message, "the version's message")
    written = time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    with _located_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    if not log_file(target).exists():
        _load_if_there(target)  # what is no bank gets no log
    with _opened(target, create=True) as log:
        history = _recover(target, log)
        state, found = history.last, _load_if_there(target)
        new: list[Version] = []
        if found is not None and not _same(found, state) and not (state is None and _same(found, bank)):
            why = "as found" if state is None else "changed outside"
            new.append(_version(len(history.versions) + 1, state, found, action=EDIT, message=why, time=written))
            state = found
        number = len(history.versions) + len(new) + 1
        if found is None or not _same(bank, state):
            new.append(_version(number, state, bank, action=action, message=message, time=written))
            number += 1
        if new:
            _commit(target, log, bank, "".join(version.to_line() for version in new))
        return number - 1


def rollback(file: str | os.PathLike[str], version: int, *, message: str = "", time: datetime) -> int:
    """Write a version's content as the next version: nothing is lost, and the rollback can be rolled back.

    Returns:
        The number of the new version; that of the last one, where its content is the same.

    Raises:
        BankError, ValueError: there is no such version, or as ``save``.
    """
    bank = read(file).at(version)
    return save(file, bank, action=ROLLBACK, message=message or f"to version {version}", time=time)


def changed_outside(history: History) -> bool:
    """Whether the file holds something else than its last version.

    Raises:
        BankError: the file cannot be read.
    """
    return history.file.exists() and history.last is not None and not _same(SkillBank.load(history.file), history.last)


def _load_if_there(file: Path) -> SkillBank | None:
    return SkillBank.load(file) if file.exists() else None


def _same(bank: SkillBank, other: SkillBank | None) -> bool:
    """Whether two banks are the same to the last byte of their files."""
    # Values alone do not tell the order of keys, nor 1 from 1.0.
    return other is not None and bank == other and _written(bank.metadata) == _written(other.metadata)


def _written(metadata: Mapping[str, object]) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False)


def _version(
    number: int, before: SkillBank | None, after: SkillBank, *, action: str, message: str, time: str
) -> Version:
    old = before or SkillBank()
    diff = old.diff(after)
    new = {item.id for item in (*diff.added, *(item for _, item in diff.changed))}
    removed = (*(item.id for item in diff.removed), *(item.id for item, _ in diff.changed))
    added = _bank_of([item for item in after.items if item.id in new], after)
    followed = _bank_of([*old.without(removed).items, *added.items], after)
    order = tuple(item.id for item in after.items)
    return Version(
        number,
        time,
        action,
        message,
        None if before is None else before.digest,
        after.digest,
        removed,
        added,
        None if tuple(item.id for item in followed.items) == order else order,
    )


def _bank_of(items: Sequence[Item], like: SkillBank) -> SkillBank:
    """These items, under another bank's name and metadata."""
    skills = tuple(item for item in items if isinstance(item, Skill))
    mistakes = tuple(item for item in items if not isinstance(item, Skill))
    return replace(like, skills=skills, mistakes=mistakes)


# ---- files


def _target(file: str | os.PathLike[str]) -> Path:
    name = os.fspath(file)
    if name.startswith(SEED_PREFIX):
        raise BankError("shipped banks are read-only and have no versions", got=name, expected="a file path")
    return Path(os.path.realpath(name))


def _next_file(target: Path) -> Path:
    return target.with_name(f".{target.name}.next")


def _line(file: Path, number: int) -> str:
    return f"{log_file(file)}: line {number}"


@contextmanager
def _located_os_errors(target: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise BankError("bank file cannot be written", got=f"{target} ({error.strerror})") from error


@contextmanager
def _opened(target: Path, *, create: bool) -> Generator[int, None, None]:
    """The log as a file descriptor, locked: nobody else reads or writes it so meanwhile."""
    log = log_file(target)
    flags = os.O_RDWR | os.O_CREAT if create else os.O_RDWR if os.access(log, os.W_OK) else os.O_RDONLY
    try:
        descriptor = os.open(log, flags, 0o666)
    except OSError as error:
        raise BankError("the bank's log cannot be opened", got=f"{log} ({error.strerror})") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _recover(target: Path, log: int) -> History:
    """Read the log; end or take back what was cut off."""
    with _located_os_errors(target):
        content = log_file(target).read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            _log.warning("%s: the last line was cut off and is dropped", log_file(target))
            os.ftruncate(log, len(whole))
            os.fsync(log)
    try:
        # Not splitlines: an item may hold the characters that only Unicode takes for the end of a line.
        lines = whole.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise BankError("the bank's log is not UTF-8", got=str(log_file(target))) from error
    versions = tuple(Version.from_line(line, _line(target, n)) for n, line in enumerate(lines, 1))
    for place, version in enumerate(versions, 1):
        if version.version != place:
            raise BankError(f"{_line(target, place)}: a version is missing", got=version.version, expected=place)
    history = History(target, versions)
    waiting = _next_file(target)
    if waiting.exists():
        with _located_os_errors(target):
            if waiting.read_bytes() == _bytes(history.last) and _is_due(history):
                os.replace(waiting, target)
                _sync_folder(target)
            else:
                waiting.unlink()
    return history


def _is_due(history: History) -> bool:
    """Whether the bank file is still the version before the last, and nothing that another hand wrote since."""
    try:
        found = _load_if_there(history.file)
    except BankError:
        return False
    return found is None or any(_same(found, bank) for bank in history.banks[-2:])


def _bytes(bank: SkillBank | None) -> bytes | None:
    return None if bank is None else bank.to_json().encode()


def _commit(target: Path, log: int, bank: SkillBank, lines: str) -> None:
    """The new file aside, the lines, the new file in place; without the lines nothing has happened."""
    waiting = _next_file(target)
    size = os.fstat(log).st_size
    with _located_os_errors(target):
        try:
            with open(waiting, "wb") as file:
                file.write(bank.to_json().encode())
                file.flush()
                os.fsync(file.fileno())
            _append(log, size, lines.encode())
        except OSError:
            os.ftruncate(log, size)
            waiting.unlink(missing_ok=True)
            raise
        os.replace(waiting, target)
        _sync_folder(target)


def _append(log: int, size: int, content: bytes) -> None:
    while content:
        written = os.pwrite(log, content, size)
        size, content = size + written, content[written:]
    os.fsync(log)


def _sync_folder(target: Path) -> None:
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
