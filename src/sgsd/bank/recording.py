"""A writer whose answers are kept as they come, and not asked for a second time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from sgsd.bank.records import Records
from sgsd.bank.writing import Writer, WriteRequest, Written
from sgsd.errors import DataError, SGSDError


class WritingStoppedError(SGSDError, RuntimeError):
    """A writer may write no more, such as for its budget.

    Args:
        written: answers to the first of the requests it was given; they are kept.
        what, details: see ``SGSDError``.
    """

    def __init__(self, written: Sequence[Written], what: str, **details: Any) -> None:
        self.written = tuple(written)
        super().__init__(what, **details)


class RecordingWriter:
    """Keeps every answer of a writer in a file, and takes from there what is known already.

    Requests go in groups of fixed size, and a group is kept as a whole or not at all: an engine whose rounding depends
    on the batch sees the same batches after an interruption. Only where the writer itself stops within a group is its
    beginning kept.

    Args:
        writer: who writes.
        records: where answers are kept.
        skip: lines there that are done with; those after it are known answers.
        group: requests at a time.
        progress: called with the answers so far and the requests of the call under way.
    """

    def __init__(
        self,
        writer: Writer,
        records: Records,
        skip: int,
        group: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._writer = writer
        self._records = records
        self._group = group
        self._progress = progress
        self._known: dict[str, Written] = {}
        waiting: list[Written] = []
        lines = skip
        for where, values in records.rows(skip):
            waiting.append(_read_written(values, where))
            if values.get("left") == 0:
                self._known |= {written.key: written for written in waiting}
                lines += len(waiting)
                waiting = []
        records.cut(records.whole(lines))

    @property
    def name(self) -> str:
        """The writer's."""
        return self._writer.name

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``."""
        written: list[Written] = []
        for start in range(0, len(requests), self._group):
            asked = requests[start : start + self._group]
            self._ask([request for request in asked if request.key not in self._known])
            written += [self._known[request.key] for request in asked]
            for request in asked:  # a request comes once: the answer is in the caller's hands
                self._known.pop(request.key, None)
            if self._progress is not None:
                self._progress(len(written), len(requests))
        return written

    def _ask(self, requests: Sequence[WriteRequest]) -> None:
        if requests:
            try:
                self._keep(self._writer.write(requests))
            except WritingStoppedError as error:
                self._keep(error.written)
                raise

    def _keep(self, answers: Sequence[Written]) -> None:
        left = range(len(answers) - 1, -1, -1)
        self._records.append({**asdict(answer), "left": n} for answer, n in zip(answers, left, strict=True))
        self._known |= {answer.key: answer for answer in answers}


def _read_written(values: Mapping[str, object], where: str) -> Written:
    try:
        return Written(**{name: cast(Any, values[name]) for name in Written.__dataclass_fields__})
    except KeyError as error:
        raise DataError(f"{where}: not an answer of a writer", got=", ".join(values), expected=str(error)) from error
