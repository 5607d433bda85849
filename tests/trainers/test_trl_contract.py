"""What ``SGSDTrainer`` overrides, calls and reads of TRL and transformers. A failure here is where to begin after an
upgrade."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import Trainer
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from .tiny import PROBLEMS, make_bank, make_trainer, rows


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (GRPOTrainer._calculate_rewards, ["self", "inputs", "prompts", "completions", "completion_ids_list"]),
        (GRPOTrainer._generate_and_score_completions, ["self", "inputs"]),
        (GRPOTrainer._compute_loss, ["self", "model", "inputs"]),
        (GRPOTrainer._tokenize_prompts, ["self", "prompts"]),
        (
            GRPOTrainer._generate_single_turn,
            ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
        ),
        (GRPOTrainer._get_train_sampler, ["self", "dataset"]),
        (disable_gradient_checkpointing, ["model", "gradient_checkpointing_kwargs"]),
    ],
)
def test_signatures_are_the_ones_that_were_read(function, names):
    assert list(inspect.signature(inspect.unwrap(function)).parameters) == names


def test_the_student_pass_is_called_with_a_model_ids_a_mask_and_the_completion_length():
    names = list(inspect.signature(inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies)).parameters)
    assert names[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert "compute_entropy" in names


def test_the_overridden_methods_are_still_the_ones_that_trl_calls():
    called = inspect.getsource(GRPOTrainer)
    for call in (
        "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
        "self._generate_and_score_completions(generation_batch)",
        "return self._compute_loss(model, inputs)",
        "self._get_per_token_logps_and_entropies(",
        "shuffle_sequence_dict(generation_batch)",
        "split_tensor_dict(generation_batch, self.args.steps_per_generation)",
    ):
        assert call in called


def test_train_takes_resume_from_checkpoint_first():
    assert list(inspect.signature(Trainer.train).parameters)[:2] == ["self", "resume_from_checkpoint"]


def test_checkpoints_are_announced_after_they_are_written_and_after_the_step():
    source = inspect.getsource(Trainer._maybe_log_save_evaluate)
    assert source.index("_save_checkpoint") < source.index("on_save")
    loop = inspect.getsource(Trainer._run_epoch)
    assert loop.index("on_step_end") < loop.index("_maybe_log_save_evaluate")


def test_attributes_that_are_read(tmp_path):
    trainer = make_trainer(tmp_path)
    assert trainer.eos_token_ids == [1]
    assert trainer.loss_is_scaled_for_ga is True
    assert trainer.reward_weights.shape == (1,)
    assert set(trainer._metrics) == {"train", "eval"}
    assert trainer._logs["extra"]["new"].maxlen == trainer.args.generation_batch_size
    assert (trainer.num_generations, trainer.num_generations_eval, trainer.temperature) == (1, 1, 1.1)
    assert trainer.chat_template is None
    assert trainer.tools is None or not trainer.tools


def test_the_sampler_draws_one_permutation_an_epoch_from_a_generator_of_its_own(tmp_path):
    trainer = make_trainer(tmp_path)
    sampler = trainer._get_train_sampler()
    first, second = list(sampler), list(sampler)
    again = trainer._get_train_sampler()
    trainer.skip_epochs(1)
    assert first != second == list(again)


def test_the_batch_holds_what_the_loss_reads(tmp_path):
    trainer = make_trainer(tmp_path, stub=True)
    batch = trainer._generate_and_score_completions(rows(trainer, [0, 1, 2]))
    T = batch["completion_ids"].shape[1]
    shapes = {
        "prompt_ids": (3, batch["prompt_ids"].shape[1]),
        "prompt_mask": tuple(batch["prompt_ids"].shape),
        "completion_ids": (3, T),
        "completion_mask": (3, T),
        "advantages": (3,),
        "teacher_logps": (3, 3, T),
        "teacher_weights": (3, 3),
        "outcome": (3,),
        "score_mask": (3, T),
        "row": (3,),
    }
    assert {name: tuple(batch[name].shape) for name in shapes} == shapes
    # padded on the left and on the right, as the student's forward assumes
    assert bool((batch["prompt_mask"].diff(dim=1) >= 0).all())
    assert bool((batch["completion_mask"].diff(dim=1) <= 0).all())
    assert "tool_mask" not in batch


@pytest.mark.parametrize("thinking", ["off", "on", "template", "paper"])
def test_trl_tokenizes_a_prompt_as_the_renderer_does(tmp_path, thinking):
    trainer = make_trainer(tmp_path, thinking=thinking)
    prompt_ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows(trainer, range(3))])
    assert prompt_ids == [trainer.renderer.student_ids(problem.text) for problem in PROBLEMS[:3]]


@pytest.mark.parametrize("thinking", ["off", "on", "template", "paper"])
def test_thinking_differs_between_student_and_teacher_only_if_asked(tmp_path, thinking):
    trainer = make_trainer(tmp_path, thinking=thinking)
    bank = make_bank()
    student = trainer.renderer.text(trainer.renderer.student_ids("1 + 1?"))
    teacher = trainer.renderer.text(trainer.renderer.teacher_ids("1 + 1?", bank.skills[0], bank.mistakes[0]))
    assert ("<think>" in student) == (
        thinking in ("off", "paper")
    )  # the template closes an empty thought where it is off
    assert ("<think>" in teacher) == (thinking == "off")


def test_a_copied_batch_survives_trls_shuffle_and_split_with_its_rows_together(tmp_path):
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    trainer = make_trainer(tmp_path, stub=True)
    batch = trainer._generate_and_score_completions(rows(trainer, range(4)))
    parts = split_tensor_dict(shuffle_sequence_dict(dict(batch)), 2)
    seen = []
    for part in parts:
        for place, row in enumerate(part["row"].tolist()):
            seen.append(row)
            for name in ("completion_ids", "teacher_logps", "teacher_weights", "outcome", "score_mask"):
                assert torch.equal(part[name][place], batch[name][row])
    assert sorted(seen) == [0, 1, 2, 3]
