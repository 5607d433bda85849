"""Rows of data sets → ``Problem``: columns by name, and code for the formats that need it."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import cast

from sgsd.data.problems import (
    DIGIT_GROUPS,
    Dropped,
    DropReason,
    Message,
    Problem,
    Row,
    no_counts,
    same_answer,
)
from sgsd.errors import ConfigError, DataError, check_choice

SAMPLED_ROWS = 20  # adapters that share their columns are told apart by a look at the first rows

_DAPO_HEAD = re.compile(
    r"\s*Solve the following math problem step by step\.\s+The last line of your response should be of the form "
    r"Answer: (?:\$Answer|\\boxed\{\$Answer\})(?: \(without quotes\))? where \$Answer is the answer to the problem\.\s*"
)
_DAPO_TAIL = 'Remember to put your answer on its own line after "Answer:".'
_GSM8K_ANSWER = re.compile(r"^####[ \t]*(\S.*)", re.MULTILINE)
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")
# A box that opens, one without braces, an escaped character, a brace.
_BOX = re.compile(r"(?P<box>\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|(?P<bare>\w+)))|\\(?!\\[bf]).|[{}]", re.DOTALL)


def strip_wrapper(text: str) -> str:
    """``text`` without DAPO-Math's instruction sentences, where it begins or ends with them word for word."""
    if head := _DAPO_HEAD.match(text):
        text = text[head.end() :]
    said = text.rstrip()
    return said.removesuffix(_DAPO_TAIL).rstrip() if said.endswith(_DAPO_TAIL) else text


def boxed(solution: str) -> list[str]:
    r"""The contents of the ``\boxed{…}`` and ``\fbox{…}`` of a reference solution, in order; incomplete ones left out,
    and those inside another one.

    Braces are balanced; escaped braces do not count. ``\boxed 7`` reads as ``7``.
    """
    found: list[tuple[int, int]] = []
    open_braces: list[tuple[bool, int]] = []  # whether it is a box's, and where its content begins
    for mark in _BOX.finditer(solution):
        start = mark.end()
        if mark["bare"]:
            found.append(mark.span("bare"))
        elif mark["box"] or mark[0] == "{":
            open_braces.append((mark["box"] is not None, start))
        elif mark[0] == "}" and open_braces:
            is_box, start = open_braces.pop()
            while is_box and found and found[-1][0] > start:
                found.pop()
            if is_box:
                found.append((start, mark.start()))
    return [solution[start:end].strip() for start, end in found]


class _MalformedRowError(Exception):
    """A row an adapter cannot read; ``adapt`` turns it into a ``Dropped``."""


@dataclass(frozen=True, slots=True)
class Draft:
    """What an adapter reads from one row, before ids are made unique. Empty text or answer: the row has none."""

    text: str
    answer: str
    id: str = ""
    solution: str | None = None
    reference: str | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    prompt: str | tuple[Message, ...] | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """A row format.

    Attributes:
        name: what ``adapter=`` takes.
        columns: the columns it needs; an inner tuple names alternatives, in order of preference.
        convert: row → draft.
        recognises: tells it from other formats with the same columns by a look at a row; ``None`` where columns do.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    convert: Callable[[Row], Draft]
    recognises: Callable[[Row], bool] | None = None

    @property
    def expects(self) -> str:
        return " + ".join("|".join(alternatives) for alternatives in self.columns)

    def covers(self, columns: frozenset[str]) -> bool:
        return all(any(name in columns for name in alternatives) for alternatives in self.columns)


@dataclass(frozen=True, slots=True)
class Adapted:
    """The problems of a row set, with the rows that could not be read and what was changed on the way."""

    problems: tuple[Problem, ...]
    adapter: str
    dropped: tuple[Dropped, ...] = ()
    notes: Mapping[str, int] = field(default_factory=no_counts)


def _alone(value: object) -> object:
    """The only element of a list of one (some sets wrap their answers so); anything else as it is."""
    if isinstance(value, list):
        elements = cast("list[object]", value)
        return elements[0] if len(elements) == 1 else elements
    return value


def _string(row: Row, *names: str) -> str:
    """The first of the columns that holds something, as a string; numbers as written, 7.0 as 7."""
    for name in names:
        value = _alone(row.get(name))
        if value is None or (isinstance(value, float) and math.isnan(value)):  # how Parquet readers say missing
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _MalformedRowError(f"column {name} holds a {type(value).__name__}, not text or a number")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if text := str(value).strip():
            return text
    return ""


def _content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, list):
        parts = [
            cast("Mapping[str, object]", part).get("text")
            for part in cast("list[object]", content)
            if isinstance(part, Mapping)
        ]
        if len(parts) == len(cast("list[object]", content)) and all(isinstance(part, str) for part in parts):
            return "\n".join(cast("list[str]", parts))
    raise _MalformedRowError("a message of the prompt is not text")


def _conversation(value: list[object]) -> tuple[Message, ...]:
    """Messages as they are; text parts are joined, and keys without a value (Parquet fills them in) left out."""
    messages: list[Message] = []
    for item in value:
        if not isinstance(item, Mapping) or not isinstance(cast("Message", item).get("role"), str):
            raise _MalformedRowError("the prompt is a list, but not of messages with role and content")
        message = cast("Message", item)
        kept = {name: part for name, part in message.items() if part is not None}
        messages.append(kept | {"content": _content(message)})
    if not any(message["role"] == "user" for message in messages):
        raise _MalformedRowError("the prompt has no user message")
    return tuple(messages)


def last_user_text(messages: Sequence[Message]) -> str:
    """The content of the last user message; empty where there is none."""
    return next((str(message["content"]) for message in reversed(messages) if message["role"] == "user"), "")


def _prompt(row: Row) -> tuple[str, str | tuple[Message, ...] | None]:
    """What a ``prompt`` column asks, without DAPO's wrapper, and the prompt in full, as it is; ``None`` if empty."""
    value = row.get("prompt")
    if isinstance(value, list):
        messages = _conversation(cast("list[object]", value))
        text = strip_wrapper(last_user_text(messages).strip())
        return text, messages if text else None
    text = strip_wrapper(_string(row, "prompt"))
    return text, None if not text else value if isinstance(value, str) else text


def _bare_prompt(row: Row) -> Draft:
    """A ``prompt`` column of the DAPO data sets: the problem alone where it is text or stands in DAPO's wrapper.

    Any other conversation is a prompt in full.
    """
    text, prompt = _prompt(row)
    if prompt is None or isinstance(prompt, str):
        wrapped = text != _string(row, "prompt") if isinstance(row.get("prompt"), str) else False
        return Draft(text, "", notes=(_STRIPPED,) if wrapped else ())
    others = [message for message in prompt if message["role"] != "user"]
    alone = len(prompt) - len(others) == 1 and all(
        message["role"] == "system" and not strip_wrapper(str(message["content"])) for message in others
    )
    if alone and (others or text != last_user_text(prompt).strip()):
        return Draft(text, "", notes=(_STRIPPED,))
    return Draft(text, "", prompt=prompt)


_STRIPPED = "instruction wrapper stripped"


def _boxed_answer(solution: str) -> tuple[str, tuple[str, ...]]:
    """The one answer a solution boxes, and a note; empty without a box."""
    answers = {same_answer(content): content for content in boxed(solution) if content}
    if len(answers) > 1:
        raise _MalformedRowError(f"no answer column, and the solution boxes {len(answers)}: {'; '.join(answers)}")
    return (*answers.values(), "")[0], (r"answer taken from the \boxed{} of the solution",) if answers else ()


def _dapo_raw(row: Row) -> Draft:
    reward = row.get("reward_model")
    if not isinstance(reward, Mapping):
        raise _MalformedRowError("column reward_model is not an object with ground_truth")
    extra = row.get("extra_info")
    identifier = _string(cast("Row", extra), "index") if isinstance(extra, Mapping) else ""
    return replace(_bare_prompt(row), answer=_string(cast("Row", reward), "ground_truth"), id=identifier)


def _dapo_wrapped(row: Row) -> Draft:
    """``_dapo_raw`` with the instruction wrapper left in the text: the last user message as it stands, and no other."""
    draft, value = _dapo_raw(row), row.get("prompt")
    text = last_user_text(_conversation(cast("list[object]", value))) if isinstance(value, list) else str(value or "")
    wrapped = text.strip() != strip_wrapper(text.strip())
    return replace(draft, text=text.strip(), prompt=None, notes=("instruction wrapper kept",) if wrapped else ())


def _dapo_processed(row: Row) -> Draft:
    reward, extra = row.get("reward_model"), row.get("extra_info")
    answer = _string(row, "solution")
    truth = _string(cast("Row", reward), "ground_truth") if isinstance(reward, Mapping) else ""
    if truth and answer and same_answer(truth) != same_answer(answer):
        raise _MalformedRowError(f"solution says {answer!r}, reward_model says {truth!r}")
    identifier = _string(cast("Row", extra), "index") if isinstance(extra, Mapping) else ""
    return replace(_bare_prompt(row), answer=answer or truth, id=identifier)


def _trl(row: Row) -> Draft:
    asked, prompt = _prompt(row)
    problem, reward = row.get("problem"), row.get("reward_model")
    text = problem.strip() if isinstance(problem, str) and problem.strip() else asked
    answer, solution = _string(row, "answer", "ground_truth"), _string(row, "solution")
    if not answer and isinstance(reward, Mapping):
        answer = _string(cast("Row", reward), "ground_truth")
    notes: tuple[str, ...] = ()
    own = Draft(text if prompt else "", answer, id=_string(row, "id", "unique_id"), prompt=prompt)
    if not answer and solution:
        answer, notes = _boxed_answer(solution)
        if not answer:  # many such sets keep the final answer alone in this column
            return replace(own, answer=solution, notes=("solution column taken as the answer",))
    return replace(own, answer=answer, solution=solution or None, notes=notes)


def _gsm8k(row: Row) -> Draft:
    worked = _string(row, "answer")
    finals = _GSM8K_ANSWER.findall(worked)
    answer = finals[-1].rstrip(" \t") if finals else ""
    if DIGIT_GROUPS.fullmatch(answer):
        answer = answer.replace(",", "")
    return Draft(_string(row, "question"), answer, id=_string(row, "id"), solution=_CALCULATOR.sub("", worked) or None)


def _is_gsm8k(row: Row) -> bool:
    answer = row.get("answer")
    return isinstance(answer, str) and _GSM8K_ANSWER.search(answer) is not None


def _reasoning_gym(row: Row) -> Draft:
    metadata = row.get("metadata")
    entry = {"question": row.get("question"), "answer": row.get("answer"), "metadata": metadata}
    try:
        reference = json.dumps(entry, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _MalformedRowError(f"the entry is not JSON-able: {error}") from error
    return Draft(_string(row, "question"), _string(row, "answer"), id=_string(row, "id"), reference=reference)


def _is_reasoning_gym(row: Row) -> bool:
    metadata = row.get("metadata")
    return isinstance(metadata, Mapping) and "source_dataset" in metadata


# What is looked for in a row, and under which columns, in order of preference.
USUAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "problem": ("problem", "question", "Question", "text"),
        "answer": ("answer", "Answer"),
        "solution": ("solution",),
        "id": ("id", "unique_id", "ID", "problem_idx"),
        "prompt": ("prompt",),
    }
)


def _columns(names: Mapping[str, tuple[str, ...]] = USUAL) -> Callable[[Row], Draft]:
    """A converter for rows with one column each for problem, answer, solution and id."""

    def convert(row: Row) -> Draft:
        if any(_is_gsm8k({"answer": row.get(name)}) for name in names["answer"]):
            raise _MalformedRowError("the answer is a worked solution ending in ####; adapter gsm8k reads those")
        solution, notes = _string(row, *names["solution"]), ()
        final = _string(row, *names["answer"])
        if not final and solution:
            final, notes = _boxed_answer(solution)
        source = row.get("source")
        return Draft(
            _string(row, *names["problem"]),
            final,
            id=_string(row, *names["id"]),
            solution=solution or None,
            source=source if isinstance(source, str) else "",
            notes=notes,
        )

    return convert


def read_mapping(text: str) -> dict[str, str]:
    """``problem=question,answer=gold`` as a mapping; ``ConfigError`` if it is none."""
    pairs = [part.partition("=") for part in text.split(",")]
    mapping = {role.strip(): column.strip() for role, _, column in pairs}
    unknown = [role for role in mapping if role not in USUAL]
    if unknown or len(mapping) < len(pairs) or not all(mapping.values()):
        expected = "problem=COLUMN,answer=COLUMN; also " + ", ".join(role for role in USUAL if role != "problem")
        raise ConfigError("columns are not a mapping", got=repr(text), expected=expected)
    if not {"problem", "prompt"} & set(mapping):
        raise ConfigError("columns name nothing to ask", got=repr(text), expected="problem=COLUMN or prompt=COLUMN")
    return mapping


def _mapped(mapping: Mapping[str, str], found: frozenset[str]) -> Adapter:
    """The adapter for columns named by the user; what they leave out is looked for under its usual name."""
    missing = [column for column in mapping.values() if column not in found]
    if missing:
        raise DataError(
            "the data has no such column", got=", ".join(missing), expected="one of " + ", ".join(sorted(found))
        )
    named = {role: (column,) for role, column in mapping.items()}
    # A column of another meaning may have a usual name, so that text and prompt are only taken where they are named.
    names = {**USUAL, "problem": (), "prompt": (), **named}
    plain = _columns(names)

    def convert(row: Row) -> Draft:
        draft = plain(row)
        if not names["prompt"]:
            return draft
        asked, prompt = _prompt({"prompt": row.get(names["prompt"][0])})
        return replace(draft, text=draft.text or asked, prompt=prompt)

    return Adapter("columns", tuple((column,) for column in mapping.values()), convert)


def _never(row: Row) -> bool:
    """Of adapters that are chosen by name alone."""
    return False


_TABLE = (
    Adapter("dapo_processed", (("prompt",), ("solution",), ("source_prompt",)), _dapo_processed),
    Adapter("dapo_raw", (("data_source",), ("prompt",), ("reward_model",)), _dapo_raw),
    Adapter("dapo_wrapped", (("data_source",), ("prompt",), ("reward_model",)), _dapo_wrapped, _never),
    Adapter("reasoning_gym", (("question",), ("answer",), ("metadata",)), _reasoning_gym, _is_reasoning_gym),
    Adapter("gsm8k", (("question",), ("answer",)), _gsm8k, _is_gsm8k),
    Adapter("trl", (("prompt",), ("answer", "solution", "ground_truth", "reward_model")), _trl),
    Adapter("plain", (USUAL["problem"], (*USUAL["answer"], "solution")), _columns()),
)
# For reward functions that need no answer.
_UNANSWERED = (
    Adapter("trl", (("prompt",),), _trl),
    Adapter("plain", (USUAL["problem"],), _columns()),
)
ADAPTERS: Mapping[str, Adapter] = MappingProxyType({adapter.name: adapter for adapter in _TABLE})
"""Every row format there is, by name; ``docs/data.md`` describes them."""


def detect(columns: Iterable[str], sample: Sequence[Row] = (), *, needs_answer: bool = True) -> str:
    """The name of the most specific adapter for rows with these columns.

    Args:
        columns: the columns there are.
        sample: some rows. Formats that share their columns with another one (GSM8K, reasoning-gym) are told apart by
            these; without a sample they are never chosen.
        needs_answer: whether rows without any column for an answer are none.

    Raises:
        DataError: no adapter's columns are all there.
    """
    return _fitting(frozenset(columns), sample, needs_answer=needs_answer).name


def _fitting(found: frozenset[str], sample: Sequence[Row], *, needs_answer: bool) -> Adapter:
    fitting = [
        (len(adapter.columns) + (adapter.recognises is not None), adapter)
        for adapter in (*_TABLE, *(() if needs_answer else _UNANSWERED))
        if adapter.covers(found) and (adapter.recognises is None or any(map(adapter.recognises, sample)))
    ]
    if not fitting:
        raise DataError(
            "no adapter fits the data's columns",
            got=", ".join(sorted(found)) or "no columns",
            expected="problem and answer (docs/data.md has the other formats)",
            remedy="rename the columns to problem and answer, or name them: --columns problem=question,answer=gold",
        )
    return max(fitting, key=lambda candidate: candidate[0])[1]  # the first of equals: table order


_OF_ANSWERS = ("answer", "Answer", "solution", "ground_truth", "reward_model", "id", "unique_id")


def _read(adapter: Adapter, row: Row, *, needs_answer: bool) -> Draft:
    """What the adapter reads; where no answer is needed, one that is no text is as good as none."""
    try:
        return adapter.convert(row)
    except _MalformedRowError:
        bare = {name: value for name, value in row.items() if name not in _OF_ANSWERS}
        fitting = [other for other in _UNANSWERED if other.covers(frozenset(bare))]
        if needs_answer or not fitting:
            raise
    draft = fitting[0].convert(bare)
    answer, solution = row.get("answer"), row.get("solution")
    return replace(
        draft,
        answer=answer.strip() if isinstance(answer, str) else "",
        solution=solution if isinstance(solution, str) else None,
    )


_READ_PROMPTS = (_dapo_raw, _dapo_wrapped, _dapo_processed, _trl)
_KEPT = "conversation kept as it is"
_RAW = "prompt is text, put to the model without chat template"


def adapt(
    rows: Iterable[Row | DataError],
    columns: Iterable[str],
    *,
    stem: str,
    source: str,
    adapter: str | None = None,
    mapping: str | None = None,
    needs_answer: bool = True,
) -> Adapted:
    """Rows → problems, in order.

    A row keeps the id its data set gave it; without one it is ``<stem>-<row>``, counted from 0 over all rows read. An
    id that was seen before gets the suffix ``#2``, ``#3``, … (the DAPO set repeats every row, id included). Rows the
    adapter or the reader cannot read are in ``dropped``; rows without text or answer become problems that ``curate``
    drops.

    A ``prompt`` column is the prompt, as in TRL, whatever else the adapter reads: conversations stay as they are,
    system messages and earlier turns included. The DAPO sets' own prompts are the exception (``_bare_prompt``).

    Args:
        rows: the data set; may be a stream. In the place of a row that was of no use stands why.
        columns: the columns there are.
        stem: the start of made-up ids.
        source: the name of the data set, for ``Problem.source``.
        adapter: the adapter's name; ``None`` detects it.
        mapping: which column is what, in place of an adapter: ``problem=question,answer=gold``. Of ``answer``,
            ``solution`` and ``id``, what is not named is looked for under its usual names (``USUAL``).
        needs_answer: as for ``detect``; ``False`` also takes answers that are no text, and reads none of them.

    Raises:
        ConfigError: there is no adapter of that name; a mapping that is none, or beside an adapter.
        DataError: no such column; no adapter, or not the one asked for, fits the columns.
    """
    stream = iter(rows)
    sample = list(itertools.islice(stream, SAMPLED_ROWS))
    found = frozenset(columns)
    if adapter is not None:
        check_choice("adapter", adapter, tuple(ADAPTERS))
        if mapping is not None:
            raise ConfigError("columns and an adapter exclude each other", got=f"{mapping} and {adapter}")
    if mapping is not None:
        chosen = _mapped(read_mapping(mapping), found)
    else:
        seen = [row for row in sample if not isinstance(row, DataError)]
        chosen = ADAPTERS[adapter] if adapter else _fitting(found, seen, needs_answer=needs_answer)
    if not chosen.covers(found):
        raise DataError(
            f"adapter {chosen.name} does not fit the data's columns",
            got=", ".join(sorted(found)) or "no columns",
            expected=chosen.expects,
            remedy="leave the adapter out to have it detected",
        )
    problems: list[Problem] = []
    dropped: list[Dropped] = []
    notes: Counter[str] = Counter()
    taken: set[str] = set()
    copies: Counter[str] = Counter()
    # Equal texts and rows share their memory: the raw DAPO set holds each about a hundred times.
    shared: dict[str, str] = {}
    rest: dict[str, Row] = {}
    for position, row in enumerate(itertools.chain(sample, stream)):
        if isinstance(row, DataError):
            dropped.append(Dropped(f"{stem}-{position}", DropReason.MALFORMED, str(row)))
            continue
        try:
            draft = _read(chosen, row, needs_answer=needs_answer)
            if mapping is None and chosen.convert not in _READ_PROMPTS and row.get("prompt") is not None:
                asked, prompt = _prompt(row)
                draft = replace(draft, text=draft.text or asked, prompt=prompt)
        except _MalformedRowError as error:
            dropped.append(Dropped(f"{stem}-{position}", DropReason.MALFORMED, str(error)))
            continue
        own = unique = draft.id or f"{stem}-{position}"
        if own in taken:
            notes["repeated id given a suffix"] += 1
            copies[own] = max(copies[own], 1)
            while unique in taken:
                copies[own] += 1
                unique = f"{own}#{copies[own]}"
        taken.add(unique)
        notes.update(draft.notes)
        text = shared.setdefault(draft.text, draft.text)
        origin = draft.source or f"{source}#{position}"
        own_columns = {name: value for name, value in row.items() if name != "prompt"}
        if rest.setdefault(text, own_columns) == own_columns:
            own_columns = rest[text]
        if draft.prompt is not None:
            notes[_KEPT if isinstance(draft.prompt, tuple) else _RAW] += 1
        problems.append(
            Problem(
                unique,
                text,
                draft.answer,
                draft.solution,
                draft.reference,
                origin,
                prompt=draft.prompt,
                columns=own_columns,
            )
        )
    return Adapted(tuple(problems), chosen.name, tuple(dropped), dict(notes))
