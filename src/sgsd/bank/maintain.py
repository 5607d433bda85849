"""Online maintenance: new items enter the dynamic part of a bank, within the paper's limits.

Static items (seed, cold start) do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from sgsd.bank.extract import Candidate
from sgsd.bank.items import Item, Origin
from sgsd.bank.skills import BankDiff, SkillBank
from sgsd.errors import BankError

UNUSED_CREDIT = 0.5
"""The credit of an item that was never used, as in ``bank.credit``."""
MAX_ADDED = 5
"""The most new skills, and the most new mistakes, of one update (the paper's limit)."""
MAX_DYNAMIC = 30
"""The most online skills, and the most online mistakes, of a bank (the paper's limit)."""


class Action(StrEnum):
    """What an update did with a candidate or an item."""

    ADDED = "added"
    EVICTED = "evicted"
    PASSED_OVER = "passed_over"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What an update did with a candidate or an item, and why."""

    action: Action
    kind: str
    id: str  # empty if the candidate is not a valid item
    title: str  # or the beginning of the text
    reason: str
    credit: float | None = None  # of an evicted item, if known


@dataclass(frozen=True, slots=True)
class Maintained:
    """The result of an update: the new bank, its difference from the old one, an entry per candidate and eviction."""

    bank: SkillBank
    diff: BankDiff
    log: tuple[LogEntry, ...]


def maintain(
    bank: SkillBank,
    candidates: Iterable[Candidate],
    *,
    credit: Callable[[str], float | None],
) -> Maintained:
    """Add new candidates to a bank, and evict older online items beyond the limit.

    In each list, the first ``MAX_ADDED`` candidates with a new text become online items. If the list would then have
    more than ``MAX_DYNAMIC`` online items, older ones are evicted: those of the lowest credit, the oldest first among
    ties. (The paper evicts by position.)

    Args:
        bank: the current bank.
        candidates: best first.
        credit: item id → credit, from 0 (harms) to 1 (helps); ``None`` for an item without uses.
    """
    log: list[LogEntry] = []
    texts = {_text_key(item) for item in bank.items}
    ids = {item.id for item in bank.items}
    added: list[Item] = []
    for candidate in candidates:
        id, action, reason = "", Action.PASSED_OVER, "the bank has this text"
        try:
            item = candidate.item(Origin.ONLINE)
        except BankError as error:
            reason = str(error)
        else:
            id = item.id
            if id not in ids and _text_key(item) not in texts:
                if sum(type(other) is type(item) for other in added) < MAX_ADDED:
                    action, reason = Action.ADDED, "new"
                    added.append(item)
                    ids.add(id)
                    texts.add(_text_key(item))
                else:
                    reason = f"{MAX_ADDED} new items in this update"
        log.append(LogEntry(action, candidate.kind, id, candidate.title or candidate.text[:60], reason))
    evicted: list[str] = []
    for kind, old in (("skill", bank.dynamic.skills), ("mistake", bank.dynamic.mistakes)):
        arriving = sum(entry.action is Action.ADDED and entry.kind == kind for entry in log)
        excess = len(old) + arriving - MAX_DYNAMIC if arriving else 0
        known = [(item, credit(item.id)) for item in old] if excess > 0 else []
        worst = sorted(known, key=lambda pair: UNUSED_CREDIT if pair[1] is None else pair[1])
        for item, value in worst[: max(excess, 0)]:
            evicted.append(item.id)
            reason = "no credit" if value is None else "lowest credit"
            log.append(LogEntry(Action.EVICTED, kind, item.id, item.title or item.text[:60], reason, value))
    result = bank.without(evicted).with_items(added)
    return Maintained(result, bank.diff(result), tuple(log))


def _text_key(item: Item) -> tuple[type[Item], str]:
    """The type and text of an item, up to case and spacing."""
    return type(item), " ".join(item.text.casefold().split())
