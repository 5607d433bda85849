"""Signs of trouble: said once, in large letters, with the remedy; a sound run hears nothing."""

from __future__ import annotations

import pytest

from sgsd.trainers.signs import FirstSteps, summary_of
from sgsd.trainers.startup import ThinkingState

QUIET = ThinkingState(False, {})
THINKS = ThinkingState(True, {"enable_thinking": False})
MIXED = [1, -1, -1, 1, 0, -1, 1, -1]


def first_steps(*batches, thinking=QUIET, grouped=False):
    watch = FirstSteps(1024, thinking, grouped=grouped)
    return [block for batch in batches for block in watch.observe(*batch)]


def test_a_sound_start_says_nothing():
    assert first_steps(*[(0.5, MIXED, 0.5)] * 10, thinking=THINKS, grouped=True) == []


def test_a_first_batch_with_most_rollouts_cut_off_is_said_in_capitals_with_the_remedy():
    said = first_steps((0.875, MIXED), (0.9, MIXED), thinking=THINKS)
    assert len(said) == 1  # once a run
    assert "88% OF THE FIRST ROLLOUTS ARE CUT OFF" in said[0]
    assert "max_completion_length 1024" in said[0]
    assert "set thinking: off" in said[0]
    assert len(said[0].splitlines()) >= 5


def test_without_a_switch_for_thinking_the_remedy_is_room():
    (said,) = first_steps((0.6, MIXED))
    assert "larger max_completion_length" in said
    assert "thinking" not in said


def test_rollouts_that_are_cut_off_later_are_left_to_the_guard():
    assert first_steps((0.1, MIXED), (0.9, MIXED), (0.9, MIXED), (0.9, MIXED)) == []


@pytest.mark.parametrize(
    ("outcome", "what", "remedy"),
    [(-1, "FAILED", "verifier"), (0, "ARE UNDECIDED", "references"), (1, "SUCCEEDED", "harder problems")],
)
def test_outcomes_that_are_all_alike_are_said_once(outcome, what, remedy):
    (said,) = first_steps(*[(0.0, [outcome] * 16)] * 9)
    assert f"ALL OF THE FIRST 32 ROLLOUTS {what}" in said
    assert remedy in said


def test_a_handful_of_rollouts_is_judged_after_three_batches():
    batches = [(0.0, [-1] * 6)] * 3
    assert first_steps(*batches[:2]) == []
    assert "ALL OF THE FIRST 18 ROLLOUTS FAILED" in first_steps(*batches)[0]


def test_one_other_outcome_among_the_first_is_enough():
    assert first_steps((0.0, [-1] * 31), (0.0, [1]), *[(0.0, [-1] * 32)] * 5) == []


def test_groups_that_are_all_alike_teach_grpo_nothing():
    batches = [(0.0, [1] * 8 + [-1] * 8, 1.0)] * 2
    (said,) = first_steps(*batches, grouped=True)
    assert "IN NONE OF THE GROUPS OF THE FIRST 32 ROLLOUTS DO REWARDS DIFFER" in said
    assert first_steps(*batches) == []
    assert first_steps(batches[0], (0.0, [1] * 8 + [-1] * 8, 0.75), grouped=True) == []


def log(success, cut=0.0, alike=0.5, steps=4):
    rows = [{"success_rate": success, "completions/clipped_ratio": cut, "frac_reward_zero_std": alike}] * steps
    return [*rows, {"train_runtime": 1.0}]


def test_a_run_without_a_success_says_so_at_its_end():
    said = "\n".join(summary_of(log(0.0, cut=0.87, alike=1.0)))
    assert "NO ROLLOUT OF THIS RUN SUCCEEDED" in said
    assert "87% OF THIS RUN'S ROLLOUTS WERE CUT OFF" in said


def test_a_run_whose_groups_were_all_alike_says_so_at_its_end():
    (said,) = summary_of(log(0.5, alike=1.0))
    assert "IN NO GROUP OF THIS RUN DID REWARDS DIFFER" in said


def test_one_rollout_a_prompt_is_no_group():
    """TRL then logs a share of 1: a rollout alone has no spread."""
    assert summary_of(log(0.5, alike=1.0), grouped=False) == []


def test_a_sound_run_and_a_run_without_a_log_end_quietly():
    assert summary_of([*log(0.0, steps=2), *log(0.2, cut=0.4)]) == []
    assert summary_of([{"train_runtime": 1.0}]) == summary_of([]) == []
