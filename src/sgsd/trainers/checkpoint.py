"""Checkpoints: the parts beyond TRL's own state, and a mark of completeness.

A part is an object with ``state_dict`` and ``load_state_dict``: bank, ledger, teacher weights, window, guard. Tensors
are saved as ``sgsd/NAME-00000.safetensors``, the rest as ``sgsd/NAME.json``. The mark ``sgsd/state.json`` is written
last: a checkpoint without it is incomplete, and no run resumes from it. All processes have the same parts, so one saves
them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, Protocol

from pydantic import ConfigDict, StrictInt, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.errors import BankError, CheckpointError, DataError

_STATE_FILE = "state.json"
_TENSORS = "-00000.safetensors"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FOLDER = re.compile(r"checkpoint-(\d+)")
_VERSION = 4


class _Mark(TypedDict):
    """The fields of the mark besides the header of ``save_parts``. Versions before 4 have no sizes."""

    __pydantic_config__ = ConfigDict(extra="allow")  # pyright: ignore[reportGeneralTypeIssues]

    version: StrictInt
    sizes: NotRequired[dict[str, StrictInt]]


_MARK = TypeAdapter(_Mark)


class Part(Protocol):
    """A stateful part of a run. Its state has JSON values and tensors.

    ``load_state_dict`` raises ``CheckpointError`` for a state that does not fit.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class BankState:
    """The current bank of a run, and the digest of its initial one. The saved state is a bank file."""

    def __init__(self, bank: SkillBank | None) -> None:
        self.bank = bank
        self.initial = None if bank is None else bank.digest

    def state_dict(self) -> dict[str, Any]:
        return {} if self.bank is None else json.loads(self.bank.to_json())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.bank is not None:
            try:
                self.bank = SkillBank.from_json(json.dumps(state), source="the checkpoint's bank")
            except BankError as error:
                raise CheckpointError("the checkpoint's bank cannot be read", got=str(error)) from error


# ---- writing and reading


def save_parts(checkpoint: Path, parts: Mapping[str, Part], header: Mapping[str, Any]) -> None:
    """Add ``sgsd`` to a checkpoint that all processes have written.

    Args:
        checkpoint: its folder.
        parts: name → part.
        header: values that a resumed run must share: method, digest of the initial bank, kind of teacher.
    """
    folder = checkpoint / runfolder.PARTS
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        state = part.state_dict()
        tensors = {key: value.contiguous().cpu() for key, value in state.items() if isinstance(value, Tensor)}
        if tensors:
            save_file(tensors, folder / f"{name}{_TENSORS}")
        rest = {key: value for key, value in state.items() if key not in tensors}
        runfolder.write_text(folder / f"{name}.json", json.dumps(rest, ensure_ascii=False) + "\n")
    runfolder.write_json(folder / _STATE_FILE, {"version": _VERSION, **header, "sizes": _sizes(checkpoint)})


def load_parts(checkpoint: Path, parts: Mapping[str, Part], header: Mapping[str, Any]) -> None:
    """Restore every part from ``checkpoint/sgsd``.

    A part that the checkpoint does not contain (a guard or maintenance that was off) keeps its initial state.

    Raises:
        CheckpointError: the checkpoint is not of this package, is incomplete, or has another header.
    """
    mark = _mark_of(checkpoint)
    if mark["version"] != _VERSION:
        raise CheckpointError(
            "the checkpoint was written by another version of sgsd",
            got=f"version {mark['version']}",
            expected=f"version {_VERSION}",
            remedy="start a new run, or resume with the version that wrote it",
        )
    for name, value in header.items():
        if mark.get(name) != value:
            got, expected = ("none" if each is None else str(each)[:12] for each in (value, mark.get(name)))
            raise CheckpointError(
                f"the checkpoint was trained with another {name}",
                got=got,
                expected=expected,
                remedy=f"resume with the {name} of the checkpoint, or start a new run in another output_dir",
            )
    folder = checkpoint / runfolder.PARTS
    for name, part in parts.items():
        if f"{runfolder.PARTS}/{name}.json" not in mark["sizes"]:
            continue
        try:
            state = runfolder.read_json(folder / f"{name}.json")
            tensors = folder / f"{name}{_TENSORS}"
            part.load_state_dict(state | (load_file(tensors) if tensors.is_file() else {}))
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint's {name} cannot be read",
                got=f"{checkpoint} ({type(error).__name__})",
                remedy=_go_back(checkpoint),
            ) from error


def refuse_damage(checkpoint: Path) -> None:
    """Check that a checkpoint has all its files, with the sizes they were saved with.

    Raises:
        CheckpointError: the checkpoint is incomplete, or a file is missing or has another size.
    """
    found = _sizes(checkpoint)
    for name, size in _mark_of(checkpoint)["sizes"].items():
        if found.get(name) != size:
            raise CheckpointError(
                f"a file of the checkpoint is {'missing' if name not in found else 'cut short or changed'}",
                got=f"{checkpoint / name}, {found.get(name, 0)} bytes",
                expected=f"{size} bytes",
                remedy=_go_back(checkpoint),
            )


def unmark(checkpoint: Path) -> None:
    """Remove the mark of a checkpoint that is about to be overwritten."""
    (checkpoint / runfolder.PARTS / _STATE_FILE).unlink(missing_ok=True)


def _mark_of(checkpoint: Path) -> dict[str, Any]:
    try:
        return {"sizes": {}} | runfolder.read_json(checkpoint / runfolder.PARTS / _STATE_FILE, _MARK)
    except DataError as error:
        raise CheckpointError(
            "not a complete sgsd checkpoint",
            got=str(checkpoint),
            expected=f"{runfolder.PARTS}/{_STATE_FILE} in it",
            remedy=_go_back(checkpoint),
        ) from error


def _sizes(checkpoint: Path) -> dict[str, int]:
    """Path in the checkpoint → size in bytes, for all files that a resumed run reads."""
    own = checkpoint / runfolder.PARTS / _STATE_FILE
    files = (file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.suffix != ".md" and file != own)
    return {file.relative_to(checkpoint).as_posix(): file.stat().st_size for file in files}


# ---- the checkpoints of a run


def _checkpoints(output_dir: Path) -> dict[int, Path]:
    folders = output_dir.iterdir() if output_dir.is_dir() else []
    return dict(sorted((int(match[1]), path) for path in folders if (match := _FOLDER.fullmatch(path.name))))


def complete_checkpoints(output_dir: Path) -> dict[int, Path]:
    """Step → complete checkpoint of a run, in the order of steps."""
    mark = Path(runfolder.PARTS) / _STATE_FILE
    return {step: folder for step, folder in _checkpoints(output_dir).items() if (folder / mark).is_file()}


def last_complete_checkpoint(output_dir: Path, until: float = float("inf")) -> Path | None:
    """The complete checkpoint of the latest step up to ``until``, if there is one."""
    return next((path for step, path in reversed(complete_checkpoints(output_dir).items()) if step <= until), None)


def drop_checkpoints(output_dir: Path, limit: int | None, *, keep: Collection[Path]) -> None:
    """Delete checkpoints until ``limit`` are left: incomplete ones first, then the earliest.

    This replaces transformers' rotation, which runs before the new checkpoint is complete and sorts by file times.
    Without a limit, or with 0, nothing is deleted. Those in ``keep`` are never deleted.
    """
    if not limit:
        return
    complete, every = complete_checkpoints(output_dir), _checkpoints(output_dir)
    kept = {runfolder.real(path) for path in keep}
    deletable = [step for step, path in every.items() if runfolder.real(path) not in kept]
    for step in sorted(deletable, key=lambda step: (step in complete, step))[: max(0, len(every) - limit)]:
        shutil.rmtree(every[step], ignore_errors=True)


def _go_back(checkpoint: Path) -> str:
    """The remedy for an unusable checkpoint: the last complete one before it."""
    match = _FOLDER.fullmatch(checkpoint.name)
    earlier = match and last_complete_checkpoint(checkpoint.parent, int(match[1]) - 1)
    if earlier is None:
        return "there is no earlier complete checkpoint beside it"
    return f"the last complete one before it: --resume_from_checkpoint {earlier}"


# ---- the disk


@contextmanager
def refused_writes(output_dir: Path) -> Iterator[None]:
    """Context in which a failed write, such as to a full disk, is one line with the checkpoint to resume from.

    Raises:
        CheckpointError: something could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, BankError) as error:
        reason = _why_not_written(error, output_dir)
        if reason is None:
            raise
        last = last_complete_checkpoint(output_dir)
        raise CheckpointError(
            "the run cannot be written",
            got=f"{reason} in {output_dir}",
            remedy="there is no complete checkpoint yet"
            if last is None
            else f"the last complete checkpoint is {last}: make room, then go on with --resume",
        ) from error


def _why_not_written(error: BaseException, output_dir: Path) -> str | None:
    """The system's message if the error is a failed write, which safetensors and torch report in their own ways."""
    if isinstance(error, BankError):
        return None if error.__cause__ is None else _why_not_written(error.__cause__, output_dir)
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number in _FULL:
        return os.strerror(number)
    if isinstance(error, RuntimeError) and re.search("PytorchStreamWriter|inline_container|iostream error", str(error)):
        full = shutil.disk_usage(output_dir).free < 2**20
        return os.strerror(errno.ENOSPC) if full else " ".join(str(error).split())[:200]
    return None
