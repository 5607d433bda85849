"""The collapse guard: detects a collapse during training, and names the last checkpoint before it.

It reads logged metrics: gradient norm, entropy, success rate and the share of truncated rollouts. The success rate is
compared with the run's own past, so that no threshold depends on the model or the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sgsd import runfolder
from sgsd.display import logger
from sgsd.errors import CheckpointError
from sgsd.trainers.checkpoint import last_complete_checkpoint

WINDOW = 20
"""Optimizer steps whose means are compared."""
GRADIENT = "the gradient's norm"

_DROP = 0.3  # relative to the best success rate
_STANDARD_ERRORS = 5.0  # of a difference that is no chance, although the best is the maximum over many windows
_TRUNCATED = 0.9

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Alarm:
    """A collapse.

    Attributes:
        step: optimizer steps done.
        what: the reason, in one line.
        sound_until: the last step, in optimizer steps done, at which the policy was sound.
        finite: whether all numbers were finite; otherwise the run cannot continue.
    """

    step: int
    what: str
    sound_until: int
    finite: bool = True


class CollapseGuard:
    """The rules of the guard, applied once per optimizer step, with the same result on every process.

    *Recent* is the mean over the last ``window`` steps, *first* that over the first ``window`` steps, and *best* the
    highest mean success rate over ``window`` consecutive steps. The guard raises an alarm if

    - the gradient norm is not finite, or the entropy is infinite;
    - recent success is below 70 % of the best, by more than 5 standard errors;
    - more than 90 % of the recent rollouts were truncated, and success did not rise from first to recent.

    Args:
        window: in optimizer steps.
        rollouts: new ones per step on average, on all processes.
    """

    def __init__(self, window: int, rollouts: float) -> None:
        self._window = window
        self._rollouts = rollouts * window
        self._recent: list[dict[str, float]] = []
        self._first: float | None = None  # success
        self._best = 0.0
        self._best_step = 0
        self.alarm: Alarm | None = None

    @property
    def sound_until(self) -> int:
        """The last step, in optimizer steps done, at which the policy was sound: that of the best success rate."""
        return self._best_step if self.alarm is None else self.alarm.sound_until

    def observe(self, step: int, vitals: Mapping[str, float]) -> Alarm | None:
        """Take a step's vitals; returns the alarm if this step raises the run's first one.

        Args:
            step: optimizer steps done, including this one.
            vitals: means over the step's rollouts ``success``, ``truncated`` and ``entropy``, and the gradient norm
                ``GRADIENT``. NaN or absent values are ignored, except for the gradient norm.
        """
        if self.alarm is not None:
            return None
        self.alarm = alarm = self._not_finite(step, vitals) or self._collapsed(step, vitals)
        return alarm

    def _not_finite(self, step: int, vitals: Mapping[str, float]) -> Alarm | None:
        # The entropy is that of the policy before this step's update. If the gradient is not finite, the update is
        # skipped; if the entropy is NaN as well, the weights were not finite before.
        norm, entropy = vitals.get(GRADIENT, 0.0), vitals.get("entropy", 0.0)
        if not math.isfinite(norm):
            return Alarm(step, f"{GRADIENT} is {norm}", step - 1 - math.isnan(entropy), finite=False)
        return Alarm(step, f"entropy is {entropy}", step - 2, finite=False) if math.isinf(entropy) else None

    def _collapsed(self, step: int, vitals: Mapping[str, float]) -> Alarm | None:
        rates = {name: float(vitals.get(name, math.nan)) for name in ("success", "truncated")}
        finite = {name: value for name, value in rates.items() if math.isfinite(value)}
        self._recent = [*self._recent, finite][-self._window :]
        if len(self._recent) < self._window:
            return None
        success, truncated = self._mean("success"), self._mean("truncated")
        if self._first is None and not math.isnan(success):
            self._first = success
        if success >= self._best:
            self._best, self._best_step = success, step
        if success < (1 - _DROP) * self._best and self._differ(self._best, success):
            what = f"the success rate fell from {self._best:.1%} (steps to {self._best_step}) to {success:.1%}"
            return Alarm(step, what, self._best_step)
        first = self._first or 0.0
        if truncated > _TRUNCATED and not (success > first and self._differ(first, success)):
            what = f"{truncated:.1%} of the rollouts of {self._window} steps were cut off, without more success"
            return Alarm(step, what, step - self._window)
        return None

    def _mean(self, name: str) -> float:
        values = [row[name] for row in self._recent if name in row]
        return sum(values) / len(values) if values else math.nan

    def _differ(self, one: float, other: float) -> bool:
        """Whether two windows' success rates differ by more than chance: a two-proportion z-test."""
        pooled = (one + other) / 2
        return abs(one - other) > _STANDARD_ERRORS * math.sqrt(2 * pooled * (1 - pooled) / self._rollouts)

    def state_dict(self) -> dict[str, Any]:
        state = {"recent": self._recent, "first": self._first, "best": self._best, "best_step": self._best_step}
        return state | {"alarm": None if self.alarm is None else asdict(self.alarm)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        try:
            recent = [{str(name): float(value) for name, value in row.items()} for row in state["recent"]]
            first = None if state["first"] is None else float(state["first"])
            best, best_step = float(state["best"]), int(state["best_step"])
            alarm = None if state["alarm"] is None else Alarm(**state["alarm"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError("the checkpoint's guard cannot be read", got=repr(error)) from error
        self._recent, self._first, self._best, self._best_step, self.alarm = recent, first, best, best_step, alarm


class GuardCallback(TrainerCallback):
    """Passes each step's vitals to the guard, and acts on its alarm.

    Args:
        guard: the rules.
        action: ``warn`` or ``stop``; numbers that are not finite always stop the run.
        vitals: returns those of the last optimizer step, as ``CollapseGuard.observe`` takes them.
        grad_norm: returns the last gradient norm before clipping.
    """

    def __init__(
        self,
        guard: CollapseGuard,
        action: str,
        vitals: Callable[[], Mapping[str, float]],
        grad_norm: Callable[[], float],
    ) -> None:
        self.guard = guard
        self._action = action
        self._vitals = vitals
        self._grad_norm = grad_norm

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Skip an update whose gradient is not finite. In float16 the gradient scaler does so."""
        if not args.fp16 and not math.isfinite(self._grad_norm()):
            kwargs["model"].zero_grad()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        gradient = {} if args.fp16 else {GRADIENT: self._grad_norm()}
        alarm = self.guard.observe(state.global_step, gradient | dict(self._vitals()))
        if alarm is None:
            return
        folder = Path(args.output_dir)
        sound = last_complete_checkpoint(folder, alarm.sound_until)
        stops = self._action == "stop" or not alarm.finite
        does = "stopped" if stops else "goes on"
        where = "no checkpoint is older than that" if sound is None else f"last sound checkpoint: {sound}"
        _log.warning("collapse guard, step %d: %s; the run %s; %s", alarm.step, alarm.what, does, where)
        if state.is_world_process_zero:
            record = asdict(alarm) | {"run": does, "checkpoint": sound and sound.name}
            runfolder.write_json(folder / runfolder.GUARD, record)
        control.should_training_stop |= stops
