"""A batch's tensors → the teachers' losses, by the run's settings."""

from __future__ import annotations

import torch
from torch import Tensor

from sgsd.objectives import SGSDLoss, correction_loss, local_support_loss, sgsd_loss, trusted_weights
from sgsd.trainers.config import SGSDConfig


def published_loss(args: SGSDConfig, inputs: dict[str, Tensor], logps: Tensor, teacher_logps: Tensor) -> SGSDLoss:
    """Equations (1) to (6) of docs/method.md, on the full vocabulary or on each teacher's local support.

    Args:
        args: of the run.
        inputs: the batch.
        logps: ``[B, T, 1 + K · M]``, the student's, of the sampled tokens and of those that teachers find likeliest.
        teacher_logps: ``[B, K, T]``, the teachers', of the sampled tokens.
    """
    rows = inputs["score_mask"], inputs["outcome"], inputs["teacher_weights"]
    limits = {"tau": args.gate_tau, "clip": args.support_clip, "threshold": args.support_threshold}
    if args.objective != "local":
        studied = {"use_gate": args.use_gate, "use_polarity": args.use_polarity}
        control = inputs.get("control_logps")
        return sgsd_loss(logps[..., 0], teacher_logps, *rows, **limits, **studied, control_logps=control)
    likeliest = _by_teacher(inputs, logps)
    sampled = logps[:, None, :, :1].expand(-1, likeliest.shape[1], -1, -1)
    teachers = torch.cat([teacher_logps.unsqueeze(-1), inputs["teacher_top_logps"]], dim=-1)
    # The sampled token is in the support once, whether it is among the likeliest or not.
    others = inputs["teacher_top_ids"] != inputs["completion_ids"][:, None, :, None]
    in_support = torch.cat([torch.ones_like(others[..., :1]), others], dim=-1)
    return local_support_loss(torch.cat([sampled, likeliest], dim=-1), teachers, in_support, *rows, **limits)


def correction(args: SGSDConfig, inputs: dict[str, Tensor], logps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over rows of equation (7), and what there is to log.

    Args:
        args, inputs, logps: as for ``published_loss``.
    """
    weights = trusted_weights(inputs["teacher_weights"], inputs["teacher_trust"])
    outcome = -inputs["outcome"].abs() if args.correct_all else inputs["outcome"]
    teachers = inputs["teacher_top_logps"]
    loss = correction_loss(_by_teacher(inputs, logps), teachers, inputs["score_mask"], outcome, weights)
    return loss.mean(), {"sgsd/trust": weights.sum(1).mean(), "sgsd/correction": loss[outcome < 0].mean()}


def _by_teacher(inputs: dict[str, Tensor], logps: Tensor) -> Tensor:
    """``[B, K, T, M]``: the student's log-probabilities of each teacher's likeliest tokens."""
    _, K, _, M = inputs["teacher_top_ids"].shape
    return logps[..., 1:].unflatten(-1, (K, M)).transpose(1, 2)
