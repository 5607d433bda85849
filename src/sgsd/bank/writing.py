"""The protocol of text generators that write items; requests, the reading of replies, and retries.

Items are written as JSON objects that follow a schema. An engine may enforce the schema (constrained decoding) or not.
``read_items`` validates every reply, so an engine that does not enforce it costs retries but yields no malformed item.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, TypeVar

from pydantic import TypeAdapter

from sgsd.bank.checks import BROKEN_LATEX
from sgsd.bank.items import refuse_control_characters
from sgsd.controls import disarm
from sgsd.errors import BankError, SGSDError
from sgsd.validation import parse_json, validated

T = TypeVar("T")

MAX_TITLE = 80
MAX_TEXT = 320
MAX_NOTE = 160
# An upper bound: a token of a completion holds at least one character, with rare exceptions.
TOKENS_PER_ITEM = MAX_TITLE + MAX_TEXT + MAX_NOTE + 100

Kind: TypeAlias = Literal["skill", "mistake"]
KINDS: tuple[Kind, ...] = ("skill", "mistake")
FIELDS: dict[Kind, tuple[str, str, str]] = {
    "skill": ("title", "principle", "when_to_apply"),
    "mistake": ("description", "why_it_happens", "how_to_avoid"),
}
"""Kind → the names of title, text and note in a reply; those of the common bank format."""


class UnfitError(SGSDError, ValueError):
    """A reply that does not follow its request."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One request to a writer."""

    key: str  # identifies the request
    messages: list[dict[str, str]]
    schema: dict[str, object]  # JSON schema of the text
    max_tokens: int
    seed: int  # of the sampling, if the engine samples


@dataclass(frozen=True, slots=True)
class Written:
    """The reply to one request: ``text``, or ``error`` in one line. The other one is ``None``."""

    key: str
    text: str | None
    error: str | None
    prompt_tokens: int
    completion_tokens: int


class Writer(Protocol):
    """A text generator."""

    @property
    def name(self) -> str:
        """Engine and model, for records."""
        ...

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """One reply per request, in order. A failed request gives a reply with an error and does not stop the others.

        Raises:
            ServerError: the writer itself cannot be reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class WriteFailure:
    """A request without a usable reply: its key, the last reason, the last text and the number of attempts."""

    key: str
    reason: str
    text: str
    attempts: int


def write_until_fit(
    writer: Writer, requests: Sequence[WriteRequest], readers: Sequence[Callable[[Written], T]], *, attempts: int = 3
) -> tuple[list[T | WriteFailure], Counter[str]]:
    """Send requests, read the replies, and send the requests of unfit replies again.

    Args:
        writer: the text generator.
        requests: the requests.
        readers: ``readers[i]`` reads the reply to ``requests[i]`` and raises ``UnfitError`` if it does not fit.
        attempts: the maximum number of attempts per request. Attempt a > 0 has the key ``<key>/<a>`` and the seed
            ``seed + a``; its prompt ends with the reason why the last reply was rejected.

    Returns:
        What the readers returned, or a failure, in the order of the requests; and counts: ``requests``,
        ``prompt_tokens``, ``completion_tokens``, and ``rejected: <reason>`` for each kind of reason.
    """
    results: dict[int, T | WriteFailure] = {}
    counts: Counter[str] = Counter()
    pending = list(range(len(requests)))
    for attempt in range(attempts):
        asked = [_retry_request(requests[index], attempt, results.get(index)) for index in pending]
        answers = writer.write(asked) if asked else []
        left: list[int] = []
        for index, answer in zip(pending, answers, strict=True):
            try:
                results[index] = readers[index](answer)
            except UnfitError as error:
                counts[f"rejected: {kind_of_reason(error.reason)}"] += 1
                results[index] = WriteFailure(requests[index].key, error.reason, answer.text or "", attempt + 1)
                left.append(index)
            counts.update(requests=1, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens)
        pending = left
    return [results[index] for index in range(len(requests))], counts


def kind_of_reason(reason: str) -> str:
    """A reason without details, for counting: no quotation, and N for each number."""
    return re.sub(r"\d+", "N", reason.partition(": got")[0])[:80]


def _retry_request(request: WriteRequest, attempt: int, before: object) -> WriteRequest:
    """The request of an attempt; ``before`` is the failure of the previous attempt."""
    if attempt == 0:
        return request
    messages = request.messages
    if isinstance(before, WriteFailure) and before.text:
        said = disarm(f"\n\nAn earlier answer was sent back: {before.reason}. Write another one without that.")
        messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + said}]
    return replace(request, key=f"{request.key}/{attempt}", messages=messages, seed=request.seed + attempt)


# ---- requests for items, and their replies


def items_request(
    stage: str,
    kind: Kind,
    system: str,
    prompt: str,
    *,
    least: int,
    most: int,
    max_tokens: int,
    seed: int,
    sources: dict[str, object] | None = None,
    identity: object = None,
) -> WriteRequest:
    """A request for ``{"items": [...]}``; control tokens in the prompt are escaped.

    The schema allows one character more per field than ``read_items``, which thus refuses a field that an engine cut
    off at the schema's limit. ``sources`` is the schema of an extra field for the sources of a merged item.
    ``identity`` distinguishes requests with the same prompt.
    """
    shape = {"sources": "[1, 2]"} if sources is not None else {}
    shape |= dict.fromkeys(FIELDS[kind], '"..."')
    shown = ", ".join(f'"{name}": {value}' for name, value in shape.items())
    text = f'{prompt}\nAnswer in this form: {{"items": [{{{shown}}}]}}'
    messages = [{"role": "system", "content": system}, {"role": "user", "content": disarm(text)}]
    properties: dict[str, object] = {} if sources is None else {"sources": sources}
    for name, limit in zip(FIELDS[kind], (MAX_TITLE, MAX_TEXT, MAX_NOTE), strict=True):
        properties[name] = {"type": "string", "minLength": 1, "maxLength": limit + 1}
    item = _object(properties)
    key = hashlib.sha256(json.dumps([identity, messages, most, seed], sort_keys=True).encode()).hexdigest()[:16]
    return WriteRequest(
        key=f"{stage}-{key}",
        messages=messages,
        schema=_object({"items": {"type": "array", "minItems": least, "maxItems": most, "items": item}}),
        max_tokens=max_tokens,
        seed=seed,
    )


def _object(properties: dict[str, object]) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_ITEMS = TypeAdapter(list[dict[str, object]])
_REPLY = re.compile(r'\{\s*"items"')


def read_items(
    kind: Kind,
    written: Written,
    *,
    least: int,
    most: int,
    template: str,
    problem: str = "",
    shown: Sequence[str] = (),
) -> list[tuple[tuple[str, str, str], dict[str, object]]]:
    """For each item of a reply: (title, text, note) with normalised white space, and the item's JSON object.

    Text before ``{"items"`` and after that object (a code fence, thinking) is ignored. ``template``, ``problem`` and
    ``shown`` are as for ``refuse_faults``.

    Raises:
        UnfitError: the reply is an error, is not JSON, or has too few or too many items; a field is missing, blank, too
            long, or holds a control character; or as ``refuse_faults``.
    """
    if written.text is None:
        raise UnfitError(written.error or "nothing was written")
    text = written.text.rpartition("</think>")[2]
    begins = [found.start() for found in _REPLY.finditer(text)] or [text.find("{")]
    start, end = begins[-1], text.rfind("}")
    if start < 0 or end < start:
        raise UnfitError("no JSON object" if text.strip() else "an empty text")
    with suppress(ValueError, RecursionError):  # the end of a complete object; parse_json says what is wrong
        end = json.JSONDecoder().raw_decode(text, start)[1] - 1
    try:
        document = parse_json(text[start : end + 1], "reply", BankError)
        objects = validated(_ITEMS, document.get("items"), "items", BankError)
        if not least <= len(objects) <= most:
            raise UnfitError(f"{len(objects)} items instead of {least} to {most}")
        items = [(_read_fields(kind, values), values) for values in objects]
    except BankError as error:
        raise UnfitError(str(error)) from error
    for item, _ in items:
        fields = dict(zip(FIELDS[kind], item, strict=True))
        refuse_faults(fields, problem=problem, shown=shown, template=template)
    return items


def _read_fields(kind: Kind, values: Mapping[str, object]) -> tuple[str, str, str]:
    read: list[str] = []
    for name, limit in zip(FIELDS[kind], (MAX_TITLE, MAX_TEXT, MAX_NOTE), strict=True):
        value = values.get(name)
        if not isinstance(value, str) or not value.strip(" .…\n\t"):
            raise UnfitError(f"{name} is missing" if name not in values else f"{name} is blank or no text")
        if len(value) > limit:
            raise UnfitError(f"{name} has more than {limit} characters: write it shorter")
        refuse_control_characters(value, name)
        if BROKEN_LATEX.search(value):
            raise UnfitError(f"{name} holds a LaTeX command whose backslash is not doubled")
        read.append(" ".join(value.split()))
    return read[0], read[1], read[2]


# ---- faults of an item that its words alone reveal

COPIED_WORDS = 8
"""A run of this many equal words counts as copied."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?!\w)")
_NAME = re.compile(r"\b[A-Z][a-z]{2,}\b")
_NAME_INSIDE = re.compile(r"(?<=[a-z0-9,;] )[A-Z][a-z]{2,}\b")  # not at the beginning of a sentence
_PIECES_OF_JSON = re.compile(r'\}"?\s*,\s*"?\{|"\s*:\s*["{\[]')
# Numbers that general advice holds too. Two of them that a problem shares are no coincidence.
_COMMON_NUMBERS = frozenset([*map(str, range(11)), "100"])
# Ends in a word or sign after which something must follow.
_UNFINISHED = re.compile(
    r"(?:[,;:–—(\[{=+*/<-]|\b(?:an?|and|are|as|at|be|because|but|by|can|for|from|has|have|if|into|is|its|may|must|of|on|or|so|"
    r"such|than|that|the|their|then|these|this|to|was|were|when|where|which|while|will|with|your))$",
    re.IGNORECASE,
)


def refuse_faults(fields: Mapping[str, str], *, problem: str = "", shown: Sequence[str] = (), template: str) -> None:
    """Refuse an item that repeats its problem or its prompt, or was cut in mid-sentence.

    Args:
        fields: name → text, the title first.
        problem: a text whose names and numbers the item must not hold.
        shown: texts in the prompt that the item must not copy.
        template: the prompt without these texts.

    Raises:
        UnfitError: with the field and its fault.
    """
    title, *sentences = fields
    for name, text in fields.items():
        if _PIECES_OF_JSON.search(text):
            raise UnfitError(f"a field holds pieces of JSON: got {name} {text[-40:]!r}")
        if found := _copied(text, shown, template):
            raise UnfitError(f"the prompt is copied: got {name} {found!r}")
    for name in sentences:
        if _UNFINISHED.search(fields[name]):
            raise UnfitError(f"a field is cut in mid-sentence: got {name} {fields[name][-40:]!r}")
    whole = ". ".join(fields.values())
    numbers = _numbers(whole) & _numbers(problem)
    if numbers - _COMMON_NUMBERS or len(numbers) > 1:
        raise UnfitError(f"numbers of the problem are repeated: got {', '.join(sorted(numbers))}")
    if names := _names(problem, whole.removeprefix(fields[title])):
        raise UnfitError(f"names of the problem are repeated: got {', '.join(sorted(names))}")


def _copied(text: str, shown: Sequence[str], template: str) -> str | None:
    """The first copied run of words. A text shorter than ``COPIED_WORDS`` must be in the template as a whole."""
    words = _words(text)
    for source, least in [(template, 3), *((source, COPIED_WORDS) for source in shown)]:
        length = min(COPIED_WORDS, len(words))
        if length >= least:
            known = _runs(_words(source), length)
            for run in _runs(words, length):
                if run in known:
                    return " ".join(run)
    return None


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _runs(words: Sequence[str], length: int) -> dict[tuple[str, ...], None]:
    return dict.fromkeys(tuple(words[start : start + length]) for start in range(len(words) - length + 1))


def _numbers(text: str) -> set[str]:
    return {found.replace(",", "").rstrip(".") for found in _NUMBER.findall(text)}


def _names(problem: str, text: str) -> set[str]:
    """Capitalised words of both texts, but for sentence beginnings in both and words the problem has in lower case."""
    found = set(_NAME.findall(text)) & set(_NAME_INSIDE.findall(problem))
    found |= set(_NAME_INSIDE.findall(text)) & set(_NAME.findall(problem))
    common = set(re.findall(r"\w+", problem))
    return {name for name in found if name.lower() not in common}
