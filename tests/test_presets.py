"""Every shipped configuration parses, and says what method.md says of the paper."""

from __future__ import annotations

import pytest
from trl import ModelConfig

from sgsd.bank import SkillBank
from sgsd.commands.settings import RunArguments, parse_settings, presets, resolve_config
from sgsd.training.config import SGSDConfig

PAPER = {"sgsd-qwen3-1.7b": "Qwen/Qwen3-1.7B", "sgsd-qwen3-4b": "Qwen/Qwen3-4B", "sgsd-qwen3-8b": "Qwen/Qwen3-8B"}
GPUS = 4


def parsed(name: str) -> tuple[RunArguments, SGSDConfig, ModelConfig]:
    # A machine without a GPU refuses bfloat16; nothing else is overridden.
    return parse_settings(["--config", name, "--bf16", "false", "--output_dir", "unused"])


def test_there_are_no_other_presets():
    assert presets() == sorted([*PAPER, "demo"])


@pytest.mark.parametrize("name", presets())
def test_a_preset_parses_and_its_bank_serves_its_teachers(name):
    run, training, model = parsed(name)
    assert run.method == "sgsd"
    assert model.model_name_or_path
    assert SkillBank.load(training.bank).max_pairs >= training.num_teachers


@pytest.mark.parametrize(("name", "model_name"), PAPER.items())
def test_the_papers_numbers(name, model_name):
    run, training, model = parsed(name)
    assert model.model_name_or_path == model_name
    assert (model.use_peft, model.lora_r, model.lora_alpha) == (True, 64, 128)
    assert model.lora_target_modules == "all-linear"
    assert training.learning_rate == 5e-6
    assert training.max_grad_norm == 0.1
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (1, 4)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps * GPUS == 16
    assert training.num_generations == 1
    assert training.max_steps == 200
    assert training.max_completion_length == 1024
    assert (training.temperature, training.top_p, training.top_k) == (1.1, 0.95, 20)
    assert training.num_teachers == 8
    assert (training.retriever, training.embedder) == ("embedding", "Qwen/Qwen3-Embedding-0.6B")
    assert training.teacher == "live"
    assert training.thinking == "paper"
    assert (training.gate_tau, training.support_clip, training.support_threshold) == (1.0, 3.0, 0.05)
    assert training.score_temperature == 1.0
    assert (training.sgsd_weight, training.grpo_weight) == (1.0, 0.0)
    assert run.dataset == "BytedTsinghua-SIA/DAPO-Math-17k"
    assert "bf16: true" in resolve_config(name).read_text()


def test_the_papers_numbers_are_the_defaults_too():
    _, defaults, _ = parse_settings(["--bf16", "false", "--output_dir", "unused"])
    _, training, _ = parsed("sgsd-qwen3-1.7b")
    for setting in (
        *("learning_rate", "max_grad_norm", "num_generations", "max_completion_length", "temperature", "top_p"),
        *("top_k", "num_teachers", "retriever", "embedder", "retrieval_temperature", "teacher", "score_temperature"),
        *("gate_tau", "support_clip", "support_threshold", "sgsd_weight", "grpo_weight"),
    ):
        assert vars(defaults)[setting] == vars(training)[setting], setting
