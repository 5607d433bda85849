"""Correction of failures by trusted teachers (docs/method.md, "Correction").

GRPO says which of the sampled tokens did better than others. Trusted teachers can say what should have stood there
instead, whether it was sampled or not; on a failure that is worth learning, on a success it is not. Beside GRPO's loss
stands that of each row b,

    L_b = 1[r_b = −1] Σ_k w_k mean_t D_{k,t}
    D = Σ_{v ∈ top M of p_T} p_T(v) log(p_T(v) / p_S(v)) + p_T(rest) log(p_T(rest) / p_S(rest))          (7)
    w_k = max_j τ_j · α_k τ_k / Σ_j α_j τ_j                                                              (8)

with the retrieval weights α of ``gated`` and τ_k in [0, 1], the trust in teacher k: the forward KL divergence from each
trusted teacher at each position of the student's own rollout, on the teacher's M likeliest tokens and, as one bucket,
all the rest, p(rest) = 1 − Σ_{v ∈ top M} p(v). It is never negative, never above the divergence over the full
vocabulary, and 0 only where the two agree on the M tokens. Without the bucket the sum is no divergence: it is negative
wherever the student gives the M tokens more probability than the teacher does, and pulls it to give them even more.

Its gradient with respect to the student's logit of v is Σ_k w_k (p_S(v) − q_k(v)), where q_k is p_{T,k} on the M tokens
and, beyond them, p_{T,k}(rest) shared out as the student has it: at most 1, and not vanishing where the student is sure
of something else.

A teacher that leans to the right token without being sure of it can be guided: what sets it apart from a control
teacher, which knows nothing of the problem, counts 1 + γ times,

    p̂_{T,k}(v) ∝ p_{T,k}(v) · (p_{T,k}(v) / p_{T,0}(v))^γ                                                (7′)

on the tokens it finds plausible, and takes the place of p_{T,k} in (7). The rest keeps its probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgsd.objectives.base import Metrics, Needs, Rollouts, Settings, StudentScores, TeacherScores, given, total


def trusted_weights(teacher_weights: Tensor, trust: Tensor) -> Tensor:
    """Weights w of equation (8): the shares go by weight and trust, their sum is the highest trust.

    So a signal is as strong as the best teacher is trusted, however many others there are.

    Args:
        teacher_weights: ``[B, K]``, α, non-negative; a teacher of weight 0 is padding.
        trust: ``[B, K]``, τ, from 0 to 1.

    Returns:
        ``[B, K]``; zeros in rows where no real teacher is trusted at all.
    """
    shares = teacher_weights * trust
    total = shares.sum(1, keepdim=True)
    highest = torch.where(teacher_weights > 0, trust, 0.0).amax(1, keepdim=True)
    return torch.where(total > 0, highest * shares / total.clamp(min=torch.finfo(shares.dtype).tiny), 0.0)


_PLAUSIBLE = 0.1  # of the likeliest token's probability (contrastive decoding, arXiv 2210.15097)


def guided_logps(teacher_logps: Tensor, control_logps: Tensor, *, guidance: float, clip: float) -> Tensor:
    """Equation (7′) on a teacher's likeliest tokens, as classifier-free guidance makes it (arXiv 2306.17806).

    Only tokens at least a tenth as likely as the likeliest one move against the others: beyond them a ratio of small
    probabilities says nothing. The tokens' total stays what it was, so guidance 0 is the teacher itself.

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
        mask: ``[B, T]``, bool, True where a token counts. What stands elsewhere is never read.
        outcome: ``[B]`` in {−1, 0, 1}: failure, undecided, success.
        weights: ``[B, K]``, w, non-negative; what a teacher of weight 0 says is never read.

    Returns:
        ``[B]``, in nats per token, float32 or wider: 0, with a gradient of exactly zero, in rows that did not fail.

    Raises:
        ValueError: if shapes or mask type do not fit.
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
    unread = -math.log(2 * M)  # of each token, on both sides: no divergence, and a finite gradient of it
    student = torch.where(read, student_logps.to(dtype), unread)
    teacher = torch.where(read, teacher_logps.detach().to(dtype), unread)
    divergence = (teacher.exp() * (teacher - student)).sum(-1) + _of_rest(student, teacher)
    divergence = torch.where(read.squeeze(-1), divergence, 0.0)
    return (weights * divergence.sum(-1)).sum(-1) / mask.sum(-1).clamp(min=1)


def rest(logps: Tensor) -> Tensor:
    """1 − Σ exp(logps), ``[...]`` of ``[..., M]``: what tokens beyond the M given have, without cancellation near 0.

    As exact as the log-probabilities are: where the M have everything, it is their rounding error, of either sign.
    """
    return -torch.expm1(logps.logsumexp(-1))


def _of_rest(student: Tensor, teacher: Tensor) -> Tensor:
    """The bucket's part of (7), ``[...]`` of two ``[..., M]``.

    Of a teacher's rest below rounding there is nothing to compare, and its part is that rest itself, which keeps the
    divergence from being negative. Where the teacher's rest is more than 1/√ε times the student's (8 nats in float32),
    the logarithm goes on as its tangent: the gradients of the M tokens cancel up to that factor, so they keep √ε.
    """
    info = torch.finfo(student.dtype)
    p, q = rest(teacher), rest(student)
    there = p > _ROUNDING * info.eps
    p_there = torch.where(there, p, 1.0)
    least = p_there * math.sqrt(info.eps)
    enough = q >= least
    log_ratio = torch.where(enough, p_there.log() - torch.where(enough, q, 1.0).log(), 0.0)
    tangent = (least.log() - p_there.log()).neg() + (least - q) / least
    return torch.where(there, p * torch.where(enough, log_ratio, tangent), p)


_ROUNDING = 32  # of a sum of probabilities whose logarithms are some 20 nats large, in units of ε


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
            still_teacher=guided,
            outcomes=frozenset({-1}),
            by_trust=True,
        )

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        teachers = teachers.read()
        of_student = given(student.top_logps, "the student's log-probabilities of likely tokens", self.name)
        of_teachers = given(teachers.top_logps, "the teachers' likeliest tokens", self.name)
        if self.guidance:
            control = given(teachers.control_top_logps, "a control's log-probabilities of likely tokens", self.name)
            of_teachers = guided_logps(of_teachers, control, guidance=self.guidance, clip=self.clip)
        weights = trusted_weights(teachers.weights, teachers.trust)
        rows = correction_loss(of_student, of_teachers, rollouts.mask, rollouts.outcome, weights)
        failed = (rollouts.outcome < 0) & teachers.scored.any(1)
        tokens = (weights > 0).unsqueeze(-1) & failed[:, None, None] & rollouts.mask.unsqueeze(1)
        return rows, {
            "trust": total(weights.sum(1), failed),
            "correction": total(rows, failed),
            "teacher_rest": total(rest(of_teachers), tokens),
        }
