"""Rows of public data sets → ``Problem``."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    id: str
    text: str
    answer: str
    solution: str | None = None
    reference: str | None = None
    source: str = ""

    @property
    def key(self) -> str:
        """What a verifier takes as the answer."""
        return self.answer if self.reference is None else self.reference
