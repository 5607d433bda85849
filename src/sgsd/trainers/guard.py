"""A watch over a run: names a collapse while it happens, and knows the last checkpoint of before it.

What SGSD as published does in the lab (docs/evidence.md) is not seen in its loss, which falls all the way down. It is
seen in five other numbers, each logged anyway: the share of rollouts that succeed, the policy's entropy, completion
lengths, the share of teachers with a stance, and the log-probability of the sampled tokens. Means over a window of
steps are compared with the run's own earlier ones, so no limit depends on the model or the task.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from sgsd.errors import CheckpointError
from sgsd.trainers.checkpoint import complete_checkpoints

if TYPE_CHECKING:
    from sgsd.trainers.base import VerifiedTrainer

GUARD_FILE = "guard.json"
VITALS = {
    "success": "success_rate",
    "entropy": "entropy",
    "logp": "sampled_logp",
    "active": "sgsd/active_share",
    "length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
}
"""What is watched → the metric it is read from."""
GRADIENT = "the gradient's norm"

# A difference of success rates within so many standard errors is chance: the best is the luckiest of many windows.
_SIGMAS = 5.0
_DROP = 0.3
_FACTOR, _NATS = 3.0, 1.0
_SHORT = 0.2
_CUT, _CUT_FIRST = 0.9, 0.5
_SURE = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Alarm:
    """What the guard saw.

    Attributes:
        step: optimizer steps done.
        what: in one line.
        sound_until: the policy after so many steps was sound yet.
        finite: whether all vitals were numbers; a run in which they are not cannot go on.
    """

    step: int
    what: str
    sound_until: int
    finite: bool = True


class CollapseGuard:
    """The rules, on one set of vitals an optimizer step, the same on every process.

    With w the window's length, *recent* is the mean over the last w steps, *first* that over the first w, *best* the
    highest success rate of w steps in a row. It is an alarm if

    - the gradient's norm, entropy or log-probability is not finite;
    - recent success is below 70 % of the best, by more than 5 standard errors;
    - recent entropy is above 3 × first and first + 1 nat;
    - the recent log-probability of sampled tokens is below 3 × first and first − 1 nat;
    - no teacher took a stance in the last w steps, after some had;
    - without more success than at first: recent completions are shorter than 20 % of the first, or over 90 % of them
      are cut where under 50 % were, or recent entropy is below 10 % of the first.

    Args:
        window: w, in optimizer steps.
        rollouts: of a step, on all processes.
    """

    def __init__(self, window: int, rollouts: int) -> None:
        self._window = window
        self._rollouts = rollouts * window
        self._recent: list[dict[str, float]] = []
        self._first: dict[str, float] = {}
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
            vitals: some of ``VITALS``, and ``GRADIENT``; what is missing, or a mean over nothing (NaN), is not judged.
        """
        if self.alarm is not None:
            return None
        # Entropy and log-probability are of the policy before this step's update, which a broken gradient does not get.
        for name, sound_until in (("entropy", step - 2), ("logp", step - 2), (GRADIENT, step - 1)):
            if not math.isfinite(vitals.get(name, 0.0)):
                self.alarm = Alarm(step, f"{name} is {vitals[name]}", sound_until, finite=False)
                return self.alarm
        self._recent = [*self._recent, dict(vitals)][-self._window :]
        if len(self._recent) == self._window:
            recent = _means(self._recent)
            self._first = self._first or recent
            if recent["success"] >= self._best:
                self._best, self._best_step = recent["success"], step
            fell = self._fall(recent)
            drift = self._drift(recent)
            if fell is not None:
                self.alarm = Alarm(step, fell, self._best_step)
            elif drift is not None:
                self.alarm = Alarm(step, drift, step - self._window)
        return self.alarm

    def _error(self, one: float, other: float) -> float:
        """Standard error of the difference of two windows' success rates, if both were drawn from their mean."""
        mean = (one + other) / 2
        return math.sqrt(2 * mean * (1 - mean) / self._rollouts)

    def _fall(self, recent: Mapping[str, float]) -> str | None:
        best, success = self._best, recent["success"]
        if success < (1 - _DROP) * best and best - success > _SIGMAS * self._error(best, success):
            return f"the success rate fell from {best:.1%} (steps to {self._best_step}) to {success:.1%}"
        return None

    def _drift(self, recent: Mapping[str, float]) -> str | None:
        first = self._first
        entropy, logp, active, length, cut = (
            (first.get(name, math.nan), recent.get(name, math.nan))
            for name in ("entropy", "logp", "active", "length", "truncated")
        )
        if entropy[1] > max(_FACTOR * entropy[0], entropy[0] + _NATS):
            return f"entropy rose from {entropy[0]:.2f} to {entropy[1]:.2f} nats a token"
        if logp[1] < min(_FACTOR * logp[0], logp[0] - _NATS):
            return f"the log-probability of sampled tokens fell from {logp[0]:.2f} to {logp[1]:.2f} nats"
        if active[1] == 0 < active[0]:
            return f"no teacher takes a stance any more; at first {active[0]:.1%} did"
        before, now = first["success"], recent["success"]
        if now > before + _SIGMAS * self._error(before, now):
            return None
        if length[1] < _SHORT * length[0]:
            return f"completions shrank from {length[0]:.0f} to {length[1]:.0f} tokens, without more success"
        if cut[0] < _CUT_FIRST and cut[1] > _CUT:
            return f"{cut[1]:.1%} of completions are cut off, {cut[0]:.1%} were at first, without more success"
        if entropy[1] < _SURE * entropy[0]:
            return f"entropy fell from {entropy[0]:.3f} to {entropy[1]:.3f} nats a token, without more success"
        return None

    def to_json(self) -> str:
        """All there is to go on from; ``restore`` reads it."""
        state = {"recent": self._recent, "first": self._first, "best": self._best, "best_step": self._best_step}
        return json.dumps(state | {"alarm": None if self.alarm is None else asdict(self.alarm)})

    def state_dict(self) -> dict[str, Any]:
        return json.loads(self.to_json())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restore(json.dumps(state), source="checkpoint")

    def restore(self, text: str, *, source: str) -> None:
        """Go on from what ``to_json`` wrote.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            state = json.loads(text)
            self._recent, self._first = state["recent"], state["first"]
            self._best, self._best_step = state["best"], state["best_step"]
            self.alarm = None if state["alarm"] is None else Alarm(**state["alarm"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError("the checkpoint's guard cannot be read", got=source) from error


class GuardCallback(TrainerCallback):
    """Feeds a run's guard, and acts on its alarm.

    Args:
        trainer: of the run.
        guard: the rules.
        action: ``warn``, ``stop``, or ``grpo`` (hand over to TRL's GRPO loss); a policy that is not finite stops.
    """

    def __init__(self, trainer: VerifiedTrainer, guard: CollapseGuard, action: str) -> None:
        self._trainer = trainer
        self._guard = guard
        self._action = action
        self._logged: dict[str, int] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An update that would leave no weight finite is left out. In float16 the gradient scaler does that itself."""
        if not args.fp16 and not math.isfinite(self._trainer.grad_norm):
            kwargs["model"].zero_grad()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        alarm = self._guard.observe(state.global_step, self._vitals())
        folder = Path(args.output_dir)
        if alarm is None:
            return
        sound = sound_checkpoint(folder, alarm.sound_until)
        stops = self._action == "stop" or not alarm.finite
        does = "stopped" if stops else {"warn": "goes on", "grpo": "goes on with GRPO's loss alone"}[self._action]
        _log.warning("%s", announcement(alarm, sound, does))
        if state.is_world_process_zero:
            _write(folder / GUARD_FILE, asdict(alarm) | {"run": does, "checkpoint": sound and sound.name})
        if stops:
            control.should_training_stop = True
        elif self._action == "grpo":
            self._trainer.hand_over()

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._logged = {}

    def _vitals(self) -> dict[str, float]:
        """Means over what was logged since the last step: a step may have several batches."""
        metrics = self._trainer._metrics["train"]  # a defaultdict: asking for what is not there would make it
        logged = {name: metrics.get(metric, []) for name, metric in VITALS.items()}
        values = {name: entries[self._logged.get(name, 0) :] for name, entries in logged.items()}
        self._logged = {name: len(entries) for name, entries in logged.items()}
        gradient = {} if self._trainer.args.fp16 else {GRADIENT: self._trainer.grad_norm}
        return gradient | {name: sum(entries) / len(entries) for name, entries in values.items() if entries}


def announcement(alarm: Alarm, checkpoint: Path | None, does: str) -> str:
    """One line: what was seen, what the run does, where it was sound."""
    where = "no checkpoint is older than that" if checkpoint is None else f"last sound checkpoint: {checkpoint}"
    return f"collapse guard, step {alarm.step}: {alarm.what}; the run {does}; {where}"


def sound_checkpoint(folder: Path, until: int) -> Path | None:
    """The run's latest complete checkpoint of at most ``until`` optimizer steps."""
    steps = {step: path for step, path in complete_checkpoints(folder).items() if step <= until}
    return steps[max(steps)] if steps else None


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each vital's mean over the steps where it was a number; none where it never was. No success is 0 %."""
    named = {name: [row[name] for row in rows if not math.isnan(row.get(name, math.nan))] for name in VITALS}
    return {"success": 0.0} | {name: sum(values) / len(values) for name, values in named.items() if values}


def _write(file: Path, document: dict[str, Any]) -> None:
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, file)
