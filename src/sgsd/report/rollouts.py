"""Traced rollouts → what the page needs to show each token by its gap under the teacher that the reader chooses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sgsd.bank import Item
from sgsd.report.runs import Group
from sgsd.report.tables import short, signed

# Gaps in nats where one level of colour ends and the next begins; the last has no end.
LEVELS = (0.05, 0.2, 1.0)
_STEPS_SHOWN = 4
_MOST_CHARACTERS = 2_500_000  # of JSON, of all rollouts
_STANCES = {1: "supports", -1: "suppresses", 0: "no stance"}
_POLARITIES = {1: "positive", -1: "negative", 0: "neutral"}


def traced_groups(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """For each group rollouts of its first traced run, from steps spread over training, as the page's size allows."""
    room = _MOST_CHARACTERS
    found: list[dict[str, Any]] = []
    for position, group in enumerate(groups):
        run = next((run for run in group.runs if run.traces), None)
        if run is None:
            continue
        steps = sorted({trace["step"] for trace in run.traces})
        spread = {steps[n] for n in np.linspace(0, len(steps) - 1, _STEPS_SHOWN).round().astype(int)}
        shown: list[Mapping[str, Any]] = []
        for trace in run.traces:
            if trace["step"] in spread:
                rollout = _rollout(f"rollout-{position}-{len(shown)}", trace, group.items)
                size = len(json.dumps(rollout))
                if size <= room:
                    room -= size
                    shown.append(rollout)
        if shown:
            left_out = len(run.traces) - len(shown)
            found.append({"label": group.label, "run": run.name, "rollouts": shown, "left_out": left_out})
    return found


def _rollout(id: str, trace: Mapping[str, Any], items: Mapping[str, Item]) -> dict[str, Any]:
    return {
        "id": id,
        "step": trace["step"],
        "begins": short(trace["problem"], 60),
        **{name: trace[name] for name in ("problem_id", "problem", "answer", "outcome")},
        "tokens": trace["tokens"],
        "counted": [int(counted) for counted in trace["counted"]],
        "logps": [_finite(value) for value in trace["student_logps"]],
        "teachers": [_teacher(teacher, items) for teacher in trace["teachers"]],
    }


def _teacher(teacher: Mapping[str, Any], items: Mapping[str, Item]) -> dict[str, Any]:
    names, words = {}, {}
    for part in ("skill", "mistake"):
        item = items.get(teacher[part])
        names[part] = teacher[part] if item is None else short(item.title or item.text, 60)
        texts = [teacher[part]] if item is None else [text for text in (item.title, item.text) if text]
        words[part] = ". ".join(text.rstrip(".") for text in texts)
    stance, support = _STANCES[teacher["stance"]], signed(teacher["support"])
    return {
        "line": f"{names['skill'] or names['mistake']} ({stance}, {support})",
        **words,
        "support": f"{support} nats per token: {stance}, polarity {_POLARITIES[teacher['polarity']]}, "
        f"weight {teacher['weight']:.2f}",
        "gaps": [_finite(gap) for gap in teacher["gaps"]],
    }


def _finite(value: float | None) -> float | None:
    """JSON has no other number."""
    return value if value is not None and math.isfinite(value) else None
