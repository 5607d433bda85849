"""The collapse guard in whole runs of a tiny model: the run does as it was told."""

from __future__ import annotations

import json

import pytest
import torch

from sgsd.trainers.checkpoint import last_complete_checkpoint

from .tiny import PROBLEMS, make_trainer


class Failing:
    """A reward: every rollout succeeds, until so many batches have been judged; none does then.

    The start-up check judges one before the first.
    """

    __name__ = "failing"

    def __init__(self, batches):
        self.left = batches + 1

    def __call__(self, completion_ids, **_):
        self.left -= 1
        return [float(self.left >= 0)] * len(completion_ids)


@pytest.fixture(autouse=True)
def short_window(monkeypatch):
    monkeypatch.setattr("sgsd.trainers.guard.WINDOW", 3)


def run(folder, *, guard, batches=6, steps=20, **settings):
    defaults = {"save_strategy": "steps", "save_steps": 2, "num_generations": 2}
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
    assert last_complete_checkpoint(tmp_path, 6) == tmp_path / "checkpoint-6"
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


@pytest.mark.parametrize("method", ["sgsd", "grpo"])
def test_the_guard_judges_each_step_by_its_own_rollouts_whatever_is_evaluated_in_between(tmp_path, method):
    evaluations = {"eval_dataset": PROBLEMS[:2], "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 100}
    trainer = run(tmp_path, method=method, guard="warn", steps=4, save_strategy="no", **evaluations)
    trained: list[float] = []
    seen: list[float] = []
    calculate, observe = trainer._calculate_rewards, trainer.guard.observe

    def rewarded(*arguments):
        rewards = calculate(*arguments)
        if trainer.model.training:
            trained.append((trainer._outcome > 0).float().mean().item())
        trainer.reward_funcs[0].left = 1 - len(trained) % 2  # every other batch of training fails
        return rewards

    def observed(step, vitals):
        seen.append(vitals["success"])
        return observe(step, vitals)

    trainer._calculate_rewards, trainer.guard.observe = rewarded, observed
    trainer.train()
    assert len(set(trained)) == 2
    assert seen == pytest.approx(trained)
