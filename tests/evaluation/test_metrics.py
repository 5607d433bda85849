"""pass@k and maj@k against every subset."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.evaluation.metrics import answer_group, majority_at_k, pass_at_k, subset_sizes

samples = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.booleans()), min_size=1, max_size=7)


def all_subsets(n: int, k: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(n), k))


def brute_majority(answers, correct, k):
    """Every subset, every winner of a tie; a group's worth over all n samples."""
    total = 0.0
    for subset in all_subsets(len(answers), k):
        votes = Counter(answers[i] for i in subset if answers[i] is not None)
        winners = [answer for answer, count in votes.items() if count == max(votes.values())]
        for winner in winners:
            judged = [is_correct for answer, is_correct in zip(answers, correct, strict=True) if answer == winner]
            total += sum(judged) / len(judged) / len(winners)
    return total / math.comb(len(answers), k)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = all_subsets(n, k)
        share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
        assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-15)


def test_pass_at_k_at_the_ends():
    assert pass_at_k(12, 5, 1) == pytest.approx(5 / 12, abs=1e-15)
    assert pass_at_k(12, 1, 12) == 1.0
    assert pass_at_k(12, 0, 12) == 0.0
    assert pass_at_k(2000, 1, 1000) == 0.5  # factorials that no float holds


@given(samples)
def test_maj_at_k_is_the_mean_over_every_subset_and_every_tie(drawn):
    answers, correct = zip(*drawn, strict=True)
    correct = [is_correct and answer is not None for answer, is_correct in drawn]
    for k in range(1, len(drawn) + 1):
        assert majority_at_k(answers, correct, k) == pytest.approx(brute_majority(answers, correct, k), abs=1e-12)


@given(samples, st.randoms())
def test_maj_at_k_does_not_depend_on_the_order(drawn, random):
    shuffled = random.sample(drawn, len(drawn))
    for k in range(1, len(drawn) + 1):
        before, after = (majority_at_k(*map(list, zip(*rows, strict=True)), k) for rows in (drawn, shuffled))
        assert before == after


@pytest.mark.parametrize(
    ("answers", "right", "k", "value"),
    [
        (["7", "7", "8", "8"], "7", 4, 0.5),  # a tie is shared
        (["7", "8", None, None], "7", 4, 0.5),  # no answer has no vote
        (["7", None, None], "7", 3, 1.0),
        ([None, None], "7", 2, 0.0),
        (["7", "7", "8"], "7", 1, 2 / 3),  # maj@1 is the share correct
    ],
)
def test_ties_and_silence(answers, right, k, value):
    assert majority_at_k(answers, [answer == right for answer in answers], k) == pytest.approx(value)


def test_maj_at_k_of_many_samples_is_quick_and_a_chance():
    answers = [str(i % 7) for i in range(64)]
    value = majority_at_k(answers, [answer == "0" for answer in answers], 32)
    assert 1 / 7 < value < 1  # the answer 0 has one vote more than the others


@pytest.mark.parametrize(
    "call",
    [
        lambda: pass_at_k(4, 5, 1),
        lambda: pass_at_k(4, 1, 5),
        lambda: pass_at_k(4, 1, 0),
        lambda: majority_at_k(["1"], [True, False], 1),
        lambda: majority_at_k(["1"], [True], 2),
    ],
)
def test_impossible_counts_are_refused(call):
    with pytest.raises(ValueError, match="need"):
        call()


def test_the_k_that_are_reported():
    assert [subset_sizes(n) for n in (1, 2, 3, 8, 12)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 12)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("0.5", r"\frac{1}{2}", True),
        ("1/2", "0.50", True),
        ("1,000", "1000", True),
        ("x^2+1", "x^{2} + 1", True),
        (r"\text{(B)}", "(B)", True),
        ("5", "6", False),
        ("50", r"50\%", False),
        ("x + 1", "1 + x", False),
    ],
)
def test_answers_that_vote_together(one, other, same):
    assert (answer_group(one) == answer_group(other)) == same
