"""Divergences between a teacher's and the student's next-token distributions, over the full vocabulary.

With teacher p, student q = softmax(logits / temperature) and mixture m = β p + (1 − β) q, per token:

    forward_kl    KL(p ‖ q) = Σ_v p_v log(p_v / q_v)
    reverse_kl    KL(q ‖ p) = Σ_v q_v log(q_v / p_v)
    jsd           β KL(p ‖ m) + (1 − β) KL(q ‖ m), the generalised Jensen–Shannon divergence of arXiv 2306.13649

On-policy self-distillation (OPSD, arXiv 2601.18734) minimises the mean over a rollout's tokens. Its public code also
caps the summand of each vocabulary entry (``jsd_token_clip``, added after the paper): ``clip`` here. A clipped sum can
be negative, since only large positive summands are clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sgsd.objectives.logprobs import upcast_rows

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")

# Log-ratios of the JSD are clamped to ± this many nats: beyond it, the smaller probability contributes less than
# float32 can represent.
_MOST_LOG_RATIO = 80.0


class Divergence(NamedTuple):
    """What ``token_divergence`` returns, ``[n]`` each, in nats. Only the divergence has a gradient."""

    divergence: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    jsd_beta: float
    clip: float | None
    temperature: float


class _TokenDivergence(torch.autograd.Function):
    """Computes the gradient in the forward pass, tile by tile, so that no logits are saved for the backward pass.

    With f_v a vocabulary entry's summand and g_v = ∂f_v / ∂ log q_v, d Σf / d logits = (g − q Σ_v g_v) / temperature.
    """

    @staticmethod
    def forward(ctx: Any, student_logits: Tensor, teacher_logits: Tensor, kind: _Kind) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        divergence, student_entropy, teacher_entropy = (
            student_logits.new_empty(len(student_logits), dtype=dtype) for _ in range(3)
        )
        grad_logits = torch.empty_like(student_logits) if ctx.needs_input_grad[0] else None
        for rows in upcast_rows(student_logits):
            log_q, log_p = (
                (logits[rows].to(dtype) / kind.temperature).log_softmax(-1)
                for logits in (student_logits, teacher_logits)
            )
            q, p = log_q.exp(), log_p.exp()
            student_entropy[rows] = -(q * log_q).sum(-1)
            teacher_entropy[rows] = -(p * log_p).sum(-1)
            summands, slopes = _summands(p, log_p, q, log_q, kind)
            divergence[rows] = summands.sum(-1)
            if grad_logits is not None:
                slopes.sub_(q.mul_(slopes.sum(-1, keepdim=True)))
                grad_logits[rows] = slopes.div_(kind.temperature).to(grad_logits.dtype)
        ctx.save_for_backward(grad_logits)
        ctx.mark_non_differentiable(student_entropy, teacher_entropy)
        return divergence, student_entropy, teacher_entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (saved,) = ctx.saved_tensors
        grad_logits = torch.empty_like(saved)
        for rows in upcast_rows(saved):
            grad_logits[rows] = (saved[rows] * grad_outputs[0][rows].unsqueeze(-1)).to(saved.dtype)
        return grad_logits, None, None


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: str,
    jsd_beta: float = 0.5,
    clip: float | None = None,
    temperature: float = 1.0,
) -> Divergence:
    """The divergence of each position over the full vocabulary, computed in tiles of positions.

    Beside both sides' logits, memory holds the gradient in their dtype and one float32 tile. No logits are saved for
    the backward pass.

    Args:
        student_logits: ``[n, V]``, any floating type; upcast tile by tile to float32 (float64 stays). Carries the
            gradient.
        teacher_logits: ``[n, V]``, at the same positions. Detached here.
        kind: one of ``DIVERGENCES``.
        jsd_beta: β of ``jsd``, between 0 and 1.
        clip: the largest summand of a vocabulary entry, in nats; clipped summands have gradient 0. ``None``: no limit.
        temperature: divides both sides' logits.

    Raises:
        ValueError: the shapes differ, or a setting is out of range.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "student_logits and teacher_logits must have one shape [n, V]: got "
            f"{tuple(student_logits.shape)}, {tuple(teacher_logits.shape)}"
        )
    if kind not in DIVERGENCES:
        raise ValueError(f"kind must be one of {', '.join(DIVERGENCES)}: got {kind!r}")
    if not (0 < jsd_beta < 1 and temperature > 0 and (clip is None or clip > 0)):
        raise ValueError(
            f"jsd_beta must be in (0, 1), temperature and clip positive: got {jsd_beta}, {temperature}, {clip}"
        )
    apply = cast("Callable[..., tuple[Tensor, Tensor, Tensor]]", _TokenDivergence.apply)  # pyright: ignore[reportUnknownMemberType]
    return Divergence(*apply(student_logits, teacher_logits.detach(), _Kind(kind, jsd_beta, clip, temperature)))


def _summands(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor, kind: _Kind) -> tuple[Tensor, Tensor]:
    """Each vocabulary entry's summand f_v and its slope ∂f_v / ∂ log q_v, as new tensors ``[..., V]``."""
    if kind.name == "forward_kl":
        summands, slopes = p * (log_p - log_q), -p
    elif kind.name == "reverse_kl":
        summands = q * (log_q - log_p)
        slopes = summands + q
    else:
        beta = kind.jsd_beta
        # log(p/m) = −log(β + (1−β) q/p) and log(q/m) = −log(β p/q + 1−β): exactly 0 where p = q.
        ratio = (log_q - log_p).clamp_(-_MOST_LOG_RATIO, _MOST_LOG_RATIO)
        slopes = ratio.neg().expm1_().mul_(beta).log1p_().mul_(q).mul_(beta - 1)
        summands = ratio.expm1_().mul_(1 - beta).log1p_().mul_(p).mul_(-beta).add_(slopes)
    if kind.clip is not None:
        slopes.masked_fill_(summands >= kind.clip, 0.0)
        summands.clamp_(max=kind.clip)
    return summands, slopes
