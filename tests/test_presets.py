"""Every shipped configuration parses, says what was run of it, and holds what its header claims."""

from __future__ import annotations

import itertools
import re

import pytest
import yaml
from trl import ModelConfig

from sgsd.bank import SkillBank
from sgsd.cli.settings import RunArguments, parse_settings, presets, resolve_config
from sgsd.data.adapters import ADAPTERS
from sgsd.trainers.config import VerifiedConfig
from sgsd.trainers.record import settings_as_dict
from sgsd.verifiers import get_verifier

PAPER = {"sgsd-qwen3-1.7b": "Qwen/Qwen3-1.7B", "sgsd-qwen3-4b": "Qwen/Qwen3-4B", "sgsd-qwen3-8b": "Qwen/Qwen3-8B"}
UPSTREAM = "sgsd-upstream-qwen3-1.7b"
BASELINES = {"grpo-qwen3-1.7b": "grpo", "opsd-qwen3-1.7b": "opsd"}
CORRECTION = "correction-qwen3-1.7b"
TRAINING = [*PAPER, UPSTREAM, *BASELINES, CORRECTION, "internalize"]
GPUS = 4
GONE = {
    *("target_active_teachers", "min_teachers", "abstain_early", "abstain_error", "abstain_first_look", "retire_below"),
    *("retire_frequency", "retire_min_active", "retire_static", "use_gate", "use_polarity", "correct_all"),
    *("log_teacher_entropy", "trace_rollouts", "maintenance_max_added", "maintenance_max_dynamic"),
    "maintenance_eviction",
}


def parsed(name: str, *flags: str) -> tuple[RunArguments, VerifiedConfig, ModelConfig]:
    return parse_settings(["--config", name, "--output_dir", "unused", *flags])


def text(name: str) -> str:
    return resolve_config(name).read_text(encoding="utf-8")


def header(name: str) -> str:
    return "\n".join(itertools.takewhile(lambda line: line.startswith("#"), text(name).splitlines()))


def values(name: str) -> dict[str, object]:
    return yaml.safe_load(text(name))


def test_there_are_no_other_presets():
    assert presets() == sorted([*TRAINING, "bank", "lab"])


@pytest.mark.parametrize("name", presets())
def test_a_header_says_what_was_run(name):
    assert re.search(r"^# Run: \w+", header(name), re.MULTILINE)


@pytest.mark.parametrize("name", presets())
def test_no_preset_has_a_setting_that_is_gone(name):
    assert GONE.isdisjoint(values(name))


@pytest.mark.parametrize("name", TRAINING)
def test_a_preset_has_no_unknown_setting(name):
    run, training, model = parsed(name)
    assert set(values(name)) <= set(settings_as_dict(run, training, model))


@pytest.mark.parametrize("name", [name for name in TRAINING if "qwen3" in name])
def test_a_preset_of_a_model_that_thinks_says_whether_it_does(name):
    # A bare off is False in YAML.
    assert values(name)["thinking"] in ("off", "on", "paper")


@pytest.mark.parametrize("name", [name for name in TRAINING if "qwen3" in name])
def test_a_rollout_of_1024_tokens_is_sampled_without_thoughts(name):
    assert values(name)["max_completion_length"] == 1024
    assert values(name)["thinking"] in ("off", "paper")  # paper: the student's is off


@pytest.mark.parametrize("name", [*PAPER, UPSTREAM, CORRECTION])
def test_a_preset_parses_and_its_bank_serves_its_teachers(name):
    run, training, model = parsed(name)
    assert run.method == "sgsd"
    assert model.model_name_or_path
    assert SkillBank.load(training.bank).max_pairs >= training.num_teachers


@pytest.mark.parametrize(("name", "method"), BASELINES.items())
def test_a_baseline_has_the_model_data_prompts_sampling_and_budget_of_sgsd(name, method):
    (run, training, model), (sgsd_run, sgsd, sgsd_model) = parsed(name), parsed("sgsd-qwen3-1.7b")
    assert run.method == method
    own = {"output_dir", "num_generations", "bank", "logging_dir", "run_name", "method", "dataset_limit", "teacher"}
    own |= {"generation_batch_size", "steps_per_generation"}  # GRPO's groups: the step's 16 rollouts at once
    own |= {"score_temperature"}  # of OPSD's loss
    theirs = settings_as_dict(sgsd_run, sgsd, sgsd_model)
    differing = {
        key
        for key, value in settings_as_dict(run, training, model).items()
        if key in theirs and value != theirs[key] and key not in own
    }
    assert differing == set()
    rollouts = training.per_device_train_batch_size * training.gradient_accumulation_steps * GPUS
    assert rollouts == 16
    assert rollouts % training.num_generations == 0
    assert "bf16: true" in text(name)


def test_the_grpo_preset_samples_for_one_step_at_a_time_in_groups_of_eight():
    _, training, _ = parsed("grpo-qwen3-1.7b")
    assert (training.num_generations, training.generation_batch_size) == (8, 16)


def test_the_grpo_preset_does_not_call_itself_the_papers_baseline():
    assert "This is not the GRPO of the SGSD paper's table" in header("grpo-qwen3-1.7b")
    for theirs in ("32 rollouts", "16,000 tokens", "with thinking", "1.2", "twice", "1.0", "300 steps"):
        assert theirs in header("grpo-qwen3-1.7b").replace("\n# ", " ")


def test_the_correction_preset_differs_from_grpos_in_its_objective_and_prompts_alone():
    (run, training, model), (grpo_run, grpo, grpo_model) = parsed(CORRECTION), parsed("grpo-qwen3-1.7b")
    theirs = settings_as_dict(grpo_run, grpo, grpo_model)
    differing = {
        key for key, value in settings_as_dict(run, training, model).items() if key in theirs and value != theirs[key]
    }
    assert differing == {"method", "bank", "guard", "thinking"}
    assert (training.objective, training.teacher, training.teacher_trust) == ("correction", "frozen", "worth")
    assert training.grpo_weight > 0


def test_the_opsd_presets_objective_is_that_of_the_authors_script():
    _, training, _ = parsed("opsd-qwen3-1.7b")
    assert (training.teacher, training.divergence, training.divergence_clip) == ("frozen", "forward_kl", 0.05)
    assert training.reference == "answer"
    assert training.score_temperature == training.temperature == 1.1


@pytest.mark.parametrize("method", ["sgsd", "grpo", "opsd"])
def test_the_labs_settings_serve_every_method(method):
    run, training, _ = parse_settings(["--config", "lab", "--output_dir", "unused", "--method", method])
    assert run.method == method
    assert training.generation_batch_size % training.num_generations == 0


@pytest.mark.parametrize(("name", "model_name"), [*PAPER.items(), (UPSTREAM, "Qwen/Qwen3-1.7B")])
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
    assert "bf16: true" in text(name)


@pytest.mark.parametrize("name", PAPER)
def test_a_header_names_where_the_papers_run_differs(name):
    said = header(name).replace("\n# ", " ")
    assert "The bank differs" in said
    assert "Bank updates differ" in said
    assert "every number is the paper's" not in said
    assert parsed(name)[1].maintenance_frequency == 0


def test_the_upstream_preset_differs_from_the_papers_in_what_its_header_names_alone():
    (run, training, model), (paper_run, paper, paper_model) = parsed(UPSTREAM), parsed("sgsd-qwen3-1.7b")
    theirs = settings_as_dict(paper_run, paper, paper_model)
    differing = {key: value for key, value in settings_as_dict(run, training, model).items() if value != theirs[key]}
    assert differing == {
        "dataset_adapter": "dapo_wrapped",
        "on_duplicate": "keep",
        "on_conflict": "keep",
        "instruction": "Please reason step by step, and put your final answer within \\boxed{}.",
        "verifier": "sgsd.verifiers.dapo:reward",
        "retrieval_text": "full",
        "maintenance_frequency": 25,
        "lora_dropout": 0.05,
    }
    assert run.dataset_adapter in ADAPTERS
    with get_verifier(training.verifier, workers=1) as verifier:
        assert verifier.verify("Answer: 34", "34").outcome == "correct"
    said = header(UPSTREAM)
    for part in ("wrapper", "duplicates", "verdict", "mistakes in retrieval", "bank updates", "dropout", "padded"):
        assert part in said


def test_the_papers_numbers_are_the_defaults_too():
    _, defaults, _ = parse_settings(["--output_dir", "unused"])
    _, training, _ = parsed("sgsd-qwen3-1.7b")
    for setting in (
        *("learning_rate", "max_grad_norm", "num_generations", "max_completion_length", "temperature", "top_p"),
        *("top_k", "num_teachers", "retriever", "embedder", "teacher", "score_temperature"),
        *("gate_tau", "support_clip", "support_threshold", "sgsd_weight", "grpo_weight"),
    ):
        assert vars(defaults)[setting] == vars(training)[setting], setting
