"""The folder of a bank that is being built: append-only files, and a log that says how much of them stands.

Work is done in chunks. A chunk's lines are appended to its files and brought to the disk; then one line of
``progress.jsonl``, a *mark*, says how long the files are now. What lies beyond the last mark was cut off by whatever
ended the process: it is taken away when the folder is opened again, and that chunk is made anew. So a chunk is there
as a whole or not at all, at every moment.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from sgsd import runfolder
from sgsd.bank import formats
from sgsd.errors import BankError, ConfigError, DataError

SCHEMA_VERSION = 1
LOG_FILE = "progress.jsonl"
LOCK_FILE = ".lock"

Notice = Callable[[str], None]
Settings = Mapping[str, Mapping[str, object]]
"""Stage → the settings that its results depend on."""


class Records:
    """A JSONL file that only grows.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes; 0 where there is no file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Write rows and bring them to the disk; without rows, the file is made if it is not there.

        Raises:
            BankError: the disk is full, or the file cannot be written; it is as it was before.
        """
        data = b"".join(map(_line, rows))
        before = self.size
        with writing(self.path), self.path.open("ab", buffering=0) as file:
            try:
                _write_all(file.fileno(), data)
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), before)
                raise

    def rows(self, skip: int = 0) -> Iterator[tuple[str, dict[str, object]]]:
        """(file and line number, values) of each line, but for the first ``skip`` lines.

        Raises:
            DataError: a line is no JSON object.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number > skip:
                    where = f"{self.path.name}:{number}"
                    yield where, self._values(line, where)

    def cut(self, size: int) -> int:
        """Take away what lies beyond ``size`` bytes; returns how many that were."""
        beyond = self.size - size
        if beyond > 0:
            with writing(self.path), self.path.open("rb+") as file:
                file.truncate(size)
                os.fsync(file.fileno())
        return max(beyond, 0)

    def whole(self, lines: int | None = None) -> int:
        """Bytes up to the end of the last line that was written to its end, or of the first ``lines`` of these."""
        size = count = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    if count == lines or not line.endswith(b"\n"):
                        break
                    size += len(line)
                    count += 1
        return size

    def _values(self, line: bytes, where: str) -> dict[str, object]:
        try:
            value: object = json.loads(line)
        except ValueError as error:
            value, cause = None, error
        else:
            cause = None
        if not isinstance(value, dict):
            raise DataError(
                f"{where}: not a JSON object",
                got=repr(line[:40]),
                remedy=f"put the line right, or cut {self.path} before it: what follows is made again",
            ) from cause
        return cast("dict[str, object]", value)


@dataclass(frozen=True, slots=True)
class Mark:
    """One finished chunk.

    Attributes:
        stage: whose.
        done: inputs of the stage that are finished now; 0 in the mark that begins it.
        total: how many there are.
        sizes: the length of each file the stage writes, in bytes.
        counts: the stage's counts so far.
        details: whatever else the stage has to say of itself.
        seconds: the stage's time so far, without what was lost.
    """

    stage: str
    done: int
    total: int
    sizes: Mapping[str, int]
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    seconds: float = 0.0
    details: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def is_last(self) -> bool:
        return self.done >= self.total


@dataclass(frozen=True, slots=True)
class Layout:
    """What a stage leaves in the folder.

    Attributes:
        appended: files that grow by chunks. What lies beyond the last mark is taken away.
        journals: files that grow between marks, too, and are cut at the end of their last whole line alone.
        whole: files that are there once the stage is finished.
    """

    appended: tuple[str, ...] = ()
    journals: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()


class BuildFolder:
    """An opened folder; make one with ``open_folder``."""

    def __init__(self, path: Path, log: Records, settings: dict[str, formats.Document], marks: dict[str, Mark]) -> None:
        self.path = path
        self.settings: Mapping[str, formats.Document] = settings
        """Stage → settings, as last recorded; empty for a new folder."""
        self._log = log
        self._marks = marks

    def records(self, name: str) -> Records:
        """The file of this name."""
        return Records(self.path / name)

    def mark(self, stage: str) -> Mark | None:
        """The stage's latest mark; ``None`` where it has not begun."""
        return self._marks.get(stage)

    def finished(self, stage: str) -> bool:
        """Whether the stage is done."""
        mark = self._marks.get(stage)
        return mark is not None and mark.is_last

    def commit(self, mark: Mark) -> None:
        """Say that a chunk stands; its files must be on the disk."""
        self._log.append([asdict(mark)])
        self._marks[mark.stage] = mark

    def hold(self, settings: Settings, config: Mapping[str, object]) -> None:
        """Go on under these settings. A stage that has begun holds on to its own.

        Args:
            settings: of every stage, as JSON values.
            config: the whole configuration, kept beside them.

        Raises:
            ConfigError: a stage that has begun had others; names the first that differs.
        """
        now = {stage: cast(formats.Document, json.loads(json.dumps(own))) for stage, own in settings.items()}
        for stage, own in now.items():
            if self.mark(stage) is not None:
                _refuse_others(self.path, stage, self.settings.get(stage, {}), own)
        if self.settings != now:
            self._log.append([{"settings": now, "config": config}])
            self.settings = now


@contextmanager
def open_folder(path: Path, layouts: Mapping[str, Layout], *, notice: Notice) -> Generator[BuildFolder, None, None]:
    """Make or open, lock and mend a folder.

    Args:
        path: the folder.
        layouts: stage → what it leaves.
        notice: told, in one line each, what had to be mended.

    Raises:
        BankError: another process works in the folder, it holds something else, is of another version, or cannot be
            written.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        log = Records(path / LOG_FILE)
        if torn := log.cut(log.whole()):
            notice(f"{log.path}: the last {torn} bytes were not written to their end; that chunk is made again")
        if not log.size:
            _refuse_foreign(path, layouts)
            log.append([{"schema_version": SCHEMA_VERSION}])
        settings, marks = _read_log(log, _standing(path, layouts), notice)
        _mend(path, layouts, marks, notice)
        yield BuildFolder(path, log, settings, marks)


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Errors of the system while ``path`` is written, in one line.

    Raises:
        BankError: naming the file.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise BankError(
            "the disk is full" if full else "cannot be written",
            got=f"{path} ({error.strerror})",
            remedy="what was finished is kept: make room and run the same command again" if full else None,
        ) from error


def replace_file(path: Path, text: str) -> None:
    """Write a whole file at once: readers see the old one or the new one.

    Raises:
        BankError: it cannot be written.
    """
    with writing(path):
        runfolder.write_text(path, text)


@contextmanager
def _locked(path: Path) -> Generator[None, None, None]:
    """The lock ends with the process, however that ends."""
    with writing(path / LOCK_FILE):
        file = (path / LOCK_FILE).open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BankError(
                "another process builds in this folder",
                got=str(path),
                remedy="wait for it, or choose another --output",
            ) from error
        yield


def _refuse_foreign(path: Path, layouts: Mapping[str, Layout]) -> None:
    names = [name for layout in layouts.values() for name in (*layout.appended, *layout.journals, *layout.whole)]
    there = [name for name in names if (path / name).exists()]
    if there:
        raise BankError(
            "the folder holds results of unknown settings",
            got=str(path / there[0]),
            expected=f"{LOG_FILE} beside it",
            remedy="choose another --output",
        )


def _standing(path: Path, layouts: Mapping[str, Layout]) -> Callable[[Mark], str | None]:
    """Tells of a mark which file no longer is what it says, if any."""
    sizes = {name: Records(path / name).size for own in layouts.values() for name in (*own.appended, *own.journals)}

    def broken(mark: Mark) -> str | None:
        short = [name for name, size in mark.sizes.items() if sizes.get(name, 0) < size]
        whole = layouts.get(mark.stage, Layout()).whole if mark.is_last else ()
        return next((name for name in (*short, *whole) if name in short or not (path / name).exists()), None)

    return broken


def _read_log(
    log: Records, broken: Callable[[Mark], str | None], notice: Notice
) -> tuple[dict[str, formats.Document], dict[str, Mark]]:
    """The latest settings, and each stage's latest mark. The log is cut before the first mark that is broken."""
    settings: dict[str, formats.Document] = {}
    marks: dict[str, Mark] = {}
    for lines, (where, values) in enumerate(log.rows()):
        if "schema_version" in values:
            if values["schema_version"] != SCHEMA_VERSION:
                raise BankError(
                    f"{log.path}: written by another version of sgsd",
                    got=f"schema_version {values['schema_version']}",
                    expected=SCHEMA_VERSION,
                    remedy="go on with that version, or choose another --output",
                )
        elif "settings" in values:
            stages = formats.as_object(values["settings"], where)
            settings = {stage: formats.as_object(own, where) for stage, own in stages.items()}
        else:
            mark = _read_mark(values, where)
            if name := broken(mark):
                notice(f"{log.path.parent / name} has lost its end: going back to where it stands")
                log.cut(log.whole(lines))
                break
            marks[mark.stage] = mark
    return settings, marks


def _read_mark(values: formats.Document, where: str) -> Mark:
    try:
        return Mark(**cast("dict[str, Any]", values))
    except TypeError as error:
        raise DataError(
            f"{where}: not a mark", got=", ".join(values), expected="stage, done, total, sizes …"
        ) from error


def _mend(path: Path, layouts: Mapping[str, Layout], marks: Mapping[str, Mark], notice: Notice) -> None:
    """Take away what lies beyond the marks. Stages come one after the other: the latest mark has the largest sizes."""
    for name in dict.fromkeys(name for layout in layouts.values() for name in (*layout.appended, *layout.journals)):
        file = Records(path / name)
        is_journal = any(name in layout.journals for layout in layouts.values())
        size = file.whole() if is_journal else max((mark.sizes.get(name, 0) for mark in marks.values()), default=0)
        if beyond := file.cut(size):
            notice(f"{file.path}: {beyond:,} bytes of a chunk that was cut off are taken away; it is made again")


def _refuse_others(path: Path, stage: str, before: formats.Document, now: formats.Document) -> None:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"{path} holds results of stage {stage} with another {name}",
                got=_shown(now.get(name)),
                expected=f"{_shown(before.get(name))}, as there",
                remedy="put it back, or choose another --output",
            )


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _line(row: Mapping[str, object]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair: only an escape can hold it
        return (json.dumps(row) + "\n").encode()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
