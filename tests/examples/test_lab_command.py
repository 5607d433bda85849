"""``sgsd lab`` as a user runs it, a few steps long, and the objectives that only its evidence asks for."""

from __future__ import annotations

import json

import pytest
import torch

from sgsd.cli import main
from sgsd.examples.lab import ablations
from sgsd.objectives import OBJECTIVES, Correction

from ..objectives.batches import SETTINGS, loss_and_gradient, make_rollouts


@pytest.fixture(autouse=True)
def leave_torch_and_objectives_as_they_are():
    threads, objectives = torch.get_num_threads(), dict(OBJECTIVES)
    yield
    torch.set_num_threads(threads)
    OBJECTIVES.clear()
    OBJECTIVES.update(objectives)


def run(folder, *flags, settings=()):
    arguments = ["lab", "run", "sharp", "--output", str(folder), "--threads", "1", "--accuracy_steps", "2", *flags]
    assert main([*arguments, "--", "--max_steps", "4", "--per_device_train_batch_size", "16", *settings]) == 0
    return folder


def history(folder, metric):
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry[metric]) for entry in entries if metric in entry]


@pytest.mark.slow
def test_one_seed_gives_identical_results_however_often_it_is_evaluated_and_another_does_not(tmp_path, capsys):
    first, again, seldom, other = (
        run(tmp_path / name, "--flips", "0.1", "--json", *flags)
        for name, flags in {
            "a": (),
            "b": (),
            "seldom": ("--accuracy_steps", "100"),
            "other": ("--seed", "1"),
        }.items()
    )
    points = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [point["step"] for point in points[:3]] == [0, 2, 4]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, seldom, other)]
    assert weights[0] == weights[1] == weights[2] != weights[3]
    curve = history(first, "eval_accuracy")
    assert curve == history(again, "eval_accuracy") == [(point["step"], point["accuracy"]) for point in points[:3]]
    assert all(point["seconds"] > 0 and point["cpu_seconds"] > 0 for point in points[1:3])
    samples = [(folder / "evaluations" / "lab" / "samples.jsonl").read_text() for folder in (first, again)]
    assert samples[0] == samples[1]

    assert main(["lab", "table", *map(str, (first, again, other)), "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)
    assert group["seeds"] == [0, 0, 1]
    assert group["lab"] == "sharp 2/2/0, flips 0.1"
    last = [history(folder, "eval_accuracy")[-1][1] for folder in (first, again, other)]
    assert group["accuracy"]["4"] == pytest.approx([min(last), sum(last) / 3, max(last)])
    assert main(["lab", "table", str(tmp_path)]) == 0
    assert "plain-prompt accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_flips_change_the_verdicts_of_training_and_not_of_evaluation(tmp_path):
    still = ["--learning_rate", "1e-12"]  # Adam's steps are that long
    honest = run(tmp_path / "honest", settings=still)
    flipped = run(tmp_path / "flipped", "--flips", "0.5", settings=still)
    assert history(honest, "eval_accuracy") == history(flipped, "eval_accuracy")
    rates = [sum(rate for _, rate in history(folder, "success_rate")) / 4 for folder in (honest, flipped)]
    assert rates[0] < 0.4 < rates[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["run", "sharp", "--helpful", "0", "--misleading", "0", "--output", "X"], "the lab's bank is empty"),
        (["run", "sharp", "--flips", "0.9", "--output", "X"], "--flips is out of range"),
        (["run", "blunt"], "unknown variant"),
        (["run", "sharp", "--helpfull", "1"], "did you mean --helpful"),
        (["table", "X"], "no lab runs found"),
        (["run", "sharp", "--output", "X", "--", "--lerning_rate", "1"], "did you mean"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(tmp_path, capsys, arguments, complaint):
    folder = tmp_path / "x"
    assert main(["lab", *(str(folder) if word == "X" else word for word in arguments)]) == 2
    assert complaint in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.slow
def test_the_demo_shows_both_curves(tmp_path, capsys):
    assert main(["lab", "demo", "--steps", "4", "--output", str(tmp_path / "demo")]) == 0
    shown = capsys.readouterr().out
    assert "GRPO + correction" in shown
    assert "SGSD" not in shown
    assert "sgsd compare" in shown
    for name in ("grpo", "grpo-correction"):
        assert len(history(tmp_path / "demo" / name, "eval_accuracy")) >= 2


# ---- ablations


@pytest.mark.parametrize("objective", [ablations._Ablated, ablations.WithoutGate, ablations.WithoutPolarity])
def test_a_loss_without_a_part_is_the_plain_loops_without_it(objective):
    logits, teachers, rollouts = make_rollouts()
    rows, _, _ = loss_and_gradient(objective.from_config(SETTINGS), logits, teachers, rollouts)
    student = logits.log_softmax(-1).gather(-1, rollouts.ids.unsqueeze(-1)).squeeze(-1)
    for b, row in enumerate(rows.tolist()):
        counted = rollouts.mask[b].nonzero().flatten().tolist()
        expected = 0.0
        for k in range(teachers.weights.shape[1]):
            gaps = [float(teachers.logps[b, k, t] - student[b, t]) for t in counted]
            beside = [float(teachers.control_logps[b, t] - student[b, t]) for t in counted]
            support = sum(max(-2.0, min(2.0, gap)) for gap in gaps) / len(gaps)
            support -= sum(max(-2.0, min(2.0, gap)) for gap in beside) / len(gaps)
            stance = (support > 0) - (support < 0) if abs(support) > 0.04 else 0
            polarity = int(rollouts.outcome[b]) * stance
            if objective is ablations.WithoutPolarity:
                polarity = abs(polarity)
            tau = 0.7
            squared = torch.tensor([gap**2 for gap in gaps], dtype=torch.float64)
            gated = torch.log(torch.tensor(2.0)) - torch.log1p(torch.exp(-squared / (2 * tau)))
            if objective is ablations.WithoutGate:
                gated = squared / (4 * tau)
            expected += float(teachers.weights[b, k]) * polarity * float(gated.mean())
        assert row == pytest.approx(expected, abs=1e-6)


def test_successes_are_corrected_as_failures_are():
    logits, teachers, rollouts = make_rollouts()
    rows, _, gradient = loss_and_gradient(ablations.CorrectionOfAll(), logits, teachers, rollouts)
    failed, _, of_failures = loss_and_gradient(Correction(), logits, teachers, rollouts)
    assert ablations.CorrectionOfAll().needs.outcomes == {-1, 1}
    assert (rows > 0).tolist() == (rollouts.outcome != 0).tolist()
    assert (failed > 0).tolist() == (rollouts.outcome < 0).tolist()
    torch.testing.assert_close(gradient[rollouts.outcome < 0], of_failures[rollouts.outcome < 0])


def test_a_teacher_of_random_tokens_is_as_sure_as_before_and_of_tokens_of_the_same_list():
    torch.manual_seed(0)
    logits, teachers, rollouts = make_rollouts(M=11)
    placebo = ablations.RandomTokens.from_config(SETTINGS)
    rows, metrics, gradient = loss_and_gradient(placebo, logits, teachers, rollouts)
    expected, beside, to_teachers = loss_and_gradient(Correction(2.0, 2.0), logits, teachers, rollouts)
    assert placebo.needs == Correction(2.0, 2.0).needs
    assert (rows > 0).tolist() == (rollouts.outcome < 0).tolist() == (expected > 0).tolist()
    assert metrics["trust"] == beside["trust"]
    failed = rollouts.outcome < 0
    cosine = torch.nn.functional.cosine_similarity(gradient[failed].flatten(), to_teachers[failed].flatten(), dim=0)
    assert -0.5 < cosine < 0.7  # the student's share is in both


def test_suppression_is_the_policy_gradient_of_one_negative_advantage_on_failures():
    logits, teachers, rollouts = make_rollouts()
    rows, _, gradient = loss_and_gradient(ablations.Suppression.from_config(SETTINGS), logits, teachers, rollouts)
    assert rows.tolist() == [float(outcome < 0) for outcome in rollouts.outcome]
    leaf = logits.clone().requires_grad_()
    logps = leaf.log_softmax(-1).gather(-1, rollouts.ids.unsqueeze(-1)).squeeze(-1)
    means = torch.where(rollouts.mask, logps, 0.0).sum(1) / rollouts.mask.sum(1)
    (expected,) = torch.autograd.grad(means[rollouts.outcome < 0].sum(), leaf)
    torch.testing.assert_close(gradient, expected)
    assert ablations.Suppression().needs.outcomes == frozenset()


def test_settings_of_the_evidence_become_objectives_of_the_run(tmp_path):
    given = ["--objective", "correction", "--correct_all", "true", "--use_gate", "true"]
    assert ablations.as_objectives(given) == [
        *("--objective", "correction", "--objective", "correction-of-all", "--use_gate", "true")
    ]
    assert "gated-without-gate" not in OBJECTIVES
    folder = run(tmp_path / "run", settings=["--use_gate", "false"])
    assert json.loads((folder / "run.json").read_text())["settings"]["objective"] == "gated-without-gate"
    assert any(loss for _, loss in history(folder, "sgsd/loss"))
