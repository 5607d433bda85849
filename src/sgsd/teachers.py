"""Skill–mistake pairs → the teacher prompts of one problem.

Every problem gets exactly K teachers, so that all ranks do the same work: missing ones are padding, with the plain
prompt and weight 0. Each prompt is a list of ids of its own length; padding happens in ``scoring``, on the left.
"""

from __future__ import annotations

from dataclasses import dataclass

from sgsd.prompts import PromptRenderer
from sgsd.retrieval import Pair, Retrieval


@dataclass(frozen=True, slots=True)
class TeacherPool:
    """The K teachers of one problem.

    Attributes:
        prompts: K token id sequences.
        weights: K weights α, summing to 1 over real teachers; 0 marks padding.
        pairs: the real teachers' pairs, in order; padding comes last and has none.
        too_long: pairs left out because their prompt did not fit.
    """

    prompts: tuple[list[int], ...]
    weights: tuple[float, ...]
    pairs: tuple[Pair, ...]
    too_long: int


def build_pool(
    problem: str, retrieval: Retrieval, renderer: PromptRenderer, *, num_teachers: int, max_prompt_length: int
) -> TeacherPool:
    """Render the pairs of one retrieval into exactly ``num_teachers`` teachers.

    A pair whose prompt is longer than ``max_prompt_length`` tokens is left out and counted, never cut; the weights
    of those that remain are scaled to sum to 1.

    Args:
        problem: the problem's text.
        retrieval: ranked pairs and their weights.
        renderer: makes the prompts.
        num_teachers: K.
        max_prompt_length: in tokens, generation prompt included.
    """
    prompts: list[list[int]] = []
    weights: list[float] = []
    pairs: list[Pair] = []
    too_long = 0
    for pair, weight in zip(retrieval.pairs[:num_teachers], retrieval.weights[:num_teachers], strict=True):
        ids = renderer.teacher_ids(problem, pair.skill, pair.mistake)
        if len(ids) > max_prompt_length:
            too_long += 1
            continue
        prompts.append(ids)
        weights.append(weight)
        pairs.append(pair)
    total = sum(weights)
    missing = num_teachers - len(prompts)
    return TeacherPool(
        prompts=(*prompts, *([renderer.student_ids(problem)] * missing)),
        weights=(*(weight / total for weight in weights), *([0.0] * missing)),
        pairs=tuple(pairs),
        too_long=too_long,
    )
