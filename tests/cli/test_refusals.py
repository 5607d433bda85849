"""What the user got wrong: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgsd.cli.settings import presets


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(sgsd, flags, tmp_path, monkeypatch):
    """``refused(*flags)``: train with these flags; the line of the refusal, which left nothing behind."""
    monkeypatch.chdir(tmp_path)

    def call(*extra: object) -> str:
        output = tmp_path / "run"
        result = sgsd("train", *flags, "--output_dir", output, *extra)
        assert result.code == 2
        assert result.error.startswith("sgsd: error: ")
        assert result.err.count("sgsd: error") == 1
        assert len(result.error) < 500
        assert not output.exists()
        return result.error

    return call


MALFORMED_BANK = '{\n "skills": [,]\n}'
NO_MISTAKES = '{"skills": [{"title": "Add", "text": "Carry the ten."}], "mistakes": []}'


@pytest.mark.parametrize(
    ("flag", "content", "fragments"),
    [
        ("--bank", None, ["no such bank file", "seed:mental-arithmetic"]),
        ("--bank", MALFORMED_BANK, ["malformed JSON", "line 2"]),
        ("--bank", NO_MISTAKES, ["has no mistakes", "1 skills and 0 mistakes"]),
        ("--dataset", None, ["no such data file"]),
        ("--dataset", "", ["holds no rows"]),
        ("--dataset", '{"problem": "1 + 1?"}\n', ["no adapter fits", "got problem; expected problem and answer (docs"]),
        ("--dataset", '{"problem": "1 + 1?", "answer": ""}\n', ["no usable problems", "1 no_answer"]),
        ("--dataset", '{"problem": "1?", "answer": "1"}\n{"prob', ["malformed JSON", ":2"]),
        ("--config", None, ["unknown configuration", "a YAML file, or one of"]),
        ("--config", "- a\n- b\n", ["not a mapping"]),
        ("--config", "", ["not a mapping"]),
        ("--config", "a: [1\nb: 2", ["not YAML", "line 2"]),
        ("--config", "num_techers: 3\n", ["unknown setting in", "num_techers", "did you mean num_teachers?"]),
        ("--config", "1: 3\n", ["unknown setting in"]),
        ("--config", "num_teachers: abc\n", ["wrong type", 'num_teachers: "abc"', "expected int"]),
        ("--config", "max_prompt_length: true\n", ["wrong type", "max_prompt_length: true"]),
        ("--config", "learning_rate: null\n", ["wrong type", "learning_rate: null"]),
        ("--config", "env: 3\n", ["env", "NAME: value"]),
    ],
)
def test_a_file_that_cannot_be_used(refused, tmp_path, flag, content, fragments):
    kind = {"--bank": "json", "--dataset": "jsonl", "--config": "yaml"}[flag]
    file = tmp_path / f"given.{kind}"
    if content is not None:
        file.write_text(content)
    line = refused(flag, file)
    for fragment in [str(file), *fragments] if content is None else fragments:
        assert fragment in line


@pytest.mark.parametrize(
    ("extra", "fragments"),
    [
        (["--verifier", "mth"], ["unknown verifier", "'mth'", "did you mean math?"]),
        (["--retriever", "bm52"], ["unknown retriever", "did you mean bm25?"]),
        (["--teacher", "frozn"], ["unknown teacher", "did you mean frozen?"]),
        (["--method", "sgds"], ["unknown method", "did you mean sgsd?"]),
        (["--method=gpro"], ["unknown method", "did you mean grpo?"]),
        (["--method", "grpo"], ["unknown setting: got num_teachers", "method grpo", "one of sgsd"]),
        (["--divergence", "jsd"], ["unknown setting: got divergence", "method sgsd", "one of opsd"]),
        (
            ["--skills_in_prompt"],
            ["skills_in_prompt does not work with method sgsd", "grpo or opsd", "without"],
        ),
        (["--thinking", "papr"], ["unknown thinking", "did you mean paper?"]),
        (["--bank", "seed:mental-aritmetic"], ["no such shipped bank", "mental-arithmetic"]),
        (["--config", "internalise"], ["unknown configuration", "did you mean internalize?"]),
        (["--config"], ["--config needs"]),
        (["--num_techers", "3"], ["unknown setting", "did you mean num_teachers?"]),
        (["--num-techers=3"], ["unknown setting", "did you mean num_teachers?"]),
        (["--num_teachers", "abc"], ["num_teachers", "abc"]),
        (["--num_teachers", "0"], ["num_teachers is out of range"]),
        (["stray"], ["unknown argument", "stray"]),
        (["--num_processes"], ["--num_processes needs a value"]),
        (["--num_generations", "3"], ["generation_batch_size (2) must be divisible by num_generations (3)"]),
        (["--per_device_train_batch_size", "0"], ["per_device_train_batch_size is out of range"]),
        (["--chat_template_kwargs", "[1]"], ["chat_template_kwargs is not a mapping"]),
        (["--eval_dataset", "gone.jsonl"], ["no such data file"]),
        (["--report_to", "wandb_of_mine"], ["wandb_of_mine"]),
        (["--save_strategy", "best"], ["metric_for_best_model"]),
        (["--eval_strategy", "steps"], ["no data to evaluate on"]),
        (["--report_to", "clearml"], ["report_to", "clearml", "pip install"]),
        (["--attn_implementation", "flash_attention_2"], ["package", "missing", "Flash"]),
        (["--max_completion_length", "2000"], ["do not fit the model's context", "1024"]),
        (["--model_name_or_path", "/no/such/model"], ["no such model folder"]),
        (["--model_name_or_path", "org/model"], ["cannot load the tokenizer 'org/model'", "local folder"]),
        (["--model_name_or_path", "local:smollm"], ["unknown local model", "local:smollm2-135m-instruct"]),
        (["--dataset", "owner/data"], ["cannot reach the hub", "local copy"]),
        (["--retriever", "embedding", "--embedder", "org/embedder"], ["hub is out of reach", "local folder"]),
        (["--resume_from_checkpoint", "/no/such/checkpoint"], ["not a complete sgsd checkpoint"]),
    ],
)
def test_a_flag_that_cannot_be_used(refused, extra, fragments):
    line = refused(*extra)
    for fragment in fragments:
        assert fragment in line


EVAL = ["eval", "m", "--dataset", "d"]
DOCTOR = ["doctor", "b", "--tasks", "d", "--model", "m"]
BUILD = ["bank", "build", "--model_name_or_path", "m", "--dataset", "d", "--output", "o"]


@pytest.mark.parametrize(
    "arguments",
    [
        [*EVAL, "--samples", "1000000000"],
        *([*EVAL, "--temperature", value] for value in ("nan", "-1", "1e-300", "1e300", "inf")),
        [*DOCTOR, "--rollouts", "1000000000000"],
        *([*DOCTOR, "--temperature", value] for value in ("nan", "0", "1e-300", "1e300")),
        *([*BUILD, f"--{name}", "1000000000"] for name in ("samples", "max_items", "attempts")),
        *([*BUILD, "--temperature", value] for value in ("nan", "-1", "1e-300", "1e300", "inf")),
        [*BUILD, "--writer_temperature", "1e-300"],
    ],
)
def test_a_number_with_which_nothing_can_be_sampled(sgsd, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = sgsd(*arguments)
    assert result.code == 2
    assert re.search(f"{arguments[-2].strip('-')}: (out of range|cannot be used): got ", result.error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "extra", "fragments"),
    [
        ("grpo", ["--num_generations", "1"], ["GRPO needs groups", "2 or more"]),
        ("grpo", ["--bank", "seed:mental-arithmetic"], ["would have no effect", "skills_in_prompt: true"]),
        ("grpo", ["--skills_in_prompt"], ["no skill bank"]),
        ("grpo", ["--gate_tau", "1"], ["unknown setting: got gate_tau", "one of sgsd"]),
        ("grpo", ["--teacher", "live"], ["unknown setting: got teacher", "one of sgsd and opsd"]),
        ("opsd", ["--reference", "solution"], ["8 of 8 problems have no reference solution", "reference: answer"]),
        ("opsd", ["--reference", "solutions"], ["unknown reference", "did you mean solution?"]),
        ("opsd", ["--divergence", "reverse"], ["unknown divergence", "reverse_kl"]),
        ("opsd", ["--divergence_clip", "0"], ["divergence_clip is out of range"]),
        ("opsd", ["--beta", "0.1"], ["beta would have no effect"]),
        ("opsd", ["--divergance", "jsd"], ["unknown setting", "did you mean divergence?"]),
        ("opsd", ["--skills_in_prompt", "--skills_in_prompt_pairs", "0"], ["skills_in_prompt_pairs is out of range"]),
    ],
)
def test_what_another_method_cannot_use(sgsd, flags_of, tmp_path, method, extra, fragments):
    result = sgsd("train", *flags_of(method), "--output_dir", tmp_path / "run", *extra)
    assert result.code == 2
    assert not (tmp_path / "run").exists()
    for fragment in fragments:
        assert fragment in result.error


def test_no_bank_no_data_no_model(sgsd, tiny_folder, problems, tmp_path):
    given = ["--output_dir", tmp_path / "run", "--bf16", "false"]
    assert "no skill bank" in sgsd("train", *given).error
    given += ["--bank", "seed:mental-arithmetic"]
    assert "no training data" in sgsd("train", *given).error
    given += ["--dataset", problems]
    assert "no model" in sgsd("train", *given).error
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_a_chat_template(refused, tiny_folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_folder, bare)
    (bare / "chat_template.jinja").unlink()
    assert "the tokenizer has no chat template" in refused("--model_name_or_path", bare)


def test_an_output_folder_below_a_file(sgsd, flags, tmp_path):
    (tmp_path / "file").write_text("")
    for dry in ((), ("--dry_run",)):
        result = sgsd("train", *flags, "--output_dir", tmp_path / "file" / "run", *dry)
        assert result.code == 2
        assert "is a file" in result.error


def test_a_used_output_folder(sgsd, flags, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = sgsd("train", *flags, "--output_dir", tmp_path)
    assert result.code == 2
    assert "output_dir is not empty" in result.error
    assert "--resume" in result.error
    assert files(tmp_path) == {"notes.txt": b"mine"}


def test_resume_where_there_is_no_checkpoint_is_not_mixed_with_what_is_there(sgsd, flags, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = sgsd("train", *flags, "--output_dir", tmp_path, "--resume")
    assert result.code == 2
    assert "nothing to resume from" in result.error
    assert files(tmp_path) == {"notes.txt": b"mine"}


def test_resume_where_every_checkpoint_was_cut_off(sgsd, flags, tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / "model.safetensors").write_text("half")
    result = sgsd("train", *flags, "--output_dir", tmp_path, "--resume")
    assert result.code == 2
    assert "no complete checkpoint" in result.error
    assert list(files(tmp_path)) == ["checkpoint-2/model.safetensors"]


def test_resume_with_another_bank(sgsd, flags, finished):
    before = files(finished)
    result = sgsd("train", *flags, "--output_dir", finished, "--resume", "--bank", "seed:arithmetic-word-problems")
    assert result.code == 2
    assert "the run began with another bank" in result.error
    assert files(finished) == before


def test_a_checkpoint_of_one_run_does_not_open_the_folder_of_another(sgsd, flags, finished, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = sgsd("train", *flags, "--output_dir", tmp_path, "--resume_from_checkpoint", finished / "checkpoint-2")
    assert result.code == 2
    assert "output_dir is not empty" in result.error


# ---- eval


@pytest.mark.parametrize(
    ("extra", "fragments"),
    [
        (["--samples", "0"], ["--samples: out of range"]),
        (["--temperature", "-1"], ["--temperature: out of range"]),
        (["--top_p", "0"], ["--top_p: out of range"]),
        (["--top_k", "-1"], ["--top_k: out of range"]),
        (["--batch_size", "0"], ["--batch_size: out of range"]),
        (["--max_completion_length", "0"], ["--max_completion_length: out of range"]),
        (["--max_completion_length", "5000"], ["do not fit the model's context", "less than 1024"]),
        (["--max_completion_length", "1020"], ["8 of 8 plain prompts are too long"]),
        (["--verifier", "exat"], ["unknown verifier", "did you mean exact?"]),
        (["--chat_template_kwargs", "{bad"], ["--chat_template_kwargs", "malformed JSON", "{bad"]),
        (["--chat_template_kwargs", "[1]"], ["expected a JSON object"]),
        (["--dataset", "gone.jsonl"], ["no such data file"]),
        (["--limit", "0"], ["limit too small"]),
        (["--limit", "many"], ["--limit", "many"]),
        (["--dtype", "float3"], ["unknown --dtype", "did you mean float32?"]),
        (["--device", "cda"], ["unusable --device"]),
        (["--sampels", "3"], ["unknown argument of sgsd eval", "did you mean --samples?"]),
        (["--sample", "3"], ["unknown argument of sgsd eval", "did you mean --samples?"]),
    ],
)
def test_an_evaluation_that_cannot_be_made(sgsd, tiny_folder, problems, tmp_path, monkeypatch, extra, fragments):
    monkeypatch.chdir(tmp_path)
    result = sgsd("eval", tiny_folder, "--dataset", problems, "--output", tmp_path / "out", *extra)
    assert result.code == 2
    for fragment in fragments:
        assert fragment in result.error
    assert not (tmp_path / "out").exists()


def test_eval_of_what_is_no_model(sgsd, problems, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no such model folder" in sgsd("eval", tmp_path / "gone", "--dataset", problems).error
    assert "the folder holds no model" in sgsd("eval", tmp_path / "empty", "--dataset", problems).error
    assert "no data to evaluate on" in sgsd("eval", tmp_path / "empty").error
    (tmp_path / "empty" / "run.json").write_text("{")
    assert "malformed JSON" in sgsd("eval", tmp_path / "empty", "--dataset", problems).error
    (tmp_path / "empty" / "run.json").write_text("[1]")
    assert "wrong type: got list" in sgsd("eval", tmp_path / "empty", "--dataset", problems).error


def test_eval_of_an_adapter_whose_base_is_gone_never_falls_back(sgsd, problems, tmp_path):
    config = {"base_model_name_or_path": str(tmp_path / "gone"), "peft_type": "LORA", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    result = sgsd("eval", tmp_path, "--dataset", problems)
    assert result.code == 2
    assert "no such model folder" in result.error
    assert str(tmp_path / "gone") in result.error


def test_eval_output_that_is_a_file(sgsd, tiny_folder, problems, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = sgsd("eval", tiny_folder, "--dataset", problems, "--output", tmp_path / "out")
    assert result.code == 2
    assert "is a file" in result.error
    assert (tmp_path / "out").read_text() == "mine"


# ---- the rest


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        ([], ["command"]),
        (["evl"], ["unknown command", "did you mean eval?"]),
        (["bank"], ["action"]),
        (["bank", "shw", "seed:mental-arithmetic"], ["unknown action", "did you mean show?"]),
        (["bank", "show", "seed:competition-math"], ["no such shipped bank", "competition-mathematics"]),
        (["bank", "show", "gone.json"], ["no such bank file"]),
        (["bank", "show", "seed:mental-arithmetic", "--jsn"], ["unknown argument", "did you mean --json?"]),
        (["demo", "--max_steps", "3"], ["unknown argument of sgsd demo", "after two dashes: -- --max_steps"]),
        (["bank", "search", "seed:mental-arithmetic", "1 + 1", "--retriever", "bm52"], ["unknown retriever", "bm25"]),
        (["bank", "search", "seed:mental-arithmetic", "1 + 1", "--k", "0"], ["got 0"]),
    ],
)
def test_other_commands(sgsd, arguments, fragments):
    result = sgsd(*arguments)
    assert result.code == 2
    for fragment in fragments:
        assert fragment in result.error


def test_every_preset_is_named_in_the_help():
    from sgsd.cli import build_parser

    assert all(name in build_parser().format_help() for name in presets())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["--model_name_or_path", "--dataset"])
def test_the_hub_out_of_reach_is_told_and_not_tried_for_minutes(flags, tmp_path, what):
    import os

    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    # Nothing listens there; the name resolves at once, so that the test needs no network and no luck.
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "sgsd.cli", "train", *flags, "--output_dir", tmp_path / "run", what, "org/gone"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "sgsd: error:" in done.stderr.strip().splitlines()[-1]
    assert "local" in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_the_demo_replaces_no_file_that_it_did_not_write(sgsd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "skill-data").mkdir()
    (tmp_path / "skill-data" / "train.jsonl").write_text("mine")
    assert "would replace a file: got skill-data/train.jsonl" in sgsd("demo", "--output", "skill").error
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["train.jsonl"]
    for output in (".", ".."):
        assert "--output has no name" in sgsd("demo", "--output", output).error


def test_a_seed_that_generators_do_not_take_is_refused(sgsd, tmp_path):
    for command in (("eval", "x"), ("doctor", "b", "--tasks", "t", "--model", "x")):
        assert "expected 0 to 2**32 - 1" in sgsd(*command, "--seed", 2**70).error
