"""Problems → the rows of a TRL trainer, with the same prompts for every method.

The column ``prompt`` is TRL's (``sgsd.prompts``). Every other column of the data set reaches reward functions.
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

_IMAGES = ("image", "images")  # columns that TRL reads

_log = logger(__name__)


def problems_of(source: Dataset | Sequence[Problem], *, verified: bool = True) -> list[Problem]:
    """A list of problems unchanged, or the problems of a data set in a format that ``sgsd.data.adapters`` reads.

    If ``verified``, a verifier compares with an answer: rows without an answer, duplicates and rows with contradictory
    answers are dropped. Otherwise the user's reward functions judge, and no row is dropped.

    Raises:
        DataError: the data set is empty, streaming, or of an unknown format; not ``verified``, and a row has no prompt.
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
            remedy="create one: datasets.Dataset.from_list(rows), or datasets.load_dataset",
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
    reasons = [f"{drop.id}: {drop.why or drop.reason}" for drop in report.dropped[:LISTED_IDS]]
    if reasons and not problems:
        raise DataError(
            "no row of the data set can be used",
            got=f"{report.summary()}; {reasons[0]}",
            expected="a prompt or a problem, with an answer for a verifier",
        )
    if reasons and verified:
        _log.warning("%s (%s)", report.summary(), "; ".join(reasons))
    elif reasons:
        raise DataError(
            f"{len(report.dropped)} of {report.rows} rows of the data set cannot be used",
            got="; ".join(reasons),
            expected="text, or a conversation with a user message that is not empty",
            remedy="leave these rows out of the data",
        )
    for problem in [] if verified else adapted.problems:  # retrieval and reward functions read the column
        value = problem.columns.get("problem")
        if value is not None and not isinstance(value, str):
            raise DataError(
                "the column problem is not text",
                got=f"{type(value).__name__} in {problem.id}",
                expected="the text that skills are retrieved for, or no such column",
                remedy="rename the column",
            )
    return problems


def all_text(problems: Sequence[Problem]) -> bool:
    """Whether every prompt is text, which is tokenised without the chat template."""
    return all(isinstance(problem.prompt, str) for problem in problems)


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """A row's prompt for ``PromptRenderer``: its conversation, or its text as ``RawText``."""
    prompt = row["prompt"]
    return RawText(prompt) if isinstance(prompt, str) else prompt


def skill_pairs(
    problems: Sequence[Problem], retriever: Retriever, bank: SkillBank, count: int, context: str = "pairs"
) -> list[Shown]:
    """What each problem's prompt shows with ``skills_in_prompt``: the best ``count`` pairs or rules, or the document.

    Args:
        problems, retriever, bank: the run's.
        count: pairs or rules per prompt.
        context: one of ``config.CONTEXTS``.

    Raises:
        ConfigError: the bank has fewer than ``count``.
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
    max_student_length: int | None = None,
    skills: Sequence[Shown] | None = None,
    references: Sequence[str] | None = None,
    long_prompts: str = "error",
    verified: bool = True,
) -> Dataset:
    """The trainer's data set: prompts, and columns for reward functions.

    Columns: ``prompt`` (messages or text), ``problem`` (the query of retrieval), ``problem_id``; ``answer`` and
    ``solution`` if present; and the data set's own columns, unchanged. If names collide and ``verified``, ``answer`` is
    the verifier's form of it, and a missing ``solution`` is replaced by the answer (TRL's ``accuracy_reward`` reads
    it). If names collide and not ``verified``, the data set's own columns win.

    Args:
        problems: one or more.
        renderer: of their prompts.
        max_prompt_length: in tokens.
        max_student_length: of the student's prompts, in tokens; ``None``: ``max_prompt_length``.
        skills: what each problem's prompt shows of a bank; ``None`` for plain prompts.
        references: the reference that each problem's OPSD teacher is shown; the teacher's prompt ids become the column
            ``teacher_prompt``.
        long_prompts: for rows whose prompt is too long: ``error``, or ``drop`` them with a warning.
        verified: as for ``problems_of``.

    Raises:
        PromptError: a prompt is too long, or the chat template refuses it; the row is named.
        DataError: a row has images; some prompts are conversations and some are text; or a column has values that Arrow
            cannot store, such as integers beyond 64 bits.
    """
    rows: list[dict[str, Any]] = []
    lengths: list[tuple[int, int]] = []  # of the student's prompt, and of the teacher's
    for place, problem in enumerate(problems):
        for name in _IMAGES:
            if problem.columns.get(name):
                raise DataError(
                    "images are not supported",
                    got=f"column {name} in {problem.id}",
                    expected="text",
                    remedy="leave the column out, or train with TRL's GRPOTrainer",
                )
        try:
            if skills is None:
                prompt, ids = renderer.student_messages(problem), renderer.student_ids(problem)
            else:
                shown = skills[place]
                prompt, ids = renderer.skilled_messages(problem, shown), renderer.skilled_ids(problem, shown)
            row = {"prompt": str(prompt) if isinstance(prompt, RawText) else prompt, **columns_of(problem, verified)}
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
            "some prompts are text and some are conversations",
            got=f"text in {problems[raw.index(True)].id}, a conversation in {problems[raw.index(False)].id}",
            expected="one kind in all rows",
        )
    limit = max_prompt_length if max_student_length is None else max_student_length
    fits = [student <= limit and teacher <= max_prompt_length for student, teacher in lengths]
    if long_prompts == "drop" and any(fits) and not all(fits):
        dropped = [problem.id for problem, fit in zip(problems, fits, strict=True) if not fit]
        _log.warning(
            "%s of %s rows left out: prompts of more than %s tokens (%s)",
            f"{len(dropped):,}",
            f"{len(rows):,}",
            f"{limit:,}",
            listed(dropped),
        )
        rows = [row for row, fit in zip(rows, fits, strict=True) if fit]
    else:
        of_student, of_teacher = zip(*lengths, strict=True)
        names = [problem.id for problem in problems]
        what = "plain prompts" if skills is None else "prompts with skills"
        refuse_long_prompts(of_student, limit, what, names)
        refuse_long_prompts(of_teacher, max_prompt_length, "teacher prompts", names)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return _data_set(rows, columns)
    except (OverflowError, ValueError) as error:  # from Arrow, or from JSON, in which mixed types are stored
        raise DataError(
            "a column of the data cannot be stored",
            got=f"{error}, in {', '.join(name for name in columns if not _fits(rows, name))}",
            expected="values of one type or of JSON's types, and integers of at most 64 bits",
            remedy="write the values as text, or leave the column out",
        ) from error


def _data_set(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Dataset:
    """A data set that keeps columns of mixed types, and objects whose keys differ between rows."""
    own = [name for name in columns if name != "teacher_prompt"]  # token ids
    if any(_is_beyond_64_bits(row.get(name)) for row in rows for name in own):
        raise OverflowError("an integer beyond 64 bits")  # beside other types it would be stored, and not be read
    return Dataset.from_list([{name: row.get(name) for name in columns} for row in rows], on_mixed_types="use_json")


def _is_beyond_64_bits(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(_is_beyond_64_bits, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**64


def _fits(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    try:
        _data_set(rows, [column])
    except (OverflowError, ValueError):
        return False
    return True


def columns_of(problem: Problem, verified: bool) -> dict[str, Any]:
    """The columns of a problem's row; with reward functions, not ``verified``, the data's own come first."""
    derived: dict[str, Any] = {"problem": problem.text, "problem_id": problem.id}
    if problem.answer:
        derived |= {"answer": problem.key, "solution": problem.solution or problem.answer}
    elif problem.solution:
        derived["solution"] = problem.solution
    own = {name: value for name, value in problem.columns.items() if name not in _IMAGES}
    for name in ("problem", "problem_id"):
        if own.get(name) is None or own[name] == "":
            own.pop(name, None)
    if not isinstance(own.get("problem"), str):
        own.pop("problem", None)
    return {**own, **derived} if verified else {**derived, **own}
