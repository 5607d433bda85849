"""Retrieved skill–mistake pairs → the teacher prompts of one problem, and a control's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from sgsd.bank import Item, SkillBank
from sgsd.prompts import Prompt, PromptRenderer
from sgsd.retrieval import Pair, Retrieval

_I = TypeVar("_I", bound=Item)


@dataclass(frozen=True, slots=True)
class TeacherPool:
    """The teachers of one prompt, at most K.

    Attributes:
        prompts: token ids, one prompt a teacher.
        weights: α, one a teacher, summing to 1.
        pairs: the teachers' pairs, in the order of retrieval.
        too_long: pairs left out because their prompt did not fit.
    """

    prompts: tuple[list[int], ...]
    weights: tuple[float, ...]
    pairs: tuple[Pair, ...]
    too_long: int


def build_pool(
    prompt: Prompt, retrieval: Retrieval, renderer: PromptRenderer, *, num_teachers: int, max_prompt_length: int
) -> TeacherPool:
    """Render the first ``num_teachers`` pairs of a retrieval, each into a teacher's prompt.

    A pair whose prompt is longer than ``max_prompt_length`` tokens is left out and counted, never cut; the weights
    of those that remain are scaled to sum to 1.

    Args:
        prompt: the student's, as messages or text.
        retrieval: ranked pairs and their weights.
        renderer: makes the prompts.
        num_teachers: K.
        max_prompt_length: in tokens, generation prompt included.
    """
    pairs, weights = retrieval.pairs[:num_teachers], retrieval.weights[:num_teachers]
    rendered = [renderer.teacher_ids(prompt, pair.skill, pair.mistake) for pair in pairs]
    kept = [k for k, ids in enumerate(rendered) if len(ids) <= max_prompt_length]
    total = sum(weights[k] for k in kept)
    return TeacherPool(
        prompts=tuple(rendered[k] for k in kept),
        weights=tuple(weights[k] / total for k in kept),
        pairs=tuple(pairs[k] for k in kept),
        too_long=len(pairs) - len(kept),
    )


def control_prompt(
    prompt: Prompt, pool: TeacherPool, bank: SkillBank, renderer: PromptRenderer, *, max_prompt_length: int, seed: int
) -> list[int] | None:
    """A teacher's prompt like those of ``pool``, with a skill and a mistake that none of them has, drawn at random.

    ``None`` where the bank has no others, or where they do not fit: the plain prompt is the control then.

    Args:
        prompt, renderer, max_prompt_length: as for ``build_pool``.
        pool: the prompt's teachers.
        bank: to draw from.
        seed: of the draw, with the prompt.
    """
    draw = random.Random(f"{seed} {prompt}")
    skill = _other(bank.skills, {pair.skill.id for pair in pool.pairs}, draw)
    mistake = _other(bank.mistakes, {pair.mistake.id for pair in pool.pairs}, draw)
    if skill is None or mistake is None:
        return None
    ids = renderer.teacher_ids(prompt, skill, mistake)
    return ids if len(ids) <= max_prompt_length else None


def _other(items: Sequence[_I], taken: set[str], draw: random.Random) -> _I | None:
    if len(items) <= len(taken):
        return None
    while (item := draw.choice(items)).id in taken:
        pass
    return item
