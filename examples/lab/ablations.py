"""Three settings more of ``sgsd lab run``, which the evidence asks for and a user has no use for.

    sgsd lab run sharp -- --use_gate false

- ``--use_gate false``: SGSD with Δ²/4τ in the gate's place, which it equals for small gaps;
- ``--use_polarity false``: SGSD with every teacher that takes a stance as a supporter, whatever the verdict;
- ``--correct_all true``: the correction of successes as well.

Each is an objective of its own here, and shows what it takes to add one: a class, and its name in ``OBJECTIVES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from sgsd.objectives import (
    OBJECTIVES,
    Correction,
    Gated,
    Metrics,
    Needs,
    Rollouts,
    StudentScores,
    TeacherScores,
    sgsd_loss,
)


@dataclass(frozen=True)
class _Ablated(Gated):
    """The paper's loss without one of its parts."""

    use_gate: ClassVar[bool] = True
    use_polarity: ClassVar[bool] = True

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        teachers = teachers.read()
        result = sgsd_loss(
            student.logps,
            teachers.logps,
            rollouts.mask,
            rollouts.outcome,
            teachers.weights,
            tau=self.tau,
            clip=self.clip,
            threshold=self.threshold,
            use_gate=self.use_gate,
            use_polarity=self.use_polarity,
            control_logps=teachers.control_logps if self.control else None,
        )
        return result.row_loss, {}


class WithoutGate(_Ablated):
    name: ClassVar[str] = "gated-without-gate"
    use_gate: ClassVar[bool] = False


class WithoutPolarity(_Ablated):
    name: ClassVar[str] = "gated-without-polarity"
    use_polarity: ClassVar[bool] = False


class CorrectionOfAll(Correction):
    name: ClassVar[str] = "correction-of-all"

    @property
    def needs(self) -> Needs:
        return replace(super().needs, outcomes=frozenset({-1, 1}))

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        return super().loss(student, teachers, replace(rollouts, outcome=-rollouts.outcome.abs()))


ABLATIONS = {
    ("--use_gate", "false"): WithoutGate,
    ("--use_polarity", "false"): WithoutPolarity,
    ("--correct_all", "true"): CorrectionOfAll,
}
"""Setting → objective."""


def as_objectives(settings: Sequence[str]) -> list[str]:
    """Flags of ``sgsd train`` in which each of these settings is an objective, which ``OBJECTIVES`` then knows.

    Later flags win over earlier ones.
    """
    words = list(settings)
    for setting, objective in ABLATIONS.items():
        for place in range(1, len(words)):
            if tuple(words[place - 1 : place + 1]) == setting:
                words[place - 1 : place + 1] = ["--objective", objective.name]
                OBJECTIVES[objective.name] = objective
    return words
