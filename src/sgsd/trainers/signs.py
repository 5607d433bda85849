"""Warnings in capitals about runs that cannot learn: at the first batches, and at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sgsd.errors import ConfigError
from sgsd.scoring.teachers import TeacherPool
from sgsd.trainers.tokens import ThinkingState

FIRST_PROBLEMS = 8
_MOST_TRUNCATED = 0.5
_ENOUGH_ROLLOUTS, _ENOUGH_STEPS = 32, 3
_ALL_EQUAL = {
    -1: (
        "failed",
        "Remedy: look at some (log_completions: true); check the verifier and the form of answer that the instruction "
        "asks for; use easier problems.",
    ),
    0: (
        "are undecided",
        "The verifier decides nothing. Remedy: check it on a right answer, and that it can read the references.",
    ),
    1: ("succeeded", "There is nothing to learn from. Remedy: use harder problems."),
}


class FirstSteps:
    """Watches the first generation batches, and warns once each of what will keep a run from learning.

    - More than half of the rollouts of the first batch are truncated.
    - The first 32 rollouts, or those of the first 3 batches, have the same outcome.
    - If the loss reads advantages: no group of these batches has different rewards.

    Args:
        max_completion_length: of the run.
        thinking: of the run's chat template.
        grouped: whether the loss reads group advantages.
        corrects: whether the loss learns from failures alone (objective ``correction``).
    """

    def __init__(
        self, max_completion_length: int, thinking: ThinkingState, *, grouped: bool = False, corrects: bool = False
    ) -> None:
        self.done = False
        self._budget = max_completion_length
        self._thinking = thinking
        self._grouped = grouped
        self._corrects = corrects
        self._outcomes: Counter[int] = Counter()
        self._rewards_differ = False  # within any group so far
        self._batches = 0

    def observe(self, truncated: float, outcomes: Sequence[int], zero_std: float = 0.0) -> list[str]:
        """Take a generation batch of training; returns warnings to show, each of several lines.

        Args:
            truncated: share of truncated rollouts, over all processes.
            outcomes: of all rollouts, in {−1, 0, 1}.
            zero_std: share of groups whose rewards are all equal.
        """
        if self.done:
            return []
        self._batches += 1
        self._outcomes.update(outcomes)
        self._rewards_differ |= zero_std < 1
        warnings: list[str] = []
        if self._batches == 1 and truncated > _MOST_TRUNCATED:
            warnings.append(
                large(
                    f"{truncated:.0%} of the first rollouts are cut off",
                    f"They reach max_completion_length {self._budget} without an end token, perhaps before their "
                    "answer. The setting truncated decides what they count as.",
                    f"Remedy: {self._thinking.remedy}.",
                )
            )
        count = self._outcomes.total()
        self.done = count >= _ENOUGH_ROLLOUTS or self._batches >= _ENOUGH_STEPS
        if self.done and len(self._outcomes) == 1:
            what, remedy = _ALL_EQUAL[outcome := next(iter(self._outcomes))]
            learnt = "Objective correction learns from failures, so this matters only if success_rate stays at 0."
            said = [learnt] if outcome < 0 and self._corrects else []
            warnings.append(large(f"all of the first {count} rollouts {what}", *said, remedy))
        elif self.done and self._grouped and not self._rewards_differ:
            warnings.append(
                large(
                    f"in none of the groups of the first {count} rollouts do rewards differ",
                    "GRPO's advantages are all zero. Remedy: use problems that are neither too easy nor too hard, a "
                    "larger num_generations, or a higher temperature.",
                )
            )
        return warnings


def summary_of(history: Sequence[Mapping[str, Any]], *, grouped: bool = True) -> list[str]:
    """Warnings at the end of a run, from its ``log_history``; empty for a sound run.

    Args:
        history: the trainer's ``state.log_history``.
        grouped: whether prompts have several rollouts each.
    """
    success, truncated, zero_std = (
        [row[name] for row in history if name in row]
        for name in ("success_rate", "completions/clipped_ratio", "frac_reward_zero_std")
    )
    warnings: list[str] = []
    if success and max(success) == 0:
        remedy = "The success rate was 0 throughout. Check the verifier, the instruction, the problems' difficulty."
        warnings.append(large("no rollout of this run succeeded", remedy))
    elif grouped and zero_std and min(zero_std) == 1:
        warnings.append(large("in no group of this run did rewards differ", "Advantages were zero throughout."))
    if truncated and (share := sum(truncated) / len(truncated)) > _MOST_TRUNCATED:
        remedy = "Remedy: a larger max_completion_length, or thinking: off."
        warnings.append(large(f"{share:.0%} of this run's rollouts were cut off", remedy))
    return warnings


def check_teachers(pools: Sequence[TeacherPool], limit: int) -> str | None:
    """A warning if most teachers' prompts are too long, else ``None``.

    Args:
        pools: teachers of the first ``FIRST_PROBLEMS`` problems.
        limit: most tokens of a prompt.

    Raises:
        ConfigError: no teacher's prompt fits.
    """
    fit, too_long = sum(len(pool.prompts) for pool in pools), sum(pool.too_long for pool in pools)
    remedy = "a larger max_prompt_length or context, a smaller max_completion_length, or shorter items"
    if too_long and not fit:
        what = f"no teacher's prompt of the first {len(pools)} problems fits"
        raise ConfigError(what, got=f"room for {limit} tokens", remedy=remedy)
    if too_long <= fit:
        return None
    what = f"{too_long} of {too_long + fit} teachers' prompts do not fit {limit} tokens"
    return large(what, f"They are left out. Remedy: {remedy}.")


def large(title: str, *lines: str) -> str:
    """A title in capitals and lines below it, between two rulers."""
    rule = "=" * 100
    return "\n".join([rule, f"  {title.upper()}", *(f"  {line}" for line in lines), rule])
