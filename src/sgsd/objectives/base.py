"""What every objective takes and gives: one protocol on typed tensors.

A trainer asks an objective what it ``needs``, scores that, and calls ``loss``; it knows no objective by name. A new
objective is one file: a frozen dataclass of its own hyperparameters, as short as ``reweight``, and a line in
``objectives.OBJECTIVES``.

Axis letters: B rows, K teachers, T completion tokens, M likeliest tokens of a teacher. A mask is True where a token
counts. Log-probabilities are natural, of the full vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Metrics = dict[str, tuple[Tensor, Tensor]]
"""Name → (sum, count), detached 0-d tensors of one type. Sums and counts add up over micro-batches and processes; a
mean of means would weigh a rollout by the company it was in."""


@dataclass(frozen=True)
class Needs:
    """What an objective asks of the trainer.

    Attributes:
        top_tokens: each teacher's M likeliest tokens, and the student's log-probabilities of them.
        control: a control teacher's scores; with ``top_tokens`` also of each teacher's likeliest tokens.
        groups: GRPO's advantages, hence several rollouts a prompt.
        still_teacher: teachers that do not move with the student.
        outcomes: rollouts of these outcomes are scored for the loss.
        by_trust: teachers without trust are not read, so they need not be scored.
    """

    top_tokens: bool = False
    control: bool = False
    groups: bool = False
    still_teacher: bool = False
    outcomes: frozenset[int] = frozenset({-1, 1})
    by_trust: bool = False


@dataclass(frozen=True, kw_only=True)
class StudentScores:
    """The student's log-probabilities. They alone carry a gradient.

    Attributes:
        logps: ``[B, T]``, of the sampled tokens.
        top_logps: ``[B, K, T, M]``, of each teacher's likeliest tokens.
    """

    logps: Tensor
    top_logps: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherScores:
    """The teachers' log-probabilities, and how much each teacher counts. Constants.

    Attributes:
        logps: ``[B, K, T]``, of the sampled tokens.
        weights: ``[B, K]``, α from retrieval, non-negative; 0 is padding.
        trust: ``[B, K]``, τ from the ledger, 0 to 1.
        scored: ``[B, K]``, bool. False: this teacher was not run on this rollout, and nothing of it may be read.
        top_ids, top_logps: ``[B, K, T, M]``, each teacher's likeliest tokens, and its log-probabilities of them.
        control_logps: ``[B, T]``, of the sampled tokens under the control teacher, which is run on a rollout where any
            teacher is.
        control_top_logps: ``[B, K, T, M]``, of ``top_ids`` under the control teacher.
    """

    logps: Tensor
    weights: Tensor
    trust: Tensor
    scored: Tensor
    top_ids: Tensor | None = None
    top_logps: Tensor | None = None
    control_logps: Tensor | None = None
    control_top_logps: Tensor | None = None

    def read(self) -> TeacherScores:
        """These scores without a gradient, and with zeros for all that was not scored: weight, trust, numbers.

        An objective that begins with it cannot read what is not there, NaN included: such a teacher is padding.
        """

        def kept(values: Tensor | None) -> Tensor | None:
            return None if values is None else _where(self.scored, values.detach())

        any_scored = self.scored.any(1)
        return replace(
            self,
            logps=_where(self.scored, self.logps.detach()),
            weights=_where(self.scored, self.weights.detach()),
            trust=_where(self.scored, self.trust.detach()),
            top_logps=kept(self.top_logps),
            control_logps=None if self.control_logps is None else _where(any_scored, self.control_logps.detach()),
            control_top_logps=kept(self.control_top_logps),
        )


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """The completions and what is known of them. Constants.

    Attributes:
        ids: ``[B, T]``, as sampled.
        mask: ``[B, T]``, bool, True where a token counts. What stands elsewhere is never read.
        outcome: ``[B]`` in {−1, 0, 1}: failure, undecided, success.
        advantages: ``[B]``, GRPO's.
    """

    ids: Tensor
    mask: Tensor
    outcome: Tensor
    advantages: Tensor | None = None


class Objective(Protocol):
    """A loss of rollouts, their student and their teachers.

    Attributes:
        name: as the setting ``objective`` has it.
    """

    name: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """What the trainer has to score for it."""
        ...

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        """``[B]``, each row's loss, whose gradient is the student's alone; and what there is to log."""
        ...


class Settings(Protocol):
    """What objectives read of a run's settings; ``trainers.config.SGSDConfig`` has them all."""

    @property
    def gate_tau(self) -> float: ...
    @property
    def support_clip(self) -> float: ...
    @property
    def support_threshold(self) -> float: ...
    @property
    def support_baseline(self) -> str: ...
    @property
    def teacher_guidance(self) -> float: ...


class Configurable(Objective, Protocol):
    """An objective that is made of a run's settings."""

    @classmethod
    def from_config(cls, args: Settings) -> Objective:
        """Made of the settings that concern it."""
        ...


def total(values: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count of ``values`` where ``where`` is True, NaN elsewhere left out: one entry of ``Metrics``.

    The two broadcast. Neither picks entries out, so a device is not waited for.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    where = where | torch.zeros_like(values, dtype=torch.bool)
    return torch.where(where, values.detach().to(dtype), 0.0).sum(), where.sum().to(dtype)


def means(metrics: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Each metric's mean; NaN over nothing."""
    return {name: summed / count for name, (summed, count) in metrics.items()}


def given(values: Tensor | None, what: str, objective: str) -> Tensor:
    """``values``, unless the trainer left out what the objective needs.

    Raises:
        ValueError: it did.
    """
    if values is None:
        raise ValueError(f"objective {objective!r} needs {what}: got None")
    return values


def _where(rows: Tensor, values: Tensor) -> Tensor:
    """``values`` in the rows given, on their first axes; 0 elsewhere."""
    return torch.where(rows.reshape(*rows.shape, *[1] * (values.ndim - rows.ndim)), values, 0)
