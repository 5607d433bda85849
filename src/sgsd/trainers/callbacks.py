"""Callbacks: check the model, log means, update the teachers' weights, complete checkpoints, end a run at a signal."""

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
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sgsd.display import logger
from sgsd.errors import ConfigError
from sgsd.objectives.base import Metrics, total
from sgsd.scoring.heads import causal_model
from sgsd.scoring.logprobs import context_errors
from sgsd.scoring.weights import TeacherWeights
from sgsd.trainers.checkpoint import Part, drop_checkpoints, last_complete_checkpoint, save_parts
from sgsd.trainers.guard import CollapseGuard
from sgsd.trainers.model import unadaptable_in_one_line

_log = logger(__name__)


class StepMetrics:
    """Means over all rollouts of an optimizer step, of all micro-batches and processes.

    Sums and counts accumulate on the device and are reduced together. All processes must add the same names. A mean
    with count 0 is NaN.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, values: Metrics) -> None:
        """Add sums and counts."""
        for name, (summed, count) in values.items():
            pair = torch.stack([summed.detach().float(), count.detach().to(summed.device).float()])
            self._totals[name] = self._totals[name] + pair if name in self._totals else pair

    def mean(self, name: str, values: Tensor, where: Tensor | None = None) -> None:
        """Add the mean of ``values`` where ``where`` is True; values elsewhere may be NaN."""
        self.add({name: total(values, torch.ones_like(values, dtype=torch.bool) if where is None else where)})

    def share(self, name: str, part: float, whole: float) -> None:
        """Add the ratio of two numbers known on the host."""
        self.add({name: (torch.tensor(float(part)), torch.tensor(float(whole)))})

    def reduced(self, accelerator: Any) -> dict[str, float]:
        """The means since the last call, over all processes; none over nothing. One reduction and one host sync."""
        if not self._totals:
            return {}
        names = sorted(self._totals)
        stacked = torch.stack([self._totals[name].to(accelerator.device) for name in names])
        self._totals = {}
        if accelerator.num_processes > 1:
            stacked = accelerator.reduce(stacked, reduction="sum")
        return {name: part / whole for name, (part, whole) in zip(names, stacked.tolist(), strict=True) if whole}


_SAMPLE, _TOKENS = "There are 3 boxes of 14 eggs, 5 of which are broken: 3 * 14 - 5 = 37 are left.", 24
_NOT_ROUNDING = 0.1  # relative change of hidden states


class ContextCallback(TrainerCallback):
    """Before the first step, refuses a model that is not causal, and warns if its rollouts depend on their padding.

    Args:
        model: the policy, wrapped or not.
        tokenizer: of the run, or its processor.
        accelerator: the trainer's.
        padded: whether prompts of unequal lengths are padded on the left for sampling.
    """

    def __init__(self, model: Any, tokenizer: Any, accelerator: Any, *, padded: bool) -> None:
        self._model = model
        self._ids = tokenizer(text=[_SAMPLE])["input_ids"][0][:_TOKENS]
        self._accelerator = accelerator
        self._padded = padded

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        training = self._model.training
        self._model.eval()
        try:
            with self._accelerator.autocast(), unadaptable_in_one_line(self._model):
                by_padding, by_later_tokens = context_errors(self._model, self._ids)
        finally:
            self._model.train(training)
        name = type(causal_model(self._model)).__name__
        if by_later_tokens > _NOT_ROUNDING:
            raise ConfigError("tokens attend to later tokens", got=name, expected="a causal language model")
        if by_padding > _NOT_ROUNDING and self._padded and self._accelerator.is_main_process:
            _log.warning(
                "%s does not ignore padding on the left: rollouts of prompts of unequal lengths are not the policy's; "
                "remedy: use_vllm, or one prompt per batch",
                name,
            )


class StepCallback(TrainerCallback):
    """At the end of an optimizer step, logs its means and updates the teachers' weights."""

    def __init__(
        self,
        metrics: StepMetrics,
        log: Callable[[dict[str, float]], None],
        accelerator: Any,
        teacher: TeacherWeights | None,
    ) -> None:
        self._metrics = metrics
        self._log = log
        self._accelerator = accelerator
        self._teacher = teacher

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._log(self._metrics.reduced(self._accelerator))
        if self._teacher is not None:
            self._teacher.after_optimizer_step(state.global_step)


class CheckpointCallback(TrainerCallback):
    """Adds the run's parts to checkpoints, and deletes old checkpoints once a new one is complete.

    Args:
        parts, header: see ``trainers.checkpoint.save_parts``.
        accelerator: the trainer's.
        limit: ``save_total_limit``.
        guard: its last sound checkpoint is never deleted.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        header: Mapping[str, Any],
        accelerator: Any,
        limit: int | None,
        guard: CollapseGuard | None,
    ) -> None:
        self._parts = parts
        self._header = header
        self._accelerator = accelerator
        self._limit = limit
        self._guard = guard

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if not args.save_only_model:  # no run can resume from a model without optimizer and random state
            self._accelerator.wait_for_everyone()  # the completeness mark comes last
            if self._accelerator.is_main_process:
                save_parts(checkpoint, self._parts, self._header)
        if args.should_save:
            folder, best = Path(args.output_dir), state.best_model_checkpoint
            sound = None if self._guard is None else last_complete_checkpoint(folder, self._guard.sound_until)
            kept = [checkpoint, sound, None if best is None else Path(best)]
            drop_checkpoints(folder, self._limit, keep=[path for path in kept if path is not None])


class StopOnSignal(TrainerCallback):
    """Ends a run at SIGTERM or SIGUSR1: after the current optimizer step a checkpoint is saved, and ``train`` returns.

    All processes stop after the same step, whichever received the signal. A second signal, ``PATIENCE`` seconds or more
    after the first, has its usual effect. An earlier one is ignored, since process groups and launchers can deliver one
    request twice. Ctrl-C is not handled.

    Attributes:
        stopped: the signal that ended the run before its last step, or ``None``.
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
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._previous = {number: signal.signal(number, self._take) for number in self.SIGNALS}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        received = int(gather(torch.tensor([self._received], device=args.device)).max())
        if received and state.global_step < state.max_steps:
            self.stopped = signal.Signals(received)
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # Wait: when one process exits, a launcher kills the others, which may still be writing.
        wait_for_everyone()
        self._restore_handlers()

    def _take(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if not self._received:
            self._received, self._at = number, now
            then = "the run is saved and ends after this step; a second signal ends it at once"
            # Not through a stream: the handler may interrupt a write to it.
            os.write(2, f"\nsgsd: {signal.Signals(number).name}: {then}\n".encode())
        elif now - self._at >= self.PATIENCE:
            self._restore_handlers()
            signal.raise_signal(number)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
