"""A TRL reward function as a verifier."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

from sgsd.verifiers.verdict import Outcome, Verdict
from sgsd.verifiers.worker import Grader

COLUMNS = ("answer", "solution", "ground_truth", "target")
"""The names under which data sets hold the reference, and reward functions ask for it."""


def find(path: str) -> Callable[..., Any]:
    """The function at ``package.module:function`` or ``package.module.function``."""
    module, colon, name = path.partition(":")
    if not colon:
        module, _, name = path.rpartition(".")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{path} is not a function")
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__):
        raise TypeError(f"{path} is asynchronous: pass it to a trainer as reward_funcs")
    return found


def make_grader(*, path: str, threshold: float) -> Grader:
    """Correct if the reward is at least ``threshold``; undecided if it is ``None``, not a number, or the function
    raises.

    The function is called as TRL's trainer calls it, with a batch of one: conversational ``prompts`` and
    ``completions``, and the reference under each of ``COLUMNS``. Of these, a function without ``**kwargs`` gets what it
    names.
    """
    function = find(path)
    parameters = inspect.signature(function).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())

    def grade(completion: str, answer: str) -> Verdict:
        offered: dict[str, Any] = {
            "prompts": [[{"role": "user", "content": ""}]],
            "completions": [[{"role": "assistant", "content": completion}]],
            "completion_ids": [[]],
            **{column: [answer] for column in COLUMNS},
        }
        arguments = offered if open_ended else {name: value for name, value in offered.items() if name in parameters}
        rewards: Any = function(**arguments)
        reward: Any = rewards[0]
        if reward is None or math.isnan(float(reward)):
            return Verdict(Outcome.UNDECIDED, f"reward is {reward}")
        return Verdict(
            Outcome.CORRECT if float(reward) >= threshold else Outcome.INCORRECT, f"reward {float(reward):g}"
        )

    return grade
