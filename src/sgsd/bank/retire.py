"""Retirement: items that have shown themselves to do harm leave their bank's lists, and can come back.

A retired item is kept whole in the bank's metadata, with its place and the evidence against it. So it is in every file
the bank is saved to, checkpoints included, and ``restore`` needs nothing else. Metadata is no part of a bank's digest;
that the item has left its list is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, cast

from sgsd.bank.credit import credit, credit_within, lasting_bound
from sgsd.bank.ledger import Ledger
from sgsd.bank.skills import Item, Mistake, Origin, Skill, SkillBank
from sgsd.errors import BankError, ConfigError

RETIRED_KEY = "retired"
"""Of the metadata: a list, in the order of retirement."""


@dataclass(frozen=True, slots=True)
class RetirementRule:
    """When an item is retired: two upper bounds of its credit are below a limit.

    One holds at all looks at once, the other is that of the credit within phases: items change (see ``bank.credit``).

    Attributes:
        below: the limit of the credit, between 0 and 1; 0.5 is the worth of an item that tells nothing apart.
        min_active: active uses on rollouts with a verdict that an item must have had.
        static: whether seed and cold-start items are retired, too, or online ones alone.
        keep: items a list holds at least, afterwards.
        error: probability that an item is ever retired though its credit is not below the limit.

    Raises:
        ConfigError: a value that cannot be.
    """

    below: float
    min_active: int = 50
    static: bool = False
    keep: int = 1
    error: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.below < 1:
            raise ConfigError("the limit of retirement is out of range", got=self.below, expected="between 0 and 1")
        if self.min_active < 1 or self.keep < 1:
            raise ConfigError(
                "nothing can be retired by this rule",
                got=f"min_active {self.min_active}, keep {self.keep}",
                expected="1 or more",
            )


@dataclass(frozen=True, slots=True)
class Retirement:
    """One retired item, and why.

    Attributes:
        kind, id, title: of the item.
        step: optimizer steps done.
        credit, low, high: its credit and the interval of one look.
        within, within_high: its credit within phases, and the upper end of that interval.
        bound: of all looks; this and ``within_high`` were below ``limit``.
        active: its active uses on rollouts with a verdict.
        position: its place in its list, from 0.
        item: itself, as JSON values.
    """

    kind: str
    id: str
    title: str
    step: int
    credit: float
    low: float
    high: float
    within: float
    within_high: float
    bound: float
    limit: float
    active: int
    position: int
    item: Mapping[str, Any]


def retire(
    bank: SkillBank, ledger: Ledger, rule: RetirementRule, *, step: int = 0
) -> tuple[SkillBank, tuple[Retirement, ...]]:
    """Retire what the rule says, worst first, until a list is down to ``rule.keep``.

    Args:
        bank: as it is.
        ledger: all uses so far.
        rule: whom.
        step: optimizer steps done, for the log.

    Returns:
        The bank without them, and who went.
    """
    condemned: list[Retirement] = []
    for kind, items in (("skill", bank.skills), ("mistake", bank.mistakes)):
        found: list[Retirement] = []
        for position, item in enumerate(items):
            record = ledger.record(item.id)
            active = record.positive + record.negative
            if active < rule.min_active or (item.origin is not Origin.ONLINE and not rule.static):
                continue
            bound, within = lasting_bound(record, error=rule.error), credit_within(ledger.by_phase(item.id))
            if bound < rule.below and within.high < rule.below:
                worth = credit(record)
                evidence = (worth.value, worth.low, worth.high, within.value, within.high, bound, rule.below)
                said = item.title or item.text[:60]
                document: dict[str, Any] = asdict(item) | {"origin": item.origin.value, "parents": list(item.parents)}
                found.append(Retirement(kind, item.id, said, step, *evidence, active, position, document))
        found.sort(key=lambda one: one.bound)
        condemned += found[: max(len(items) - rule.keep, 0)]
    if not condemned:
        return bank, ()
    left = bank.without(one.id for one in condemned)
    kept = [*_entries(bank), *map(asdict, condemned)]
    return replace(left, metadata={**bank.metadata, RETIRED_KEY: kept}), tuple(condemned)


def retired_items(bank: SkillBank) -> tuple[Item, ...]:
    """The retired items, in the order of retirement.

    Raises:
        BankError: the metadata holds something else under ``retired``.
    """
    return tuple(_item(entry, bank) for entry in _entries(bank))


def restore(bank: SkillBank, ids: Iterable[str] | None = None) -> SkillBank:
    """Bring retired items back to the places they had; the last to go come back first.

    Args:
        bank: with retired items.
        ids: of those to bring back; all, if not given.

    Raises:
        BankError: one is not retired, or the metadata holds something else under ``retired``.
    """
    entries = _entries(bank)
    items = {entry["id"]: _item(entry, bank) for entry in entries}
    wanted = list(items if ids is None else dict.fromkeys(ids))
    for id in wanted:
        if id not in items:
            expected = ", ".join(items) or "a bank with retired items"
            raise BankError("no such item among the retired", got=repr(id), expected=expected)
    skills, mistakes = list(bank.skills), list(bank.mistakes)
    present = {item.id for item in bank.items}
    # Places are those before any item of the same look went. So all come back, first of the last look, and then those
    # that are to stay away go again.
    looks = [list(look) for _, look in groupby(entries, key=lambda entry: entry["step"])]
    back = [entry for look in reversed(looks) for entry in sorted(look, key=lambda entry: entry["position"])]
    for entry in (entry for entry in back if entry["id"] not in present):
        item = items[entry["id"]]
        if isinstance(item, Skill):
            skills.insert(entry["position"], item)
        else:
            mistakes.insert(entry["position"], item)
    rest = [entry for entry in entries if entry["id"] not in wanted]
    metadata = {name: value for name, value in bank.metadata.items() if name != RETIRED_KEY}
    if rest:
        metadata[RETIRED_KEY] = rest
    whole = replace(bank, skills=tuple(skills), mistakes=tuple(mistakes), metadata=metadata)
    return whole.without(entry["id"] for entry in rest if entry["id"] not in present)


def _entries(bank: SkillBank) -> list[dict[str, Any]]:
    entries = bank.metadata.get(RETIRED_KEY, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in cast(list[object], entries)):
        raise BankError(f"bank {bank.name!r}: its retired items cannot be read", expected="a list of retirements")
    return cast(list[dict[str, Any]], entries)


def _item(entry: Mapping[str, Any], bank: SkillBank) -> Item:
    try:
        fields = dict(entry["item"])
        fields["parents"] = tuple(fields["parents"])
        if not all(isinstance(entry[name], int) for name in ("step", "position")):
            raise TypeError("step and position must be integers")
        return (Skill if entry["kind"] == "skill" else Mistake)(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise BankError(
            f"bank {bank.name!r}: a retired item cannot be read", got=" ".join(str(error).split())[:120]
        ) from error
