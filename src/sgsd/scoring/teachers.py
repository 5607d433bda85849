"""Retrieved skill–mistake pairs → teacher prompts and a control prompt; the choice of teachers to run; their scores as
tensors of a batch."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sgsd.bank import Item, SkillBank
from sgsd.bank.documents import without_items
from sgsd.objectives import TeacherScores
from sgsd.prompts import Prompt, PromptRenderer, Shown
from sgsd.retrieval import Pair, Retrieval
from sgsd.scoring.logprobs import Scores

_BATCH_PREFIX = "teacher_"


@dataclass(frozen=True, slots=True)
class TeacherPool:
    """The teachers of one prompt, at most K.

    Attributes:
        prompts: token ids of each teacher's prompt.
        weights: α of each teacher, summing to 1.
        pairs: each teacher's pair, in the order of retrieval.
        too_long: the number of pairs left out because their prompt was too long.
    """

    prompts: tuple[list[int], ...]
    weights: tuple[float, ...]
    pairs: tuple[Pair, ...]
    too_long: int


def build_pool(
    prompt: Prompt,
    retrieval: Retrieval,
    renderer: PromptRenderer,
    *,
    num_teachers: int,
    max_prompt_length: int,
    document: str | None = None,
) -> TeacherPool:
    """Render the first ``num_teachers`` pairs of a retrieval, each as a teacher's prompt.

    A pair whose prompt is longer than ``max_prompt_length`` tokens is left out, not truncated. The weights of the
    others are scaled to sum to 1.

    Args:
        prompt: the student's, as messages or text.
        retrieval: ranked pairs and their weights.
        renderer: of the prompts.
        num_teachers: K.
        max_prompt_length: in tokens, generation prompt included.
        document: a text that every teacher is shown in place of its pair. The control is shown it without the pair's
            items.
    """
    pairs, weights = retrieval.pairs[:num_teachers], retrieval.weights[:num_teachers]
    rendered = [renderer.teacher_ids(prompt, document or [pair.items]) for pair in pairs]
    kept = [k for k, ids in enumerate(rendered) if len(ids) <= max_prompt_length]
    total = sum(weights[k] for k in kept)
    # All weights but the best pair's may have rounded to 0.
    scaled = [weights[k] / total if total else 1 / len(kept) for k in kept]
    return TeacherPool(
        prompts=tuple(rendered[k] for k in kept),
        weights=tuple(scaled),
        pairs=tuple(pairs[k] for k in kept),
        too_long=len(pairs) - len(kept),
    )


def control_prompt(
    prompt: Prompt,
    pool: TeacherPool,
    bank: SkillBank,
    renderer: PromptRenderer,
    *,
    max_prompt_length: int,
    seed: str,
    document: str | None = None,
) -> list[int] | None:
    """A teacher's prompt like those of ``pool``, with random items that the pool does not contain.

    Beside pairs it shows a skill and a mistake; beside rules, any other rule. ``None`` if the bank has no such items,
    or the prompt is too long. The plain prompt is the control then.

    Args:
        prompt, renderer, max_prompt_length: as for ``build_pool``.
        pool: the prompt's teachers.
        bank: the items to draw from.
        seed: of the draw.
        document: the text that teachers are shown, if they are; the control is shown it without the pool's items.
    """
    taken = {item.id for pair in pool.pairs for item in pair.items}
    if document is not None:
        shown: Shown = without_items(bank, taken)
        if not shown.strip():  # it had no other rule
            return None
    else:
        draw = random.Random(seed)
        lists = [bank.items] if len(pool.pairs[0].items) == 1 else [bank.skills, bank.mistakes]
        drawn = [_other_item(items, taken, draw) for items in lists]
        if None in drawn:
            return None
        shown = [[item for item in drawn if item is not None]]
    ids = renderer.teacher_ids(prompt, shown)
    return ids if len(ids) <= max_prompt_length else None


def _other_item(items: Sequence[Item], taken: set[str], draw: random.Random) -> Item | None:
    if all(item.id in taken for item in items):
        return None
    while (item := draw.choice(items)).id in taken:
        pass
    return item


def teachers_to_run(
    pools: Sequence[TeacherPool],
    outcomes: Sequence[int],
    trust: Sequence[Sequence[float]],
    *,
    read: Collection[int],
    by_trust: bool,
    whole: Sequence[bool],
) -> list[tuple[int, int]]:
    """Pairs ``(b, k)`` of rollouts and the teachers to run on them: those that the loss reads, and whole pools.

    Args:
        pools: the teachers of B rollouts.
        outcomes: B, in {−1, 0, 1}. No teacher is run on an undecided rollout.
        trust: of each teacher.
        read: outcomes of the rollouts that the loss reads.
        by_trust: the loss ignores teachers of trust 0.
        whole: B, True where all teachers of a rollout are run, whatever the loss reads.
    """
    return [
        (b, k)
        for b, pool in enumerate(pools)
        for k in range(len(pool.prompts))
        if outcomes[b] and (whole[b] or (outcomes[b] in read and (trust[b][k] > 0 or not by_trust)))
    ]


def teacher_scores(
    pools: Sequence[TeacherPool],
    trust: Sequence[Sequence[float]],
    places: Sequence[tuple[int, int]],
    scores: Scores,
    *,
    num_teachers: int,
    length: int,
) -> TeacherScores:
    """The scores of the teachers that were run, as tensors for B rollouts, K teachers and T tokens.

    Args:
        pools: the teachers of B rollouts; a pool of fewer than K is padded with teachers of weight 0.
        trust: τ of each teacher.
        places: ``(b, k)`` of each score, from ``teachers_to_run``; ``scored`` is False elsewhere.
        scores: as many as ``places``, of at most T tokens.
        num_teachers: K.
        length: T.
    """
    B, K, device = len(pools), num_teachers, scores.logps.device
    at = _index(places, 2, device)
    weights, trusts = torch.zeros(B, K), torch.ones(B, K)
    for b, pool in enumerate(pools):
        weights[b, : len(pool.weights)] = torch.tensor(pool.weights)
        trusts[b, : len(pool.weights)] = torch.tensor(trust[b])
    scored = torch.zeros(B, K, dtype=torch.bool, device=device)
    scored[at] = True
    top = {"top_ids": scores.top_ids, "top_logps": scores.top_logps} if scores.top_ids.shape[-1] else {}
    return TeacherScores(
        logps=_placed(scores.logps, at, (B, K, length)),
        weights=weights.to(device),
        trust=trusts.to(device),
        scored=scored,
        **{name: _placed(values, at, (B, K, length)) for name, values in top.items()},
    )


def control_scores(teachers: TeacherScores, rows: Sequence[int], scores: Scores) -> dict[str, Tensor]:
    """The control's fields of ``TeacherScores``: ``control_logps``, and ``control_top_logps`` where there are
    ``top_ids``.

    Args:
        teachers: of B rollouts.
        rows: the rollouts that the control was run on.
        scores: as many as ``rows``; ``other_logps`` ``[n, T, K · M]`` are of the teachers' likeliest tokens.
    """
    B, K, T = teachers.logps.shape
    at = _index([(row,) for row in rows], 1, scores.logps.device)
    control = {"control_logps": _placed(scores.logps, at, (B, T))}
    if teachers.top_logps is not None:
        others = scores.other_logps.reshape(*scores.logps.shape, K, teachers.top_logps.shape[-1])  # [n, T, K, M]
        control["control_top_logps"] = _placed(others, at, (B, T)).transpose(1, 2)
    return control


def to_batch(scores: TeacherScores) -> dict[str, Tensor]:
    """The scores as entries of TRL's batch, which is shuffled and split by rows."""
    return {_BATCH_PREFIX + name: values for name, values in vars(scores).items() if values is not None}


def from_batch(batch: Mapping[str, Tensor]) -> TeacherScores:
    """The inverse of ``to_batch``."""
    named = {name: values for name, values in batch.items() if name.startswith(_BATCH_PREFIX)}
    return TeacherScores(**{name.removeprefix(_BATCH_PREFIX): values for name, values in named.items()})


def _index(places: Sequence[tuple[int, ...]], axes: int, device: torch.device) -> tuple[Tensor, ...]:
    return torch.tensor(places, dtype=torch.long).reshape(-1, axes).to(device).unbind(1)


def _placed(values: Tensor, at: tuple[Tensor, ...], shape: tuple[int, ...]) -> Tensor:
    """A tensor of zeros ``[*shape, ...]`` with ``values`` ``[n, t, ...]`` at indices ``at`` of its first axes.

    The last axis of ``shape``, T, is t or longer.
    """
    whole = values.new_zeros(*shape, *values.shape[2:])
    whole[(*at, slice(values.shape[1]))] = values
    return whole
