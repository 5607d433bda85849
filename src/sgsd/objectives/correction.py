"""Correction of failures by trusted teachers (docs/method.md, "Correction").

GRPO's advantages rank the rollouts that were sampled. Trusted teachers can also name a better token that was not
sampled, which is worth learning on failures. The loss of row b, used alone or beside GRPO's, is

    L_b = 1[r_b = −1] Σ_k w_k mean_t D_{k,t}
    D = Σ_{v ∈ top M of p_T} p_T(v) log(p_T(v) / p_S(v)) + p_T(rest) log(p_T(rest) / p_S(rest))          (7)
    w_k = max_j τ_j · α_k τ_k / Σ_j α_j τ_j                                                              (8)

with the retrieval weights α of ``gated`` and τ_k in [0, 1], the trust in teacher k. D is the forward KL divergence from
teacher k to the student at one position of the rollout, on M + 1 events: the teacher's M likeliest tokens, and all
other tokens together, p(rest) = 1 − Σ_{v ∈ top M} p(v). By the data processing inequality it lies between 0 and the
divergence over the full vocabulary; it is 0 only where both distributions agree on the M tokens. Without the rest the
sum is not a divergence: it is negative where the student gives the M tokens more probability than the teacher does.

The gradient with respect to the student's logit of v is Σ_k w_k (p_S(v) − q_k(v)). On the M tokens q_k is p_{T,k};
beyond them it is p_{T,k}(rest), divided in proportion to p_S. The gradient is at most 1 in size, and does not vanish
where the student is sure of another token.

Guidance sharpens a teacher that is unsure of the right token. Its log-ratio to a control teacher p_{T,0}, whose skills
are of other problems, is added γ times,

    p̂_{T,k}(v) ∝ p_{T,k}(v) · (p_{T,k}(v) / p_{T,0}(v))^γ                                                (7′)

on the tokens that the teacher finds plausible. p̂_{T,k} replaces p_{T,k} in (7), and p(rest) stays as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgsd.objectives.base import Metrics, Needs, Rollouts, Settings, StudentScores, TeacherScores, required, total


def trusted_weights(teacher_weights: Tensor, trust: Tensor) -> Tensor:
    """Weights w of equation (8): proportional to α τ, and scaled so that their sum is the highest trust of the row.

    The strength of the signal therefore does not depend on the number of teachers without trust.

    Args:
        teacher_weights: ``[B, K]``, α, non-negative; a teacher of weight 0 is padding.
        trust: ``[B, K]``, τ, from 0 to 1.

    Returns:
        ``[B, K]``; zeros in rows where all teachers have weight or trust 0.
    """
    shares = teacher_weights * trust
    total = shares.sum(1, keepdim=True)
    highest = torch.where(teacher_weights > 0, trust, 0.0).amax(1, keepdim=True)
    return torch.where(total > 0, highest * shares / total.clamp(min=torch.finfo(shares.dtype).tiny), 0.0)


_PLAUSIBLE = 0.1  # of the likeliest token's probability (contrastive decoding, arXiv 2210.15097)


def guided_logps(teacher_logps: Tensor, control_logps: Tensor, *, guidance: float, clip: float) -> Tensor:
    """Equation (7′) on a teacher's likeliest tokens: classifier-free guidance for language models (arXiv 2306.17806).

    Log-ratios are added only for tokens at least a tenth as likely as the likeliest one: ratios of very small
    probabilities are noise. The M tokens keep their total probability, so guidance 0 returns the teacher itself.

    Args:
        teacher_logps: ``[..., M]``, log p_T of its M likeliest tokens.
        control_logps: ``[..., M]``, the control teacher's, of the same tokens.
        guidance: γ, not negative.
        clip: limit of |log p_T − log p_0|, in nats.

    Returns:
        ``[..., M]``, float32 or wider, without gradient.
    """
    dtype = torch.promote_types(teacher_logps.dtype, torch.float32)
    teacher, control = teacher_logps.detach().to(dtype), control_logps.detach().to(dtype)
    plausible = teacher >= teacher.amax(-1, keepdim=True) + math.log(_PLAUSIBLE)
    guided = teacher + guidance * torch.where(plausible, (teacher - control).clamp(-clip, clip), 0.0)
    return guided + (teacher.logsumexp(-1, keepdim=True) - guided.logsumexp(-1, keepdim=True))


def correction_loss(
    student_logps: Tensor, teacher_logps: Tensor, mask: Tensor, outcome: Tensor, weights: Tensor
) -> Tensor:
    """Equation (7) of each row.

    Args:
        student_logps: ``[B, K, T, M]``, log p_S of teacher k's M likeliest tokens, full vocabulary. Carries the
            gradient.
        teacher_logps: ``[B, K, T, M]``, the teacher's own. Detached here.
        mask: ``[B, T]``, bool, True where a token counts. Values at other positions are never read.
        outcome: ``[B]`` in {−1, 0, 1}: failure, undecided, success.
        weights: ``[B, K]``, w, non-negative; the scores of a teacher of weight 0 are never read.

    Returns:
        ``[B]``, in nats per token, float32 or wider; 0 with gradient exactly 0 in rows that are not failures.

    Raises:
        ValueError: the shapes do not fit, or ``mask`` is not bool.
    """
    B, K = weights.shape
    T, M = student_logps.shape[-2:]
    shapes = tuple(student_logps.shape), tuple(teacher_logps.shape), tuple(mask.shape), tuple(outcome.shape)
    if shapes != ((B, K, T, M), (B, K, T, M), (B, T), (B,)):
        raise ValueError(
            "student_logps and teacher_logps must be [B, K, T, M], mask [B, T], outcome [B] and weights [B, K]: got "
            f"{', '.join(map(str, shapes))} and {(B, K)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True where a token counts: got {mask.dtype}")
    dtype = torch.promote_types(student_logps.dtype, torch.float32)
    weights = torch.where((outcome < 0).unsqueeze(1), weights.detach(), 0.0).to(dtype)
    read = (mask.unsqueeze(1) & (weights > 0).unsqueeze(-1)).unsqueeze(-1)  # [B, K, T, 1]
    filler = -math.log(2 * M)  # for both sides where nothing is read: the divergence is 0 and its gradient finite
    student = torch.where(read, student_logps.to(dtype), filler)
    teacher = torch.where(read, teacher_logps.detach().to(dtype), filler)
    divergence = (teacher.exp() * (teacher - student)).sum(-1) + _of_rest(student, teacher)
    divergence = torch.where(read.squeeze(-1), divergence, 0.0)
    return (weights * divergence.sum(-1)).sum(-1) / mask.sum(-1).clamp(min=1)


def rest(logps: Tensor) -> Tensor:
    """The probability of all other tokens: ``[..., M]`` log-probabilities → ``[...]``, 1 − Σ exp(logps).

    There is no cancellation near 0. Where the M tokens have all the probability, the result is the rounding error of
    ``logps``, of either sign.
    """
    return -torch.expm1(logps.logsumexp(-1))


def _of_rest(student: Tensor, teacher: Tensor) -> Tensor:
    """The summand of (7) for all other tokens: two ``[..., M]`` → ``[...]``.

    A teacher's rest below rounding error is returned as it is, which keeps the divergence from being negative. Where
    the teacher's rest is more than 1/√ε times the student's (8 nats in float32), the logarithm is continued by its
    tangent: the gradients of the M tokens cancel up to that factor, so they keep a relative precision of √ε.
    """
    info = torch.finfo(student.dtype)
    p, q = rest(teacher), rest(student)
    above_rounding = p > _ROUNDING * info.eps
    safe_p = torch.where(above_rounding, p, 1.0)
    least_q = safe_p * math.sqrt(info.eps)
    enough = q >= least_q
    log_ratio = torch.where(enough, safe_p.log() - torch.where(enough, q, 1.0).log(), 0.0)
    tangent = (least_q.log() - safe_p.log()).neg() + (least_q - q) / least_q
    return torch.where(above_rounding, p * torch.where(enough, log_ratio, tangent), p)


_ROUNDING = 32  # rounding error of a sum of probabilities whose logarithms are about 20 nats, in units of ε


@dataclass(frozen=True)
class Correction:
    """Objective ``correction``: equations (7) and (8), with (7′) where ``guidance`` is positive.

    Attributes:
        guidance, clip: as for ``guided_logps``.
    """

    guidance: float = 0.0
    clip: float = 3.0
    name: ClassVar[str] = "correction"

    @classmethod
    def from_config(cls, args: Settings) -> Correction:
        return cls(args.teacher_guidance, args.support_clip)

    @property
    def needs(self) -> Needs:
        guided = self.guidance > 0
        return Needs(
            top_tokens=True,
            control=guided,
            frozen_teacher=guided,
            outcomes=frozenset({-1}),
            by_trust=True,
        )

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        teachers = teachers.read()
        student_logps = required(student.top_logps, "the student's log-probabilities of likely tokens", self.name)
        teacher_logps = required(teachers.top_logps, "the teachers' likeliest tokens", self.name)
        if self.guidance:
            what = "the control's log-probabilities of likely tokens"
            control_logps = required(teachers.control_top_logps, what, self.name)
            teacher_logps = guided_logps(teacher_logps, control_logps, guidance=self.guidance, clip=self.clip)
        weights = trusted_weights(teachers.weights, teachers.trust)
        rows = correction_loss(student_logps, teacher_logps, rollouts.mask, rollouts.outcome, weights)
        failed = (rollouts.outcome < 0) & teachers.scored.any(1)
        tokens = (weights > 0).unsqueeze(-1) & failed[:, None, None] & rollouts.mask.unsqueeze(1)
        return rows, {
            "trust": total(weights.sum(1), failed),
            "correction": total(rows, failed),
            "teacher_rest": total(rest(teacher_logps), tokens),
        }
