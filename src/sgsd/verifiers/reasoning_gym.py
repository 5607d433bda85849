"""reasoning-gym's own scorers, made strict. The only module that imports it; runs in a worker process."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any, cast

from sgsd.verifiers.extract import NO_ANSWER, extract_lines
from sgsd.verifiers.grade import UNREADABLE
from sgsd.verifiers.verdict import Outcome, Verdict
from sgsd.verifiers.worker import Grader

FULL_SCORE = 0.99


def read_entry(answer: str) -> dict[str, Any] | None:
    """The data set entry of a reference; ``None`` if it is not the JSON of one."""
    try:
        entry: Any = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict):
        return None
    fields = cast(dict[str, Any], entry)
    if not {"question", "answer", "metadata"} <= fields.keys():
        return None
    metadata = fields["metadata"]
    named = isinstance(metadata, dict) and isinstance(cast(dict[str, Any], metadata).get("source_dataset"), str)
    return fields if named else None


def make_grader() -> Grader:
    """Correct if the data set's ``score_answer`` gives the *extracted* answer at least 0.99.

    The scorers give partial credit for substrings and 0.01 for wrong answers. Some raise on text: the reference answer
    of the entry is scored first, so that a scorer that cannot even judge that is undecided, and what raises on the
    model's text alone is incorrect.
    """
    factory: Any = importlib.import_module("reasoning_gym.factory")
    scorers: dict[str, Callable[..., float]] = {}

    def grade(completion: str, answer: str) -> Verdict:
        entry = read_entry(answer)
        if entry is None:
            return UNREADABLE
        name = entry["metadata"]["source_dataset"]
        try:
            if name not in scorers:
                scorers[name] = factory.get_score_answer_fn(name)
        except ValueError:
            return Verdict(Outcome.UNDECIDED, f"unknown data set {name}")
        reference = "" if entry["answer"] is None else str(entry["answer"])
        found = extract_lines(completion, lines=len(reference.strip().splitlines()))
        if found.text is None:
            return Verdict(Outcome.INCORRECT, found.reason or NO_ANSWER)
        try:
            score = float(scorers[name](answer=found.text, entry=entry))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - scorers raise anything on text they do not expect
            return Verdict(Outcome.INCORRECT, f"scorer raised {type(error).__name__}", found.text[:200])
        correct = score >= FULL_SCORE
        return Verdict(
            Outcome.CORRECT if correct else Outcome.INCORRECT,
            None if correct else f"score {score:.2f}",
            found.text[:200],
        )

    return grade
