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
from sgsd.verifiers.reward import text_of
from sgsd.verifiers.thinking import CompletionText
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
        text: makes the text to judge of the ids; without it, TRL's is judged, in which marks of thinking may be lost.
        prompt_end: how the template ends a conversation's prompt, perhaps with a mark that opens thoughts.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        name: str,
        end_ids: Collection[int],
        truncated: str,
        text: CompletionText | None = None,
        prompt_end: str = "",
    ) -> None:
        self.verifier = verifier
        self.end_ids = frozenset(end_ids)
        self.truncated = Outcome(truncated)
        self.text = text
        self.prompt_end = prompt_end
        self.__name__ = name
        self.verdicts: list[Verdict] = []
        """Of the latest call."""

    def __call__(
        self,
        *,
        prompts: Sequence[Any] = (),
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        answer: Sequence[str],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        if self.text is None:
            texts = [text_of(completion) for completion in completions]
        else:
            ends = (prompt if isinstance(prompt, str) else self.prompt_end for prompt in prompts)
            texts = [self.text(ids, end) for ids, end in zip(completion_ids, ends, strict=True)]
        verdicts = verify_in_context(
            self.verifier,
            texts,
            list(answer),
            lambda: contexts_of(completions, prompts or None, completion_ids, answer=answer, **columns),
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


def is_truncated(completion_ids: Sequence[int], end_ids: Collection[int]) -> bool:
    """True if a completion stopped for want of room: it is empty or its last id ends no completion."""
    return not completion_ids or completion_ids[-1] not in end_ids


def outcome_of(reward: float, threshold: float) -> int:
    """+1 for a reward of at least ``threshold``, −1 below it, 0 for NaN."""
    if math.isnan(reward):
        return 0
    return 1 if reward >= threshold else -1
