"""The protocol of objectives, and the tensors they take.

The trainer computes what an objective ``needs``, then calls ``loss``. It knows no objective by name. A new objective is
one file with a frozen dataclass of its hyperparameters (``reweight`` is the shortest), and a line in
``objectives.OBJECTIVES``.

Axis letters: B rows, K teachers, T completion tokens, M likeliest tokens of a teacher. A mask is True where a token
counts. Log-probabilities are natural, of the full vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

Metrics = dict[str, tuple[Tensor, Tensor]]
"""Name → (sum, count), detached 0-d tensors of one dtype. Sums and counts add up over micro-batches and processes; a
mean of means would weight rollouts unequally where batches differ in size."""


@dataclass(frozen=True)
class Needs:
    """What an objective needs from the trainer.

    Attributes:
        top_tokens: each teacher's M likeliest tokens, and the student's log-probabilities of them.
        control: a control teacher's scores; with ``top_tokens`` also of each teacher's likeliest tokens.
        groups: GRPO's advantages, hence several rollouts per prompt.
        frozen_teacher: teachers with the policy's initial weights.
        outcomes: the loss reads only rollouts of these outcomes.
        by_trust: the loss ignores teachers of trust 0, so they are not scored for it.
        unscored: the loss also reads the student's scores of rollouts that no teacher scored. Otherwise these are 0,
            without gradient.
    """

    top_tokens: bool = False
    control: bool = False
    groups: bool = False
    frozen_teacher: bool = False
    outcomes: frozenset[int] = frozenset({-1, 1})
    by_trust: bool = False
    unscored: bool = False


@dataclass(frozen=True, kw_only=True)
class StudentScores:
    """The student's log-probabilities, with gradient.

    Attributes:
        logps: ``[B, T]``, of the sampled tokens.
        top_logps: ``[B, K, T, M]``, of each teacher's likeliest tokens.
    """

    logps: Tensor
    top_logps: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherScores:
    """The teachers' log-probabilities, weights and trust, without gradient.

    Attributes:
        logps: ``[B, K, T]``, of the sampled tokens.
        weights: ``[B, K]``, α from retrieval, non-negative; 0 is padding.
        trust: ``[B, K]``, τ from the ledger, 0 to 1.
        scored: ``[B, K]``, bool. Where False, this teacher was not run on this rollout, and its scores are undefined.
        top_ids, top_logps: ``[B, K, T, M]``, each teacher's likeliest tokens, and its log-probabilities of them.
        control_logps: ``[B, T]``, of the sampled tokens under the control teacher; defined for rollouts that any
            teacher scored.
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
        """A detached copy, with 0 for the weight, trust and scores of teachers that were not run.

        An objective calls this first: a teacher that was not run is then padding, even if its scores were NaN.
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
    """The completions, their outcomes and advantages, without gradient.

    Attributes:
        ids: ``[B, T]``, token ids as sampled.
        mask: ``[B, T]``, bool, True where a token counts. Values at other positions are never read.
        outcome: ``[B]`` in {−1, 0, 1}: failure, undecided, success.
        advantages: ``[B]``, GRPO's.
    """

    ids: Tensor
    mask: Tensor
    outcome: Tensor
    advantages: Tensor | None = None


class Objective(Protocol):
    """A loss on rollouts and the scores of their student and teachers.

    Attributes:
        name: the value of the setting ``objective`` that selects it.
    """

    name: ClassVar[str]

    @property
    def needs(self) -> Needs:
        """What the trainer must compute for ``loss``."""
        ...

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        """``[B]``, each row's loss, with gradient for the student alone; and metrics to log."""
        ...


@runtime_checkable
class OwnStances(Protocol):
    """An objective whose supports are not those of equation (2): ledger, traces and metrics have its own."""

    def stances(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        """``(support, stance)`` of its loss, ``[B, K]`` each, without gradient; 0 for teachers that were not run."""
        ...


class Settings(Protocol):
    """The settings that objectives read; ``trainers.config.SGSDConfig`` has them all."""

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
    """An objective that can be built from a run's settings."""

    @classmethod
    def from_config(cls, args: Settings) -> Objective: ...


def total(values: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and count of ``values`` where ``where`` is True: one entry of ``Metrics``.

    The two tensors broadcast. NaN elsewhere does no harm. There is no boolean indexing, which would sync with the host.
    """
    dtype = torch.promote_types(values.dtype, torch.float32)
    where = where | torch.zeros_like(values, dtype=torch.bool)
    return torch.where(where, values.detach().to(dtype), 0.0).sum(), where.sum().to(dtype)


def means(metrics: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Each metric's mean; NaN where the count is 0."""
    return {name: summed / count for name, (summed, count) in metrics.items()}


def required(values: Tensor | None, what: str, objective: str) -> Tensor:
    """``values``, which the objective needs.

    Raises:
        ValueError: ``values`` is ``None``.
    """
    if values is None:
        raise ValueError(f"objective {objective!r} needs {what}: got None")
    return values


def _where(rows: Tensor, values: Tensor) -> Tensor:
    """``values`` where the mask ``rows`` of their first axes is True, 0 elsewhere."""
    return torch.where(rows.reshape(*rows.shape, *[1] * (values.ndim - rows.ndim)), values, 0)
