"""Verified rollouts as memories: what skills and mistakes are extracted from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter

from sgsd.data.problems import Problem
from sgsd.validation import validated
from sgsd.verifiers.verdict import Outcome, Verdict

MAX_STEPS = 12
MAX_STEP_CHARACTERS = 240

_NO_ANSWER = frozenset({"no answer", "denied answer", "unclosed think tag"})
_WRONG_FORM = frozenset({"several answers", "too long", "unclosed box", "empty box", "box inside an expression"})
_THINK_TAG = re.compile(r"</?think>")


class FailureMode(StrEnum):
    """In which way a completion failed."""

    NO_ANSWER = "no_answer"
    TRUNCATED = "truncated"
    WRONG_VALUE = "wrong_value"
    WRONG_FORM = "wrong_form"


@dataclass(frozen=True, slots=True)
class Memory:
    """One verified rollout.

    Attributes:
        id: ``memory-`` and 16 hex digits of SHA-256 over problem id, completion, outcome, reason and source.
        problem_id, problem, answer: of the problem; the reference answer is for ``show_answer`` and leak scans alone.
        completion: what the model wrote.
        outcome: ``correct`` or ``incorrect``; what could not be judged is no memory.
        reason: the verdict's, where it gave one.
        failure_mode: ``None`` for a success.
        steps: the completion in at most ``MAX_STEPS`` lines of at most ``MAX_STEP_CHARACTERS``.
        source: which rollout it was.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    problem_id: str
    problem: str
    answer: str
    completion: str
    outcome: Annotated[str, Field(pattern="^(correct|incorrect)$")]
    reason: str | None
    failure_mode: FailureMode | None
    steps: tuple[str, ...]
    source: str

    def as_dict(self) -> dict[str, object]:
        """The memory as JSON values; ``read_memory`` reads them back."""
        return {**asdict(self), "steps": list(self.steps)}


_MEMORY = TypeAdapter(Memory)


def memory_of(problem: Problem, completion: str, verdict: Verdict, *, truncated: bool, source: str) -> Memory | None:
    """The memory of one rollout, or ``None`` where the verdict is undecided.

    Equal completions of two sources, the rollouts that they were, are two memories.
    """
    if verdict.outcome is Outcome.UNDECIDED:
        return None
    identity = json.dumps([problem.id, completion, verdict.outcome, verdict.reason, source])
    return Memory(
        id=f"memory-{hashlib.sha256(identity.encode('utf-8', 'backslashreplace')).hexdigest()[:16]}",
        problem_id=problem.id,
        problem=problem.text,
        answer=problem.answer,
        completion=completion,
        outcome=verdict.outcome.value,
        reason=verdict.reason,
        failure_mode=_failure_mode(verdict, truncated),
        steps=compact_steps(completion),
        source=source,
    )


def compact_steps(completion: str) -> tuple[str, ...]:
    """The completion's lines, long ones cut, the middle left out where there are more than ``MAX_STEPS``."""
    text = _THINK_TAG.sub("\n", completion)
    lines = [_cut(" ".join(line.split())) for line in text.splitlines() if line.strip()]
    if len(lines) <= MAX_STEPS:
        return tuple(lines)
    tail = MAX_STEPS // 2
    head = MAX_STEPS - tail - 1
    return (*lines[:head], f"… {len(lines) - head - tail} lines …", *lines[-tail:])


def read_memory(values: Mapping[str, object], where: str) -> Memory:
    """``Memory.as_dict`` → memory; ``where`` is the file and line, for a ``DataError``."""
    return validated(_MEMORY, values, f"{where}: not a memory", known=[entry.name for entry in fields(Memory)])


def _failure_mode(verdict: Verdict, truncated: bool) -> FailureMode | None:
    if verdict.outcome is Outcome.CORRECT:
        return None
    if truncated:
        return FailureMode.TRUNCATED
    if verdict.reason in _NO_ANSWER:
        return FailureMode.NO_ANSWER
    return FailureMode.WRONG_FORM if verdict.reason in _WRONG_FORM else FailureMode.WRONG_VALUE


def _cut(line: str) -> str:
    return line if len(line) <= MAX_STEP_CHARACTERS else line[: MAX_STEP_CHARACTERS - 1] + "…"
