"""The SGSD objective (arXiv 2605.28791), equations numbered as in docs/method.md.

Per row, with gap Δ_{k,t} = log p_T(y_t | g_k, e_k, x, y_<t) − log p_S(y_t | x, y_<t)           (1)

    support    S_k = mean_t clip(Δ_{k,t}, −c, +c), minus a control teacher's S if there is one  (2)
    stance     σ_k = sign(S_k) if |S_k| > θ else 0                                              (3)
    polarity   ρ_k = r σ_k,  r = +1 success, −1 failure, 0 undecided                            (4)
    gate       ℓ(Δ) = log 2 − log(1 + exp(−Δ²/2τ))                                              (5)
    loss       Σ_k α_k ρ_k mean_t ℓ(Δ_{k,t}), mean over rows                                    (6)

Gradient flows only through log p_S inside the gate: teachers, stances and weights are constants.
All arithmetic is float32 (float64 for float64 inputs): in bfloat16 the gate as written in (5) is 0 for |Δ| ≤ 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgsd.objectives.base import (
    Metrics,
    Needs,
    Rollouts,
    Settings,
    StudentScores,
    TeacherScores,
    means,
    required,
    total,
)


@dataclass(frozen=True)
class SGSDLoss:
    """What ``sgsd_loss`` returns.

    Attributes:
        loss: scalar, with gradient: the mean of ``row_loss`` over all rows, those of loss 0 included.
        row_loss: ``[B]``, with gradient.
        support: ``[B, K]``, mean clipped gap in nats per token.
        stance: ``[B, K]`` in {−1, 0, 1}.
        polarity: ``[B, K]`` in {−1, 0, 1}.
        totals: sums and counts to log, over teachers of positive weight.
    """

    loss: Tensor
    row_loss: Tensor
    support: Tensor
    stance: Tensor
    polarity: Tensor
    totals: Metrics

    @property
    def metrics(self) -> dict[str, Tensor]:
        """The means of ``totals``, detached scalars; NaN where the count is 0."""
        return means(self.totals)


def gate(gap: Tensor, tau: float) -> Tensor:
    """Robust gate ℓ(Δ) = log 2 − log(1 + exp(−Δ²/2τ)), equation (5): even, in [0, log 2], 0 at 0.

    Its slope Δ / (τ (1 + exp(Δ²/2τ))) vanishes at 0 (the teacher agrees with the student) and at infinity (an outlier).
    Computed as −log1p(expm1(−Δ²/2τ)/2), which keeps full precision near 0.

    Args:
        gap: any shape, in nats.
        tau: width, in squared nats.
    """
    return -torch.log1p(torch.expm1(-gap.square() / (2 * tau)) / 2)


def sgsd_loss(
    student_logps: Tensor,
    teacher_logps: Tensor,
    mask: Tensor,
    outcome: Tensor,
    teacher_weights: Tensor,
    *,
    tau: float = 1.0,
    clip: float = 3.0,
    threshold: float = 0.05,
    control_logps: Tensor | None = None,
) -> SGSDLoss:
    """Gated, polarity-signed distillation of K teachers into one student, equations (1) to (6).

    Args:
        student_logps: ``[B, T]``, log p_S of the sampled tokens, full vocabulary, natural log. Carries the gradient.
        teacher_logps: ``[B, K, T]``, the same tokens under each teacher. Detached here.
        mask: ``[B, T]``, bool, True where a token counts. Values at other positions are never read.
        outcome: ``[B]`` in {−1, 0, 1}: failure, undecided, success.
        teacher_weights: ``[B, K]``, non-negative; a teacher of weight 0 is padding.
        tau: gate width τ.
        clip: support clip c, in nats.
        threshold: dead zone θ, in nats: a support must exceed it in absolute value for a stance.
        control_logps: ``[B, T]``, the same tokens under a control teacher, whose skills are of other problems. Its
            support is subtracted from every teacher's, which removes the effect of any skill prompt on style.

    Returns:
        ``SGSDLoss``. A row without counted tokens, stances or a verdict has loss 0 and gradient exactly 0.

    Raises:
        ValueError: shapes do not fit, ``mask`` is not bool, or a setting is out of range.
    """
    _check(student_logps, teacher_logps, mask, outcome, teacher_weights, tau, clip, threshold)
    gap = _gap(student_logps, teacher_logps.detach(), mask)  # (1)
    baseline = None
    if control_logps is not None:
        baseline = supports(student_logps, control_logps.unsqueeze(1), mask, clip=clip).squeeze(1)
    return _loss(gap.detach(), gate(gap, tau), mask, outcome, teacher_weights, clip, threshold, baseline)


def local_support_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    in_support: Tensor,
    mask: Tensor,
    outcome: Tensor,
    teacher_weights: Tensor,
    *,
    tau: float = 1.0,
    clip: float = 3.0,
    threshold: float = 0.05,
) -> SGSDLoss:
    """The paper's local-support variant: the gate of a divergence between distributions renormalised on a few tokens.

    The local support of a teacher at a position is the sampled token (index 0) and the teacher's top M − 1 tokens. Both
    distributions are renormalised on it. The gap of (1) is the sampled token's renormalised log-ratio; it decides
    support S, stance and polarity. The gate takes KL(teacher ‖ student) on the local support in place of the gap.

    Args:
        student_scores: ``[B, K, T, M]``, logits or log-probabilities of the student on each teacher's local support.
        teacher_scores: ``[B, K, T, M]``, the teacher's. Detached here.
        in_support: ``[B, K, T, M]``, bool; False removes an entry, such as the sampled token's duplicate among the
            top tokens. Index 0 must be True wherever ``mask`` is.
        mask, outcome, teacher_weights, tau, clip, threshold: as for ``sgsd_loss``.

    Raises:
        ValueError: shapes do not fit, ``mask`` is not bool, or a setting is out of range.
    """
    if student_scores.shape != teacher_scores.shape or student_scores.shape != in_support.shape:
        raise ValueError(
            "student_scores, teacher_scores and in_support must have one shape [B, K, T, M]: got "
            f"{tuple(student_scores.shape)}, {tuple(teacher_scores.shape)}, {tuple(in_support.shape)}"
        )
    sampled = student_scores[:, 0, :, 0], teacher_scores[..., 0]
    _check(*sampled, mask, outcome, teacher_weights, tau, clip, threshold)
    counted = mask[:, None, :, None]
    # Entries outside the local support get probability 0. Masked positions become uniform, hence finite.
    lowest = torch.finfo(torch.float32).min
    student, teacher = (
        torch.where(counted, torch.where(in_support, _upcast(scores), lowest), 0.0).log_softmax(-1)
        for scores in (student_scores, teacher_scores.detach())
    )
    divergence = (teacher.exp() * torch.where(in_support & counted, teacher - student, 0.0)).sum(-1)
    gap = torch.where(mask.unsqueeze(1), (teacher - student)[..., 0].detach(), 0.0)
    return _loss(gap, gate(divergence, tau), mask, outcome, teacher_weights, clip, threshold)


def supports(student_logps: Tensor, teacher_logps: Tensor, mask: Tensor, *, clip: float) -> Tensor:
    """Equation (2) without a control: ``[B, T]`` and ``[B, K, T]`` log-probabilities → ``[B, K]``, detached."""
    return _support(_gap(student_logps.detach(), teacher_logps.detach(), mask), mask, clip)


def stances(
    student_logps: Tensor,
    teacher_logps: Tensor,
    mask: Tensor,
    *,
    clip: float,
    threshold: float,
    baseline: Tensor | None = None,
    scored: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Equations (2) and (3) on their own: the ledger takes them, unless the objective has ``OwnStances``.

    Args:
        student_logps, teacher_logps, mask, clip, threshold: as for ``sgsd_loss``. Detached here.
        baseline: ``[B]``, a control teacher's support, subtracted from every teacher's.
        scored: ``[B, K]``, bool, False where a teacher was not run on a rollout. ``None``: all were run.

    Returns:
        ``(support, stance)``, ``[B, K]`` each: 0 where ``scored`` is False.
    """
    support = supports(student_logps, teacher_logps, mask, clip=clip)
    if baseline is not None:
        support = support - baseline.unsqueeze(1)
    if scored is not None:
        support = torch.where(scored, support, 0.0)
    return support, _stance(support, threshold)


def stance_metrics(
    support: Tensor, stance: Tensor, outcome: Tensor, real: Tensor, *, baseline: Tensor | None = None
) -> Metrics:
    """Metrics of supports, stances and polarities, whatever the loss.

    Args:
        support, stance: ``[B, K]``.
        outcome: ``[B]``, of all rollouts.
        real: ``[B, K]``, bool, True for teachers that were run and have a positive weight. Only these are counted.
        baseline: ``[B]``, the control teacher's support, if there is one; counted in rows with a real teacher.
    """
    success, failure = (outcome > 0).unsqueeze(1), (outcome < 0).unsqueeze(1)
    polarity = _polarity(outcome, stance)
    metrics = {
        "support": total(support, real),
        "support/success": total(support, real & success),
        "support/failure": total(support, real & failure),
        "active_share": total(stance != 0, real),
        "polarity/positive_share": total(polarity > 0, real),
        "polarity/negative_share": total(polarity < 0, real),
        "polarity/neutral_share": total(polarity == 0, real),
        "undecided_share": total(outcome == 0, torch.ones_like(outcome, dtype=torch.bool)),
    }
    if baseline is not None:
        metrics["support/control"] = total(baseline, real.any(1))
    return metrics


@dataclass(frozen=True)
class Gated:
    """Objective ``gated``: the paper's loss, equations (1) to (6).

    Attributes:
        tau, clip, threshold: as for ``sgsd_loss``.
        control: subtract a control teacher's support, equation (2′).
    """

    tau: float = 1.0
    clip: float = 3.0
    threshold: float = 0.05
    control: bool = False
    name: ClassVar[str] = "gated"

    @classmethod
    def from_config(cls, args: Settings) -> Gated:
        return cls(args.gate_tau, args.support_clip, args.support_threshold, args.support_baseline == "control")

    @property
    def needs(self) -> Needs:
        return Needs(control=self.control)

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
            control_logps=required(teachers.control_logps, "a control teacher", self.name) if self.control else None,
        )
        return result.row_loss, result.totals


@dataclass(frozen=True)
class LocalSupport:
    """Objective ``local``: the paper's variant on the sampled token and each teacher's likeliest tokens.

    Attributes:
        tau, clip, threshold: as for ``local_support_loss``.
    """

    tau: float = 1.0
    clip: float = 3.0
    threshold: float = 0.05
    name: ClassVar[str] = "local"

    @classmethod
    def from_config(cls, args: Settings) -> LocalSupport:
        return cls(args.gate_tau, args.support_clip, args.support_threshold)

    @property
    def needs(self) -> Needs:
        return Needs(top_tokens=True)

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        result = self._result(student, teachers, rollouts)
        return result.row_loss, result.totals

    def stances(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            result = self._result(student, teachers, rollouts)
        return result.support, result.stance

    def _result(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> SGSDLoss:
        teachers = teachers.read()
        top_ids = required(teachers.top_ids, "the teachers' likeliest tokens", self.name)
        teacher_logps = required(teachers.top_logps, "the teachers' likeliest tokens", self.name)
        student_logps = required(student.top_logps, "the student's log-probabilities of likely tokens", self.name)
        # The sampled token is in the local support once, whether it is among the likeliest or not.
        others = (top_ids != rollouts.ids[:, None, :, None]) & teachers.scored[:, :, None, None]
        sampled = student.logps[:, None, :, None].expand_as(student_logps[..., :1])
        return local_support_loss(
            torch.cat([sampled, student_logps], dim=-1),
            torch.cat([teachers.logps.unsqueeze(-1), teacher_logps], dim=-1),
            torch.cat([torch.ones_like(others[..., :1]), others], dim=-1),
            rollouts.mask,
            rollouts.outcome,
            teachers.weights,
            tau=self.tau,
            clip=self.clip,
            threshold=self.threshold,
        )


def _loss(
    gap: Tensor,
    gated: Tensor,
    mask: Tensor,
    outcome: Tensor,
    teacher_weights: Tensor,
    clip: float,
    threshold: float,
    baseline: Tensor | None = None,
) -> SGSDLoss:
    """Equations (2) to (4) and (6), from gaps (constants, 0 where masked) and gate values, ``[B, K, T]`` each."""
    support = _support(gap, mask, clip)  # (2)
    if baseline is not None:
        support = support - baseline.unsqueeze(1)
    stance = _stance(support, threshold)
    polarity = _polarity(outcome, stance)
    weights = teacher_weights.detach().to(gated.dtype)
    counted = mask.unsqueeze(1).to(gated.dtype)
    teacher_gate = (gated * counted).sum(-1) / counted.sum(-1).clamp(min=1)
    row_loss = (weights * polarity * teacher_gate).sum(-1)  # (6)
    real = weights > 0
    totals = stance_metrics(support, stance, outcome, real, baseline=baseline) | {
        "gate": total(teacher_gate, real),
        "clipped_share": total(gap.abs() > clip, real.unsqueeze(-1) & mask.unsqueeze(1)),
    }
    return SGSDLoss(
        loss=row_loss.mean(), row_loss=row_loss, support=support, stance=stance, polarity=polarity, totals=totals
    )


def _gap(student_logps: Tensor, teacher_logps: Tensor, mask: Tensor) -> Tensor:
    """Equation (1), ``[B, K, T]``; 0 where the mask is False."""
    return torch.where(mask.unsqueeze(1), _upcast(teacher_logps) - _upcast(student_logps).unsqueeze(1), 0.0)


def _support(gap: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Equation (2), ``[B, K]``, from gaps that are 0 where the mask is False."""
    return gap.clamp(-clip, clip).sum(-1) / mask.unsqueeze(1).to(gap.dtype).sum(-1).clamp(min=1)


def _stance(support: Tensor, threshold: float) -> Tensor:
    return torch.where(support.abs() > threshold, support.sign(), 0.0)  # (3)


def _polarity(outcome: Tensor, stance: Tensor) -> Tensor:
    return outcome.to(stance.dtype).unsqueeze(1) * stance  # (4)


def _upcast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _check(
    student_logps: Tensor,
    teacher_logps: Tensor,
    mask: Tensor,
    outcome: Tensor,
    teacher_weights: Tensor,
    tau: float,
    clip: float,
    threshold: float,
) -> None:
    if student_logps.ndim != 2 or teacher_logps.ndim != 3:
        raise ValueError(
            "student_logps must be [B, T] and teacher_logps [B, K, T]: got "
            f"{tuple(student_logps.shape)}, {tuple(teacher_logps.shape)}"
        )
    (B, T), K = student_logps.shape, teacher_logps.shape[1]
    for name, tensor, shape in (
        ("teacher_logps", teacher_logps, (B, K, T)),
        ("mask", mask, (B, T)),
        ("outcome", outcome, (B,)),
        ("teacher_weights", teacher_weights, (B, K)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}: got {tuple(tensor.shape)}")
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True where a token counts: got {mask.dtype}")
    if not (tau > 0 and clip > 0 and threshold >= 0):
        raise ValueError(f"tau and clip must be positive, threshold not negative: got {tau}, {clip}, {threshold}")
