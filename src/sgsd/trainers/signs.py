"""Signs of trouble, in large letters: while the first batches are sampled, and at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sgsd.errors import ConfigError
from sgsd.scoring.teachers import TeacherPool
from sgsd.trainers.tokens import ThinkingState

FIRST_PROBLEMS = 8
_MOST_CUT = 0.5
_ENOUGH_ROLLOUTS, _ENOUGH_STEPS = 32, 3
_ALIKE = {
    -1: (
        "failed",
        "Remedy: look at some (log_completions: true); check the verifier and the form of answer that the instruction "
        "asks for; easier problems.",
    ),
    0: (
        "are undecided",
        "The verifier decides nothing. Remedy: check it on a right answer, and that references can be read.",
    ),
    1: ("succeeded", "There is nothing to learn from. Remedy: harder problems."),
}


class FirstSteps:
    """Watches the first generation batches, and says once each, in large letters, what will keep a run from learning.

    - In the first batch more than half of the rollouts are cut off.
    - All outcomes of the first batches are alike: of 32 rollouts, or of 3 batches.
    - With groups: in none of the groups of these batches do rewards differ.

    Args:
        max_completion_length: of the run.
        thinking: of the run's chat template.
        grouped: whether the loss reads advantages within groups.
    """

    def __init__(self, max_completion_length: int, thinking: ThinkingState, *, grouped: bool = False) -> None:
        self.done = False
        self._budget = max_completion_length
        self._thinking = thinking
        self._grouped = grouped
        self._outcomes: Counter[int] = Counter()
        self._unlike = False  # a group whose rewards differ was seen
        self._batches = 0

    def observe(self, truncated: float, outcomes: Sequence[int], alike_groups: float = 0.0) -> list[str]:
        """Take a generation batch of training; blocks of lines to show, if there is something to say.

        Args:
            truncated: share of rollouts cut off, over all processes.
            outcomes: of all rollouts, in {-1, 0, 1}.
            alike_groups: share of groups whose rewards are all the same.
        """
        if self.done:
            return []
        self._batches += 1
        self._outcomes.update(outcomes)
        self._unlike |= alike_groups < 1
        said: list[str] = []
        if self._batches == 1 and truncated > _MOST_CUT:
            said.append(
                large(
                    f"{truncated:.0%} of the first rollouts are cut off",
                    f"They reach max_completion_length {self._budget} without an end, and count as the setting "
                    "truncated says: little or nothing is learnt from them.",
                    f"Remedy: {self._thinking.remedy}.",
                )
            )
        count = self._outcomes.total()
        self.done = count >= _ENOUGH_ROLLOUTS or self._batches >= _ENOUGH_STEPS
        if self.done and len(self._outcomes) == 1:
            what, remedy = _ALIKE[next(iter(self._outcomes))]
            said.append(large(f"all of the first {count} rollouts {what}", remedy))
        elif self.done and self._grouped and not self._unlike:
            said.append(
                large(
                    f"in none of the groups of the first {count} rollouts do rewards differ",
                    "GRPO's advantages are all zero. Remedy: problems that are neither too easy nor too hard, a larger "
                    "num_generations, or a higher temperature.",
                )
            )
        return said


def summary_of(history: Sequence[Mapping[str, Any]], *, grouped: bool = True) -> list[str]:
    """What a run's ``log_history`` says against its result, each in large letters; nothing for a sound run.

    ``grouped``: prompts have several rollouts each.
    """
    success, cut, alike = (
        [row[name] for row in history if name in row]
        for name in ("success_rate", "completions/clipped_ratio", "frac_reward_zero_std")
    )
    said: list[str] = []
    if success and max(success) == 0:
        remedy = "The success rate was 0 throughout. Check the verifier, the instruction, the problems' difficulty."
        said.append(large("no rollout of this run succeeded", remedy))
    elif grouped and alike and min(alike) == 1:
        said.append(large("in no group of this run did rewards differ", "Advantages were zero throughout."))
    if cut and (share := sum(cut) / len(cut)) > _MOST_CUT:
        remedy = "A larger max_completion_length, or thinking switched off, would let them end."
        said.append(large(f"{share:.0%} of this run's rollouts were cut off", remedy))
    return said


def check_teachers(pools: Sequence[TeacherPool], limit: int) -> str | None:
    """A block of lines where most teachers' prompts are too long.

    Args:
        pools: teachers of the first ``FIRST_PROBLEMS`` problems.
        limit: tokens that a prompt may have.

    Raises:
        ConfigError: none fits: nothing would ever be learnt from teachers.
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
    """A title in capitals between rules, and lines below it."""
    rule = "=" * 100
    return "\n".join([rule, f"  {title.upper()}", *(f"  {line}" for line in lines), rule])
