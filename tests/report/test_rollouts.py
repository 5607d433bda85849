"""Traced rollouts → what the page shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.report import grouped, load_runs
from sgsd.report import rollouts as module
from sgsd.report.rollouts import LEVELS, level_of, traced_groups

from .folders import write_run


@given(st.floats(-20, 20))
def test_levels_are_odd_and_grow_with_the_gap(gap):
    assert level_of(-gap) == -level_of(gap)
    assert abs(level_of(gap)) == sum(abs(gap) >= least for least in LEVELS)
    assert level_of(gap) * gap >= 0


def test_rollouts_are_of_steps_spread_over_training(runs):
    (group,) = traced_groups(grouped(load_runs(runs)))
    assert (group.label, group.run, group.left_out) == ("SGSD", "sgsd-0", 0)
    assert [(rollout.step, rollout.outcome) for rollout in group.rollouts] == [
        (step, outcome) for step in (1, 11, 21) for outcome in ("success", "failure")
    ]


def test_a_teacher_is_shown_with_its_items_and_gaps(runs):
    (group,) = traced_groups(grouped(load_runs(runs[3:])))
    rollout = group.rollouts[0]
    teacher = rollout.data["teachers"][1]
    assert rollout.teachers[1] == "2. Signs 1 (suppresses, −0.200)"
    assert teacher["skill"] == "Signs 1. Check the sign of step 1"
    assert teacher["polarity"] == "negative"
    assert teacher["levels"] == [level_of(gap) for gap in teacher["gaps"]]
    assert len(teacher["gaps"]) == len(rollout.data["tokens"]) == len(rollout.data["counted"])


def test_a_page_has_room_for_so_much_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BUDGET", 4000)
    groups = grouped(load_runs([write_run(tmp_path / "run")]))
    (group,) = traced_groups(groups)
    assert 0 < len(group.rollouts) < 6
    assert len(group.rollouts) + group.left_out == 6


@pytest.mark.parametrize("steps", [1, 500])
def test_short_and_long_runs_have_rollouts(tmp_path, steps):
    (group,) = traced_groups(grouped(load_runs([write_run(tmp_path / "run", steps=steps)])))
    assert len(group.rollouts) == (2 if steps == 1 else 8)
    assert group.rollouts[0].step == 1
