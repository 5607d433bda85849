"""Online maintenance: new items into the dynamic part of a bank, within the paper's limits.

``maintain(bank, candidates)`` is a function of its arguments: the trainer decides when, extraction and merging what.
Static items (seed, cold start) stay as they are, in their places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from sgsd.bank.extract import Candidate
from sgsd.bank.items import Item, Origin
from sgsd.bank.skills import BankDiff, SkillBank
from sgsd.errors import BankError

UNPROVEN_CREDIT = 0.5
"""What an item without a credit counts as when room is made: what ``bank.credit`` gives an item without evidence."""

# The paper's limits, for skills and for mistakes alike.
MAX_ADDED = 5
"""New items an update adds at most."""
MAX_DYNAMIC = 30
"""Online items a bank holds at most."""


class Action(StrEnum):
    """What became of a candidate or an item."""

    ADDED = "added"
    EVICTED = "evicted"
    PASSED_OVER = "passed_over"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One line of an update's log.

    Attributes:
        action: see ``Action``.
        kind: ``skill`` or ``mistake``.
        id: of the item; empty for a candidate that makes no item.
        title: of the item, else the beginning of its text.
        reason: why, in a few words.
        credit: of an evicted item, where it had one.
    """

    action: Action
    kind: str
    id: str
    title: str
    reason: str
    credit: float | None = None


@dataclass(frozen=True, slots=True)
class Maintained:
    """An update: the new bank, how it differs from the old one, and every candidate's and evicted item's fate."""

    bank: SkillBank
    diff: BankDiff
    log: tuple[LogEntry, ...]


def maintain(
    bank: SkillBank,
    candidates: Iterable[Candidate],
    *,
    credit: Callable[[str], float | None],
) -> Maintained:
    """Add what is new, best first, and make room for it.

    Of each list, the first ``MAX_ADDED`` candidates that say something the bank does not say yet become online items.
    Where more than ``MAX_DYNAMIC`` would be online then, older online items go: those of the lowest credit, an item
    without one counting as ``UNPROVEN_CREDIT``, the oldest first among equals (the paper evicts by position). New items
    are never evicted by the update that brings them.

    Args:
        bank: as it is.
        candidates: best first.
        credit: item id → its worth between 0 (harms) and 1 (helps), ``None`` where nothing is known.

    Returns:
        The update. ``bank.static`` is that of the old bank.
    """
    log: list[LogEntry] = []
    texts = {_spoken(item) for item in bank.items}
    ids = {item.id for item in bank.items}
    added: list[Item] = []
    for candidate in candidates:
        title = candidate.title or candidate.text[:60]
        try:
            item = candidate.item(Origin.ONLINE)
        except BankError as error:
            log.append(LogEntry(Action.PASSED_OVER, candidate.kind, "", title, str(error)))
            continue
        if item.id in ids or _spoken(item) in texts:
            log.append(LogEntry(Action.PASSED_OVER, candidate.kind, item.id, title, "the bank says so already"))
        elif sum(type(other) is type(item) for other in added) >= MAX_ADDED:
            reason = f"{MAX_ADDED} new items in this update"
            log.append(LogEntry(Action.PASSED_OVER, candidate.kind, item.id, title, reason))
        else:
            added.append(item)
            ids.add(item.id)
            texts.add(_spoken(item))
            log.append(LogEntry(Action.ADDED, candidate.kind, item.id, title, "new"))
    evicted: list[str] = []
    for kind, old in (("skill", bank.dynamic.skills), ("mistake", bank.dynamic.mistakes)):
        arriving = sum(entry.action is Action.ADDED and entry.kind == kind for entry in log)
        excess = len(old) + arriving - MAX_DYNAMIC
        known = [(item, credit(item.id)) for item in old] if excess > 0 else []
        worst = sorted(known, key=lambda pair: UNPROVEN_CREDIT if pair[1] is None else pair[1])
        for item, worth in worst[: max(excess, 0)]:
            evicted.append(item.id)
            reason = "never proven" if worth is None else "lowest credit"
            log.append(LogEntry(Action.EVICTED, kind, item.id, item.title or item.text[:60], reason, worth))
    result = bank.without(evicted).with_items(added)
    return Maintained(result, bank.diff(result), tuple(log))


def _spoken(item: Item) -> tuple[type[Item], str]:
    """What an item says, up to case and spacing."""
    return type(item), " ".join(item.text.casefold().split())
