"""``sgsd train --dry_run`` builds what trains by the functions that train, and refuses what a run would refuse."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from transformers import AutoConfig

from sgsd.cli.prepare import prepare
from sgsd.cli.settings import parse_settings, presets, resolve_config
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.engines.models import load_configs, load_model, load_tokenizer
from sgsd.trainers.config import SGSDConfig

TRAINING = [name for name in presets() if name not in ("bank", "lab")]  # those are sgsd bank's and sgsd lab's


@pytest.fixture
def dry(sgsd, flags, tmp_path, monkeypatch):
    """``dry(*flags)``: the dry run of a small run, with these flags besides."""
    monkeypatch.setenv("COLUMNS", "120")

    def call(*more: object):
        return sgsd("train", *flags, "--output_dir", tmp_path / "run", "--dry_run", *more)

    return call


@pytest.fixture
def model(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model, to be changed."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def data(folder: Path, *problems: str, **columns: str) -> Path:
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps({"problem": text, "answer": "1", **columns}) + "\n" for text in problems))
    return file


# ---- what a run builds


@pytest.mark.parametrize(
    ("method", "skills"),
    [("sgsd", False), *((method, skills) for method in ("grpo", "opsd") for skills in (False, True))],
)
def test_rows_and_teachers_come_from_the_functions_that_train(
    sgsd, flags, flags_of, tmp_path, monkeypatch, method, skills
):
    from sgsd.trainers import sgsd as trainer
    from sgsd.trainers.rows import training_rows

    built: list[str] = []

    def noted(name, function):
        def call(*args, **kwargs):
            built.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr("sgsd.cli.dry_run.training_rows", noted("rows", training_rows))
    monkeypatch.setattr("sgsd.cli.dry_run.build_pool", noted("teachers", trainer.build_pool))
    chosen = flags if method == "sgsd" else flags_of(method, skills=skills)
    assert sgsd("train", *chosen, "--output_dir", tmp_path / "run", "--dry_run").code == 0
    assert built[0] == "rows"
    assert set(built[1:]) == ({"teachers"} if method == "sgsd" else set())


def test_settings_are_told_where_they_differ_from_the_defaults(dry):
    head, rest = dry("--temperature", "0.7").out.split("# ", 1)
    told = yaml.safe_load(head)
    assert (told["temperature"], told["max_steps"], told["verifier"]) == (0.7, 3, "exact")
    assert {"gate_tau", "adam_beta1", "lora_r"} & told.keys() == set()
    assert len(told) < 40 < int(rest.split()[0])


def test_a_prompt_column_is_shown_as_it_is_trained_on(dry, tmp_path):
    """At 029fdea the system message was left out."""
    file = tmp_path / "talks.jsonl"
    prompt = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "What is 0 + 1?"}]
    rows = [{"prompt": prompt, "answer": "1", "id": f"talk-{n}"} for n in range(1)]
    rows += [
        {"prompt": [prompt[0], {"role": "user", "content": f"What is {n} + 1?"}], "answer": str(n + 1)} for n in (1, 2)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = dry("--dataset", file).out
    assert shown.count("You are terse.") == 2  # the student's prompt, a teacher's


def test_prompts_that_do_not_fit_are_refused(dry):
    """At 029fdea the dry run passed, and the run refused them once the weights were loaded."""
    result = dry("--max_prompt_length", "5")
    assert result.code == 2
    assert "8 of 8 plain prompts are too long" in result.error
    result = dry("--max_completion_length", "100000")
    assert result.code == 2
    assert "do not fit the model's context" in result.error


def test_long_prompts_are_dropped_as_in_a_run(dry, tmp_path):
    file = data(tmp_path, "One.", "Two.", "Three. " * 200)
    result = dry("--dataset", file, "--max_prompt_length", "400", "--long_prompts", "error")
    assert result.code == 2
    assert "1 of 3 plain prompts are too long: got up to" in result.error
    assert "(data-2)" in result.error
    result = dry("--dataset", file, "--max_prompt_length", "400", "--long_prompts", "drop")
    assert result.code == 2
    assert "no teacher's prompt of the first 2 problems fits: got room for 400 tokens" in result.error
    longer = data(tmp_path, "One.", "Two.", "Three. " * 2000)
    result = dry("--dataset", longer, "--max_prompt_length", "900", "--long_prompts", "drop")
    assert result.code == 0
    assert "teacher, with BM25's first pair: " in result.out
    result = dry(
        "--dataset", file, "--max_prompt_length", "400", "--long_prompts", "drop", "--gradient_accumulation_steps", 2
    )
    assert result.code == 2
    assert "fewer problems than one batch" in result.error


def test_the_budget_of_a_completion_stands_beside_what_the_template_does(dry, model):
    shown = " ".join(dry().out.split())
    assert "at most 1016 fit beside a completion into the context of 1024" in shown
    assert (
        "completions: at most 8 tokens (max_completion_length); by its chat template the model does not think" in shown
    )
    assert "WARNING" not in shown
    template = (model / "chat_template.jinja").read_text()
    opened = template + "{% if add_generation_prompt and enable_thinking %}<think>\n{% endif %}"
    (model / "chat_template.jinja").write_text(opened)
    shown = " ".join(dry("--model_name_or_path", model, "--thinking", "on").out.split())
    assert "by its chat template the model thinks" in shown
    assert "WARNING: the chat template lets the model think, and max_completion_length 8 is short for that" in shown


def test_the_method_is_named(dry):
    assert "method: SGSD" in dry().err
    correction = ("--objective", "correction", "--teacher", "frozen", "--grpo_weight", "1", "--num_generations", "2")
    assert "method: GRPO + correction" in dry(*correction).err


# ---- what a run refuses


@pytest.mark.parametrize(
    ("flags_more", "said"),
    [
        (("--learning_rate", "-1"), "learning_rate is out of range: got -1.0"),
        (("--learning_rate", "nan"), "learning_rate is out of range"),
        (("--max_steps", "0"), "max_steps 0 would train nothing"),
        (("--seed", "-1"), "seed is out of range: got -1"),
        (("--rehearsal_dataset", "x.jsonl"), "rehearsal_dataset would have no effect"),
        (
            ("--teacher", "frozen", "--rehearsal_weight", "1", "--rehearsal_dataset", "missing.jsonl"),
            "missing.jsonl",
        ),
        (("--steps_per_generation", "0"), "is out of range: got 0; expected 1 or more"),
        (("--per_device_eval_batch_size", "0"), "per_device_eval_batch_size is out of range"),
        (("--dataloader_num_workers", "-1"), "dataloader_num_workers is out of range"),
        (("--use_peft", "--lora_r", "0"), "unusable LoRA settings: got lora_r 0"),
        (("--use_peft", "--lora_r", "1000000000"), "unusable LoRA settings: got lora_r 1000000000"),
        (("--use_peft", "--lora_dropout", "2"), "unusable LoRA settings"),
        (("--dataset", "reasoning_gym:chain_sum?size=1000000000000"), "too many tasks of reasoning_gym:chain_sum"),
        (("--gradient_accumulation_steps", "9"), "fewer problems than one batch: got 8; expected at least 18"),
        (("--eval_strategy", "epoch"), "no data to evaluate on"),
        (("--verifier", "math", "--report_to", "comet_ml"), "report_to names an integration that is not installed"),
        (("--reward_weights", "2"), "no effect where a verifier judges: got reward_weights [2.0]"),
        (("--success_threshold", "0.7"), "no effect where a verifier judges"),
        (("--optim_args", "nonsense"), "optim_args nonsense"),
        (
            ("--use_peft", "--lora_target_modules", "nonsense"),
            "the adapter cannot be built: got Target modules nonsense",
        ),
        (("--attn_implementation", "nonsense"), "cannot load the model"),
        (("--resume_from_checkpoint", "no/such"), "not a complete sgsd checkpoint: got no/such"),
        (("--chat_template_kwargs", '{"tools": 3}'), "chat_template_kwargs {'tools': 3"),
    ],
)
def test_it_refuses_what_a_run_would_refuse_later(dry, flags_more, said):
    """At 029fdea the dry run passed with all of these."""
    result = dry(*flags_more)
    assert result.code == 2
    assert said in result.error
    assert len(result.err.strip().splitlines()) == 1


def test_an_embedder_that_is_missing_is_refused_and_one_that_is_here_is_named(dry, no_hub, tmp_path):
    """Seen before the mend: the dry run passed, and the run refused it once the policy had been loaded."""
    for name, said in (
        ("Qwen/Qwen3-Embedding-0.6B", "embedding model is not in the cache and the hub is out of reach"),
        (str(tmp_path), "not a sentence-transformers model"),
        ("local:nothing", "no such packaged model"),
    ):
        result = dry("--retriever", "embedding", "--embedder", name)
        assert result.code == 2
        assert said in result.error
        assert len(result.err.strip().splitlines()) == 1
        assert name == "local:nothing" or "or set retriever: bm25" in result.error
    assert "retriever: bm25\n" in dry().out
    (tmp_path / "modules.json").write_text("[]")
    shown = dry("--retriever", "embedding", "--embedder", tmp_path)
    assert shown.code == 0
    assert f"retriever: embedding, embedder {tmp_path} " in " ".join(shown.out.split())


def test_a_verifier_that_raises_is_found_out(dry, tmp_path, monkeypatch):
    (tmp_path / "raising.py").write_text("def reward(completions, nothing, **_):\n    return [1.0 for _ in nothing]\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    result = dry("--verifier", "raising:reward")
    assert result.code == 2
    assert "fails on a made-up completion" in result.error


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("generation_config.json", {"eos_token_id": -1}, "an end token is not in the model's vocabulary: got -1"),
        ("generation_config.json", {"eos_token_id": "2"}, "an end token is not in the model's vocabulary: got '2'"),
        ("generation_config.json", {"num_return_sequences": 2}, "cannot load the generation config"),
        ("config.json", {"vocab_size": 3}, "is not in the model's vocabulary"),
        ("config.json", {"pad_token_id": 700}, "cannot be built: got Padding_idx must be within num_embeddings"),
    ],
)
def test_a_model_s_files_that_a_run_could_not_use(dry, model, file, change, said):
    content = json.loads((model / file).read_text()) | change
    (model / file).write_text(json.dumps(content))
    result = dry("--model_name_or_path", model)
    assert result.code == 2
    assert said in result.error


@pytest.mark.parametrize(
    ("more", "file", "change", "said"),
    [
        (("--max_prompt_length", "5"), "config.json", {}, "8 of 8 plain prompts are too long"),
        ((), "generation_config.json", {"eos_token_id": 700}, "an end token is not in the model's vocabulary: got 700"),
        (("--verifier", "json:loads"), "config.json", {}, "the reward function needs s"),
        (("--retriever", "embedding"), "config.json", {}, "'Qwen/Qwen3-Embedding-0.6B'; give a local folder"),
    ],
)
def test_a_run_refuses_before_any_weight_is_loaded(
    sgsd, flags, model, tmp_path, monkeypatch, no_hub, more, file, change, said
):
    """Seen before the mend: the weights were loaded first."""

    def refuse(*_: object, **__: object):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("sgsd.cli.train.load_model", refuse)
    (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | change))
    result = sgsd("train", *flags, "--output_dir", tmp_path / "run", "--model_name_or_path", model, *more)
    assert result.code == 2
    assert said in result.error
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_adapter_may_have_more_tokens_than_its_base_model(dry, model, tmp_path):
    tokenizer = load_tokenizer(str(model))
    tokenizer.add_tokens([f"<step{n}>" for n in range(9)])
    tokenizer.add_special_tokens({"pad_token": "<|filler|>"})
    folder = tmp_path / "adapter"
    tokenizer.save_pretrained(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    assert dry("--model_name_or_path", folder).code == 0
    tokenizer.save_pretrained(model)
    assert "the padding token is not in the model's vocabulary" in dry("--model_name_or_path", model).error


def test_a_base_model_takes_text(sgsd, flags, dry, model, tmp_path):
    """Without a chat template: a dry run and a run of prompts that are text."""
    file = tmp_path / "texts.jsonl"
    (model / "chat_template.jinja").unlink()
    file.write_text("".join(json.dumps({"prompt": f"{n} + 1 =", "answer": str(n + 1)}) + "\n" for n in range(8)))
    given = ("--model_name_or_path", model, "--dataset", file)
    assert dry(*given).code == 0
    run = sgsd("train", *flags, *given, "--output_dir", tmp_path / "run", "--max_steps", "1")
    assert run.code == 0, run.err
    assert "the tokenizer has no chat template" in dry("--model_name_or_path", model).error


def test_no_instruction_is_no_error_and_shown(sgsd, flags, dry, tmp_path):
    """At 029fdea the dry run passed, and the run ended in a traceback."""
    asked = dict(zip(flags[::2], flags[1::2], strict=True))["--instruction"]
    assert asked in dry().out
    assert asked not in dry("--instruction", "").out.replace(f"instruction: {asked}", "")
    run = sgsd("train", *flags, "--output_dir", tmp_path / "run", "--instruction", "", "--max_steps", "1")
    assert run.code == 0


# ---- text of a user's


@pytest.mark.parametrize(
    "text", [r"The root of \[x^2 = 4\] is?", r"Is \[/\text{sum}\] 1?", "[bold]What[/bold] is 1?", "[/x] and :smile:?"]
)
def test_brackets_are_shown_as_they_are(dry, tmp_path, text):
    """At 029fdea: the formula was gone from the prompt, or MarkupError."""
    file = tmp_path / "data.jsonl"
    rows = [{"problem": text, "answer": "1", "id": "p[/red]"}, {"problem": "What is 0 + 1?", "answer": "1"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = dry("--dataset", file)
    assert result.code == 0
    assert result.out.count(text) == 2
    assert result.out.count("p[/red] ─") == 2


# ---- without a GPU


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_the_defaults_suit_a_machine_without_a_gpu(tmp_path):
    """At 029fdea: ValueError, "Your setup doesn't support bf16/gpu"."""
    assert SGSDConfig(output_dir=str(tmp_path)).use_cpu


@pytest.fixture(scope="module")
def roomy(tiny_folder, tmp_path_factory) -> Path:
    """The tiny model's folder without weights, and a context as long as Qwen3's."""
    folder = tmp_path_factory.mktemp("roomy")
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40960}))
    return folder


@pytest.mark.parametrize("name", TRAINING)
def test_every_presets_dry_run_passes_with_other_data_and_model(sgsd, roomy, tmp_path, name):
    """At 029fdea: "Your setup doesn't support bf16/gpu" of all but the demo's, on a machine without a GPU."""
    file = tmp_path / "data.jsonl"
    if name.startswith("sgsd-upstream"):
        prompt = [{"role": "user", "content": "Solve the following math problem.\n\nWhat is 0 + 1?"}]
        row = {"data_source": "math_dapo", "prompt": prompt, "reward_model": {"ground_truth": "1", "style": "rule"}}
    else:
        row = {"problem": "What is 0 + 1?", "answer": "1"}
    for place in ("problem", "prompt"):
        rows = [json.loads(json.dumps(row).replace("0 + 1", f"{n} - {n - 1}")) for n in range(1, 33) if place in row]
        if rows:
            file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    flags = ("--dataset", file, "--model_name_or_path", roomy, "--output_dir", tmp_path / "run", "--dry_run")
    if "embedder: Qwen" in resolve_config(name).read_text():
        flags += ("--embedder", "local:all-minilm-l6-v2")
    if name == "internalize":  # whose document comes with the command
        flags += ("--bank", "seed:mental-arithmetic")
    result = sgsd("train", "--config", name, *flags)
    assert result.code == 0, result.err
    assert "no weights were loaded, nothing was written" in result.err
    assert not (tmp_path / "run").exists()


# ---- configurations without weights


def test_configurations_are_those_of_the_loaded_model(tiny_folder):
    config, generation_config = load_configs(str(tiny_folder))
    model = load_model(str(tiny_folder))
    assert config.vocab_size == model.config.vocab_size
    assert generation_config.eos_token_id == model.generation_config.eos_token_id


def test_configurations_of_an_adapter_are_its_bases(tiny_folder, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_folder)}))
    config, _ = load_configs(str(tmp_path))
    assert config.max_position_embeddings == AutoConfig.from_pretrained(tiny_folder).max_position_embeddings


# ---- data besides the training data


def test_rows_that_are_left_out_of_other_data_are_told(dry, tmp_path):
    (tmp_path / "some.jsonl").write_text('{"id": "good", "problem": "1 + 1?", "answer": "2"}\n{"id": "bad"}\n')
    some = tmp_path / "some.jsonl"
    rehearsing = ("--rehearsal_weight", "1", "--teacher", "frozen", "--rehearsal_dataset", some)
    for extra in (("--eval_dataset", some, "--eval_strategy", "steps"), rehearsing):
        assert re.search(r"dropped: no_text +1 +bad", dry(*extra).out), extra


def test_the_eval_dataset_is_read_as_sgsd_eval_reads_it(flags, tmp_path, monkeypatch):
    rows = [{"q": f"What is {i} + 1?", "gold": str(i + 1)} for i in range(8)]
    parts = {name: [row | {"split": name} for row in rows] for name in ("train", "test")}
    datasets.DatasetDict({name: datasets.Dataset.from_list(part) for name, part in parts.items()}).save_to_disk(
        tmp_path / "all"
    )
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(name: str | Path) -> list[Problem]:
        more = ["--eval_dataset", str(name), "--eval_strategy", "steps", "--columns", "problem=q,answer=gold"]
        run = [*flags, "--dataset", str(tmp_path / "all"), "--output_dir", str(tmp_path / "out"), *more]
        found = prepare(*parse_settings(run)).eval_problems
        assert found
        return found

    assert {problem.columns["split"] for problem in read(tmp_path / "all")} == {"test"}
    asked = []

    def load(source, **options):
        asked.append((source, options))
        return load_problems(tmp_path / "train.jsonl", columns="problem=q,answer=gold")

    monkeypatch.setattr("sgsd.cli.prepare.load_problems", load)
    read("gsm8k")
    source, options = asked[-1]
    assert (source, options["split"], options["config_name"]) == ("openai/gsm8k", "test", "main")


def test_a_rehearsal_prompt_that_is_too_long_is_refused_by_its_id(dry, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Say one.", "word " * 900)))
    rehearsing = ("--rehearsal_weight", "1", "--teacher", "frozen", "--rehearsal_dataset")
    assert "too long: got 1 of 2, such as prompts-1 of " in dry(*rehearsing, file).error
    assert "no data set: got ''" in dry(*rehearsing, "").error  # not the model's own prompts


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dtype": "float23"}, "unknown dtype: got 'float23'"),
        ({"use_peft": True, "lora_target_modules": "((q_proj"}, "the adapter cannot be built: got missing )"),
    ],
)
def test_what_torch_and_peft_do_not_know_is_one_line(dry, tmp_path, settings, told):
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    result = dry("--config", tmp_path / "run.yaml")
    assert (result.code, told in result.error) == (2, True), result.err
