"""``sgsd eval``: what is kept, gone on with and refused; benchmarks, thinking, skills, engines."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file

from sgsd.cli.eval_plan import folder_names, renderer_of
from sgsd.errors import ConfigError
from sgsd.evaluation import Evaluation
from sgsd.evaluation.presets import BENCHMARKS
from sgsd.prompts import PromptRenderer
from sgsd.rollouts import Rollout, StopReason

QUICK = ("--max_completion_length", "4", "--verifier", "exact")


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run of one's own."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """From here on no model is loaded."""

    def forbid():
        def refuse(*_: object, **__: object):
            raise AssertionError("nothing is to be sampled")

        monkeypatch.setattr("sgsd.cli.engines.load_model", refuse)

    return forbid


# ---- kept, found again, gone on with


def test_a_runs_evaluation_is_kept_in_the_run_and_not_made_twice(sgsd, run, no_model):
    first = sgsd("eval", run, "--samples", "2", "--json")
    folder = run / "evaluations" / "sums"
    assert Evaluation.load(folder).k == 2
    assert json.loads((folder / "summary.json").read_text()) == json.loads(first.out)
    no_model()
    again = sgsd("eval", run, "--samples", "2", "--json")
    assert again.code == 0
    assert again.out == first.out
    assert "already evaluated, nothing sampled" in again.err


def test_a_run_that_was_moved_keeps_its_evaluation(sgsd, run, no_model, tmp_path):
    sgsd("eval", run)
    moved = shutil.move(run, tmp_path / "moved")
    no_model()
    assert "already evaluated" in sgsd("eval", moved).err


def test_other_settings_are_refused_unless_forced(sgsd, run):
    sgsd("eval", run)
    folder = run / "evaluations" / "sums"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = sgsd("eval", run, "--samples", "2")
    assert result.code == 2
    assert "samples_per_problem 2; expected 1, as stored" in result.error
    assert "--force" in result.error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sgsd("eval", run, "--samples", "2", "--output", run / "other").code == 0
    assert sgsd("eval", run, "--samples", "2", "--force").code == 0
    assert Evaluation.load(folder).k == 2


def test_other_weights_under_the_same_name_are_another_model(sgsd, run):
    sgsd("eval", run)
    weights = load_file(run / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, run / "model.safetensors", {"format": "pt"})
    assert "holds an evaluation with other weights" in sgsd("eval", run).error


def test_an_evaluation_that_was_cut_off_goes_on_to_the_same_samples(sgsd, run):
    arguments = ("eval", run, "--samples", "3", "--batch_size", "5")
    assert sgsd(*arguments).code == 0
    folder = run / "evaluations" / "sums"
    whole = (folder / "samples.jsonl").read_bytes()
    (folder / "summary.json").unlink()
    lines = whole.splitlines(keepends=True)
    (folder / "samples.jsonl").write_bytes(b"".join(lines[:12]) + lines[12][:30])
    result = sgsd(*arguments)
    assert "resuming after 10 of 24 samples" in result.err
    assert (folder / "samples.jsonl").read_bytes() == whole


def test_a_checkpoints_evaluation_lies_in_the_checkpoint(sgsd, run):
    assert sgsd("eval", run / "checkpoint-2").code == 0
    assert Evaluation.load(run / "checkpoint-2" / "evaluations" / "sums").k == 1
    assert not (run / "evaluations").exists()


def test_samples_that_are_gone_are_an_error(sgsd, run):
    sgsd("eval", run)
    (run / "evaluations" / "sums" / "samples.jsonl").unlink()
    result = sgsd("eval", run)
    assert result.code == 2
    assert "file cannot be read" in result.error


def test_an_evaluation_can_be_judged_again(sgsd, run, tmp_path, no_model):
    sgsd("eval", run, "--samples", "2")
    no_model()
    out = tmp_path / "again"
    result = sgsd("eval", "--regrade", run / "evaluations" / "sums", "--verifier", "math", "--output", out)
    assert result.code == 0
    assert "16 responses under verifier math" in result.out
    assert "avg@2" in result.out
    assert len(Evaluation.load(out).samples) == 16
    assert json.loads((out / "summary.json").read_text())["verifier"] == "math"


def test_an_evaluation_is_of_the_step_at_which_it_was_made(sgsd, run):
    """After a run went on, the old one counted as that of the new model."""
    assert json.loads(sgsd("eval", run / "checkpoint-2", *QUICK, "--json").out)["step"] == 2
    assert json.loads(sgsd("eval", run, *QUICK, "--json").out)["step"] == 3
    assert sgsd("compare", run).code == 0
    state = json.loads((run / "trainer_state.json").read_text())
    (run / "trainer_state.json").write_text(json.dumps(state | {"global_step": 6}))
    refused = sgsd("compare", run)
    assert (refused.code, "is of step 3, not of step 6, and is left out" in refused.error) == (2, True)


# ---- data


@pytest.fixture
def benchmark_file(tmp_path) -> Path:
    file = tmp_path / "local.jsonl"
    row = {"problem_idx": 1, "problem": "What is 1 + 1?", "answer": 2, "problem_type": ["Algebra"]}
    file.write_text(json.dumps(row) + "\n")
    return file


def test_a_competition_set_brings_the_papers_sampling(sgsd, tiny_folder, benchmark_file):
    arguments = ("eval", tiny_folder, "--dataset", "aime25", "--dataset_file", benchmark_file)
    too_long = sgsd(*arguments)
    assert too_long.code == 2
    assert "got max_completion_length 38912" in too_long.error
    sampled = sgsd(*arguments, "--max_completion_length", "4", "--json")
    assert "thinking as the chat template has it" not in sampled.err.replace("\n", " ")  # it is switched on
    summary = json.loads(sampled.out)
    assert (summary["dataset"], summary["samples_per_problem"]) == ("aime25", 12)
    assert (summary["temperature"], summary["top_p"], summary["top_k"]) == (1.0, 0.95, 0)
    assert summary["chat_template_kwargs"] == {"enable_thinking": True}
    flags = ("--samples", "1", "--temperature", "0", "--thinking", "off", "--max_completion_length", "4", "--json")
    summary = json.loads(sgsd(*arguments, *flags).out)
    assert (summary["samples_per_problem"], summary["temperature"]) == (1, 0.0)
    assert summary["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_folder_with_a_competitions_name_is_not_the_competition(sgsd, tiny_folder, problems, tmp_path, monkeypatch):
    """Its own problems were sampled 12 times, with thinking on."""
    (tmp_path / "aime25").mkdir()
    shutil.copy(problems, tmp_path / "aime25")
    monkeypatch.chdir(tmp_path)
    summary = json.loads(sgsd("eval", tiny_folder, "--dataset", "aime25", *QUICK, "--json").out)
    assert (summary["problems"], summary["samples_per_problem"], summary["chat_template_kwargs"]) == (8, 1, {})


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("aime24", {"id": 60, "problem": "x?", "solution": "s", "answer": "204", "url": "u", "year": "2024"}),
        ("aime25", {"problem_idx": 1, "problem": "x?", "answer": 70, "problem_type": ["Number Theory"]}),
        ("hmmt25", {"problem_idx": 1, "problem": "x?", "answer": "\\frac{1}{2}", "problem_type": ["Algebra"]}),
        ("amc23", {"id": 0, "question": "x?", "answer": 27.0}),
        ("math500", {"problem": "x?", "solution": "s", "answer": "7", "subject": "a", "level": 2, "unique_id": "u"}),
        ("gsm8k", {"question": "x?", "answer": "two\n#### 18"}),
        ("minerva", {"question": "x?", "answer": "1.6"}),
    ],
)
def test_every_benchmarks_columns_are_read(name, row):
    from sgsd.data.adapters import adapt

    (problem,) = adapt([row], row, stem=name, source=name).problems
    assert problem.text == "x?"
    assert problem.answer in ("204", "70", "\\frac{1}{2}", "27", "7", "18", "1.6")
    assert BENCHMARKS[name].samples == (12 if name in ("aime24", "aime25", "hmmt25") else None)


def test_a_runs_eval_dataset_is_read_as_in_training(sgsd, run, tmp_path):
    rows = [{"q": f"What is {i} + 1?", "gold": str(i + 1)} for i in range(2)]
    both = {name: datasets.Dataset.from_list(rows) for name in ("train", "test")}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "all")
    record = json.loads((run / "run.json").read_text())
    record["settings"] |= {"eval_dataset": str(tmp_path / "all"), "dataset_columns": "problem=q,answer=gold"}
    (run / "run.json").write_text(json.dumps(record))
    result = sgsd("eval", run, *QUICK)
    assert result.code == 0
    assert "2 of 2 rows kept from all:test" in result.err


@pytest.mark.parametrize("verifier", ["fair:one", "sgsd.verifiers.dapo:reward"])
def test_a_reward_function_does_not_say_whether_there_is_an_answer(
    sgsd, tiny_folder, problems, tmp_path, monkeypatch, verifier
):
    """The table had "no answer 100.0 %"."""
    (tmp_path / "fair.py").write_text("def one(completions, **_):\n    return [1.0] * len(completions)\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = ("eval", tiny_folder, "--dataset", problems, "--max_completion_length", "4", "--verifier")
    (row,) = [line for line in sgsd(*given, verifier).out.splitlines() if "no answer" in line]
    assert [cell.strip() for cell in row.split("│")][1:3] == ["no answer", "–"]


def test_several_data_sets_have_a_folder_each_and_a_mean(sgsd, tiny_folder, problems, benchmark_file, tmp_path):
    given = ("eval", tiny_folder, "--dataset", f"{problems},{benchmark_file}", *QUICK, "--output", tmp_path / "out")
    document = json.loads(sgsd(*given, "--json").out)
    first, second = document["datasets"].values()
    assert document["mean"]["accuracy"] == pytest.approx((first["accuracy"] + second["accuracy"]) / 2)
    assert {folder.name for folder in (tmp_path / "out").iterdir()} == {"sums", "local"}
    table = sgsd(*given)
    assert "mean" in table.out
    assert table.err.count("already evaluated") == 2


def test_files_of_one_name_have_a_folder_each(sgsd, tiny_folder, problems, tmp_path):
    """The second was given the first's results."""
    for place, count in (("a", 2), ("b", 3)):
        (tmp_path / place).mkdir()
        lines = problems.read_text().splitlines(keepends=True)
        (tmp_path / place / "sums.jsonl").write_text("".join(lines[:count]))
    both, out = f"{tmp_path / 'a' / 'sums.jsonl'},{tmp_path / 'b' / 'sums.jsonl'}", tmp_path / "out"
    result = sgsd("eval", tiny_folder, "--dataset", both, *QUICK, "--output", out, "--json")
    assert [summary["problems"] for summary in json.loads(result.out)["datasets"].values()] == [2, 3]
    assert {folder.name: len(Evaluation.load(folder).samples) for folder in out.iterdir()} == {
        "a--sums.jsonl": 2,
        "b--sums.jsonl": 3,
    }
    table = sgsd("eval", tiny_folder, "--dataset", both, *QUICK, "--output", out).out
    assert "a/sums.jsonl" in table
    assert "b/sums.jsonl" in table


def test_no_name_of_a_data_set_leads_out_of_the_evaluations(sgsd, run, problems, tmp_path, monkeypatch):
    """``--dataset ..`` wrote the evaluation into the run's own folder."""
    (tmp_path / "sums" / "below").mkdir(parents=True)
    shutil.copy(problems, tmp_path / "sums")
    monkeypatch.chdir(tmp_path / "sums" / "below")
    before = {*run.iterdir()}
    assert sgsd("eval", run, "--dataset", "..").code == 0
    assert {*run.iterdir()} - before == {run / "evaluations"}
    assert [folder.name for folder in (run / "evaluations").iterdir()] == ["sums"]
    shutil.copy(problems, "...jsonl")
    refused = sgsd("eval", run, "--dataset", "...jsonl")
    assert (refused.code, "gives no name to a folder: got ...jsonl" in refused.error) == (2, True)


def test_two_data_sets_never_share_a_folder(sgsd, run, problems, tmp_path):
    other = tmp_path / "sums.jsonl"
    other.write_text(problems.read_text().splitlines(keepends=True)[0])
    assert sgsd("eval", run).code == 0
    assert "holds an evaluation with other dataset, problems" in sgsd("eval", run, "--dataset", other).error
    csv = tmp_path / "sums.csv"
    csv.touch()
    named = folder_names([str(csv), str(other), "owner/name", "gsm8k"])
    assert named == ["sums.csv", "sums.jsonl", "owner--name", "gsm8k"]
    assert folder_names(["owner/name", "owner--name"]) == ["name", "owner--name"]
    with pytest.raises(ConfigError, match=r"two data sets would share the folder: got sums\.jsonl for .* and"):
        folder_names([str(problems), f"{problems.parent}/./sums.jsonl"])


def test_flags_for_one_data_set_are_refused_for_several(sgsd, tiny_folder, problems, benchmark_file):
    both = f"{problems},{benchmark_file}"
    assert "for one data set" in sgsd("eval", tiny_folder, "--dataset", both, "--dataset_split", "train").error
    assert "repeated" in sgsd("eval", tiny_folder, "--dataset", f"{problems},{problems}").error


# ---- prompts


def test_thinking_that_changes_nothing_is_refused(sgsd, tiny_folder, problems, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(tiny_folder, plain)
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    (plain / "chat_template.jinja").write_text(template)
    result = sgsd("eval", plain, "--dataset", problems, *QUICK, "--thinking", "on")
    assert result.code == 2
    assert "has no such switch" in result.error
    assert sgsd("eval", tiny_folder, "--dataset", problems, *QUICK, "--thinking", "on").code == 0
    both = ("--thinking", "on", "--chat_template_kwargs", '{"enable_thinking": false}')
    assert "one of them" in sgsd("eval", tiny_folder, "--dataset", problems, *QUICK, *both).error


def test_skills_in_the_prompt_are_the_runs(sgsd, run, monkeypatch):
    shown: list[int] = []
    skilled = PromptRenderer.skilled_ids
    monkeypatch.setattr(
        PromptRenderer, "skilled_ids", lambda self, text, pairs: shown.append(len(pairs)) or skilled(self, text, pairs)
    )
    summary = json.loads(sgsd("eval", run, "--skills_in_prompt", "--json").out)
    assert set(shown) == {1}
    assert summary["skills_in_prompt"] is True
    assert (summary["retriever"], summary["skills_in_prompt_pairs"]) == ("bm25", 1)
    assert summary["bank_source"] == str(run / "bank.json")
    assert Evaluation.load(run / "evaluations" / "sums-skills").k == 1
    plain = json.loads(sgsd("eval", run, "--json").out)
    assert plain["skills_in_prompt"] is False
    assert plain["prompts"] != summary["prompts"]


def test_skills_need_a_bank_and_a_bank_needs_skills(sgsd, tiny_folder, problems):
    given = ("eval", tiny_folder, "--dataset", problems, *QUICK)
    assert "no skill bank" in sgsd(*given, "--skills_in_prompt").error
    assert "needs --skills_in_prompt" in sgsd(*given, "--bank", "seed:mental-arithmetic").error
    skills = ("--skills_in_prompt", "--bank", "seed:mental-arithmetic", "--retriever", "bm25")
    assert sgsd(*given, *skills).code == 0
    assert "more than the bank has" in sgsd(*given, *skills, "--pairs", "999").error


def test_a_model_without_a_record_is_told_what_is_assumed_and_few_problems_how_little_they_tell(
    sgsd, tiny_folder, problems, run
):
    shown = sgsd("eval", tiny_folder, "--dataset", problems, *QUICK)
    said = shown.err.replace("\n", " ")
    assert "no run.json says how" in said
    assert "thinking as the chat template has it" in said
    assert 'assumed: instruction "Reason step by step' in said
    assert "verifier" not in said.partition("assumed:")[2]
    assert "sums.jsonl: 8 problems are few, an accuracy is known to ±35 points" in said
    assert "samples not saved" in said
    assert all(part in shown.out for part in ("95 % interval", "sums.jsonl", "avg@1"))
    assert "assumed" not in sgsd("eval", run).err


# ---- models and engines


@pytest.fixture
def adapter(tiny_folder, tmp_path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    folder = tmp_path / "adapter"
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    return folder


def test_an_adapter_without_weights_never_becomes_its_base(sgsd, adapter, problems):
    given = ("eval", adapter, "--dataset", problems, *QUICK)
    assert sgsd(*given).code == 0
    (adapter / "adapter_model.safetensors").unlink()
    result = sgsd(*given)
    assert result.code == 2
    assert "cannot load the adapter" in result.error


def test_a_model_without_a_limit_of_its_context(sgsd, tiny_folder, problems, tmp_path):
    from transformers import AutoConfig, BloomConfig, BloomForCausalLM

    model = shutil.copytree(tiny_folder, tmp_path / "bloom")
    size = AutoConfig.from_pretrained(tiny_folder).vocab_size
    BloomForCausalLM(BloomConfig(vocab_size=size, hidden_size=8, n_layer=1, n_head=2)).save_pretrained(model)
    assert sgsd("eval", model, "--dataset", problems, *QUICK).code == 0


class Served:
    """In place of a server or of vLLM."""

    made: list[tuple[str, dict]]

    def __init__(self, name, tokenizer, **options):
        Served.made.append((str(name), options))
        self.options = options

    def with_sampling(self, **sampling):
        assert sampling["max_new_tokens"] == 4
        return self

    def sample(self, prompts, *, seed):
        self.options["progress"](len(prompts))
        return [Rollout(tuple(p), (5, 1), "3", StopReason.END) for p in prompts]


def test_vllm_loads_the_model_once_for_several_data_sets(sgsd, tiny_folder, problems, benchmark_file, monkeypatch):
    Served.made = []
    monkeypatch.setattr("sgsd.engines.vllm_offline.VLLMSampler", Served)
    both = f"{problems},{benchmark_file}"
    assert sgsd("eval", tiny_folder, "--dataset", both, *QUICK, "--engine", "vllm").code == 0
    assert len(Served.made) == 1


@pytest.mark.parametrize(
    ("engine", "place", "flags"),
    [
        ("openai", "sgsd.engines.servers.OpenAISampler", ("--base_url", "http://localhost:9/v1", "--concurrency", "3")),
        ("vllm", "sgsd.engines.vllm_offline.VLLMSampler", ()),
    ],
)
def test_engines(sgsd, tiny_folder, problems, tmp_path, monkeypatch, no_model, engine, place, flags):
    Served.made = []
    monkeypatch.setattr(place, Served)
    no_model()
    given = ("eval", tiny_folder, "--dataset", problems, *QUICK, "--engine", engine, *flags)
    summary = json.loads(sgsd(*given, "--output", tmp_path / "out", "--json").out)
    assert summary["engine"] == engine
    assert summary["accuracy"] == pytest.approx(1 / 8)
    ((name, options),) = Served.made
    assert name == str(tiny_folder)
    assert (options["max_new_tokens"], options["temperature"], options["top_p"], options["top_k"]) == (4, 1.0, 0.95, 0)
    if engine == "openai":
        assert (options["base_url"], options["concurrency"]) == ("http://localhost:9/v1", 3)
        assert (summary["base_url"], summary["served_model"]) == ("http://localhost:9/v1", str(tiny_folder))
    else:
        assert options["max_model_len"] > 4
        assert options["dtype"] == "auto"


def test_another_name_on_the_server_is_another_model(sgsd, tiny_folder, problems, tmp_path, monkeypatch):
    Served.made = []
    monkeypatch.setattr("sgsd.engines.servers.OpenAISampler", Served)
    given = ("eval", tiny_folder, "--dataset", problems, *QUICK, "--output", tmp_path / "out", "--engine", "openai")
    assert sgsd(*given, "--base_url", "http://localhost:9/v1", "--served_model", "base").code == 0
    moved = sgsd(*given, "--base_url", "http://localhost:8/v1", "--served_model", "base")
    assert "already evaluated" in moved.err
    other = sgsd(*given, "--base_url", "http://localhost:9/v1", "--served_model", "adapter")
    assert other.code == 2
    assert 'got served_model "adapter"; expected "base", as stored' in other.error


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (("--engine", "openai"), "needs --base_url"),
        (("--base_url", "http://localhost"), "--base_url has no effect with engine transformers"),
        (("--engine", "vllm", "--device", "cpu"), "--device has no effect with engine vllm"),
        (("--engine", "openai", "--base_url", "http://localhost", "--dtype", "auto"), "--dtype has no effect"),
        (("--engine", "vlm"), "did you mean vllm?"),
        (("--thinking", "yes"), "unknown --thinking"),
        (("--pairs", "0"), "--pairs: out of range"),
    ],
)
def test_refusals(sgsd, tiny_folder, problems, flags, fragment):
    result = sgsd("eval", tiny_folder, "--dataset", problems, *QUICK, *flags)
    assert result.code == 2
    assert fragment in result.error


def test_no_model_and_no_data(sgsd, tiny_folder):
    assert "no model to evaluate" in sgsd("eval").error
    assert "aime24" in sgsd("eval", tiny_folder).error
    for misspelt in ("aime42", "aime24,AMC23", "math-500"):
        assert "did you mean" in sgsd("eval", tiny_folder, "--dataset", misspelt).error


def test_greedy_samples_do_not_depend_on_the_batch_size(sgsd, tiny_folder, problems, tmp_path):
    torch.manual_seed(0)
    texts = []
    for size in (1, 3, 8):
        out = tmp_path / str(size)
        given = ("eval", tiny_folder, "--dataset", problems, *QUICK, "--temperature", "0", "--batch_size", size)
        assert sgsd(*given, "--output", out).code == 0
        texts.append([sample.completion for sample in Evaluation.load(out).samples])
    assert texts[0] == texts[1] == texts[2]


def test_other_template_settings_leave_the_runs_thinking_as_it_was(tokenizer):
    options = argparse.Namespace(instruction=None, chat_template_kwargs={"reasoning_effort": "low"}, thinking=None)
    made = renderer_of(tokenizer, options, {"thinking": "off"}, None).student_kwargs
    assert made == {"enable_thinking": False, "reasoning_effort": "low"}


def test_text_prompts_need_no_chat_template(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    options = argparse.Namespace(instruction=None, chat_template_kwargs=None, thinking=None)
    assert renderer_of(plain, options, {"thinking": "off"}, None, text_only=True).student_kwargs is not None


def test_a_switch_that_the_template_does_not_know_is_no_setting(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    options = argparse.Namespace(instruction=None, chat_template_kwargs=None, thinking=None)
    for run in ({"thinking": "off"}, {"chat_template_kwargs": {"enable_thinking": True}}, {}):
        assert not renderer_of(plain, options, run, None).student_kwargs
        assert (renderer_of(tokenizer, options, run, None).student_kwargs or {}) == (
            {"enable_thinking": "thinking" not in run} if run else {}
        )
