"""Skill–mistake pairs → the teacher prompts of one problem.

Every problem gets exactly K teachers, so that all ranks do the same work: missing ones are padding, with the plain
prompt and weight 0. Each prompt is a list of ids of its own length; padding happens in ``scoring``, on the left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sgsd.bank import Item, SkillBank
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import Pair, Retrieval

_I = TypeVar("_I", bound=Item)


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


def control_prompt(
    problem: str, pool: TeacherPool, bank: SkillBank, renderer: PromptRenderer, *, max_prompt_length: int, seed: int
) -> list[int]:
    """A teacher's prompt like those of ``pool``, with a skill and a mistake that none of them has, drawn at random.

    The plain prompt where the bank has no others, or where they do not fit.

    Args:
        problem, renderer, max_prompt_length: as for ``build_pool``.
        pool: the problem's teachers.
        bank: to draw from.
        seed: of the draw, with the problem.
    """
    draw = random.Random(f"{seed} {problem}")
    skill = _other(bank.skills, {pair.skill.id for pair in pool.pairs}, draw)
    mistake = _other(bank.mistakes, {pair.mistake.id for pair in pool.pairs}, draw)
    if skill is not None and mistake is not None:
        ids = renderer.teacher_ids(problem, skill, mistake)
        if len(ids) <= max_prompt_length:
            return ids
    return renderer.student_ids(problem)


def _other(items: Sequence[_I], taken: set[str], draw: random.Random) -> _I | None:
    if len(items) <= len(taken):
        return None
    while (item := draw.choice(items)).id in taken:
        pass
    return item
