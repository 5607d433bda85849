from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgsd.errors import CheckpointError
from sgsd.training.pool_size import PoolSize

STEPS = [[(3, 16), (0, 16)], [(8, 32)], [(0, 0)], [(1, 8), (7, 8)], [(20, 20)]]


@pytest.mark.parametrize(("target", "smallest", "largest"), [(2, 1, 16), (1.5, 2, 8), (4, 1, 5)])
def test_sizes_equal_a_plain_loop_over_all_steps_so_far(target, smallest, largest):
    pool = PoolSize(target, smallest, largest)
    assert pool.size == largest
    sizes = []
    for number, step in enumerate(STEPS, 1):
        for active, real in step:
            pool.observe(active, real)
        pool.end_step()
        ages = [(0.9 ** (number - 1 - n), counts) for n, past in enumerate(STEPS[:number]) for counts in past]
        active, real = (sum(age * counts[place] for age, counts in ages) for place in (0, 1))
        wanted = max(smallest, min(largest, math.ceil(target * real / active - 1e-6)))
        assert pool.size == wanted
        sizes.append(pool.size)
    assert len(set(sizes)) > 1 or largest == 5


def test_without_a_stance_every_pair_is_tried():
    pool = PoolSize(2, 1, 12)
    for _ in range(3):
        pool.observe(0, 40)
        pool.end_step()
    assert pool.size == 12
    pool.observe(160, 160)
    pool.end_step()
    assert pool.size < 12


@given(st.floats(0.02, 1.0), st.floats(0.0, 0.8), st.floats(0.5, 6.0), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_the_number_of_active_teachers_comes_near_the_target(best, decline, target, seed):
    """The share of active teachers falls as pairs further down the ranking come in."""
    largest, rows = 32, 64
    g = torch.Generator().manual_seed(seed)
    pool = PoolSize(target, 1, largest)
    probabilities = best * torch.arange(1, largest + 1) ** -decline
    expected = []
    for step in range(120):
        active = (torch.rand(rows, pool.size, generator=g) < probabilities[: pool.size]).sum()
        pool.observe(int(active), rows * pool.size)
        pool.end_step()
        if step >= 60:
            expected.append(float(probabilities[: pool.size].sum()))
    mean = sum(expected) / len(expected)
    low = min(target, float(probabilities.sum()))  # more than there are cannot be had
    assert 0.85 * low <= mean <= max(1.15 * target + best, best)


def test_what_was_saved_goes_on_as_if_nothing_had_happened():
    straight, first = PoolSize(2, 1, 16), PoolSize(2, 1, 16)
    resumed = PoolSize(2, 1, 16)
    for number, step in enumerate(STEPS):
        for pool in (straight, first if number < 2 else resumed):
            for counts in step:
                pool.observe(*counts)
            pool.end_step()
        if number == 1:
            resumed.restore(first.to_json(), source="here")
            assert resumed.size == first.size
    assert resumed.to_json() == straight.to_json()


def test_limits_of_the_resumed_run_hold():
    pool = PoolSize(2, 1, 4)
    pool.restore(json.dumps({"size": 9, "active": 1.0, "real": 9.0}), source="here")
    assert pool.size == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"size": "many", "active": 0, "real": 0}'])
def test_damage_is_refused(text):
    with pytest.raises(CheckpointError, match="number of teachers"):
        PoolSize(2, 1, 4).restore(text, source="here")
