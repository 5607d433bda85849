"""Few cases in which any two values of any two factors meet: a covering array of strength two, made greedily."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any


def all_pairs(factors: Mapping[str, Sequence[Any]], *, seed: int = 0, tries: int = 20) -> list[dict[str, Any]]:
    """Cases, one value of each factor, that hold every pair of values of two factors; the same for a seed.

    Each case begins with a pair that none has so far. The other factors, in a random order, take the value that adds
    the most new pairs. The best of several tries is kept.
    """
    generator = random.Random(seed)
    names = sorted(factors)
    missing = {
        ((one, a), (two, b))
        for one, two in itertools.combinations(names, 2)
        for a in range(len(factors[one]))
        for b in range(len(factors[two]))
    }

    def pairs_of(case: dict[str, int]) -> set[tuple[tuple[str, int], tuple[str, int]]]:
        return set(itertools.combinations(sorted(case.items()), 2))

    cases: list[dict[str, Any]] = []
    while missing:
        wanted = sorted(missing)
        candidates = []
        for _ in range(tries):
            case = dict(generator.choice(wanted))
            for name in generator.sample(names, len(names)):
                if name not in case:
                    values = generator.sample(range(len(factors[name])), len(factors[name]))
                    case[name] = max(values, key=lambda value: len(pairs_of(case | {name: value}) & missing))
            candidates.append(case)
        best = max(candidates, key=lambda case: len(pairs_of(case) & missing))
        missing -= pairs_of(best)
        cases.append({name: factors[name][best[name]] for name in factors})
    return cases
