"""Correction of failures by trusted teachers (docs/method.md, "Correction").

GRPO says which of the sampled tokens did better than others. Trusted teachers can say what should have stood there
instead, whether it was sampled or not; on a failure that is worth learning, on a success it is not. Beside GRPO's loss
stands that of each row b,

    L_b = 1[r_b = −1] Σ_k w_k mean_t Σ_{v ∈ top M of p_{T,k}} p_{T,k}(v) log(p_{T,k}(v) / p_S(v))       (7)
    w_k = max_j τ_j · α_k τ_k / Σ_j α_j τ_j                                                             (8)

with the retrieval weights α of ``gated`` and τ_k in [0, 1], the trust in teacher k: the forward KL divergence
from each trusted teacher, on its M likeliest tokens at each position of the student's own rollout. Its gradient with
respect to the student's logits is Σ_k w_k (p_S − p_{T,k}), but for what lies beyond the M tokens: at most 1, and not
vanishing where the student is sure of something else.

A teacher that leans to the right token without being sure of it can be guided: what sets it apart from a control
teacher, which knows nothing of the problem, counts 1 + γ times,

    p̂_{T,k}(v) ∝ p_{T,k}(v) · (p_{T,k}(v) / p_{T,0}(v))^γ                                                (7′)

on the tokens it finds plausible, and takes the place of p_{T,k} in (7).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    teacher = torch.where(read, teacher_logps.detach().to(dtype), -torch.inf)
    log_ratio = torch.where(read, teacher - student_logps.to(dtype), 0.0)
    divergence = (teacher.exp() * log_ratio).sum(-1)
    return (weights * divergence.sum(-1)).sum(-1) / mask.sum(-1).clamp(min=1)
