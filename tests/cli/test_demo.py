from __future__ import annotations

import json

from sgsd.cli import main
from sgsd.cli.demo import arithmetic_problems


def test_questions_are_distinct_answers_right_and_the_draw_repeatable():
    problems = arithmetic_problems(300, seed=1, prefix="test")
    assert problems == arithmetic_problems(300, seed=1, prefix="test")
    assert len({problem.text for problem in problems}) == 300
    for problem in problems:
        expression = problem.text.removeprefix("What is ").removesuffix("?").replace("×", "*")
        assert eval(expression) == int(problem.answer) >= 0


def test_training_questions_are_none_of_the_held_out_ones():
    test = {problem.text for problem in arithmetic_problems(200, seed=1, prefix="test")}
    train = arithmetic_problems(320, seed=2, prefix="train", without=frozenset(test))
    assert not test & {problem.text for problem in train}


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert main(["demo", "--output", str(tmp_path)]) == 2
    assert "no demo" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_more_questions_than_there_are_to_hold_out_are_refused(tmp_path, capsys):
    assert main(["demo", "--output", str(tmp_path / "demo"), "--problems", "500"]) == 2
    assert "2 to 250" in capsys.readouterr().err
    most = arithmetic_problems(250, seed=1, prefix="test")
    asked = frozenset(problem.text for problem in most)
    assert len(arithmetic_problems(320, seed=2, prefix="train", without=asked)) == 320


def test_the_demo_runs_from_end_to_end_on_a_tiny_model(tmp_path, tiny_folder, capsys):
    output = tmp_path / "demo"
    flags = ["--model_name_or_path", str(tiny_folder), "--retriever", "bm25", "--max_completion_length", "8"]
    flags += ["--per_device_train_batch_size", "8"]
    arguments = ["demo", "--output", str(output), "--steps", "2", "--problems", "20", "--", *flags]
    assert main(arguments) == 0
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
    assert main(["eval", str(output), "--batch_size", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == 20


def test_the_report_of_a_demo_has_before_and_after_as_a_pair(tmp_path, tiny_folder, capsys):
    """At 029fdea: "mean, 40 problems", and 0 under "seeds"."""
    output = tmp_path / "demo"
    flags = ["--model_name_or_path", str(tiny_folder), "--retriever", "bm25", "--max_completion_length", "8"]
    flags += ["--per_device_train_batch_size", "8"]
    assert main(["demo", "--output", str(output), "--steps", "1", "--problems", "20", "--", *flags]) == 0
    assert main(["report", str(output), "--output", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "test, 20 problems" in page
    assert "test, difference to Base" in page
    assert "40 problems" not in page
    capsys.readouterr()
    assert main(["compare", str(output), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["label"] for row in rows] == ["Base", "GRPO + SGSD"]
