from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from sgsd.objectives import DIVERGENCES, divergence_metrics, divergences, means, opsd_loss, token_divergence

KINDS = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.2)]


def softmax(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    exponentials = [math.exp((logit - top) / temperature) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def plain_divergence(
    student: list[float], teacher: list[float], kind: str, beta: float, clip: float | None, temperature: float
) -> float:
    """The definition, entry by entry, over floats."""
    q, p = softmax(student, temperature), softmax(teacher, temperature)
    total = 0.0
    for q_v, p_v in zip(q, p, strict=True):
        m_v = beta * p_v + (1 - beta) * q_v
        summand = {
            "forward_kl": p_v * math.log(p_v / q_v),
            "reverse_kl": q_v * math.log(q_v / p_v),
            "jsd": beta * p_v * math.log(p_v / m_v) + (1 - beta) * q_v * math.log(q_v / m_v),
        }[kind]
        total += summand if clip is None else min(summand, clip)
    return total


def logits_of(*shape: int, seed: int = 0, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("tile", [1, 3, 7, 1000])
@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_definition_in_plain_loops_whatever_the_tile(monkeypatch, tile, kind, beta, clip, temperature):
    monkeypatch.setattr(divergences, "_TILE_ELEMENTS", 11 * tile)
    student, teacher = logits_of(3, 5, 11), logits_of(3, 5, 11, seed=1)
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(2)) < 0.7
    result = token_divergence(
        student, teacher, mask, kind=kind, jsd_beta=beta, clip=clip, temperature=temperature
    ).divergence
    for b in range(3):
        for t in range(5):
            expected = 0.0
            if mask[b, t]:
                expected = plain_divergence(
                    student[b, t].tolist(), teacher[b, t].tolist(), kind, beta, clip, temperature
                )
            assert result[b, t].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_gradient_is_numerically_right(monkeypatch, kind, beta, clip):
    monkeypatch.setattr(divergences, "_TILE_ELEMENTS", 3 * 7)
    student, teacher = logits_of(2, 4, 7).requires_grad_(), logits_of(2, 4, 7, seed=1)
    mask = torch.tensor([[True, True, False, True], [False, True, True, True]])
    assert torch.autograd.gradcheck(
        lambda x: token_divergence(x, teacher, mask, kind=kind, jsd_beta=beta, clip=clip, temperature=0.8).divergence,
        student,
    )


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_agrees_with_pytorchs_own_kl_and_its_autograd_in_float32(kind):
    student, teacher = logits_of(2, 4, 50, dtype=torch.float32), logits_of(2, 4, 50, seed=1, dtype=torch.float32)
    mask = torch.ones(2, 4, dtype=torch.bool)
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    token_divergence(ours, teacher, mask, kind=kind).divergence.sum().backward()
    log_q, log_p = theirs.log_softmax(-1), teacher.log_softmax(-1)
    kl = lambda target, source: torch.nn.functional.kl_div(source, target, log_target=True, reduction="none")  # noqa: E731
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    {
        "forward_kl": lambda: kl(log_p, log_q),
        "reverse_kl": lambda: kl(log_q, log_p),
        "jsd": lambda: (kl(log_p, log_m) + kl(log_q, log_m)) / 2,
    }[kind]().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(KINDS), st.floats(0, 300))
def test_never_negative_and_finite_with_its_gradient_on_extreme_logits(seed, kind, scale):
    student = logits_of(2, 3, 9, seed=seed, scale=scale, dtype=torch.float32).requires_grad_()
    teacher = logits_of(2, 3, 9, seed=seed + 1, scale=scale, dtype=torch.float32)
    mask = torch.ones(2, 3, dtype=torch.bool)
    divergence = token_divergence(student, teacher, mask, kind=kind[0], jsd_beta=kind[1]).divergence
    assert torch.isfinite(divergence).all()
    assert (divergence >= -1e-5).all()
    if kind[0] == "jsd":  # bounded by the entropy of the mixing weights
        beta = kind[1]
        assert (divergence <= -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta)) + 1e-5).all()
    divergence.sum().backward()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(("kind", "beta"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_equal_distributions_have_no_divergence_and_no_gradient(kind, beta, dtype):
    student = logits_of(2, 3, 40, dtype=torch.float32).to(dtype).requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    divergence = token_divergence(student, student.detach().clone(), mask, kind=kind, jsd_beta=beta).divergence
    assert (divergence == 0).all()
    divergence.sum().backward()
    assert student.grad.abs().max() < 1e-7


def test_the_two_directions_are_each_others_mirror():
    a, b, mask = logits_of(2, 3, 9), logits_of(2, 3, 9, seed=1), torch.ones(2, 3, dtype=torch.bool)
    value = lambda student, teacher, **options: token_divergence(student, teacher, mask, **options).divergence  # noqa: E731
    torch.testing.assert_close(value(a, b, kind="forward_kl"), value(b, a, kind="reverse_kl"))
    torch.testing.assert_close(value(a, b, kind="jsd", jsd_beta=0.3), value(b, a, kind="jsd", jsd_beta=0.7))


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_what_stands_at_masked_positions_is_never_read(kind, beta):
    student, teacher = logits_of(2, 4, 7), logits_of(2, 4, 7, seed=1)
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    clean, dirty = student.clone().requires_grad_(), student.clone()
    dirty[~mask] = torch.nan
    dirty.requires_grad_()
    poisoned = torch.where(mask.unsqueeze(-1), teacher, torch.inf)
    losses = [opsd_loss(x, y, mask, kind=kind, jsd_beta=beta).loss for x, y in ((clean, teacher), (dirty, poisoned))]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    assert torch.equal(clean.grad, dirty.grad)
    assert (clean.grad[~mask] == 0).all()
    assert (clean.grad[mask].abs().amax(-1) > 0).all()


def test_no_gradient_reaches_the_teacher():
    student, teacher = logits_of(1, 2, 5).requires_grad_(), logits_of(1, 2, 5, seed=1).requires_grad_()
    opsd_loss(student, teacher, torch.ones(1, 2, dtype=torch.bool), kind="jsd").loss.backward()
    assert teacher.grad is None


def test_entropies_are_those_of_the_two_distributions():
    student, teacher = logits_of(2, 3, 9), logits_of(2, 3, 9, seed=1)
    result = token_divergence(student, teacher, torch.ones(2, 3, dtype=torch.bool), kind="jsd", temperature=0.6)
    for entropy, logits in ((result.student_entropy, student), (result.teacher_entropy, teacher)):
        torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits / 0.6).entropy())
        assert not entropy.requires_grad


def test_the_loss_is_a_mean_over_rows_of_means_over_tokens():
    student, teacher = logits_of(3, 4, 7), logits_of(3, 4, 7, seed=1)
    mask = torch.tensor([[True, True, True, True], [True, False, False, False], [False, False, False, False]])
    result = opsd_loss(student, teacher, mask, kind="forward_kl")
    tokens = token_divergence(student, teacher, mask, kind="forward_kl").divergence
    assert result.row_loss[0].item() == pytest.approx(tokens[0].mean().item())
    assert result.row_loss[1].item() == pytest.approx(tokens[1, 0].item())
    assert result.row_loss[2].item() == 0
    assert result.loss.item() == pytest.approx(result.row_loss.sum().item() / 3)
    assert result.metrics["divergence"].item() == pytest.approx(tokens.sum().item() / 5)


def test_rows_taken_one_by_one_have_the_gradient_of_all_together():
    student, teacher, mask = logits_of(4, 3, 7), logits_of(4, 3, 7, seed=1), torch.rand(4, 3) < 0.7
    whole = student.clone().requires_grad_()
    opsd_loss(whole, teacher, mask, kind="jsd").loss.backward()
    for b in range(4):
        row = student[b : b + 1].clone().requires_grad_()
        (opsd_loss(row, teacher[b : b + 1], mask[b : b + 1], kind="jsd").loss / 4).backward()
        torch.testing.assert_close(row.grad[0], whole.grad[b])


def test_low_precision_logits_give_float32_divergences_and_gradients_of_their_own_type():
    student = logits_of(2, 3, 60, dtype=torch.float32).bfloat16().requires_grad_()
    teacher = logits_of(2, 3, 60, seed=1, dtype=torch.float32).bfloat16()
    mask = torch.ones(2, 3, dtype=torch.bool)
    divergence = token_divergence(student, teacher, mask, kind="forward_kl").divergence
    assert divergence.dtype == torch.float32
    exact = token_divergence(student.detach().double(), teacher.double(), mask, kind="forward_kl").divergence
    torch.testing.assert_close(divergence.double(), exact, rtol=1e-5, atol=1e-6)
    divergence.sum().backward()
    assert student.grad.dtype == torch.bfloat16


def test_no_tensor_of_the_logits_size_is_made_but_the_gradient_in_their_type(monkeypatch):
    """Every allocation of a forward and backward over 16-bit logits, seen by PyTorch's profiler."""
    B, T, V = 4, 16, 5000
    monkeypatch.setattr(divergences, "_TILE_ELEMENTS", 8 * V)
    student = torch.randn(B, T, V).bfloat16().requires_grad_()
    teacher, mask = torch.randn(B, T, V).bfloat16(), torch.ones(B, T, dtype=torch.bool)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        opsd_loss(student, teacher, mask, kind="jsd").loss.backward()
    largest = sorted(event.nbytes() for event in profile.profiler.kineto_results.events() if event.nbytes() > 0)
    assert largest[-2:] == [B * T * V * 2] * 2  # the gradient, unscaled and scaled, in the logits' own type
    assert largest[-3] <= 8 * V * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "kl"}, "kind"),
        ({"jsd_beta": 0.0}, "jsd_beta"),
        ({"jsd_beta": 1.0}, "jsd_beta"),
        ({"clip": 0.0}, "clip"),
        ({"temperature": 0.0}, "temperature"),
        ({"teacher_logits": torch.zeros(1, 2, 4)}, "one shape"),
        ({"mask": torch.ones(2, 1, dtype=torch.bool)}, "mask"),
        ({"mask": torch.ones(1, 2)}, "mask"),
    ],
)
def test_misfits_are_refused(change, message):
    arguments = {
        "student_logits": torch.zeros(1, 2, 3),
        "teacher_logits": torch.zeros(1, 2, 3),
        "mask": torch.ones(1, 2, dtype=torch.bool),
        "kind": "jsd",
    }
    with pytest.raises(ValueError, match=message):
        token_divergence(**arguments | change)


@pytest.mark.parametrize(("kind", "beta"), KINDS)
def test_tiles_of_hidden_states_under_checkpointing_have_the_values_and_gradients_of_whole_logits(kind, beta):
    """As it is made where whole logits would not fit: a tile's logits live during its own forward and backward."""
    head, hidden = logits_of(13, 5, scale=0.7).requires_grad_(), logits_of(2, 7, 5, seed=1).requires_grad_()
    of_teacher = logits_of(2, 7, 5, seed=2)
    mask = torch.rand(2, 7, generator=torch.Generator().manual_seed(3)) < 0.7
    weights = torch.rand(2, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    whole = token_divergence(hidden @ head.T, of_teacher @ head.T, mask, kind=kind, jsd_beta=beta)
    (weights * whole.divergence).sum().backward()
    expected = head.grad.clone(), hidden.grad.clone()
    head.grad = hidden.grad = None

    def of_tile(rows, of_teacher):
        every = torch.ones(1, len(rows), dtype=torch.bool)
        with torch.no_grad():
            teacher = (of_teacher @ head.T).unsqueeze(0)
        result = token_divergence((rows @ head.T).unsqueeze(0), teacher, every, kind=kind, jsd_beta=beta)
        return result.divergence[0], result.student_entropy[0], result.teacher_entropy[0]

    parts = [
        checkpoint(of_tile, rows, teacher_rows, use_reentrant=False)
        for rows, teacher_rows in zip(hidden[mask].split(3), of_teacher[mask].split(3), strict=True)
    ]
    assert len(parts) > 2
    tiled = divergences.Divergence(
        *(hidden.new_zeros(2, 7).masked_scatter(mask, torch.cat(each)) for each in zip(*parts, strict=True))
    )
    (weights * tiled.divergence).sum().backward()
    torch.testing.assert_close((head.grad, hidden.grad), expected)
    for name in ("divergence", "student_entropy", "teacher_entropy"):
        torch.testing.assert_close(getattr(tiled, name), getattr(whole, name))
    torch.testing.assert_close(divergence_metrics(tiled, mask), divergence_metrics(whole, mask))


def test_metrics_are_sums_over_counted_tokens_and_their_number():
    student, teacher = logits_of(3, 4, 7), logits_of(3, 4, 7, seed=1)
    mask = torch.tensor([[True, True, True, True], [True, False, False, False], [False, False, False, False]])
    result = token_divergence(student.requires_grad_(), teacher, mask, kind="jsd")
    metrics = divergence_metrics(result, mask)
    assert [count.item() for _, count in metrics.values()] == [5, 5, 5]
    assert metrics["divergence"][0].item() == pytest.approx(result.divergence.sum().item())
    assert not metrics["divergence"][0].requires_grad
    assert means(metrics) == opsd_loss(student, teacher, mask, kind="jsd").metrics
