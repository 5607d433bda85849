from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsd.objectives import logprobs, selected_logps


@pytest.mark.parametrize("tile", [1, 3, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_log_softmax_in_float64_whatever_the_tile(monkeypatch, tile, temperature):
    monkeypatch.setitem(logprobs._UPCAST_LOGITS, "cpu", tile * 11)
    logits = torch.randn(2, 5, 11, dtype=torch.float64)
    ids = torch.randint(11, (2, 5))
    logps, entropy = selected_logps(logits, ids, temperature=temperature, with_entropy=True)
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    torch.testing.assert_close(logps, distribution.log_prob(ids))
    torch.testing.assert_close(entropy, distribution.entropy())


def test_gradient_is_numerically_right(monkeypatch):
    monkeypatch.setitem(logprobs._UPCAST_LOGITS, "cpu", 2 * 7)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(7, (5,))
    torch.autograd.gradcheck(lambda x: selected_logps(x, ids, temperature=0.8)[0], logits)


def test_rows_upcast_together_change_no_bit(monkeypatch):
    ids, weights = torch.randint(301, (9,)), torch.randn(9)
    found = []
    for rows in (1, 2, 9):
        monkeypatch.setitem(logprobs._UPCAST_LOGITS, "cpu", rows * 301 + 300)
        logits = torch.randn(9, 301, generator=torch.Generator().manual_seed(0)).requires_grad_()
        logps, entropy = selected_logps(logits, ids, with_entropy=True)
        (logps * weights).sum().backward()
        found.append((logps, entropy, logits.grad))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert torch.equal(mine, theirs)


def test_low_precision_logits_give_float32_logps_and_gradients_of_their_own_type():
    logits = torch.randn(3, 50).bfloat16().requires_grad_()
    ids = torch.randint(50, (3,))
    logps, _ = selected_logps(logits, ids)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, logits.float().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1))
    logps.sum().backward()
    assert logits.grad.dtype == torch.bfloat16


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(0, 1e4))
def test_stays_finite_and_not_positive_on_extreme_logits(seed, scale):
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed)) * scale
    logps, entropy = selected_logps(logits, torch.zeros(4, dtype=torch.long), with_entropy=True)
    assert torch.isfinite(logps).all()
    assert (logps <= 0).all()
    assert (entropy >= -1e-3 * max(1.0, scale)).all()


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="shape"):
        selected_logps(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="temperature"):
        selected_logps(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), temperature=0.0)
