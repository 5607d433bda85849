"""Whose files a command reads and writes: one process a folder, one record that is true, nothing lost unasked."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import chat_template_utils

from sgsd.cli.settings import parse_settings
from sgsd.engines.models import load_tokenizer, weights_digest
from sgsd.runfolder import one_writer

from ..report.folders import write_run

pytest.importorskip("ziaplot", reason="the extra 'report' is not installed")

QUICK = ("--max_completion_length", "4", "--verifier", "exact", "--batch_size", "2")


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


# ---- one process a folder


def test_a_second_run_in_a_folder_is_refused(sgsd, flags, run, tmp_path):
    with one_writer(tmp_path / "new"):
        result = sgsd("train", *flags, "--output_dir", tmp_path / "new")
    assert (result.code, "another process writes to this folder" in result.error) == (2, True)
    assert not (tmp_path / "new").exists()
    record = (run / "run.json").read_bytes()
    with one_writer(run):
        result = sgsd("train", *flags, "--output_dir", run, "--resume", "--max_steps", "4")
    assert (result.code, "another process writes to this folder" in result.error) == (2, True)
    assert (run / "run.json").read_bytes() == record


def test_a_second_evaluation_or_internalization_in_a_folder_is_refused(sgsd, run, tiny_folder, problems, tmp_path):
    document = ("internalize", "seed:mental-arithmetic", "--tasks", problems, "--model", tiny_folder)
    for command, folder in (
        (("eval", run), run / "evaluations" / "sums"),
        ((*document, "--output", tmp_path / "out"), tmp_path / "out"),
    ):
        with one_writer(folder):
            result = sgsd(*command)
        assert (result.code, "another process writes to this folder" in result.error) == (2, True)
        assert not folder.exists()


# ---- a run that goes on


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--learning_rate", "7e-4"], "another learning_rate: got 0.0007; expected"),
        (["--seed", "3"], "another seed: got 3; expected 42"),
        (["--num_teachers", "1"], "another num_teachers: got 1; expected 2"),
        (["--temperature", "0.7"], "another temperature: got 0.7"),
        (["--dataset", "five.jsonl"], 'another dataset: got "five.jsonl"; expected "sums.jsonl"'),
        (["--dataset", "other/sums.jsonl"], "began with other data"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry_run",)])
def test_a_run_does_not_go_on_under_other_settings(sgsd, flags, run, problems, tmp_path, monkeypatch, extra, told, dry):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    shutil.copy(problems, tmp_path / "five.jsonl")
    (tmp_path / "other" / "sums.jsonl").write_text(problems.read_text().replace("What is 3", "How much is 3"))
    record = (run / "run.json").read_bytes()
    result = sgsd("train", *flags, "--output_dir", run, "--resume", *extra, *dry)
    assert result.code == 2
    assert told in result.error
    assert (run / "run.json").read_bytes() == record


def test_an_adapters_digest_is_another_on_another_base(tiny_folder, tmp_path):
    base, adapter = shutil.copytree(tiny_folder, tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base), "peft_type": "LORA"})
    )
    save_file({"a": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    before = weights_digest(adapter)
    weights = load_file(base / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, base / "model.safetensors")
    assert weights_digest(adapter) != before


def test_a_run_goes_on_with_the_same_weights_wherever_they_are(sgsd, flags, run, tiny_folder, tmp_path, monkeypatch):
    """Another model of the same folder name was taken, and the same one by a relative path was not."""
    record = json.loads((run / "run.json").read_text())
    assert record["model_digest"] == weights_digest(tiny_folder)
    given = ("train", *flags, "--output_dir", run, "--resume", "--max_steps", "3", "--model_name_or_path")
    other = shutil.copytree(tiny_folder, tmp_path / "other" / tiny_folder.name)
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 0.01 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    refused = sgsd(*given, other)
    assert (refused.code, f'began with another model_name_or_path: got ["{other}", ' in refused.error) == (2, True)
    assert "no such model folder" in sgsd(*given, tmp_path / "gone" / tiny_folder.name).error
    shutil.copytree(tiny_folder, tmp_path / "models" / "renamed")
    monkeypatch.chdir(tmp_path)
    assert sgsd(*given, "models/renamed").code == 0
    [resumed] = json.loads((run / "run.json").read_text())["resumed"]
    assert "model_name_or_path" not in resumed["changed"]


def test_a_record_without_the_models_digest_is_compared_by_its_name(sgsd, flags, run, tiny_folder, tmp_path):
    record = json.loads((run / "run.json").read_text())
    del record["model_digest"]
    (run / "run.json").write_text(json.dumps(record))
    given = ("train", *flags, "--output_dir", run, "--resume", "--dry_run", "--model_name_or_path")
    assert sgsd(*given, shutil.copytree(tiny_folder, tmp_path / "other" / tiny_folder.name)).code == 0
    other = shutil.copytree(tiny_folder, tmp_path / "other" / "name")
    assert "began with another model_name_or_path: got" in sgsd(*given, other).error


def test_what_may_change_when_a_run_goes_on_is_told_in_its_record(sgsd, flags, run, problems, tmp_path):
    moved = shutil.copy(problems, tmp_path / problems.name)  # the same data in another folder
    extra = ["--eval_dataset", problems, "--max_steps", "4", "--logging_steps", "2", "--dataset", moved]
    assert sgsd("train", *flags, "--output_dir", run, "--resume", *extra).code == 0
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["max_steps"] == 4
    assert record["resumed"] == [{"from": "checkpoint-3", "changed": {"max_steps": [3, 4]}}]
    assert sgsd("train", *flags, "--output_dir", run, "--resume", *extra, "--max_steps", "5").code == 0
    record = json.loads((run / "run.json").read_text())
    assert [one["from"] for one in record["resumed"]] == ["checkpoint-3", "checkpoint-4"]


def test_a_run_that_goes_on_writes_through_no_link_out_of_its_folder(sgsd, flags, run, tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    for name in ("model.safetensors", "traces.jsonl", "checkpoint-2/sgsd/ledger.json"):
        (run / name).unlink()
        (run / name).symlink_to(tmp_path / "theirs")
        result = sgsd("train", *flags, "--output_dir", run, "--resume", "--max_steps", "4")
        assert (result.code, "a link leads out of the output folder" in result.error) == (2, True)
        (run / name).unlink()
        shutil.copy(__file__, run / name)
    assert (tmp_path / "theirs").read_text() == "theirs"


# ---- evaluations


def test_an_evaluation_goes_on_next_day_under_the_date_on_which_it_began(
    sgsd, tiny_folder, problems, tmp_path, monkeypatch
):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer = load_tokenizer(str(model))
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(model)
    call = ("eval", model, "--dataset", problems, *QUICK, "--output", tmp_path / "out")
    assert sgsd(*call).code == 0
    whole = (tmp_path / "out" / "samples.jsonl").read_text()

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return datetime.date.today() + datetime.timedelta(days=1)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + datetime.timedelta(days=1)

    monkeypatch.setattr("sgsd.cli.eval_plan.date", Tomorrow)
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    (tmp_path / "out" / "summary.json").unlink()
    (tmp_path / "out" / "samples.jsonl").write_text("".join(whole.splitlines(keepends=True)[:3]))
    result = sgsd(*call)
    assert result.code == 0
    assert "resuming after 2 of 8 samples" in result.err
    assert (tmp_path / "out" / "samples.jsonl").read_text() == whole
    assert sgsd(*call[:-1], tmp_path / "anew").code == 0
    dates = [json.loads((tmp_path / name / "settings.json").read_text())["date"][:10] for name in ("out", "anew")]
    assert dates == [str(datetime.date.today()), str(Tomorrow.today())]


def test_another_number_of_problems_is_told_in_numbers(sgsd, tiny_folder, problems, tmp_path):
    call = ("eval", tiny_folder, "--dataset", problems, *QUICK, "--output", tmp_path / "out")
    assert sgsd(*call, "--limit", "3").code == 0
    said = sgsd(*call).error
    assert "an evaluation with other problems, prompts: got problems 8; expected 3, as stored" in said
    said = sgsd(*call, "--limit", "3", "--instruction", "Say it.").error
    assert "an evaluation with other instruction, prompts: got instruction" in said


def test_evaluations_that_are_a_link_are_not_written_to(sgsd, run, tmp_path):
    (tmp_path / "theirs").mkdir()
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    (run / "evaluations").symlink_to(tmp_path / "theirs")
    result = sgsd("eval", run)
    assert (result.code, "the run's evaluations are outside the run" in result.error) == (2, True)
    assert list((tmp_path / "theirs").iterdir()) == []


# ---- where things are


def test_a_tilde_is_the_users_folder_in_flags_and_in_files(sgsd, tiny_folder, problems, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_folder, tmp_path / "m")
    shutil.copy(problems, tmp_path / "sums.jsonl")
    assert sgsd("bank", "export", "seed:mental-arithmetic", "~/b.json").code == 0
    assert sgsd("bank", "show", "~/b.json").code == 0
    (tmp_path / "c.yaml").write_text("model_name_or_path: ~/m\nbank: ~/b.json\ndataset: ~/sums.jsonl\nbf16: false\n")
    run, training, model = parse_settings(["--config", str(tmp_path / "c.yaml")])
    assert [model.model_name_or_path, training.bank, run.dataset] == [
        str(tmp_path / name) for name in ("m", "b.json", "sums.jsonl")
    ]
    call = ("--output=~/out", "--dataset=~/sums.jsonl", *QUICK)
    assert sgsd("eval", "~/m", *call).code == 0
    assert (tmp_path / "out" / "summary.json").is_file()


def test_a_relative_path_in_a_file_is_relative_to_the_folder_that_the_command_runs_in(
    sgsd, tiny_folder, problems, tmp_path, monkeypatch
):
    shutil.copytree(tiny_folder, tmp_path / "m")
    shutil.copy(problems, tmp_path / "sums.jsonl")
    assert sgsd("bank", "export", "seed:mental-arithmetic", tmp_path / "b.json").code == 0
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "c.yaml").write_text(
        "model_name_or_path: m\nbank: b.json\ndataset: sums.jsonl\nbf16: false\nretriever: bm25\noutput_dir: out\n"
        "max_completion_length: 8\n"
    )
    monkeypatch.chdir(tmp_path)
    assert sgsd("train", "--config", "settings/c.yaml", "--dry_run").code == 0
    monkeypatch.chdir(tmp_path / "settings")
    assert sgsd("train", "--config", "c.yaml", "--dry_run").code == 2


def test_a_number_inside_a_mapping_of_a_file_is_one(tmp_path):
    text = "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 2e-7}\nbank: b.json\nbf16: false\n"
    (tmp_path / "c.yaml").write_text(text)
    _, training, _ = parse_settings(["--config", str(tmp_path / "c.yaml")])
    assert training.lr_scheduler_kwargs == {"min_lr": 2e-7}


@pytest.mark.parametrize("text", ["max_steps: 1:30", "max_steps: 2001-01-01", "learning_rate: 1:30.5"])
def test_what_yaml_would_make_another_number_of_is_refused(sgsd, tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    result = sgsd("train", "--config", tmp_path / "c.yaml")
    assert (result.code, "wrong type" in result.error) == (2, True)


def test_a_folder_that_is_not_there_is_named_before_the_data_is_asked_for(sgsd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert "no such model folder: got runs/nothing" in sgsd("eval", "runs/nothing").error
    assert "no such bank: got ''" in sgsd("bank", "show", "").error


@pytest.mark.parametrize("link", [False, True])
def test_a_report_replaces_a_report_and_nothing_else(sgsd, tmp_path, link):
    run, page, notes = write_run(tmp_path / "run", steps=3), tmp_path / "report.html", tmp_path / "notes.html"
    notes.write_text("<html>mine</html>")
    target = tmp_path / "link.html" if link else notes
    if link:
        target.symlink_to(notes)
    result = sgsd("report", run, "--output", target)
    assert (result.code, "exists and is not a report" in result.error) == (2, True)
    assert notes.read_text() == "<html>mine</html>"
    assert [sgsd("report", run, "--output", page).code for _ in range(2)] == [0, 0]


# ---- any value of a run's folder, replaced

HUGE = 10**200
REPLACED = (None, "x", -1, HUGE, float("nan"), [[1]])
WRONG = [
    ("run.json", ("settings",)), ("run.json", ("settings", "method")), ("run.json", ("settings", "seed")),
    ("run.json", ("data",)), ("run.json", ("versions",)), ("run.json", ("settings", "model_name_or_path")),
    ("trainer_state.json", ("global_step",)), ("trainer_state.json", ("log_history",)),
    ("trainer_state.json", ("log_history", 0)), ("trainer_state.json", ("log_history", 0, "step")),
    ("trainer_state.json", ("log_history", 0, "success_rate")),
    ("ledger.json", ("items",)), ("ledger.json", ("items", 0, "positive_failure")),
    ("ledger.json", ("items", 0, "products")), ("ledger.json", ("items", 0, "support_success")),
    ("traces.jsonl", ("step",)), ("traces.jsonl", ("problem",)),
    ("traces.jsonl", ("tokens",)), ("traces.jsonl", ("counted",)), ("traces.jsonl", ("student_logps", 0)),
    ("traces.jsonl", ("teachers",)), ("traces.jsonl", ("teachers", 0, "stance")),
    ("traces.jsonl", ("teachers", 0, "weight")), ("traces.jsonl", ("teachers", 0, "gaps")),
    ("bank.json", ("metadata",)), ("bank.json", ("metadata", "worth")), ("bank.json", ("skills", 0, "id")),
    ("evaluations/sums/summary.json", ("samples_per_problem",)), ("evaluations/sums/summary.json", ("problems",)),
    ("evaluations/sums/summary.json", ("dataset",)), ("evaluations/sums/summary.json", ("step",)),
    ("evaluations/sums/summary.json", ("verifier",)), ("evaluations/sums/summary.json", ("accuracy",)),
    ("evaluations/sums/samples.jsonl", ("problem_id",)), ("evaluations/sums/samples.jsonl", ("tokens",)),
    ("evaluations/sums/samples.jsonl", ("outcome",)), ("evaluations/sums/samples.jsonl", ("extracted",)),
]  # fmt: skip


def replaced(text: str, path: tuple[object, ...], value: object) -> str:
    """The text with a value of its last line, or of the whole, in another's place; 0 is the first key of a mapping."""
    lines = text.splitlines(keepends=True) if text.startswith('{"') else [text]
    number = 0 if path[0] == "edges" else -1
    document = at = json.loads(lines[number])
    for part in path[:-1]:
        at = at[next(iter(at)) if part == 0 and isinstance(at, dict) else part]
    at[path[-1]] = value
    lines[number] = json.dumps(document) + "\n"
    return "".join(lines)


@pytest.mark.parametrize(("file", "path"), WRONG, ids=lambda one: one if isinstance(one, str) else "")
def test_no_value_of_a_runs_folder_ends_in_a_surprise(sgsd, tmp_path, file, path):
    run = write_run(tmp_path / "run", steps=3, tokens=6)
    commands = [
        ("report", run, "--output", tmp_path / "report.html"), ("compare", run), ("bank", "ledger", run),
        ("eval", "--regrade", run / "evaluations" / "sums", "--verifier", "exact"),
    ]  # fmt: skip
    reading = {"evaluations": (0, 1, 3), "ledger.json": (0, 2), "bank.json": (0, 2)}.get(file.split("/")[0], (0, 1))
    whole = (run / file).read_text()
    for value in REPLACED:
        (run / file).write_text(replaced(whole, path, value))
        for command in (commands[number] for number in reading):
            result = sgsd(*command)
            assert result.code in (0, 1, 2)
            assert "unexpected" not in result.err, (value, command)
