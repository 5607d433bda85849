"""What the trainer does between steps: teacher weights follow the policy, checkpoints get the method's own state, and
a signal ends the run with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather, wait_for_everyone
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sgsd.trainers.checkpoint import drop_checkpoints, save_state

if TYPE_CHECKING:
    from sgsd.trainers.base import VerifiedTrainer


class StateCallback(TrainerCallback):
    """Keeps a trainer's teacher weights and checkpoint state in step with the optimizer."""

    def __init__(self, trainer: VerifiedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.skip_epochs(int(state.epoch))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.teacher_weights is not None:
            self._trainer.teacher_weights.after_optimizer_step(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not args.save_only_model:  # without optimizer and random state there is nothing to go on from
            self._save_state(checkpoint, state)
        if args.should_save:
            best = state.best_model_checkpoint
            kept = [checkpoint, self._trainer.sound_checkpoint, None if best is None else Path(best)]
            drop_checkpoints(
                Path(args.output_dir), self._trainer.save_total_limit, keep=[path for path in kept if path is not None]
            )

    def _save_state(self, checkpoint: Path, state: Any) -> None:
        accelerator = self._trainer.accelerator

        def save() -> None:
            save_state(
                checkpoint,
                method=self._trainer.method,
                step=state.global_step,
                bank=self._trainer.bank,
                initial_bank=self._trainer.initial_bank,
                teacher=self._trainer.teacher_weights,
                ledger=self._trainer.ledger,
                window=self._trainer.window,
                guard=None if self._trainer.guard is None else self._trainer.guard.to_json(),
                rank=accelerator.process_index,
            )

        # Rank 0 writes the mark of a complete checkpoint, so it goes last.
        if not accelerator.is_main_process:
            save()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save()


class StopOnSignal(TrainerCallback):
    """Ends a run at SIGTERM or SIGUSR1: the optimizer step is finished and a checkpoint saved, and ``train`` returns.

    All processes stop after the same step, whichever of them got a signal. A second one, ``PATIENCE`` seconds after
    the first or later, does what it would do without this callback, as a rule end the process. (A process group and a
    launcher that passes its signals on deliver one request twice.) Ctrl-C is left as it is.

    Attributes:
        stopped: the signal that ended the run before its last step, if one has.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
    PATIENCE = 3.0

    def __init__(self) -> None:
        self.stopped: signal.Signals | None = None
        self._received = 0
        self._at = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stopped, self._received = None, 0
        if threading.current_thread() is threading.main_thread():  # no other may
            self._previous = {number: signal.signal(number, self._take) for number in self.SIGNALS}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        received = int(gather(torch.tensor([self._received], device=args.device)).max())
        if received and state.global_step < state.max_steps:
            self.stopped = signal.Signals(received)
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # A launcher ends the others when one process has ended, and they may still be writing.
        wait_for_everyone()
        self._give_back()

    def _take(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._at = number, now
            name = signal.Signals(number).name
            # Not through a stream: the handler may run in the middle of a write to it.
            os.write(
                2, f"\nsgsd: {name}: the run is saved after this step, and ends; a second one ends it now\n".encode()
            )
        elif now - self._at >= self.PATIENCE:
            self._give_back()
            signal.raise_signal(number)

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
