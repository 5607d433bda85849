"""Makes a verifier from its name and options; verifiers judge completions in worker processes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

from sgsd.display import logger
from sgsd.verifiers.errors import ConfigError, check_choice
from sgsd.verifiers.pool import Pool, shared_pool
from sgsd.verifiers.reward import COLUMNS, NEEDS, text_of
from sgsd.verifiers.thinking import CompletionText, Tokenizer
from sgsd.verifiers.verdict import Context, Outcome, Verdict, Verifier
from sgsd.verifiers.worker import ERROR

_log = logger(__name__)

SECONDS = 5.0
MEMORY_GB = 4.0
REWARD_MEMORY_GB = 64.0  # torch reserves address space it never uses

NAMES = ("math", "exact", "choice", "reasoning_gym")
_OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in NAMES},
    "exact": {"ignore_case": True},
    "reward": {"threshold": 0.5},
}
# Option → its types, whether it must be positive, and the expected value as text.
_VALUES: dict[str, tuple[tuple[type, ...], bool, str]] = {
    **dict.fromkeys(("timeout", "memory_gb"), ((int, float), True, "a positive number")),
    "workers": ((int,), True, "a whole number, at least 1"),
    "ignore_case": ((bool,), False, "true or false"),
    "threshold": ((int, float), False, "a number"),
}
_OURS = "sgsd.verifiers."
_NUMBER = re.compile(r"-?[0-9]{1,30}(?:\.[0-9]{1,30})?")
REWARDS: dict[Outcome, float | None] = {Outcome.CORRECT: 1.0, Outcome.INCORRECT: 0.0, Outcome.UNDECIDED: None}


class PooledVerifier:
    """A ``Verifier`` whose every verification runs in a worker process under a hard timeout, see ``get_verifier``.

    It can be used from any thread. The workers start when first needed, are shared by all verifiers of the same size,
    and end with the process.

    Attributes:
        name: of ``get_verifier``.
        takes_context: whether it is a reward function, which is also passed the fields of a ``Context``.
    """

    def __init__(self, name: str, grader: Mapping[str, Any], pool: Pool, timeout: float) -> None:
        self.name = name
        self._grader = json.dumps(grader, sort_keys=True)
        self._pool = pool
        self._timeout = timeout
        self.takes_context = grader["kind"] == "reward"
        self._plain_numbers = grader["kind"] in ("math", "exact")
        self._has_worked = False
        self._said: set[str] = set()

    def __enter__(self) -> PooledVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PooledVerifier({self._grader}, timeout={self._timeout:g})"

    def warm_up(self) -> None:
        """Start the workers now.

        Raises:
            ConfigError: if the verifier cannot be loaded.
        """
        self._pool.warm_up(self._grader)

    def close(self) -> None:
        """End the workers, for all verifiers that share them. Verifying again starts new ones."""
        self._pool.close()

    def verify(self, completion: str, answer: str, context: Context | None = None) -> Verdict:
        """Judge one completion, see ``verify_many``."""
        return self.verify_many([completion], [answer], None if context is None else [context])[0]

    def verify_many(
        self, completions: Sequence[str], answers: Sequence[str], contexts: Sequence[Context] | None = None
    ) -> list[Verdict]:
        """Judge ``completions[i]`` against ``answers[i]``; ``contexts[i]`` is passed to a reward function as well.

        If a grader of this package exceeds its time or memory or raises, the completion is incorrect if the reference
        alone can be read, else undecided. If a reward function fails, the completion is undecided.

        Raises:
            ValueError: if the sequences differ in length.
            ConfigError: if the verifier cannot be loaded, or a reward function requires an argument that is missing, or
                has raised on each of the two or more completions that it has been given so far.
        """
        messages: list[dict[str, Any]] = [
            {"completion": completion, "answer": answer}
            for completion, answer in zip(completions, answers, strict=True)
        ]
        if self.takes_context and contexts is not None:
            for message, context in zip(messages, contexts, strict=True):
                message["context"] = [_plain(context)]
        verdicts = self._run(messages)
        if self.takes_context:
            self._refuse_broken(verdicts)
            if not self._pool.fenced:
                return verdicts
        return self._resolved(verdicts, answers)

    def readable(self, answer: str) -> bool:
        """Whether this reference can be read. A worker reads it within the timeout, unless it is a plain number."""
        if self._plain_numbers and _NUMBER.fullmatch(answer):
            return True
        verdict = self._run([{"check": answer}])[0]
        if verdict.reason is not None and " is refused: " in verdict.reason:
            self._say(verdict.reason)
        return verdict.outcome is Outcome.CORRECT

    def _say(self, text: str) -> None:
        """Warn, once."""
        if text not in self._said:
            self._said.add(text)
            _log.warning("%s", text)

    @cached_property
    def reward(self) -> Callable[..., list[float | None]]:
        """This verifier as a reward function for TRL: ``GRPOTrainer(reward_funcs=get_verifier("math").reward)``.

        1.0 for correct, 0.0 for incorrect, ``None`` for undecided, which TRL leaves out. The reference is the column
        ``answer``, or else ``solution``, ``ground_truth`` or ``target``. A row without one is undecided.
        """
        return self._reward(None)

    def reward_for(self, tokenizer: Tokenizer) -> Callable[..., list[float | None]]:
        """``reward`` for models whose marks of thoughts are special tokens, which TRL drops before it calls a function.

        The function decodes ``completion_ids`` itself, and keeps these marks.
        """
        return self._reward(CompletionText(tokenizer))

    def _reward(self, decode: CompletionText | None) -> Callable[..., list[float | None]]:
        def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
            named = [name for name in COLUMNS if columns.get(name) is not None]
            if not named:
                raise ConfigError(
                    f"verifier {self.name} has no references", expected=f"a column {' or '.join(COLUMNS)}"
                )
            texts = map(text_of, completions) if decode is None else map(decode, columns["completion_ids"])
            verdicts = self.verify_many(
                list(texts),
                ["" if answer is None else str(answer) for answer in columns[named[0]]],
                contexts_of(completions, **columns) if self.takes_context else None,
            )
            return [REWARDS[verdict.outcome] for verdict in verdicts]

        reward.__name__ = self.name.rpartition(":")[2].rpartition(".")[2]
        return reward

    def _run(self, messages: Sequence[dict[str, Any]]) -> list[Verdict]:
        return self._pool.run(self._grader, messages, self._timeout)

    def _refuse_broken(self, verdicts: Sequence[Verdict]) -> None:
        """Refuse a reward function that always fails: it would look like one that leaves everything undecided."""
        reasons = [verdict.reason or "" for verdict in verdicts]
        asks = next((reason for reason in reasons if reason.startswith(NEEDS)), None)
        if asks is not None:
            raise ConfigError(f"verifier {self.name} cannot judge", got=asks)
        raised = [reason for reason in reasons if reason.startswith(ERROR)]
        self._has_worked |= len(raised) < len(reasons)
        if len(raised) > 1 and not self._has_worked:
            raise ConfigError(f"verifier {self.name} raises on every completion", got=raised[0].removeprefix(ERROR))

    def _resolved(self, verdicts: list[Verdict], answers: Sequence[str]) -> list[Verdict]:
        """Undecided verdicts become incorrect if the reference alone can be read: then the completion is the cause."""
        undecided = [place for place, verdict in enumerate(verdicts) if verdict.outcome is Outcome.UNDECIDED]
        for reason in {verdicts[place].reason or "" for place in undecided}:
            if reason.startswith(ERROR):
                self._say(
                    f"verifier {self.name} raised {reason.removeprefix(ERROR)}; the completion is incorrect if "
                    "the reference alone can be read, else undecided"
                )
        references = list(dict.fromkeys(answers[place] for place in undecided))
        checks = self._run([{"check": answer} for answer in references])
        sound = {answer for answer, check in zip(references, checks, strict=True) if check.outcome is Outcome.CORRECT}
        for place in undecided:
            if answers[place] in sound:
                verdicts[place] = dataclasses.replace(verdicts[place], outcome=Outcome.INCORRECT)
        return verdicts


def contexts_of(
    completions: Sequence[Any],
    prompts: Sequence[Any] | None = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
    **columns: Any,
) -> list[Context]:
    """The contexts of a batch, from the arguments that TRL's trainer passes to reward functions."""
    rows = range(len(completions))
    lists = {name: cast(Sequence[Any], values) for name, values in columns.items() if isinstance(values, list | tuple)}
    return [
        Context(
            prompt=None if prompts is None else prompts[row],
            completion=completions[row],
            completion_ids=None if completion_ids is None else completion_ids[row],
            columns={name: values[row] for name, values in lists.items() if len(values) == len(rows)},
        )
        for row in rows
    ]


def verify_in_context(
    verifier: Verifier, completions: Sequence[str], answers: Sequence[str], contexts: Callable[[], Sequence[Context]]
) -> list[Verdict]:
    """``verify_many`` with contexts for a verifier that takes them, and without for any other."""
    if isinstance(verifier, PooledVerifier) and verifier.takes_context:
        return verifier.verify_many(completions, answers, contexts())
    return verifier.verify_many(completions, answers)


def _plain(context: Context) -> dict[str, Any]:
    """A context in JSON's types. A column that JSON cannot hold (an image) is left out."""
    columns = {name: value for name, value in context.columns.items() if _is_plain(value)}
    return {
        "prompt": context.prompt,
        "completion": context.completion,
        "completion_ids": None if context.completion_ids is None else [int(i) for i in context.completion_ids],
        "columns": columns,
    }


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def get_verifier(name: str, **options: Any) -> PooledVerifier:
    """Make the verifier of this name.

    Args:
        name: ``math``, ``exact``, ``choice``, ``reasoning_gym``, or the dotted path of a TRL reward function
            (``package.module:function`` or ``package.module.function``).
        **options: ``timeout``: seconds an item may take (5). ``workers``: processes (the number of cores, at most 4).
            ``memory_gb``: address space of each process (4; 64 for a reward function). ``ignore_case`` (``exact``;
            true). ``threshold`` (reward functions; 0.5): the reward from which an answer is correct.

    Raises:
        ConfigError: on an unknown name or option, or a value out of range.
    """
    is_function = "." in name or ":" in name
    if not is_function:
        check_choice("verifier", name, (*NAMES, "package.module:function"))
    kind = "reward" if is_function else name
    fenced = kind != "reward" or name.startswith(_OURS)
    common: dict[str, Any] = {"timeout": SECONDS, "workers": min(4, os.cpu_count() or 1)}
    common["memory_gb"] = MEMORY_GB if fenced else REWARD_MEMORY_GB
    known = common | _OPTIONS[kind]
    chosen = known | options
    for option, value in chosen.items():
        check_choice(f"option of verifier {name}", option, sorted(known))
        types, positive, expected = _VALUES[option]
        if type(value) not in types or (positive and not 0 < value < float("inf")):
            raise ConfigError(f"{option} of verifier {name}", got=repr(value), expected=expected)
    description = {"kind": kind, **{option: chosen[option] for option in _OPTIONS[kind]}}
    if kind == "reward":
        description["path"] = name
    pool = shared_pool(chosen["workers"], float(chosen["memory_gb"]), fenced=fenced)
    return PooledVerifier(name, description, pool, float(chosen["timeout"]))


def names_code(name: str) -> bool:
    """Whether a verifier's name is the path of a user's function, which is imported and run."""
    return name not in NAMES and not name.startswith(_OURS)
