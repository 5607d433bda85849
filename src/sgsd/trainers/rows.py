"""Problems → the rows a TRL trainer takes. The same for every method, so that all see the same prompts.

A ``prompt`` column is what it is in TRL (``sgsd.prompts``), and every other column of the data set reaches reward
functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from datasets import Dataset

from sgsd.bank import SkillBank
from sgsd.data.adapters import Adapted, adapt
from sgsd.data.curation import curate
from sgsd.data.problems import Problem
from sgsd.display import logger
from sgsd.errors import ConfigError, DataError, PromptError
from sgsd.prompts import LISTED_IDS, Prompt, PromptRenderer, RawText, Shown, listed, refuse_long_prompts
from sgsd.retrieval import Retriever

_log = logger(__name__)


def problems_of(source: Dataset | Sequence[Problem], *, verified: bool = True) -> list[Problem]:
    """Problems as they are, or those of a data set in any format that ``sgsd.data.problems`` knows.

    Args:
        source: the data.
        verified: a verifier compares with an answer: rows without one, duplicates and contradictions are left out. Not
            so with reward functions of the user's own: no row is left out.

    Raises:
        DataError: nothing in it, an unknown format, or a streaming data set; with reward functions of the user's own, a
            row that asks nothing.
    """
    if isinstance(source, Dataset):
        rows = source.with_format(None)
        adapted = adapt(rows, rows.column_names, stem="row", source="dataset", needs_answer=verified)
        problems, report = curate(
            adapted.problems,
            needs_answer=verified,
            on_duplicate="drop" if verified else "keep",
            on_conflict="drop_all" if verified else "keep",
        )
        report = report.including(adapted, source="the data set")
        if not problems and report.dropped:
            first = report.dropped[0]
            raise DataError(
                "no row of the data set can be used",
                got=f"{report.summary()}; {first.id}: {first.why or first.reason}",
                expected="a prompt or a problem, with an answer for a verifier",
            )
        if report.dropped:
            named = "; ".join(f"{drop.id}: {drop.why or drop.reason}" for drop in report.dropped[:LISTED_IDS])
            if not verified:
                raise DataError(
                    f"{len(report.dropped)} of {report.rows} rows of the data set cannot be used",
                    got=named,
                    expected="text, or a conversation with a user message that is not empty",
                    remedy="leave these rows out of the data",
                )
            _log.warning("%s (%s)", report.summary(), named)
        if not verified:
            _refuse_other_problems(adapted)
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


def _refuse_other_problems(adapted: Adapted) -> None:
    """A column ``problem`` is text, for pairs are retrieved by it; reward functions would be given text for it."""
    for problem in adapted.problems:
        value = problem.columns.get("problem")
        if value is not None and not isinstance(value, str):
            raise DataError(
                "the column problem is no text",
                got=f"{type(value).__name__} in {problem.id}",
                expected="the text that skills are retrieved by, or none",
                remedy="rename the column",
            )


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

    Args:
        problems: to show them with.
        retriever: finds pairs and rules.
        bank: that they are of.
        count: of pairs or rules.
        context: as ``config.context_of`` has it.

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
        problems: one or more.
        renderer: makes the prompts.
        max_prompt_length: in tokens.
        skills: what each problem's prompt shows of a bank; ``None`` for plain prompts.
        references: what each problem's OPSD teacher is shown; its token ids become the column ``teacher_prompt``.
        long_prompts: what becomes of a row whose prompt is too long: ``error``, or ``drop``, with a warning.
        verified: as for ``problems_of``.

    Raises:
        PromptError: a prompt is too long, or the chat template refuses it; the row is named.
        DataError: conversations and text among the prompts; TRL looks at the first alone.
    """
    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    teacher_lengths: list[int] = []
    for place, problem in enumerate(problems):
        shown = None if skills is None else skills[place]
        with _naming(problem):
            prompt = renderer.student_messages(problem) if shown is None else renderer.skilled_messages(problem, shown)
            lengths.append(
                len(renderer.student_ids(problem) if shown is None else renderer.skilled_ids(problem, shown))
            )
            row = {"prompt": str(prompt) if isinstance(prompt, RawText) else prompt, **_columns(problem, verified)}
            if references is not None:
                row["teacher_prompt"] = renderer.reference_ids(problem, references[place], shown or ())
                teacher_lengths.append(len(row["teacher_prompt"]))
            rows.append(row)
    raw = [isinstance(row["prompt"], str) for row in rows]
    if any(raw) and not all(raw):
        raise DataError(
            "prompts are of two kinds",
            got=f"text in {problems[raw.index(True)].id}, a conversation in {problems[raw.index(False)].id}",
            expected="either in all rows",
        )
    ids = [problem.id for problem in problems]
    what = "plain prompts" if skills is None else "prompts with skills"
    if long_prompts == "drop":
        worst = [max(both) for both in zip(lengths, teacher_lengths or lengths, strict=True)]
        kept = [place for place, length in enumerate(worst) if length <= max_prompt_length]
        if kept and len(kept) < len(rows):
            left_out = [ids[place] for place, length in enumerate(worst) if length > max_prompt_length]
            _log.warning(
                "%s of %s rows left out: prompts of more than %s tokens (%s)",
                f"{len(left_out):,}",
                f"{len(rows):,}",
                f"{max_prompt_length:,}",
                listed(left_out),
            )
            rows = [rows[place] for place in kept]
            lengths, teacher_lengths = [], []
    refuse_long_prompts(lengths, max_prompt_length, what, ids)
    refuse_long_prompts(teacher_lengths, max_prompt_length, "teacher prompts", ids)
    names = list(dict.fromkeys(name for row in rows for name in row))
    # Columns that mix types, and objects with other keys from row to row, stay as they are.
    return Dataset.from_list([{name: row.get(name) for name in names} for row in rows], on_mixed_types="use_json")


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


@contextmanager
def _naming(problem: Problem) -> Iterator[None]:
    try:
        yield
    except PromptError as error:
        raise PromptError(f"problem {problem.id}: {error}") from error
