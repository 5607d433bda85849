"""Stored responses under another verifier, without sampling again; how far the two verdicts agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sgsd import runfolder
from sgsd.errors import DataError
from sgsd.evaluation.run import SAMPLE, TRUNCATED, Evaluation, Sample
from sgsd.validation import validated
from sgsd.verifiers import Context, Outcome, Verdict, Verifier
from sgsd.verifiers.verifier import verify_in_context

DISAGREEMENT = ("id", "stored", "new", "reference", "extracted", "reason", "answer_format", "problem", "response")
"""What is kept and printed of a response."""


def regrade(responses: pd.DataFrame, verifier: Verifier) -> pd.DataFrame:
    """Judge every response anew.

    Args:
        responses: of ``read_responses``, ``stored_samples``.
        verifier: judges.

    Returns:
        The responses with ``verdict``, its parts ``new``, ``extracted`` and ``reason``, whether it ``agrees`` with
        the stored one, and whether it ``differs`` from it; without a stored one it does neither. Of a stored verdict
        that is ``two_valued``, "not correct" is the same as incorrect and as undecided.
    """
    rows: list[dict[str, Any]] = responses.to_dict("records")
    verdicts = verify_in_context(
        verifier,
        [row["response"] for row in rows],
        [row["reference"] for row in rows],
        lambda: [_context(row["problem"]) for row in rows],
    )
    for row, verdict in zip(rows, verdicts, strict=True):
        if row["truncated"]:
            verdict = Verdict(Outcome.INCORRECT, TRUNCATED, verdict.extracted)
        same = row["stored"] is verdict.outcome
        if row["two_valued"]:
            same = (row["stored"] is Outcome.CORRECT) == (verdict.outcome is Outcome.CORRECT)
        known = row["stored"] is not None
        row |= {"verdict": verdict, "new": verdict.outcome, "extracted": verdict.extracted, "reason": verdict.reason}
        row |= {"agrees": known and same, "differs": known and not same}
    return pd.DataFrame(rows, dtype=object)


def agreement(judged: pd.DataFrame) -> dict[str, object]:
    """Counts and shares as plain data: how many agree, among all and by the way answers are marked."""
    stored = judged[judged["stored"].notna()]
    new, changed = judged["new"], judged[judged["differs"].astype(bool)]
    agreed = int(stored["agrees"].sum())
    formats = judged.dropna(subset="answer_format").groupby("answer_format", sort=False)
    return {
        "responses": len(judged),
        **{outcome.value: int((new == outcome).sum()) for outcome in Outcome},
        "no_answer": int(judged["extracted"].isna().sum()),
        "with_stored_verdict": len(stored),
        "agreed": agreed,
        "agreement": agreed / len(stored) if len(stored) else None,
        "now_correct": int((changed["new"] == Outcome.CORRECT).sum()),
        "no_longer_correct": int((changed["stored"] == Outcome.CORRECT).sum()),
        "by_format": {str(name): _share(int(own["agrees"].sum()), int(own["stored"].count())) for name, own in formats},
    }


def disagreements(judged: pd.DataFrame) -> pd.DataFrame:
    """Those whose stored verdict is another, in the file's order."""
    return judged.loc[judged["differs"].astype(bool), list(DISAGREEMENT)]


def stored_samples(samples: Sequence[Sample]) -> pd.DataFrame:
    """The samples of an evaluation as stored responses.

    Raises:
        DataError: samples without their reference.
    """
    return pd.DataFrame([_of_sample(sample, sample.problem_id) for sample in samples], dtype=object)


def read_responses(path: Path) -> pd.DataFrame:
    """The responses of an evaluation folder, or of a file of JSON lines.

    A line is a sample of an evaluation, or an object with ``answer`` (the reference) and ``response``; ``id``,
    ``problem``, ``correct`` (the stored verdict: true or false) and ``answer_format`` are optional.

    Raises:
        DataError: nothing there, an unfinished evaluation, or a line that is neither.
    """
    if path.is_dir():
        return stored_samples(Evaluation.load(path).samples)
    if not path.is_file():
        raise DataError(
            "no such file of responses", got=str(path), expected=f"JSON lines, or a folder with {runfolder.SAMPLES}"
        )
    lines = runfolder.read_lines(path, torn=False)
    rows = [_read_row(row, where, f"{path.stem}-{int(where.rpartition(':')[2]) - 1}") for where, row in lines]
    if not rows:
        raise DataError("the file holds no responses", got=str(path))
    return pd.DataFrame(rows, dtype=object)


def _context(problem: str) -> Context:
    return Context([{"role": "user", "content": problem}] if problem else None, columns={"problem": problem})


def _share(agreed: int, compared: int) -> dict[str, object]:
    return {"responses": compared, "agreed": agreed, "agreement": agreed / compared if compared else None}


def _of_sample(sample: Sample, where: str) -> Mapping[str, object]:
    if sample.reference is None:
        raise DataError("a sample without its reference cannot be judged again", got=where)
    return {
        "id": f"{sample.problem_id}:{sample.sample}",
        "problem": sample.problem or "",
        "response": sample.completion,
        "reference": sample.reference,
        "stored": Outcome(sample.outcome),
        "two_valued": False,
        "answer_format": None,
        "truncated": sample.is_truncated,
    }


def _read_row(row: Mapping[str, Any], where: str, name: str) -> Mapping[str, object]:
    if "completion" in row and "outcome" in row:
        return _of_sample(validated(SAMPLE, row, where), where)
    for field in ("response", "answer"):
        if not isinstance(row.get(field), str):
            raise DataError(
                f"a response without {field}",
                got=where,
                expected="text in response and answer; id, problem, correct, answer_format are optional",
            )
    correct, answer_format = row.get("correct"), row.get("answer_format")
    if not isinstance(correct, bool | None):
        raise DataError("the stored verdict is neither true nor false", got=f"{where}: correct {correct!r}")
    return {
        "id": str(row.get("id", name)),
        "problem": str(row.get("problem", "")),
        "response": row["response"],
        "reference": row["answer"],
        "stored": None if correct is None else Outcome.CORRECT if correct else Outcome.INCORRECT,
        "two_valued": correct is not None,
        "answer_format": None if answer_format is None else str(answer_format),
        "truncated": False,
    }
