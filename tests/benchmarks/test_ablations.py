"""The ablations of the evidence are what their settings say."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from sgsd.objectives import OBJECTIVES, Correction

from ..conftest import ROOT
from ..objectives.batches import SETTINGS, loss_and_gradient, make_rollouts
from ..trainers.tiny import make_trainer


def load_benchmark():
    spec = importlib.util.spec_from_file_location("ablations", ROOT / "benchmarks" / "ablations.py")
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ablations = load_benchmark()


@pytest.mark.parametrize("objective", [ablations._Ablated, ablations.WithoutGate, ablations.WithoutPolarity])
def test_a_loss_without_a_part_is_the_plain_loops_without_it(objective):
    logits, teachers, rollouts = make_rollouts()
    made = objective.from_config(SETTINGS)
    assert made.needs.control
    rows, _, _ = loss_and_gradient(made, logits, teachers, rollouts)
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
    torch.testing.assert_close(rows[rollouts.outcome < 0], failed[rollouts.outcome < 0])
    torch.testing.assert_close(gradient[rollouts.outcome < 0], of_failures[rollouts.outcome < 0])


def test_settings_become_objectives_and_nothing_else_changes():
    given = ["lab", "run", "sharp", "--", "--objective", "correction", "--correct_all", "true", "--use_gate", "true"]
    assert ablations.as_objectives(given) == [
        *("lab", "run", "sharp", "--", "--objective", "correction"),
        *("--objective", "correction-of-all", "--use_gate", "true"),
    ]
    assert ablations.as_objectives(given[:6]) == given[:6]


def test_their_names_are_taken_for_the_setting(tmp_path, monkeypatch):
    for objective in ablations.ABLATIONS.values():
        monkeypatch.setitem(OBJECTIVES, objective.name, objective)
    trainer = make_trainer(tmp_path, stub=True, objective="gated-without-gate", max_steps=2)
    trainer.train()
    assert isinstance(trainer.objective, ablations.WithoutGate)
    assert trainer.state.log_history[0]["sgsd/loss"] != 0
