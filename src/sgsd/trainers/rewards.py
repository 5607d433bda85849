"""A verifier as a TRL reward function, and rewards as outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sgsd.verifiers import Outcome, Verdict, Verifier
from sgsd.verifiers.reward import text_of
from sgsd.verifiers.verifier import REWARDS, contexts_of, verify_in_context


class VerifierReward:
    """1.0 for correct, 0.0 for incorrect, ``None`` for undecided: TRL gives an undecided rollout no advantage.

    Takes the columns ``answer`` and ``completion_ids`` that the trainers provide; logs each verdict's outcome and
    reason to the completions table.

    Args:
        verifier: judges the completion's text.
        name: shown in logs as ``rewards/<name>``.
        end_ids: ids that end a completion. One that ends otherwise is truncated.
        truncated: the outcome of a truncated completion, ``incorrect`` or ``undecided``; the text is not looked at.
    """

    def __init__(self, verifier: Verifier, *, name: str, end_ids: Collection[int], truncated: str) -> None:
        self.verifier = verifier
        self.end_ids = frozenset(end_ids)
        self.truncated = Outcome(truncated)
        self.__name__ = name
        self.verdicts: list[Verdict] = []
        """Of the latest call."""

    def __call__(
        self,
        *,
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[str],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        verdicts = verify_in_context(
            self.verifier,
            [text_of(completion) for completion in completions],
            list(answer),
            lambda: contexts_of(completions, completion_ids=completion_ids, answer=answer, **columns),
        )
        verdicts = [
            Verdict(self.truncated, "truncated", verdict.extracted) if is_truncated(ids, self.end_ids) else verdict
            for verdict, ids in zip(verdicts, completion_ids, strict=True)
        ]
        self.verdicts = verdicts
        if log_extra is not None:
            log_extra("outcome", [str(verdict.outcome) for verdict in verdicts])
            log_extra("reason", [verdict.reason or "" for verdict in verdicts])
        return [REWARDS[verdict.outcome] for verdict in verdicts]


def is_truncated(completion_ids: Sequence[int], end_ids: Collection[int]) -> bool:
    """True if a completion stopped for want of room: it is empty or its last id ends no completion."""
    return not completion_ids or completion_ids[-1] not in end_ids


def outcome_of(reward: float, threshold: float) -> int:
    """+1 for a reward of at least ``threshold``, −1 below it, 0 for NaN."""
    if math.isnan(reward):
        return 0
    return 1 if reward >= threshold else -1
