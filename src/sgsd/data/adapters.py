"""Converts rows of data sets to ``Problem``: by the names of columns, or by code for the formats that need it."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import TypeAlias, cast

from sgsd.data.problems import DIGIT_GROUPS, Dropped, DropReason, Message, Problem, Row, same_answer
from sgsd.errors import ConfigError, DataError, check_choice
from sgsd.verifiers.spans import boxes

SAMPLED_ROWS = 20  # the first rows, which distinguish adapters with the same columns

_DAPO_HEAD = re.compile(
    r"\s*Solve the following math problem step by step\.\s+The last line of your response should be of the form "
    r"Answer: (?:\$Answer|\\boxed\{\$Answer\})(?: \(without quotes\))? where \$Answer is the answer to the problem\.\s*"
)
_DAPO_TAIL = 'Remember to put your answer on its own line after "Answer:".'
_GSM8K_ANSWER = re.compile(r"^####[ \t]*(\S.*)", re.MULTILINE)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


class _MalformedRowError(Exception):
    """A row that an adapter cannot read; ``adapt`` turns it into a ``Dropped``."""


Convert: TypeAlias = Callable[[Row, "Counter[str]"], Problem]
"""(row, counts of changes, which it adds to) → problem; its id and source are empty if the row has none."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A row format.

    Attributes:
        name: the value of ``adapter=``.
        columns: the columns it needs; an inner tuple names alternatives, in order of preference.
        convert: row → problem.
        recognises: whether a row is of this format and not of one with the same columns; ``None`` if columns suffice.
        reads_prompt: whether ``convert`` reads the column ``prompt``.
    """

    name: str
    columns: tuple[tuple[str, ...], ...]
    convert: Convert
    recognises: Callable[[Row], bool] | None = None
    reads_prompt: bool = False

    def covers(self, columns: frozenset[str]) -> bool:
        return all(any(name in columns for name in alternatives) for alternatives in self.columns)


@dataclass(frozen=True, slots=True)
class Adapted:
    """The problems of a data set, the rows that could not be read, and the counts of changes."""

    problems: tuple[Problem, ...]
    adapter: str
    dropped: tuple[Dropped, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict[str, int])


# ---- columns


def _string(row: object, *names: str) -> str:
    """The first of the columns that is not empty, as a string; 7.0 becomes 7, and a list of one element that element,
    since some data sets wrap their answers so. Empty if ``row`` is not a row.
    """
    for name in names if isinstance(row, Mapping) else ():
        value = cast("Row", row).get(name)
        if isinstance(value, list):
            parts = cast("list[object]", value)
            value = parts[0] if len(parts) == 1 else parts
        if value is None or (isinstance(value, float) and math.isnan(value)):  # Parquet readers give NaN
            continue
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _MalformedRowError(f"column {name} holds a {type(value).__name__}, not text or a number")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if text := str(value).strip():
            return text
    return ""


def _content(message: Message) -> str:
    """The content of a message as text; text parts are joined."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and message.get("tool_calls"):
        return ""
    if isinstance(content, list):
        parts = cast("list[object]", content)
        texts = [cast("Message", part).get("text") for part in parts if isinstance(part, Mapping)]
        if len(texts) == len(parts) and all(isinstance(text, str) for text in texts):
            return "\n".join(cast("list[str]", texts))
    raise _MalformedRowError("a message of the prompt is not text")


def _conversation(value: list[object]) -> tuple[Message, ...]:
    """The messages unchanged, but without keys that have no value, which Parquet adds."""
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


def strip_wrapper(text: str) -> str:
    """``text`` without DAPO-Math's instruction sentences, where it begins or ends with them word for word."""
    if head := _DAPO_HEAD.match(text):
        text = text[head.end() :]
    said = text.rstrip()
    return said.removesuffix(_DAPO_TAIL).rstrip() if said.endswith(_DAPO_TAIL) else text


def _prompt(row: Row) -> tuple[str, str | tuple[Message, ...] | None]:
    """The question in a ``prompt`` column, without DAPO's wrapper, and the full prompt; ``None`` if it is empty."""
    value = row.get("prompt")
    prompt = _conversation(cast("list[object]", value)) if isinstance(value, list) else _string(row, "prompt")
    text = strip_wrapper(prompt if isinstance(prompt, str) else last_user_text(prompt).strip())
    return text, (value if isinstance(value, str) else prompt) if text else None


def _boxed_answer(solution: str, notes: Counter[str]) -> str:
    """The one answer that a solution boxes; empty if there is no box."""
    contents = [content.strip() for _, _, content in boxes(solution)[0]]
    answers = {same_answer(content): content for content in contents if content}
    if len(answers) > 1:
        raise _MalformedRowError(f"no answer column, and {len(answers)} boxes in the solution: {'; '.join(answers)}")
    if answers:
        notes[r"answer taken from the \boxed{} of the solution"] += 1
    return "".join(answers.values())


# ---- formats


def _dapo(row: Row, notes: Counter[str], *, keep_wrapper: bool = False) -> Problem:
    """DAPO's data sets. A prompt that is only the problem, with or without DAPO's wrapper, becomes the problem; another
    conversation stays the full prompt. With ``keep_wrapper`` the last user message is the problem, unchanged.
    """
    answer = truth = _string(row.get("reward_model"), "ground_truth")
    if "source_prompt" in row:  # the processed data set, whose solution is the answer
        answer = _string(row, "solution") or truth
        if truth and same_answer(truth) != same_answer(answer):
            raise _MalformedRowError(f"solution says {answer!r}, reward_model says {truth!r}")
    identifier = _string(row.get("extra_info"), "index")
    text, prompt = _prompt(row)
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt or ()
    said = [str(message["content"]).strip() for message in messages]
    bare = [strip_wrapper(one).strip() for one in said]
    if keep_wrapper:
        text, prompt = last_user_text(messages).strip(), None
        notes["instruction wrapper kept"] += strip_wrapper(text) != text
    elif isinstance(prompt, str):
        prompt = None
        notes["instruction wrapper stripped"] += said != bare
    elif said != bare:
        roles = [m["role"] for m, rest in zip(messages, bare, strict=True) if rest or m["role"] != "system"]
        if roles == ["user"]:
            prompt = None
            notes["instruction wrapper stripped"] += 1
    return Problem(identifier, text, answer, prompt=prompt)


def _trl(row: Row, notes: Counter[str]) -> Problem:
    asked, prompt = _prompt(row)
    problem, solution = row.get("problem"), _string(row, "solution")
    text = problem.strip() if prompt and isinstance(problem, str) and problem.strip() else asked
    answer = _string(row, "answer", "ground_truth") or _string(row.get("reward_model"), "ground_truth")
    if not answer and solution:
        answer = _boxed_answer(solution, notes)
        if not answer:  # many such data sets have only the final answer in this column
            notes["solution column taken as the answer"] += 1
            answer, solution = solution, ""
    return Problem(_string(row, "id", "unique_id"), text, answer, solution or None, prompt=prompt)


def _gsm8k(row: Row, notes: Counter[str]) -> Problem:
    worked = _string(row, "answer")
    finals = _GSM8K_ANSWER.findall(worked)
    is_plain = bool(worked) and not finals and "\n" not in worked  # the row of another data set
    notes["one line without #### taken as the answer"] += is_plain
    answer = worked if is_plain else finals[-1].rstrip(" \t") if finals else ""
    if DIGIT_GROUPS.fullmatch(answer):
        answer = answer.replace(",", "")
    solution = "" if is_plain else _CALCULATOR.sub("", worked)
    return Problem(_string(row, "id"), _string(row, "question"), answer, solution or None)


def _is_gsm8k(row: Row) -> bool:
    answer = row.get("answer")
    return isinstance(answer, str) and _GSM8K_ANSWER.search(answer) is not None


def _reasoning_gym(row: Row, notes: Counter[str]) -> Problem:
    entry = {name: row.get(name) for name in ("question", "answer", "metadata")}
    try:
        reference = json.dumps(entry, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _MalformedRowError(f"the entry cannot be written as JSON: {error}") from error
    return Problem(_string(row, "id"), _string(row, "question"), _string(row, "answer"), reference=reference)


def _is_reasoning_gym(row: Row) -> bool:
    metadata = row.get("metadata")
    return isinstance(metadata, Mapping) and "source_dataset" in metadata


_REFERENCE = "sgsd_reference"


def as_row(problem: Problem) -> dict[str, object]:
    """The problem as a row of JSON values that is read back as the same problem, whatever adapter read it first.

    Values that JSON does not have become text, and numbers that are not finite ``None``.
    """
    row = {
        **problem.columns,
        "id": problem.id,
        "problem": problem.text,
        "answer": problem.answer,
        "solution": problem.solution,
        _REFERENCE: problem.reference,
    }
    if problem.prompt is not None:
        row["prompt"] = problem.prompt
    return json.loads(json.dumps(row, default=str), parse_constant=lambda _: None)


def _written(row: Row, notes: Counter[str]) -> Problem:
    parts = (_string(row, name) for name in ("id", "problem", "answer", "solution", _REFERENCE))
    identifier, text, answer, solution, reference = parts
    return Problem(identifier, text, answer, solution or None, reference or None)


# The parts of a problem, and the usual names of their columns in order of preference.
USUAL: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "problem": ("problem", "question", "Question", "text"),
        "answer": ("answer", "Answer", "answerKey"),
        "solution": ("solution",),
        "id": ("id", "unique_id", "ID", "problem_idx"),
        "prompt": ("prompt",),
    }
)


def _choices(row: Row) -> list[tuple[str, str, bool]]:
    """(label, text, whether it is a number) of each choice: of a list (MMLU), lists of texts and labels (ARC), or texts
    by label.
    """
    name = next((name for name in ("choices", "options") if row.get(name)), "")
    value: object = row.get(name) or []
    labels: object = list(_LETTERS)
    if isinstance(value, Mapping):
        given = {key: one for key, one in cast("Mapping[str, object]", value).items() if one is not None}
        labels, value = (given.get("label"), given["text"]) if "text" in given else (list(given), list(given.values()))
    if not isinstance(labels, list) or not isinstance(value, list):
        raise _MalformedRowError(f"column {name} holds no list of choices")
    texts = cast("list[object]", value)
    choices = [
        (_string({name: label}, name), " ".join(_string({name: one}, name).split()), not isinstance(one, str))
        for label, one in zip(cast("list[object]", labels), texts, strict=False)
    ]
    if not all(text for _, text, _ in choices) or not len(choices) == len(texts) <= len(_LETTERS):
        raise _MalformedRowError(f"column {name} holds an empty choice, or more choices than labels")
    return choices


def _with_choices(problem: Problem, row: Row, answer: object, notes: Counter[str]) -> Problem:
    """The problem with the row's choices at the end of its text, one a line, and the letter of the right one as answer.

    Args:
        answer: a number is the place of a choice, counted from 0; anything else is a label or the text of a choice.
    """
    choices = _choices(row)
    if not choices:
        return problem
    said, letter = " ".join(problem.answer.split()), ""
    if said:
        is_number = isinstance(answer, int | float)
        label = said.strip("().: ").casefold()
        right = [
            place
            for place, (own, text, numeric) in enumerate(choices)
            if (place == answer or (numeric and text == said) if is_number else text == said or own.casefold() == label)
        ]
        if len(right) != 1:
            raise _MalformedRowError(f"the answer {said!r} is {'several' if right else 'none'} of the choices")
        letter = _LETTERS[right[0]]
    notes["choices put into the problem, answer as letter (verifier choice)"] += 1
    lines = [f"{one}. {text}" for one, (_, text, _) in zip(_LETTERS, choices, strict=False)]
    return replace(problem, text="\n".join([problem.text, *lines]) if problem.text else "", answer=letter)


def _plain(row: Row, notes: Counter[str], names: Mapping[str, tuple[str, ...]] = USUAL) -> Problem:
    """A row with one column each for problem, answer, solution and id, and perhaps one with choices."""
    if any(_is_gsm8k({"answer": row.get(name)}) for name in names["answer"]):
        raise _MalformedRowError("the answer is a worked solution ending in ####; adapter gsm8k reads those")
    solution, answer = _string(row, *names["solution"]), _string(row, *names["answer"])
    if not answer and solution:
        answer = _boxed_answer(solution, notes)
    source = row.get("source")
    problem = Problem(
        _string(row, *names["id"]),
        _string(row, *names["problem"]),
        answer,
        solution or None,
        source=source if isinstance(source, str) else "",
    )
    if any(row.get(name) is not None for name in names["prompt"]):  # a full prompt has its choices
        return problem
    given = next((row[name] for name in names["answer"] if _string(row, name)), None)
    return _with_choices(problem, row, given, notes)


def _prompted(problem: Problem, value: object) -> Problem:
    """The problem with the full prompt of its ``prompt`` column, and with the question in it if it has no text."""
    asked, prompt = _prompt({"prompt": value})
    return replace(problem, text=problem.text or asked, prompt=prompt)


def read_mapping(text: str) -> dict[str, str]:
    """Parse ``problem=question,answer=gold``.

    Raises:
        ConfigError: the text is not such a mapping, or names neither a problem nor a prompt.
    """
    pairs = [part.partition("=") for part in text.split(",")]
    mapping = {role.strip(): column.strip() for role, _, column in pairs}
    if not USUAL.keys() >= mapping.keys() or len(mapping) < len(pairs) or not all(mapping.values()):
        expected = "problem=COLUMN,answer=COLUMN; also " + ", ".join(role for role in USUAL if role != "problem")
        raise ConfigError("columns are not a mapping", got=repr(text), expected=expected)
    if not {"problem", "prompt"} & set(mapping):
        raise ConfigError("columns name no problem", got=repr(text), expected="problem=COLUMN or prompt=COLUMN")
    return mapping


def _mapped(mapping: Mapping[str, str]) -> Adapter:
    """The adapter for columns that the user names; answer, solution and id also have their usual names."""
    # Problem and prompt are only taken from named columns: an unrelated column may have a usual name.
    names = {**USUAL, "problem": (), **{role: (column,) for role, column in mapping.items()}}

    def convert(row: Row, notes: Counter[str]) -> Problem:
        problem = _plain(row, notes, names)
        return _prompted(problem, row.get(mapping["prompt"])) if "prompt" in mapping else problem

    return Adapter("columns", tuple((column,) for column in mapping.values()), convert, reads_prompt=True)


def _never(row: Row) -> bool:
    """For an adapter that is only chosen by name."""
    return False


_RAW_DAPO = (("data_source",), ("prompt",), ("reward_model",))
_ANSWERS = ("answer", "solution", "ground_truth", "reward_model")
# The first adapter whose columns all exist is taken, so those that need most columns come first.
_TABLE = (
    Adapter("written", (("problem",), ("answer",), (_REFERENCE,)), _written),
    Adapter("reasoning_gym", (("question",), ("answer",), ("metadata",)), _reasoning_gym, _is_reasoning_gym),
    Adapter("dapo_processed", (("prompt",), ("solution",), ("source_prompt",)), _dapo, reads_prompt=True),
    Adapter("dapo_raw", _RAW_DAPO, _dapo, reads_prompt=True),
    Adapter("dapo_wrapped", _RAW_DAPO, partial(_dapo, keep_wrapper=True), _never, reads_prompt=True),
    Adapter("gsm8k", (("question",), ("answer",)), _gsm8k, _is_gsm8k),
    Adapter("trl", (("prompt",), _ANSWERS), _trl, reads_prompt=True),
    Adapter("plain", (USUAL["problem"], (*USUAL["answer"], "solution")), _plain),
)
# For reward functions that need no answer.
_UNANSWERED = tuple(replace(adapter, columns=adapter.columns[:1]) for adapter in _TABLE[-2:])
ADAPTERS: Mapping[str, Adapter] = MappingProxyType({adapter.name: adapter for adapter in _TABLE})
"""Every row format, by name; ``docs/data.md`` describes them."""


def _chosen(
    name: str | None, mapping: str | None, found: frozenset[str], sample: Sequence[Row], *, needs_answer: bool
) -> Adapter:
    """The adapter of this name or mapping, or the first that fits the columns and the rows."""
    if mapping is not None and name is not None:
        raise ConfigError("columns and an adapter exclude each other", got=f"{mapping} and {name}")
    if mapping is not None:
        adapter = _mapped(read_mapping(mapping))
    elif name is not None:
        check_choice("adapter", name, tuple(ADAPTERS))
        adapter = ADAPTERS[name]
    else:
        for adapter in (*_TABLE, *(() if needs_answer else _UNANSWERED)):
            if adapter.covers(found) and (adapter.recognises is None or any(map(adapter.recognises, sample))):
                return adapter
        raise DataError(
            "no adapter fits the data's columns",
            got=", ".join(sorted(found)) or "no columns",
            expected="problem and answer (docs/data.md has the other formats)",
            remedy="rename the columns to problem and answer, or name them: --columns problem=question,answer=gold",
        )
    if missing := [" or ".join(names) for names in adapter.columns if not found.intersection(names)]:
        raise DataError(
            f"adapter {name} needs another column" if name else "the data has no such column",
            got=", ".join(missing),
            expected="one of " + ", ".join(sorted(found)),
            remedy="leave the adapter out to have it detected" if name else None,
        )
    return adapter


_OF_ANSWERS = (*_ANSWERS, "Answer", "answerKey", "id", "unique_id")


def _read(adapter: Adapter, row: Row, notes: Counter[str], *, needs_answer: bool) -> Problem:
    try:
        problem = adapter.convert(row, notes)
    except _MalformedRowError:
        if needs_answer:
            raise
        problem = adapter.convert({name: part for name, part in row.items() if name not in _OF_ANSWERS}, notes)
    return problem if adapter.reads_prompt or row.get("prompt") is None else _prompted(problem, row["prompt"])


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
    """Convert rows to problems, in order.

    A row keeps its own id; without one, the id is ``<stem>-<row>``, counted from 0 over all rows read. A repeated id
    gets the suffix ``#2``, ``#3``, … (the DAPO data set repeats every row with its id). Rows that cannot be read are in
    ``dropped``; rows without text or answer become problems that ``curate`` drops.

    A ``prompt`` column is the prompt, as in TRL, whatever else the adapter reads: conversations are not changed, system
    messages and earlier turns included. The prompts of the DAPO data sets are the exception (``_dapo``).

    Args:
        rows: the data set, which may be a stream. An unusable row is replaced by the error that says why.
        columns: the names of the columns.
        stem: the start of generated ids.
        source: the name of the data set, for ``Problem.source``.
        adapter: the adapter's name; ``None`` takes the first that fits. The first rows distinguish formats with the
            same columns (GSM8K, reasoning-gym).
        mapping: the columns by name, instead of an adapter: ``problem=question,answer=gold``. If ``answer``,
            ``solution`` or ``id`` is not named, it is looked for under its usual names (``USUAL``).
        needs_answer: ``False`` also takes rows without an answer, or with one that is not text.

    Raises:
        ConfigError: an unknown adapter, a malformed mapping, or a mapping together with an adapter.
        DataError: no adapter fits the columns, or the named adapter or mapping does not.
    """
    stream = iter(rows)
    sample = list(itertools.islice(stream, SAMPLED_ROWS))
    usable = [row for row in sample if not isinstance(row, DataError)]
    chosen = _chosen(adapter, mapping, frozenset(columns), usable, needs_answer=needs_answer)
    problems: list[Problem] = []
    dropped: list[Dropped] = []
    notes: Counter[str] = Counter()
    taken: set[str] = set()
    copies: Counter[str] = Counter()
    # Equal texts and rows share memory: the raw DAPO data set has each about a hundred times.
    shared: dict[str, tuple[str, Row]] = {}
    for position, row in enumerate(itertools.chain(sample, stream)):
        generated = f"{stem}-{position}"
        try:
            if isinstance(row, DataError):
                raise _MalformedRowError(str(row))
            problem = _read(chosen, row, notes, needs_answer=needs_answer)
        except _MalformedRowError as error:
            dropped.append(Dropped(generated, DropReason.MALFORMED, str(error)))
            continue
        own = unique = problem.id or generated
        if own in taken:
            notes["repeated id given a suffix"] += 1
            copies[own] = max(copies[own], 1)
            while unique in taken:
                copies[own] += 1
                unique = f"{own}#{copies[own]}"
        taken.add(unique)
        if isinstance(problem.prompt, str):
            notes["prompt is text, used without chat template"] += 1
        elif problem.prompt is not None:
            notes["conversation kept as it is"] += 1
        kept: Row = {name: value for name, value in row.items() if name != "prompt"}
        text, first = shared.setdefault(problem.text, (problem.text, kept))
        columns_of = first if first == kept else kept
        origin = problem.source or f"{source}#{position}"
        problems.append(replace(problem, id=unique, text=text, source=origin, columns=columns_of))
    return Adapted(tuple(problems), chosen.name, tuple(dropped), dict(+notes))
