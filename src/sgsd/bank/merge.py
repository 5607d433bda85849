"""Hierarchical merging of candidates, layer by layer, with the lineage of every item.

In each layer the candidates of a kind are split into groups. For each group the writer names sets of candidates that
say the same, and writes one item for each set. All other candidates stay unchanged. Merging ends when one group is
left, when the first layer merges nothing, or after ``patience`` layers in a row that merge nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sgsd.bank.extract import Candidate
from sgsd.bank.writing import (
    KINDS,
    TOKENS_PER_ITEM,
    Kind,
    UnfitError,
    WriteFailure,
    Writer,
    WriteRequest,
    Written,
    items_request,
    read_items,
    write_until_fit,
)

Embed: TypeAlias = Callable[[Sequence[str]], NDArray[Any]]

GROUP_SIZE = 32
PATIENCE = 3
MAX_SETS = 8

_SYSTEM = "You tidy up a collection of advice. Answer with JSON alone."
_PROMPT = """\
Below are {count} {what}, numbered.

{listing}

Find the sets that say the same thing. For each set, at most {most}, give "sources" (its numbers, two or more), and
write one item that keeps everything useful in it: {fields}. Leave out what says something of its own: it stays."""
_WHAT = {
    "skill": (
        "skills",
        '"title" (at most 10 words), "principle" (one or two whole sentences, at most 40 words) and '
        '"when_to_apply" (one whole sentence, at most 20 words)',
    ),
    "mistake": (
        "common mistakes",
        '"description" (at most 10 words), "why_it_happens" (one or two whole sentences, at most 40 words) and '
        '"how_to_avoid" (one whole sentence, at most 20 words)',
    ),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """Counts of one layer and kind: groups sent to the writer, failed groups, candidates before and after."""

    kind: Kind
    groups: int
    failed: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Merged:
    """The result of merging.

    Attributes:
        items: skills, then mistakes; their ``parents`` are memory ids.
        lineage: id of an item or candidate → ids of its direct sources, candidates or memories. It has a cycle if the
            writer returned to an earlier text.
        layers: all layers, skills first.
        failures: groups without a usable reply; their candidates stayed unchanged.
        counts: see ``write_until_fit``.
    """

    items: tuple[Candidate, ...]
    lineage: Mapping[str, tuple[str, ...]]
    layers: tuple[Layer, ...]
    failures: tuple[WriteFailure, ...]
    counts: Mapping[str, int]


def merge(
    candidates: Sequence[Candidate],
    writer: Writer,
    *,
    group_size: int = GROUP_SIZE,
    patience: int = PATIENCE,
    embed: Embed | None = None,
    attempts: int = 3,
    seed: int = 0,
) -> Merged:
    """Merge skills with skills and mistakes with mistakes.

    Identical candidates are united first. A group holds neighbours of the given order in the first layer, and of a
    random order in later layers; with ``embed`` it holds similar candidates.

    Args:
        candidates: the extracted candidates.
        writer: the text generator.
        group_size: the maximum number of candidates in a group.
        patience: merging ends after this many layers in a row without a merge, or if the first layer has none.
        embed: N texts → unit vectors ``[N, D]``.
        attempts: the maximum number of attempts per group.
        seed: of the writer's sampling and of the random order.

    Raises:
        ValueError: ``group_size`` below 2 or ``patience`` below 1.
    """
    if group_size < 2 or patience < 1:
        raise ValueError(f"group_size {group_size} and patience {patience} must be at least 2 and 1")
    lineage: dict[str, tuple[str, ...]] = {}
    items: list[Candidate] = []
    layers: list[Layer] = []
    failures: list[WriteFailure] = []
    counts: Counter[str] = Counter()
    for kind in KINDS:
        pool = unite([candidate for candidate in candidates if candidate.kind == kind])
        for candidate in pool:
            lineage[candidate.id] = candidate.parents
        idle = depth = 0
        while len(pool) > 1 and idle < patience:
            groups = _groups(pool, group_size, embed, seed=seed, depth=depth)
            asked = [group for group in groups if len(group) > 1]
            requests = [merge_request(group, seed=seed + 1000 * depth) for group in asked]
            readers = [partial(read_merge, group) for group in asked]
            answers, cost = write_until_fit(writer, requests, readers, attempts=attempts)
            counts.update(cost)
            failed = [answer for answer in answers if isinstance(answer, WriteFailure)]
            failures += failed
            after: list[Candidate] = [candidate for group in groups if len(group) == 1 for candidate in group]
            for group, answer in zip(asked, answers, strict=True):
                after += list(group) if isinstance(answer, WriteFailure) else _apply(group, answer, lineage)
            after = unite(after)
            layers.append(Layer(kind, len(asked), len(failed), len(pool), len(after)))
            shrunk = len(after) < len(pool)
            idle = 0 if shrunk else idle + 1
            pool, depth = after, depth + 1
            if len(groups) == 1 or (depth == 1 and not shrunk):
                break
        items += pool
    return Merged(tuple(items), lineage, tuple(layers), tuple(failures), counts)


def unite(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates with equal ids become one, at the position of the first, with the parents of all."""
    united: dict[str, Candidate] = {}
    for candidate in candidates:
        before = united.get(candidate.id)
        parents = candidate.parents if before is None else (*before.parents, *candidate.parents)
        united[candidate.id] = replace(candidate, parents=tuple(dict.fromkeys(parents)))
    return list(united.values())


def merge_request(group: Sequence[Candidate], *, seed: int = 0) -> WriteRequest:
    """The request to merge a group of candidates of one kind."""
    kind, most = group[0].kind, _most_sets(group)
    what, fields = _WHAT[kind]
    listing = "\n".join(f"{n}. {c.title}: {c.text} ({c.note})" for n, c in enumerate(group, 1))
    number = {"type": "integer", "minimum": 1, "maximum": len(group)}
    return items_request(
        "merge",
        kind,
        _SYSTEM,
        _PROMPT.format(count=len(group), what=what, listing=listing, most=most, fields=fields),
        least=0,
        most=most,
        max_tokens=32 + most * (TOKENS_PER_ITEM + 4 * len(group)),
        seed=seed,
        sources={"type": "array", "items": number, "minItems": 2, "maxItems": len(group)},
    )


def read_merge(group: Sequence[Candidate], written: Written) -> list[tuple[Candidate, tuple[int, ...]]]:
    """The new items, each with the positions of its sources in ``group``; their parents are memory ids.

    Raises:
        UnfitError: the reply does not fit its ``merge_request``, or would not make the group smaller.
    """
    kind = group[0].kind
    template = _SYSTEM + _PROMPT + "".join(_WHAT[kind])
    merged: list[tuple[Candidate, tuple[int, ...]]] = []
    for (title, text, note), values in read_items(kind, written, least=0, most=_most_sets(group), template=template):
        positions = _sources(values.get("sources"), len(group))
        parents = dict.fromkeys(parent for position in positions for parent in group[position].parents)
        merged.append((Candidate(kind, title, text, note, tuple(parents)), positions))
    used = {position for _, positions in merged for position in positions}
    if merged and len(merged) >= len(used):
        raise UnfitError(f"{len(merged)} items out of {len(used)}: nothing was merged")
    return merged


def _sources(value: object, count: int) -> tuple[int, ...]:
    numbers = cast(list[object], value) if isinstance(value, list) else []
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= count]
    positions = tuple(dict.fromkeys(n - 1 for n in whole))
    if len(whole) < len(numbers) or len(positions) < 2:
        raise UnfitError(f"sources are not two or more numbers from 1 to {count}")
    return positions


def _most_sets(group: Sequence[Candidate]) -> int:
    return min(MAX_SETS, len(group) // 2)


def _apply(
    group: Sequence[Candidate],
    merged: Sequence[tuple[Candidate, tuple[int, ...]]],
    lineage: dict[str, tuple[str, ...]],
) -> list[Candidate]:
    """The group after merging: unmerged candidates, then the new items. Adds the new items to ``lineage``."""
    gone = {position for _, positions in merged for position in positions}
    after = [candidate for position, candidate in enumerate(group) if position not in gone]
    for candidate, positions in merged:
        direct = tuple(group[position].id for position in positions)
        # The new item may equal one of its sources, or an earlier candidate.
        others = (*lineage.get(candidate.id, ()), *(id for id in direct if id != candidate.id))
        lineage[candidate.id] = tuple(dict.fromkeys(others))
        after.append(candidate)
    return after


def _groups(
    pool: Sequence[Candidate], size: int, embed: Embed | None, *, seed: int, depth: int
) -> list[list[Candidate]]:
    if embed is not None and len(pool) > size:
        return _similar_groups(pool, size, embed)
    order = np.random.default_rng([seed, depth]).permutation(len(pool)) if depth else range(len(pool))
    ordered = [pool[int(index)] for index in order]
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _similar_groups(pool: Sequence[Candidate], size: int, embed: Embed) -> list[list[Candidate]]:
    """Groups of the first remaining candidate and its ``size`` − 1 nearest by cosine similarity, until none remains."""
    vectors = np.asarray(embed([f"{c.title}. {c.text}" for c in pool]), dtype=np.float32)
    left = np.arange(len(pool))
    groups: list[list[Candidate]] = []
    while len(left):
        similarity = vectors[left] @ vectors[left[0]]
        similarity[0] = np.inf
        order = np.argsort(-similarity, kind="stable")
        groups.append([pool[int(index)] for index in left[order[:size]]])
        left = left[np.sort(order[size:])]
    return groups
