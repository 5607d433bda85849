"""A verifier as a TRL reward function; rewards → outcomes; checks of reward functions before the first step."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeGuard

import numpy as np
from torch import nn
from transformers import TrainerState
from trl.trainer.utils import get_callable_name, is_async_callable

from sgsd.errors import ConfigError, SGSDError
from sgsd.verifiers import Outcome, Verdict, Verifier
from sgsd.verifiers.reward import text_of
from sgsd.verifiers.thinking import CompletionText
from sgsd.verifiers.verifier import NAMES, REWARDS, contexts_of, verify_in_context


class VerifierReward:
    """A reward function: 1.0 for correct, 0.0 for incorrect, ``None`` for undecided, which TRL gives no advantage.

    It reads the columns ``answer`` and ``completion_ids``, and logs each verdict's outcome and reason to TRL's table of
    completions.

    Args:
        verifier: judges the completion's text.
        name: shown in logs as ``rewards/<name>``.
        end_ids: ids that end a completion.
        max_length: the length limit, in tokens. A completion of it or more without an end id is truncated.
        truncated: the outcome of a truncated completion, ``incorrect`` or ``undecided``.
        text: decodes completion ids; ``None``: TRL's text is judged, which may lack special tokens around thoughts.
        prompt_end: the end of a conversation's rendered prompt, which may open a thought.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        name: str,
        end_ids: Collection[int],
        max_length: int,
        truncated: str,
        text: CompletionText | None = None,
        prompt_end: str = "",
    ) -> None:
        self.verifier = verifier
        self.end_ids = frozenset(end_ids)
        self.max_length = max_length
        self.truncated = Outcome(truncated)
        self.text = text
        self.prompt_end = prompt_end
        self.__name__ = name
        self.verdicts: list[Verdict] = []
        """The verdicts of the latest call."""

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
            Verdict(self.truncated, "truncated", verdict.extracted)
            if is_truncated(ids, self.end_ids, self.max_length)
            else verdict
            for verdict, ids in zip(verdicts, completion_ids, strict=True)
        ]
        self.verdicts = verdicts
        if log_extra is not None:
            log_extra("outcome", [str(verdict.outcome) for verdict in verdicts])
            log_extra("reason", [verdict.reason or "" for verdict in verdicts])
        return [REWARDS[verdict.outcome] for verdict in verdicts]


_ADDED = ("problem", "problem_id", "answer", "solution", "teacher_prompt")


def without_added_columns(function: Any) -> Any:
    """The reward function, called without the columns that this package adds and its signature does not name.

    TRL passes every column. A function that names all columns of its data set needs no ``**kwargs`` in TRL.
    """
    if isinstance(function, str | nn.Module):
        return function
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin
        return function
    unnamed = [name for name in _ADDED if name not in parameters]
    if not unnamed or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return function

    def named(arguments: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in arguments.items() if name not in unnamed}

    if is_async_callable(function):

        @functools.wraps(function)
        async def wrapped(**arguments: Any) -> Any:
            return await function(**named(arguments))
    else:

        @functools.wraps(function)
        def wrapped(**arguments: Any) -> Any:
            return function(**named(arguments))

    wrapped.__name__ = get_callable_name(function)
    return wrapped


def is_truncated(completion_ids: Sequence[int], end_ids: Collection[int], max_length: int) -> bool:
    """Whether a completion was cut at the length limit: it has ``max_length`` ids or more, the last not in ``end_ids``.

    A shorter one ended by itself: by an end token, a stop string, or its ``rollout_func``.
    """
    return len(completion_ids) >= max_length and completion_ids[-1] not in end_ids


def outcome_of(reward: float, threshold: float) -> int:
    """+1 for a reward of at least ``threshold``, −1 below it, 0 for NaN; compared in float32, as TRL has rewards."""
    if math.isnan(reward):
        return 0
    return 1 if np.float32(reward) >= np.float32(threshold) else -1


# ---- before the first step


def is_reward_function(verifier: Any) -> TypeGuard[Callable[..., Any]]:
    """Whether what was passed as a verifier is a reward function: it can be called, and has no ``verify_many``."""
    return callable(verifier) and not callable(getattr(verifier, "verify_many", None))


def check_reward_arguments(args: Any, reward_funcs: Any, verifier: Any = None) -> None:
    """Check reward functions, verifier and their settings before any weight is loaded.

    Raises:
        ConfigError: an argument of the wrong type, or a setting that would have no effect.
    """
    if verifier is not None and not callable(verifier) and not callable(getattr(verifier, "verify_many", None)):
        raise ConfigError(
            "verifier has no verify_many",
            got=_described(verifier),
            expected="an object with verify_many, such as get_verifier('math'), or a reward function",
        )
    if reward_funcs is None:
        default = type(args).success_threshold
        if args.reward_weights is not None or args.success_threshold != default:
            raise ConfigError(
                "settings have no effect where a verifier judges",
                got=f"reward_weights {args.reward_weights}, success_threshold {args.success_threshold}",
                expected=f"reward_weights None, success_threshold {default}",
                remedy="leave them out, pass reward_funcs, or for a reward function as verifier set "
                "verifier_options: {threshold: …}",
            )
        return
    if verifier is not None:
        raise ConfigError("verifier would have no effect beside reward_funcs", remedy="leave out one of them")
    if args.verifier != type(args).verifier or args.verifier_options is not None:
        raise ConfigError(
            "settings have no effect beside reward_funcs",
            got=f"verifier {args.verifier}, verifier_options {args.verifier_options}",
            expected=f"verifier {type(args).verifier}, verifier_options None",
            remedy="leave them out, or leave out reward_funcs",
        )
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    for function in functions:
        if not (callable(function) or isinstance(function, str)) or function in NAMES:
            raise ConfigError(
                "reward_funcs contains no reward function",
                got=_described(function),
                expected="a reward function, or a list of them",
                remedy="pass a verifier as verifier, or set args.verifier to its name",
            )
    if not functions:
        raise ConfigError("reward_funcs is empty", remedy="leave it out to use args.verifier")
    if args.reward_weights is not None and len(args.reward_weights) != len(functions):
        raise ConfigError(
            "reward_weights and reward_funcs differ in number",
            got=f"{len(args.reward_weights)} weights",
            expected=str(len(functions)),
        )


def _described(value: Any) -> str:
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
    """Call each reward function once as TRL will, with made-up completions of a real row.

    Reward models (``nn.Module`` or a name) are not called.

    Args:
        reward_funcs: the trainer's.
        row: of the training data.
        tokenizer: of the run.
        end_id: ends each completion.
        count: completions, two or more, so that a function that returns one reward per batch is found.
        loop: TRL's running event loop, to which asynchronous functions may have bound resources; ``None``: a new loop.

    Raises:
        ConfigError: the function raises, reads columns that the data set does not have, or does not return one number
            or ``None`` per completion.
    """
    texts = [f"Let me see. The answer is \\boxed{{{n}}}." for n in range(count)]
    columns = {name: [value] * count for name, value in row.items() if name not in _OF_TRL}
    is_conversation = not isinstance(row["prompt"], str)
    arguments = {
        "prompts": [row["prompt"]] * count,
        "completions": [[{"role": "assistant", "content": text}] if is_conversation else text for text in texts],
        "completion_ids": [[*tokenizer(text, add_special_tokens=False)["input_ids"], end_id] for text in texts],
        **columns,
        "trainer_state": TrainerState(epoch=0.0, max_steps=1, num_train_epochs=1),  # functions may divide by them
        "log_extra": lambda name, values: None,
        "log_metric": lambda name, value: None,
    }
    for function in reward_funcs:
        if isinstance(function, str | nn.Module):
            continue
        name = str(getattr(function, "__name__", None) or type(function).__name__)
        try:
            rewards = _call(function, arguments, loop)
        except ConfigError as error:  # a verifier's
            raise ConfigError(f"verifier {name} fails on a made-up completion", got=error.got) from error
        except SGSDError:
            raise
        except Exception as error:  # the function is the user's and may raise anything
            raise ConfigError(
                f"reward function {name} fails on a made-up completion",
                got=f"{type(error).__name__}: {error}",
                expected=f"a reward for each completion; the data has the columns {', '.join(columns)}",
            ) from error
        _check_rewards(name, rewards, count)
        if isinstance(function, VerifierReward):
            _check_verdicts(name, function.verdicts)


def is_awaited(function: Any) -> bool:
    """Whether a reward function is asynchronous; one given by the name of a model is not."""
    return callable(function) and is_async_callable(function)


_OF_TRL = ("prompt", "completion", "completion_ids")
"""Columns that TRL does not pass as columns."""


def _call(function: Callable[..., Any], arguments: Mapping[str, Any], loop: asyncio.AbstractEventLoop | None) -> Any:
    if not is_async_callable(function):
        return function(**arguments)

    async def awaited() -> Any:
        return await function(**arguments)

    if loop is not None:
        return asyncio.run_coroutine_threadsafe(awaited(), loop).result()
    with ThreadPoolExecutor(1) as thread:  # asyncio.run fails in a notebook's thread, which runs a loop
        return thread.submit(asyncio.run, awaited()).result()


def _check_rewards(name: str, rewards: Any, count: int) -> None:
    expected = f"a list of {count} numbers, one for each completion (None: undecided)"
    try:
        values = list(rewards)
    except TypeError as error:
        what = f"reward function {name} does not return a list"
        raise ConfigError(what, got=repr(rewards), expected=expected) from error
    if len(values) != count:
        raise ConfigError(f"reward function {name} returns {len(values)} rewards", expected=expected)
    for value in values:
        try:
            valid = value is None or not (isinstance(value, str) or math.isinf(float(value)))
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise ConfigError(f"reward function {name} returns a wrong value", got=repr(value), expected=expected)


def _check_verdicts(name: str, verdicts: Sequence[Verdict]) -> None:
    """Refuse a verifier that failed in its worker process: it does not raise, but all verdicts say why."""
    error, reasons = "verifier error: ", [verdict.reason or "" for verdict in verdicts]
    if reasons and all(reason.startswith(error) for reason in reasons):
        raise ConfigError(
            f"verifier {name} fails on a made-up completion",
            got=reasons[0].removeprefix(error),
            expected="a verdict on every completion",
        )
