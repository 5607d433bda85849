"""What lies in the folder of a run, an evaluation or a build: the names, the reader, the writer. No torch.

    run.json               every setting, versions, what became of the data
    trainer_state.json     transformers' log
    ledger.json            what each bank item was worth
    traces.jsonl           rollouts with their teachers, token by token
    maintenance.jsonl      what each check did to the bank
    guard.json             the collapse that the guard saw
    bank-start.json, bank.json     the bank before and after
    doctor.json            what sgsd doctor found
    checkpoint-N/sgsd/     what a checkpoint holds beyond TRL's
    evaluations/NAME/      settings.json, samples.jsonl, summary.json of an evaluation
    certificate.json       what became of a document taken into weights; certificate.html shows it

A build's folder has ``bank.json`` too, beside what ``bank.build`` names.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NotRequired, TypeAlias, TypeVar, overload

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator
from typing_extensions import TypedDict

from sgsd.errors import ConfigError, DataError, SGSDError
from sgsd.validation import parse_json, validated

T = TypeVar("T")
MOST_BYTES = 64 << 20
"""Of a document, and of a line."""

Count: TypeAlias = Annotated[int, Field(ge=0, le=1 << 40)]
"""A number of steps, tokens, uses: what arrays and charts can hold."""


class Settings(TypedDict, total=False):
    """Those of a run's settings that are read back; there are others."""

    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    method: str
    model_name_or_path: str | None
    seed: int | None
    objective: str
    grpo_weight: float | None
    sgsd_weight: float | None
    support_baseline: str | None
    support_threshold: FiniteFloat
    skills_in_prompt: bool
    skills_in_prompt_pairs: int | None
    teacher_context: str | None
    bank: str | None
    retriever: str | None
    embedder: str | None
    retrieval_text: str
    eval_dataset: str | None
    instruction: str | None
    thinking: str | None
    chat_template_kwargs: dict[str, Any] | None
    max_completion_length: int | None
    verifier: str | None
    verifier_options: dict[str, Any] | None


def in_order(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """The keys of a mapping in the file's order, as people read them; pydantic puts the known ones first."""
    checked = check(value)
    return {name: checked[name] for name in value}


class RunRecord(TypedDict):
    """``run.json``."""

    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    settings: Annotated[Settings, WrapValidator(in_order)]
    data: NotRequired[dict[str, Any] | None]
    versions: NotRequired[dict[str, Any]]
    resumed: NotRequired[list[dict[str, Any]]]


class LogEntry(TypedDict):
    """What was logged at a step."""

    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    step: Count


class TrainerState(TypedDict):
    """``trainer_state.json``."""

    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    global_step: NotRequired[Count | None]
    log_history: NotRequired[list[LogEntry]]


RUN_RECORD = TypeAdapter(RunRecord)
TRAINER_STATE = TypeAdapter(TrainerState)

RUN = "run.json"
STATE = "trainer_state.json"
LEDGER = "ledger.json"
TRACES = "traces.jsonl"
MAINTENANCE = "maintenance.jsonl"
GUARD = "guard.json"
BANK_START = "bank-start.json"
BANK = "bank.json"
DOCTOR = "doctor.json"
PARTS = "sgsd"  # in a checkpoint
EVALUATIONS = "evaluations"
SETTINGS = "settings.json"
SAMPLES = "samples.jsonl"
SUMMARY = "summary.json"
CERTIFICATE = "certificate.json"
CERTIFICATE_PAGE = "certificate.html"
_LOCK = "_writer"  # what begins so, transformers does not upload


def write_text(file: Path, text: str | Iterable[str]) -> None:
    """``write_bytes`` of a text, which may come in parts; half a surrogate pair, which no file can hold, becomes ?."""
    write_bytes(file, (part.encode(errors="replace") for part in ([text] if isinstance(text, str) else text)))


def write_bytes(file: Path, parts: Iterable[bytes]) -> None:
    """Write a whole file at once: readers see the old one or the new one, and a crash leaves no part.

    Missing folders are made. A link to a file is replaced, not followed.

    Raises:
        OSError: it cannot be written, or what is there is no plain file but a folder or a device, such as /dev/null;
            nothing is changed, and nothing left behind, as where ``parts`` raise.
    """
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "not a plain file", str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{secrets.token_hex(8)}.part")  # of a name that nobody can lie in wait at
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as out:
            out.writelines(parts)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def append_text(file: Path, text: str) -> None:
    """Add to the end of a file, which is made where it is not there.

    Raises:
        OSError: it cannot be written, or is a link.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "wb") as out:
        out.write(text.encode(errors="replace"))


def write_json(file: Path, document: Any) -> None:
    """``write_text`` of a JSON document, as people read it; what JSON has no word for becomes text."""
    write_text(file, json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")


def refuse_foreign_links(folder: Path) -> None:
    """Who goes on in a folder writes to files that are there: none is a link out of it.

    Raises:
        ConfigError: naming one.
    """
    root = folder.resolve()
    for place in folder.rglob("*"):
        if place.is_symlink() and not place.resolve().is_relative_to(root):
            raise ConfigError(
                "a link leads out of the output folder", got=f"{place}, to {place.resolve()}", remedy="remove it"
            )


def refuse_unwritable(folder: Path, what: str) -> None:
    """Before the work.

    Raises:
        ConfigError: the folder is a file, below one, or not ours to write.
    """
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{what} is no folder", got=str(folder), remedy=f"{nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{what} cannot be written", got=str(folder), remedy=f"no permission to write to {nearest}")


@contextmanager
def one_writer(folder: Path) -> Generator[None]:
    """Within, no other process writes to this folder. It is made, and goes again where nothing was written.

    Raises:
        ConfigError: another process is within, the folder cannot be written, or a link leads out of it.
    """
    made = not os.path.exists(folder)
    if not made:
        refuse_foreign_links(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, blocking=False)
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            "another process writes to this folder", got=str(folder), remedy="wait for it, or choose another one"
        ) from error
    except OSError as error:
        raise ConfigError("the folder cannot be written", got=f"{folder} ({error.strerror})") from error
    try:
        yield
    finally:
        (folder / _LOCK).unlink(missing_ok=True)  # while it is held: who waits for this file finds it gone
        lock.release()
        if made:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def is_unused(folder: Path) -> bool:
    """There is no such folder, or nothing in it but ``one_writer``'s mark."""
    return not folder.exists() or all(entry.name == _LOCK for entry in folder.iterdir())


def read_text(file: Path, kind: type[SGSDError] = DataError, *, most: int | None = None) -> str:
    """The text of a file.

    Raises:
        SGSDError: of ``kind``; the file cannot be read, is no plain file, has more than ``most`` bytes
            (``MOST_BYTES``), or is not UTF-8.
    """
    most = MOST_BYTES if most is None else most
    try:
        with _opened(file) as opened:
            text = opened.read(most + 1)
        if len(text) > most:
            raise kind("file is too large", got=str(file), expected=f"at most {most >> 20} MiB")
        return text.decode("utf-8-sig")
    except OSError as error:
        raise kind("file cannot be read", got=f"{file} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise kind("file is not UTF-8", got=f"{file} ({error.reason} at byte {error.start})") from error


@overload
def read_json(file: Path, schema: None = None, kind: type[SGSDError] = DataError) -> dict[str, Any]: ...
@overload
def read_json(file: Path, schema: TypeAdapter[T], kind: type[SGSDError] = DataError) -> T: ...
def read_json(file: Path, schema: TypeAdapter[Any] | None = None, kind: type[SGSDError] = DataError) -> Any:
    """The JSON object of a file, as the schema's type where one is given.

    Raises:
        SGSDError: of ``kind``; as ``read_text``, or the file holds something else.
    """
    document = parse_json(read_text(file, kind), str(file), kind, finite=False)
    return document if schema is None else validated(schema, document, str(file), kind)


@overload
def read_lines(file: Path, schema: None = None, *, torn: bool = True) -> Iterator[tuple[str, dict[str, Any]]]: ...
@overload
def read_lines(file: Path, schema: TypeAdapter[T], *, torn: bool = True) -> Iterator[tuple[str, T]]: ...
def read_lines(file: Path, schema: TypeAdapter[Any] | None = None, *, torn: bool = True) -> Iterator[tuple[str, Any]]:
    """(place, JSON object) of each line of a file, as the schema's type where one is given; empty lines are left out.

    Args:
        file: to read.
        schema: of a line.
        torn: a last line without its end is still being written, and passed over.

    Raises:
        DataError: the file cannot be read, or a line is no such object.
    """
    for where, line in read_raw_lines(file):
        if not (torn and not line.endswith(b"\n")):
            document = parse_json(line, where, finite=False)
            yield where, document if schema is None else validated(schema, document, where)


def read_raw_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """(place, line with its end) of each line of a file; empty lines are left out.

    Raises:
        DataError: the file cannot be read, or a line has more than ``MOST_BYTES``.
    """
    try:
        with _opened(file) as lines:
            number = 0
            while line := lines.readline(MOST_BYTES + 1):
                number += 1
                where = f"{file}:{number}"
                if len(line) > MOST_BYTES:
                    raise DataError(f"{where}: the line is too long", expected=f"at most {MOST_BYTES >> 20} MiB")
                if line.strip():
                    yield where, line
    except OSError as error:
        raise DataError("file cannot be read", got=f"{file} ({error.strerror})") from error


def _opened(file: Path) -> BinaryIO:
    """A plain file: what a pipe or a device holds may never end."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(file))
    return file.open("rb")
