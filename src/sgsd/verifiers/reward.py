"""Makes a verifier of a TRL reward function, and reads the completions and columns that TRL passes."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from sgsd.verifiers.verdict import UNREADABLE, Context, Grader, Outcome, Verdict

COLUMNS = ("answer", "solution", "ground_truth", "target")
"""The names of the reference, as a column of data sets and as an argument of reward functions."""
NEEDS = "the reward function needs "
"""The start of the reason if a function requires an argument that is missing: no completion can be judged."""

_OWN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments")


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
    return found


def text_of(completion: Any) -> str:
    """The text of a completion as TRL passes it to reward functions: a text, or messages, of which the last counts."""
    content: Any = completion if isinstance(completion, str) else completion[-1]["content"] if completion else ""
    if isinstance(content, str):
        return content
    parts = cast(Sequence[Mapping[str, Any]], content or ())  # of a model that sees images
    return "".join(str(part.get("text", "")) for part in parts)


def why_unreadable(answer: str) -> str | None:
    """The reason if a reference is empty; ``None`` if it is not. What else the function needs of it is not known."""
    return None if answer.strip() else UNREADABLE.reason


def make_grader(*, path: str, threshold: float) -> Grader:
    """A grader: correct if the reward is at least ``threshold``; undecided if it is ``None`` or NaN, or the function
    raises.

    The function is called as TRL's trainer calls it, with a batch of one, and awaited if it is asynchronous. Its
    arguments are the fields of the context, and the reference under each of ``COLUMNS`` that is not a column of the
    data set. A function without ``**kwargs`` gets only the arguments that it names.
    """
    function = find(path)
    parameters = inspect.signature(function).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    required = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    loop = asyncio.new_event_loop()  # one for all items, since clients stay bound to their loop

    async def awaited(reward: Awaitable[Any]) -> Any:
        return await reward

    def grade(completion: str, answer: str, context: Mapping[str, Any] | None = None) -> Verdict:
        given = Context(**context) if context is not None else Context()
        offered: dict[str, Any] = {
            **{name: [answer] for name in COLUMNS},
            **{name: [value] for name, value in given.columns.items() if name not in _OWN},
            "answer": [answer],
            "completions": [given.completion or [{"role": "assistant", "content": completion}]],
            "log_extra": _ignored,
            "log_metric": _ignored,
        }
        for name, value in (("prompts", given.prompt), ("completion_ids", given.completion_ids)):
            if value is not None:
                offered[name] = [value]
        if missing := [name for name in required if name not in offered]:
            there = ", ".join(sorted({*offered} - {*_OWN, *COLUMNS})) or "none"
            return Verdict(Outcome.UNDECIDED, f"{NEEDS}{', '.join(missing)}; columns of the data: {there}")
        arguments = offered if open_ended else {name: value for name, value in offered.items() if name in parameters}
        rewards: Any = function(**arguments)
        if inspect.isawaitable(rewards):
            rewards = loop.run_until_complete(awaited(rewards))
        if len(rewards) != 1:
            raise ValueError(f"{len(rewards)} rewards for one completion")
        reward: Any = rewards[0]
        if reward is None or math.isnan(float(reward)):
            return Verdict(Outcome.UNDECIDED, f"reward is {reward}")
        return Verdict(
            Outcome.CORRECT if float(reward) >= threshold else Outcome.INCORRECT, f"reward {float(reward):g}"
        )

    return grade


def _ignored(*_: object) -> None:
    """TRL's ``log_extra`` and ``log_metric``: what they would log stays in the worker."""
