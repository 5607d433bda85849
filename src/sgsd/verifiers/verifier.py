"""The verifiers: a name and its options → something that judges completions in worker processes."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from sgsd.errors import ConfigError
from sgsd.verifiers.pool import Pool, Request, shared_pool
from sgsd.verifiers.verdict import Outcome, Verdict

TIMEOUT = 5.0
MEMORY_GB = 4.0
REWARD_MEMORY_GB = 64.0  # torch reserves address space it never uses
_PLAIN_LENGTH = 1_000

NAMES = ("math", "exact", "choice", "reasoning_gym")
_OPTIONS: dict[str, dict[str, Any]] = {
    "math": {},
    "exact": {"ignore_case": True},
    "choice": {},
    "reasoning_gym": {},
    "reward": {"threshold": 0.5},
}


class PooledVerifier:
    """A ``Verifier`` whose every verification runs in a worker process under a hard timeout.

    Make one with ``get_verifier``. It can be used from any thread; several threads share the workers. The workers start
    when first needed, are shared with all verifiers of the same size, and end with the process.

    Args:
        grader: the description the workers load, as JSON.
        readable: whether a reference can be read, or ``None`` if only a worker can tell.
        pool: the workers.
        timeout: seconds an item may take, not counting the start of a worker.
    """

    def __init__(self, grader: str, readable: Callable[[str], bool | None], pool: Pool, timeout: float) -> None:
        self._grader = grader
        self._readable = readable
        self._pool = pool
        self._timeout = timeout

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

    def verify(self, completion: str, answer: str) -> Verdict:
        """Judge one completion.

        Raises:
            ConfigError: if the verifier cannot be loaded (a dotted path that does not import).
        """
        return self.verify_many([completion], [answer])[0]

    def verify_many(self, completions: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """Judge ``completions[i]`` against ``answers[i]``, on all workers.

        Raises:
            ValueError: if the two differ in length.
            ConfigError: if the verifier cannot be loaded.
        """
        pairs = zip(completions, answers, strict=True)
        return self._pool.run(
            [Request(self._grader, completion, answer, self._timeout) for completion, answer in pairs]
        )

    def readable(self, answer: str) -> bool:
        """Whether this reference can be read. Numbers, words and lists of them are decided without a worker."""
        decided = self._readable(answer)
        if decided is not None:
            return decided
        request = Request(json.dumps({"kind": "math", "check": True}), "", answer, self._timeout)
        return self._pool.run([request])[0].outcome is Outcome.CORRECT


def get_verifier(name: str, **options: Any) -> PooledVerifier:
    """The verifier of this name.

    Args:
        name: ``math``, ``exact``, ``choice``, ``reasoning_gym``, or the dotted path of a TRL reward function
            (``package.module:function`` or ``package.module.function``).
        **options: ``timeout``: seconds an item may take (5). ``workers``: processes (the number of cores, at most 4).
            ``memory_gb``: address space of each process (4; 64 for a reward function). ``ignore_case`` (``exact``;
            true). ``threshold`` (reward functions; 0.5): the reward from which an answer is correct.

    Raises:
        ConfigError: on an unknown name or option, or a value that makes no sense.
    """
    kind = name if name in NAMES else "reward" if "." in name or ":" in name else None
    if kind is None:
        raise _unknown("verifier", name, [*NAMES, "package.module:function"])
    common: dict[str, Any] = {
        "timeout": TIMEOUT,
        "workers": min(4, os.cpu_count() or 1),
        "memory_gb": REWARD_MEMORY_GB if kind == "reward" else MEMORY_GB,
    }
    allowed = common | _OPTIONS[kind]
    for option_name in options:
        if option_name not in allowed:
            raise _unknown(f"option of verifier {name}", option_name, sorted(allowed))
    chosen = allowed | options
    for numeric in ("timeout", "memory_gb"):
        value = chosen[numeric]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise ConfigError(f"{numeric} of verifier {name}", got=repr(value), expected="a positive number")
    workers = chosen["workers"]
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers of verifier {name}", got=repr(workers), expected="a whole number, at least 1")
    if not isinstance(chosen.get("ignore_case", True), bool):
        raise ConfigError(f"ignore_case of verifier {name}", got=repr(chosen["ignore_case"]), expected="true or false")
    threshold = chosen.get("threshold", 0.5)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise ConfigError(f"threshold of verifier {name}", got=repr(threshold), expected="a number")
    description: dict[str, Any] = {"kind": kind} | {key: chosen[key] for key in _OPTIONS[kind]}
    if kind == "reward":
        description["path"] = name
    pool = shared_pool(workers, float(chosen["memory_gb"]))
    return PooledVerifier(json.dumps(description, sort_keys=True), _READABLE[kind], pool, float(chosen["timeout"]))


def _unknown(what: str, got: str, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    return ConfigError(
        f"unknown {what}",
        got=repr(got),
        expected=", ".join(known),
        remedy=f"did you mean {near[0]!r}?" if near else None,
    )


# Imported when asked: a process that only verifies needs none of the graders itself.


def _math_readable(answer: str) -> bool | None:
    from sgsd.verifiers.grade import plainly_readable

    return plainly_readable(answer) if len(answer) <= _PLAIN_LENGTH else None


def _exact_readable(answer: str) -> bool:
    from sgsd.verifiers.exact import normalise

    return bool(normalise(answer, ignore_case=True))


def _choice_readable(answer: str) -> bool:
    from sgsd.verifiers.letters import option

    return option(answer) is not None


def _entry_readable(answer: str) -> bool:
    from sgsd.verifiers.reasoning_gym import read_entry

    return read_entry(answer) is not None


_READABLE: dict[str, Callable[[str], bool | None]] = {
    "math": _math_readable,
    "exact": _exact_readable,
    "choice": _choice_readable,
    "reasoning_gym": _entry_readable,
    "reward": lambda answer: bool(answer.strip()),
}
