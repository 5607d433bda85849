"""Extraction of candidates from memories: a success gives skills, a failure gives mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sgsd.bank.items import Item, Mistake, Origin, Skill, content_id
from sgsd.bank.writing import TOKENS_PER_ITEM, Kind, WriteRequest, Written, items_request, read_items
from sgsd.memories import FailureMode, Memory

MAX_ITEMS = 3

_SYSTEM = "You study solved problems and write down what helps with other problems. Answer with JSON alone."
_SUCCESS = """\
This problem was solved correctly.

Problem:
{problem}

Solution:
{steps}

Write at most {most} general skills that this solution shows and that help with other problems of its kind. Each has a
"title" (at most 10 words), a "principle" (one or two whole sentences, an instruction, at most 40 words) and
"when_to_apply" (one whole sentence, at most 20 words). Name no numbers, names or answers of this problem."""
_FAILURE = """\
This problem was not solved: {why}.

Problem:
{problem}

Attempt:
{steps}

Write at most {most} common mistakes that this attempt shows and that happen with other problems of its kind. Each has a
"description" (at most 10 words), "why_it_happens" (one or two whole sentences, at most 40 words) and "how_to_avoid"
(one whole sentence, an instruction, at most 20 words). Name no numbers, names or answers of this problem."""
_WHY = {
    FailureMode.NO_ANSWER: "it ended without a final answer",
    FailureMode.TRUNCATED: "it was cut off before it came to an end",
    FailureMode.WRONG_VALUE: "its final answer is wrong",
    FailureMode.WRONG_FORM: "its final answer has a form that cannot be right",
}
_ANSWER = "\n\nThe reference answer, for you alone: {answer}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may become an item of a bank."""

    kind: Kind
    title: str
    text: str
    note: str  # a skill's ``when``, a mistake's ``avoid``
    parents: tuple[str, ...]  # ids of the memories it comes from

    @property
    def id(self) -> str:
        """The id of the item it would become."""
        return content_id(self.kind, self.title, self.text, self.note)

    def item(self, origin: Origin) -> Item:
        """The bank's item, with the same id and parents."""
        if self.kind == "skill":
            return Skill.new(self.text, title=self.title, when=self.note, origin=origin, parents=self.parents)
        return Mistake.new(self.text, title=self.title, avoid=self.note, origin=origin, parents=self.parents)

    def as_dict(self) -> dict[str, object]:
        """The candidate as JSON values, with its id; ``read_candidate`` reads them back."""
        return {"id": self.id, **asdict(self), "parents": list(self.parents)}


def read_candidate(values: Mapping[str, Any]) -> Candidate:
    """The candidate that ``Candidate.as_dict`` wrote."""
    kind, title, text, note = (values[name] for name in ("kind", "title", "text", "note"))
    return Candidate(kind, title, text, note, tuple(values["parents"]))


def kind_of(memory: Memory) -> Kind:
    """Successes give skills, failures give mistakes."""
    return "skill" if memory.outcome == "correct" else "mistake"


def extraction_request(
    memory: Memory, *, show_answer: bool = False, max_items: int = MAX_ITEMS, seed: int = 0
) -> WriteRequest:
    """The request for items from one memory.

    Args:
        memory: the verified rollout.
        show_answer: show the reference answer, as the paper's authors do; items then leak answers more often.
        max_items: the maximum number of items.
        seed: of the writer's sampling.
    """
    kind = kind_of(memory)
    template = _SUCCESS if kind == "skill" else _FAILURE
    why = "" if memory.failure_mode is None else _WHY[memory.failure_mode]
    text = template.format(problem=memory.problem, steps="\n".join(memory.steps) or "(empty)", most=max_items, why=why)
    if show_answer:
        text += _ANSWER.format(answer=memory.answer)
    return items_request(
        "extract",
        kind,
        _SYSTEM,
        text,
        least=1,
        most=max_items,
        max_tokens=32 + max_items * TOKENS_PER_ITEM,
        seed=seed,
        identity=memory.id,
    )


def read_extraction(memory: Memory, written: Written, *, max_items: int = MAX_ITEMS) -> list[Candidate]:
    """The distinct candidates of a reply.

    Raises:
        UnfitError: the reply does not fit its ``extraction_request``; see ``read_items``.
    """
    kind = kind_of(memory)
    items = read_items(
        kind,
        written,
        least=1,
        most=max_items,
        template=_SYSTEM + (_SUCCESS if kind == "skill" else _FAILURE),
        problem=memory.problem,
        shown=(memory.problem, *memory.steps),
    )
    distinct = dict.fromkeys(item for item, _ in items)
    return [Candidate(kind, title, text, note, (memory.id,)) for title, text, note in distinct]
