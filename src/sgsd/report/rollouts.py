"""Traced rollouts → what the page needs to show each token by its gap under the teacher that the reader chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgsd.bank import Item
from sgsd.report.figures import short
from sgsd.report.runs import Group

# Gaps in nats where one level ends and the next begins; the last has no end.
LEVELS = (0.05, 0.2, 1.0)
_STEPS_SHOWN = 4
_BUDGET = 2_500_000  # characters of JSON, of all rollouts
_STANCES = {1: "supports", -1: "suppresses", 0: "no stance"}


@dataclass(frozen=True)
class TracedRollout:
    """One rollout of the page.

    Attributes:
        id: of its element.
        step, problem_id, problem, answer, outcome: as traced.
        begins: how the problem begins.
        teachers: a line for each teacher, to choose from.
        data: what the page's script needs, JSON values.
    """

    id: str
    step: int
    problem_id: str
    problem: str
    begins: str
    answer: str
    outcome: str
    teachers: tuple[str, ...]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class TracedGroup:
    """Rollouts of one group.

    Attributes:
        label: the group's.
        run: the name of the run they are from.
        rollouts: in the order of the steps.
        left_out: rollouts that the run traced and the page does not show.
    """

    label: str
    run: str
    rollouts: tuple[TracedRollout, ...]
    left_out: int


def traced_groups(groups: Sequence[Group]) -> list[TracedGroup]:
    """For each group rollouts of its first traced run, from steps spread over training, as the page's size allows."""
    room = _BUDGET
    found: list[TracedGroup] = []
    for position, group in enumerate(groups):
        run = next((run for run in group.runs if run.traces), None)
        if run is None:
            continue
        steps = sorted({int(trace["step"]) for trace in run.traces})
        spread = np.unique(np.linspace(0, len(steps) - 1, _STEPS_SHOWN).round().astype(int))
        shown: list[TracedRollout] = []
        for trace in run.traces:
            if int(trace["step"]) not in {steps[n] for n in spread}:
                continue
            rollout = _rollout(f"rollout-{position}-{len(shown)}", trace, group.items)
            size = len(json.dumps(rollout.data))
            if size <= room:
                room -= size
                shown.append(rollout)
        if shown:
            found.append(TracedGroup(group.label, run.name, tuple(shown), len(run.traces) - len(shown)))
    return found


def level_of(gap: float) -> int:
    """−3 to 3: how much likelier (positive) or less likely than the student the teacher finds a token; 0: hardly."""
    level = sum(abs(gap) >= least for least in LEVELS)
    return level if gap > 0 else -level


def _rollout(id: str, trace: Mapping[str, Any], items: Mapping[str, Item]) -> TracedRollout:
    teachers = [_teacher(teacher, items) for teacher in trace["teachers"]]
    return TracedRollout(
        id=id,
        step=int(trace["step"]),
        problem_id=str(trace["problem_id"]),
        problem=str(trace["problem"]),
        begins=short(str(trace["problem"]), 60),
        answer=str(trace["answer"]),
        outcome=str(trace["outcome"]),
        teachers=tuple(f"{n}. {teacher['line']}" for n, teacher in enumerate(teachers, 1)),
        data={
            "id": id,
            "tokens": [str(token) for token in trace["tokens"]],
            "counted": [int(counted) for counted in trace["counted"]],
            "logps": [float(value) for value in trace["student_logps"]],
            "teachers": teachers,
        },
    )


def _teacher(teacher: Mapping[str, Any], items: Mapping[str, Item]) -> dict[str, Any]:
    skill, mistake = (items.get(teacher[part]) for part in ("skill", "mistake"))
    stance = _STANCES[int(teacher["stance"])]
    support = f"{float(teacher['support']):+.3f}".replace("-", "−")
    gaps = [float(gap) for gap in teacher["gaps"]]
    return {
        "line": f"{_name(skill, teacher['skill'])} ({stance}, {support})",
        "skill": _words(skill, teacher["skill"]),
        "mistake": _words(mistake, teacher["mistake"]),
        "support": support,
        "stance": stance,
        "polarity": {1: "positive", -1: "negative", 0: "neutral"}[int(teacher["polarity"])],
        "weight": f"{float(teacher['weight']):.2f}",
        "gaps": gaps,
        "levels": [level_of(gap) for gap in gaps],
    }


def _name(item: Item | None, id: str) -> str:
    return str(id) if item is None else short(item.title or item.text, 60)


def _words(item: Item | None, id: str) -> str:
    return str(id) if item is None else ". ".join(part.rstrip(".") for part in (item.title, item.text) if part)
