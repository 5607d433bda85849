"""Regrading: stored responses judged by another verifier, and the agreement of the verdicts."""

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
"""The columns of ``disagreements``."""


def read_responses(path: Path) -> pd.DataFrame:
    """The responses of an evaluation folder, or of a file of JSON lines.

    A line is a sample of an evaluation, or an object with ``answer`` (the reference) and ``response``; ``id``,
    ``problem``, ``correct`` (the stored verdict: true or false) and ``answer_format`` are optional.

    Raises:
        DataError: no responses, an unfinished evaluation, or a line that is neither.
    """
    if path.is_dir():
        return stored_samples(Evaluation.load(path).samples)
    rows: list[Mapping[str, object]] = []
    for where, row in runfolder.read_lines(path, torn=False):
        if "completion" in row and "outcome" in row:
            rows.append(_of_sample(validated(SAMPLE, row, where)))
        else:
            rows.append(_of_response(row, where, f"{path.stem}-{int(where.rpartition(':')[2]) - 1}"))
    if not rows:
        raise DataError("the file holds no responses", got=str(path))
    return pd.DataFrame(rows, dtype=object)


def stored_samples(samples: Sequence[Sample]) -> pd.DataFrame:
    """The samples of an evaluation as stored responses.

    Raises:
        DataError: a sample has no reference answer.
    """
    return pd.DataFrame(map(_of_sample, samples), dtype=object)


def regrade(responses: pd.DataFrame, verifier: Verifier) -> pd.DataFrame:
    """Judge all responses.

    Args:
        responses: the result of ``read_responses`` or ``stored_samples``.
        verifier: the verifier.

    Returns:
        The responses with further columns: ``verdict`` and its parts ``new`` (the outcome), ``extracted`` and
        ``reason``; ``agrees`` and ``differs``, by the stored verdict, both false without one. A stored verdict that is
        ``two_valued`` does not distinguish incorrect from undecided.
    """
    rows: list[dict[str, Any]] = responses.to_dict("records")
    verdicts = verify_in_context(
        verifier,
        [row["response"] for row in rows],
        [row["reference"] for row in rows],
        lambda: [
            Context([{"role": "user", "content": text}] if text else None, columns={"problem": text})
            for text in responses["problem"]
        ],
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
    """Counts and shares of agreement as JSON values, for all responses and by the format of the answer."""
    new, changed = judged["new"], disagreements(judged)
    compared = _agreed(judged)
    formats = judged.dropna(subset="answer_format").groupby("answer_format", sort=False)
    return {
        "responses": len(judged),
        **{outcome.value: int((new == outcome).sum()) for outcome in Outcome},
        "no_answer": int(judged["extracted"].isna().sum()),
        "with_stored_verdict": compared["responses"],
        "agreed": compared["agreed"],
        "agreement": compared["agreement"],
        "now_correct": int((changed["new"] == Outcome.CORRECT).sum()),
        "no_longer_correct": int((changed["stored"] == Outcome.CORRECT).sum()),
        "by_format": {str(name): _agreed(own) for name, own in formats},
    }


def disagreements(judged: pd.DataFrame) -> pd.DataFrame:
    """The responses whose stored verdict differs, in the order of the file."""
    return judged.loc[judged["differs"].astype(bool), list(DISAGREEMENT)]


def _agreed(judged: pd.DataFrame) -> dict[str, object]:
    """Agreement among the responses with a stored verdict."""
    agreed, compared = int(judged["agrees"].sum()), int(judged["stored"].count())
    return {"responses": compared, "agreed": agreed, "agreement": agreed / compared if compared else None}


def _of_sample(sample: Sample) -> Mapping[str, object]:
    if sample.reference is None:
        raise DataError("a sample without its reference cannot be judged again", got=sample.problem_id)
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


def _of_response(row: Mapping[str, Any], where: str, name: str) -> Mapping[str, object]:
    correct, is_text = row.get("correct"), all(isinstance(row.get(part), str) for part in ("response", "answer"))
    if not (is_text and isinstance(correct, bool | None) and isinstance(row.get("answer_format"), str | None)):
        raise DataError(
            "a line is not a response",
            got=where,
            expected="text in response, answer and answer_format; in correct true or false",
        )
    return {
        "id": str(row.get("id", name)),
        "problem": str(row.get("problem", "")),
        "response": row["response"],
        "reference": row["answer"],
        "stored": None if correct is None else Outcome.CORRECT if correct else Outcome.INCORRECT,
        "two_valued": correct is not None,
        "answer_format": row.get("answer_format"),
        "truncated": False,
    }
