"""Verdicts, and the interface of verifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


class Outcome(StrEnum):
    """The outcome of a verification: an answer that could not be judged is neither correct nor incorrect."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNDECIDED = "undecided"

    @property
    def sign(self) -> int:
        """The objective's r: +1 correct, −1 incorrect, 0 undecided."""
        return (self is Outcome.CORRECT) - (self is Outcome.INCORRECT)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one completion.

    Attributes:
        outcome: correct, incorrect or undecided.
        reason: why, if it is not just that the answers are equal or different: ``no answer``, ``several answers``,
            ``timeout``, ``unreadable reference``, …
        extracted: the answer that was compared with the reference; ``None`` if none was found.
    """

    outcome: Outcome
    reason: str | None = None
    extracted: str | None = None


UNREADABLE = Verdict(Outcome.UNDECIDED, "unreadable reference")

Grader = Callable[..., Verdict]
"""Runs in a worker: (completion, reference) → verdict; for reward functions, the fields of a ``Context`` come third."""


@dataclass(frozen=True, slots=True)
class Context:
    """What TRL passes a reward function besides a completion's text and its reference. ``None`` means unknown.

    Attributes:
        prompt: text, or the messages of a conversation.
        completion: likewise. ``None`` means one assistant message.
        completion_ids: the sampled token ids.
        columns: the data set's own columns of this row.
    """

    prompt: str | Sequence[Mapping[str, Any]] | None = None
    completion: str | Sequence[Mapping[str, Any]] | None = None
    completion_ids: Sequence[int] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Verifier(Protocol):
    """Compares completions with reference answers. Never raises on any text, in either argument."""

    def verify(self, completion: str, answer: str) -> Verdict:
        """Judge one completion against one reference answer."""
        ...

    def verify_many(self, completions: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """Judge ``completions[i]`` against ``answers[i]``. Raises ``ValueError`` if the two differ in length."""
        ...

    def readable(self, answer: str) -> bool:
        """Whether this reference can be read, so that a completion can be judged correct by it."""
        ...
