"""The collapse guard: names a collapse while it happens, and the last checkpoint of before it.

It watches three things that are logged anyway: whether numbers are finite, the success rate, and the share of rollouts
that are cut off. Each is compared with the run's own past, so no limit depends on the model or the task.
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

_DROP = 0.3  # of the best success rate
_SIGMAS = 5.0  # the best is the luckiest of many windows: a difference within so many standard errors is chance
_TRUNCATED = 0.9

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Alarm:
    """What the guard saw.

    Attributes:
        step: optimizer steps done.
        what: in one line.
        sound_until: the policy after so many steps was sound yet.
        finite: whether all numbers were finite; a run in which they are not cannot go on.
    """

    step: int
    what: str
    sound_until: int
    finite: bool = True


class CollapseGuard:
    """The rules, on one set of vitals an optimizer step, the same on every process.

    *Recent* is the mean over the last ``window`` steps, *first* that over the first, *best* the highest success rate of
    so many steps in a row. It is an alarm if

    - the gradient's norm is not finite, or the entropy is infinite;
    - recent success is below 70 % of the best, by more than 5 standard errors;
    - more than 90 % of the recent rollouts were cut off, and success did not rise from first to recent.

    Args:
        window: optimizer steps.
        rollouts: of a step, on all processes.
    """

    def __init__(self, window: int, rollouts: int) -> None:
        self._window = window
        self._rollouts = rollouts * window
        self._recent: list[dict[str, float]] = []
        self._first: float | None = None  # success
        self._best = 0.0
        self._best_step = 0
        self.alarm: Alarm | None = None

    @property
    def sound_until(self) -> int:
        """The policy after so many steps is as good as it has been, as far as can be told by now."""
        return self._best_step if self.alarm is None else self.alarm.sound_until

    def observe(self, step: int, vitals: Mapping[str, float]) -> Alarm | None:
        """Take a step's vitals; the alarm, if this step raises the run's first one.

        Args:
            step: optimizer steps done, with this one.
            vitals: means over the step's rollouts, ``success``, ``truncated``, ``entropy``, and ``GRADIENT``. A mean
                over nothing (NaN, or absent) is not judged.
        """
        if self.alarm is not None:
            return None
        self.alarm = alarm = self._broken(step, vitals) or self._judged(step, vitals)
        return alarm

    def _broken(self, step: int, vitals: Mapping[str, float]) -> Alarm | None:
        # The entropy is of the policy before this step's update, which a broken gradient does not get. Beside a broken
        # gradient an entropy that is no number says that the weights were broken already.
        norm, entropy = vitals.get(GRADIENT, 0.0), vitals.get("entropy", 0.0)
        if not math.isfinite(norm):
            return Alarm(step, f"{GRADIENT} is {norm}", step - 1 - math.isnan(entropy), finite=False)
        return Alarm(step, f"entropy is {entropy}", step - 2, finite=False) if math.isinf(entropy) else None

    def _judged(self, step: int, vitals: Mapping[str, float]) -> Alarm | None:
        counted = {name: float(vitals.get(name, math.nan)) for name in ("success", "truncated")}
        kept = {name: value for name, value in counted.items() if math.isfinite(value)}
        self._recent = [*self._recent, kept][-self._window :]
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
        """Whether two windows' success rates differ by more than chance, if both were drawn from their mean."""
        mean = (one + other) / 2
        return abs(one - other) > _SIGMAS * math.sqrt(2 * mean * (1 - mean) / self._rollouts)

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
    """Feeds a run's guard, and acts on its alarm.

    Args:
        guard: the rules.
        action: ``warn`` or ``stop``; numbers that are not finite stop the run.
        vitals: of the last optimizer step, as ``CollapseGuard.observe`` takes them.
        grad_norm: the last gradient's norm before clipping.
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
        """An update that would leave no weight finite is left out. In float16 the gradient scaler does that itself."""
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
