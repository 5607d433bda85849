"""The SGSD objective (arXiv 2605.28791), equations numbered as in docs/method.md.

Per row, with gap Δ_{k,t} = log p_T(y_t | g_k, e_k, x, y_<t) − log p_S(y_t | x, y_<t):

    support    S_k = mean_t clip(Δ_{k,t}, −c, +c), less a control teacher's S if given  (2)
    stance     σ_k = sign(S_k) if |S_k| > θ else 0                                  (3)
    polarity   ρ_k = r σ_k,  r = +1 success, −1 failure, 0 undecided                (4)
    gate       ℓ(Δ) = log 2 − log(1 + exp(−Δ²/2τ))                                  (5)
    loss       Σ_k α_k ρ_k mean_t ℓ(Δ_{k,t}), mean over rows                        (6)

Gradient flows through log p_S inside the gate and nowhere else: teachers, stances and weights are constants.
All arithmetic is float32 (or float64 when given): in bfloat16 the textbook gate is exactly 0 for |Δ| ≤ 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SGSDLoss:
    """What ``sgsd_loss`` returns.

    Attributes:
        loss: scalar, the mean of ``row_loss`` over all rows, silent ones included. The only part with a gradient,
            besides ``row_loss``.
        row_loss: ``[B]``.
        support: ``[B, K]``, mean clipped gap in nats per token.
        stance: ``[B, K]`` in {−1, 0, 1}.
        polarity: ``[B, K]`` in {−1, 0, 1}.
        metrics: detached scalars; shares are over teachers of positive weight. A mean over nothing is NaN.
    """

    loss: Tensor
    row_loss: Tensor
    support: Tensor
    stance: Tensor
    polarity: Tensor
    metrics: dict[str, Tensor]


def gate(gap: Tensor, tau: float) -> Tensor:
    """Robust gate ℓ(Δ) = log 2 − log(1 + exp(−Δ²/2τ)), equation (5): even, in [0, log 2], 0 at 0.

    Its slope Δ / (τ (1 + exp(Δ²/2τ))) vanishes both at 0 (an uncertain teacher) and at infinity (an extreme one).
    Written as −log1p(expm1(−Δ²/2τ)/2), which keeps full precision near 0.

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
    use_gate: bool = True,
    use_polarity: bool = True,
    control_logps: Tensor | None = None,
) -> SGSDLoss:
    """Gated, polarity-signed distillation of K teachers into one student, equations (1) to (6).

    Args:
        student_logps: ``[B, T]``, log p_S of the sampled tokens, full vocabulary, natural log. Carries the gradient.
        teacher_logps: ``[B, K, T]``, the same tokens under each teacher. Detached here.
        mask: ``[B, T]``, bool, True where a token counts. What stands elsewhere is never read.
        outcome: ``[B]`` in {−1, 0, 1}: failure, undecided, success.
        teacher_weights: ``[B, K]``, non-negative; a teacher of weight 0 is padding.
        tau: gate width τ.
        clip: support clip c, in nats.
        threshold: dead zone θ, in nats: |S| must exceed it for a stance.
        use_gate: False puts Δ²/4τ in the gate's place, which it equals for small gaps: extreme ones are not muted.
        use_polarity: False distils every teacher with a stance, whatever the verdict, if there is one.
        control_logps: ``[B, T]``, the same tokens under a teacher that knows nothing of the problem. Its support is
            subtracted from every teacher's: what any skill prompt does to the style of an answer is no stance.

    Returns:
        ``SGSDLoss``. A row with no counted token, no stance or no verdict has loss 0 and exactly zero gradient.

    Raises:
        ValueError: if shapes, mask type or settings do not fit.
    """
    B, T = _checked_shapes(student_logps, teacher_logps, mask, outcome, teacher_weights, tau, clip, threshold)
    student_logps, teacher_logps = _upcast(student_logps), _upcast(teacher_logps.detach())
    counted = mask.unsqueeze(1)
    gap = torch.where(counted, teacher_logps - student_logps.reshape(B, 1, T), 0.0)  # (1), [B, K, T]
    gated = gate(gap, tau) if use_gate else gap.square() / (4 * tau)
    control = None
    if control_logps is not None:
        control = torch.where(mask, _upcast(control_logps.detach()) - student_logps.detach(), 0.0).unsqueeze(1)
    return _assemble(gap.detach(), gated, mask, outcome, teacher_weights, clip, threshold, use_polarity, control)


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
    """The paper's local-support variant: distributions renormalised on a few tokens, the gate fed with a divergence.

    For each teacher and position the support is the sampled token (index 0) and the teacher's top M − 1 tokens. Both
    distributions are renormalised on it; the gap of (1) is the sampled token's renormalised log-ratio and decides
    support, stance and polarity, while the gate takes KL(teacher ‖ student) on the support.

    Args:
        student_scores: ``[B, K, T, M]``, logits or log-probabilities of the student on each teacher's support.
        teacher_scores: ``[B, K, T, M]``, the teacher's. Detached here.
        in_support: ``[B, K, T, M]``, bool; False removes an entry, such as the sampled token's duplicate among the
            top tokens. Index 0 must be True wherever ``mask`` is.
        mask, outcome, teacher_weights, tau, clip, threshold: as for ``sgsd_loss``.

    Raises:
        ValueError: if shapes, mask type or settings do not fit.
    """
    if student_scores.shape != teacher_scores.shape or student_scores.shape != in_support.shape:
        raise ValueError(
            "student_scores, teacher_scores and in_support must have one shape [B, K, T, M]: got "
            f"{tuple(student_scores.shape)}, {tuple(teacher_scores.shape)}, {tuple(in_support.shape)}"
        )
    _checked_shapes(
        student_scores[:, 0, :, 0], teacher_scores[..., 0], mask, outcome, teacher_weights, tau, clip, threshold
    )
    counted = mask[:, None, :, None]
    # Entries outside the support take no probability; positions that do not count become uniform, hence finite.
    lowest = torch.finfo(torch.float32).min
    student, teacher = (
        torch.where(counted, torch.where(in_support, _upcast(scores), lowest), 0.0).log_softmax(-1)
        for scores in (student_scores, teacher_scores.detach())
    )
    divergence = (teacher.exp() * torch.where(in_support & counted, teacher - student, 0.0)).sum(-1)
    gap = (teacher - student)[..., 0].detach()
    gap = torch.where(mask.unsqueeze(1), gap, 0.0)
    return _assemble(gap, gate(divergence, tau), mask, outcome, teacher_weights, clip, threshold, use_polarity=True)


def _assemble(
    gap: Tensor,
    gated: Tensor,
    mask: Tensor,
    outcome: Tensor,
    teacher_weights: Tensor,
    clip: float,
    threshold: float,
    use_polarity: bool,
    control: Tensor | None = None,
) -> SGSDLoss:
    """Equations (2) to (4) and (6), from gaps (constants, 0 where the mask is False) and gate values.

    ``control``, ``[B, 1, T]``, are a control teacher's gaps.
    """
    counted = mask.unsqueeze(1).to(gated.dtype)
    tokens = counted.sum(-1).clamp(min=1)  # [B, 1]
    support = gap.clamp(-clip, clip).sum(-1) / tokens  # (2)
    baseline = None if control is None else control.clamp(-clip, clip).sum(-1) / tokens  # [B, 1]
    if baseline is not None:
        support = support - baseline
    stance = torch.where(support.abs() > threshold, support.sign(), 0.0)  # (3)
    verdict = outcome.to(stance.dtype).unsqueeze(1)
    polarity = verdict * stance if use_polarity else (verdict * stance).abs()  # (4)
    weights = teacher_weights.detach().to(gated.dtype)
    teacher_gate = (gated * counted).sum(-1) / tokens
    row_loss = (weights * polarity * teacher_gate).sum(-1)  # (6)
    metrics = _metrics(gap, teacher_gate.detach(), support, stance, polarity, mask, outcome, weights > 0, clip)
    if baseline is not None:
        metrics["support/control"] = baseline.mean()
    return SGSDLoss(
        loss=row_loss.mean(),
        row_loss=row_loss,
        support=support,
        stance=stance,
        polarity=polarity,
        metrics=metrics,
    )


def _metrics(
    gap: Tensor,
    teacher_gate: Tensor,
    support: Tensor,
    stance: Tensor,
    polarity: Tensor,
    mask: Tensor,
    outcome: Tensor,
    real: Tensor,
    clip: float,
) -> dict[str, Tensor]:
    """Means over real teachers (weight above 0) and, for ``clipped_share``, over their counted tokens."""

    def mean(values: Tensor, where: Tensor) -> Tensor:
        return values.to(gap.dtype)[where].mean()  # NaN over nothing

    success, failure = (outcome > 0).unsqueeze(1), (outcome < 0).unsqueeze(1)
    tokens = real.unsqueeze(-1) & mask.unsqueeze(1)
    return {
        "support": mean(support, real),
        "support/success": mean(support, real & success),
        "support/failure": mean(support, real & failure),
        "active_share": mean(stance != 0, real),
        "polarity/positive_share": mean(polarity > 0, real),
        "polarity/negative_share": mean(polarity < 0, real),
        "polarity/neutral_share": mean(polarity == 0, real),
        "undecided_share": mean(outcome == 0, torch.ones_like(outcome, dtype=torch.bool)),
        "gate": mean(teacher_gate, real),
        "clipped_share": mean(gap.abs() > clip, tokens),
    }


def _checked_shapes(
    student_logps: Tensor,
    teacher_logps: Tensor,
    mask: Tensor,
    outcome: Tensor,
    teacher_weights: Tensor,
    tau: float,
    clip: float,
    threshold: float,
) -> tuple[int, int]:
    if student_logps.ndim != 2 or teacher_logps.ndim != 3:
        raise ValueError(
            "student_logps must be [B, T] and teacher_logps [B, K, T]: got "
            f"{tuple(student_logps.shape)}, {tuple(teacher_logps.shape)}"
        )
    B, T = student_logps.shape
    K = teacher_logps.shape[1]
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
    return B, T


def _upcast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
