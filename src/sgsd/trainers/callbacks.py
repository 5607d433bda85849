"""What the trainer does between steps: teacher weights follow the policy, checkpoints get the method's own state, and
a signal ends the run with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, wait_for_everyone
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sgsd.scoring.weights import TeacherWeights
from sgsd.trainers.checkpoint import Part, drop_checkpoints, save_parts
from sgsd.trainers.metrics import StepMetrics


class StepCallback(TrainerCallback):
    """Ends an optimizer step: the step's means are logged, and the teachers' weights follow the policy.

    Args:
        metrics: of the trainer, reduced here once a step.
        log: takes the means.
        accelerator: the trainer's.
        teacher: weights that follow, if there are teachers.
    """

    def __init__(self, metrics: StepMetrics, log: Callable[[dict[str, float]], None], accelerator: Any) -> None:
        self._metrics = metrics
        self._log = log
        self._accelerator = accelerator
        self.teacher: TeacherWeights | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._log(self._metrics.reduced(self._accelerator))
        if self.teacher is not None:
            self.teacher.after_optimizer_step(state.global_step)


class CheckpointCallback(TrainerCallback):
    """Adds the run's parts to checkpoints, and deletes old ones once a new one is complete.

    Args:
        parts: name → part (``trainers.checkpoint``).
        header: what a resumed run must agree with.
        accelerator: the trainer's.
        limit: ``save_total_limit``.
        sound: the checkpoint that stays whatever the limit is, if there is one.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        header: Mapping[str, Any],
        accelerator: Any,
        limit: int | None,
        sound: Callable[[], Path | None],
    ) -> None:
        self._parts = parts
        self._header = header
        self._accelerator = accelerator
        self._limit = limit
        self._sound = sound

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not args.save_only_model:  # without optimizer and random state there is nothing to go on from
            self._save(checkpoint)
        if args.should_save:
            best = state.best_model_checkpoint
            kept = [checkpoint, self._sound(), None if best is None else Path(best)]
            drop_checkpoints(Path(args.output_dir), self._limit, keep=[path for path in kept if path is not None])

    def _save(self, checkpoint: Path) -> None:
        def save() -> None:
            save_parts(checkpoint, self._parts, self._header, rank=self._accelerator.process_index)

        # Rank 0 writes the mark of a complete checkpoint, so it goes last.
        if not self._accelerator.is_main_process:
            save()
        self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process:
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
