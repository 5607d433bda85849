"""Where an item comes from: parents, their parents, down to memories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sgsd.bank.skills import SkillBank


def parents_of(bank: SkillBank) -> dict[str, Sequence[str]]:
    """Item id → the ids it comes from, of the items that have any."""
    return {item.id: item.parents for item in bank.items if item.parents}


def ancestors(id: str, parents: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Everything an item comes from, nearest first, each id once; a circle does no harm.

    Args:
        id: of the item.
        parents: id → the ids it comes from directly.
    """
    return tuple(dict.fromkeys(below for _, below in descent(id, parents)))


def descent(id: str, parents: Mapping[str, Sequence[str]], depth: int = 1) -> Iterator[tuple[int, str]]:
    """(depth, id) of everything an item comes from, as a tree is printed: each one before what it comes from.

    What comes up a second time is told again, but not followed again.
    """
    seen = {id}
    waiting = [(depth, parent) for parent in reversed(parents.get(id, ()))]
    while waiting:
        level, at = waiting.pop()
        yield level, at
        if at not in seen:
            seen.add(at)
            waiting += [(level + 1, parent) for parent in reversed(parents.get(at, ()))]
