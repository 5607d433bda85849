"""Stored responses under another verifier, without sampling again; how far the two verdicts agree."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgsd import runfolder
from sgsd.errors import DataError
from sgsd.evaluation.run import TRUNCATED, Evaluation, Sample
from sgsd.rollouts import StopReason
from sgsd.verifiers import Context, Outcome, Verdict, Verifier
from sgsd.verifiers.verifier import verify_in_context


@dataclass(frozen=True, slots=True)
class Stored:
    """A response that was kept.

    Attributes:
        id: names it in tables.
        problem: the problem's text, or the empty string.
        completion: what the model wrote.
        reference: what a verifier compares with.
        outcome: the verdict kept with it; ``None`` where there is none.
        two_valued: whether that verdict knew only correct and not correct.
        answer_format: how the answer is marked, where the file says so.
        truncated: it was cut at the length limit: incorrect, whatever a verifier says.
    """

    id: str
    problem: str
    completion: str
    reference: str
    outcome: Outcome | None
    two_valued: bool = False
    answer_format: str | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Regraded:
    """A stored response and its new verdict."""

    stored: Stored
    verdict: Verdict

    @property
    def agrees(self) -> bool:
        """The two verdicts are the same; a stored "not correct" is the same as incorrect and as undecided."""
        if self.stored.two_valued:
            return (self.stored.outcome is Outcome.CORRECT) == (self.verdict.outcome is Outcome.CORRECT)
        return self.stored.outcome is self.verdict.outcome

    def to_json(self) -> dict[str, object]:
        """As a row of a table of disagreements."""
        return {
            "id": self.stored.id,
            "stored": self.stored.outcome,
            "new": self.verdict.outcome,
            "reference": self.stored.reference,
            "extracted": self.verdict.extracted,
            "reason": self.verdict.reason,
            "answer_format": self.stored.answer_format,
            "problem": self.stored.problem,
            "response": self.stored.completion,
        }


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of the responses with a stored verdict got the same again."""

    agreed: int
    compared: int

    @property
    def share(self) -> float | None:
        """``agreed / compared``; ``None`` where no verdict was stored."""
        return self.agreed / self.compared if self.compared else None


@dataclass(frozen=True, slots=True)
class Regrading:
    """Every response of a file under a verifier."""

    rows: tuple[Regraded, ...]

    @property
    def agreement(self) -> Agreement:
        return _agreement(self.rows)

    @property
    def disagreements(self) -> tuple[Regraded, ...]:
        """Those whose stored verdict is another, in the file's order."""
        return tuple(row for row in self.rows if row.stored.outcome is not None and not row.agrees)

    @property
    def by_format(self) -> Mapping[str, Agreement]:
        """Agreement by the way answers are marked, in the file's order; empty where no row says."""
        formats = dict.fromkeys(row.stored.answer_format for row in self.rows if row.stored.answer_format is not None)
        return {name: _agreement([row for row in self.rows if row.stored.answer_format == name]) for name in formats}

    def summary(self) -> dict[str, object]:
        """Counts and shares as plain data."""
        agreement = self.agreement
        judged = {outcome.value: sum(row.verdict.outcome is outcome for row in self.rows) for outcome in Outcome}
        return {
            "responses": len(self.rows),
            **judged,
            "no_answer": sum(row.verdict.extracted is None for row in self.rows),
            "with_stored_verdict": agreement.compared,
            "agreed": agreement.agreed,
            "agreement": agreement.share,
            "now_correct": sum(row.verdict.outcome is Outcome.CORRECT for row in self.disagreements),
            "no_longer_correct": sum(row.stored.outcome is Outcome.CORRECT for row in self.disagreements),
            "by_format": {
                name: {"responses": own.compared, "agreed": own.agreed, "agreement": own.share}
                for name, own in self.by_format.items()
            },
        }


def regrade(responses: Sequence[Stored], verifier: Verifier) -> Regrading:
    """Judge every response anew."""
    verdicts = verify_in_context(
        verifier,
        [one.completion for one in responses],
        [one.reference for one in responses],
        lambda: [
            Context(
                [{"role": "user", "content": one.problem}] if one.problem else None, columns={"problem": one.problem}
            )
            for one in responses
        ],
    )
    return Regrading(
        tuple(
            Regraded(one, Verdict(Outcome.INCORRECT, TRUNCATED, verdict.extracted) if one.truncated else verdict)
            for one, verdict in zip(responses, verdicts, strict=True)
        )
    )


def stored_samples(samples: Sequence[Sample]) -> list[Stored]:
    """The samples of an evaluation as stored responses.

    Raises:
        DataError: samples without their reference.
    """
    return [_of_sample(sample, sample.problem_id) for sample in samples]


def read_responses(path: Path) -> list[Stored]:
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
    responses: list[Stored] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            responses.append(_read_row(line, where, f"{path.stem}-{number - 1}"))
    if not responses:
        raise DataError("the file holds no responses", got=str(path))
    return responses


def is_evaluation(path: Path) -> bool:
    """Whether this is the folder of a finished evaluation."""
    return (path / runfolder.SUMMARY).is_file()


def _agreement(rows: Sequence[Regraded]) -> Agreement:
    compared = [row for row in rows if row.stored.outcome is not None]
    return Agreement(sum(row.agrees for row in compared), len(compared))


def _of_sample(sample: Sample, where: str) -> Stored:
    if sample.reference is None:
        raise DataError("a sample without its reference cannot be judged again", got=where)
    return Stored(
        id=f"{sample.problem_id}:{sample.sample}",
        problem=sample.problem or "",
        completion=sample.completion,
        reference=sample.reference,
        outcome=Outcome(sample.outcome),
        truncated=sample.stop_reason == StopReason.LENGTH,
    )


def _read_row(line: str, where: str, name: str) -> Stored:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError("malformed JSON line", got=where) from error
    if not isinstance(row, dict):
        raise DataError("a line is no JSON object", got=where)
    if "completion" in row and "outcome" in row:
        try:
            return _of_sample(Sample(**row), where)
        except (TypeError, ValueError) as error:
            raise DataError("a line is no sample", got=where, expected="what sgsd eval wrote") from error
    for field in ("response", "answer"):
        if not isinstance(row.get(field), str):
            raise DataError(
                f"a response without {field}",
                got=where,
                expected="text in response and answer; id, problem, correct, answer_format are optional",
            )
    correct = row.get("correct")
    if not isinstance(correct, bool | None):
        raise DataError("the stored verdict is neither true nor false", got=f"{where}: correct {correct!r}")
    known = None if correct is None else Outcome.CORRECT if correct else Outcome.INCORRECT
    return Stored(
        id=str(row.get("id", name)),
        problem=str(row.get("problem", "")),
        completion=row["response"],
        reference=row["answer"],
        outcome=known,
        two_valued=known is not None,
        answer_format=None if row.get("answer_format") is None else str(row["answer_format"]),
    )
