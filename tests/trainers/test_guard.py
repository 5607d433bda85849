"""The collapse guard: each rule fires on what it is for, none on chance or on learning; the run does as it was told."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainerControl, TrainerState

from sgsd.errors import CheckpointError
from sgsd.trainers.checkpoint import last_complete_checkpoint
from sgsd.trainers.guard import GRADIENT, CollapseGuard, GuardCallback

SOUND = {"success": 0.4, "entropy": 0.8, "truncated": 0.1, GRADIENT: 1.0}


def watch(guard, rows, start=1):
    """The alarm of the first row that raises one."""
    for step, row in enumerate(rows, start):
        if (alarm := guard.observe(step, row)) is not None:
            return alarm
    return None


def steady(count, **changes):
    return [SOUND | changes] * count


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"success": 0.1}, r"success rate fell from 40.0% \(steps to 20\)"),
        ({"success": 0.0}, "success rate fell"),
        ({"truncated": 1.0}, r"% of the rollouts of 10 steps were cut off, without more success"),
    ],
)
def test_each_rule_names_what_it_saw(changes, said):
    guard = CollapseGuard(10, rollouts=64)
    assert watch(guard, steady(20)) is None
    alarm = watch(guard, steady(20, **changes), start=21)
    assert alarm is not None
    assert alarm.step <= 31
    assert alarm.sound_until <= 20
    assert re.search(said, alarm.what)
    assert watch(guard, steady(5, **changes), start=50) is None  # one alarm a run


@pytest.mark.parametrize(
    "changes",
    [
        {"success": 0.3},  # less, but not that much less
        {"success": 0.9, "entropy": 0.01},
        {"success": 0.9, "truncated": 0.95},  # what is cut off counts for nothing, and yet more succeeds
        {"truncated": 0.8},
        {"success": math.nan},  # no decided rollouts: nothing was counted
        {"truncated": math.nan},
    ],
)
def test_no_rule_fires_on_less(changes):
    assert watch(CollapseGuard(10, rollouts=64), steady(20) + steady(30, **changes)) is None


def test_rollouts_that_are_cut_off_from_the_first_step_on_are_an_alarm_as_soon_as_a_window_is_full():
    alarm = watch(CollapseGuard(10, rollouts=64), steady(30, truncated=0.95, success=0.05))
    assert (alarm.step, alarm.sound_until) == (10, 0)


def test_a_mean_over_nothing_is_not_judged():
    """All rollouts of a step may be masked (``mask_truncated_completions``): no token is counted then."""
    guard = CollapseGuard(3, rollouts=6)
    assert watch(guard, [SOUND | {"entropy": math.nan}, SOUND, {GRADIENT: 0.0}, *steady(10, entropy=math.nan)]) is None


@pytest.mark.parametrize(
    ("broken", "sound"),
    [
        ({GRADIENT: math.nan}, 3),
        ({GRADIENT: math.inf}, 3),
        ({"entropy": math.inf}, 2),
        ({GRADIENT: math.nan, "entropy": math.nan}, 2),  # the update of step 3 broke the weights already
    ],
)
def test_numbers_that_are_not_finite_are_seen_at_once(broken, sound):
    alarm = watch(CollapseGuard(10, rollouts=64), [*steady(3), SOUND | broken])
    name, value = next(iter(broken.items()))
    assert (alarm.step, alarm.sound_until, alarm.what, alarm.finite) == (4, sound, f"{name} is {value}", False)


def test_chance_raises_no_alarm_where_few_rollouts_are_judged():
    """16 rollouts a step, a success rate that is 0.05 or 0.5 all the time: the best of 300 windows is luck."""
    draw = np.random.default_rng(0)
    alarms = 0
    for rate in (0.05, 0.2, 0.5):
        for _ in range(60):
            rows = [SOUND | {"success": float(count) / 16} for count in draw.binomial(16, rate, 300)]
            alarms += watch(CollapseGuard(20, rollouts=16), rows) is not None
    assert alarms <= 2


def test_the_collapse_of_the_lab_is_seen_while_most_of_it_is_ahead():
    """Success as SGSD's published form has it in the lab: 26 % to 50 % at step 75, then down to 0 at step 300."""
    rates = np.interp(range(1, 301), [1, 75, 300], [0.26, 0.5, 0.0])
    alarm = watch(CollapseGuard(20, rollouts=64), [SOUND | {"success": float(rate)} for rate in rates])
    assert alarm is not None
    assert 75 <= alarm.sound_until <= 95
    assert alarm.step < 170


def test_a_guard_that_is_loaded_goes_on_as_if_it_had_never_stopped():
    draw = np.random.default_rng(1)
    rows = [SOUND | {"success": float(rate)} for rate in draw.uniform(0.3, 0.5, 30)] + steady(30, success=0.02)
    whole, first, second, third = (CollapseGuard(10, rollouts=16) for _ in range(4))
    watch(first, rows[:25])
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), allow_nan=False)))
    assert watch(whole, rows) == watch(second, rows[25:], start=26) is not None
    third.load_state_dict(json.loads(json.dumps(second.state_dict())))
    assert third.alarm == second.alarm


@pytest.mark.parametrize(
    "state",
    [
        {"recent": []},
        {"recent": [3], "first": None, "best": 0, "best_step": 0, "alarm": None},
        {"recent": [], "first": None, "best": "x", "best_step": 0, "alarm": None},
        {"recent": [], "first": None, "best": 0, "best_step": 0, "alarm": {"step": 1}},
    ],
)
def test_a_state_that_is_no_guard_s_is_refused_and_changes_nothing(state):
    guard = CollapseGuard(10, rollouts=16)
    watch(guard, steady(12))
    before = guard.state_dict()
    with pytest.raises(CheckpointError, match="guard cannot be read"):
        guard.load_state_dict(state)
    assert guard.state_dict() == before


# ---- what an alarm does: the rest is tried in whole runs, test_guard_runs.py


@pytest.mark.parametrize(("fp16", "main"), [(True, True), (False, True), (False, False)])
def test_float16_leaves_a_broken_gradient_to_its_scaler_and_only_the_first_process_writes(tmp_path, fp16, main):
    state, control, model = TrainerState(is_world_process_zero=main), TrainerControl(), torch.nn.Linear(2, 1)
    args = SimpleNamespace(output_dir=str(tmp_path), fp16=fp16)
    callback = GuardCallback(CollapseGuard(3, rollouts=64), "warn", lambda: {"success": 0.4}, lambda: math.inf)
    state.global_step = 1
    model.weight.grad = torch.full_like(model.weight, math.inf)
    callback.on_pre_optimizer_step(args, state, control, model=model)
    callback.on_step_end(args, state, control)
    assert (model.weight.grad is not None) == fp16
    assert control.should_training_stop != fp16
    assert (callback.guard.alarm is None) == fp16
    assert (tmp_path / "guard.json").exists() == (main and not fp16)


def test_the_sound_checkpoint_is_the_last_complete_one_until_a_step(tmp_path):
    for step in (2, 4, 6):
        (tmp_path / f"checkpoint-{step}" / "sgsd").mkdir(parents=True)
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}" / "sgsd" / "state.json").touch()
    assert [last_complete_checkpoint(tmp_path, until) for until in (1, 3, 9)] == [
        None,
        tmp_path / "checkpoint-2",
        tmp_path / "checkpoint-4",
    ]
