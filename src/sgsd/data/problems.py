"""The type of a problem, and keys for equal texts and equal answers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

Row: TypeAlias = Mapping[str, object]
Message: TypeAlias = Mapping[str, object]
"""``role``, ``content``, and other keys that a chat template reads."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One verifiable problem.

    Attributes:
        id: unique within a data set, stable across runs.
        text: the question, without the instructions that a data set puts around it.
        answer: the reference answer. Only the verifier and the OPSD baseline see it.
        solution: a reference solution, if the data set has one. SGSD does not use it.
        reference: the verifier's reference if that is more than ``answer`` (reasoning-gym needs its whole entry as
            JSON); ``None`` means ``answer``.
        source: the data set and row it came from.
        prompt: the full prompt if the data set has one, as in TRL: a conversation, or text that is used without a chat
            template. ``None`` means that the prompt is made of ``text`` and the instruction.
        columns: the row's own columns except ``prompt``, unchanged; they are passed to reward functions.
    """

    id: str
    text: str
    answer: str
    solution: str | None = None
    reference: str | None = None
    source: str = ""
    prompt: str | tuple[Message, ...] | None = field(default=None, hash=False)
    columns: Row = field(default_factory=dict[str, object], compare=False, repr=False)

    @property
    def key(self) -> str:
        """The reference for the verifier."""
        return self.answer if self.reference is None else self.reference

    @property
    def reward_columns(self) -> Row:
        """The columns that a reward function used as verifier is passed, as in training."""
        derived = {"problem": self.text, "problem_id": self.id, "answer": self.key}
        return {**self.columns, **derived, "solution": self.solution or self.answer}


class DropReason(StrEnum):
    """Why a row was dropped."""

    MALFORMED = "malformed"
    NO_TEXT = "no_text"
    NO_ANSWER = "no_answer"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Dropped:
    """A dropped row: its id, the reason, and details."""

    id: str
    reason: DropReason
    why: str


DIGIT_GROUPS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"([+-]?)(\d+)(?:\.(\d*))?")


def same_text(text: str) -> str:
    """A key for equal texts: Unicode composition and white space are normalised, case is kept."""
    # NFC, not NFKC: x² and x2 are different problems. Case stays too: A and a are different points.
    return " ".join(unicodedata.normalize("NFC", text).split())


def same_answer(answer: str) -> str:
    """A key for equal answers: no spaces at the ends, enclosing ``$``, digit groups, leading or trailing zeros."""
    plain = " ".join(answer.strip().strip("$").split())
    if DIGIT_GROUPS.fullmatch(plain):
        plain = plain.replace(",", "")
    if number := _NUMBER.fullmatch(plain):
        sign, whole, decimals = number[1], number[2].lstrip("0") or "0", (number[3] or "").rstrip("0")
        magnitude = f"{whole}.{decimals}" if decimals else whole
        return f"-{magnitude}" if sign == "-" and magnitude != "0" else magnitude
    return plain
