"""The method as plain Python over floats, and scoring one pair at a time: what batched code is compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch


def exact_copy(model):
    """A copy of its own: trainers leave a ``forward`` on the instance, bound to the model it was made for."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        module.__dict__.pop("forward", None)
    return copied


def plain_logps(model, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0) -> list[float]:
    """One pair alone: no padding, no cache, no chunks; float64 weights and log-softmax."""
    exact = exact_copy(model).double().eval()
    with torch.no_grad():
        logits = exact(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    assert logits.dtype == torch.float64
    logps = (logits / temperature).log_softmax(-1)
    return [logps[len(prompt) - 1 + t, token].item() for t, token in enumerate(completion)]


def plain_row_loss(
    student: Sequence[float],
    teachers: Sequence[Sequence[float]],
    weights: Sequence[float],
    counted: Sequence[bool],
    outcome: int,
    *,
    tau: float = 1.0,
    clip: float = 3.0,
    threshold: float = 0.05,
    control: Sequence[float] | None = None,
) -> tuple[float, list[int]]:
    """Equations (1) to (6) for one rollout: its loss, and each teacher's stance."""
    places = [t for t, counts in enumerate(counted) if counts]

    def support_of(teacher: Sequence[float]) -> float:
        return sum(max(-clip, min(clip, teacher[t] - student[t])) for t in places) / max(1, len(places))

    loss, stances = 0.0, []
    for weight, teacher in zip(weights, teachers, strict=True):
        gaps = [teacher[t] - student[t] for t in places]
        support = support_of(teacher) - (0.0 if control is None else support_of(control))
        stance = 0 if abs(support) <= threshold else (1 if support > 0 else -1)
        stances.append(stance)
        gated = sum(math.log(2) - math.log(1 + math.exp(-(gap**2) / (2 * tau))) for gap in gaps) / max(1, len(places))
        loss += weight * outcome * stance * gated
    return loss, stances
