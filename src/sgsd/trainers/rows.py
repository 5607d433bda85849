"""Problems → the rows a TRL trainer takes. The same for every method, so that all see the same prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from datasets import Dataset

from sgsd.bank import Mistake, Skill, SkillBank
from sgsd.curation import curate
from sgsd.errors import ConfigError, DataError
from sgsd.problems import Problem, adapt
from sgsd.prompts import PromptRenderer, refuse_long_prompts
from sgsd.retrieval import Retriever

logger = logging.getLogger(__name__)


SkillPairs = Sequence[tuple[Skill, Mistake]]


def problems_of(source: Dataset | Sequence[Problem]) -> list[Problem]:
    """Problems as they are, or those of a data set in any format that ``sgsd.problems`` knows.

    Raises:
        DataError: nothing in it, an unknown format, or a streaming data set.
    """
    if isinstance(source, Dataset):
        adapted = adapt(source, source.column_names, stem="row", source="dataset")
        problems, report = curate(adapted.problems)
        if report.dropped or adapted.dropped:
            logger.warning(report.including(adapted, source="the data set").summary())
    elif isinstance(source, Sequence):
        problems = list(source)
    else:
        raise DataError(
            "the data set cannot be used", got=type(source).__name__, expected="datasets.Dataset or a list of Problem"
        )
    if not problems:
        raise DataError("the data set is empty")
    return problems


def skill_pairs(problems: Sequence[Problem], retriever: Retriever, bank: SkillBank, count: int) -> list[SkillPairs]:
    """The best ``count`` pairs of each problem, for ``skills_in_prompt``.

    Raises:
        ConfigError: the bank does not make as many.
    """
    if count > bank.max_pairs:
        raise ConfigError(
            "skills_in_prompt_pairs is more than the bank has", got=count, expected=f"at most {bank.max_pairs}"
        )
    retrievals = retriever.retrieve([problem.text for problem in problems], bank, count)
    return [[(pair.skill, pair.mistake) for pair in retrieval.pairs] for retrieval in retrievals]


def training_rows(
    problems: Sequence[Problem],
    renderer: PromptRenderer,
    *,
    max_prompt_length: int,
    skills: Sequence[SkillPairs] | None = None,
) -> Dataset:
    """The rollouts' prompts and what a reward function may want beside them.

    Columns: ``prompt`` (messages), ``problem``, ``problem_id``, ``answer`` (what a verifier takes) and ``solution``
    (the reference solution, else the answer: TRL's ``accuracy_reward`` reads it).

    Args:
        problems: one or more.
        renderer: makes the prompts.
        max_prompt_length: in tokens.
        skills: the pairs that each problem's prompt shows; ``None`` for plain prompts.

    Raises:
        PromptError: a prompt is too long.
    """
    if skills is None:
        ids = (renderer.student_ids(problem.text) for problem in problems)
        prompts = [renderer.student_messages(problem.text) for problem in problems]
    else:
        shown = list(zip(problems, skills, strict=True))
        ids = (renderer.skilled_ids(problem.text, pairs) for problem, pairs in shown)
        prompts = [renderer.skilled_messages(problem.text, pairs) for problem, pairs in shown]
    what = "plain prompts" if skills is None else "prompts with skills"
    refuse_long_prompts(map(len, ids), max_prompt_length, what)
    return Dataset.from_list(
        [
            {
                "prompt": prompt,
                "problem": problem.text,
                "problem_id": problem.id,
                "answer": problem.key,
                "solution": problem.solution or problem.answer,
            }
            for problem, prompt in zip(problems, prompts, strict=True)
        ]
    )
