"""The collapse guard: each rule fires on what it is for, none on chance or on learning; the run does as it was told."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch

from sgsd.errors import CheckpointError, ConfigError
from sgsd.trainers.guard import CollapseGuard, sound_checkpoint

from .tiny import make_config, make_trainer

SOUND = {"success": 0.4, "entropy": 0.8, "logp": -0.8, "active": 0.2, "length": 300.0, "truncated": 0.1}


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
        ({"entropy": 4.0}, "entropy rose from 0.80"),
        ({"logp": -5.0}, "log-probability of sampled tokens fell from -0.80"),
        ({"active": 0.0}, r"no teacher takes a stance any more; at first 20.0% did"),
        ({"length": 10.0}, "completions shrank from 300"),
        ({"truncated": 1.0}, "of completions are cut off, 10.0% were at first"),
        ({"entropy": 0.001}, "entropy fell from 0.800"),
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
        {"success": 0.9, "entropy": 0.01, "length": 50.0},  # what it has learnt needs few words and leaves no doubt
        {"entropy": 1.5},
        {"logp": -1.5},
        {"active": 0.01},
        {"length": 900.0},
        {"truncated": 0.8},
        {"active": math.nan},  # no decided rollouts: nothing was counted
    ],
)
def test_no_rule_fires_on_less(changes):
    assert watch(CollapseGuard(10, rollouts=64), steady(20) + steady(30, **changes)) is None


@pytest.mark.parametrize(("name", "value"), [("entropy", math.nan), ("logp", -math.inf), ("entropy", math.inf)])
def test_weights_that_are_not_finite_are_seen_at_once(name, value):
    alarm = watch(CollapseGuard(10, rollouts=64), [*steady(3), SOUND | {name: value}])
    assert (alarm.step, alarm.sound_until, alarm.what) == (4, 2, f"{name} is {value}")


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


def test_a_guard_restored_from_text_goes_on_as_if_it_had_never_stopped():
    draw = np.random.default_rng(1)
    rows = [SOUND | {"success": float(rate)} for rate in draw.uniform(0.3, 0.5, 30)] + steady(30, success=0.02)
    whole, first = CollapseGuard(10, rollouts=16), CollapseGuard(10, rollouts=16)
    watch(first, rows[:25])
    second = CollapseGuard(10, rollouts=16)
    second.restore(first.to_json(), source="here")
    assert watch(whole, rows) == watch(second, rows[25:], start=26) is not None
    third = CollapseGuard(10, rollouts=16)
    third.restore(second.to_json(), source="here")
    assert third.alarm == second.alarm
    with pytest.raises(CheckpointError, match="guard cannot be read"):
        third.restore('{"recent": []}', source="here")


class Failing:
    """A reward: every rollout succeeds, until so many batches have been judged; none does then."""

    __name__ = "failing"

    def __init__(self, batches):
        self.left = batches

    def __call__(self, completion_ids, **_):
        self.left -= 1
        return [float(self.left >= 0)] * len(completion_ids)


def run(folder, *, guard, batches=6, steps=20, **settings):
    defaults = {"save_strategy": "steps", "save_steps": 2, "num_generations": 2, "guard_window": 3}
    defaults |= {"per_device_train_batch_size": 12, "learning_rate": 1e-5, "max_steps": steps, "stub": True}
    return make_trainer(folder, reward=Failing(batches), guard=guard, **defaults | settings)


def test_stop_ends_the_run_and_names_the_checkpoint_that_outlives_the_limit(tmp_path, caplog):
    trainer = run(tmp_path, guard="stop", save_total_limit=1)
    trainer.train()
    seen = json.loads((tmp_path / "guard.json").read_text())
    assert trainer.state.global_step == seen["step"] < 12
    assert seen["sound_until"] == 6
    assert seen["checkpoint"] == "checkpoint-6"
    assert (tmp_path / "checkpoint-6" / "model.safetensors").is_file()
    assert sound_checkpoint(tmp_path, 6) == tmp_path / "checkpoint-6"
    assert "the success rate fell from " in caplog.text
    assert f"the run stopped; last sound checkpoint: {tmp_path / 'checkpoint-6'}" in caplog.text


def test_warn_says_so_once_and_goes_on(tmp_path, caplog):
    trainer = run(tmp_path, guard="warn", steps=14)
    trainer.train()
    assert trainer.state.global_step == 14
    assert caplog.text.count("collapse guard") == 1


def test_off_watches_nothing(tmp_path, caplog):
    trainer = run(tmp_path, guard="off", steps=10)
    trainer.train()
    assert "collapse guard" not in caplog.text
    assert not (tmp_path / "guard.json").exists()


def test_grpo_takes_over_and_stays_after_a_resume(tmp_path):
    trainer = run(tmp_path, guard="grpo", steps=12)
    trainer.train()
    assert trainer.state.global_step == 12
    assert (trainer.args.sgsd_weight, trainer.args.grpo_weight) == (0.0, 1.0)
    resumed = run(tmp_path, guard="grpo", steps=14, batches=0)
    resumed.train(resume_from_checkpoint=True)
    assert (resumed.args.sgsd_weight, resumed.args.grpo_weight) == (0.0, 1.0)


@pytest.mark.parametrize("method", ["sgsd", "grpo"])
def test_a_gradient_that_is_not_finite_touches_no_weight_and_stops_a_run_that_would_only_warn(tmp_path, method, caplog):
    trainer = run(tmp_path, method=method, guard="warn", steps=9, save_steps=1)
    compute_loss, saved = trainer._compute_loss, {}

    def spoilt(model, inputs):
        if trainer.state.global_step < 4:
            return compute_loss(model, inputs)
        saved.update({name: value.clone() for name, value in model.state_dict().items()})
        return compute_loss(model, inputs) * torch.nan

    trainer._compute_loss = spoilt
    trainer.train()
    seen = json.loads((tmp_path / "guard.json").read_text())
    assert trainer.state.global_step == 5
    assert (seen["step"], seen["checkpoint"], seen["run"]) == (5, "checkpoint-4", "stopped")
    assert "the gradient's norm is nan" in caplog.text
    assert all(torch.equal(saved[name], value) for name, value in trainer.model.state_dict().items())


def test_only_sgsd_with_groups_can_hand_over(tmp_path):
    for method, settings in (("grpo", {}), ("sgsd", {"num_generations": 1}), ("opsd", {})):
        with pytest.raises(ConfigError, match="nothing to hand over to"):
            make_config(tmp_path, method=method, guard="grpo", **settings)
