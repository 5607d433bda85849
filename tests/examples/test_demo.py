"""``sgsd demo``, and how it is found in a checkout and in a wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import sgsd
from sgsd.cli import main
from sgsd.examples.demo import arithmetic_problems

from ..conftest import ROOT


def test_questions_are_distinct_apart_from_those_held_out_and_their_answers_right():
    test = arithmetic_problems(250, seed=1, prefix="test")
    assert test == arithmetic_problems(250, seed=1, prefix="test")
    train = arithmetic_problems(320, seed=2, prefix="train", without=frozenset(problem.text for problem in test))
    assert len({problem.text for problem in test + train}) == 570
    for problem in test + train:
        expression = problem.text.removeprefix("What is ").removesuffix("?").replace("×", "*")
        assert eval(expression) == int(problem.answer) >= 0


def test_another_folder_is_left_alone_and_too_many_questions_are_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "no demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert main(["demo", "--output", str(tmp_path / "demo"), "--problems", "500"]) == 2
    assert "2 to 250" in capsys.readouterr().err
    assert main(["demo", "--step", "1"]) == 2
    assert "did you mean --steps" in capsys.readouterr().err


def test_the_demo_runs_from_end_to_end_on_a_tiny_model_and_is_reported_as_a_pair(tmp_path, tiny_folder, capsys):
    """Of the report at 029fdea: "mean, 40 problems", and 0 under "seeds"."""
    output = tmp_path / "demo"
    flags = ["--model_name_or_path", str(tiny_folder), "--retriever", "bm25", "--max_completion_length", "8"]
    flags += ["--per_device_train_batch_size", "8"]
    assert main(["demo", "--output", str(output), "--steps", "2", "--problems", "20", "--", *flags]) == 0
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["rollouts"] == 16
    assert summary["before"]["accuracy"] == 0  # random weights
    low, high = summary["difference"]["ci95"]
    assert low < 0 < high  # equal values do not prove equality
    shown = capsys.readouterr().out
    assert "covers 0" in shown
    assert "The method was GRPO + SGSD" in " ".join(shown.split())
    assert len((output / "evaluations" / "after" / "samples.jsonl").read_text().splitlines()) == 20
    assert main(["report", str(output), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "test, 20 problems" in page
    assert "test, difference to Base" in page
    assert "40 problems" not in page
    capsys.readouterr()
    assert main(["compare", str(output), "--json"]) == 0
    assert [row["label"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["Base", "GRPO + SGSD"]
    assert main(["eval", str(output), "--batch_size", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == 20


def test_a_wheel_has_the_demo_and_says_where_the_lab_is(tmp_path):
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    shutil.copytree(Path(sgsd.__file__).parent, tmp_path / "sgsd", ignore=shutil.ignore_patterns("__pycache__"))
    for file, place in wheel["force-include"].items():
        shutil.copy(ROOT / file, tmp_path / place)

    def installed(*arguments):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "sgsd.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    assert "usage: sgsd demo" in installed("demo", "--help").stdout
    refused = installed("lab", "demo")
    assert refused.returncode == 2
    assert "sgsd lab is not in this installation: expected a checkout" in refused.stderr


def test_in_a_checkout_both_run_by_path():
    for path, prog in (("demo.py", "sgsd demo"), ("lab", "sgsd lab")):
        command = [sys.executable, str(ROOT / "examples" / path), "--help"]
        assert f"usage: {prog}" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
