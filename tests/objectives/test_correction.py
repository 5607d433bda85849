"""The correction of failures against plain loops, and what it promises: a bounded gradient that does not vanish."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsd.objectives import Correction, correction_loss, guided_logps, selected_logps, trusted_weights
from sgsd.objectives.correction import rest

from .batches import loss_and_gradient, make_rollouts, student_of


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
    """Equation (7) as Python loops over floats and the student's whole vocabulary."""
    B, K, T, M = ids.shape
    rows = []
    for b in range(B):
        total, tokens = 0.0, int(mask[b].sum())
        for k in range(K):
            for t in range(T):
                if outcome[b] == -1 and mask[b, t]:
                    normaliser = math.log(sum(math.exp(float(x)) for x in logits[b, t]))
                    likeliest = ids[b, k, t].tolist()
                    divergence, p_rest = 0.0, 1.0
                    for m in range(M):
                        log_p = float(teacher[b, k, t, m])
                        log_q = float(logits[b, t, likeliest[m]]) - normaliser
                        divergence += math.exp(log_p) * (log_p - log_q)
                        p_rest -= math.exp(log_p)
                    others = [v for v in range(logits.shape[-1]) if v not in likeliest]
                    if others:
                        q_rest = sum(math.exp(float(logits[b, t, v]) - normaliser) for v in others)
                        divergence += p_rest * math.log(p_rest / q_rest)
                    total += float(weights[b, k]) * divergence / tokens
        rows.append(total)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [{}, {"V": 30, "M": 5}, {"V": 30, "M": 5, "spread": 4.0}])
def test_equals_plain_loops(seed, dtype, shape):
    logits, ids, teacher, mask, outcome, weights = make_batch(seed, dtype=dtype, **shape)
    got = correction_loss(of_student(logits, ids), teacher, mask, outcome, weights)
    assert got.dtype == dtype
    expected = reference(logits, ids, teacher, mask, outcome, weights)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    assert expected[0] > 0.01
    assert not got[1:3].any()  # a success, and an undecided one


def test_gradient_is_numerically_right():
    logits, ids, teacher, mask, outcome, weights = make_batch(3, V=9, M=3)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: correction_loss(of_student(x, ids), teacher, mask, outcome, weights), logits
    )


def test_its_gradient_shares_the_teachers_rest_out_as_the_student_has_it():
    logits, ids, teacher, mask, outcome, weights = make_batch(4, V=30, M=5)
    logits.requires_grad_()
    correction_loss(of_student(logits, ids), teacher, mask, outcome, weights).sum().backward()
    q = logits.detach().softmax(-1).unsqueeze(1)
    beyond = torch.ones(*ids.shape[:3], 30, dtype=torch.bool).scatter_(-1, ids, False)
    share = (q * beyond) / (q * beyond).sum(-1, keepdim=True)
    target = (1 - teacher.exp().sum(-1, keepdim=True)) * share
    target = target.scatter(-1, ids, teacher.exp())
    torch.testing.assert_close(target.sum(-1), torch.ones_like(target[..., 0]))
    slope = (weights[..., None, None] * (q - target)).sum(1) * mask.unsqueeze(-1) / mask.sum(-1)[:, None, None]
    torch.testing.assert_close(logits.grad, slope * (outcome == -1)[:, None, None])


def of_one_token(logits, teacher, M):
    """Equation (7) at single tokens: ``[N, V]`` logits of the student, log-probabilities of the teacher."""
    top = teacher.topk(M)
    ids, values = top.indices[:, None, None], top.values[:, None, None]
    N = len(logits)
    everything = torch.ones(N, 1, dtype=torch.bool), -torch.ones(N), torch.ones(N, 1, dtype=logits.dtype)
    return correction_loss(of_student(logits.unsqueeze(1), ids), values, *everything)


@given(
    seed=st.integers(0, 10_000),
    sharp=st.tuples(*[st.sampled_from([0.0, 1e-3, 1.0, 5.0, 30.0])] * 2),
    M=st.integers(1, 11),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=200, deadline=None)
def test_it_is_between_nothing_and_the_divergence_over_the_whole_vocabulary(seed, sharp, M, dtype):
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = torch.randn(2, 20, 11, generator=generator, dtype=dtype)
    logits, teacher = sharp[0] * logits, (sharp[1] * teacher).log_softmax(-1)
    logits.requires_grad_()
    loss = of_one_token(logits, teacher, M)
    loss.sum().backward()
    whole = (teacher.exp() * (teacher - logits.log_softmax(-1))).sum(-1)
    rounding = 1000 * torch.finfo(dtype).eps
    loosest = 4 * torch.finfo(dtype).eps ** 0.5  # where a student's rest is all but lost beside 1
    assert (loss >= -rounding).all()
    assert (loss <= whole + loosest * (1 + whole)).all()
    assert logits.grad.isfinite().all()
    assert (logits.grad.abs() <= 1 + loosest).all()
    if M == 11:
        torch.testing.assert_close(loss, whole, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_truncated_sum_would_be_negative_where_this_is_not(dtype):
    """The student gives the teacher's likeliest tokens more than the teacher does, and is drawn back."""
    teacher = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=dtype).log()
    logits = torch.tensor([[0.6, 0.36, 0.03, 0.01]], dtype=dtype).log().requires_grad_()
    truncated = (teacher.exp() * (teacher - logits.log_softmax(-1)))[:, :2].sum()
    assert truncated < -0.1
    of_one_token(logits, teacher, 2).sum().backward()
    assert of_one_token(logits, teacher, 2).item() == pytest.approx(
        0.5 * math.log(0.5 / 0.6) + 0.3 * math.log(0.3 / 0.36) + 0.2 * math.log(0.2 / 0.04), rel=1e-5
    )
    torch.testing.assert_close(logits.grad[0, :2], torch.tensor([0.1, 0.06], dtype=dtype))


def test_a_students_rest_below_rounding_leaves_the_other_gradients_sound():
    """Its rest is 1e-9, the teacher's 0.1: the logarithm goes on as a tangent; only the pull to the rest is lost."""
    teacher = torch.tensor([[0.6, 0.3, 0.1]]).log()
    logits = torch.tensor([[0.0, 0.0, -20.0]], requires_grad=True)
    loss = of_one_token(logits, teacher, 2)
    loss.sum().backward()
    torch.testing.assert_close(logits.grad[0], torch.tensor([-0.15, 0.15, 0.0]), atol=1e-3, rtol=0)
    exact = 0.6 * math.log(1.2) + 0.3 * math.log(0.6) + 0.1 * (math.log(0.2) + 20)
    assert 0.5 < loss.item() < exact
    assert of_one_token(logits.detach().double() * 0.8, teacher.double(), 2).item() == pytest.approx(exact - 0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tangent_goes_on_where_the_logarithm_ends(dtype):
    """The pull to the rest is p_rest down to a student's rest of p_rest · √ε, and below it in proportion."""
    p_rest = 0.25
    end = p_rest * torch.finfo(dtype).eps ** 0.5
    sums, pulls = [], []
    for share in (1.1, 0.9, 0.5):
        logits = torch.tensor([[1 - share * end, share * end]], dtype=torch.float64).log().to(dtype).requires_grad_()
        loss = of_one_token(logits, torch.tensor([[1 - p_rest, p_rest]], dtype=dtype).log(), 1)
        loss.sum().backward()
        sums.append(loss.item())
        pulls.append(-logits.grad[0, 1].item())
    assert pulls == pytest.approx([p_rest, 0.9 * p_rest, 0.5 * p_rest], rel=2e-3)
    assert sums[1] - sums[0] == pytest.approx(p_rest * (math.log(1.1) + 0.1), rel=2e-3)
    assert sums[2] - sums[1] == pytest.approx(p_rest * 0.4, rel=2e-3)


@pytest.mark.parametrize("sharp", [1.0, 5.0, 15.0])
def test_in_float32_too_nothing_is_made_of_a_rest_that_is_a_rounding_error(sharp):
    generator = torch.Generator().manual_seed(0)
    logits, teacher = sharp * torch.randn(2, 500, 11, generator=generator)
    teacher, ours, theirs = teacher.log_softmax(-1), logits.clone().requires_grad_(), logits.clone().requires_grad_()
    of_one_token(ours, teacher, 11).sum().backward()
    (teacher.exp() * (teacher - theirs.log_softmax(-1))).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=2e-6)


@given(seed=st.integers(0, 10_000), power=st.integers(-12, -1))
@settings(max_examples=60, deadline=None)
def test_the_rest_keeps_its_digits_however_small_it_is(seed, power):
    kept = torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    small = 10.0**power
    logps = (kept / kept.sum() * (1 - small)).log()
    assert rest(logps).item() == pytest.approx(small, rel=1e-3)
    assert rest(torch.tensor([-40.0, -41.0])) == 1


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
    mask[3] = False  # a row without counted tokens
    correction_loss(of_student(logits, ids), garbled, mask, outcome, weights).sum().backward()
    tokens = mask.sum(-1).clamp(min=1)[:, None, None]
    assert bool((logits.grad.abs() <= (1 + 1e-7) / tokens.double()).all())
    assert not logits.grad[~mask].any()
    assert not logits.grad[1:3].any()


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


# ---- as an objective


def test_the_objective_is_the_function_on_typed_tensors():
    logits, teachers, rollouts = make_rollouts(1)
    student = student_of(logits, teachers, rollouts)
    weights = trusted_weights(teachers.weights, teachers.trust)
    inputs = student.top_logps, teachers.top_logps, rollouts.mask, rollouts.outcome, weights
    rows, metrics, _ = loss_and_gradient(Correction(), logits, teachers, rollouts)
    torch.testing.assert_close(rows, correction_loss(*inputs))
    assert (rows > 0).tolist() == (rollouts.outcome < 0).tolist()
    failed = rollouts.outcome < 0
    assert metrics["correction"] == (rows.sum(), failed.sum())
    torch.testing.assert_close(metrics["trust"][0], teachers.trust[failed].amax(1).sum())
    tokens = (failed.unsqueeze(1) & rollouts.mask)[:, None].expand(-1, 3, -1)
    beyond = (1 - teachers.top_logps.exp().sum(-1))[tokens]
    torch.testing.assert_close(metrics["teacher_rest"], (beyond.sum(), torch.tensor(len(beyond)).double()))


def test_the_guided_objective_aims_at_the_guided_teachers():
    logits, teachers, rollouts = make_rollouts(2)
    rows, metrics, _ = loss_and_gradient(Correction(guidance=2.0, clip=0.5), logits, teachers, rollouts)
    guided = guided_logps(teachers.top_logps, teachers.control_top_logps, guidance=2.0, clip=0.5)
    aimed, unguided, _ = loss_and_gradient(Correction(), logits, replace(teachers, top_logps=guided), rollouts)
    torch.testing.assert_close(rows, aimed)
    torch.testing.assert_close(metrics["teacher_rest"], unguided["teacher_rest"])
    assert not torch.allclose(rows, loss_and_gradient(Correction(), logits, teachers, rollouts)[0])
