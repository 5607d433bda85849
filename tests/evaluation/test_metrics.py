"""pass@k and maj@k against every subset; lengths against plain loops."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgsd.evaluation.metrics import answer_group, lengths, majority_at_k, pass_at_k, subset_sizes

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


def test_ties_are_shared_and_no_answer_has_no_vote():
    assert majority_at_k(["7", "7", "8", "8"], [True, True, False, False], 4) == 0.5
    assert majority_at_k(["7", "8", None, None], [True, False, False, False], 4) == 0.5
    assert majority_at_k(["7", None, None], [True, False, False], 3) == 1.0
    assert majority_at_k([None, None], [False, False], 2) == 0.0
    assert majority_at_k(["7", "7", "8"], [True, True, False], 1) == pytest.approx(2 / 3)


def test_maj_at_1_is_the_share_correct():
    answers, correct = ["1", "2", "2", "3", None], [True, False, False, True, False]
    assert majority_at_k(answers, correct, 1) == pytest.approx(0.4)


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
        lambda: lengths([]),
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


def test_lengths():
    found = lengths([10, 30, 20, 40, 100])
    assert (found.mean, found.median) == (40.0, 30.0)
    assert found.p90 == pytest.approx(40 + 0.6 * 60)  # position 0.9 · 4 = 3.6 of the sorted list
