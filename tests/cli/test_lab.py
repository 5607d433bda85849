"""``sgsd lab`` as a user runs it, a few steps long."""

import json

import pytest
import torch

from sgsd.cli import main

FEW = ["--threads", "1", "--accuracy_steps", "2"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(folder, *flags, settings=()):
    arguments = ["lab", "run", "sharp", "--output", str(folder), *FEW, *flags, "--", "--max_steps", "4"]
    assert main([*arguments, "--per_device_train_batch_size", "16", *settings]) == 0
    return folder


def curve(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["eval_accuracy"]) for entry in history if "eval_accuracy" in entry]


def test_one_seed_gives_identical_results_and_another_does_not(tmp_path, capsys):
    first = run(tmp_path / "a", "--flips", "0.1")
    second = run(tmp_path / "b", "--flips", "0.1")
    other = run(tmp_path / "c", "--flips", "0.1", "--seed", "1")
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]
    assert curve(first) == curve(second)
    assert [step for step, _ in curve(first)] == [0, 2, 4]
    samples = [(folder / "evaluations" / "lab" / "samples.jsonl").read_text() for folder in (first, second)]
    assert samples[0] == samples[1]

    capsys.readouterr()
    assert main(["lab", "table", str(tmp_path), "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)
    assert group["seeds"] == [0, 0, 1]
    assert group["lab"] == "sharp 2/2/0, flips 0.1"
    low, mean, high = group["accuracy"]["4"]
    accuracies = [curve(folder)[-1][1] for folder in (first, second, other)]
    assert (low, high) == (min(accuracies), max(accuracies))
    assert mean == pytest.approx(sum(accuracies) / 3)
    assert main(["lab", "table", str(tmp_path)]) == 0
    assert "plain-prompt accuracy" in capsys.readouterr().out


def test_the_evaluations_along_the_way_leave_training_as_it_is(tmp_path):
    often = run(tmp_path / "often")
    seldom = run(tmp_path / "seldom", "--accuracy_steps", "100")
    assert (often / "model.safetensors").read_bytes() == (seldom / "model.safetensors").read_bytes()


def test_flips_change_the_verdicts_of_training_and_not_of_evaluation(tmp_path):
    still = ["--learning_rate", "1e-12"]  # Adam's steps are that long
    honest = run(tmp_path / "honest", settings=still)
    flipped = run(tmp_path / "flipped", "--flips", "0.5", settings=still)
    assert curve(honest) == curve(flipped)

    def success_rate(folder):
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        rates = [value for entry in history for name, value in entry.items() if name.endswith("success_rate")]
        return sum(rates) / len(rates)

    assert success_rate(honest) < 0.4 < success_rate(flipped)


def test_a_line_of_json_for_every_evaluation(tmp_path, capsys):
    run(tmp_path / "run", "--json")
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [point["step"] for point in points] == [0, 2, 4]
    assert all(0 <= point["accuracy"] <= 1 for point in points)


def test_what_cannot_be_run_is_refused_in_one_line(tmp_path, capsys):
    for arguments, complaint in (
        (["run", "sharp", "--helpful", "0", "--misleading", "0"], "the lab's bank is empty"),
        (["run", "sharp", "--flips", "0.9"], "--flips is out of range"),
        (["run", "blunt"], "unknown variant"),
        (["table", str(tmp_path)], "no lab runs found"),
        (["run", "sharp", "--", "--lerning_rate", "1"], "did you mean"),
    ):
        output = ["--output", str(tmp_path / "x")] if arguments[0] == "run" else []
        dashes = arguments.index("--") if "--" in arguments else len(arguments)
        assert main(["lab", *arguments[:dashes], *output, *arguments[dashes:]]) == 2
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_the_demo_shows_both_curves(tmp_path, capsys):
    assert main(["lab", "demo", "--steps", "4", "--output", str(tmp_path / "demo")]) == 0
    shown = capsys.readouterr().out
    assert "GRPO + correction" in shown
    assert "SGSD" not in shown
    assert "sgsd compare" in shown
    for name in ("grpo", "grpo-correction"):
        assert len(curve(tmp_path / "demo" / name)) >= 2
