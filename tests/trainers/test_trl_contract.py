"""What the trainers override, call and read of TRL and transformers. After an upgrade, begin with what fails here."""

from __future__ import annotations

import ast
import inspect
import sys

import pytest
import torch
from datasets import Dataset
from transformers import Trainer
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import FusedCausalLMOutput

from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.methods import GRPOBaselineTrainer
from sgsd.trainers.opsd import OPSDTrainer
from sgsd.trainers.sgsd import SGSDTrainer

from ..conftest import make_model, make_tokenizer
from .tiny import PROBLEMS, make_bank, make_config, make_trainer, rows


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
        (GRPOTrainer._save_checkpoint, ["self", "model", "trial"]),
        (Trainer.train, ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"]),
        (GRPOTrainer._get_grad_norm, ["self", "model", "grad_norm"]),
        (disable_gradient_checkpointing, ["model", "gradient_checkpointing_kwargs"]),
    ],
)
def test_signatures_are_the_ones_that_were_read(function, names):
    assert list(inspect.signature(inspect.unwrap(function)).parameters) == names


PRIVATE = {
    # overridden
    "_calculate_rewards": "VerifiedTrainer, SGSDTrainer",
    "_generate_and_score_completions": "VerifiedTrainer, SGSDTrainer, OPSDTrainer",
    "_compute_loss": "SGSDTrainer, OPSDTrainer",
    "_get_per_token_logps_and_entropies": "SGSDTrainer",
    "_get_grad_norm": "VerifiedTrainer",
    "_get_train_sampler": "VerifiedTrainer",
    "_save": "VerifiedTrainer",
    "_save_checkpoint": "VerifiedTrainer",
    "_name": "SGSDTrainer, OPSDTrainer",
    "_paper": "SGSDTrainer, OPSDTrainer",
    "_tag_names": "SGSDTrainer, OPSDTrainer",
    # called or read
    "_logs": "",
    "_metrics": "",
    "_step": "",
}
"""Private name of TRL or transformers → the trainers that override it."""


def test_these_private_names_are_used_and_no_others(tmp_path):
    own = [VerifiedTrainer, SGSDTrainer, OPSDTrainer, GRPOBaselineTrainer]
    theirs = {name for name in dir(GRPOTrainer) if name.startswith("_") and not name.startswith("__")}
    theirs |= set(vars(plain_trainer(tmp_path)))
    used: dict[str, list[str]] = {}
    for trainer in own:
        for name in vars(trainer).keys() & theirs:
            used.setdefault(name, []).append(trainer.__name__)
        for node in ast.walk(ast.parse(inspect.getsource(sys.modules[trainer.__module__]))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and node.attr in theirs:
                used.setdefault(node.attr, [])
    assert {name: ", ".join(classes) for name, classes in used.items()} == PRIVATE


def plain_trainer(folder):
    """TRL's own, on rows as TRL has them."""
    return GRPOTrainer(
        model=make_model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=make_config(folder, method="grpo"),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "1 + 1?"}]}] * 4),
        processing_class=make_tokenizer(),
    )


def test_the_student_pass_is_called_as_a_model_with_a_fused_head(tmp_path):
    """``StudentPass`` stands in the model's place, and takes and returns what TRL's fused head does."""
    names = list(inspect.signature(inspect.unwrap(GRPOTrainer._get_per_token_logps_and_entropies)).parameters)
    assert names[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert {"compute_entropy", "compute_aux_loss"} <= set(names)
    asked = {}

    def model(**inputs):
        asked.update(inputs)
        scores = torch.arange(10.0).view(2, 5)
        return FusedCausalLMOutput(log_probs=scores, entropy=-scores, aux_loss=torch.tensor(3.0))

    logps, entropy, aux_loss = plain_trainer(tmp_path)._get_per_token_logps_and_entropies(
        model, torch.ones(2, 6, dtype=int), torch.ones(2, 6), 2, compute_entropy=True, compute_aux_loss=True
    )
    assert set(asked) == {"input_ids", "attention_mask", "labels", "fused_lm_head", "output_router_logits"}
    assert (logps.tolist(), entropy.tolist(), aux_loss.item()) == ([[3, 4], [8, 9]], [[-3, -4], [-8, -9]], 3)


def test_the_overridden_methods_are_still_the_ones_that_trl_calls():
    called = inspect.getsource(GRPOTrainer)
    for call in (
        "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
        "if self._step % generate_every == 0 or self._buffered_inputs is None",
        "inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]",
        "self._generate_and_score_completions(generation_batch)",
        "return self._compute_loss(model, inputs)",
        "self._get_per_token_logps_and_entropies(",
        "shuffle_sequence_dict(generation_batch)",
        "split_tensor_dict(generation_batch, self.args.steps_per_generation)",
    ):
        assert call in called


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
    assert (trainer.aux_loss_enabled, trainer.router_aux_loss_coef) == (False, 0.0)
    assert trainer._step == 0
    assert trainer.chat_template is None
    assert trainer.tools is None or not trainer.tools


def test_the_sampler_draws_one_permutation_an_epoch_from_a_generator_of_its_own(tmp_path):
    trainer = make_trainer(tmp_path)
    sampler = trainer._get_train_sampler()
    first, second = list(sampler), list(sampler)
    trainer._epochs_behind = 1
    again = trainer._get_train_sampler()
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
        "teacher_trust": (3, 3),
        "teacher_scored": (3, 3),
        "items": (3, 3, 2),
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
def test_trl_tokenizes_a_prompt_as_the_renderer_does_and_thoughts_differ_only_if_asked(tmp_path, thinking):
    trainer = make_trainer(tmp_path, thinking=thinking)
    prompt_ids, _, _ = trainer._tokenize_prompts([row["prompt"] for row in rows(trainer, range(3))])
    assert prompt_ids == [trainer.renderer.student_ids(problem.text) for problem in PROBLEMS[:3]]
    bank, text = make_bank(), trainer.renderer.text
    taught = text(trainer.renderer.teacher_ids("1 + 1?", [(bank.skills[0], bank.mistakes[0])]))
    # The template closes an empty thought where thinking is off.
    assert ("<think>" in text(prompt_ids[0])) == (thinking in ("off", "paper"))
    assert ("<think>" in taught) == (thinking == "off")


def test_a_copied_batch_survives_trls_shuffle_and_split_with_its_rows_together(tmp_path):
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    trainer = make_trainer(tmp_path, stub=True)
    batch = trainer._generate_and_score_completions(rows(trainer, range(4)))
    parts = split_tensor_dict(shuffle_sequence_dict(dict(batch)), 2)
    seen = []
    for part in parts:
        for place, row in enumerate(part["row"].tolist()):
            seen.append(row)
            for name in (
                "completion_ids",
                "teacher_logps",
                "teacher_weights",
                "teacher_scored",
                "outcome",
                "score_mask",
            ):
                assert torch.equal(part[name][place], batch[name][row])
    assert sorted(seen) == [0, 1, 2, 3]
