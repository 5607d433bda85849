"""The stabilised form of SGSD: teachers as a token advantage (docs/method.md, "The stabilised form").

The published loss pushes log p_S of sampled tokens up and down without bound. Here the teachers add to the advantage of
a policy-gradient loss the term

    A_t = Σ_k w_k clip(Δ_{k,t}, −c, +c),   w_k = max_j τ_j · α_k τ_k / Σ_j α_j τ_j                 (7)

with the gap Δ and the retrieval weights α of ``objectives.sgsd``, and τ_k in [0, 1], the trust in teacher k. Under the
policy E[Δ ∇log p_S] = −∇KL(p_S ‖ p_T): it is the on-policy gradient of a divergence from the trusted teachers, which
has a minimum to stop at. Added to GRPO's advantage it makes of them what the reference policy is to KL-regularised
policy gradients: with one teacher and weight λ the optimum is p_S ∝ p_T exp(r / λ).
"""

from __future__ import annotations

import torch
from torch import Tensor


def trusted_weights(teacher_weights: Tensor, trust: Tensor) -> Tensor:
    """Weights w of equation (7): the shares go by weight and trust, their sum is the highest trust.

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


def teacher_advantage(
    student_logps: Tensor, teacher_logps: Tensor, mask: Tensor, weights: Tensor, *, clip: float = 3.0
) -> Tensor:
    """Token advantage of equation (7), a constant.

    Args:
        student_logps: ``[B, T]``, log p_S of the sampled tokens.
        teacher_logps: ``[B, K, T]``, the same tokens under each teacher.
        mask: ``[B, T]``, bool, True where a token counts. What stands elsewhere is never read.
        weights: ``[B, K]``, w.
        clip: c, in nats.

    Returns:
        ``[B, T]``, in nats, float32 or wider; 0 where the mask is False.

    Raises:
        ValueError: if shapes or mask type do not fit, or the clip is not positive.
    """
    B, K = weights.shape
    T = student_logps.shape[-1]
    shapes = tuple(student_logps.shape), tuple(teacher_logps.shape), tuple(mask.shape)
    if shapes != ((B, T), (B, K, T), (B, T)):
        raise ValueError(
            "student_logps and mask must be [B, T], teacher_logps [B, K, T] and weights [B, K]: got "
            f"{shapes[0]}, {shapes[2]}, {shapes[1]} and {(B, K)}"
        )
    if mask.dtype != torch.bool or not clip > 0:
        raise ValueError(f"mask must be bool and clip positive: got {mask.dtype}, {clip}")
    dtype = torch.promote_types(student_logps.dtype, torch.float32)
    student, teacher = student_logps.detach().to(dtype), teacher_logps.detach().to(dtype)
    gap = (teacher - student.unsqueeze(1)).clamp(-clip, clip)
    gap = torch.where(mask.unsqueeze(1) & (weights > 0).unsqueeze(-1), gap, 0.0)
    return (weights.to(dtype).unsqueeze(-1) * gap).sum(1)
