from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sgsd.abstention import AbstentionRule, predicted_support, score_until_settled
from sgsd.scoring import score_completions

THETA, CLIP = 0.05, 3.0


# ---- the rule


def plain_estimate(x, z, seen):
    """(A1) and (A2) in loops; ``x`` and ``z`` are lists of counted, clipped gaps, ``seen`` of them known."""
    m, total = seen, len(z)
    x_mean, z_mean, z_total = sum(x[:m]) / m, sum(z[:m]) / m, sum(z) / total
    spread = sum((z[t] - z_mean) ** 2 for t in range(m))
    slope = (sum((z[t] - z_mean) * (x[t] - x_mean) for t in range(m)) + 1.0) / (spread + 1.0)
    residual = sum((x[t] - x_mean - slope * (z[t] - z_mean)) ** 2 for t in range(m)) + (slope - 1) ** 2
    degrees = max(m - 2, 0) + 8
    variance = (residual + 8 * 0.01) / degrees
    later = sum((z[t] - z_total) ** 2 for t in range(m, total)) / max(1, total - m)
    unevenness = max(1.0, (later + 0.01) / (spread / m + 0.01))
    sampling = (((total - m) / total) ** 2) * (1 / m + unevenness / (total - m)) if total > m else 0.0
    leverage = (z_total - z_mean) ** 2 / (spread + 1.0)
    return x_mean + slope * (z_total - z_mean), math.sqrt(variance * (sampling + leverage)), degrees


def plain_stop(rule, gaps, scout, counted, length, seen):
    if length <= seen or not any(counted):
        return False
    clipped = lambda values: [max(-rule.clip, min(rule.clip, v)) for v in values]  # noqa: E731
    x = clipped([g for t, (g, c) in enumerate(zip(gaps, counted, strict=True)) if c and t < seen])
    z = clipped([g for g, c in zip(scout, counted, strict=True) if c])
    if abs(sum(x)) + rule.clip * (len(z) - len(x)) <= rule.threshold * len(z):
        return True
    if len(x) < 8 or not rule.error:
        return False
    looks = 0
    while rule.first_look * 2**looks < length:
        looks += 1
    estimate, deviation, degrees = plain_estimate(x + [0.0] * (len(z) - len(x)), z, len(x))
    return abs(estimate) + stats.t.isf(rule.error / looks, degrees) * deviation <= rule.threshold


def drawn_rows(seed, N=60, T=150):
    g = torch.Generator().manual_seed(seed)
    scout = torch.randn(N, T, generator=g, dtype=torch.float64) * torch.rand(N, 1, generator=g, dtype=torch.float64)
    scale = 0.4 * torch.rand(N, 1, generator=g, dtype=torch.float64)
    gaps = 0.8 * scout + scale * torch.randn(N, T, generator=g, dtype=torch.float64)
    gaps = gaps * (torch.rand(N, 1, generator=g) < 0.8) * 0.5 + 0.1 * (torch.rand(N, 1, generator=g) - 0.5)
    lengths = torch.randint(1, T + 1, (N,), generator=g)
    counted = (torch.rand(N, T, generator=g) < 0.9) & (torch.arange(T) < lengths.unsqueeze(1))
    counted[0] = False
    return gaps, scout, counted, lengths


@pytest.mark.parametrize("error", [0.0, 0.1, 0.3])
def test_decisions_equal_plain_loops(error):
    rule = AbstentionRule(THETA, CLIP, error, first_look=16)
    stopped = 0
    for seed in range(3):
        gaps, scout, counted, lengths = drawn_rows(seed)
        for seen in (5, 16, 32, 64, 128):
            actual, estimate = rule.look(gaps, scout, counted, lengths, seen)
            rows = zip(*(tensor.tolist() for tensor in (gaps, scout, counted, lengths)), strict=True)
            assert actual.tolist() == [plain_stop(rule, *row, seen) for row in rows]
            assert (estimate.abs() < THETA).all()
            stopped += int(actual.sum())
    assert stopped > (20 if error else 0), "nothing would tell a wrong rule"


def test_estimates_equal_plain_loops():
    gaps, scout, counted, _ = drawn_rows(5)
    for seen in (3, 20, 90):
        now = counted & (torch.arange(counted.shape[1]) < seen)
        x, z = torch.where(now, gaps, 0.0), torch.where(counted, scout, 0.0)
        actual = torch.stack(predicted_support(x, z, now, counted), 1)
        for row in range(len(gaps)):
            if now[row].any():
                m = int(now[row].sum())
                expected = plain_estimate(x[row][counted[row]].tolist(), z[row][counted[row]].tolist(), m)
                torch.testing.assert_close(
                    actual[row], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
                )


def test_what_was_not_seen_and_does_not_count_is_never_read():
    gaps, scout, counted, lengths = drawn_rows(1)
    rule = AbstentionRule(first_look=16)
    expected = rule.look(gaps, scout, counted, lengths, 32)
    unread = ~counted | (torch.arange(counted.shape[1]) >= 32)
    changed = rule.look(
        gaps.masked_fill(unread, torch.nan), scout.masked_fill(~counted, torch.inf), counted, lengths, 32
    )
    assert torch.equal(expected[0], changed[0])
    torch.testing.assert_close(*(estimate for _, estimate in (expected, changed)))
    assert expected[0].any()


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=60),
    st.floats(0, 3),
    st.integers(1, 59),
)
@settings(max_examples=150, deadline=None)
def test_without_an_error_no_stopped_teacher_would_have_taken_a_stance(gaps, threshold, seen):
    rule = AbstentionRule(threshold, CLIP, error=0.0)
    x = torch.tensor([gaps], dtype=torch.float64)
    everything = torch.ones_like(x, dtype=torch.bool)
    (stopped,), _ = rule.look(x, x, everything, torch.tensor([len(gaps)]), seen)
    support = x.clamp(-CLIP, CLIP).mean().abs()
    assert not stopped or support <= threshold + 1e-12


@pytest.mark.parametrize("seen", [59, 60])
def test_the_certain_bound_does_stop_teachers_near_the_end(seen):
    rule = AbstentionRule(threshold=0.06, error=0.0)
    x = torch.zeros(1, 60)
    (stopped,), _ = rule.look(x, x, torch.ones(1, 60, dtype=torch.bool), torch.tensor([60]), seen)
    assert stopped == (seen == 59)


POPULATIONS = {
    "normal, 0.1 nats": lambda g, shape: 0.1 * torch.randn(shape, generator=g),
    "normal, 0.3 nats": lambda g, shape: 0.3 * torch.randn(shape, generator=g),
    "heavy tails": lambda g, shape: 0.1 * torch.randn(shape, generator=g) / torch.rand(shape, generator=g).sqrt(),
    "mostly 0": lambda g, shape: 0.35 * torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) < 0.2),
}


@pytest.mark.parametrize("error", [0.05, 0.2])
@pytest.mark.parametrize("common", [0.0, 0.8])
@pytest.mark.parametrize("population", POPULATIONS)
def test_of_barely_active_teachers_at_most_the_stated_share_is_stopped(population, common, error):
    """The worst case of the bound: every teacher's support lies 1 % beyond the dead zone, tokens are exchangeable."""
    g = torch.Generator().manual_seed(0)
    rule = AbstentionRule(THETA, CLIP, error, first_look=16)
    N, T = 1500, 200
    scout, own = POPULATIONS[population](g, (2, N, T)).clamp(-CLIP, CLIP)
    gaps = math.sqrt(common) * scout + math.sqrt(1 - common) * own
    gaps += 1.01 * THETA - gaps.mean(1, keepdim=True)
    stopped = torch.zeros(N, dtype=torch.bool)
    for seen in rule.looks(T):
        stopped |= rule.look(gaps, scout, torch.ones(N, T, dtype=torch.bool), torch.full((N,), T), seen)[0]
    assert stopped.float().mean() <= error


def test_the_test_above_would_see_a_bound_that_is_no_bound():
    """Estimates without their deviation stop far more than the stated share."""
    g = torch.Generator().manual_seed(0)
    gaps = 0.3 * torch.randn(1500, 200, generator=g)
    gaps += 1.01 * THETA - gaps.mean(1, keepdim=True)
    assert (gaps[:, :64].mean(1).abs() <= THETA).float().mean() > 0.3


def test_looks_double_and_end_before_the_completion_does():
    assert AbstentionRule().looks(32) == []
    assert AbstentionRule().looks(33) == [32]
    assert AbstentionRule(first_look=8).looks(100) == [8, 16, 32, 64]


# ---- scoring in segments


def unequal_pairs(n=12, shared=4):
    g = torch.Generator().manual_seed(3)
    size = lambda low, high: int(torch.randint(low, high, (1,), generator=g))  # noqa: E731
    draw = lambda count: torch.randint(2, 250, (count,), generator=g).tolist()  # noqa: E731
    completions = [draw(length) for length in (70, 33, 32, 31, 17, 2, 1, *(size(40, 75) for _ in range(n - 7)))]
    prompts = [draw(size(1, 30)) for _ in range(n)]
    return [*prompts, *prompts[:shared]], [*completions, *(draw(size(0, 60)) for _ in range(shared))]


def scored(model, rule, prompts, completions, *, shift=None, width=None, **options):
    """Scores in segments; ``shift`` ``[N]`` are the gaps wanted, as if the student were so much less sure."""
    full = score_completions(model, prompts, completions, with_entropy=True)
    shift = torch.zeros(len(prompts)) if shift is None else shift
    student = full.logps - shift.unsqueeze(1)
    width = width or max(map(len, completions))
    segments = score_until_settled(
        model, prompts, completions, student, student, full.mask, rule, width=width, with_entropy=True, **options
    )
    return full, segments


@pytest.mark.parametrize("budget", [1, 200, 10_000])
@pytest.mark.parametrize("first_look", [1, 7, 16, 100])
def test_segments_score_what_one_forward_scores(model, budget, first_look):
    """Gaps far outside of the dead zone: nobody is stopped."""
    prompts, completions = unequal_pairs()
    rule = AbstentionRule(first_look=first_look)
    full, segments = scored(
        model, rule, prompts, completions, shift=torch.ones(len(prompts)), max_tokens_per_chunk=budget
    )
    assert not segments.stopped.any()
    assert torch.equal(segments.mask, full.mask)
    torch.testing.assert_close(segments.logps, full.logps, rtol=0, atol=1e-4)
    torch.testing.assert_close(segments.entropy, full.entropy, rtol=0, atol=1e-4)


@pytest.mark.parametrize("budget", [1, 200, 10_000])
def test_stopped_rows_are_scored_up_to_a_look_and_the_others_as_ever(model, budget):
    prompts, completions = unequal_pairs()
    shift = torch.tensor([0.0, 1.0] * (len(prompts) // 2))
    rule = AbstentionRule(first_look=16)
    full, segments = scored(model, rule, prompts, completions, shift=shift, max_tokens_per_chunk=budget)
    assert not segments.stopped[shift > 0].any()
    expected = (shift == 0) & (full.mask.sum(1) > 32)
    assert segments.stopped[expected].all()
    counts = segments.mask.sum(1)
    assert set(counts[segments.stopped].tolist()) <= {16, 32, 64}
    assert torch.equal(counts[~segments.stopped], full.mask.sum(1)[~segments.stopped])
    torch.testing.assert_close(segments.logps, full.logps.masked_fill(~segments.mask, 0.0), rtol=0, atol=1e-4)
    assert (segments.estimate[segments.stopped].abs() < 1e-4).all()
    assert not segments.estimate[~segments.stopped].any()


def forwards(model, prompts, completions, *, shift, **options):
    sizes = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    full = score_completions(model, prompts, completions)
    sizes.clear()
    student = full.logps - shift.unsqueeze(1)
    rule = AbstentionRule(first_look=16)
    score_until_settled(model, prompts, completions, student, student, full.mask, rule, **options)
    handle.remove()
    return sizes


@pytest.mark.parametrize("chunks", [1, 3, 5])
def test_every_rank_makes_the_same_number_of_forwards_whoever_is_stopped(model, chunks):
    prompts, completions = unequal_pairs()
    counts = set()
    tokens = []
    for gap in (0.0, 1.0):
        shift = torch.full((len(prompts),), gap)
        sizes = forwards(model, prompts, completions, shift=shift, width=90, min_chunks=chunks)
        counts.add(len(sizes))
        tokens.append(sum(rows * width for rows, width in sizes))
    short = forwards(
        model, prompts[:7], [c[:1] for c in completions[:7]], shift=torch.ones(7), width=90, min_chunks=chunks
    )
    counts.add(len(short))
    # prompts, then segments that end at 16, 32, 64 and 90
    assert counts == {5 * chunks}
    assert tokens[0] < 0.8 * tokens[1]


def test_the_last_row_goes_on_with_one_token_a_segment(model):
    shift = torch.zeros(2)
    sizes = forwards(model, [[3, 4], [5]], [list(range(2, 72)), list(range(3, 73))], shift=shift, width=70)
    assert sizes[1] == (2, 15)
    assert sizes[-1] == (1, 1)


def test_misfits_are_refused(model):
    one = torch.zeros(1, 3)
    for prompts, completions, width in (([[1]], [], 3), ([[1]], [[1, 2, 3]], 2), ([[1], [2]], [[1], [2]], 3)):
        with pytest.raises(ValueError, match="one prompt and completion a row"):
            score_until_settled(model, prompts, completions, one, one, one.bool(), AbstentionRule(), width=width)
