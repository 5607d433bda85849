"""Problems, and when two texts or two answers are the same."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

Row: TypeAlias = Mapping[str, object]
Message: TypeAlias = Mapping[str, object]
"""``role``, ``content``, and what else a chat template reads."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One verifiable problem.

    Attributes:
        id: unique within a data set, stable across runs.
        text: what the student is asked, free of any data set's instruction wrapper.
        answer: the reference answer. Only a verifier (or the OPSD baseline) ever sees it.
        solution: a reference solution, where the data set has one. SGSD never uses it.
        reference: what the verifier compares with where that is more than ``answer`` (reasoning-gym needs its whole
            entry as JSON); ``None`` means ``answer``.
        source: the data set and row it came from.
        prompt: the prompt in full where the data set brings one: a conversation, or text that no chat template is put
            around, as in TRL. ``None``: the prompt is ``text`` and the instruction.
        columns: the row's own columns but ``prompt``, as they were; reward functions are given them.
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
        """What a verifier takes as the answer."""
        return self.answer if self.reference is None else self.reference

    @property
    def reward_columns(self) -> Row:
        """What a reward function as verifier is given of this row, as in training."""
        derived = {"problem": self.text, "problem_id": self.id, "answer": self.key}
        return {**self.columns, **derived, "solution": self.solution or self.answer}


class DropReason(StrEnum):
    """Why a row is not among the problems."""

    MALFORMED = "malformed"
    NO_TEXT = "no_text"
    NO_ANSWER = "no_answer"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Dropped:
    """One row that is not among the problems: its id, the reason, and the particulars."""

    id: str
    reason: DropReason
    why: str


DIGIT_GROUPS = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_NUMBER = re.compile(r"([+-]?)(\d+)(?:\.(\d*))?")


def same_text(text: str) -> str:
    """Texts that agree in this are the same: Unicode composition and white space evened out, case kept."""
    # NFC, not NFKC: x² and x2 are different problems. Case stays too: A and a are different points.
    return " ".join(unicodedata.normalize("NFC", text).split())


def same_answer(answer: str) -> str:
    """Answers equal by eye only: spaces, enclosing ``$``, digit groups, leading and trailing zeros."""
    plain = " ".join(answer.strip().strip("$").split())
    if DIGIT_GROUPS.fullmatch(plain):
        plain = plain.replace(",", "")
    if number := _NUMBER.fullmatch(plain):
        sign, whole, decimals = number[1], number[2].lstrip("0") or "0", (number[3] or "").rstrip("0")
        magnitude = f"{whole}.{decimals}" if decimals else whole
        return f"-{magnitude}" if sign == "-" and magnitude != "0" else magnitude
    return plain
