"""Problems → the rows a TRL trainer takes. The same for every method, so that all see the same prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from datasets import Dataset

from sgsd.curation import curate
from sgsd.errors import DataError
from sgsd.problems import Problem, adapt
from sgsd.prompts import PromptRenderer, refuse_long_prompts

logger = logging.getLogger(__name__)


def training_rows(source: Dataset | Sequence[Problem], renderer: PromptRenderer, *, max_prompt_length: int) -> Dataset:
    """Plain prompts and what a reward function may want beside them.

    Columns: ``prompt`` (messages), ``problem``, ``problem_id``, ``answer`` (what a verifier takes) and ``solution``
    (the reference solution, else the answer: TRL's ``accuracy_reward`` reads it).

    Args:
        source: problems, or a data set in any format that ``sgsd.problems`` knows.
        renderer: makes the prompts.
        max_prompt_length: in tokens.

    Raises:
        DataError: nothing in it, an unknown format, or a streaming data set.
        PromptError: a prompt is too long.
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
    refuse_long_prompts((len(renderer.student_ids(problem.text)) for problem in problems), max_prompt_length)
    return Dataset.from_list(
        [
            {
                "prompt": renderer.student_messages(problem.text),
                "problem": problem.text,
                "problem_id": problem.id,
                "answer": problem.key,
                "solution": problem.solution or problem.answer,
            }
            for problem in problems
        ]
    )
