"""Correction of failures by trusted teachers (docs/method.md, "Correction").

GRPO says which of the sampled tokens did better than others. Trusted teachers can say what should have stood there
instead, whether it was sampled or not; on a failure that is worth learning, on a success it is not. Beside GRPO's loss
stands that of each row b,

    L_b = 1[r_b = −1] Σ_k w_k mean_t Σ_{v ∈ top M of p_{T,k}} p_{T,k}(v) log(p_{T,k}(v) / p_S(v))       (7)
    w_k = max_j τ_j · α_k τ_k / Σ_j α_j τ_j                                                             (8)

with the retrieval weights α of ``objectives.sgsd`` and τ_k in [0, 1], the trust in teacher k: the forward KL divergence
from each trusted teacher, on its M likeliest tokens at each position of the student's own rollout. Its gradient with
respect to the student's logits is Σ_k w_k (p_S − p_{T,k}), but for what lies beyond the M tokens: at most 1, and not
vanishing where the student is sure of something else.

A teacher differs from the student for two reasons: what its pair says, and that its weights are not the student's.
``addition_loss`` keeps the first alone. With p_0 the same weights' distribution after the plain prompt, and a few
tokens S at each position, the student is drawn as far towards the teacher as the pair has moved it, and no further,

    δ_k(v) = p_{T,k}(v) − p_S(v), kept between 0 and p_{T,k}(v) − p_0(v)
    q_k(v) = c (p_S(v) + δ_k(v))  on S,  p_S(v) elsewhere                                                (9)

with c such that Σ_S q_k = Σ_S p_S. (7) becomes KL(q_k ‖ p_S), with q_k held constant; its gradient with respect to the
student's logits is Σ_k w_k (p_S − q_k). A pair that changes nothing has none, however far the student has gone.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    dtype, weights, read = _of_failures([student_logps, teacher_logps], mask, outcome, weights)
    teacher = torch.where(read, teacher_logps.detach().to(dtype), -torch.inf)
    log_ratio = torch.where(read, teacher - student_logps.to(dtype), 0.0)
    return _mean((teacher.exp() * log_ratio).sum(-1), mask, weights)


def addition_loss(
    student_logps: Tensor,
    teacher_logps: Tensor,
    plain_logps: Tensor,
    in_support: Tensor,
    mask: Tensor,
    outcome: Tensor,
    weights: Tensor,
) -> Tensor:
    """Equation (7) of each row, towards the target of (9) in the teacher's place.

    Args:
        student_logps, teacher_logps, plain_logps: ``[B, K, T, N]``, log p_S, p_{T,k} and p_0 of the tokens S, full
            vocabulary. The student's carry the gradient, the others are detached here.
        in_support: ``[B, K, T, N]``, bool; False at a token that S has already. What stands there is never read.
        mask, outcome, weights: as for ``correction_loss``.

    Returns:
        As ``correction_loss``.

    Raises:
        ValueError: as ``correction_loss``.
    """
    given = [student_logps, teacher_logps, plain_logps, in_support]
    dtype, weights, read = _of_failures(given, mask, outcome, weights)
    read = read & in_support
    student, teacher, plain = (torch.where(read, logps.to(dtype), -torch.inf) for logps in given[:3])
    own = student.detach().exp()
    there = teacher.detach().exp()
    change = there - plain.detach().exp()
    moved = own + torch.clamp(there - own, min=change.clamp(max=0), max=change.clamp(min=0))
    tiny = torch.finfo(dtype).tiny
    target = moved * (own.sum(-1, keepdim=True) / moved.sum(-1, keepdim=True).clamp(min=tiny))
    divergence = torch.where(target > 0, target * (target.clamp(min=tiny).log() - student.detach()), 0.0)
    # What has the gradient of the divergence on the whole vocabulary, and adds nothing to its value.
    pull = (own - target) * torch.where(read, student, 0.0)
    return _mean((divergence + pull - pull.detach()).sum(-1), mask, weights)


def addition_support(
    sampled_ids: Tensor, sampled_logps: Tensor, top_ids: Tensor, top_logps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens S of equation (9), as far as the likeliest ones of teachers and plain prompt tell.

    S holds the sampled token and the M likeliest of teacher and plain prompt. Of a token that is among the likeliest of
    one alone, the other's probability is taken for its M-th, or for the one that is known if that is less: of what is
    not known for certain the pair adds as little as it can.

    Args:
        sampled_ids: ``[B, T]``.
        sampled_logps: ``[B, K + 1, T]``, of K teachers and, last, the plain prompt, as everywhere here.
        top_ids, top_logps: ``[B, K + 1, T, M]``, the likeliest first.

    Returns:
        ``teacher_logps``, ``plain_logps`` and ``in_support`` for ``addition_loss``, N = 1 + 2 M: the sampled token, the
        teacher's likeliest, the plain prompt's likeliest.
    """
    ids, logps = top_ids[:, :-1], top_logps[:, :-1]
    plain_ids, plain = top_ids[:, -1:].expand_as(ids), top_logps[:, -1:].expand_as(logps)
    sampled = sampled_ids[:, None, :, None]
    in_teacher, teacher_of_plain = _looked_up(plain_ids, plain, ids, logps)
    _, plain_of_teacher = _looked_up(ids, logps, plain_ids, plain)
    new = (plain_ids != sampled) & ~in_teacher
    in_support = torch.cat([torch.ones_like(new[..., :1]), ids != sampled, new], dim=-1)
    own = sampled_logps[:, :-1, :, None]
    of_teacher = torch.cat([own, logps, teacher_of_plain], dim=-1)
    of_plain = torch.cat([sampled_logps[:, -1:, :, None].expand_as(own), plain_of_teacher, plain], dim=-1)
    return of_teacher, of_plain, in_support


def _looked_up(ids: Tensor, logps: Tensor, top_ids: Tensor, top_logps: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each of one distribution's ``ids`` is among another's likeliest, and what the other gives it."""
    found, others = torch.zeros_like(ids, dtype=torch.bool), torch.minimum(logps, top_logps[..., -1:])
    for m in range(top_ids.shape[-1]):  # M times [B, K, T, M], never M² at once
        same = ids == top_ids[..., m : m + 1]
        found |= same
        others = torch.where(same, top_logps[..., m : m + 1], others)
    return found, others


def _of_failures(
    of_tokens: Sequence[Tensor], mask: Tensor, outcome: Tensor, weights: Tensor
) -> tuple[torch.dtype, Tensor, Tensor]:
    """The type to compute in, the weights, 0 in rows that did not fail, and ``[B, K, T, 1]``, what counts."""
    B, K = weights.shape
    T, M = of_tokens[0].shape[-2:]
    shapes = [tuple(tensor.shape) for tensor in (*of_tokens, mask, outcome)]
    if shapes != [*([(B, K, T, M)] * len(of_tokens)), (B, T), (B,)]:
        raise ValueError(
            "what teachers and student say of tokens must be [B, K, T, M], mask [B, T], outcome [B] and weights "
            f"[B, K]: got {', '.join(map(str, shapes))} and {(B, K)}"
        )
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, True where a token counts: got {mask.dtype}")
    dtype = torch.promote_types(of_tokens[0].dtype, torch.float32)
    weights = torch.where((outcome < 0).unsqueeze(1), weights.detach(), 0.0).to(dtype)
    return dtype, weights, (mask.unsqueeze(1) & (weights > 0).unsqueeze(-1)).unsqueeze(-1)


def _mean(divergence: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """``[B]`` of ``[B, K, T]``: the mean over counted tokens, weighted over teachers."""
    return (weights * divergence.sum(-1)).sum(-1) / mask.sum(-1).clamp(min=1)
