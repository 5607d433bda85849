"""Seeds of single completions."""

from __future__ import annotations

from sgsd.engines.seeds import completion_seed


def test_every_position_and_every_seed_has_a_seed_of_its_own():
    seeds = [completion_seed(seed, index) for seed in range(4) for index in range(500)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_seeds_never_change():
    assert [completion_seed(0, 0), completion_seed(0, 1), completion_seed(1, 0)] == [1484405855, 1982462498, 917752063]
