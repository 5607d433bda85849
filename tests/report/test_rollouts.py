"""Traced rollouts → what the page shows."""

from __future__ import annotations

import json
import math

import pytest

from sgsd.report import grouped, load_runs
from sgsd.report import rollouts as module
from sgsd.report.rollouts import traced_groups

from .folders import write_run


def test_rollouts_are_of_steps_spread_over_training_and_have_their_teachers(runs):
    (group,) = traced_groups(grouped(load_runs([runs[0], runs[3]])))
    assert (group["label"], group["run"], group["left_out"]) == ("SGSD", "sgsd-1", 0)
    assert [(rollout["step"], rollout["outcome"]) for rollout in group["rollouts"]] == [
        (step, outcome) for step in (1, 11, 21) for outcome in ("success", "failure")
    ]
    teacher = group["rollouts"][0]["teachers"][1]
    assert teacher["line"] == "Signs 1 (suppresses, −0.200)"
    assert teacher["skill"] == "Signs 1. Check the sign of step 1"
    assert teacher["support"] == "−0.200 nats per token: suppresses, polarity negative, weight 0.25"
    assert len(teacher["gaps"]) == len(group["rollouts"][0]["tokens"]) == len(group["rollouts"][0]["counted"])


def test_a_page_has_room_for_so_much_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_CHARACTERS", 4000)
    (group,) = traced_groups(grouped(load_runs([write_run(tmp_path / "run")])))
    assert 0 < len(group["rollouts"]) < 6
    assert len(group["rollouts"]) + group["left_out"] == 6


@pytest.mark.parametrize(("steps", "shown"), [(1, 2), (500, 8)])
def test_short_and_long_runs_have_rollouts(tmp_path, steps, shown):
    (group,) = traced_groups(grouped(load_runs([write_run(tmp_path / "run", steps=steps)])))
    assert len(group["rollouts"]) == shown
    assert group["rollouts"][0]["step"] == 1


def test_a_number_that_json_cannot_hold_is_none(tmp_path):
    folder = write_run(tmp_path / "run", steps=1)
    lines = [json.loads(line) for line in (folder / "traces.jsonl").read_text().splitlines()]
    for line in lines:
        line["student_logps"][0], line["teachers"][0]["gaps"][1] = -math.inf, math.nan
    (folder / "traces.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (group,) = traced_groups(grouped(load_runs([folder])))
    rollout = group["rollouts"][0]
    assert (rollout["logps"][0], rollout["teachers"][0]["gaps"][1]) == (None, None)
    json.dumps(group, allow_nan=False)
