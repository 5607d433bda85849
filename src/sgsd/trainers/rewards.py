"""A verifier as a TRL reward function; rewards as outcomes; what could not reward, refused before the first step."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import nn
from transformers import TrainerState
from trl.trainer.utils import get_callable_name, is_async_callable

from sgsd.errors import ConfigError, SGSDError
from sgsd.verifiers import Outcome, Verdict, Verifier
from sgsd.verifiers.reward import text_of
from sgsd.verifiers.thinking import CompletionText
from sgsd.verifiers.verifier import NAMES, REWARDS, contexts_of, verify_in_context


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


# ---- before the first step


def check_reward_arguments(args: Any, reward_funcs: Any, verifier: Any = None) -> None:
    """Refuse rewards, and settings of theirs, that nothing would read or that could not reward.

    A verifier, which may be a reward function, judges where ``reward_funcs`` is ``None``.

    Raises:
        ConfigError: one line, before any weight is loaded.
    """
    if verifier is not None and not callable(verifier) and not callable(getattr(verifier, "verify_many", None)):
        raise ConfigError(
            "verifier cannot verify",
            got=_told(verifier),
            expected="an object with verify_many, such as get_verifier('math'), or a reward function",
        )
    if reward_funcs is None:
        default = type(args).success_threshold
        if args.reward_weights is not None or args.success_threshold != default:
            raise ConfigError(
                "settings without effect where a verifier judges",
                got=f"reward_weights {args.reward_weights}, success_threshold {args.success_threshold}",
                expected=f"reward_weights None, success_threshold {default}",
                remedy="leave them out, or pass reward_funcs; verifier_options: {threshold: …} is a reward function's",
            )
        return
    if verifier is not None:
        raise ConfigError("a verifier beside reward_funcs would judge nothing", remedy="leave out one of them")
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    for function in functions:
        if not (callable(function) or isinstance(function, str)) or function in NAMES:
            raise ConfigError(
                "reward_funcs cannot reward",
                got=_told(function),
                expected="a reward function, or a list of them",
                remedy="a verifier is passed as verifier, or named in args.verifier",
            )
    if not functions:
        raise ConfigError("reward_funcs is empty", remedy="leave it out, and the verifier judges")
    if args.reward_weights is not None and len(args.reward_weights) != len(functions):
        raise ConfigError(
            "reward_weights of another number",
            got=len(args.reward_weights),
            expected=f"{len(functions)}, as reward_funcs",
        )


def _told(value: Any) -> str:
    return repr(value) if isinstance(value, str) else type(value).__name__


def check_reward(
    reward_funcs: Sequence[Any],
    row: Mapping[str, Any],
    tokenizer: Any,
    end_id: int,
    *,
    count: int = 2,
    loop: asyncio.AbstractEventLoop | None = None,
) -> None:
    """Call each reward function once, on made-up completions of a real row, as TRL will.

    A whole group of the same row, ``count`` of two or more: a function that returns one reward for a batch is seen.
    Reward models (``nn.Module``) are left to TRL. Asynchronous functions are called on the running ``loop``, which what
    they keep may be bound to, or on one of their own.

    Raises:
        ConfigError: the function raises, returns something else than one number or ``None`` a completion, or asks for
            columns that the data set does not have.
    """
    texts = [f"Let me see. The answer is \\boxed{{{n}}}." for n in range(count)]
    columns = {name: [value] * count for name, value in row.items() if name not in _OF_TRL}
    talk = not isinstance(row["prompt"], str)
    given = {
        "prompts": [row["prompt"]] * count,
        "completions": [[{"role": "assistant", "content": text}] if talk else text for text in texts],
        "completion_ids": [[*tokenizer(text, add_special_tokens=False)["input_ids"], end_id] for text in texts],
        **columns,
        "trainer_state": TrainerState(epoch=0.0, max_steps=1, num_train_epochs=1),  # they may divide by either
        "log_extra": lambda name, values: None,
        "log_metric": lambda name, value: None,
    }
    for function in reward_funcs:
        if isinstance(function, nn.Module):
            continue
        name = str(getattr(function, "__name__", None) or type(function).__name__)
        try:
            rewards = _called(function, given, loop)
        except ConfigError as error:  # a verifier's, which knows what is wrong
            raise ConfigError(f"verifier {name} fails on a made-up completion", got=error.got) from error
        except SGSDError:
            raise
        except Exception as error:  # the function is the user's and may raise anything
            raise ConfigError(
                f"reward function {name} fails on a made-up completion",
                got=f"{type(error).__name__}: {error}",
                expected=f"a reward for each completion; columns of the data: {', '.join(columns)}",
            ) from error
        _check_rewards(name, rewards, count)
        if isinstance(function, VerifierReward):
            _check_verdicts(name, function.verdicts)


_OF_TRL = ("prompt", "completion", "completion_ids")
"""Columns that TRL hands over under names of its own."""


def _called(function: Callable[..., Any], given: Mapping[str, Any], loop: asyncio.AbstractEventLoop | None) -> Any:
    if not is_async_callable(function):
        return function(**given)

    async def awaited() -> Any:
        return await function(**given)

    if loop is not None:
        return asyncio.run_coroutine_threadsafe(awaited(), loop).result()
    with ThreadPoolExecutor(1) as own:  # a notebook's thread has a loop already
        return own.submit(asyncio.run, awaited()).result()


def _check_rewards(name: str, rewards: Any, count: int) -> None:
    expected = f"a list of {count} numbers, one for each completion (None: undecided)"
    try:
        values = list(rewards)
    except TypeError as error:
        raise ConfigError(f"reward function {name} returns no list", got=repr(rewards), expected=expected) from error
    if len(values) != count:
        raise ConfigError(f"reward function {name} returns {len(values)} rewards", expected=expected)
    for value in values:
        try:
            sound = value is None or not (isinstance(value, str) or math.isinf(float(value)))
        except (TypeError, ValueError):
            sound = False
        if not sound:
            raise ConfigError(f"reward function {name} returns what is no number", got=repr(value), expected=expected)


def _check_verdicts(name: str, verdicts: Sequence[Verdict]) -> None:
    """A verifier in a worker process does not raise: each verdict is undecided, and says why."""
    error, reasons = "verifier error: ", [verdict.reason or "" for verdict in verdicts]
    if reasons and all(reason.startswith(error) for reason in reasons):
        raise ConfigError(
            f"verifier {name} fails on a made-up completion",
            got=reasons[0].removeprefix(error),
            expected="a verdict on every completion",
        )
