"""Selects the problems that one can train and evaluate on, and reports every row that is dropped.

Pure functions: the verifier is passed as a function.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, TypeAlias, get_args

from sgsd.data.adapters import Adapted
from sgsd.data.problems import Dropped, DropReason, Problem, same_answer, same_text
from sgsd.display import one_line
from sgsd.errors import ConfigError, check_choice

OnDuplicate: TypeAlias = Literal["drop", "keep"]
OnConflict: TypeAlias = Literal["drop_all", "keep"]

LISTED_IDS = 5
_LONGEST_ID = 80


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of every row: ``rows == kept + len(dropped) + beyond_limit``.

    Attributes:
        rows: rows read.
        kept: problems returned.
        dropped: the rows left out, in the order of the data.
        beyond_limit: the rows after the limit was reached, usable or not.
        notes: changes to rows that were kept (wrapper stripped, answer taken from a box, …), with counts.
        source: the data set, as named by the user, with its split.
        adapter: the adapter that read it.
    """

    rows: int
    kept: int
    dropped: tuple[Dropped, ...] = ()
    beyond_limit: int = 0
    notes: Mapping[str, int] = field(default_factory=dict[str, int])
    source: str = ""
    adapter: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Dropped rows by reason, in the order of ``DropReason``; reasons that never applied are absent."""
        counts = Counter(drop.reason for drop in self.dropped)
        return {str(reason): counts[reason] for reason in DropReason if counts[reason]}

    def ids(self, reason: DropReason | str) -> tuple[str, ...]:
        """The ids dropped for ``reason``."""
        return tuple(drop.id for drop in self.dropped if drop.reason == reason)

    def summary(self) -> str:
        """One line: kept, rows, source, and the dropped rows by reason, with the first ids of each."""
        line = f"{self.kept:,} of {self.rows:,} rows kept"
        if self.source:
            line += f" from {self.source}"
        if self.dropped:
            counted = self.counts.items()
            line += "; dropped " + ", ".join(f"{count:,} {name} ({self._first(name, 3)})" for name, count in counted)
        if self.beyond_limit:
            line += f"; {self.beyond_limit:,} beyond the limit"
        return line

    def lines(self) -> list[str]:
        """A table for the terminal: a label, a count and, for dropped rows, the first ids."""
        table = [("rows", self.rows, f"{self.source} ({self.adapter})".strip())]
        for reason, count in self.counts.items():
            table.append((f"dropped: {reason}", count, self._first(reason, LISTED_IDS)))
        if self.beyond_limit:
            table.append(("beyond the limit", self.beyond_limit, ""))
        table.append(("kept", self.kept, ""))
        table += [(f"note: {note}", count, "") for note, count in self.notes.items()]
        wide = max(len(label) for label, _, _ in table)
        digits = max(len(f"{count:,}") for _, count, _ in table)
        return [f"{label:<{wide}}  {count:>{digits},}  {ids}".rstrip() for label, count, ids in table]

    def _first(self, reason: str, most: int) -> str:
        """The first ids dropped for a reason."""
        ids = self.ids(reason)
        return ", ".join(one_line(id, _LONGEST_ID) for id in ids[:most]) + (", …" if len(ids) > most else "")

    def to_json(self) -> str:
        """The whole report as a JSON object, with every dropped id and its details."""
        dropped: dict[str, list[dict[str, str]]] = {reason: [] for reason in self.counts}
        for drop in self.dropped:
            dropped[drop.reason].append({"id": drop.id, "why": drop.why})
        report = asdict(self) | {"counts": self.counts, "dropped": dropped}
        return json.dumps(report, ensure_ascii=False, indent=2)

    def including(self, adapted: Adapted, *, source: str) -> DataReport:
        """This report together with the rows that the adapter could not read."""
        return replace(
            self,
            rows=self.rows + len(adapted.dropped),
            dropped=(*adapted.dropped, *self.dropped),
            notes={**adapted.notes, **self.notes},
            source=source,
            adapter=adapted.adapter,
        )


def curate(
    problems: Iterable[Problem],
    *,
    readable: Callable[[str], bool] | None = None,
    on_duplicate: OnDuplicate = "drop",
    on_conflict: OnConflict = "drop_all",
    limit: int | None = None,
    needs_answer: bool = True,
) -> tuple[list[Problem], DataReport]:
    """Select the problems that one can train and evaluate on, in their order, and report the others.

    The checks are made in this order: empty text or answer; conflicts (same text, another answer); duplicates (same
    text, same answer); the limit; references that the verifier cannot read. Texts are the same up to Unicode
    composition and white space; of a prompt with several messages, all are compared. Answers are the same up to white
    space, enclosing ``$`` and the way a number is written. The function is idempotent.

    Args:
        problems: the problems, with unique ids.
        readable: whether a verifier can read a reference (``Problem.key``); called once per distinct reference.
        on_duplicate: ``drop`` keeps the first; ``keep`` all.
        on_conflict: ``drop_all`` keeps none; ``keep`` all.
        limit: keep at most so many problems; the rest is counted in ``beyond_limit``, and its references are not read.
        needs_answer: ``False`` keeps problems without one, for reward functions that need none.

    Raises:
        ConfigError: an unknown value of ``on_duplicate`` or ``on_conflict``, or a limit below 1.
    """
    check_choice("on_duplicate", on_duplicate, get_args(OnDuplicate))
    check_choice("on_conflict", on_conflict, get_args(OnConflict))
    if limit is not None and limit < 1:
        raise ConfigError("limit too small", got=limit, expected="at least 1, or none")

    every = list(problems)
    texts = [same_text(asked_text(problem)) if problem.text.strip() else "" for problem in every]
    answers = [same_answer(problem.answer) for problem in every]
    firsts: dict[str, dict[str, str]] = {}  # text → answer → the first id that has both
    for problem, text, answer in zip(every, texts, answers, strict=True):
        if text and (answer or not needs_answer):
            firsts.setdefault(text, {}).setdefault(answer, problem.id)

    verdicts: dict[str, bool] = {}
    dropped: list[Dropped] = []
    kept: list[Problem] = []
    beyond_limit = 0

    def is_readable(reference: str) -> bool:
        if readable is not None and reference not in verdicts:
            verdicts[reference] = readable(reference)
        return verdicts.get(reference, True)

    for problem, text, answer in zip(every, texts, answers, strict=True):
        if not text:
            reason = DropReason.NO_TEXT, ""
        elif needs_answer and not answer:
            reason = DropReason.NO_ANSWER, ""
        elif on_conflict != "keep" and len(firsts[text]) > 1:
            said = ", ".join(f"{identifier} says {other!r}" for other, identifier in firsts[text].items())
            reason = DropReason.CONFLICT, said
        elif on_duplicate != "keep" and (first := firsts[text][answer]) != problem.id:
            reason = DropReason.DUPLICATE, f"of {first}"
        elif len(kept) == limit:
            beyond_limit += 1
            continue
        elif not is_readable(problem.key):
            reason = DropReason.UNREADABLE, problem.answer
        else:
            kept.append(problem)
            continue
        dropped.append(Dropped(problem.id, *reason))
    report = DataReport(len(every), len(kept), tuple(dropped), beyond_limit)
    return kept, report


def asked_text(problem: Problem) -> str:
    """The whole question: the text, or every message of a prompt with several."""
    if problem.prompt is None or isinstance(problem.prompt, str):
        return problem.prompt or problem.text
    if len(problem.prompt) == 1:
        return str(problem.prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in problem.prompt)
