"""The correction of failures against plain loops, and what it promises: a bounded gradient that does not vanish."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsd.objectives import correction_loss, guided_logps, selected_logps, trusted_weights


def make_batch(seed, *, B=4, K=3, T=5, V=7, M=4, dtype=torch.float64, spread=2.0):
    """Student's logits, teachers' top tokens and their log-probabilities, mask, outcome, weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(B, T, V, generator=generator, dtype=dtype)
    teachers = (spread * torch.randn(B, K, T, V, generator=generator, dtype=dtype)).log_softmax(-1)
    top = teachers.topk(M)
    mask = torch.rand(B, T, generator=generator) < 0.7
    outcome = torch.tensor([-1, 1, 0, -1])[:B]
    weights = torch.rand(B, K, generator=generator, dtype=dtype)
    weights[0, 1] = 0.0
    return logits, top.indices, top.values, mask, outcome, weights


def of_student(logits, ids):
    """``[B, K, T, M]`` log-probabilities of the teachers' top tokens."""
    _, K, _, M = ids.shape
    logps, _ = selected_logps(logits, ids.transpose(1, 2).flatten(2))
    return logps.unflatten(-1, (K, M)).transpose(1, 2)


def reference(logits, ids, teacher, mask, outcome, weights):
    """Equation (8) as Python loops over floats."""
    B, K, T, M = ids.shape
    rows = []
    for b in range(B):
        total, tokens = 0.0, int(mask[b].sum())
        for k in range(K):
            for t in range(T):
                if outcome[b] == -1 and mask[b, t]:
                    normaliser = math.log(sum(math.exp(float(x)) for x in logits[b, t]))
                    for m in range(M):
                        log_p = float(teacher[b, k, t, m])
                        log_q = float(logits[b, t, ids[b, k, t, m]]) - normaliser
                        total += float(weights[b, k]) * math.exp(log_p) * (log_p - log_q) / tokens
        rows.append(total)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_plain_loops(seed, dtype):
    logits, ids, teacher, mask, outcome, weights = make_batch(seed, dtype=dtype)
    got = correction_loss(of_student(logits, ids), teacher, mask, outcome, weights)
    assert got.dtype == dtype
    expected = reference(logits, ids, teacher, mask, outcome, weights)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    assert expected[0] > 0.01
    assert not got[1:3].any()  # a success, and an undecided one


def test_on_the_whole_vocabulary_it_is_the_divergence_and_its_gradient_the_difference_of_distributions():
    logits, ids, teacher, mask, outcome, weights = make_batch(1, M=7)
    logits.requires_grad_()
    loss = correction_loss(of_student(logits, ids), teacher, mask, outcome, weights)
    loss.sum().backward()
    p = torch.zeros(*ids.shape[:3], 7, dtype=teacher.dtype).scatter_(-1, ids, teacher.exp())
    q = logits.detach().softmax(-1)
    divergence = (p * (p.log() - q.log().unsqueeze(1))).sum(-1) * mask.unsqueeze(1)
    whole = (weights * divergence.sum(-1)).sum(-1) / mask.sum(-1) * (outcome == -1)
    torch.testing.assert_close(loss.detach(), whole)
    slope = (weights[..., None, None] * (q.unsqueeze(1) - p)).sum(1) * mask.unsqueeze(-1) / mask.sum(-1)[:, None, None]
    torch.testing.assert_close(logits.grad, slope * (outcome == -1)[:, None, None])


def test_a_student_that_is_sure_of_something_else_still_learns():
    """Where the sampled token's gap is extreme the published gate is mute; this gradient is nearly 1."""
    logits = torch.tensor([[[20.0, 0.0, 0.0]]], requires_grad=True)
    ids = torch.tensor([[[[1, 2]]]])
    teacher = torch.tensor([[[[0.9, 0.05]]]]).log()
    correction_loss(
        of_student(logits, ids), teacher, torch.tensor([[True]]), torch.tensor([-1]), torch.ones(1, 1)
    ).sum().backward()
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor([0.95, -0.9, -0.05]), atol=1e-6, rtol=0)


@given(seed=st.integers(0, 2**31), spread=st.sampled_from([1e-3, 1.0, 30.0]))
@settings(max_examples=60, deadline=None)
def test_gradients_are_bounded_and_only_failures_and_counted_tokens_have_one(seed, spread):
    logits, ids, teacher, mask, outcome, weights = make_batch(seed, spread=spread)
    weights = weights / weights.sum(1, keepdim=True)
    logits.requires_grad_()
    garbled = torch.where(mask[:, None, :, None], teacher, torch.nan)
    garbled[0, 1] = torch.nan  # a teacher of weight 0
    correction_loss(of_student(logits, ids), garbled, mask, outcome, weights).sum().backward()
    bound = 1 / mask.sum(-1).clamp(min=1)[:, None, None].to(logits.dtype)
    rounding = 64 * torch.finfo(logits.dtype).eps  # of sums over K · M + V terms
    assert bool((logits.grad.abs() <= bound * (1 + rounding)).all())
    assert not logits.grad[~mask].any()
    assert not logits.grad[1:3].any()


def test_no_gradient_reaches_teachers_or_weights():
    logits, ids, teacher, mask, outcome, weights = make_batch(2)
    teacher.requires_grad_()
    weights.requires_grad_()
    assert not correction_loss(of_student(logits, ids), teacher, mask, outcome, weights).requires_grad


def test_rows_without_counted_tokens_stay_finite():
    logits, ids, teacher, mask, outcome, weights = make_batch(2)
    mask[0] = False
    logits.requires_grad_()
    loss = correction_loss(of_student(logits, ids), teacher, mask, outcome, weights)
    loss.sum().backward()
    assert loss[0] == 0
    assert bool(logits.grad.isfinite().all())


@given(seed=st.integers(0, 2**31), untrusted=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_weights_equal_plain_loops_and_sum_to_the_highest_trust_whoever_else_is_there(seed, untrusted):
    generator = torch.Generator().manual_seed(seed)
    alpha, trust = torch.rand(2, 1, 4, generator=generator, dtype=torch.float64)
    alpha[0, 3] = 0.0  # padding
    got = trusted_weights(alpha, trust)
    shares = [float(a) * float(t) for a, t in zip(alpha[0], trust[0], strict=True)]
    highest = max(trust[0, :3].tolist())
    torch.testing.assert_close(got[0], torch.tensor([highest * share / sum(shares) for share in shares]).double())
    torch.testing.assert_close(got.sum(1), trust[:, :3].amax(1))
    more = torch.cat([alpha, torch.ones(1, untrusted, dtype=torch.float64)], dim=1)
    blind = torch.cat([trust, torch.zeros(1, untrusted, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(trusted_weights(more, blind)[:, :4], got)
    assert not trusted_weights(alpha, torch.zeros_like(trust)).any()


# ---- guidance


def two_teachers(seed, *, V=9, M=5, spread=2.0):
    """Log-probabilities ``[2, 3, M]`` of a teacher's likeliest tokens, and a control's of the same."""
    generator = torch.Generator().manual_seed(seed)
    teacher, control = (spread * torch.randn(2, 2, 3, V, generator=generator, dtype=torch.float64)).log_softmax(-1)
    top = teacher.topk(M)
    return top.values, control.gather(-1, top.indices)


def plain_guided(teacher, control, guidance, clip):
    """Equation (7′) at one position, in probabilities."""
    raised = []
    for log_p, log_0 in zip(teacher, control, strict=True):
        p = math.exp(log_p)
        ratio = min(math.exp(clip), max(math.exp(-clip), p / math.exp(log_0)))
        raised.append(p * ratio**guidance if p >= 0.1 * math.exp(max(teacher)) * (1 - 1e-12) else p)
    total = sum(map(math.exp, teacher))
    return [total * value / sum(raised) for value in raised]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("guidance", "clip"), [(2.0, 3.0), (0.7, 0.3), (4.0, 0.5)])
def test_guidance_equals_plain_loops(seed, guidance, clip):
    teacher, control = two_teachers(seed)
    got = guided_logps(teacher, control, guidance=guidance, clip=clip)
    for place in ((i, j) for i in range(2) for j in range(3)):
        expected = plain_guided(teacher[place].tolist(), control[place].tolist(), guidance, clip)
        assert got[place].exp().tolist() == pytest.approx(expected, rel=1e-9)
    single = guided_logps(teacher.float(), control.float(), guidance=guidance, clip=clip)
    torch.testing.assert_close(single, got.float(), rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 2**31), guidance=st.floats(0.1, 10))
@settings(max_examples=60, deadline=None)
def test_guidance_moves_probability_to_what_sets_the_teacher_apart_and_to_nothing_else(seed, guidance):
    teacher, control = two_teachers(seed)
    guided = guided_logps(teacher, control, guidance=guidance, clip=3.0)
    torch.testing.assert_close(guided.logsumexp(-1), teacher.logsumexp(-1))  # the tokens' total stays
    ratio = (teacher - control).clamp(-3, 3)
    plausible = teacher >= teacher[..., :1] - math.log(10) + 1e-12
    odds = guided - teacher  # up to one number a position, γ times the ratio, or 0
    moved = torch.where(plausible, guidance * ratio, 0.0)
    torch.testing.assert_close(odds - odds[..., :1], moved - moved[..., :1], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(guided_logps(teacher, control, guidance=0.0, clip=3.0), teacher)
    torch.testing.assert_close(guided_logps(teacher, teacher, guidance=guidance, clip=3.0), teacher)


def test_a_token_that_the_teacher_finds_implausible_is_not_lifted_however_rarely_the_control_says_it():
    teacher = torch.tensor([0.6, 0.3, 0.05]).log()
    control = torch.tensor([0.6, 0.3, 1e-6]).log()
    guided = guided_logps(teacher, control, guidance=4.0, clip=10.0).exp()
    torch.testing.assert_close(guided, teacher.exp())
    plausible = guided_logps(torch.tensor([0.6, 0.3, 0.07]).log(), control, guidance=4.0, clip=10.0).exp()
    assert plausible[2] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t, m, o, w: (s, t[..., :1], m, o, w), "must be"),
        (lambda s, t, m, o, w: (s, t, m.int(), o, w), "bool"),
        (lambda s, t, m, o, w: (s, t, m, o[:1], w), "must be"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    logits, ids, teacher, mask, outcome, weights = make_batch(2)
    with pytest.raises(ValueError, match=message):
        correction_loss(*change(of_student(logits, ids), teacher, mask, outcome, weights))
