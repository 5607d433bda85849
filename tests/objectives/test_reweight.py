"""The reweighted advantage against float64 loops; its sign is the verifier's and its size bounded."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsd.objectives import Reweight

from .batches import loss_and_gradient, make_rollouts, student_of


def plain_scales(student, teachers, rollouts, *, bound, contrast):
    """Equations (9) to (11) as Python loops over floats: each token's m_t, ``[B][T]``."""
    B, K, T = teachers.logps.shape
    scales = [[1.0] * T for _ in range(B)]
    for b in range(B):
        advantage = float(rollouts.advantages[b]) if rollouts.outcome[b] != 0 else 0.0
        alphas, taus = teachers.weights[b].tolist(), teachers.trust[b].tolist()
        shares = [alpha * tau for alpha, tau in zip(alphas, taus, strict=True)]
        strength = max((tau for alpha, tau in zip(alphas, taus, strict=True) if alpha > 0), default=0.0)
        if not sum(shares) or not advantage:
            continue
        for t in range(T):
            mixed = sum(shares[k] / sum(shares) * math.exp(float(teachers.logps[b, k, t])) for k in range(K))
            against = float(teachers.control_logps[b, t] if contrast else student.logps[b, t])
            evidence = math.exp(math.copysign(1, advantage) * (math.log(mixed) - against))
            scales[b][t] = 1 - strength + strength * min(1 + bound, max(1 - bound, evidence))
    return scales


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize(("bound", "dtype"), [(0.2, torch.float64), (0.7, torch.float64), (0.7, torch.float32)])
def test_loss_and_gradient_equal_plain_loops(seed, contrast, bound, dtype):
    logits, teachers, rollouts = make_rollouts(seed, dtype=dtype)
    teachers.trust[3] = 0.0
    teachers.weights[1, 0] = 0.0
    student = student_of(logits, teachers, rollouts)
    scales = plain_scales(student, teachers, rollouts, bound=bound, contrast=contrast)
    B, T, V = logits.shape
    expected, slopes = [0.0] * B, torch.zeros(B, T, V, dtype=torch.float64)
    for b in range(B):
        counted = [t for t in range(T) if rollouts.mask[b, t]]
        for t in counted:
            credit = float(rollouts.advantages[b]) * scales[b][t] / len(counted)
            expected[b] -= credit
            slopes[b, t] = credit * logits[b, t].double().softmax(-1)
            slopes[b, t, rollouts.ids[b, t]] -= credit  # d log p_S(y) / d logits = onehot(y) − p_S
    rows, _, gradient = loss_and_gradient(Reweight(contrast=contrast, bound=bound), logits, teachers, rollouts)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(rows.double(), torch.tensor(expected, dtype=torch.float64), **tolerance)
    torch.testing.assert_close(gradient.double(), slopes, **tolerance)
    assert len({scale for row in scales for scale in row}) > 6  # the comparison sees more than the two bounds


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), contrast=st.booleans(), bound=st.floats(0.01, 0.99), shift=st.floats(-50, 50))
def test_the_sign_is_the_verifiers_and_the_size_within_its_bounds(seed, contrast, bound, shift):
    """Whatever the teachers say: in the gradient of the sampled tokens' log-probabilities."""
    logits, teachers, rollouts = make_rollouts(seed)
    teachers = replace(teachers, logps=teachers.logps + shift)
    student = student_of(logits, teachers, rollouts)
    logps = student.logps.detach().requires_grad_()
    rows, metrics = Reweight(contrast=contrast, bound=bound).loss(replace(student, logps=logps), teachers, rollouts)
    rows.sum().backward()
    tokens = rollouts.mask.sum(1, keepdim=True)
    size = -logps.grad * tokens / torch.where(rollouts.outcome == 0, 1.0, rollouts.advantages).unsqueeze(1)
    decided = rollouts.mask & (rollouts.outcome != 0).unsqueeze(1)
    assert (size[decided] >= 1 - bound - 1e-12).all()
    assert (size[decided] <= 1 + bound + 1e-12).all()
    assert not size[~decided].any()
    summed, count = metrics["reweight/scale"]
    assert summed / count == pytest.approx(size[decided].mean().item())


@pytest.mark.parametrize("silent", [{"trust": 0.0}, {"weights": 0.0}, {"scored": False}])
def test_without_a_trusted_teacher_it_is_grpo(silent):
    logits, teachers, rollouts = make_rollouts(1)
    changed = {name: torch.full_like(getattr(teachers, name), value) for name, value in silent.items()}
    rows, metrics, _ = loss_and_gradient(Reweight(), logits, replace(teachers, **changed), rollouts)
    torch.testing.assert_close(rows, -rollouts.advantages)
    assert metrics["reweight/scale"][1] == 0


def test_trust_decides_how_far_the_teachers_are_heard_and_which():
    logits, teachers, rollouts = make_rollouts(2)
    one = torch.zeros_like(teachers.trust)
    one[:, 1] = 1.0
    alone = replace(
        teachers, logps=teachers.logps[:, 1:2], weights=one[:, 1:2], trust=one[:, 1:2], scored=teachers.scored[:, 1:2]
    )
    rows, _, gradient = loss_and_gradient(Reweight(), logits, replace(teachers, trust=one), rollouts)
    student = student_of(logits, teachers, rollouts)
    torch.testing.assert_close(rows, Reweight().loss(student, alone, rollouts)[0])
    _, _, half = loss_and_gradient(Reweight(), logits, replace(teachers, trust=one / 2), rollouts)
    _, _, grpo = loss_and_gradient(Reweight(), logits, replace(teachers, trust=one * 0), rollouts)
    torch.testing.assert_close(half, (gradient + grpo) / 2)
    assert not torch.equal(gradient, grpo)


def test_what_every_skill_prompt_does_to_style_changes_nothing_beside_a_control():
    logits, teachers, rollouts = make_rollouts(3)
    style = torch.randn(rollouts.ids.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    styled = replace(teachers, logps=teachers.logps + style.unsqueeze(1), control_logps=teachers.control_logps + style)
    contrasted = [loss_and_gradient(Reweight(contrast=True), logits, each, rollouts)[2] for each in (teachers, styled)]
    torch.testing.assert_close(*contrasted)
    plain = [loss_and_gradient(Reweight(), logits, each, rollouts)[2] for each in (teachers, styled)]
    assert not torch.allclose(*plain)


def test_what_stands_at_tokens_that_do_not_count_or_in_undecided_rows_is_never_read():
    logits, teachers, rollouts = make_rollouts(4)
    clean, _, slope = loss_and_gradient(Reweight(contrast=True), logits, teachers, rollouts)
    student = student_of(logits, teachers, rollouts)
    logps = torch.where(rollouts.mask, student.logps, torch.nan).requires_grad_()
    dirty = replace(
        teachers,
        logps=torch.where(rollouts.mask.unsqueeze(1), teachers.logps, torch.nan),
        control_logps=torch.where(rollouts.mask, teachers.control_logps, torch.nan),
    )
    undecided = torch.where(rollouts.outcome == 0, torch.nan, rollouts.advantages)
    rows, metrics = Reweight(contrast=True).loss(
        replace(student, logps=logps), dirty, replace(rollouts, advantages=undecided)
    )
    rows.sum().backward()
    torch.testing.assert_close(rows, clean)
    assert logps.grad.isfinite().all()
    assert not logps.grad[~rollouts.mask].any()
    assert not logps.grad[rollouts.outcome == 0].any()
    assert slope.any()
    assert all(summed.isfinite() for summed, _ in metrics.values())


def test_metrics_count_what_they_say():
    logits, teachers, rollouts = make_rollouts(6)
    _, metrics, _ = loss_and_gradient(Reweight(bound=0.3), logits, teachers, rollouts)
    student = student_of(logits, teachers, rollouts)
    loose = plain_scales(student, teachers, rollouts, bound=0.999999, contrast=False)
    decided = [(b, t) for b in range(6) for t in range(5) if rollouts.mask[b, t] and rollouts.outcome[b] != 0]
    strengths = teachers.trust.amax(1).tolist()
    clipped = [abs((loose[b][t] - 1) / strengths[b]) > 0.3 for b, t in decided]
    assert metrics["reweight/clipped_share"] == (sum(clipped), len(decided))
    assert 0 < sum(clipped) < len(decided)
    assert metrics["trust"][0] == pytest.approx(sum(strengths))
    assert metrics["trust"][1] == 6


@pytest.mark.parametrize("bound", [0.0, 1.0, -0.1])
def test_a_bound_that_could_turn_the_sign_is_refused(bound):
    with pytest.raises(ValueError, match="bound must be between 0 and 1"):
        Reweight(bound=bound)


def test_advantages_are_asked_for():
    logits, teachers, rollouts = make_rollouts()
    with pytest.raises(ValueError, match="needs GRPO's advantages"):
        Reweight().loss(student_of(logits, teachers, rollouts), teachers, replace(rollouts, advantages=None))
