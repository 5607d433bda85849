"""Signs of trouble: said once, in large letters, with the remedy; a sound run hears nothing."""

from __future__ import annotations

import re

import pytest

from sgsd.trainers.signs import FirstSteps, summary_of
from sgsd.trainers.tokens import ThinkingState

QUIET = ThinkingState(False, {})
THINKS = ThinkingState(True, {"enable_thinking": False})
MIXED = [1, -1, -1, 1, 0, -1, 1, -1]


def first_steps(*batches, thinking=QUIET, **options):
    watch = FirstSteps(1024, thinking, **options)
    return [block for batch in batches for block in watch.observe(*batch)]


@pytest.mark.parametrize(
    ("batches", "options", "said"),
    [
        ([(0.5, MIXED, 0.5)] * 10, {"thinking": THINKS, "grouped": True}, []),
        (
            [(0.875, MIXED), (0.9, MIXED)],  # said once a run
            {"thinking": THINKS},
            ["88% OF THE FIRST ROLLOUTS ARE CUT OFF(.|\n)*max_completion_length 1024(.|\n)*set thinking: off"],
        ),
        ([(0.6, MIXED)], {}, ["CUT OFF(.|\n)*a larger max_completion_length"]),
        ([(0.1, MIXED), *[(0.9, MIXED)] * 3], {}, []),  # later ones are left to the guard
        ([(0.0, [-1] * 16)] * 9, {}, ["ALL OF THE FIRST 32 ROLLOUTS FAILED(.|\n)*verifier"]),
        (
            [(0.0, [-1] * 16)] * 9,
            {"corrects": True},
            ["ALL OF THE FIRST 32 ROLLOUTS FAILED(.|\n)*learns from failures(.|\n)*stays at 0.\n *Remedy: look"],
        ),
        ([(0.0, [0] * 16)] * 9, {}, ["ALL OF THE FIRST 32 ROLLOUTS ARE UNDECIDED(.|\n)*references"]),
        ([(0.0, [1] * 16)] * 9, {}, ["ALL OF THE FIRST 32 ROLLOUTS SUCCEEDED(.|\n)*harder problems"]),
        ([(0.0, [-1] * 6)] * 2, {}, []),
        ([(0.0, [-1] * 6)] * 3, {}, ["ALL OF THE FIRST 18 ROLLOUTS FAILED"]),
        ([(0.0, [-1] * 31), (0.0, [1]), *[(0.0, [-1] * 32)] * 5], {}, []),
        (
            [(0.0, [1] * 8 + [-1] * 8, 1.0)] * 2,
            {"grouped": True},
            ["IN NONE OF THE GROUPS OF THE FIRST 32 ROLLOUTS DO REWARDS DIFFER"],
        ),
        ([(0.0, [1] * 8 + [-1] * 8, 1.0)] * 2, {}, []),
        ([(0.0, [1] * 8 + [-1] * 8, 1.0), (0.0, [1] * 8 + [-1] * 8, 0.75)], {"grouped": True}, []),
    ],
)
def test_the_first_batches_are_judged_once_in_capitals_with_the_remedy(batches, options, said):
    blocks = first_steps(*batches, **options)
    assert len(blocks) == len(said)
    assert all(re.search(pattern, block) for pattern, block in zip(said, blocks, strict=True))


def log(success, cut=0.0, alike=0.5, steps=4):
    rows = [{"success_rate": success, "completions/clipped_ratio": cut, "frac_reward_zero_std": alike}] * steps
    return [*rows, {"train_runtime": 1.0}]


@pytest.mark.parametrize(
    ("history", "grouped", "said"),
    [
        (
            log(0.0, cut=0.87, alike=1.0),
            True,
            ["NO ROLLOUT OF THIS RUN SUCCEEDED", "87% OF THIS RUN'S ROLLOUTS WERE CUT"],
        ),
        (log(0.5, alike=1.0), True, ["IN NO GROUP OF THIS RUN DID REWARDS DIFFER"]),
        (log(0.5, alike=1.0), False, []),  # TRL then logs a share of 1: a rollout alone has no spread
        ([*log(0.0, steps=2), *log(0.2, cut=0.4)], True, []),
        ([{"train_runtime": 1.0}], True, []),
        ([], True, []),
    ],
)
def test_a_run_says_at_its_end_what_speaks_against_its_result(history, grouped, said):
    blocks = summary_of(history, grouped=grouped)
    assert len(blocks) == len(said)
    assert all(text in block for text, block in zip(said, blocks, strict=True))
