"""Further settings of ``sgsd lab run``, for ablations and placebos in the evidence.

    sgsd lab run sharp -- --use_gate false

Three settings remove a part of a method:

- ``--use_gate false``: SGSD with Δ²/4τ instead of the gate, which is equal to it for small gaps;
- ``--use_polarity false``: SGSD with polarity +1 for every teacher with a stance, whatever the verdict;
- ``--correct_all true``: correction of successes as well as failures.

Two settings are placebos, which change the policy on failures without information from a bank:

- ``--random_tokens true``: guided correction (γ = 2) in which the probabilities of each teacher's likeliest tokens are
  permuted at random at every position;
- ``--suppress_failures true``: every token of a failure has the same advantage, −``sgsd_weight``, and teachers are not
  used. This follows OPSA (arXiv 2608.31046), which makes unlikely tokens less likely without a teacher.

Each setting is an objective. The module also shows how to add one: a class, and its name in ``OBJECTIVES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from sgsd.objectives import (
    OBJECTIVES,
    Configurable,
    Correction,
    Gated,
    Metrics,
    Needs,
    Rollouts,
    Settings,
    StudentScores,
    TeacherScores,
    gate,
    sgsd_loss,
)
from sgsd.objectives.base import required, total


class _Ablated(Gated):
    """The paper's loss with a replaceable gate and polarity."""

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        teachers, mask = teachers.read(), rollouts.mask.unsqueeze(1)
        control_logps = teachers.control_logps if self.control else None
        inputs = student.logps, teachers.logps, rollouts.mask, rollouts.outcome, teachers.weights
        limits = {"tau": self.tau, "clip": self.clip, "threshold": self.threshold}
        polarity = self.polarity(sgsd_loss(*inputs, **limits, control_logps=control_logps).polarity)
        gap = torch.where(mask, teachers.logps - student.logps.unsqueeze(1), 0.0)
        gated = (self.gate(gap) * mask.to(gap.dtype)).sum(-1) / mask.to(gap.dtype).sum(-1).clamp(min=1)
        return (teachers.weights * polarity * gated).sum(-1), {}

    def gate(self, gap: Tensor) -> Tensor:
        return gate(gap, self.tau)

    def polarity(self, polarity: Tensor) -> Tensor:
        return polarity


class WithoutGate(_Ablated):
    name: ClassVar[str] = "gated-without-gate"

    def gate(self, gap: Tensor) -> Tensor:
        return gap.square() / (4 * self.tau)


class WithoutPolarity(_Ablated):
    name: ClassVar[str] = "gated-without-polarity"

    def polarity(self, polarity: Tensor) -> Tensor:
        return polarity.abs()


class CorrectionOfAll(Correction):
    name: ClassVar[str] = "correction-of-all"

    @property
    def needs(self) -> Needs:
        return replace(super().needs, outcomes=frozenset({-1, 1}))

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        return super().loss(student, teachers, replace(rollouts, outcome=-rollouts.outcome.abs()))


class RandomTokens(Correction):
    """γ is fixed, because the settings accept ``teacher_guidance`` only with objective ``correction``."""

    name: ClassVar[str] = "correction-to-random-tokens"

    @classmethod
    def from_config(cls, args: Settings) -> RandomTokens:
        return cls(2.0, args.support_clip)

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        wanted = required(teachers.top_logps, "the teachers' likeliest tokens", self.name)
        control = required(teachers.control_top_logps, "a control's log-probabilities of likely tokens", self.name)
        places = torch.rand_like(wanted, dtype=torch.float32).argsort(-1)
        drawn = replace(teachers, top_logps=wanted.gather(-1, places), control_top_logps=control.gather(-1, places))
        return super().loss(student, drawn, rollouts)


@dataclass(frozen=True)
class Suppression:
    """L_b = 1[r_b = −1] mean_t p_S(y_t) / sg p_S(y_t): the policy gradient of an advantage of −1 at each token."""

    name: ClassVar[str] = "suppression-of-failures"

    @classmethod
    def from_config(cls, args: Settings) -> Suppression:
        return cls()

    @property
    def needs(self) -> Needs:
        return Needs(outcomes=frozenset(), unscored=True)

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        failed = rollouts.outcome < 0
        read = rollouts.mask & failed.unsqueeze(1)
        logps = torch.where(read, student.logps, 0.0)
        ratio = torch.where(read, (logps - logps.detach()).exp(), 0.0)
        rows = ratio.sum(1) / rollouts.mask.sum(1).clamp(min=1)
        return rows, {"suppressed": total(rows, failed)}


ABLATIONS: dict[tuple[str, str], type[Configurable]] = {
    ("--use_gate", "false"): WithoutGate,
    ("--use_polarity", "false"): WithoutPolarity,
    ("--correct_all", "true"): CorrectionOfAll,
    ("--random_tokens", "true"): RandomTokens,
    ("--suppress_failures", "true"): Suppression,
}
"""The objective of each setting."""


def as_objectives(settings: Sequence[str]) -> list[str]:
    """Replace each of these settings by ``--objective NAME``, and add the objective to ``OBJECTIVES``.

    Returns:
        Flags of ``sgsd train``. Later flags override earlier ones.
    """
    words = list(settings)
    for setting, objective in ABLATIONS.items():
        for place in range(1, len(words)):
            if tuple(words[place - 1 : place + 1]) == setting:
                words[place - 1 : place + 1] = ["--objective", objective.name]
                OBJECTIVES[objective.name] = objective
    return words
