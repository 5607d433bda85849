"""Rewards before the first step: what could not reward is refused, and each function is called once."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch import nn
from transformers import TrainerState
from trl.trainer.utils import is_async_callable

from sgsd.errors import ConfigError, SGSDError
from sgsd.trainers.rewards import VerifierReward
from sgsd.verifiers import Outcome, Verdict
from sgsd.verifiers.verifier import NAMES


def check_verifier(verifier: Any) -> None:
    """Refuse a ``verifier`` that is neither a ``Verifier`` nor a reward function, before anything is loaded.

    Raises:
        ConfigError: with what it is.
    """
    if not callable(verifier) and not callable(getattr(verifier, "verify_many", None)):
        raise ConfigError(
            "verifier cannot verify",
            got=repr(verifier) if isinstance(verifier, str) else type(verifier).__name__,
            expected="an object with verify_many, such as get_verifier('math'), or a reward function",
        )


def check_reward_arguments(args: Any, reward_funcs: Any, verifier: Any = None) -> None:
    """Refuse reward functions, and settings of theirs, that nothing would read or that could not reward.

    Args:
        args: the run's settings.
        reward_funcs: of the trainer; ``None`` where a verifier judges.
        verifier: given beside them.

    Raises:
        ConfigError: one line, before any weight is loaded.
    """
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
                got=repr(function) if isinstance(function, str) else type(function).__name__,
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


_MADE_UP = "Let me see. The answer is \\boxed{0}."


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

    A whole group of the same row, of two or more: a function that returns one reward for a batch is seen. Reward models
    (``nn.Module``) are left to TRL.

    Args:
        reward_funcs: of the trainer.
        row: of the training set: its prompt and columns.
        tokenizer: makes the completions' ids.
        end_id: ends them.
        count: completions, two or more.
        loop: a running one, which asynchronous functions are called on: what they keep may be bound to it. ``None``:
            one of their own.

    Raises:
        ConfigError: the function raises, returns something else than one number or ``None`` a completion, or asks for
            columns that the data set does not have.
    """
    texts = [_MADE_UP.replace("0", str(n)) for n in range(count)]
    columns = {
        name: [value] * count for name, value in row.items() if name not in ("prompt", "completion", "completion_ids")
    }
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
        if not isinstance(function, nn.Module):
            name = _name_of(function)
            _check_rewards(name, _called(name, function, given, loop), len(texts))
            if isinstance(function, VerifierReward):
                _check_verdicts(name, function.verdicts)


def _called(
    name: str, function: Callable[..., Any], given: Mapping[str, Any], loop: asyncio.AbstractEventLoop | None
) -> Any:
    try:
        if is_async_callable(function):

            async def awaited() -> Any:
                return await function(**given)

            if loop is not None:
                return asyncio.run_coroutine_threadsafe(awaited(), loop).result()
            with ThreadPoolExecutor(1) as own:  # a notebook's thread has a loop already
                return own.submit(asyncio.run, awaited()).result()
        return function(**given)
    except ConfigError as error:  # a verifier's, which knows what is wrong
        raise ConfigError(f"verifier {name} fails on a made-up completion", got=error.got) from error
    except SGSDError:
        raise
    except Exception as error:  # the function is the user's and may raise anything
        columns = ", ".join(column for column in given if column not in _GIVEN_BY_TRL)
        raise ConfigError(
            f"reward function {name} fails on a made-up completion",
            got=f"{type(error).__name__}: {error}",
            expected=f"a reward for each completion; columns of the data: {columns}",
        ) from error


_GIVEN_BY_TRL = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")


def _check_rewards(name: str, rewards: Any, count: int) -> None:
    expected = f"a list of {count} numbers, one for each completion (None: undecided)"
    try:
        values = list(rewards)
    except TypeError as error:
        raise ConfigError(f"reward function {name} returns no list", got=repr(rewards), expected=expected) from error
    if len(values) != count:
        raise ConfigError(f"reward function {name} returns {len(values)} rewards", expected=expected)
    for value in values:
        if not _is_reward(value):
            raise ConfigError(f"reward function {name} returns what is no number", got=repr(value), expected=expected)


def _is_reward(value: Any) -> bool:
    try:
        return value is None or not (isinstance(value, str) or math.isinf(float(value)))
    except (TypeError, ValueError):
        return False


def _check_verdicts(name: str, verdicts: Sequence[Verdict]) -> None:
    """A verifier in a worker process does not raise: each verdict is undecided, and says why."""
    reasons = Counter(verdict.reason or "" for verdict in verdicts if verdict.outcome is Outcome.UNDECIDED)
    failed = [reason for reason in reasons if reason.startswith("verifier error: ")]
    if verdicts and sum(reasons[reason] for reason in failed) == len(verdicts):
        raise ConfigError(
            f"verifier {name} fails on a made-up completion",
            got=failed[0].removeprefix("verifier error: "),
            expected="a verdict on every completion",
        )


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", None) or type(function).__name__)
