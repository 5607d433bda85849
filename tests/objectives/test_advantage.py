"""The stabilised form against plain loops, and what it promises: a gradient of a divergence, with a minimum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsd.objectives import teacher_advantage, trusted_weights

from .test_sgsd import make_batch


def reference(student, teacher, mask, alpha, trust, clip):
    """Equation (7) as Python loops over floats."""
    B, K, T = teacher.shape
    result = [[0.0] * T for _ in range(B)]
    for b in range(B):
        shares = [float(alpha[b, k]) * float(trust[b, k]) for k in range(K)]
        highest = max((float(trust[b, k]) for k in range(K) if alpha[b, k] > 0), default=0.0)
        for k in range(K):
            weight = highest * shares[k] / sum(shares) if sum(shares) else 0.0
            for t in range(T):
                if mask[b, t]:
                    gap = float(teacher[b, k, t]) - float(student[b, t])
                    result[b][t] += weight * max(-clip, min(clip, gap))
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_plain_loops(seed, dtype):
    student, teacher, mask, _, alpha = make_batch(seed, dtype=dtype, scale=3.0)
    generator = torch.Generator().manual_seed(seed)
    trust = torch.rand(alpha.shape, generator=generator, dtype=dtype).round(decimals=1)
    alpha[0, 2:] = 0.0  # padding
    trust[1] = 0.0  # nobody is trusted
    got = teacher_advantage(student, teacher, mask, trusted_weights(alpha, trust), clip=2.0)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), reference(student, teacher, mask, alpha, trust, 2.0), rtol=1e-5, atol=1e-6)
    assert not got[1].any()


@given(seed=st.integers(0, 2**31), spread=st.sampled_from([1e-3, 1.0, 30.0]))
@settings(max_examples=60, deadline=None)
def test_bounded_by_trust_and_clip_and_blind_to_what_does_not_count(seed, spread):
    student, teacher, mask, _, alpha = make_batch(seed, scale=spread)
    trust = torch.rand(alpha.shape, generator=torch.Generator().manual_seed(seed), dtype=alpha.dtype)
    weights = trusted_weights(alpha, trust)
    torch.testing.assert_close(weights.sum(1), trust.amax(1))
    got = teacher_advantage(student, teacher, mask, weights, clip=1.5)
    assert bool((got.abs() <= 1.5 * trust.amax(1, keepdim=True) + 1e-9).all())
    garbled_student, garbled_teacher = student.clone(), teacher.clone()
    garbled_student[~mask] = torch.nan
    garbled_teacher.masked_fill_(~mask.unsqueeze(1), torch.inf)
    assert torch.equal(got, teacher_advantage(garbled_student, garbled_teacher, mask, weights, clip=1.5))


def test_a_teacher_more_changes_nothing_if_nobody_trusts_it():
    student, teacher, mask, _, alpha = make_batch(3)
    trust = torch.tensor([[0.9, 0.0, 0.0, 0.0]] * 3, dtype=alpha.dtype)
    alone = teacher_advantage(student, teacher[:, :1], mask, trusted_weights(alpha[:, :1], trust[:, :1]))
    torch.testing.assert_close(alone, teacher_advantage(student, teacher, mask, trusted_weights(alpha, trust)))


def test_no_gradient_flows_through_it():
    student, teacher, mask, _, alpha = make_batch(1)
    student.requires_grad_()
    teacher.requires_grad_()
    assert not teacher_advantage(student, teacher, mask, alpha).requires_grad


def test_its_expected_policy_gradient_is_that_of_the_divergence_from_the_teacher():
    """Σ_v p(v) A(v) ∇log p(v) over a whole vocabulary, against autograd of −KL(p_S ‖ p_T)."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    divergence = torch.nn.functional.kl_div(
        teacher.log_softmax(0), logits.log_softmax(0), log_target=True, reduction="sum"
    )
    (expected,) = torch.autograd.grad(-divergence, logits)
    log_p = logits.log_softmax(0)
    # Every token of the vocabulary as a rollout of length 1.
    advantage = teacher_advantage(
        log_p.unsqueeze(1),
        teacher.log_softmax(0)[:, None, None],
        torch.ones(9, 1, dtype=torch.bool),
        torch.ones(9, 1, dtype=torch.float64),
        clip=50.0,
    )
    (got,) = torch.autograd.grad((log_p.exp().detach() * advantage.squeeze(1) * log_p).sum(), logits)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "changes",
    [{"mask": torch.ones(3, 7)}, {"clip": 0.0}, {"weights": torch.ones(3, 2)}, {"student_logps": torch.zeros(3, 6)}],
)
def test_refuses_what_does_not_fit(changes):
    student, teacher, mask, _, alpha = make_batch(0)
    arguments = {"student_logps": student, "teacher_logps": teacher, "mask": mask, "weights": alpha} | changes
    with pytest.raises(ValueError, match="must be"):
        teacher_advantage(**arguments)
