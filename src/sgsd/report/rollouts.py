"""Traced rollouts → what the page needs to show each token by its gap under the teacher that the reader chooses."""

from __future__ import annotations

import json
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
        steps = sorted({int(trace["step"]) for trace in run.traces})
        spread = {steps[n] for n in np.linspace(0, len(steps) - 1, _STEPS_SHOWN).round().astype(int)}
        shown: list[Mapping[str, Any]] = []
        for trace in run.traces:
            if int(trace["step"]) in spread:
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
        "step": int(trace["step"]),
        "begins": short(str(trace["problem"]), 60),
        **{name: str(trace[name]) for name in ("problem_id", "problem", "answer", "outcome")},
        "tokens": [str(token) for token in trace["tokens"]],
        "counted": [int(counted) for counted in trace["counted"]],
        "logps": [float(value) for value in trace["student_logps"]],
        "teachers": [_teacher(teacher, items) for teacher in trace["teachers"]],
    }


def _teacher(teacher: Mapping[str, Any], items: Mapping[str, Item]) -> dict[str, Any]:
    names, words = {}, {}
    for part in ("skill", "mistake"):
        item = items.get(teacher[part])
        names[part] = str(teacher[part]) if item is None else short(item.title or item.text, 60)
        texts = [str(teacher[part])] if item is None else [text for text in (item.title, item.text) if text]
        words[part] = ". ".join(text.rstrip(".") for text in texts)
    stance, support = _STANCES[int(teacher["stance"])], signed(float(teacher["support"]))
    return {
        "line": f"{names['skill'] or names['mistake']} ({stance}, {support})",
        **words,
        "support": f"{support} nats per token: {stance}, polarity {_POLARITIES[int(teacher['polarity'])]}, "
        f"weight {float(teacher['weight']):.2f}",
        "gaps": [float(gap) for gap in teacher["gaps"]],
    }
