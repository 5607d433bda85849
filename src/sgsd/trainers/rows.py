"""Problems → the rows a TRL trainer takes. The same for every method, so that all see the same prompts.

A ``prompt`` column is what it is in TRL (``sgsd.prompts``), and every other column of the data set reaches reward
functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from sgsd.bank import SkillBank
from sgsd.data.adapters import adapt
from sgsd.data.curation import curate
from sgsd.data.problems import Problem
from sgsd.display import logger
from sgsd.errors import ConfigError, DataError, PromptError
from sgsd.prompts import LISTED_IDS, Prompt, PromptRenderer, RawText, Shown, listed, refuse_long_prompts
from sgsd.retrieval import Retriever

_log = logger(__name__)


def problems_of(source: Dataset | Sequence[Problem], *, verified: bool = True) -> list[Problem]:
    """Problems as they are, or those of a data set in any format that ``sgsd.data.problems`` knows.

    Where a verifier compares with an answer, rows without one, duplicates and contradictions are left out. With reward
    functions of the user's own no row is.

    Raises:
        DataError: nothing in it, an unknown format, or a streaming data set; with reward functions of the user's own, a
            row that asks nothing.
    """
    if isinstance(source, Dataset):
        problems = _adapted(source.with_format(None), verified=verified)
    elif isinstance(source, Sequence) and all(isinstance(problem, Problem) for problem in source):
        problems = list(source)
    else:
        kinds = sorted({type(item).__name__ for item in source}) if isinstance(source, list | tuple) else []
        raise DataError(
            "the data set cannot be used",
            got=type(source).__name__ + (f" of {', '.join(kinds)}" if kinds else ""),
            expected="datasets.Dataset or a list of Problem",
            remedy="make one: datasets.Dataset.from_list(rows), or datasets.load_dataset",
        )
    if not problems:
        raise DataError("the data set is empty")
    return problems


def _adapted(rows: Dataset, *, verified: bool) -> list[Problem]:
    adapted = adapt(rows, rows.column_names, stem="row", source="dataset", needs_answer=verified)
    problems, report = curate(
        adapted.problems,
        needs_answer=verified,
        on_duplicate="drop" if verified else "keep",
        on_conflict="drop_all" if verified else "keep",
    )
    report = report.including(adapted, source="the data set")
    named = [f"{drop.id}: {drop.why or drop.reason}" for drop in report.dropped[:LISTED_IDS]]
    if named and not problems:
        raise DataError(
            "no row of the data set can be used",
            got=f"{report.summary()}; {named[0]}",
            expected="a prompt or a problem, with an answer for a verifier",
        )
    if named and verified:
        _log.warning("%s (%s)", report.summary(), "; ".join(named))
    elif named:
        raise DataError(
            f"{len(report.dropped)} of {report.rows} rows of the data set cannot be used",
            got="; ".join(named),
            expected="text, or a conversation with a user message that is not empty",
            remedy="leave these rows out of the data",
        )
    for problem in [] if verified else adapted.problems:  # pairs are retrieved by a problem, and rewards are given it
        value = problem.columns.get("problem")
        if value is not None and not isinstance(value, str):
            raise DataError(
                "the column problem is no text",
                got=f"{type(value).__name__} in {problem.id}",
                expected="the text that skills are retrieved by, or none",
                remedy="rename the column",
            )
    return problems


def all_text(problems: Sequence[Problem]) -> bool:
    """Whether every prompt is text, which goes to the model without chat template."""
    return all(isinstance(problem.prompt, str) for problem in problems)


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """What a row asks, as ``PromptRenderer`` takes it: its conversation, or its text as ``RawText``."""
    prompt = row["prompt"]
    return RawText(prompt) if isinstance(prompt, str) else prompt


def skill_pairs(
    problems: Sequence[Problem], retriever: Retriever, bank: SkillBank, count: int, context: str = "pairs"
) -> list[Shown]:
    """What each problem's prompt shows with ``skills_in_prompt``: the best ``count`` pairs or rules, or the document.

    ``context`` is what ``config.context_of`` has.

    Raises:
        ConfigError: the bank does not make as many.
    """
    if context == "document":
        return [str(bank.metadata["document"])] * len(problems)
    most = bank.max_pairs if context == "pairs" else len(bank.items)
    if count > most:
        raise ConfigError("skills_in_prompt_pairs is more than the bank has", got=count, expected=f"at most {most}")
    texts = [problem.text for problem in problems]
    alone = {"alone": True} if context == "rules" else {}
    retrievals = retriever.retrieve(texts, bank, count, **alone)
    return [[pair.items for pair in retrieval.pairs] for retrieval in retrievals]


def training_rows(
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    *,
    max_prompt_length: int,
    skills: Sequence[Shown] | None = None,
    references: Sequence[str] | None = None,
    long_prompts: str = "error",
    verified: bool = True,
) -> Dataset:
    """The rollouts' prompts and what a reward function may want beside them.

    Columns: ``prompt`` (messages or text), ``problem`` (what pairs are retrieved by), ``problem_id``; ``answer`` and
    ``solution`` where there are any; and the data set's own, untouched. Where both have a column, a verified run has
    ``answer`` as its verifier takes it and ``solution`` with the answer in its place where there is none (TRL's
    ``accuracy_reward`` reads it); reward functions of the user's own are given the data set's.

    Args:
        problems, renderer: one problem or more, and what makes their prompts.
        max_prompt_length: in tokens.
        skills: what each problem's prompt shows of a bank; ``None`` for plain prompts.
        references: what each problem's OPSD teacher is shown; its token ids become the column ``teacher_prompt``.
        long_prompts: what becomes of a row whose prompt is too long: ``error``, or ``drop``, with a warning.
        verified: as for ``problems_of``.

    Raises:
        PromptError: a prompt is too long, or the chat template refuses it; the row is named.
        DataError: conversations and text among the prompts, of which TRL looks at the first alone; an integer beyond 64
            bits in a column.
    """
    rows: list[dict[str, Any]] = []
    lengths: list[tuple[int, int]] = []  # of the student's prompt, and of the teacher's
    for place, problem in enumerate(problems):
        try:
            if skills is None:
                prompt, ids = renderer.student_messages(problem), renderer.student_ids(problem)
            else:
                shown = skills[place]
                prompt, ids = renderer.skilled_messages(problem, shown), renderer.skilled_ids(problem, shown)
            row = {"prompt": str(prompt) if isinstance(prompt, RawText) else prompt, **_columns(problem, verified)}
            if references is not None:
                shown = () if skills is None else skills[place]
                row["teacher_prompt"] = renderer.reference_ids(problem, references[place], shown)
        except PromptError as error:
            raise PromptError(f"problem {problem.id}: {error}") from error
        rows.append(row)
        lengths.append((len(ids), len(row.get("teacher_prompt", ()))))
    raw = [isinstance(row["prompt"], str) for row in rows]
    if any(raw) and not all(raw):
        raise DataError(
            "prompts are of two kinds",
            got=f"text in {problems[raw.index(True)].id}, a conversation in {problems[raw.index(False)].id}",
            expected="either in all rows",
        )
    fits = [max(both) <= max_prompt_length for both in lengths]
    if long_prompts == "drop" and any(fits) and not all(fits):
        left_out = [problem.id for problem, fit in zip(problems, fits, strict=True) if not fit]
        _log.warning(
            "%s of %s rows left out: prompts of more than %s tokens (%s)",
            f"{len(left_out):,}",
            f"{len(rows):,}",
            f"{max_prompt_length:,}",
            listed(left_out),
        )
        rows = [row for row, fit in zip(rows, fits, strict=True) if fit]
    else:
        of_student, of_teacher = zip(*lengths, strict=True)
        names = [problem.id for problem in problems]
        what = "plain prompts" if skills is None else "prompts with skills"
        refuse_long_prompts(of_student, max_prompt_length, what, names)
        refuse_long_prompts(of_teacher, max_prompt_length, "teacher prompts", names)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return _data_set(rows, columns)
    except (OverflowError, ValueError) as error:  # Arrow's; or of the JSON that mixed types are kept as
        raise DataError(
            "a column of the data holds what no data set can",
            got=f"{error}, in {', '.join(name for name in columns if not _fits(rows, name))}",
            expected="values of one type or of JSON's, and integers of at most 64 bits",
            remedy="write it as text, or leave the column out",
        ) from error


def _data_set(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Dataset:
    """Columns that mix types, and objects with other keys from row to row, stay as they are."""
    return Dataset.from_list([{name: row.get(name) for name in columns} for row in rows], on_mixed_types="use_json")


def _fits(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    try:
        _data_set(rows, [column])
    except (OverflowError, ValueError):
        return False
    return True


def _columns(problem: Problem, verified: bool) -> dict[str, Any]:
    derived: dict[str, Any] = {"problem": problem.text, "problem_id": problem.id}
    if problem.answer:
        derived |= {"answer": problem.key, "solution": problem.solution or problem.answer}
    elif problem.solution:
        derived["solution"] = problem.solution
    own = dict(problem.columns)
    for name in ("problem", "problem_id"):
        if own.get(name) is None or own[name] == "":
            own.pop(name, None)
    if not isinstance(own.get("problem"), str):
        own.pop("problem", None)
    return {**own, **derived} if verified else {**derived, **own}
