"""What a text generator must do to write items, and how its answers are asked for again until they fit.

Items are written as JSON objects that fit a schema. Engines may force the schema or not; what they return is always
read by ``parse_reply`` and checked by its reader: an engine that cannot force it costs repetitions, never a bad item.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from pydantic import TypeAdapter

from sgsd.bank.items import refuse_control_characters
from sgsd.controls import disarm
from sgsd.errors import BankError, SGSDError
from sgsd.validation import parse_json, validated

T = TypeVar("T")

MAX_TITLE = 80
MAX_TEXT = 320
MAX_NOTE = 160
# Every token of a completion holds a character at least, but for rare pieces of one.
TOKENS_PER_ITEM = MAX_TITLE + MAX_TEXT + MAX_NOTE + 100

Kind: TypeAlias = Literal["skill", "mistake"]
KINDS: tuple[Kind, ...] = ("skill", "mistake")
FIELDS: dict[Kind, tuple[str, str, str]] = {
    "skill": ("title", "principle", "when_to_apply"),
    "mistake": ("description", "why_it_happens", "how_to_avoid"),
}
"""For each kind, how a reply names title, text and note: as the common bank format does."""


class UnfitError(SGSDError, ValueError):
    """What was written does not fit what was asked for."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One thing to write.

    Attributes:
        key: names the request; equal keys are the same request.
        messages: chat messages.
        schema: the JSON schema the text must fit.
        max_tokens: the length limit.
        seed: of the sampling, where the engine samples.
    """

    key: str
    messages: list[dict[str, str]]
    schema: dict[str, object]
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Written:
    """What came of one request: ``text``, or ``error`` in one line; never both ``None``."""

    key: str
    text: str | None
    error: str | None
    prompt_tokens: int
    completion_tokens: int


class WritingStoppedError(SGSDError, RuntimeError):
    """A writer may write no more, such as for its budget.

    Args:
        written: answers to the first of the requests it was given; they are kept.
        what, details: see ``SGSDError``.
    """

    def __init__(self, written: Sequence[Written], what: str, **details: Any) -> None:
        self.written = tuple(written)
        super().__init__(what, **details)


class Writer(Protocol):
    """A text generator."""

    @property
    def name(self) -> str:
        """Engine and model, for records."""
        ...

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """One answer per request, in order. A request that fails gives an error, and does not stop the others.

        Raises:
            ServerError: none of them can be answered: the writer itself is out of reach.
            WritingStoppedError: it may write no more.
        """
        ...


@dataclass(frozen=True, slots=True)
class WriteFailure:
    """A request that gave nothing usable: its key, the last reason, the last text, how often it was asked."""

    key: str
    reason: str
    text: str
    attempts: int


@dataclass(frozen=True, slots=True)
class WriteCounts:
    """What writing took: requests sent, tokens in and out, and answers sent back by reason."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict[str, int])

    def __add__(self, other: WriteCounts) -> WriteCounts:
        return WriteCounts(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            Counter(self.rejected) + Counter(other.rejected),
        )

    def as_counts(self) -> dict[str, int]:
        """All of it by name, a reason as ``rejected: reason``."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            **{f"rejected: {reason}": count for reason, count in self.rejected.items()},
        }


def write_until_fit(
    writer: Writer, requests: Sequence[WriteRequest], readers: Sequence[Callable[[Written], T]], *, attempts: int = 3
) -> tuple[list[T | WriteFailure], WriteCounts]:
    """Ask, read, and ask those again whose answer does not fit, with the next seed and the reason.

    Args:
        writer: who writes.
        requests: what to write.
        readers: ``readers[i]`` reads the answer to ``requests[i]`` and raises ``UnfitError`` where it does not fit.
        attempts: how often a request is sent at most. Attempt a > 0 has the key ``<key>/<a>`` and the seed + a,
            and its prompt ends in what was wrong with the text before.

    Returns:
        What was read, or the failure, in order; and what it took.
    """
    results: dict[int, T | WriteFailure] = {}
    counts = WriteCounts()
    pending = list(range(len(requests)))
    for attempt in range(attempts):
        asked = [_again(requests[index], attempt, results.get(index)) for index in pending]
        answers = writer.write(asked) if asked else []
        left: list[int] = []
        for index, answer in zip(pending, answers, strict=True):
            rejected: dict[str, int] = {}
            try:
                results[index] = readers[index](answer)
            except UnfitError as error:
                rejected = {kind_of_reason(error.reason): 1}
                results[index] = WriteFailure(requests[index].key, error.reason, answer.text or "", attempt + 1)
                left.append(index)
            counts += WriteCounts(1, answer.prompt_tokens, answer.completion_tokens, rejected)
        pending = left
    return [results[index] for index in range(len(requests))], counts


def item_schema(kind: Kind, extra: dict[str, object] | None = None) -> dict[str, object]:
    """The schema of one item of a reply, with further properties where given.

    A field may be one character longer than ``read_item`` takes: what an engine cuts at the schema's length is refused,
    wherever in a sentence that was.
    """
    limits = zip(FIELDS[kind], (MAX_TITLE, MAX_TEXT, MAX_NOTE), strict=True)
    properties: dict[str, object] = {
        name: {"type": "string", "minLength": 1, "maxLength": limit + 1} for name, limit in limits
    }
    properties = (extra or {}) | properties
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def reply_shape(kind: Kind, *others: str) -> str:
    """What a prompt says of the reply's form, for engines that cannot hold a text to its schema."""
    fields = ", ".join([*others, *(f'"{name}": "..."' for name in FIELDS[kind])])
    return f'\nAnswer in this form: {{"items": [{{{fields}}}]}}'


def reply_schema(item: dict[str, object], *, least: int, most: int) -> dict[str, object]:
    """The schema of a whole reply: ``{"items": [...]}``."""
    return {
        "type": "object",
        "properties": {"items": {"type": "array", "minItems": least, "maxItems": most, "items": item}},
        "required": ["items"],
        "additionalProperties": False,
    }


_ITEMS = TypeAdapter(list[dict[str, object]])


def parse_reply(written: Written, *, least: int, most: int) -> list[dict[str, object]]:
    """The items of a reply, as JSON objects. Text around the outermost braces (a fence, thoughts) is passed over.

    Raises:
        UnfitError: an error in place of a text, no JSON, or not between ``least`` and ``most`` objects.
    """
    if written.text is None:
        raise UnfitError(written.error or "nothing was written")
    text = written.text
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        raise UnfitError("no JSON object" if text.strip() else "an empty text")
    try:
        document = parse_json(text[start : end + 1], "reply", BankError)
        objects = validated(_ITEMS, document.get("items"), "items", BankError)
    except BankError as error:
        raise UnfitError(str(error)) from error
    if not least <= len(objects) <= most:
        raise UnfitError(f"{len(objects)} items instead of {least} to {most}")
    return objects


def read_item(kind: Kind, values: dict[str, object]) -> tuple[str, str, str]:
    """Title, text and note of one object of a reply, white space evened out.

    Raises:
        UnfitError: a field is missing, blank, too long, or holds a control character.
    """
    read: list[str] = []
    for name, limit in zip(FIELDS[kind], (MAX_TITLE, MAX_TEXT, MAX_NOTE), strict=True):
        value = values.get(name)
        if not isinstance(value, str) or not value.strip(" .…\n\t"):
            raise UnfitError(f"{name} is missing" if name not in values else f"{name} is blank or no text")
        if len(value) > limit:
            raise UnfitError(f"{name} has more than {limit} characters: write it shorter")
        try:
            refuse_control_characters(value, name)
        except BankError as error:
            raise UnfitError(str(error)) from error
        read.append(" ".join(value.split()))
    return read[0], read[1], read[2]


def request_key(stage: str, content: object) -> str:
    """A key from the stage and everything that decides the request: equal content, equal key."""
    return f"{stage}-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]}"


def kind_of_reason(reason: str) -> str:
    """A reason without its particulars, to be counted by: what it found, and its numbers as N."""
    return re.sub(r"\d+", "N", reason.partition(": got")[0])[:80]


def _again(request: WriteRequest, attempt: int, before: object) -> WriteRequest:
    """The request of a later attempt; ``before`` is the failure of the one before."""
    if attempt == 0:
        return request
    messages = request.messages
    if isinstance(before, WriteFailure) and before.text:
        said = disarm(f"\n\nAn earlier answer was sent back: {before.reason}. Write another one without that.")
        messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + said}]
    return replace(request, key=f"{request.key}/{attempt}", messages=messages, seed=request.seed + attempt)
