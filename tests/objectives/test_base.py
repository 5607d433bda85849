"""What every objective keeps to: nothing unscored is read, metrics add up, and a new one is one file."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
import torch

import sgsd
from sgsd import objectives
from sgsd.objectives import OBJECTIVES, Metrics, Needs, StudentScores, means, total

from .batches import SETTINGS, loss_and_gradient, make_rollouts, rows_of, student_of, with_unscored

NAMES = ("gated", "local", "correction", "reweight")
each_objective = pytest.mark.parametrize("name", NAMES)


def make(name):
    return OBJECTIVES[name].from_config(SETTINGS)


def scored_in_part():
    """All teachers, some, or none of a rollout."""
    return torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]]).bool()


def test_the_registry_has_every_objective_under_its_name():
    assert tuple(OBJECTIVES) == NAMES
    assert all(make(name).name == name for name in NAMES)
    assert sgsd.sgsd_loss is objectives.sgsd_loss


def test_objectives_say_what_they_need():
    plain = replace_settings(support_baseline="none", teacher_guidance=0.0)
    assert OBJECTIVES["gated"].from_config(plain).needs == Needs()
    assert make("gated").needs == Needs(control=True)
    assert make("local").needs == Needs(top_tokens=True)
    failures = {"outcomes": frozenset({-1}), "by_trust": True}
    assert OBJECTIVES["correction"].from_config(plain).needs == Needs(top_tokens=True, **failures)
    assert make("correction").needs == Needs(top_tokens=True, control=True, frozen_teacher=True, **failures)
    assert OBJECTIVES["reweight"].from_config(plain).needs == Needs(groups=True, by_trust=True, unscored=True)
    assert make("reweight").needs == Needs(groups=True, control=True, by_trust=True, unscored=True)


def test_settings_reach_the_objectives():
    assert make("gated") == objectives.Gated(tau=0.7, clip=2.0, threshold=0.04, control=True)
    assert make("local") == objectives.LocalSupport(tau=0.7, clip=2.0, threshold=0.04)
    assert make("correction") == objectives.Correction(guidance=1.5, clip=2.0)
    assert make("reweight") == objectives.Reweight(contrast=True)


def replace_settings(**changes):
    return type(SETTINGS)(**vars(SETTINGS) | changes)


def test_read_scores_are_zeros_where_nothing_was_scored_and_constants_elsewhere():
    _, teachers, _ = make_rollouts()
    scored = scored_in_part()
    dirty = with_unscored(teachers, scored)
    dirty = replace(dirty, control_logps=dirty.control_logps.requires_grad_(), logps=dirty.logps.requires_grad_())
    read, clean = dirty.read(), with_unscored(teachers, scored, junk=0.0)
    for field in fields(read):
        assert torch.equal(getattr(read, field.name), getattr(clean, field.name))
        assert not getattr(read, field.name).requires_grad
    nothing = replace(teachers, top_ids=None, top_logps=None, control_logps=None, control_top_logps=None).read()
    assert nothing.top_logps is nothing.control_logps is nothing.control_top_logps is None


@each_objective
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -1e4])
def test_nothing_of_an_unscored_teacher_is_read(name, junk):
    """It is as a teacher of weight 0, in values, metrics and gradients, whatever stands in its place."""
    logits, teachers, rollouts = make_rollouts(1)
    scored = scored_in_part()
    padding = replace(teachers, weights=torch.where(scored, teachers.weights, 0.0))
    padding = replace(padding, trust=torch.where(scored, teachers.trust, 0.0))
    expected, _, slope = loss_and_gradient(make(name), logits, padding, rollouts)
    rows, metrics, gradient = loss_and_gradient(make(name), logits, with_unscored(teachers, scored, junk), rollouts)
    torch.testing.assert_close(rows, expected)
    torch.testing.assert_close(gradient, slope)
    assert gradient.any()
    if name != "reweight":  # which is plain GRPO where there is no teacher at all
        assert rows[4] == 0
        assert not gradient[4].any()
    assert all(summed.isfinite() and count.isfinite() for summed, count in metrics.values())


@each_objective
def test_the_students_scores_of_an_unscored_teachers_tokens_are_not_read_either(name):
    logits, teachers, rollouts = make_rollouts(1)
    teachers = with_unscored(teachers, scored_in_part())
    student = student_of(logits, teachers, rollouts)
    garbled = torch.where(teachers.scored[..., None, None], student.top_logps, torch.nan).requires_grad_()
    logps = student.logps.clone().requires_grad_()
    rows, _ = make(name).loss(StudentScores(logps=logps, top_logps=garbled), teachers, rollouts)
    rows.sum().backward()
    assert rows.isfinite().all()
    for values in (logps, garbled):
        assert values.grad is None or values.grad.isfinite().all()
    assert garbled.grad is None or not garbled.grad[~teachers.scored].any()


@each_objective
def test_metrics_count_scored_teachers_only(name):
    logits, teachers, rollouts = make_rollouts(2)
    scored = scored_in_part()
    _, some, _ = loss_and_gradient(make(name), logits, with_unscored(teachers, scored), rollouts)
    nobody = torch.zeros_like(scored)
    rows, none, _ = loss_and_gradient(make(name), logits, with_unscored(teachers, nobody), rollouts)
    counted = {key for key, (_, count) in none.items() if count > 0}
    assert counted <= {"undecided_share"}  # of rollouts, not of teachers
    assert any(count > 0 for _, count in some.values())
    if name in ("gated", "local"):
        assert some["support"][1] == scored.sum()
        assert some["support/failure"][1] == scored[rollouts.outcome < 0].sum()
        assert none["undecided_share"][1] == len(rows)
    if name == "correction":
        assert some["correction"][1] == scored[rollouts.outcome < 0].any(1).sum()


@each_objective
def test_sums_and_counts_of_parts_are_those_of_the_whole(name):
    """Three processes of unlike rollouts log what one would; a mean of their means would not be it."""
    logits, teachers, rollouts = make_rollouts(3)
    teachers = with_unscored(teachers, scored_in_part())
    objective = make(name)
    _, whole, slope = loss_and_gradient(objective, logits, teachers, rollouts)
    parts = [slice(0, 1), slice(1, 3), slice(3, 6)]
    results = [
        loss_and_gradient(objective, logits[part], rows_of(teachers, part), rows_of(rollouts, part)) for part in parts
    ]
    torch.testing.assert_close(torch.cat([gradient for _, _, gradient in results]), slope)
    for key, (summed, count) in whole.items():
        torch.testing.assert_close(sum(metrics[key][0] for _, metrics, _ in results), summed)
        assert sum(metrics[key][1] for _, metrics, _ in results) == count
        assert not summed.requires_grad
        assert summed.shape == count.shape == ()


@each_objective
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_metrics_are_float32_of_lower_precision_and_no_gradient_reaches_teachers(name, dtype):
    logits, teachers, rollouts = make_rollouts(4, dtype=torch.float32)
    student = student_of(logits, teachers, rollouts)
    student = replace(
        student,
        logps=student.logps.to(dtype).requires_grad_(),
        top_logps=student.top_logps.to(dtype).requires_grad_(),
    )
    moving = replace(
        teachers,
        logps=teachers.logps.to(dtype).requires_grad_(),
        top_logps=teachers.top_logps.to(dtype).requires_grad_(),
        weights=teachers.weights.requires_grad_(),
    )
    rows, metrics = make(name).loss(student, moving, rollouts)
    assert rows.dtype == torch.float32
    assert all(summed.dtype == count.dtype == torch.float32 for summed, count in metrics.values())
    rows.sum().backward()
    assert moving.logps.grad is None
    assert moving.top_logps.grad is None
    assert moving.weights.grad is None


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("gated", {"control_logps": None}),
        ("local", {"top_logps": None}),
        ("correction", {"top_logps": None}),
        ("correction", {"control_top_logps": None}),
        ("reweight", {"control_logps": None}),
    ],
)
def test_an_objective_names_what_was_not_scored_for_it(name, missing):
    logits, teachers, rollouts = make_rollouts()
    student = student_of(logits, teachers, rollouts)
    with pytest.raises(ValueError, match=f"objective '{name}' needs"):
        make(name).loss(student, replace(teachers, **missing), rollouts)


def test_a_mean_leaves_out_what_does_not_count_and_is_nan_over_nothing():
    values, where = torch.tensor([[1.0, torch.nan], [4.0, 5.0]]), torch.tensor([[True, False], [False, True]])
    summed, count = total(values, where)
    assert (summed, count) == (6.0, 2.0)
    assert total(values[:, :1], torch.ones(2, 3, dtype=torch.bool)) == (15.0, 6.0)  # both ways
    found = means({"some": (summed, count), "none": total(values, torch.zeros(2, 2, dtype=torch.bool))})
    assert found["some"] == 3.0
    assert found["none"].isnan()


# ---- a new objective is one file


@dataclass(frozen=True)
class Toy:
    """Draws the log-probability of each sampled token to its trusted teachers' mean, on successes."""

    name: ClassVar[str] = "toy"
    needs: ClassVar[Needs] = Needs(outcomes=frozenset({1}))

    @classmethod
    def from_config(cls, args):
        return cls()

    def loss(self, student, teachers, rollouts):
        teachers = teachers.read()
        shares = teachers.weights / teachers.weights.sum(1, keepdim=True).clamp(min=1e-9)
        gap = torch.where(rollouts.mask, (shares.unsqueeze(-1) * teachers.logps).sum(1) - student.logps, 0.0)
        wanted = (rollouts.outcome > 0) & teachers.scored.any(1)
        rows = torch.where(wanted, gap.square().sum(1) / rollouts.mask.sum(1).clamp(min=1), 0.0)
        metrics: Metrics = {"toy/distance": total(rows, wanted)}
        return rows, metrics


def test_a_new_objective_is_one_class(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "toy", Toy)
    objective: objectives.Objective = OBJECTIVES["toy"].from_config(SETTINGS)
    logits, teachers, rollouts = make_rollouts(5)
    rows, metrics, gradient = loss_and_gradient(objective, logits, with_unscored(teachers, scored_in_part()), rollouts)
    assert rows.shape == rollouts.outcome.shape
    assert (rows > 0).tolist() == (rollouts.outcome > 0).tolist()
    assert means(metrics)["toy/distance"] == pytest.approx(rows[rollouts.outcome > 0].mean().item())
    assert gradient[rollouts.outcome > 0].any()
    assert not gradient[rollouts.outcome <= 0].any()
