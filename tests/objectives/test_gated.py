"""The objective against plain float64 loops, and its properties."""

from __future__ import annotations

import math
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsd.objectives import (
    Gated,
    LocalSupport,
    OwnStances,
    Rollouts,
    StudentScores,
    TeacherScores,
    gate,
    local_support_loss,
    means,
    sgsd_loss,
    stance_metrics,
    stances,
    supports,
)

from .batches import make_rollouts, student_of


def make_batch(seed=0, B=3, K=4, T=7, dtype=torch.float64, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    student = -torch.rand(B, T, generator=g, dtype=dtype) * 3
    teacher = student[:, None] + scale * torch.randn(B, K, T, generator=g, dtype=dtype)
    mask = torch.rand(B, T, generator=g) > 0.3
    mask[:, 0] = True
    outcome = torch.tensor([1, -1, 0] * B)[:B]
    weights = torch.rand(B, K, generator=g, dtype=dtype).softmax(-1)
    return student, teacher, mask, outcome, weights


def reference_loss(
    student,
    teacher,
    mask,
    outcome,
    weights,
    tau=1.0,
    clip=3.0,
    threshold=0.05,
    control=None,
):
    """Equations (1) to (6) as Python loops over floats, with the gradient by hand. No tensor arithmetic."""
    B, K, T = teacher.shape
    rows, gradient = [], [[0.0] * T for _ in range(B)]
    for b in range(B):
        counted = [t for t in range(T) if mask[b, t]]
        row = 0.0
        for k in range(K):
            gaps = {t: float(teacher[b, k, t]) - float(student[b, t]) for t in counted}
            support = sum(max(-clip, min(clip, gap)) for gap in gaps.values()) / max(1, len(counted))
            if control is not None:
                against = [float(control[b, t]) - float(student[b, t]) for t in counted]
                support -= sum(max(-clip, min(clip, gap)) for gap in against) / max(1, len(counted))
            stance = 0 if abs(support) <= threshold else math.copysign(1, support)
            polarity = int(outcome[b]) * stance
            for t, gap in gaps.items():
                value = math.log(2) - math.log(1 + math.exp(-(gap**2) / (2 * tau)))
                slope = gap / (tau * (1 + math.exp(gap**2 / (2 * tau))))
                share = float(weights[b, k]) * polarity / len(counted)
                row += share * value
                gradient[b][t] -= share * slope / B  # dΔ/d log p_S = −1
        rows.append(row)
    return sum(rows) / B, rows, gradient


@pytest.mark.parametrize("seed", range(3))
def test_with_a_control_teacher_it_equals_plain_loops_too(seed):
    student, teacher, mask, outcome, weights = make_batch(seed)
    control = teacher.roll(1, 1)[:, 0] - 0.3
    expected, _, gradient = reference_loss(student, teacher, mask, outcome, weights, control=control, clip=1.0)
    student.requires_grad_()
    control.requires_grad_()
    plain = sgsd_loss(student, teacher, mask, outcome, weights, clip=1.0)
    result = sgsd_loss(student, teacher, mask, outcome, weights, clip=1.0, control_logps=control)
    result.loss.backward()
    assert not torch.equal(result.stance, plain.stance)
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(student.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    assert control.grad is None
    moved = (plain.support - result.support).mean(1)
    assert result.metrics["support/control"].item() == pytest.approx(moved.mean().item())


@given(st.integers(0, 10_000), st.floats(-1, 1))
def test_what_every_skill_prompt_does_to_style_is_no_support_beside_a_control(seed, style):
    student, teacher, mask, outcome, weights = make_batch(seed, scale=0.3)
    control = student + 0.1
    both = [
        sgsd_loss(student, teacher + shift, mask, outcome, weights, clip=10.0, control_logps=control + shift).support
        for shift in (0.0, style)
    ]
    torch.testing.assert_close(*both)
    plain = sgsd_loss(student, teacher + style, mask, outcome, weights, clip=10.0)
    same = sgsd_loss(student, teacher + style, mask, outcome, weights, clip=10.0, control_logps=student)
    torch.testing.assert_close(plain.support, same.support)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "settings"),
    [
        (torch.float64, 1e-6, {}),
        (torch.float32, 1e-4, {}),
        *((torch.float64, 1e-6, {name: value}) for name, value in (("tau", 0.3), ("clip", 0.13), ("threshold", 0.4))),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_equal_plain_loops(seed, dtype, tolerance, settings):
    student, teacher, mask, outcome, weights = make_batch(seed, dtype=dtype)
    expected, rows, gradient = reference_loss(student, teacher, mask, outcome, weights, **settings)
    for tensor in (student, teacher, weights):
        tensor.requires_grad_()
    result = sgsd_loss(student, teacher, mask, outcome, weights, **settings)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(expected, rel=tolerance)
    torch.testing.assert_close(result.row_loss.double(), torch.tensor(rows).double(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        student.grad.double(), torch.tensor(gradient).double(), rtol=tolerance, atol=tolerance * 1e-2
    )
    assert teacher.grad is None
    assert weights.grad is None


def test_loops_see_all_three_outcomes_and_both_stances():
    """Guards the comparison above: a batch without negative stances would not test the sign."""
    student, teacher, mask, outcome, weights = make_batch(0)
    result = sgsd_loss(student, teacher, mask, outcome, weights)
    assert set(result.stance.flatten().tolist()) >= {-1.0, 1.0}
    assert set(result.polarity.flatten().tolist()) == {-1.0, 0.0, 1.0}


def test_minimising_moves_a_supported_success_towards_its_teacher_and_a_supported_failure_away():
    student = torch.full((2, 1), -2.0, dtype=torch.float64, requires_grad=True)
    teacher = torch.full((2, 1, 1), -1.0, dtype=torch.float64)
    ones = torch.ones(2, 1, dtype=torch.float64)
    sgsd_loss(student, teacher, ones.bool(), torch.tensor([1, -1]), ones).loss.backward()
    assert student.grad[0, 0] < 0  # descent raises the success's log-probability, to the teacher's
    assert student.grad[1, 0] > 0  # descent lowers the failure's


@given(st.floats(-1e3, 1e3), st.floats(0.05, 20))
def test_gate_is_even_and_between_zero_and_log_two(gap, tau):
    value = gate(torch.tensor([gap, -gap], dtype=torch.float64), tau)
    assert value[0] == value[1]
    assert 0 <= value[0] <= math.log(2) + 1e-15


@given(st.floats(-6, 6), st.floats(0.2, 5))
def test_gate_slope_is_the_stated_one(gap, tau):
    x = torch.tensor(gap, dtype=torch.float64, requires_grad=True)
    gate(x, tau).backward()
    # Far out exp(−Δ²/2τ) is lost beside 1: the slope is exact to a rounding error of its factor Δ/τ.
    rounding = abs(gap) / tau * sys.float_info.epsilon
    assert x.grad.item() == pytest.approx(gap / (tau * (1 + math.exp(gap**2 / (2 * tau)))), rel=1e-9, abs=rounding)


def test_gate_keeps_small_gaps_in_float32():
    """ℓ(Δ) → Δ²/4τ near 0; the textbook form is 0 there in low precision."""
    gap = torch.tensor([1e-3, 1e-4])
    torch.testing.assert_close(gate(gap, 1.0), gap.square() / 4, rtol=1e-4, atol=0)


def test_bfloat16_inputs_are_upcast_once_at_entry():
    student, teacher, mask, outcome, weights = make_batch(1, scale=0.1)
    low = sgsd_loss(student.bfloat16(), teacher.bfloat16(), mask, outcome, weights)
    again = sgsd_loss(student.bfloat16().float(), teacher.bfloat16().float(), mask, outcome, weights.float())
    assert low.loss.dtype == torch.float32
    torch.testing.assert_close(low.row_loss, again.row_loss)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_undecided_and_neutral_rows_have_exactly_zero_gradient(seed):
    student, teacher, mask, _, weights = make_batch(seed, B=2)
    teacher[1] = student[1]  # no gap, no stance
    student.requires_grad_()
    sgsd_loss(student, teacher, mask, torch.tensor([0, 1]), weights).loss.backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0.0, -1e4, float("inf"), float("nan")]))
def test_padding_tokens_change_nothing_whatever_stands_there(seed, extra, junk):
    student, teacher, mask, outcome, weights = make_batch(seed)
    B, K, T = teacher.shape
    padded_student = torch.cat([student, torch.full((B, extra), junk, dtype=student.dtype)], 1).requires_grad_()
    padded = sgsd_loss(
        padded_student,
        torch.cat([teacher, torch.full((B, K, extra), junk, dtype=student.dtype)], 2),
        torch.cat([mask, torch.zeros(B, extra, dtype=torch.bool)], 1),
        outcome,
        weights,
    )
    student.requires_grad_()
    plain = sgsd_loss(student, teacher, mask, outcome, weights)
    torch.testing.assert_close(padded.row_loss, plain.row_loss)
    padded.loss.backward()
    plain.loss.backward()
    torch.testing.assert_close(padded_student.grad[:, :T], student.grad)
    assert torch.equal(padded_student.grad[:, T:], torch.zeros(B, extra, dtype=student.dtype))


def test_padding_teachers_of_weight_zero_change_neither_loss_nor_metrics():
    student, teacher, mask, outcome, weights = make_batch(2)
    plain = sgsd_loss(student, teacher, mask, outcome, weights)
    padded = sgsd_loss(
        student,
        torch.cat([teacher, teacher[:, :1] + 5], 1),
        mask,
        outcome,
        torch.cat([weights, torch.zeros_like(weights[:, :1])], 1),
    )
    torch.testing.assert_close(padded.row_loss, plain.row_loss)
    torch.testing.assert_close(padded.metrics, plain.metrics)


def test_rows_without_counted_tokens_stay_finite_and_backward_able():
    student, teacher, mask, outcome, weights = make_batch(5)
    student.requires_grad_()
    result = sgsd_loss(student, teacher, torch.zeros_like(mask), outcome, weights)
    result.loss.backward()
    assert result.loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_a_support_on_the_threshold_takes_no_stance():
    student, ones = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    for gap, stance in ((0.05, 0), (0.0501, 1), (-0.05, 0), (-0.0501, -1)):
        teacher = torch.full((1, 1, 1), gap, dtype=torch.float64)
        assert sgsd_loss(student, teacher, ones.bool(), torch.tensor([1]), ones).stance.item() == stance


def test_metrics_count_what_they_say():
    student = torch.zeros(3, 2)
    teacher = torch.tensor([[[1.0, 5.0]], [[-1.0, -1.0]], [[0.0, 0.0]]])
    ones = torch.ones(3, 1)
    metrics = sgsd_loss(student, teacher, torch.ones(3, 2).bool(), torch.tensor([1, 1, 0]), ones).metrics
    assert metrics["support/success"].item() == pytest.approx((2.0 - 1.0) / 2)
    assert metrics["support/failure"].isnan()
    assert metrics["active_share"].item() == pytest.approx(2 / 3)
    assert metrics["polarity/positive_share"].item() == pytest.approx(1 / 3)
    assert metrics["polarity/negative_share"].item() == pytest.approx(1 / 3)
    assert metrics["undecided_share"].item() == pytest.approx(1 / 3)
    assert metrics["clipped_share"].item() == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": torch.ones(3, 7)}, "mask must be bool"),
        ({"outcome": torch.ones(4)}, "outcome must have shape"),
        ({"teacher_weights": torch.ones(3, 3)}, "teacher_weights must have shape"),
        ({"tau": 0.0}, "tau and clip must be positive"),
    ],
)
def test_misfits_are_refused(change, message):
    student, teacher, mask, outcome, weights = make_batch(0)
    arguments = {"mask": mask, "outcome": outcome, "teacher_weights": weights} | change
    with pytest.raises(ValueError, match=message):
        sgsd_loss(student, teacher, **arguments)


# ---- local support


def make_local(seed=0, B=2, K=2, T=3, M=4):
    g = torch.Generator().manual_seed(seed)
    student = torch.randn(B, K, T, M, generator=g, dtype=torch.float64)
    teacher = torch.randn(B, K, T, M, generator=g, dtype=torch.float64)
    in_support = torch.rand(B, K, T, M, generator=g) > 0.3
    in_support[..., 0] = True
    mask = torch.tensor([[True, True, False], [True, True, True]])
    return student, teacher, in_support, mask, torch.tensor([1, -1]), torch.full((B, K), 0.5, dtype=torch.float64)


def reference_local(student, teacher, in_support, mask, outcome, weights, tau=1.0, clip=3.0, threshold=0.05):
    B, K, T, M = student.shape
    total = 0.0
    for b in range(B):
        counted = [t for t in range(T) if mask[b, t]]
        for k in range(K):
            gated, supports = 0.0, 0.0
            for t in counted:
                members = [m for m in range(M) if in_support[b, k, t, m]]
                logs = []
                for scores in (teacher, student):
                    values = {m: float(scores[b, k, t, m]) for m in members}
                    normaliser = math.log(sum(math.exp(v) for v in values.values()))
                    logs.append({m: v - normaliser for m, v in values.items()})
                kl = sum(math.exp(logs[0][m]) * (logs[0][m] - logs[1][m]) for m in members)
                supports += max(-clip, min(clip, logs[0][0] - logs[1][0]))
                gated += math.log(2) - math.log(1 + math.exp(-(kl**2) / (2 * tau)))
            support = supports / len(counted)
            stance = 0 if abs(support) <= threshold else math.copysign(1, support)
            total += float(weights[b, k]) * int(outcome[b]) * stance * gated / len(counted)
    return total / B


@pytest.mark.parametrize("seed", range(5))
def test_local_support_equals_plain_loops(seed):
    batch = make_local(seed)
    assert local_support_loss(*batch).loss.item() == pytest.approx(reference_local(*batch), rel=1e-9)


def test_local_support_gradient_is_numerically_right_and_only_the_student_has_one():
    student, teacher, in_support, mask, outcome, weights = make_local(1)
    student.requires_grad_()
    teacher.requires_grad_()
    torch.autograd.gradcheck(
        lambda s: local_support_loss(s, teacher, in_support, mask, outcome, weights).loss, student, atol=1e-6
    )
    local_support_loss(student, teacher, in_support, mask, outcome, weights).loss.backward()
    assert teacher.grad is None


def test_local_support_ignores_what_lies_outside_the_support():
    student, teacher, in_support, mask, outcome, weights = make_local(3)
    changed = torch.where(in_support, student, 50.0)
    torch.testing.assert_close(
        local_support_loss(changed, teacher, in_support, mask, outcome, weights).row_loss,
        local_support_loss(student, teacher, in_support, mask, outcome, weights).row_loss,
    )


# ---- as objectives


@pytest.mark.parametrize("control", [False, True])
def test_the_objective_is_the_function_on_typed_tensors(control):
    logits, teachers, rollouts = make_rollouts(1)
    student = student_of(logits, teachers, rollouts)
    limits = {"tau": 0.5, "clip": 1.0, "threshold": 0.1}
    rows, metrics = Gated(**limits, control=control).loss(student, teachers, rollouts)
    control_logps = teachers.control_logps if control else None
    inputs = student.logps, teachers.logps, rollouts.mask, rollouts.outcome, teachers.weights
    expected = sgsd_loss(*inputs, **limits, control_logps=control_logps)
    assert torch.equal(rows, expected.row_loss)
    torch.testing.assert_close(means(metrics), expected.metrics, rtol=0, atol=0, equal_nan=True)
    assert ("support/control" in metrics) == control


def test_the_local_objective_puts_the_sampled_token_before_the_likeliest_and_counts_it_once():
    logits, teachers, rollouts = make_rollouts(2)
    student = student_of(logits, teachers, rollouts)
    limits = {"tau": 0.5, "clip": 1.0, "threshold": 0.01}
    rows, metrics = LocalSupport(**limits).loss(student, teachers, rollouts)
    B, K, T, M = teachers.top_ids.shape
    sampled_is_likely = teachers.top_ids == rollouts.ids[:, None, :, None]
    assert sampled_is_likely.any()
    ones = torch.ones(B, K, T, 1, dtype=torch.bool)
    expected = local_support_loss(
        torch.cat([student.logps[:, None, :, None].expand(B, K, T, 1), student.top_logps], -1),
        torch.cat([teachers.logps[..., None], teachers.top_logps], -1),
        torch.cat([ones, ~sampled_is_likely], -1),
        rollouts.mask,
        rollouts.outcome,
        teachers.weights,
        **limits,
    )
    assert M == 4
    assert torch.equal(rows, expected.row_loss)
    torch.testing.assert_close(means(metrics), expected.metrics, rtol=0, atol=0, equal_nan=True)


def test_the_stances_of_the_local_objective_are_those_of_its_loss():
    """The teacher finds the sampled token likelier than the student does, and another token still more so."""
    student = StudentScores(logps=torch.tensor([[0.3]]).log(), top_logps=torch.tensor([[[[0.05]]]]).log())
    teachers = TeacherScores(
        logps=torch.tensor([[[0.4], [0.4]]]).log(),
        weights=torch.ones(1, 2),
        trust=torch.ones(1, 2),
        scored=torch.tensor([[True, False]]),
        top_ids=torch.ones(1, 2, 1, 1, dtype=torch.long),
        top_logps=torch.tensor([[[[0.45]], [[0.45]]]]).log(),
    )
    student = replace(student, top_logps=student.top_logps.expand(1, 2, 1, 1))
    rollouts = Rollouts(ids=torch.tensor([[0]]), mask=torch.tensor([[True]]), outcome=torch.tensor([1]))
    objective = LocalSupport()
    assert isinstance(objective, OwnStances)
    support, stance = objective.stances(student, teachers, rollouts)
    torch.testing.assert_close(support, torch.tensor([[math.log((0.4 / 0.85) / (0.3 / 0.35)), 0.0]]))
    assert stance.tolist() == [[-1, 0]]
    _, metrics = objective.loss(student, teachers, rollouts)
    assert means(metrics)["polarity/negative_share"] == 1
    assert not isinstance(Gated(), OwnStances)


@pytest.mark.parametrize("control", [False, True])
def test_stances_are_those_of_the_loss_and_of_unscored_teachers_none(control):
    logits, teachers, rollouts = make_rollouts(3)
    student = student_of(logits, teachers, rollouts)
    control_logps = teachers.control_logps if control else None
    baseline = supports(student.logps, teachers.control_logps.unsqueeze(1), rollouts.mask, clip=1.0).squeeze(1)
    baseline = baseline if control else None
    limits = {"clip": 1.0, "threshold": 0.1}
    inputs = student.logps, teachers.logps, rollouts.mask, rollouts.outcome, teachers.weights
    expected = sgsd_loss(*inputs, **limits, control_logps=control_logps)
    scored = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    support, stance = stances(
        student.logps,
        torch.where(scored.unsqueeze(-1), teachers.logps, torch.nan),
        rollouts.mask,
        **limits,
        baseline=baseline,
        scored=scored,
    )
    assert torch.equal(support[scored], expected.support[scored])
    assert torch.equal(stance[scored], expected.stance[scored])
    assert not support[~scored].any()
    assert not stance[~scored].any()
    everything = stances(student.logps, teachers.logps, rollouts.mask, **limits, baseline=baseline)
    assert torch.equal(everything[0], expected.support)
    assert not everything[0].requires_grad


def test_stances_are_logged_the_same_whatever_the_loss():
    logits, teachers, rollouts = make_rollouts(4)
    student = student_of(logits, teachers, rollouts)
    _, metrics = Gated(control=True).loss(student, teachers, rollouts)
    control = supports(student.logps, teachers.control_logps.unsqueeze(1), rollouts.mask, clip=3.0).squeeze(1)
    support, stance = stances(student.logps, teachers.logps, rollouts.mask, clip=3.0, threshold=0.05, baseline=control)
    logged = stance_metrics(support, stance, rollouts.outcome, teachers.weights > 0, baseline=control)
    assert logged.keys() == metrics.keys() - {"gate", "clipped_share"}
    torch.testing.assert_close(logged, {name: metrics[name] for name in logged})
