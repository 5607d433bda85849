from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from sgsd.objectives import DIVERGENCES, logprobs, token_divergence

KINDS = [("forward_kl", 0.5), ("reverse_kl", 0.5), ("jsd", 0.5), ("jsd", 0.2)]
each_kind = pytest.mark.parametrize(("kind", "beta"), KINDS)


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


def tiles_of(rows: int, vocabulary: int, monkeypatch) -> None:
    monkeypatch.setitem(logprobs._UPCAST_LOGITS, "cpu", rows * vocabulary)


@pytest.mark.parametrize("tile", [1, 3, 7, 1000])
@each_kind
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_the_definition_in_plain_loops_whatever_the_tile(monkeypatch, tile, kind, beta, clip, temperature):
    tiles_of(tile, 11, monkeypatch)
    student, teacher = logits_of(15, 11), logits_of(15, 11, seed=1)
    found = token_divergence(student, teacher, kind=kind, jsd_beta=beta, clip=clip, temperature=temperature)
    expected = [
        plain_divergence(student[n].tolist(), teacher[n].tolist(), kind, beta, clip, temperature) for n in range(15)
    ]
    assert found.divergence.tolist() == pytest.approx(expected, abs=1e-6)


@each_kind
@pytest.mark.parametrize("clip", [None, 0.05])
def test_gradient_is_numerically_right(monkeypatch, kind, beta, clip):
    tiles_of(3, 7, monkeypatch)
    student, teacher = logits_of(5, 7).requires_grad_(), logits_of(5, 7, seed=1).requires_grad_()
    options = {"kind": kind, "jsd_beta": beta, "clip": clip, "temperature": 0.8}
    assert torch.autograd.gradcheck(lambda x: token_divergence(x, teacher, **options).divergence, student)
    assert not token_divergence(student.detach(), teacher, **options).divergence.requires_grad


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_agrees_with_pytorchs_own_kl_and_its_autograd_in_float32(kind):
    student, teacher = logits_of(8, 50, dtype=torch.float32), logits_of(8, 50, seed=1, dtype=torch.float32)
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    token_divergence(ours, teacher, kind=kind).divergence.sum().backward()
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
    student = logits_of(6, 9, seed=seed, scale=scale, dtype=torch.float32).requires_grad_()
    teacher = logits_of(6, 9, seed=seed + 1, scale=scale, dtype=torch.float32)
    divergence = token_divergence(student, teacher, kind=kind[0], jsd_beta=kind[1]).divergence
    assert torch.isfinite(divergence).all()
    assert (divergence >= -1e-5).all()
    if kind[0] == "jsd":  # bounded by the entropy of the mixing weights
        beta = kind[1]
        assert (divergence <= -(beta * math.log(beta) + (1 - beta) * math.log(1 - beta)) + 1e-5).all()
    divergence.sum().backward()
    assert torch.isfinite(student.grad).all()


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_equal_distributions_have_no_divergence_and_no_gradient(kind, beta, dtype):
    student = logits_of(6, 40, dtype=torch.float32).to(dtype).requires_grad_()
    divergence = token_divergence(student, student.detach().clone(), kind=kind, jsd_beta=beta).divergence
    assert (divergence == 0).all()
    divergence.sum().backward()
    assert student.grad.abs().max() < 1e-7


def test_the_two_directions_are_each_others_mirror():
    a, b = logits_of(6, 9), logits_of(6, 9, seed=1)
    value = lambda student, teacher, **options: token_divergence(student, teacher, **options).divergence  # noqa: E731
    torch.testing.assert_close(value(a, b, kind="forward_kl"), value(b, a, kind="reverse_kl"))
    torch.testing.assert_close(value(a, b, kind="jsd", jsd_beta=0.3), value(b, a, kind="jsd", jsd_beta=0.7))


def test_entropies_are_those_of_the_two_distributions():
    student, teacher = logits_of(6, 9), logits_of(6, 9, seed=1)
    result = token_divergence(student, teacher, kind="jsd", temperature=0.6)
    for entropy, logits in ((result.student_entropy, student), (result.teacher_entropy, teacher)):
        torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits / 0.6).entropy())
        assert not entropy.requires_grad


def test_low_precision_logits_give_float32_divergences_and_gradients_of_their_own_type():
    student = logits_of(6, 60, dtype=torch.float32).bfloat16().requires_grad_()
    teacher = logits_of(6, 60, seed=1, dtype=torch.float32).bfloat16()
    divergence = token_divergence(student, teacher, kind="forward_kl").divergence
    assert divergence.dtype == torch.float32
    exact = token_divergence(student.detach().double(), teacher.double(), kind="forward_kl").divergence
    torch.testing.assert_close(divergence.double(), exact, rtol=1e-5, atol=1e-6)
    divergence.sum().backward()
    assert student.grad.dtype == torch.bfloat16


def test_no_tensor_of_the_logits_size_is_made_but_the_gradient_in_their_type(monkeypatch):
    """Every allocation of a forward and backward over 16-bit logits, seen by PyTorch's profiler."""
    n, V = 64, 5000
    tiles_of(8, V, monkeypatch)
    student, teacher = torch.randn(n, V).bfloat16().requires_grad_(), torch.randn(n, V).bfloat16()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        token_divergence(student, teacher, kind="jsd").divergence.sum().backward()
    largest = sorted(event.nbytes() for event in profile.profiler.kineto_results.events() if event.nbytes() > 0)
    assert largest[-2:] == [n * V * 2] * 2  # the gradient, unscaled and scaled, in the logits' own type
    assert largest[-3] <= 8 * V * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "kl"}, "kind"),
        ({"jsd_beta": 0.0}, "jsd_beta"),
        ({"jsd_beta": 1.0}, "jsd_beta"),
        ({"clip": 0.0}, "clip"),
        ({"temperature": 0.0}, "temperature"),
        ({"teacher_logits": torch.zeros(2, 4)}, "one shape"),
    ],
)
def test_misfits_are_refused(change, message):
    arguments = {"student_logits": torch.zeros(2, 3), "teacher_logits": torch.zeros(2, 3), "kind": "jsd"}
    with pytest.raises(ValueError, match=message):
        token_divergence(**arguments | change)


@each_kind
def test_tiles_of_hidden_states_under_checkpointing_have_the_values_and_gradients_of_whole_logits(kind, beta):
    """As it is made where whole logits would not fit: a tile's logits live during its own forward and backward."""
    head, hidden = logits_of(13, 5, scale=0.7).requires_grad_(), logits_of(10, 5, seed=1).requires_grad_()
    of_teacher = logits_of(10, 5, seed=2)
    weights = torch.rand(10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def of_tile(rows, of_teacher):
        with torch.no_grad():
            teacher = of_teacher @ head.T
        return token_divergence(rows @ head.T, teacher, kind=kind, jsd_beta=beta)

    whole = of_tile(hidden, of_teacher)
    (weights * whole.divergence).sum().backward()
    expected = head.grad.clone(), hidden.grad.clone()
    head.grad = hidden.grad = None
    parts = [
        checkpoint(of_tile, rows, teacher_rows, use_reentrant=False)
        for rows, teacher_rows in zip(hidden.split(3), of_teacher.split(3), strict=True)
    ]
    tiled = [torch.cat(each) for each in zip(*parts, strict=True)]
    (weights * tiled[0]).sum().backward()
    torch.testing.assert_close((head.grad, hidden.grad), expected)
    torch.testing.assert_close(tiled, list(whole))
