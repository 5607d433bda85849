"""Train, resume, evaluate, look at banks: the whole command line on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgsd.bank import SkillBank
from sgsd.cli.settings import _EVERYDAY, RunArguments, parse_settings
from sgsd.trainers.config import CONFIGS, OPSDConfig


def test_a_finished_run_holds_model_tokenizer_bank_and_record(finished):
    names = {path.name for path in finished.iterdir()}
    assert {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names
    assert {"run.json", "bank-start.json", "bank.json", "trainer_state.json", "checkpoint-2", "checkpoint-3"} <= names
    record = json.loads((finished / "run.json").read_text())
    bank = SkillBank.load("seed:mental-arithmetic")
    assert record["bank_digest"] == SkillBank.load(finished / "bank.json").digest == bank.digest
    assert record["data"]["kept"] == 8
    assert {"torch", "trl", "transformers"} <= set(record["versions"])
    settings = record["settings"]
    assert settings["verifier"] == "exact"
    assert settings["bank"] == "seed:mental-arithmetic"
    assert settings["max_steps"] == 3
    assert settings["gate_tau"] == 1.0  # a default is recorded too
    assert settings["lora_r"] == 16
    assert settings["lr_scheduler_type"] == "linear"


def test_the_record_holds_no_token(finished):
    assert "hub_token" not in (finished / "run.json").read_text()
    files = [file for file in finished.rglob("*") if file.is_file()]
    assert "training_args.bin" in {file.name for file in files}
    assert [file for file in files if b"hf_secret" in file.read_bytes()] == []
    with zipfile.ZipFile(finished / "training_args.bin") as saved:
        assert all(b"hf_secret" not in saved.read(name) for name in saved.namelist())


def test_tokens_inside_mappings_are_not_recorded_either(flags):
    from sgsd.trainers.record import settings_as_dict

    options = '{"token": "hf_secret", "device_map": "cpu"}'
    parts = parse_settings([*flags, "--output_dir", "x", "--model_init_kwargs", options])
    settings = settings_as_dict(*parts)
    assert settings["model_init_kwargs"] == {"device_map": "cpu"}
    assert "hf_secret" not in json.dumps(settings)


def test_resume_goes_on_from_the_last_complete_checkpoint(sgsd, flags, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "checkpoint-3" / "sgsd" / "state.json").unlink()  # as if cut off
    result = sgsd("train", *flags, "--output_dir", run, "--resume")
    assert result.code == 0
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == [1, 2, 3]
    assert result.out.count("'loss'") == 1  # the third step alone
    resumed, straight = (load_file(folder / "model.safetensors") for folder in (run, finished))
    for name, weights in straight.items():
        torch.testing.assert_close(resumed[name], weights)


@pytest.mark.parametrize("skills", [False, True])
@pytest.mark.parametrize("method", ["grpo", "opsd"])
def test_another_method_trains_resumes_and_is_evaluated_alike(sgsd, flags_of, problems, tmp_path, method, skills):
    run = tmp_path / "run"
    flags = [*flags_of(method, skills=skills), "--output_dir", run, "--eval_dataset", problems]
    assert sgsd("train", *flags).code == 0
    record = json.loads((run / "run.json").read_text())
    settings = record["settings"]
    assert (settings["method"], settings["skills_in_prompt"], settings["seed"]) == (method, skills, 42)
    assert ("divergence" in settings) == (method == "opsd")
    assert "gate_tau" not in settings
    bank = SkillBank.load("seed:mental-arithmetic").digest if skills else None
    assert record["bank_digest"] == bank
    for name in ("bank-start.json", "bank.json"):
        assert (SkillBank.load(run / name).digest if (run / name).exists() else None) == bank
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "success_rate" in entry] == [1, 2, 3]
    straight = load_file(run / "model.safetensors")

    shutil.rmtree(run / "checkpoint-3")
    result = sgsd("train", *flags, "--resume")
    assert result.code == 0
    assert result.out.count("'loss'") == 1
    for name, weights in load_file(run / "model.safetensors").items():
        torch.testing.assert_close(weights, straight[name])
    assert json.loads(sgsd("eval", run, "--json").out)["problems"] == 8


@pytest.mark.parametrize("skills", [False, True])
@pytest.mark.parametrize("method", ["grpo", "opsd"])
def test_a_dry_run_of_another_method_shows_its_prompts(sgsd, flags_of, tmp_path, method, skills):
    result = sgsd("train", *flags_of(method, skills=skills), "--output_dir", tmp_path / "run", "--dry_run")
    assert result.code == 0
    assert result.out.count("Experience from similar problems") == skills * (1 + (method == "opsd"))
    assert ("with BM25's first pairs" in result.out) == skills
    assert ("teacher, with the answer" in result.out) == (method == "opsd")
    assert ("A reference for this problem" in result.out) == (method == "opsd")
    assert ("bank seed:mental-arithmetic" in result.out) == skills


@pytest.mark.parametrize("place", ["file", "flag"])
def test_the_method_decides_which_settings_there_are(tmp_path, place):
    file = tmp_path / "mine.yaml"
    method = "method: opsd\n" if place == "file" else "method: grpo\n"
    file.write_text(f"{method}output_dir: x\nbf16: false\n")
    flags = [] if place == "file" else ["--method", "opsd"]
    run, training, _ = parse_settings(["--config", str(file), *flags, "--divergence", "jsd"])
    assert run.method == "opsd"
    assert isinstance(training, OPSDConfig)
    assert training.divergence == "jsd"


@pytest.mark.parametrize("method", ["sgsd", "grpo", "opsd"])
def test_help_has_what_is_needed_every_day_and_the_rest_on_request(capsys, monkeypatch, method):
    monkeypatch.setenv("COLUMNS", "120")
    texts = []
    for asked in ([], ["all"]):
        with pytest.raises(SystemExit):
            parse_settings(["--method", method, "--help", *asked])
        texts.append(capsys.readouterr().out)
    short, whole = ({line.split()[0] for line in text.splitlines() if line.startswith("  --")} for text in texts)
    assert short < whole
    assert f"sgsd train --method {method}" in texts[0]
    assert ("--gate_tau" in short, "--divergence" in short) == (method == "sgsd", method == "opsd")
    assert len(texts[0].splitlines()) < 220 < 700 < len(texts[1].splitlines())
    assert {f"--{name}" for name in _EVERYDAY} <= short
    own = {name for part in (RunArguments, CONFIGS[method]) for name in vars(part).get("__annotations__", {})}
    assert {f"--{name}" for name in own} <= short
    hidden = sum(int(count) for count in re.findall(r"the most used; (\d+) more with --help all", texts[0]))
    assert len(short) + hidden == len(whole)
    assert len(re.findall(r"\(default:\s", texts[1])) >= len(whole) - 5  # some say it themselves


@pytest.mark.parametrize("exists", [True, False])
def test_resume_in_an_empty_folder_starts_anew(sgsd, flags, tmp_path, exists):
    run = tmp_path / "run"
    if exists:
        run.mkdir()
    assert sgsd("train", *flags, "--output_dir", run, "--resume", "--max_steps", "1").code == 0
    assert (run / "model.safetensors").is_file()


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("num_teachers: 3\nlearning_rate: 1e-4\nsupport_clip: 2\noutput_dir: x\nbf16: false\n")
    for config in (["--config", str(file)], [f"--config={file}"]):
        run, training, _ = parse_settings([*config, "--num_teachers", "5", "--resume"])
        assert (training.num_teachers, training.learning_rate, training.support_clip) == (5, 1e-4, 2.0)
        assert training.support_threshold == 0.05
        assert run.resume


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
def test_a_dry_run_shows_prompts_loads_no_weights_and_writes_nothing(sgsd, flags, tmp_path, monkeypatch, flag):
    def refuse(*_: object, **__: object):
        raise AssertionError("a dry run loads no weights")

    monkeypatch.setattr("sgsd.cli.train.load_model", refuse)
    monkeypatch.setattr("sgsd.trainers.model.load_model", refuse)
    monkeypatch.chdir(tmp_path)
    result = sgsd("train", *flags, "--output_dir", tmp_path / "run", "--hub_token", "hf_secret", flag)
    assert result.code == 0
    assert "What is 0 + 1?" in result.out
    assert "num_teachers: 2" in result.out
    assert "teacher, with BM25's first pair" in result.out
    assert "8" in result.out
    assert "hf_secret" not in result.out + result.err
    assert "nothing was written" in result.err
    assert list(tmp_path.iterdir()) == []


# ---- eval


def test_eval_of_a_run_takes_over_its_settings(sgsd, finished, problems, tmp_path):
    out = tmp_path / "out"
    result = sgsd("eval", finished, "--samples", "2", "--output", out, "--json")
    assert result.code == 0
    summary = json.loads(result.out)
    assert summary["verifier"] == "exact"
    assert summary["instruction"] == "Answer with a number."
    assert summary["max_completion_length"] == 8
    assert summary["dataset"] == str(problems)
    assert (summary["problems"], summary["samples_per_problem"]) == (8, 2)
    assert json.loads((out / "summary.json").read_text()) == summary
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [(s["problem_id"], s["sample"]) for s in samples] == [(f"sum-{i}", k) for i in range(8) for k in range(2)]
    assert all(sample["tokens"] <= 8 for sample in samples)


def test_eval_flags_override_the_run(sgsd, finished, problems, tmp_path):
    flags = ["--dataset", problems, "--instruction", "", "--verifier", "math", "--max-completion-length", "4"]
    result = sgsd("eval", finished, *flags, "--limit", "2", "--json", "--output", tmp_path / "out")
    summary = json.loads(result.out)
    assert (summary["instruction"], summary["verifier"]) == ("", "math")
    assert (summary["max_completion_length"], summary["problems"]) == (4, 2)


def test_eval_of_a_checkpoint_takes_the_run_around_it(sgsd, finished, tmp_path):
    result = sgsd("eval", finished / "checkpoint-2", "--json", "--output", tmp_path / "out")
    assert result.code == 0
    assert json.loads(result.out)["instruction"] == "Answer with a number."


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, flags, problems) -> Path:
    """A LoRA run."""
    from sgsd.cli import main

    folder = tmp_path_factory.mktemp("lora") / "run"
    extra = ["--use_peft", "--lora_r", "4", "--eval_dataset", str(problems), "--output_dir", str(folder)]
    torch.set_num_threads(1)
    assert main(["train", *flags, *extra]) == 0
    return folder


def test_eval_of_a_lora_run_uses_the_adapter(sgsd, adapter, tiny_folder, tmp_path):
    assert not (adapter / "config.json").exists()
    greedy = ["--temperature", "0", "--json"]

    def completions(model: Path) -> list[str]:
        out = tmp_path / model.name
        assert sgsd("eval", model, *greedy, "--output", out).code == 0
        return [json.loads(line)["completion"] for line in (out / "samples.jsonl").read_text().splitlines()]

    trained = completions(adapter)
    loud = tmp_path / "loud"
    shutil.copytree(adapter, loud)
    weights = load_file(loud / "adapter_model.safetensors")
    torch.manual_seed(0)
    save_file(
        {k: torch.randn_like(v) for k, v in weights.items()}, loud / "adapter_model.safetensors", {"format": "pt"}
    )
    assert completions(loud) != trained


def test_an_adapter_trains_on(sgsd, flags, adapter, tmp_path):
    run = tmp_path / "run"
    assert sgsd("train", *flags, "--model_name_or_path", adapter, "--output_dir", run, "--max_steps", "2").code == 0
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (adapter, run))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_evaluation_during_training(sgsd, flags, problems, tmp_path):
    extra = ["--eval_strategy", "steps", "--eval_steps", "2", "--eval_dataset", problems, "--max_steps", "2"]
    assert sgsd("train", *flags, "--output_dir", tmp_path / "run", *extra).code == 0
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_reward" in entry] == [2]


def test_a_run_that_the_guard_stops_saves_no_final_model_and_names_the_last_sound_checkpoint(flags, tmp_path):
    from rich.console import Console

    from sgsd.cli.settings import parse_settings
    from sgsd.cli.train import run_training
    from sgsd.errors import CollapseError

    output = tmp_path / "run"
    settings = parse_settings([*flags, "--output_dir", str(output), "--max_steps", "6", "--save_steps", "1"])

    def spoil(trainer):
        compute_loss = trainer._compute_loss
        factor = {True: 1.0, False: float("nan")}
        trainer._compute_loss = lambda model, inputs: (
            compute_loss(model, inputs) * factor[trainer.state.global_step < 3]
        )

    with pytest.raises(CollapseError, match=r"stopped the run at step 4: got the gradient's norm is nan.*checkpoint-3"):
        run_training(*settings, Console(quiet=True), before=spoil)
    assert (output / "guard.json").is_file()
    assert not (output / "model.safetensors").exists()
