"""What a run holds beyond TRL's own state: the teachers' weights and the bank, in and out of checkpoints."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sgsd.bank import Ledger, SkillBank
from sgsd.errors import BankError, CheckpointError, ConfigError

STATE_FOLDER = "sgsd"
_STATE_FILE = "state.json"
_BANK_FILE = "bank.json"
_LEDGER_FILE = "ledger.json"
_WINDOW_FILE = "window.jsonl"
_GUARD_FILE = "guard.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FOLDER = re.compile(r"checkpoint-(\d+)")
_VERSION = 3


class TeacherWeights:
    """The weights teachers score with.

    ``live``: the policy's own. ``frozen``: the policy's at the start. ``ema``: their moving average. ``periodic``: a
    copy renewed now and then. Only trainable parameters are copied (with LoRA, the adapter's), and exchanged with the
    policy's by pointer while teachers score. A frozen teacher of a *fresh* adapter needs no copy: the adapter is
    switched off.

    Args:
        model: the policy, unwrapped, before training.
        kind: one of the above.
        fresh_adapter: the model carries an adapter that was initialised to do nothing.
        ema_decay, sync_steps: see ``SGSDConfig``.
    """

    def __init__(
        self, model: nn.Module, kind: str, *, fresh_adapter: bool = False, ema_decay: float = 0.99, sync_steps: int = 25
    ) -> None:
        self.kind = kind
        self._model = model
        self._ema_decay = ema_decay
        self._sync_steps = sync_steps
        self._adapter_off = kind == "frozen" and fresh_adapter
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        copies = kind != "live" and not self._adapter_off
        self._held = [parameter.detach().clone() for parameter in self._parameters] if copies else []

    @property
    def saved(self) -> bool:
        """Whether these weights are part of a checkpoint: a frozen teacher is made again from the initial policy."""
        return self.kind in ("ema", "periodic")

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The policy's module computes with the teachers' weights, without dropout, inside this context."""
        training = self._model.training
        self._model.eval()
        try:
            if self._adapter_off:
                with self._model.disable_adapter():  # pyright: ignore[reportCallIssue]
                    yield
            else:
                self._exchange()
                try:
                    yield
                finally:
                    self._exchange()
        finally:
            self._model.train(training)

    def after_optimizer_step(self, step: int) -> None:
        """Follow the policy: every step for ``ema``, every ``sync_steps`` steps for ``periodic``."""
        if self.kind == "ema":
            for held, parameter in zip(self._held, self._parameters, strict=True):
                held.lerp_(parameter.detach().to(held.device), 1 - self._ema_decay)
        elif self.kind == "periodic" and step % self._sync_steps == 0:
            for held, parameter in zip(self._held, self._parameters, strict=True):
                held.copy_(parameter.detach())

    def state(self) -> dict[str, Tensor]:
        """The copies, by position among the trainable parameters."""
        return {f"{index:05d}": held for index, held in enumerate(self._held)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over saved copies.

        Raises:
            CheckpointError: if they are not this model's.
        """
        own = self.state()
        if {name: held.shape for name, held in own.items()} != {name: saved.shape for name, saved in state.items()}:
            raise CheckpointError(
                "the checkpoint's teacher weights do not fit the model", got=f"{len(state)} tensors", expected=len(own)
            )
        for name, held in own.items():
            held.copy_(state[name])

    def _exchange(self) -> None:
        for index, parameter in enumerate(self._parameters if self._held else []):
            self._held[index], parameter.data = parameter.data, self._held[index].to(parameter.device)


@dataclass(frozen=True, slots=True)
class RunState:
    """The part of a checkpoint that is JSON. Banks go by digest; a run without bank or teacher has ``None``.

    ``files``: path in the checkpoint → SHA-256 of the file, of all but this one and Markdown.
    """

    step: int
    initial_bank: str | None
    bank: str | None
    teacher: str | None
    method: str = "sgsd"  # version 1 knew no other
    version: int = _VERSION
    files: dict[str, str] = field(default_factory=dict[str, str])  # before version 3 there were none


def save_state(
    checkpoint: Path,
    *,
    method: str,
    step: int,
    bank: SkillBank | None,
    initial_bank: str | None,
    teacher: TeacherWeights | None,
    ledger: Ledger | None = None,
    window: str | None = None,
    guard: str | None = None,
    rank: int = 0,
) -> None:
    """Write ``checkpoint/sgsd``: each rank's teacher weights; bank, ledger, window and so on; then ``state.json``.

    A checkpoint without ``state.json`` was cut off while it was written and is never resumed from. Rank 0 comes last:
    it records the digests of everything that is there.

    Args:
        checkpoint: the folder TRL has written.
        method: the run's.
        step: optimizer steps done.
        bank: as it is now, if the run has one.
        initial_bank: digest of the bank the run began with.
        teacher: its weights are saved where they are not derived from the initial policy.
        ledger: of the run so far, if it keeps one.
        window: of online maintenance, as text, if there is any.
        guard: what the collapse guard has seen, as text, if there is one.
        rank: this process's; rank 0 writes bank and state.
    """
    folder = checkpoint / STATE_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if teacher is not None and teacher.saved:
        state = {name: held.contiguous().cpu() for name, held in teacher.state().items()}
        save_file(state, folder / f"teacher-{rank:05d}.safetensors")
    if rank == 0:
        if bank is not None:
            bank.save(folder / _BANK_FILE)
        if ledger is not None:
            (folder / _LEDGER_FILE).write_text(ledger.to_json(), encoding="utf-8")
        if window is not None:
            (folder / _WINDOW_FILE).write_text(window, encoding="utf-8")
        if guard is not None:
            (folder / _GUARD_FILE).write_text(guard, encoding="utf-8")
        state = RunState(
            step=step,
            initial_bank=initial_bank,
            bank=None if bank is None else bank.digest,
            teacher=None if teacher is None else teacher.kind,
            method=method,
            files={name: _sha256(file) for name, file in _resumed_files(checkpoint).items()},
        )
        partial = folder / f".{_STATE_FILE}"
        partial.write_text(json.dumps(asdict(state), indent=2) + "\n")
        os.replace(partial, folder / _STATE_FILE)


def unmark(checkpoint: Path) -> None:
    """A complete checkpoint is none any more: it is about to be written again."""
    (checkpoint / STATE_FOLDER / _STATE_FILE).unlink(missing_ok=True)


def _resumed_files(checkpoint: Path) -> dict[str, Path]:
    """Name → file, of all that a resume reads."""
    own = checkpoint / STATE_FOLDER / _STATE_FILE
    files = (file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.suffix != ".md" and file != own)
    return {file.relative_to(checkpoint).as_posix(): file for file in files}


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def refuse_damage(checkpoint: Path) -> None:
    """Every file of a checkpoint is as it was saved. One of before version 3 knows nothing of its files.

    Raises:
        CheckpointError: the checkpoint is incomplete; a file is missing, or has other bytes.
    """
    for name, digest in _state_of(checkpoint).files.items():
        file = checkpoint / name
        try:
            found = _sha256(file)
        except FileNotFoundError as error:
            raise CheckpointError(
                "a file of the checkpoint is missing", got=f"no {file}", remedy=_go_back(checkpoint)
            ) from error
        except OSError as error:
            raise CheckpointError(
                "a file of the checkpoint cannot be read", got=f"{file} ({error.strerror})", remedy=_go_back(checkpoint)
            ) from error
        if found != digest:
            raise CheckpointError(
                "a file of the checkpoint is damaged",
                got=str(file),
                expected=f"the bytes that were saved, SHA-256 {digest[:12]}…",
                remedy=_go_back(checkpoint),
            )


def _go_back(checkpoint: Path) -> str:
    """The remedy for a checkpoint that cannot be used."""
    match = _FOLDER.fullmatch(checkpoint.name)
    steps = complete_checkpoints(checkpoint.parent)
    earlier = [step for step in steps if match is not None and step < int(match[1])]
    if not earlier:
        return "there is no earlier complete checkpoint beside it"
    return f"the last complete one before it: --resume_from_checkpoint {steps[max(earlier)]}"


def _state_of(checkpoint: Path) -> RunState:
    try:
        state = RunState(**json.loads((checkpoint / STATE_FOLDER / _STATE_FILE).read_text(encoding="utf-8")))
        if not all(isinstance(text, str) for entry in state.files.items() for text in entry):
            raise TypeError("files are no names with digests")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            "not a complete sgsd checkpoint",
            got=str(checkpoint),
            expected=f"{STATE_FOLDER}/{_STATE_FILE} in it",
            remedy=_go_back(checkpoint),
        ) from error
    return state


def load_state(
    checkpoint: Path, *, method: str, bank: SkillBank | None, teacher: TeacherWeights | None, rank: int = 0
) -> tuple[RunState, SkillBank | None]:
    """Read ``checkpoint/sgsd``, restoring the teachers' weights; returns the state and the bank as it was.

    Raises:
        CheckpointError: the checkpoint is none of this package's, is incomplete or damaged, is another method's,
            began with another bank than ``bank``, or was made with another kind of teacher.
    """
    folder = checkpoint / STATE_FOLDER
    state = _state_of(checkpoint)
    if state.version > _VERSION:
        raise CheckpointError("the checkpoint is newer than this sgsd", got=f"version {state.version}")
    if state.method != method:
        raise CheckpointError(
            "the checkpoint was trained with another method", got=f"method {method}", expected=state.method
        )
    digest = None if bank is None else bank.digest
    if state.initial_bank != digest:
        raise CheckpointError(
            "the checkpoint was trained with another bank",
            got=_shown(digest),
            expected=_shown(state.initial_bank),
            remedy="pass the bank the run began with, or start a new run in another output_dir",
        )
    kind = None if teacher is None else teacher.kind
    if state.teacher != kind:
        raise CheckpointError(
            "the checkpoint was trained with another teacher", got=f"teacher {kind}", expected=state.teacher
        )
    if teacher is not None and teacher.saved:
        file = folder / f"teacher-{rank:05d}.safetensors"
        try:
            teacher.load(load_file(file))
        except (OSError, SafetensorError) as error:
            raise CheckpointError("the checkpoint's teacher weights cannot be read", got=str(file)) from error
    if state.bank is None:
        return state, None
    try:
        saved_bank = SkillBank.load(folder / _BANK_FILE)
    except BankError as error:
        raise CheckpointError("the checkpoint's bank cannot be read", got=str(error)) from error
    if saved_bank.digest != state.bank:
        raise CheckpointError(
            "the checkpoint's bank is not the one that was saved with it",
            got=saved_bank.digest[:12],
            expected=state.bank[:12],
            remedy=_go_back(checkpoint),
        )
    return state, saved_bank


def _shown(digest: str | None) -> str:
    return "no bank" if digest is None else f"bank {digest[:12]}"


def saved_ledger(checkpoint: Path) -> Ledger:
    """The ledger of a checkpoint; an empty one for a checkpoint of before there were ledgers.

    Raises:
        CheckpointError: it cannot be read.
    """
    file = checkpoint / STATE_FOLDER / _LEDGER_FILE
    if not file.is_file():
        return Ledger()
    try:
        return Ledger.from_json(file.read_text(encoding="utf-8"), source=str(file))
    except (OSError, BankError) as error:
        raise CheckpointError("the checkpoint's ledger cannot be read", got=str(error)) from error


def saved_window(checkpoint: Path) -> str | None:
    """The window of online maintenance in a checkpoint, as text; ``None`` where there was none.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _saved_text(checkpoint / STATE_FOLDER / _WINDOW_FILE, "window")


def saved_guard(checkpoint: Path) -> str | None:
    """What the collapse guard had seen, as text; ``None`` where there was none.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _saved_text(checkpoint / STATE_FOLDER / _GUARD_FILE, "guard")


def _saved_text(file: Path, what: str) -> str | None:
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the checkpoint's {what} cannot be read", got=str(error)) from error


def complete_checkpoints(output_dir: Path) -> dict[int, Path]:
    """Steps → the checkpoints of a run that were written to their end."""
    return {
        int(match[1]): folder
        for folder in (output_dir.iterdir() if output_dir.is_dir() else [])
        if (match := _FOLDER.fullmatch(folder.name)) and (folder / STATE_FOLDER / _STATE_FILE).is_file()
    }


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint of most steps that was written to its end, if there is one."""
    steps = complete_checkpoints(output_dir)
    return steps[max(steps)] if steps else None


def drop_checkpoints(output_dir: Path, limit: int | None, *, keep: Collection[Path]) -> None:
    """Delete checkpoints until ``limit`` are left: those that were cut off first, then by steps.

    In the place of transformers' rotation, which comes before a checkpoint is complete, and goes by the time of files.

    Args:
        output_dir: the run's.
        limit: ``save_total_limit``; none, or 0, keeps all.
        keep: what stays whatever the limit is.
    """
    if not limit:
        return
    complete = complete_checkpoints(output_dir)
    steps = {int(match[1]): path for path in output_dir.iterdir() if (match := _FOLDER.fullmatch(path.name))}
    kept = {path.resolve() for path in keep}
    going = [step for step, path in steps.items() if path.resolve() not in kept]
    for step in sorted(going, key=lambda step: (step in complete, step))[: max(0, len(steps) - limit)]:
        shutil.rmtree(steps[step], ignore_errors=True)


@contextmanager
def refused_writes(output_dir: Path) -> Iterator[None]:
    """A disk that is full, or takes no more for another reason, is one line with the checkpoint to go on from.

    Raises:
        CheckpointError: inside this context something could not be written.
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
    """What the system said, if an error is of the kind; safetensors and torch tell it in words of their own."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _FULL else None
    if isinstance(error, BankError):
        return None if error.__cause__ is None else _why_not_written(error.__cause__, output_dir)
    if isinstance(error, SafetensorError):
        number = re.search(r"os error (\d+)", str(error))
        return os.strerror(int(number[1])) if number is not None and int(number[1]) in _FULL else None
    if re.search("PytorchStreamWriter|inline_container|iostream error", str(error)):
        full = shutil.disk_usage(output_dir).free < 2**20
        return os.strerror(errno.ENOSPC) if full else " ".join(str(error).split())[:200]
    return None


def refuse_partitioned_copies(kind: str, accelerator: Any, *, fresh_adapter: bool) -> None:
    """DeepSpeed ZeRO-3 and FSDP partition parameters out of reach of ``TeacherWeights``' copies.

    Under FSDP they would be of parameters that the model no longer computes with: a frozen teacher would be a live one.

    Raises:
        ConfigError: one of the two, with a teacher that needs a copy.
    """
    plugin = accelerator.state.deepspeed_plugin
    needs_copy = kind in ("ema", "periodic") or (kind == "frozen" and not fresh_adapter)
    zero3 = plugin is not None and plugin.zero_stage == 3
    if needs_copy and (zero3 or accelerator.distributed_type == DistributedType.FSDP):
        raise ConfigError(
            f"teacher '{kind}' does not work under {'DeepSpeed ZeRO-3' if zero3 else 'FSDP'}",
            expected="teacher live, or frozen with a new LoRA adapter",
            remedy="or use DDP or ZeRO-2",
        )
