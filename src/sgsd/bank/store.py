"""What a build has made so far, in one SQLite file of its folder.

Work is done in chunks. A chunk's rows and how far its stage is now are one transaction: after a kill or on a full disk
a chunk is there as a whole or not at all. Answers of the writer are kept by a digest of their request as they come.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from sgsd import runfolder
from sgsd.bank.writing import Writer, WriteRequest, WritingStoppedError, Written
from sgsd.errors import BankError, ConfigError
from sgsd.validation import parse_any_json, parse_json, validated

T = TypeVar("T")
STORE = "build.sqlite"
VERSION = 2
_TABLES = (
    "CREATE TABLE rows (name TEXT, number INTEGER, value TEXT NOT NULL, PRIMARY KEY (name, number)) WITHOUT ROWID",
    "CREATE TABLE answers (request TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE documents (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is."""

    done: int  # inputs that are finished
    total: int
    seconds: float = 0.0  # so far, without what was lost
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    details: Mapping[str, object] = field(default_factory=dict[str, object])  # whatever else it says of itself

    @property
    def finished(self) -> bool:
        return self.done >= self.total


_ANSWER = TypeAdapter(tuple[str, Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]])
_PROGRESS = TypeAdapter(Progress)
_SETTINGS = TypeAdapter(dict[str, dict[str, object]])
_SPENT = TypeAdapter(Annotated[int, Field(ge=0)])


class Store:
    """An opened store; make one with ``open_store``. What is damaged in it is a ``BankError``."""

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self.folder = file.parent
        self._file = file
        self._connection = connection

    def progress(self, stage: str) -> Progress | None:
        """How far a stage is; ``None`` where it has not begun."""
        return self.document(f"stage {stage}", _PROGRESS)

    def finished(self, stage: str) -> bool:
        """Whether the stage is done."""
        progress = self.progress(stage)
        return progress is not None and progress.finished

    def rows(self, name: str, start: int = 0, end: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows of this name from ``start`` to before ``end``, in the order in which they came."""
        query = "SELECT CAST(value AS BLOB) FROM rows WHERE name = ? AND number >= ? AND number < ? ORDER BY number"
        last = self._count(name) if end is None else end
        with refused_writes(self._file):
            for number, (value,) in enumerate(self._execute(query, name, start, last), start):
                yield parse_json(value or "", f"{self._file}: row {number} of {name}", BankError)

    def document(self, name: str, schema: TypeAdapter[T]) -> T | None:
        """The document of this name, as the schema's type; ``None`` where there is none."""
        row = self._execute("SELECT CAST(value AS BLOB) FROM documents WHERE name = ?", name).fetchone()
        where = f"{self._file}: {name}"
        return row and validated(schema, parse_any_json(row[0] or "", where, BankError), where, BankError)

    def commit(
        self,
        stage: str,
        progress: Progress,
        rows: Mapping[str, Iterable[Mapping[str, object]]],
        documents: Mapping[str, object] | None = None,
    ) -> None:
        """Keep a chunk: its rows by name, its documents and the stage's progress, or nothing of it.

        Raises:
            BankError: the disk is full, or the file cannot be written.
        """
        with self._transaction():
            for name, own in rows.items():
                numbered = ((name, number, _json(row)) for number, row in enumerate(own, self._count(name)))
                self._connection.executemany("INSERT INTO rows VALUES (?, ?, ?)", numbered)
            for name, document in {**(documents or {}), f"stage {stage}": asdict(progress)}.items():
                self._put(name, document)

    def hold(self, settings: Mapping[str, Mapping[str, object]], config: Mapping[str, object]) -> None:
        """Go on under these settings, by stage, of those that its results depend on; ``config`` is kept beside them.

        Raises:
            ConfigError: a stage that has begun had others; names the first that differs.
        """
        before = self.document("settings", _SETTINGS) or {}
        now: dict[str, dict[str, object]] = json.loads(json.dumps(settings))
        for stage in now:
            old = before.get(stage, {}) if self.progress(stage) is not None else now[stage]
            for name in sorted({*old, *now[stage]}):
                if old.get(name) != now[stage].get(name):
                    raise ConfigError(
                        f"{self.folder} holds results of stage {stage} with another {name}",
                        got=_shown(now[stage].get(name)),
                        expected=f"{_shown(old.get(name))}, as there",
                        remedy="put it back, or choose another --output",
                    )
        with self._transaction():
            self._put("settings", now)
            self._put("config", config)

    def answer(self, request: WriteRequest) -> Written | None:
        """The answer that is kept for a request, if any; what is none is asked for again."""
        query = "SELECT CAST(value AS BLOB) FROM answers WHERE request = ?"
        row = self._execute(query, _digest(request)).fetchone()
        try:
            text, read, wrote = _ANSWER.validate_json(row[0] if row else "", strict=True)
        except ValidationError:
            return None
        return Written(request.key, text, None, read, wrote)

    def keep(self, requests: Sequence[WriteRequest], answers: Sequence[Written]) -> None:
        """Keep the texts among the answers, all or none; an error is no answer. All count as spent."""
        with self._transaction():
            for request, written in zip(requests, answers, strict=False):
                if written.text is not None:
                    value = json.dumps([written.text, written.prompt_tokens, written.completion_tokens])
                    self._execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", _digest(request), value)
            self._put("spent", self.spent + sum(own.prompt_tokens + own.completion_tokens for own in answers))

    @property
    def spent(self) -> int:
        """Tokens that the writer has read and written, those of lost chunks among them."""
        return self.document("spent", _SPENT) or 0

    def _count(self, name: str) -> int:
        return self._execute("SELECT count(*) FROM rows WHERE name = ?", name).fetchone()[0]

    def _put(self, name: str, document: object) -> None:
        self._execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", name, _json(document))

    def _execute(self, query: str, *values: object) -> sqlite3.Cursor:
        with refused_writes(self._file):
            return self._connection.execute(query, values)

    @contextmanager
    def _transaction(self) -> Generator[None]:
        with refused_writes(self._file), self._connection:  # which commits, or rolls back
            self._connection.execute("BEGIN")
            yield


@contextmanager
def open_store(folder: Path, results: Iterable[str] = ()) -> Generator[Store]:
    """Make or open a folder's store. It is this process's alone until it is closed or the process ends.

    Args:
        folder: the folder of the build; it is made where there is none.
        results: names of files that a folder without a store must not hold.

    Raises:
        BankError: another process works in the folder, it holds something else, or cannot be written.
        ConfigError: a link leads out of it.
    """
    file = folder / STORE
    with refused_writes(file):
        runfolder.refuse_foreign_links(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists() and (there := [name for name in results if (folder / name).exists()]):
            raise BankError(
                "the folder holds results of unknown settings",
                got=str(folder / there[0]),
                expected=f"{STORE} beside it",
                remedy="choose another --output",
            )
        connection = sqlite3.connect(file, timeout=0, isolation_level=None)
    try:
        with refused_writes(file), connection:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise BankError(
                    f"{file}: written by another version of sgsd",
                    got=f"version {version}",
                    expected=VERSION,
                    remedy="go on with that version, or choose another --output",
                )
            if version == 0:
                for table in _TABLES:
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {VERSION}")
        yield Store(file, connection)
    finally:
        connection.close()


class KeepingWriter:
    """A writer whose answers are kept in a store, and not asked for a second time.

    Requests go in groups of fixed size, and a group is kept as a whole: an engine whose rounding depends on the batch
    sees the same batches after an interruption. Only where the writer itself stops within a group is its beginning
    kept. ``progress`` is called with the answers so far and the requests of the call under way.
    """

    def __init__(
        self, writer: Writer, store: Store, group: int, progress: Callable[[int, int], object] | None = None
    ) -> None:
        self.name = writer.name
        self._writer = writer
        self._store = store
        self._group = group
        self._progress = progress

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``."""
        written: list[Written] = []
        for start in range(0, len(requests), self._group):
            asked = requests[start : start + self._group]
            found = [self._store.answer(request) for request in asked]
            answers = iter(self._ask([request for request, own in zip(asked, found, strict=True) if own is None]))
            written += [next(answers) if own is None else own for own in found]
            if self._progress is not None:
                self._progress(len(written), len(requests))
        return written

    def _ask(self, requests: Sequence[WriteRequest]) -> Sequence[Written]:
        if not requests:
            return []
        try:
            answers = self._writer.write(requests)
        except WritingStoppedError as error:
            self._store.keep(requests, error.written)
            raise
        self._store.keep(requests, answers)
        return answers


@contextmanager
def refused_writes(file: Path) -> Generator[None]:
    """Errors of the system and of SQLite while a file is written, in one line.

    Raises:
        BankError: naming the file.
    """
    try:
        yield
    except (OSError, sqlite3.DatabaseError) as error:
        # By kind: SQLITE_FULL is the number of "permission denied".
        code = error.sqlite_errorcode if isinstance(error, sqlite3.DatabaseError) else None
        number = error.errno if isinstance(error, OSError) else None
        what, got, remedy = "cannot be written", f"{file} ({error})", None
        if code == sqlite3.SQLITE_BUSY:
            what, got = "another process builds in this folder", str(file.parent)
            remedy = "wait, or choose another --output"
        elif code == sqlite3.SQLITE_FULL or number in (errno.ENOSPC, errno.EDQUOT):
            what, got = "the disk is full", str(file)
            remedy = "what was finished is kept: make room and run the same command again"
        elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            what, remedy = "the store of a build is damaged", "choose another --output"
        raise BankError(what, got=got, remedy=remedy) from error


def _json(document: object) -> str:
    """As it is read again; half a surrogate pair becomes ?, as in the files that are made of it."""
    return json.dumps(document, ensure_ascii=False).encode(errors="replace").decode()


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _digest(request: WriteRequest) -> str:
    """Everything that decides the answer: equal digests, equal requests."""
    content = [request.messages, request.schema, request.max_tokens, request.seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
