"""Divergences between a teacher's and the student's next-token distributions, over the full vocabulary.

With teacher p, student q = softmax(logits / temperature) and mixture m = β p + (1 − β) q, per token:

    forward_kl    KL(p ‖ q) = Σ_v p_v log(p_v / q_v)
    reverse_kl    KL(q ‖ p) = Σ_v q_v log(q_v / p_v)
    jsd           β KL(p ‖ m) + (1 − β) KL(q ‖ m), the generalised Jensen–Shannon divergence of arXiv 2306.13649

On-policy self-distillation (OPSD, arXiv 2601.18734) minimises their mean over a rollout's tokens. Its public code also
caps what one vocabulary entry may add to the sum (``jsd_token_clip``, added after the paper): ``clip`` here. A clipped
sum can be negative, since negative summands are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sgsd.objectives.base import Metrics, means, total

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")

# Logits upcast at a time, 32 MB of float32: 55 positions of a 152k vocabulary.
_TILE_ELEMENTS = 2**23
# Beyond this log-ratio, in nats, the rarer side's share of the divergence is below float32's smallest numbers.
_MOST_LOG_RATIO = 80.0


@dataclass(frozen=True)
class Divergence:
    """What ``token_divergence`` returns; everything is 0 where the mask is False.

    Attributes:
        divergence: ``[B, T]``, in nats. The only part with a gradient.
        student_entropy, teacher_entropy: ``[B, T]``, in nats.
    """

    divergence: Tensor
    student_entropy: Tensor
    teacher_entropy: Tensor


@dataclass(frozen=True)
class OPSDLoss:
    """What ``opsd_loss`` returns.

    Attributes:
        loss: scalar, the mean of ``row_loss`` over all rows. Carries the gradient, as ``row_loss`` does.
        row_loss: ``[B]``, the mean divergence over a row's counted tokens; 0 where there are none.
        metrics: detached scalars, means over counted tokens: ``divergence``, ``student_entropy``, ``teacher_entropy``.
            A mean over nothing is NaN.
    """

    loss: Tensor
    row_loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    jsd_beta: float
    clip: float | None
    temperature: float


class _TokenDivergence(torch.autograd.Function):
    """Goes by tiles, and makes the gradient on the way forward: neither side's logits are kept for the way back.

    With f_v a vocabulary entry's summand and g_v = ∂f_v / ∂ log q_v, d Σf / d logits = (g − q Σ_v g_v) / temperature.
    """

    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, kind: _Kind
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        divergence, student_entropy, teacher_entropy = (
            torch.zeros(mask.shape, dtype=dtype, device=mask.device) for _ in range(3)
        )
        wanted = bool(ctx.needs_input_grad[0])
        grad_logits = torch.zeros_like(student_logits) if wanted else None
        for tile in _tiles(mask, student_logits.shape[-1]):
            # Nothing is picked out by the mask, so that a device is not waited for.
            counted = mask[tile]
            log_q = _log_softmax(student_logits[tile], counted, kind.temperature)
            log_p = _log_softmax(teacher_logits[tile], counted, kind.temperature)
            q, p = log_q.exp(), log_p.exp()
            student_entropy[tile] = torch.where(counted, -(q * log_q).sum(-1), 0.0)
            teacher_entropy[tile] = torch.where(counted, -(p * log_p).sum(-1), 0.0)
            summands, slopes = _summands(p, log_p, q, log_q, kind)
            divergence[tile] = torch.where(counted, summands.sum(-1), 0.0)
            if grad_logits is not None:
                grad = slopes.sub_(q.mul_(slopes.sum(-1, keepdim=True))).div_(kind.temperature)
                grad_logits[tile] = grad.mul_(counted.unsqueeze(-1)).to(grad_logits.dtype)
        ctx.save_for_backward(grad_logits, mask)
        ctx.mark_non_differentiable(student_entropy, teacher_entropy)
        return divergence, student_entropy, teacher_entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        made, mask = ctx.saved_tensors
        grad_logits = torch.zeros_like(made)
        for tile in _tiles(mask, made.shape[-1]):
            upstream = torch.where(mask[tile], grad_outputs[0][tile], 0.0).unsqueeze(-1)
            grad_logits[tile] = (made[tile] * upstream).to(made.dtype)
        return grad_logits, None, None, None


def token_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    *,
    kind: str,
    jsd_beta: float = 0.5,
    clip: float | None = None,
    temperature: float = 1.0,
) -> Divergence:
    """A divergence at every counted token, full vocabulary, computed in tiles of positions.

    Beside both sides' logits it takes the gradient, in their type, and the memory of one tile: no tensor of
    ``B · T · V`` float32 numbers is made of 16-bit logits. Neither side's logits are kept for the way back.

    Args:
        student_logits: ``[B, T, V]``, any floating type; upcast tile by tile to float32 (float64 stays). Carries the
            gradient.
        teacher_logits: ``[B, T, V]``, at the same positions. Detached here.
        mask: ``[B, T]``, bool, True where a token counts. What stands elsewhere is never read.
        kind: one of ``DIVERGENCES``.
        jsd_beta: β of ``jsd``, between 0 and 1.
        clip: most nats that one vocabulary entry may add; its gradient is 0 from there on. ``None``: no limit.
        temperature: divides both sides' logits.

    Raises:
        ValueError: if shapes, mask type or settings do not fit.
    """
    if student_logits.ndim != 3 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "student_logits and teacher_logits must have one shape [B, T, V]: got "
            f"{tuple(student_logits.shape)}, {tuple(teacher_logits.shape)}"
        )
    if mask.shape != student_logits.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool, [B, T], True where a token counts: got {mask.dtype}, {tuple(mask.shape)}")
    if kind not in DIVERGENCES:
        raise ValueError(f"kind must be one of {', '.join(DIVERGENCES)}: got {kind!r}")
    if not (0 < jsd_beta < 1 and temperature > 0 and (clip is None or clip > 0)):
        raise ValueError(
            f"jsd_beta must be in (0, 1), temperature and clip positive: got {jsd_beta}, {temperature}, {clip}"
        )
    apply = cast("Callable[..., tuple[Tensor, Tensor, Tensor]]", _TokenDivergence.apply)  # pyright: ignore[reportUnknownMemberType]
    return Divergence(*apply(student_logits, teacher_logits.detach(), mask, _Kind(kind, jsd_beta, clip, temperature)))


def opsd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    *,
    kind: str,
    jsd_beta: float = 0.5,
    clip: float | None = None,
    temperature: float = 1.0,
) -> OPSDLoss:
    """OPSD: mean divergence over a row's counted tokens, mean over rows. Arguments as for ``token_divergence``.

    The mean over rows, where the public code takes one over the tokens of a micro-batch: so accumulating rows one by
    one gives the same gradient as taking them together, and a long rollout weighs no more than a short one.
    """
    result = token_divergence(
        student_logits, teacher_logits, mask, kind=kind, jsd_beta=jsd_beta, clip=clip, temperature=temperature
    )
    row_loss = result.divergence.sum(-1) / mask.sum(-1).clamp(min=1)
    return OPSDLoss(
        loss=row_loss.mean(),
        row_loss=row_loss,
        metrics=means(divergence_metrics(result, mask)),
    )


def divergence_metrics(result: Divergence, mask: Tensor) -> Metrics:
    """``divergence``, ``student_entropy`` and ``teacher_entropy``: sums over counted tokens, and their count.

    Args:
        result: of ``token_divergence``, or put together from its tiles.
        mask: ``[B, T]``, as it had.
    """
    return {
        "divergence": total(result.divergence, mask),
        "student_entropy": total(result.student_entropy, mask),
        "teacher_entropy": total(result.teacher_entropy, mask),
    }


def _summands(p: Tensor, log_p: Tensor, q: Tensor, log_q: Tensor, kind: _Kind) -> tuple[Tensor, Tensor]:
    """Every vocabulary entry's summand f_v, and its slope ∂f_v / ∂ log q_v, both ``[..., V]`` and new tensors."""
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


def _tiles(mask: Tensor, vocabulary: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows and positions that cover the mask, ``_TILE_ELEMENTS`` logits at most (or one position's)."""
    B, T = mask.shape
    tokens = max(1, _TILE_ELEMENTS // vocabulary)
    rows, positions = max(1, tokens // max(1, T)), max(1, min(T, tokens))
    for row in range(0, B, rows):
        for position in range(0, T, positions):
            yield slice(row, row + rows), slice(position, position + positions)


def _log_softmax(logits: Tensor, counted: Tensor, temperature: float) -> Tensor:
    """Uniform where nothing counts, whatever stands there."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    return torch.where(counted.unsqueeze(-1), logits, 0.0).log_softmax(-1)
