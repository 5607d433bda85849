"""pass@k and maj@k from the n samples of a problem, exact in rational numbers.

Both are means over all C(n, k) subsets, so neither depends on the order of the samples. pass@1 is avg@n.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction

from sgsd.verifiers.reading import read_answer
from sgsd.verifiers.tidy import key


def subset_sizes(n: int) -> tuple[int, ...]:
    """The values of k to report for n samples: 1, 2, 4, … and n itself."""
    return (*(1 << power for power in range((n - 1).bit_length())), n)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that k of n samples, c of them correct, include a correct one: ``1 − C(n − c, k) / C(n, k)``.

    Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Raises:
        ValueError: unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 ≤ c ≤ n and 1 ≤ k ≤ n: got n {n}, c {c}, k {k}")
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def majority_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """The expected accuracy of the majority vote of k of the n samples, over all subsets.

    Samples with the same answer are a group. A group's accuracy is the share of its samples that are correct. Ties are
    broken uniformly at random. A subset without votes has the accuracy 0.

    Args:
        answers: the vote of each sample; equal values are the same answer, and ``None`` is no vote.
        correct: whether each sample is correct.
        k: size of the subsets.

    Raises:
        ValueError: unless the two have one length n, and 1 ≤ k ≤ n.
    """
    n = len(answers)
    if len(correct) != n or not 1 <= k <= n:
        raise ValueError(f"maj@k needs one verdict per answer and 1 ≤ k ≤ n: got {n}, {len(correct)} and k {k}")
    votes = Counter(answer for answer in answers if answer is not None)
    right = Counter(answer for answer, is_correct in zip(answers, correct, strict=True) if is_correct)
    silent = n - votes.total()
    rights: Counter[int] = Counter()  # by size of the group: groups of equal size win equally often
    for answer, count in right.items():
        if answer is not None:
            rights[votes[answer]] += count
    accuracy = Fraction(0)
    for size, count in rights.items():
        others = list(votes.values())
        others.remove(size)
        for won in range(1, min(size, k) + 1):
            wins = sum(Fraction(ways, tied + 1) for tied, ways in _outvoted(others, silent, won, k - won).items())
            accuracy += Fraction(count, size) * math.comb(size, won) * wins
    return float(accuracy / math.comb(n, k))


def _outvoted(groups: Sequence[int], silent: int, most: int, rest: int) -> Counter[int]:
    """Ways to draw ``rest`` samples with at most ``most`` of each group, by the number of groups with exactly ``most``.

    The coefficients of ``x^rest`` in ``(1 + x)^silent · Π_j (Σ_{d<most} C(n_j, d) x^d + C(n_j, most) x^most y)``, by
    the power of y. The factor of a group smaller than ``most`` is ``(1 + x)^n_j``: its samples may be drawn freely.
    """
    free = silent + sum(size for size in groups if size < most)
    ways: Counter[tuple[int, int]] = Counter({(drawn, 0): math.comb(free, drawn) for drawn in range(rest + 1)})
    for size in groups:
        if size < most:
            continue
        longer: Counter[tuple[int, int]] = Counter()
        for (drawn, tied), count in ways.items():
            for more in range(min(size, most, rest - drawn) + 1):
                longer[drawn + more, tied + (more == most)] += count * math.comb(size, more)
        ways = longer
    tied_ways: Counter[int] = Counter()
    for (drawn, tied), count in ways.items():
        if drawn == rest:
            tied_ways[tied] += count
    return tied_ways


def answer_group(extracted: str) -> Hashable:
    """A key that is equal for extracted answers that count as one answer; the reference is not used.

    Numbers are compared by value, unit and percent sign: ``0.5``, ``\\frac12`` and ``1/2`` are one answer. Others are
    compared by their normalised spelling: ``x^2+1`` and ``x^{2} + 1`` are one answer, ``1 + x^2`` is another.
    """
    reading = read_answer(extracted)
    if reading.numeral is not None:
        return (reading.numeral.value, reading.numeral.percent, reading.numeral.unit)
    return key(reading.text)
