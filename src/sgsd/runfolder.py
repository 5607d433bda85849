"""The files in the folder of a run, an evaluation or a build: their names, and how they are read and written. No torch.

    run.json               every setting, versions, the report on the data
    trainer_state.json     transformers' log
    ledger.json            the record of each bank item's use and credit
    traces.jsonl           rollouts with their teachers, token by token
    maintenance.jsonl      what each check did to the bank
    guard.json             the collapse that the guard detected
    bank-start.json, bank.json     the bank before and after
    doctor.json            what sgsd doctor found
    checkpoint-N/sgsd/     what a checkpoint holds beyond TRL's
    evaluations/NAME/      settings.json, samples.jsonl, summary.json of an evaluation
    certificate.json       the result of sgsd internalize; certificate.html shows it

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
"""The largest size of a document, and of a line."""

Count: TypeAlias = Annotated[int, Field(ge=0, le=1 << 40)]
"""A number of steps, tokens or uses, which arrays and charts can hold."""


class Settings(TypedDict, total=False):
    """The settings of a run that are read back; others are allowed."""

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
    dataset_columns: str | None
    instruction: str | None
    thinking: str | None
    chat_template_kwargs: dict[str, Any] | None
    max_completion_length: int | None
    verifier: str | None
    verifier_options: dict[str, Any] | None


def in_order(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Keep the keys of a mapping in the order of the file; pydantic puts the known ones first."""
    checked = check(value)
    return {name: checked[name] for name in value}


class RunRecord(TypedDict):
    """``run.json``."""

    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    settings: Annotated[Settings, WrapValidator(in_order)]
    data: NotRequired[dict[str, Any] | None]
    bank_digest: NotRequired[str | None]
    model_digest: NotRequired[str | None]
    versions: NotRequired[dict[str, Any]]
    resumed: NotRequired[list[dict[str, Any]]]


class LogEntry(TypedDict):
    """The log of a step."""

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
PLAN = "plan.json"  # of sgsd internalize, whose runs are in subfolders
CERTIFICATE = "certificate.json"
CERTIFICATE_PAGE = "certificate.html"
_LOCK = "_writer"  # transformers does not upload files whose names begin with an underscore


def runs_of(folder: Path) -> list[Path]:
    """The runs in the output folder of ``sgsd internalize``, the baseline's last; of any other folder, itself."""
    runs = [folder / name for name in ("run", "grpo") if (folder / name / RUN).is_file()]
    return runs if runs and (folder / PLAN).is_file() else [folder]


def write_text(file: Path, text: str | Iterable[str]) -> None:
    """``write_bytes`` of a text, which may come in parts; a lone surrogate, which UTF-8 cannot encode, becomes ?."""
    write_bytes(file, (part.encode(errors="replace") for part in ([text] if isinstance(text, str) else text)))


def write_bytes(file: Path, parts: Iterable[bytes]) -> None:
    """Write a file atomically: readers see the whole old file or the whole new one, also after a crash.

    Missing folders are made. A link to a file is replaced, not followed. If anything raises, ``parts`` included,
    nothing is changed and no temporary file remains.

    Raises:
        OSError: the file cannot be written, or is a folder or a device, such as /dev/null.
    """
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "not a plain file", str(file))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{secrets.token_hex(8)}.part")  # a name that no other process can predict
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
    """Append to a file, which is created if it does not exist.

    Raises:
        OSError: the file cannot be written, or is a link.
    """
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "wb") as out:
        out.write(text.encode(errors="replace"))


def write_json(file: Path, document: Any) -> None:
    """``write_text`` of an indented JSON document; values of types that JSON does not have become text."""
    write_text(file, json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")


def real(path: str | os.PathLike[str]) -> Path:
    """The path without links. Unlike ``Path.resolve``, it takes links that lead back to themselves."""
    return Path(os.path.realpath(path))


def refuse_foreign_links(folder: Path) -> None:
    """Refuse a folder with a link out of it, or with a pipe or a device in it: a run that continues in the folder would
    write through the link, or wait for a reader of the pipe without end.

    Raises:
        ConfigError: naming the first of them.
    """
    root = real(folder)
    for place in folder.rglob("*"):
        if place.is_symlink():
            if not real(place).is_relative_to(root):
                raise ConfigError(
                    "a link leads out of the output folder", got=f"{place}, to {real(place)}", remedy="remove it"
                )
        else:
            refuse_pipe(place, "the output folder")


def refuse_pipe(place: Path, folder: str) -> None:
    """Refuse a pipe or a device, from which a reader might wait without end.

    Raises:
        ConfigError: naming it, and the folder that it is in.
    """
    if place.is_fifo() or place.is_char_device() or place.is_block_device():
        raise ConfigError(f"{folder} holds a pipe or a device", got=str(place), remedy="remove it")


def refuse_unwritable(folder: Path, what: str) -> None:
    """Refuse a folder that cannot be written, before any work is done.

    Raises:
        ConfigError: the folder is a file or inside one, or there is no permission to write.
    """
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir():
        is_link = nearest.is_symlink() and not nearest.is_file()
        raise ConfigError(
            f"{what} is not a folder", got=str(folder), remedy=f"{nearest} is a {'broken link' if is_link else 'file'}"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"{what} cannot be written", got=str(folder), remedy=f"no permission to write to {nearest}")


@contextmanager
def one_writer(folder: Path) -> Generator[None]:
    """A context in which no other process writes to this folder. If it makes the folder and nothing is written, it
    removes the folder again.

    Raises:
        ConfigError: another process writes to the folder, it cannot be written, or a link leads out of it.
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
        (folder / _LOCK).unlink(missing_ok=True)  # before the release: a process that waits for this file finds it gone
        lock.release()
        if made:
            with suppress(OSError):  # the folder is not empty
                folder.rmdir()


def is_unused(folder: Path) -> bool:
    """Whether a folder does not exist, or holds nothing except the lock of ``one_writer``."""
    return not folder.exists() or all(entry.name == _LOCK for entry in folder.iterdir())


def read_text(file: Path, kind: type[SGSDError] = DataError, *, most: int | None = None) -> str:
    """The text of a file.

    Raises:
        SGSDError: of class ``kind``; the file cannot be read, is not a plain file, has more than ``most`` bytes
            (default ``MOST_BYTES``), or is not UTF-8.
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
    """The JSON object in a file, converted to the schema's type if there is one.

    Raises:
        SGSDError: of class ``kind``; as ``read_text``, or the file holds another value or does not match the schema.
    """
    document = parse_json(read_text(file, kind), str(file), kind, finite=False)
    return document if schema is None else validated(schema, document, str(file), kind)


@overload
def read_lines(file: Path, schema: None = None, *, torn: bool = True) -> Iterator[tuple[str, dict[str, Any]]]: ...
@overload
def read_lines(file: Path, schema: TypeAdapter[T], *, torn: bool = True) -> Iterator[tuple[str, T]]: ...
def read_lines(file: Path, schema: TypeAdapter[Any] | None = None, *, torn: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield (place, JSON object) for each line of a file that is not empty.

    Args:
        file: JSON lines.
        schema: the type that each line is converted to.
        torn: whether to skip a last line without line break, which is still being written.

    Raises:
        DataError: the file cannot be read, or a line is not an object that matches the schema.
    """
    for where, line in read_raw_lines(file):
        if not (torn and not line.endswith(b"\n")):
            document = parse_json(line, where, finite=False)
            yield where, document if schema is None else validated(schema, document, where)


def read_raw_lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (place, line with its line break) for each line of a file that is not empty.

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
    """Open a plain file only: reading a pipe or a device may never end."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EINVAL, "not a plain file", str(file))
    return file.open("rb")
