"""The intermediate results of a bank build, in one SQLite file of its folder.

The rows of a chunk and the progress of its stage are one transaction: after a kill or on a full disk a chunk is stored
as a whole or not at all. Replies of the writer are stored as they arrive, by a digest of their request.
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
from sgsd.bank.writing import Writer, WriteRequest, Written
from sgsd.errors import BankError, ConfigError
from sgsd.validation import parse_any_json, parse_json, short_json, validated

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

    done: int  # number of finished inputs
    total: int
    seconds: float = 0.0  # of the finished chunks
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    details: Mapping[str, object] = field(default_factory=dict[str, object])  # other results of the stage

    @property
    def finished(self) -> bool:
        return self.done >= self.total


_ANSWER = TypeAdapter(tuple[str, Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]])
_PROGRESS = TypeAdapter(Progress)
_SETTINGS = TypeAdapter(dict[str, dict[str, object]])


class Store:
    """An open store, made by ``open_store``. Its methods raise ``BankError`` for damaged content."""

    def __init__(self, file: Path, connection: sqlite3.Connection) -> None:
        self.folder = file.parent
        self._file = file
        self._connection = connection

    def progress(self, stage: str) -> Progress | None:
        """The progress of a stage; ``None`` if it has not begun."""
        return self.document(f"stage {stage}", _PROGRESS)

    def finished(self, stage: str) -> bool:
        """Whether the stage is done."""
        progress = self.progress(stage)
        return progress is not None and progress.finished

    def rows(self, name: str, start: int = 0, end: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows of this name from ``start`` to before ``end``, in the order of insertion."""
        query = "SELECT CAST(value AS BLOB) FROM rows WHERE name = ? AND number >= ? AND number < ? ORDER BY number"
        last = self._count(name) if end is None else end
        with refused_writes(self._file):
            for number, (value,) in enumerate(self._execute(query, name, start, last), start):
                yield parse_json(value or "", f"{self._file}: row {number} of {name}", BankError)

    def document(self, name: str, schema: TypeAdapter[T]) -> T | None:
        """The document of this name, as the schema's type; ``None`` if there is none."""
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
        """Store a chunk in one transaction: its rows by name, its documents and the stage's progress.

        Raises:
            BankError: the disk is full, or the file cannot be written.
        """
        with self._transaction():
            for name, own in rows.items():
                numbered = ((name, number, _json(row)) for number, row in enumerate(own, self._count(name)))
                self._connection.executemany("INSERT INTO rows VALUES (?, ?, ?)", numbered)
            for name, document in {**(documents or {}), f"stage {stage}": asdict(progress)}.items():
                self._put(name, document)

    def check_settings(self, settings: Mapping[str, Mapping[str, object]], config: Mapping[str, object]) -> None:
        """Check the settings that each stage's results depend on, and store them with ``config``.

        Raises:
            ConfigError: a stage has begun with other settings; names the first that differs.
        """
        before = self.document("settings", _SETTINGS) or {}
        now: dict[str, dict[str, object]] = json.loads(json.dumps(settings))
        for stage in now:
            old = before.get(stage, {}) if self.progress(stage) is not None else now[stage]
            for name in sorted({*old, *now[stage]}):
                if old.get(name) != now[stage].get(name):
                    raise ConfigError(
                        f"{self.folder} holds results of stage {stage} with another {name}",
                        got=short_json(now[stage].get(name)),
                        expected=f"{short_json(old.get(name))}, as stored",
                        remedy="restore that value, or choose another --output",
                    )
        with self._transaction():
            self._put("settings", now)
            self._put("config", config)

    def answer(self, request: WriteRequest) -> Written | None:
        """The stored reply to a request; ``None`` if there is none or it is damaged."""
        query = "SELECT CAST(value AS BLOB) FROM answers WHERE request = ?"
        row = self._execute(query, _digest(request)).fetchone()
        try:
            text, read, wrote = _ANSWER.validate_json(row[0] if row else "", strict=True)
        except ValidationError:
            return None
        return Written(request.key, text, None, read, wrote)

    def keep(self, requests: Sequence[WriteRequest], answers: Sequence[Written]) -> None:
        """Store the replies that are texts, in one transaction."""
        with self._transaction():
            for request, written in zip(requests, answers, strict=True):
                if written.text is not None:
                    value = json.dumps([written.text, written.prompt_tokens, written.completion_tokens])
                    self._execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", _digest(request), value)

    def _count(self, name: str) -> int:
        return self._execute("SELECT count(*) FROM rows WHERE name = ?", name).fetchone()[0]

    def _put(self, name: str, document: object) -> None:
        self._execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", name, _json(document))

    def _execute(self, query: str, *values: object) -> sqlite3.Cursor:
        with refused_writes(self._file):
            return self._connection.execute(query, values)

    @contextmanager
    def _transaction(self) -> Generator[None]:
        with refused_writes(self._file), self._connection:  # the connection commits or rolls back
            self._connection.execute("BEGIN")
            yield


@contextmanager
def open_store(folder: Path, results: Iterable[str] = ()) -> Generator[Store]:
    """Open the store of a folder, or create it, and lock it for this process.

    Args:
        folder: the folder of the build; created if missing.
        results: names of files that a folder without a store must not hold.

    Raises:
        BankError: another process has the lock, the folder holds other results, or it cannot be written.
        ConfigError: a symbolic link in the folder leads out of it.
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
                    remedy="use that version, or choose another --output",
                )
            if version == 0:
                for table in _TABLES:
                    connection.execute(table)
                connection.execute(f"PRAGMA user_version = {VERSION}")
        yield Store(file, connection)
    finally:
        connection.close()


class CachingWriter:
    """A writer that stores replies and never sends a request twice.

    Requests go in groups of fixed size. A group is stored as a whole, so that an engine whose rounding depends on the
    batch gets the same batches after an interruption. ``progress`` is called with the number of replies and of requests
    of the current call.
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
            left = [request for request, own in zip(asked, found, strict=True) if own is None]
            answers = self._writer.write(left) if left else []
            self._store.keep(left, answers)
            fresh = iter(answers)
            written += [next(fresh) if own is None else own for own in found]
            if self._progress is not None:
                self._progress(len(written), len(requests))
        return written


@contextmanager
def refused_writes(file: Path) -> Generator[None]:
    """Context in which errors of the operating system and of SQLite become a ``BankError``.

    Raises:
        BankError: with the name of the file.
    """
    try:
        yield
    except (OSError, sqlite3.DatabaseError) as error:
        # Compared by type of error: SQLITE_FULL has the number of EACCES.
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
    """JSON text; lone surrogates become ?, as in the exported files."""
    return json.dumps(document, ensure_ascii=False).encode(errors="replace").decode()


def _digest(request: WriteRequest) -> str:
    """SHA-256 of everything that determines the reply."""
    content = [request.messages, request.schema, request.max_tokens, request.seed]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
