"""``sgsd internalize`` on a tiny model with random weights: every stage, and going on after any of them."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from rich.console import Console

from sgsd import internalize, runfolder
from sgsd.cli import main
from sgsd.cli.figures import answers as shown_answers
from sgsd.cli.figures import kept as share_kept
from sgsd.cli.figures import runs_of_words, training
from sgsd.cli.internalize import _Job, _row, _Steps, _training_beside, known_flags
from sgsd.cli.settings import parse_settings
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.display import masked
from sgsd.errors import ConfigError, DataError
from sgsd.evaluation.run import Evaluation, Sample
from sgsd.examples import demo
from sgsd.examples.lab.evidence import area
from sgsd.trainers.tracking import TRACKERS
from sgsd.verifiers import get_verifier

SETTINGS = ["--max_completion_length", "8", "--max_steps", "4", "--save_steps", "2", "--num_iterations", "2"]
SETTINGS += ["--dtype", "float32", "--per_device_train_batch_size", "4"]
SETTINGS += ["--instruction", "Finish with the number of the shelf."]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path, Path]:
    skill, train, held_out = demo.write(tmp_path_factory.mktemp("data"))
    few = train.with_name("few.jsonl")
    few.write_text("".join(held_out.read_text().splitlines(keepends=True)[:12]))
    return skill, train, few


def call(data: tuple[Path, Path, Path], model: Path, output: Path, *more: str) -> list[str]:
    skill, train, held_out = data
    flags = ["internalize", str(skill), "--tasks", str(train), "--held_out", str(held_out), "--model", str(model)]
    return [*flags, "--retain", str(held_out), "--output", str(output), "--force", *more, "--", *SETTINGS]


def certificate(output: Path) -> dict:
    """All of it but the seconds."""
    made = json.loads((output / "certificate.json").read_text())
    assert made.pop("seconds")["total"] > 0
    for name in ("sampling_seconds", "scoring_seconds", "memory_gib", "sentences"):
        made["doctor"].pop(name)
    text = json.dumps(made)
    return json.loads(text.replace(output.name, "OUTPUT"))


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, tiny_folder) -> Path:
    output = tmp_path_factory.mktemp("made") / "whole"
    assert main(call(data, tiny_folder, output, "--baseline", "grpo")) == 0
    return output


def test_a_certificate_has_every_measure(made, capsys):
    found = certificate(made)
    assert set(found["accuracy"]) == {"before", "with_document", "after", "grpo"}
    assert found["tasks"] | {"file": ""} == {"train": 72, "held_out": 12, "file": ""}
    assert found["tokens"]["saved"] > 0
    requests, tokens = found["tokens"]["requests_to_pay"], found["tokens"]
    assert (requests - 1) * tokens["saved"] < tokens["training"] <= requests * tokens["saved"]
    seconds = json.loads((made / "certificate.json").read_text())["seconds"]
    assert seconds.pop("grpo") > 0
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert len(found["rules"]) == found["document"]["rules"] == 12
    assert {rule["source"] for rule in found["rules"]} == {f"SKILL.md:{line}" for line in range(8, 20)}
    assert sum(rule["uses"] for rule in found["rules"]) > 0
    assert len(found["answers"]) == 10
    assert all(set(answer) >= {"before", "with_document", "after", "grpo"} for answer in found["answers"])
    assert found["training"]["steps"] == 4
    assert found["training"]["rollouts"] == 8  # each is learnt from twice
    assert found["method"] == "correction, guided"
    assert (made / "certificate.html").stat().st_size > 10_000
    assert json.loads((made / "grpo" / "run.json").read_text())["settings"]["method"] == "grpo"


def test_compare_report_and_eval_take_the_output_folder(made, tmp_path, capsys):
    output = shutil.copytree(made, tmp_path / "moved")
    capsys.readouterr()
    assert main(["compare", str(output), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert [column["name"] for column in compared["columns"]] == ["held-out", "retained-few"]
    rows = {(row["method"], Path(row["folders"][0]).name): row["cells"] for row in compared["rows"]}
    names = {("sgsd", "run"): "after", ("grpo", "grpo"): "grpo", ("base", "before"): "before"}
    names[("base", "with_document")] = "with_document"
    measured = certificate(made)["accuracy"]
    assert {key: cells["held-out"]["mean"] for key, cells in rows.items()} == {
        key: measured[name]["accuracy"] for key, name in names.items()
    }
    assert compared["baseline"] == next(
        row["label"] for row in compared["rows"] if row["folders"][0].endswith("before")
    )

    before, after = (str(output / "evaluations" / name) for name in ("before", "after"))
    assert main(["compare", before, after, "--json"]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["base", "sgsd"]

    page = tmp_path / "page.html"
    assert main(["report", str(output), "--output", str(page)]) == 0
    assert "No comparison of evaluations" not in page.read_text()

    assert main(["eval", str(output), "--limit", "2", "--json"]) == 0
    assert (output / "run" / "evaluations" / "held-out" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("instructions", "settings", "dtype"),
    [
        (True, [], "bfloat16"),
        (False, [], "float32"),
        (False, ["--dtype", "bfloat16"], "bfloat16"),
        (False, ["--dtype=auto"], "auto"),
        (False, ["--config", "OWN"], "float16"),
    ],
)
def test_weights_are_bfloat16_where_the_machine_computes_in_it(
    data, tiny_folder, tmp_path, monkeypatch, instructions, settings, dtype
):
    monkeypatch.setattr("sgsd.cli.internalize.computes_in_bfloat16", lambda *, cpu: instructions)
    own = tmp_path / "own.yaml"
    own.write_text("dtype: float16\n")
    settings = [str(own) if one == "OWN" else one for one in settings]
    job = _Job(data[0], str(tiny_folder), tmp_path, settings, 0, None, Console())
    assert job._parsed[2].dtype == dtype


def test_the_adapters_card_tells_data_and_certificate(made):
    card = (made / "run" / "README.md").read_text()
    for said in ("| data | 72 problems of train.jsonl |", "\n## Certificate\n", "| After, tasks right |", "- lora\n"):
        assert said in card
    beside, above = ((folder / "certificate.json").read_text() for folder in (made / "run", made))
    assert json.loads(beside) == json.loads(above)


@pytest.mark.parametrize(
    "lost",
    [["certificate.json"], ["evaluations/after", "grpo"], pytest.param(["run", "evaluations"], marks=pytest.mark.slow)],
)
def test_the_same_call_goes_on_from_what_is_there(made, data, tiny_folder, tmp_path, lost):
    output = tmp_path / "again"
    shutil.copytree(made, output)
    for name in ["certificate.json", *lost]:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    assert main(call(data, tiny_folder, output, "--baseline", "grpo")) == 0
    assert certificate(output) == certificate(made)


@pytest.mark.slow
def test_a_model_that_is_trained_anew_is_measured_anew(made, data, tiny_folder, tmp_path, capsys):
    output = tmp_path / "again"
    shutil.copytree(made, output)
    (output / "certificate.json").unlink()
    for name in ("run", "grpo"):
        shutil.rmtree(output / name)
    assert main(call(data, tiny_folder, output, "--baseline", "grpo")) == 0
    told = "".join(capsys.readouterr())
    assert [
        name for name in ("before", "retained-before", "after", "retained-after", "grpo") if f"{name}: sampling" in told
    ] == ["after", "retained-after", "grpo"]


def test_an_evaluation_of_other_tasks_is_refused_by_its_folder(made, data, tiny_folder, tmp_path, capsys):
    output = tmp_path / "again"
    shutil.copytree(made, output)
    (output / "certificate.json").unlink()
    samples = output / "evaluations" / "after" / "samples.jsonl"
    first, *others = map(json.loads, samples.read_text().splitlines())
    samples.write_text("\n".join(json.dumps(row) for row in [first | {"problem_id": "another"}, *others]))
    assert main(call(data, tiny_folder, output, "--baseline", "grpo")) == 2
    assert "an evaluation is of other problems: got" in capsys.readouterr().err


def test_a_baseline_can_be_added_with_a_learning_rate_of_its_own_and_not_changed(made, data, tiny_folder, tmp_path):
    output = tmp_path / "again"
    shutil.copytree(made, output)
    for name in ("certificate.json", "plan.json", "grpo", "evaluations/grpo"):
        shutil.rmtree(output / name) if (output / name).is_dir() else (output / name).unlink()
    plan = json.loads((made / "plan.json").read_text())
    (output / "plan.json").write_text(json.dumps(plan | {"baseline": None}))
    own = call(data, tiny_folder, output, "--baseline", "grpo", "--baseline_learning_rate", "3e-5")
    assert main(own) == 0
    run, grpo = (json.loads((output / name / "run.json").read_text())["settings"] for name in ("run", "grpo"))
    assert grpo["learning_rate"] == 3e-5 != run["learning_rate"]
    assert main(call(data, tiny_folder, output)) == 0
    assert main(call(data, tiny_folder, output, "--baseline", "grpo")) == 2


@pytest.mark.slow
def test_killed_at_five_moments_it_goes_on_to_the_same_certificate(made, data, tiny_folder, tmp_path):
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "sgsd.cli", *call(data, tiny_folder, output, "--baseline", "grpo")]
    moments = (
        "doctor.json",
        "evaluations/with_document",
        "run/checkpoint-2",
        "run/trainer_state.json",
        "grpo/run.json",
    )
    for moment in moments:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
        while not (output / moment).exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (output / "certificate.json").exists()
    assert subprocess.run(command, check=False, env=os.environ, capture_output=True).returncode == 0
    assert certificate(output) == certificate(made)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in TRACKERS), reason="needs the extra track (trackio, wandb)"
)
def test_trackers_get_rollouts_gaps_and_certificate_offline(data, tiny_folder, tmp_path):
    """In a process of its own: trackio reads its folder from the environment when TRL imports it."""
    output = tmp_path / "my rules"
    settings = ["--report_to", "all", "--project", "tiny", "--log_completions", "true", "--trace_steps", "2"]
    names = ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "TRACKIO_DIR")
    environment = os.environ | {name: str(tmp_path / name) for name in names} | {"WANDB_MODE": "offline"}
    (tmp_path / "WANDB_DIR").mkdir()

    def run(*arguments: str) -> str:
        done = subprocess.run(arguments, env=environment, cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "sgsd.cli", *call(data, tiny_folder, output), *settings)
    sql = ("--project", "tiny", "--sql", "SELECT metrics FROM metrics", "--json")
    logged = json.loads(run(sys.executable, "-m", "trackio.cli", "query", "project", *sql))["rows"]
    traces = [json.loads(line) for line in (output / "run" / "traces.jsonl").read_text().splitlines()]
    taught = [(trace["tokens"], teacher["gaps"]) for trace in traces for teacher in trace["teachers"]]

    def of_wandb(name: str) -> list[dict]:
        files = tmp_path.glob(f"WANDB_DIR/wandb/offline-run-*/files/media/table/{name}_*.json")
        tables = {file.read_text() for file in files}  # TRL tells the last one again when training ends
        return [
            dict(zip(found["columns"], row, strict=True)) for found in map(json.loads, tables) for row in found["data"]
        ]

    def of_trackio(name: str) -> list[dict]:
        tables = {json.dumps(json.loads(row["metrics"]).get(name)) for row in logged}
        return [row for found in map(json.loads, tables) if found for row in found["_value"]]

    for table in (of_wandb, of_trackio):
        gaps, rollouts = sorted(table("token_gaps"), key=lambda row: row["step"]), table("completions")
        assert [(row["token"], row["gap"]) for row in gaps] == [
            pair for one in taught for pair in zip(*one, strict=True)
        ]
        assert len(rollouts) == 4 * 4  # TRL tells a batch at each step that learns from it
        assert all(row["pairs"] for row in rollouts)
    kept = {(output / f"certificate.{kind}").read_bytes() for kind in ("json", "html")}
    assert kept <= {file.read_bytes() for file in tmp_path.glob("WANDB_DATA_DIR/artifacts/staging/*")}
    assert kept == {file.read_bytes() for file in tmp_path.glob("TRACKIO_DIR/artifacts/tiny/blobs/sha256/*/*")}
    assert len([*tmp_path.glob("WANDB_DIR/wandb/offline-run-*")]) == 2  # the training's, the certificate's


def test_other_work_in_the_folder_is_refused(made, data, tiny_folder, tmp_path, capsys):
    other, fewer = call(data, tiny_folder, made), tmp_path / "fewer.jsonl"
    fewer.write_text("".join(data[1].read_text().splitlines(keepends=True)[:-1]))
    other[other.index("--tasks") + 1] = str(fewer)
    assert main(other) == 2
    assert "other work" in capsys.readouterr().err
    fewer.unlink()
    (tmp_path / "thesis.txt").write_text("precious")
    assert main(call(data, tiny_folder, tmp_path)) == 2
    assert "not empty" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_cannot_be_used_is_one_line_and_leaves_nothing(data, tiny_folder, tmp_path, capsys):
    skill, train, _ = data
    output = tmp_path / "out"
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"problem": "What is it?"}\n' * 8)
    keep = {"tasks": str(train), "model": str(tiny_folder), "output": output}
    for document, changed, error, said in (
        (skill, {"tasks": str(blank)}, DataError, "answer"),
        (skill, {"model": str(tmp_path / "none")}, ConfigError, "model"),
        (tmp_path / "none.md", {}, Exception, "none.md"),
        (skill, {"baseline": "ppo"}, ConfigError, "grpo"),
        (skill, {"baseline_learning_rate": 1e-4}, ConfigError, "with a baseline"),
        (skill, {"baseline": "grpo", "baseline_learning_rate": float("nan")}, ConfigError, "above 0"),
        (skill, {"settings": ["--learning_rat", "1"]}, ConfigError, "learning_rate"),
        (skill, {"settings": ["--method", "grpo"]}, ConfigError, "method"),
        (skill, {"settings": ["--teacher_temperature", "0"]}, ConfigError, "teacher_temperature is out of range"),
    ):
        with pytest.raises(error, match=said) as raised:
            internalize(document, **(keep | changed))
        assert "\n" not in str(raised.value)
        assert not list(output.glob("*.json"))


def test_rows_that_cannot_be_used_are_told(data, tiny_folder, tmp_path, capsys):
    skill, train, held_out = data
    some = tmp_path / "some.jsonl"
    some.write_text(held_out.read_text() + '{"id": "bad", "problem": "?", "answer": [1, 2]}\n')
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "theirs").write_text("")  # so that it ends after reading the data
    for part in ("tasks", "held_out", "retain"):
        files = {"tasks": train, "held_out": held_out, "retain": held_out, part: some}
        flags = [word for name, file in files.items() for word in (f"--{name}", str(file))]
        assert main(["internalize", str(skill), *flags, "--model", "x", "--output", str(tmp_path / "taken")]) == 2
        assert f"{part}: 12 of 13 rows kept from some.jsonl; dropped 1 malformed (some-12)" in capsys.readouterr().err


def read(data, folder: Path, capsys, tasks: list[str], held_out: list[str]) -> tuple[list[str], str]:
    """The training tasks that are left, and what is printed."""
    files = [folder / "tasks.jsonl", folder / "held-out.jsonl"]
    for file, texts in zip(files, (tasks, held_out), strict=True):
        file.write_text("".join(json.dumps({"problem": text, "answer": "1"}) + "\n" for text in texts))
    job = _Job(data[0], "none", folder / "out", [], 0, None, Console())
    job.read_tasks(*files, None, None)
    return [problem.text for problem in job._train_tasks], " ".join(capsys.readouterr().out.split())


def test_tasks_that_are_held_out_too_are_not_trained_on(data, tmp_path, capsys):
    held_out = ["What is $1 + 1$?", "How many?", "\N{SNOWMAN}"]
    left, told = read(data, tmp_path, capsys, ["what is 1+1", "What is 1 + 2?", "How, many", "\N{COMET}"], held_out)
    assert left == ["What is 1 + 2?", "\N{COMET}"]
    assert "tasks: 2 of 4 are held out, too, and left out of training" in told
    left, told = read(data, tmp_path, capsys, ["One?", "Two?"], held_out)
    assert len(left) == 2
    assert "left out of training" not in told
    with pytest.raises(DataError, match="every task is held out, too: got 2"):
        read(data, tmp_path, capsys, ["How many", "what is 1 + 1"], held_out)


def test_tasks_that_differ_in_punctuation_alone_are_not_on_both_sides_of_the_split(data, tmp_path, capsys):
    texts = [text for n in range(12) for text in (f"What is the code of city {n}?", f"what is the code of city {n}")]
    (tmp_path / "tasks.jsonl").write_text(
        "".join(json.dumps({"problem": text, "answer": "1"}) + "\n" for text in texts)
    )
    job = _Job(data[0], "none", tmp_path / "out", [], 0, None, Console())
    job.read_tasks(tmp_path / "tasks.jsonl", None, None, None)
    sides = [{problem.text.lower().rstrip("?") for problem in part} for part in (job._train_tasks, job._test_tasks)]
    assert not sides[0] & sides[1]
    assert "left out of training" in capsys.readouterr().out


def test_a_bank_of_pairs_gets_a_certificate_too(data, tiny_folder, tmp_path, capsys):
    flags = call(data, tiny_folder, tmp_path / "of-bank")
    flags[1] = "seed:mental-arithmetic"
    assert main(flags) == 0
    assert certificate(tmp_path / "of-bank")["teachers"] == "pairs"
    assert "teachers see a skill and a mistake each" in (tmp_path / "of-bank" / "certificate.html").read_text()
    assert "With its pairs" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["--model_revision=v1", "--load_in_4bit=true"])
def test_weights_that_evaluations_would_not_load_are_refused(data, tmp_path, setting):
    job = _Job(data[0], "none", tmp_path / "out", [setting], 0, None, Console())
    with pytest.raises(ConfigError, match="internalize evaluates the main revision in full precision"):
        job.read_tasks(data[1], None, None, None)


def test_sums_are_asked_with_the_runs_template_settings(made, data, tiny_folder, tmp_path):
    output = tmp_path / "again"
    shutil.copytree(made, output)
    settings = [*SETTINGS, "--thinking", "template", "--chat_template_kwargs", '{"enable_thinking": true}']
    job = _Job(data[0], str(tiny_folder), output, settings, 0, None, Console())
    job.read_tasks(data[1], data[2], None, None)
    shutil.rmtree(output / "evaluations" / "retained-before")
    with job.stack:
        job.measure("retained-before")
    told = json.loads((output / "evaluations" / "retained-before" / "summary.json").read_text())
    assert told["chat_template_kwargs"] == {"enable_thinking": True}


def test_conversations_with_one_last_turn_are_different_tasks(data, tmp_path, capsys):
    files = tmp_path / "tasks.jsonl", tmp_path / "held-out.jsonl"
    last = {"role": "user", "content": "Go on."}
    for file, firsts in zip(files, (("a", "b"), ("b", "c")), strict=True):
        prompts = [[{"role": "system", "content": first}, last] for first in firsts]
        file.write_text("".join(json.dumps({"prompt": prompt, "answer": "1"}) + "\n" for prompt in prompts))
    job = _Job(data[0], "none", tmp_path / "out", [], 0, None, Console())
    job.read_tasks(*files, None, None)
    assert [problem.prompt[0]["content"] for problem in job._train_tasks] == ["a"]


@pytest.mark.parametrize("names", [("q", "gold"), ("problem", "answer")])
def test_columns_apply_to_the_retained_problems_if_they_have_them(data, tmp_path, names):
    question, answer = names
    tasks, retain = tmp_path / "tasks.jsonl", tmp_path / "retain.jsonl"
    tasks.write_text("".join(json.dumps({"q": f"{i}?", "gold": "1"}) + "\n" for i in range(9)))
    rows = [{question: f"{i}!", answer: "1"} | ({"text": "x", "answer": "2"} if question == "q" else {}) for i in "ab"]
    retain.write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = _Job(data[0], "none", tmp_path / "out", [], 0, None, Console())
    job.read_tasks(tasks, None, retain, "problem=q,answer=gold")
    assert [problem.text for problem in job._retained] == ["a!", "b!"]
    assert {problem.answer for problem in job._retained} == {"1"}


def test_the_commands_own_flags_hold_and_the_documents_text_is_part_of_the_plan(made, data, tiny_folder, tmp_path):
    output = tmp_path / "again"
    shutil.copytree(made, output)
    (output / "certificate.json").unlink()
    flags = call(data, tiny_folder, output, "--baseline", "grpo")
    elsewhere = tmp_path / "elsewhere"
    assert main([*flags, "--output_dir", str(elsewhere)]) == 2  # another call's settings
    fresh = call(data, tiny_folder, tmp_path / "fresh")
    assert main([*fresh, "--output_dir", str(elsewhere), "--max_steps", "1"]) == 0
    assert not elsewhere.exists()
    assert (tmp_path / "fresh" / "run" / "trainer_state.json").is_file()
    text = data[0].read_text()
    other = tmp_path / "SKILL.md"
    other.write_text(text.replace("# House rules\n", "# House rules\n\n<!-- the same rules -->\n"))
    flags[1] = str(other)
    assert main(flags) == 2


def test_before_the_first_checkpoint_settings_may_change(made, data, tiny_folder, tmp_path, capsys):
    output = tmp_path / "again"
    shutil.copytree(made, output)
    flags = call(data, tiny_folder, output, "--baseline", "grpo")
    assert main([*flags, "--learning_rate", "0.5"]) == 2  # its runs are trained
    assert "begun with other settings; expected its flags [" in capsys.readouterr().err
    for name in ("run", "grpo", "evaluations/after", "evaluations/grpo", "evaluations/retained-after"):
        shutil.rmtree(output / name)
    (output / "certificate.json").unlink()
    assert main([*flags, "--learning_rate", "0.5"]) == 0
    told = capsys.readouterr()
    assert "doctor: " not in told.out + told.err
    assert "before: sampling" not in told.out + told.err
    assert "after: sampling" in told.out + told.err
    assert certificate(output)["training"]["settings"]["learning_rate"] == 0.5
    for name in ("run", "grpo"):
        shutil.rmtree(output / name)
    main([*flags, "--instruction", "Say it."])
    told = capsys.readouterr()
    assert "doctor: asked anew" in told.out + told.err
    assert "before: sampling" in told.out + told.err


def planned(data, model: Path, output: Path, settings: list[str]) -> Path:
    """Read the tasks and write the plan; the output folder."""
    job = _Job(data[0], str(model), output, settings, 0, None, Console())
    with job.stack:
        job.read_tasks(data[1], data[2], None, None)
        job.check_plan(None)
    return output


def test_a_plan_has_the_settings_files_content_and_the_models_weights(data, tiny_folder, tmp_path):
    """A diagnosis and evaluations by the old instruction stayed."""
    model, config = shutil.copytree(tiny_folder, tmp_path / "model"), tmp_path / "config.yaml"
    settings = {"objective": "correction", "retriever": "bm25", "instruction": "One.", "max_completion_length": 8}
    settings |= {"max_steps": 2, "bf16": False}

    def what_stays(**changes) -> set[str]:
        config.write_text(yaml.safe_dump(settings | changes))
        output = planned(data, model, tmp_path / "out", ["--config", str(config)])
        return {name for name in ("doctor.json", "evaluations") if (output / name).exists()}

    assert what_stays() == set()
    for changes, stays in (({"max_steps": 3}, True), ({"instruction": "Two."}, False), ({"weights": 1}, False)):
        (tmp_path / "out" / "evaluations").mkdir(exist_ok=True)
        (tmp_path / "out" / "doctor.json").write_text("{}")
        if changes.pop("weights", None):
            file = model / "config.json"
            file.write_text(file.read_text() + " ")
            changes = {"instruction": "Two."}
        assert what_stays(**changes) == ({"doctor.json", "evaluations"} if stays else set())


def test_before_a_training_its_former_results_are_gone(data, tiny_folder, tmp_path):
    """A certificate of the former one stayed until the new one was done."""
    job = _Job(data[0], str(tiny_folder), tmp_path, [], 0, None, Console())
    results = {"run": ("certificate.json", "certificate.html", "evaluations/after"), "grpo": ("evaluations/grpo",)}
    for name in [*results["run"], *results["grpo"], "evaluations/before"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).mkdir() if name.startswith("evaluations") else (tmp_path / name).write_text("{}")
    for run, gone in results.items():
        job._drop_results(run)
        assert not [name for name in gone if (tmp_path / name).exists()]
    assert [place.name for place in tmp_path.glob("evaluations/*")] == ["before"]


def test_a_token_of_the_hub_is_in_no_file_and_no_argument(data, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sgsd.display._secrets", set())
    token, config = "hf_secret", tmp_path / "config.yaml"
    settings = {"objective": "correction", "retriever": "bm25", "bf16": False, "hub_token": token}
    config.write_text(yaml.safe_dump(settings))
    job = _Job(data[0], str(tiny_folder), tmp_path / "out/grpo", ["--config", str(config)], 0, None, Console())
    assert token not in " ".join(job._grpo_flags())
    started = []
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda command, env, **_: started.append((command, env)) or MagicMock())
        with suppress(ConfigError), _training_beside(job._grpo_flags(), 1, tmp_path / "grpo.log", token):
            pass
    [(command, env)] = started
    assert token not in " ".join(command)
    assert env["HF_TOKEN"] == token
    planned(data, tiny_folder, tmp_path / "out/run", ["--config", str(config), "--hub_token", token])
    assert not [file for file in tmp_path.glob("out/**/*") if file.is_file() and token in file.read_text("utf-8")]
    assert masked(token) == "(key)"


def test_a_call_that_failed_before_the_doctor_does_not_hold_its_folder(data, tiny_folder, tmp_path, capsys):
    output = tmp_path / "again"
    flags = call(data, tiny_folder, output)
    assert main([*flags, "--max_completion_length", "100000"]) == 2
    assert "holds other work" not in capsys.readouterr().err
    assert (output / "plan.json").is_file()
    assert main(flags) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--per_device_train_batch_size", "1000000000"), "fewer problems than one batch"),
        (("--lora_r", "1000000000"), "unusable LoRA settings: got lora_r 1000000000"),
        (("--optim_args", "nonsense"), "optim_args nonsense"),
    ],
)
def test_what_a_run_would_refuse_is_refused_before_the_doctor(data, tiny_folder, tmp_path, capsys, more, said):
    assert main([*call(data, tiny_folder, tmp_path / "out", "--baseline", "grpo"), *more]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "sampling" not in told


def test_the_doctors_no_ends_it(data, tiny_folder, tmp_path, capsys):
    flags = call(data, tiny_folder, tmp_path / "no")
    flags.remove("--force")
    assert main(flags) == 2
    told = capsys.readouterr().err
    assert "the doctor says no" in told
    assert told.count("plain: ") == 3 == told.count(" in the prompt: What")
    assert not (tmp_path / "no" / "run").exists()
    assert "    plain (" in told
    assert "    scoring (" in told
    # Only the doctor has run: the same folder may have other settings. It is diagnosed again if that matters.
    assert main([*flags, "--max_steps", "5"]) == 2
    assert "doctor: " not in capsys.readouterr().err
    assert main([*flags, "--instruction", "Say it."]) == 2
    told = capsys.readouterr().err
    assert told.index("doctor: asked anew") < told.index("doctor: sampling")
    assert "holds other work" not in told


def test_a_document_that_does_not_fit_cannot_be_forced(data, tiny_folder, tmp_path, capsys):
    large = tmp_path / "LARGE.md"
    large.write_text("# Rules\n\n- " + "Everything made of clay belongs on shelf 1. " * 200)
    assert main(call((large, *data[1:]), tiny_folder, tmp_path / "large")) == 2
    told = capsys.readouterr().err
    assert "error: nothing of the document fits into a prompt: got rules " in told
    assert not (tmp_path / "large" / "evaluations").exists()


def test_the_share_that_is_kept():
    before, shown = [0.0] * 30 + [1.0] * 10, [1.0] * 40
    kept = share_kept(before, shown, [1.0] * 25 + [0.0] * 5 + [1.0] * 10)
    assert kept["share"] == pytest.approx(25 / 30)
    low, high = kept["ci95"]
    assert low < 25 / 30 < high <= 1
    assert share_kept(before, before, shown) is None


_USER = {"role": "user", "content": "What is 1 + 1?"}
_GYM = {"question": "Spell cat backward.", "answer": "tac", "metadata": {"source_dataset": "spell_backward"}}
_DAPO = {"data_source": "math", "reward_model": {"ground_truth": "2"}}
_WRAPPED = 'What is 1 + 1?\n\nRemember to put your answer on its own line after "Answer:".'
_SYSTEM = {"role": "system", "content": "Be short."}
SOURCES: dict[str, tuple[list[dict], str | None]] = {
    "reasoning_gym": ([_GYM], None),
    "gym_columns": ([_GYM], "problem=question,answer=answer"),
    "plain": ([{"Question": "What is 1 + 1?", "Answer": 2, "ID": "a"}], None),
    "boxed": ([{"problem": "What is 1 + 1?", "solution": r"It is \boxed{2}."}], None),
    "gsm8k": ([{"question": "What is 1 + 1?", "answer": "1 + 1 = <<1+1=2>>2\n#### 2"}], None),
    "dapo_processed": ([{"prompt": "What is 1 + 1?", "solution": "2", "source_prompt": [_USER]}], None),
    "dapo_raw": (
        [
            _DAPO | {"prompt": [_SYSTEM, _USER]},
            _DAPO | {"prompt": [_USER | {"content": _WRAPPED.replace("1 + 1", "2")}]},
        ],
        None,
    ),
    "dapo_columns": ([_DAPO | {"prompt": [_USER], "gold": "3"}], "prompt=prompt,answer=gold"),
    "trl": ([{"prompt": [_SYSTEM, _USER], "solution": "2"}], None),
    "trl_text": ([{"prompt": "1 + 1 =", "ground_truth": "2"}], None),
    "some_prompts": (
        [
            {"Question": "What is 1 + 1?", "Answer": "2"},
            {"Question": "2?", "Answer": "2", "prompt": [_SYSTEM, _USER]},
        ],
        None,
    ),
    "columns": ([{"q": "What is 1 + 1?", "gold": "2", "text": "x", "worked": "2, so"}], "problem=q,answer=gold"),
    "solution_column": ([{"q": "1 + 1?", "gold": "2", "worked": "so 2"}], "problem=q,answer=gold,solution=worked"),
    "not_a_number": ([{"problem": "What is 1 + 1?", "answer": "2", "level": float("nan")}], None),
}


@pytest.mark.parametrize("name", SOURCES)
def test_written_tasks_are_read_as_the_same_problems(tmp_path, name):
    rows, columns = SOURCES[name]
    if name == "not_a_number":
        source = tmp_path / "tasks.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), source)
    else:
        source = tmp_path / "tasks.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _same_when_written(load_problems(source, columns=columns)[0], len(rows), tmp_path)


@pytest.mark.parametrize("task", ["spell_backward", "countdown", "caesar_cipher", "simple_equations"])
def test_tasks_of_reasoning_gym_are_read_as_the_same_problems(tmp_path, task):
    pytest.importorskip("reasoning_gym")
    verifier = get_verifier("reasoning_gym")
    loaded, _ = load_problems(f"reasoning_gym:{task}?size=4&seed=1", readable=verifier.readable)
    again = _same_when_written(loaded, 4, tmp_path)
    answers = [f"<answer>{problem.answer}</answer>" for problem in loaded]
    verdicts = verifier.verify_many(answers, [problem.key for problem in again])
    assert verdicts == verifier.verify_many(answers, [problem.key for problem in loaded])
    assert {verdict.outcome for verdict in verdicts} == {"correct"}


def _same_when_written(loaded: list[Problem], count: int, folder: Path) -> list[Problem]:
    written = folder / "written.jsonl"
    written.write_text("".join(map(_row, loaded)))
    again, _ = load_problems(written)
    assert len(again) == count
    assert [replace(problem, source="") for problem in again] == [replace(problem, source="") for problem in loaded]
    return again


@pytest.mark.parametrize(("outcome", "correct"), [("correct", True), ("incorrect", False), ("undecided", None)])
def test_an_undecided_answer_is_neither_right_nor_wrong(outcome, correct):
    made = Evaluation((Sample("p", 0, "x", 3, "end", outcome, None, None),), 1)
    (row,) = shown_answers([Problem("p", "What?", "5")], {"before": made})
    assert row["before"] == {"text": "x", "correct": correct}


@pytest.mark.parametrize(
    ("rule", "recited", "other"),
    [
        (
            "Everything made of clay belongs on",
            "so, everything MADE of clay belongs on it",
            "so, everything made of clay belongs there",
        ),
        ("所有陶土制品都放在一号架上。", "答：陶土制品都放在二号架。", "陶土制品在一号架上"),
        ("मिट्टी की हर चीज़ पहली शेल्फ़ पर", "हाँ, मिट्टी की हर चीज़ पहली शेल्फ़ पर", "मिट्टी की शेल्फ़"),
    ],
)
def test_six_words_in_a_row_are_recited(rule, recited, other):
    assert runs_of_words(rule) & runs_of_words(recited)
    assert not runs_of_words(rule) & runs_of_words(other)


def test_training_tells_what_comes_first_and_the_time_left(monkeypatch, capsys):
    told, clock = _Steps(Console(), "run"), iter([100.0, 102.0, 118.0, 138.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    args = SimpleNamespace(rehearsal_weight=1.0, rehearsal_texts=64)
    told.on_train_begin(args, None, None)
    for step, rate in ((1, {"success_rate": 0.5}), (2, {}), (10, {"success_rate": 0.75}), (20, {})):
        told.on_log(args, SimpleNamespace(global_step=step, max_steps=20), None, {"step_time": 1.0, **rate})
    assert capsys.readouterr().out.splitlines() == [
        "run: first writes 64 texts to rehearse",
        "run: step 2 of 20, 50 % of the rollouts right, about 36 s left",
        "run: step 10 of 20, 75 % of the rollouts right, about 20 s left",
        "run: step 20 of 20, 75 % of the rollouts right",
    ]


_EACH = [
    {
        "step": n,
        "step_time": float(n),
        "sgsd/teacher_tokens": 10.0 * n,
        "sgsd/student_tokens": 2.0 * n,
        "num_tokens": 7 * n,
    }
    for n in range(1, 7)
]
_EVERY_THIRD = [
    {"step": 3, "step_time": 2.0, "sgsd/teacher_tokens": 20.0, "sgsd/student_tokens": 4.0, "num_tokens": 21},
    {"step": 6, "step_time": 5.0, "sgsd/teacher_tokens": 50.0, "sgsd/student_tokens": 10.0, "num_tokens": 42},
]


@pytest.mark.parametrize("history", [_EACH, _EVERY_THIRD])
@pytest.mark.parametrize(
    ("settings", "rollouts", "tokens"),
    [
        ({}, 48, 42 + (35 + 3 * 7) * 48),
        ({"num_iterations": 2}, 24, 42 + (35 + 6 * 7) * 24),
        ({"num_iterations": 4}, 16, 42 + (35 + 12 * 7) * 16),  # of the second batch only two of four passes were made
        ({"steps_per_generation": 2, "generation_batch_size": 16}, 48, 42 + (35 + 3 * 7) * 48),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 2}, 48, 42 + (35 + 3 * 7) * 48),
    ],
)
def test_a_run_is_counted_however_often_it_logs_and_samples(tmp_path, history, settings, rollouts, tokens):
    runfolder.write_json(tmp_path / runfolder.STATE, {"global_step": 6, "log_history": history})
    once = dict.fromkeys(("num_iterations", "gradient_accumulation_steps", "steps_per_generation"), 1)
    record = {"settings": {"generation_batch_size": 8, **once, **settings}, "bank_digest": "0"}
    runfolder.write_json(tmp_path / runfolder.RUN, record)
    assert training(tmp_path) == (6, rollouts, 21.0, tokens)


def test_flags_of_another_method_are_left_out():
    flags = ["--max_steps", "3", "--objective", "correction", "--bf16", "--teachers", "a", "b"]
    assert known_flags(flags, {"--max_steps", "--teachers"}) == ["--max_steps", "3", "--teachers", "a", "b"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--max_steps", "7", "--per_device_train_batch_size=8"],
        ["--max-steps", "7", "--per-device-train-batch-size=8"],
        ["--config", "OWN"],
        ["--config=OWN", "--max-steps", "7", "--method", "sgsd"],
    ],
)
def test_the_baseline_trains_with_the_users_settings(data, tiny_folder, tmp_path, flags):
    own = tmp_path / "own.yaml"
    steps = "" if "--max-steps" in flags else "max_steps: 7\n"
    own.write_text(f"{steps}per_device_train_batch_size: 8\nteacher: frozen\nbf16: false\ntemperature: 0.5\n")
    settings = [flag.replace("OWN", str(own)) for flag in flags]
    job = _Job(data[0], str(tiny_folder), tmp_path / "out", settings, 0, None, Console())
    run, grpo = job.training, parse_settings(job._grpo_flags())
    assert grpo[0].method == "grpo"
    assert grpo[1].num_generations == 4
    for name in ("max_steps", "per_device_train_batch_size", "generation_batch_size", "bf16", "temperature"):
        assert vars(grpo[1])[name] == vars(run)[name], name
    assert run.max_steps == 7
    assert run.per_device_train_batch_size == 8


def planted(folder: Path) -> tuple[Path, Path, dict[str, str]]:
    """A document of four true, four wrong and four idle rules, tasks for the first eight, and which rule is which."""
    shelves = list(demo.truth().items())[:8]
    kinds: dict[str, str] = {}
    for place, (material, shelf) in enumerate(shelves):
        kind = "true" if place % 2 else "wrong"
        said = shelf if kind == "true" else shelf % demo.SHELVES + 1
        kinds[demo.rule(material, said)] = kind
    for precious in ("gold", "silver", "ivory", "amber"):
        kinds[f"Everything made of {precious} is dusted on Sundays."] = "idle"
    skill, tasks = folder / "SKILL.md", folder / "tasks.jsonl"
    skill.write_text("# House rules\n\n" + "".join(f"- {rule}\n" for rule in kinds), encoding="utf-8")
    known = [material for material, _ in shelves]
    rows = [row for part in demo.tasks().values() for row in part if row["problem"].split()[-2] in known]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return skill, tasks, kinds


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_certificate_ranks_true_rules_over_idle_over_wrong_ones(tmp_path):
    skill, tasks, kinds = planted(tmp_path)
    retain = tmp_path / "retain.jsonl"
    retain.write_text('{"problem": "What is 2 + 3?", "answer": "5"}\n')  # what is forgotten is not tested here
    settings = ["--instruction", "Finish with the number of the shelf.", "--max_completion_length", "16"]
    settings += ["--max_steps", "20", "--learning_rate", "2e-3", "--rehearsal_weight", "0", "--ledger_share", "1"]
    made = internalize(
        skill, tasks=tasks, model=demo.MODEL, output=tmp_path / "out", retain=retain, settings=settings, force=True
    )
    worth = {kind: [rule.worth for rule in made.rules if kinds[rule.text] == kind] for kind in set(kinds.values())}
    assert {kind: len(values) for kind, values in worth.items()} == {"true": 4, "idle": 4, "wrong": 4}
    assert area(worth["true"], worth["idle"]) >= 0.9
    assert area(worth["idle"], worth["wrong"]) >= 0.9
    assert area(worth["true"], worth["wrong"]) >= 0.9
