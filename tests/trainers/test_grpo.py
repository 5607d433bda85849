"""GRPO as a method is TRL's trainer, bit by bit."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import set_seed

from sgsd.trainers.methods import GRPOBaselineTrainer

from .tiny import PROBLEMS, by_first_id, make_config, make_trainer, moved, prompted_rollouts, trls_own, weights_of

SETTINGS = {
    "method": "grpo",
    "num_generations": 4,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
}


@pytest.mark.parametrize("stub", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "grpo", "num_iterations": 2, "epsilon_high": 0.28},
        {"lora": True, "scale_rewards": "none", "temperature": 0.8},
    ],
)
def test_training_is_trls_bit_by_bit(tmp_path, settings, stub):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    settings, peft_config = {k: v for k, v in settings.items() if k != "lora"}, lora if "lora" in settings else None
    ours = make_trainer(
        tmp_path / "ours", stub=stub, reward=by_first_id, peft_config=peft_config, **SETTINGS | settings
    )
    assert type(ours) is GRPOBaselineTrainer
    plain = trls_own(tmp_path / "theirs", ours.train_dataset, peft_config=peft_config, **SETTINGS | settings)
    plain.chat_template_kwargs = ours.chat_template_kwargs
    if stub:
        plain._generate_single_turn = prompted_rollouts
    before = weights_of(ours.model)
    for trainer in (ours, plain):
        set_seed(0)  # the second would go on with the first one's random numbers
        trainer.train()
    assert moved(before, ours.model)
    for (name, value), other in zip(ours.model.named_parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(value, other), name
    for entry, other in zip(ours.state.log_history[:-1], plain.state.log_history[:-1], strict=True):
        own, clock = {"success_rate"}, {"step_time"}
        assert {n: v for n, v in entry.items() if n not in own | clock} == {
            n: v for n, v in other.items() if n not in clock
        }
    assert "success_rate" in ours.state.log_history[0]


def test_an_undecided_rollout_has_no_reward_and_no_advantage(tmp_path):
    trainer = make_trainer(
        tmp_path, **SETTINGS, reward=lambda completion_ids, **_: [1.0, 0.0, None, 1.0][: len(completion_ids)]
    )
    trainer._generate_single_turn = lambda prompt_ids, *_, **__: ([[50, 1]] * len(prompt_ids), None)
    batch = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    assert batch["outcome"].tolist() == [1, -1, 0, 1]
    assert batch["advantages"][2] == 0
    assert batch["advantages"][0] > 0 > batch["advantages"][1]


def test_nothing_is_scored_but_the_student(tmp_path):
    trainer = make_trainer(tmp_path, stub=True, reward=by_first_id, **SETTINGS)
    calls = []
    handle = trainer.model.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    handle.remove()
    assert calls == []
    assert trainer.teacher_weights is None


def test_the_reference_model_of_a_kl_penalty_may_be_one_that_a_package_carries(tmp_path):
    args = make_config(tmp_path, **SETTINGS | {"beta": 0.04, "instruction": ""})
    trainer = GRPOBaselineTrainer("local:lab-sharp", by_first_id, args, PROBLEMS)
    assert trainer.ref_model is not trainer.model
    assert all(
        torch.equal(*pair) for pair in zip(weights_of(trainer.ref_model), weights_of(trainer.model), strict=True)
    )
    assert trainer.model.config._name_or_path == "local:lab-sharp"
