"""Typed tensors of a small batch: what a trainer would hand to an objective."""

from __future__ import annotations

from dataclasses import fields, replace
from types import SimpleNamespace

import torch

from sgsd.objectives import Rollouts, StudentScores, TeacherScores, selected_logps

SETTINGS = SimpleNamespace(
    gate_tau=0.7, support_clip=2.0, support_threshold=0.04, support_baseline="control", teacher_guidance=1.5
)


def make_rollouts(seed=0, *, B=6, K=3, T=5, V=11, M=4, dtype=torch.float64, spread=1.0):
    """The student's logits ``[B, T, V]``, teachers' scores and rollouts; two rollouts of each outcome."""
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(B, T, V, generator=g, dtype=dtype)
    of_teachers = (logits[:, None] + torch.randn(B, K, T, V, generator=g, dtype=dtype)).log_softmax(-1)
    of_control = (logits + torch.randn(B, T, V, generator=g, dtype=dtype)).log_softmax(-1)
    ids = torch.randint(V, (B, T), generator=g)
    mask = torch.rand(B, T, generator=g) < 0.7
    mask[:, 0] = True
    top = of_teachers.topk(M)
    teachers = TeacherScores(
        logps=of_teachers.gather(-1, ids[:, None, :, None].expand(-1, K, -1, -1)).squeeze(-1),
        weights=torch.rand(B, K, generator=g, dtype=dtype).softmax(-1),
        trust=torch.rand(B, K, generator=g, dtype=dtype),
        scored=torch.ones(B, K, dtype=torch.bool),
        top_ids=top.indices,
        top_logps=top.values,
        control_logps=of_control.gather(-1, ids.unsqueeze(-1)).squeeze(-1),
        control_top_logps=of_control[:, None].expand(-1, K, -1, -1).gather(-1, top.indices),
    )
    outcome = torch.tensor([1, -1, 0] * B)[:B]
    advantages = outcome * (0.5 + torch.rand(B, generator=g, dtype=dtype))
    return logits, teachers, Rollouts(ids=ids, mask=mask, outcome=outcome, advantages=advantages)


def student_of(logits, teachers, rollouts):
    """The student's scores, with a gradient to its logits."""
    _, K, _, M = teachers.top_ids.shape
    logps, _ = selected_logps(logits, rollouts.ids)
    likeliest, _ = selected_logps(logits, teachers.top_ids.transpose(1, 2).flatten(2))
    return StudentScores(logps=logps, top_logps=likeliest.unflatten(-1, (K, M)).transpose(1, 2))


def loss_and_gradient(objective, logits, teachers, rollouts):
    """Rows, metrics, and the gradient of the rows' sum in the student's logits."""
    logits = logits.detach().clone().requires_grad_()
    rows, metrics = objective.loss(student_of(logits, teachers, rollouts), teachers, rollouts)
    rows.sum().backward()
    return rows.detach(), metrics, logits.grad


def with_unscored(teachers, scored, junk=torch.nan):
    """``teachers`` with junk for all that ``scored`` leaves out; ids, which are integers, stay."""
    changed = {"scored": scored}
    for field in fields(teachers):
        values = getattr(teachers, field.name)
        if field.name == "control_logps":
            changed[field.name] = torch.where(scored.any(1, keepdim=True), values, junk)
        elif field.name not in ("scored", "top_ids"):
            changed[field.name] = torch.where(scored.reshape(*scored.shape, *[1] * (values.ndim - 2)), values, junk)
    return replace(teachers, **changed)


def rows_of(value, rows):
    """Some of the rows of typed tensors."""
    return replace(value, **{field.name: getattr(value, field.name)[rows] for field in fields(value)})
