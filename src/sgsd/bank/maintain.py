"""Online maintenance: new items into the dynamic part of a bank, within the paper's limits.

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
MAX_ADDED = 5
"""New skills, and new mistakes, an update adds at most: the paper's limit, as the next one."""
MAX_DYNAMIC = 30
"""Online skills, and online mistakes, a bank holds at most."""


class Action(StrEnum):
    """What became of a candidate or an item."""

    ADDED = "added"
    EVICTED = "evicted"
    PASSED_OVER = "passed_over"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What became of a candidate or an item, and why."""

    action: Action
    kind: str
    id: str  # empty for a candidate that makes no item
    title: str  # else the beginning of its text
    reason: str
    credit: float | None = None  # of an evicted item, where it had one


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
    Where more than ``MAX_DYNAMIC`` would be online then, older online items go: those of the lowest credit, the oldest
    first among equals (the paper evicts by position).

    Args:
        bank: as it is.
        candidates: best first.
        credit: item id → its worth between 0 (harms) and 1 (helps), ``None`` where nothing is known.
    """
    log: list[LogEntry] = []
    texts = {_spoken(item) for item in bank.items}
    ids = {item.id for item in bank.items}
    added: list[Item] = []
    for candidate in candidates:
        id, action, reason = "", Action.PASSED_OVER, "the bank says so already"
        try:
            item = candidate.item(Origin.ONLINE)
        except BankError as error:
            reason = str(error)
        else:
            id = item.id
            if id not in ids and _spoken(item) not in texts:
                if sum(type(other) is type(item) for other in added) < MAX_ADDED:
                    action, reason = Action.ADDED, "new"
                    added.append(item)
                    ids.add(id)
                    texts.add(_spoken(item))
                else:
                    reason = f"{MAX_ADDED} new items in this update"
        log.append(LogEntry(action, candidate.kind, id, candidate.title or candidate.text[:60], reason))
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
