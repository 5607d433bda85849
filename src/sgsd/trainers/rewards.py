"""A verifier as a TRL reward function, and rewards as outcomes."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import nn
from trl.trainer.utils import get_callable_name, is_async_callable

from sgsd.verifiers import Outcome, Verdict, Verifier


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
        **_: Any,
    ) -> list[float | None]:
        texts = [text_of(completion) for completion in completions]
        verdicts = self.verifier.verify_many(texts, list(answer))
        verdicts = [
            Verdict(self.truncated, "truncated", verdict.extracted) if is_truncated(ids, self.end_ids) else verdict
            for verdict, ids in zip(verdicts, completion_ids, strict=True)
        ]
        self.verdicts = verdicts
        if log_extra is not None:
            log_extra("outcome", [str(verdict.outcome) for verdict in verdicts])
            log_extra("reason", [verdict.reason or "" for verdict in verdicts])
        return [_REWARDS[verdict.outcome] for verdict in verdicts]


_REWARDS: dict[Outcome, float | None] = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0, Outcome.UNDECIDED: None}


_ADDED = ("problem", "problem_id", "answer", "solution", "teacher_prompt")


def taking_its_own(function: Any) -> Any:
    """A reward function that is spared the columns of ours that its signature does not take.

    TRL passes every column, and a function that names those of its data set needs no ``**kwargs`` there.
    """
    if isinstance(function, str | nn.Module):
        return function
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin
        return function
    spared = [name for name in _ADDED if name not in parameters]
    if not spared or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return function

    def taken(given: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name not in spared}

    if is_async_callable(function):

        @functools.wraps(function)
        async def called(**given: Any) -> Any:
            return await function(**taken(given))
    else:

        @functools.wraps(function)
        def called(**given: Any) -> Any:
            return function(**taken(given))

    called.__name__ = get_callable_name(function)
    return called


def text_of(completion: Any) -> str:
    """The text of a completion as TRL hands it to reward functions: itself, or its last message's."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def is_truncated(completion_ids: Sequence[int], end_ids: Collection[int]) -> bool:
    """True if a completion stopped for want of room: it is empty or its last id ends no completion."""
    return not completion_ids or completion_ids[-1] not in end_ids


def outcome_of(reward: float, threshold: float) -> int:
    """+1 for a reward of at least ``threshold``, −1 below it, 0 for NaN."""
    if math.isnan(reward):
        return 0
    return 1 if reward >= threshold else -1
