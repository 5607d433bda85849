"""``sgsd eval --lm_eval``: lm-evaluation-harness asks an adapter in its run's chat template, and results are kept."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
output_type: {kind}
"""
ROWS = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(4)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs the extra lm-eval"),
]


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory) -> Path:
    """A run's folder: an adapter with weights, and a template whose thinking is off."""
    folder = tmp_path_factory.mktemp("harness") / "run"
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)).save_pretrained(
        folder
    )
    settings = {"method": "sgsd", "thinking": "off", "instruction": "Answer with a number."}
    (folder / "run.json").write_text(json.dumps({"settings": settings}))
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> str:
    """One task that asks how likely the answers are, and one that samples."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    more = {
        "loglikelihood": "metric_list: [{metric: perplexity}]",
        "generate_until": "generation_kwargs: {max_gen_toks: 2}\nmetric_list: [{metric: exact_match}]",
    }
    for kind, lines in more.items():
        (folder / f"{kind}.yaml").write_text(TASK.format(name=f"tiny_{kind}", rows=rows, kind=kind) + lines)
    return ",".join(str(folder / f"{kind}.yaml") for kind in more)


def perplexity(tiny_folder: Path, run: Path, **template: bool) -> float:
    """Of the answers after the questions in the template, by the adapter.

    The harness counts white space at a prompt's end as the answer's.
    """
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), run)
    tokenizer, logps = AutoTokenizer.from_pretrained(tiny_folder), []
    for row in ROWS:
        asked = [{"role": "user", "content": row["question"]}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False, **template)
        ids = tokenizer(prompt + row["answer"], add_special_tokens=False)["input_ids"]
        first = len(tokenizer(prompt.rstrip(), add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            found = model(torch.tensor([ids])).logits[0, first - 1 : -1].log_softmax(-1)
        logps.append(found[range(len(ids) - first), ids[first:]].sum().item())
    return math.exp(-sum(logps) / len(logps))


@pytest.mark.parametrize(("flags", "thinking"), [((), False), (("--thinking", "on"), True)])
def test_the_adapter_is_asked_in_the_runs_template_and_the_results_are_kept(
    sgsd, run, tasks, tiny_folder, flags, thinking
):
    before = set(run.glob("evaluations/lm-eval/*"))
    result = sgsd("eval", run, "--lm_eval", tasks, *flags)
    assert result.code == 0, result.err
    (file,) = set(run.glob("evaluations/lm-eval/results_*.json")) - before
    kept = json.loads(file.read_text())
    found = kept["results"]["tiny_loglikelihood"]["perplexity,none"]
    assert found == pytest.approx(perplexity(tiny_folder, run, enable_thinking=thinking), rel=1e-4)
    assert found != pytest.approx(perplexity(tiny_folder, run, enable_thinking=not thinking), rel=1e-4)
    assert kept["results"]["tiny_generate_until"]["exact_match,none"] == 0
    assert kept["n-samples"]["tiny_loglikelihood"]["effective"] == len(ROWS)
    assert kept["config"]["model_args"] == {"pretrained": str(run)}
    assert f"|{found:.4f}|" in result.out.replace(" ", "")


@pytest.mark.parametrize(
    ("name", "flags", "end"),
    [
        ("run", (), None),
        ("run", ("--thinking", "on"), "</think>"),
        ("model", (), "</think>"),  # its template lets it think
        ("model", ("--thinking", "off"), None),
    ],
)
def test_thoughts_are_no_part_of_the_answer_where_the_model_thinks(
    sgsd, run, tasks, tiny_folder, monkeypatch, name, flags, end
):
    found = []
    monkeypatch.setattr(
        "lm_eval.models.huggingface.HFLM", lambda think_end_token, **_: found.append(think_end_token) or 1 / 0
    )
    result = sgsd("eval", {"run": run, "model": tiny_folder}[name], "--lm_eval", tasks, *flags)
    assert (result.code, found) == (1, [end])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--lm_eval", "{rows}"), ("lm-eval cannot run these tasks",)),
        (("--lm_eval", "{task}"), ("a task's data cannot be read", "nobody/nothing")),
        (("--lm_eval", "{broken}"), ("lm-eval cannot run these tasks", "broken.yaml")),
        (("--lm_eval", "arc_eazy"), ("no such task of lm-eval", "arc_eazy", "did you mean arc_easy?")),
        (("--lm_eval", "arc_easy", "--samples", "4"), ("--samples has no effect with --lm_eval", "4")),
        (("--lm_eval", "arc_easy", "--engine", "vllm"), ("--engine vllm",)),
    ],
)
def test_what_the_harness_does_not_take_is_refused_in_one_line(sgsd, run, tmp_path, flags, said):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    task = "task: far\ndataset_path: nobody/nothing\ntest_split: test\noutput_type: loglikelihood\n"
    (tmp_path / "far.yaml").write_text(task)
    (tmp_path / "broken.yaml").write_text("a: [")
    files = {"rows": tmp_path / "rows.jsonl", "task": tmp_path / "far.yaml", "broken": tmp_path / "broken.yaml"}
    result = sgsd("eval", run, *(flag.format(**files) for flag in flags))
    assert result.code == 2
    for part in said:
        assert part in result.error
