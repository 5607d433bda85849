"""A set of problems → those one can train and evaluate on, and a report of every row that went missing.

Pure: the verifier and the language identifier arrive as functions.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias, get_args

from sgsd.data.adapters import Adapted
from sgsd.data.problems import Dropped, DropReason, Problem, no_counts, same_answer, same_text
from sgsd.errors import ConfigError, DataError, check_choice

OnDuplicate: TypeAlias = Literal["drop", "keep", "error"]
OnConflict: TypeAlias = Literal["drop_all", "keep_first", "keep", "error"]

UNDETERMINED = "und"
"""What a language identifier says of a text with too few words; ``curate`` keeps such problems (ISO 639-2)."""

_CODE = re.compile(r"[a-z]{2,3}")
LISTED_IDS = 5


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of every row: ``rows == kept + len(dropped) + beyond_limit``.

    Attributes:
        rows: rows read.
        kept: problems returned.
        dropped: the rows left out, in the order of the data.
        beyond_limit: usable or not, the rows nobody looked at because the limit had been reached.
        notes: what was changed in rows that were kept (wrapper stripped, answer taken from a box, …), with counts.
        languages: languages identified, with counts; empty without a language filter.
        source: the data set, as named by the user, with its split.
        adapter: the adapter that read it.
    """

    rows: int
    kept: int
    dropped: tuple[Dropped, ...] = ()
    beyond_limit: int = 0
    notes: Mapping[str, int] = field(default_factory=no_counts)
    languages: Mapping[str, int] = field(default_factory=no_counts)
    source: str = ""
    adapter: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Dropped rows by reason, in the order of ``DropReason``; reasons that never applied are absent."""
        counts = Counter(drop.reason for drop in self.dropped)
        return {str(reason): counts[reason] for reason in DropReason if counts[reason]}

    def ids(self, reason: DropReason | str) -> tuple[str, ...]:
        """The ids dropped for ``reason``. Raises ``ValueError`` on a reason there is not."""
        wanted = DropReason(reason)
        return tuple(drop.id for drop in self.dropped if drop.reason is wanted)

    def summary(self) -> str:
        """One line: kept, rows, source, and the dropped rows by reason."""
        line = f"{self.kept:,} of {self.rows:,} rows kept"
        if self.source:
            line += f" from {self.source}"
        if self.dropped:
            line += "; dropped " + ", ".join(f"{count:,} {reason}" for reason, count in self.counts.items())
        if self.beyond_limit:
            line += f"; {self.beyond_limit:,} beyond the limit"
        return line

    def lines(self) -> list[str]:
        """A table for the terminal: a label, a count and, for dropped rows, the first ids."""
        table: list[tuple[str, str, str]] = [("rows", f"{self.rows:,}", f"{self.source} ({self.adapter})".strip())]
        for reason, count in self.counts.items():
            ids = self.ids(reason)
            more = ", …" if len(ids) > LISTED_IDS else ""
            table.append((f"dropped: {reason}", f"{count:,}", ", ".join(ids[:LISTED_IDS]) + more))
        if self.beyond_limit:
            table.append(("beyond the limit", f"{self.beyond_limit:,}", ""))
        table.append(("kept", f"{self.kept:,}", ""))
        table.extend((f"note: {note}", f"{count:,}", "") for note, count in self.notes.items())
        table.extend((f"language: {language}", f"{count:,}", "") for language, count in self.languages.items())
        widths = [max(len(row[column]) for row in table) for column in (0, 1)]
        return [f"{label:<{widths[0]}}  {count:>{widths[1]}}  {ids}".rstrip() for label, count, ids in table]

    def to_json(self) -> str:
        """The whole report as a JSON object, every dropped id with its particulars included."""
        dropped: dict[str, list[dict[str, str]]] = {reason: [] for reason in self.counts}
        for drop in self.dropped:
            dropped[drop.reason].append({"id": drop.id, "why": drop.why})
        return json.dumps(
            {
                "source": self.source,
                "adapter": self.adapter,
                "rows": self.rows,
                "kept": self.kept,
                "beyond_limit": self.beyond_limit,
                "counts": self.counts,
                "dropped": dropped,
                "notes": dict(self.notes),
                "languages": dict(self.languages),
            },
            ensure_ascii=False,
            indent=2,
        )

    def including(self, adapted: Adapted, *, source: str) -> DataReport:
        """This report of a curation, preceded by the rows its adapter could not read."""
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
    language: Callable[[str], str] | None = None,
    languages: Sequence[str] | None = None,
    on_duplicate: OnDuplicate = "drop",
    on_conflict: OnConflict = "drop_all",
    limit: int | None = None,
    needs_answer: bool = True,
) -> tuple[list[Problem], DataReport]:
    """The problems one can train and evaluate on, in their order, and a report of the others.

    In this order: empty text or answer; conflicts (same text, another answer); duplicates (same text, same answer);
    the limit; language; references the verifier cannot read. Texts are the same up to Unicode composition and white
    space; of a prompt with several messages, all are compared. Answers are the same up to white space, enclosing
    ``$`` and the way a number is written.
    Curating the result again changes nothing.

    Args:
        problems: the problems, with unique ids.
        readable: whether a verifier can read a reference (``Problem.key``); called once per distinct reference.
        language: text → language code, ``UNDETERMINED`` where it cannot tell; needed with ``languages``.
        languages: codes to keep, besides ``UNDETERMINED``; ``None`` keeps all.
        on_duplicate: ``drop`` keeps the first; ``keep`` all; ``error`` raises.
        on_conflict: ``drop_all`` keeps none; ``keep_first`` those with the first one's answer; ``keep`` all;
            ``error`` raises.
        limit: stop after so many problems; the rest is counted in ``beyond_limit`` and costs no more than a look-up.
        needs_answer: ``False`` keeps problems without one, for reward functions that need none.

    Raises:
        ConfigError: an unknown policy, languages without a way to tell them, or a limit below 1.
        DataError: a duplicate or conflict under the policy ``error``.
    """
    check_choice("on_duplicate", on_duplicate, get_args(OnDuplicate))
    check_choice("on_conflict", on_conflict, get_args(OnConflict))
    if limit is not None and limit < 1:
        raise ConfigError("limit too small", got=limit, expected="at least 1, or none")
    if languages is not None and (
        isinstance(languages, str) or not languages or not all(map(_CODE.fullmatch, languages))
    ):
        raise ConfigError("languages are not codes", got=repr(languages), expected='a sequence such as ("en", "zh")')
    if languages is not None and language is None:
        raise ConfigError("languages asked for, but no way to identify them", expected="a language function")

    every = list(problems)
    texts = [same_text(_asked(problem)) if problem.text.strip() else "" for problem in every]
    answers = [same_answer(problem.answer) for problem in every]
    firsts: dict[str, dict[str, str]] = {}  # text → answer → the first id that has both
    for problem, text, answer in zip(every, texts, answers, strict=True):
        if text and (answer or not needs_answer):
            firsts.setdefault(text, {}).setdefault(answer, problem.id)

    verdicts: dict[str, bool] = {}
    spoken: Counter[str] = Counter()
    dropped: list[Dropped] = []
    kept: list[Problem] = []
    beyond_limit = 0
    for problem, text, answer in zip(every, texts, answers, strict=True):
        reason: DropReason | None = None
        why = ""
        if not text:
            reason = DropReason.NO_TEXT
        elif needs_answer and not answer:
            reason = DropReason.NO_ANSWER
        elif clash := _conflict(firsts[text], answer, on_conflict):
            reason, why = DropReason.CONFLICT, clash
        elif on_duplicate != "keep" and (first := firsts[text][answer]) != problem.id:
            reason, why = DropReason.DUPLICATE, f"of {first}"
        if reason is DropReason.CONFLICT and on_conflict == "error":
            raise DataError(f"problem {problem.id} has two answers", got=why, remedy="or set on_conflict=drop_all")
        if reason is DropReason.DUPLICATE and on_duplicate == "error":
            raise DataError(f"problem {problem.id} is a duplicate", got=why, remedy="or set on_duplicate=drop")
        if reason is None and len(kept) == limit:
            beyond_limit += 1
            continue
        if reason is None and language is not None and languages is not None:
            code = language(problem.text)
            spoken[code] += 1
            if code != UNDETERMINED and code not in languages:
                reason, why = DropReason.LANGUAGE, code
        if reason is None and readable is not None:
            if problem.key not in verdicts:
                verdicts[problem.key] = readable(problem.key)
            if not verdicts[problem.key]:
                reason, why = DropReason.UNREADABLE, problem.answer
        if reason is None:
            kept.append(problem)
        else:
            dropped.append(Dropped(problem.id, reason, why))
    report = DataReport(
        rows=len(every),
        kept=len(kept),
        dropped=tuple(dropped),
        beyond_limit=beyond_limit,
        languages=dict(spoken.most_common()),
    )
    return kept, report


def _asked(problem: Problem) -> str:
    """All of what is asked: the text, or every message of a prompt that has several."""
    if problem.prompt is None or isinstance(problem.prompt, str):
        return problem.prompt or problem.text
    if len(problem.prompt) == 1:
        return str(problem.prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in problem.prompt)


def _conflict(firsts: Mapping[str, str], answer: str, on_conflict: OnConflict) -> str:
    """Why a problem with this answer has to go, given the first id of each answer to its text; empty if it may stay."""
    if len(firsts) == 1 or on_conflict == "keep":
        return ""
    first = next(iter(firsts))
    if answer == first and on_conflict != "drop_all":
        return ""
    return ", ".join(f"{identifier} says {other!r}" for other, identifier in firsts.items())
