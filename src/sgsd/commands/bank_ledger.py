"""``sgsd bank ledger | restore``: what the items of a run were worth, and the way back for retired ones."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sgsd.bank import ItemRecord, Ledger, Origin, Skill, SkillBank, history
from sgsd.bank.credit import Credit, credit, credit_within, lasting_bound, positive_share, separation
from sgsd.bank.formats import as_list, as_object, located
from sgsd.bank.retire import RetirementRule, retire, retired_items
from sgsd.bank.retire import restore as restored
from sgsd.commands.bank import bank_file, load, print_json, sizes, table
from sgsd.commands.bank_trace import MAINTENANCE_FILE, complete_lines
from sgsd.errors import BankError

_HERE = "in bank"
_BEST = "helpful"  # the lab's word for an item that states the truth


@dataclass(frozen=True)
class _Said:
    """What is known of an item besides its record."""

    kind: str
    title: str
    origin: Origin


@dataclass(frozen=True)
class _Row:
    """One item that was used.

    Attributes:
        id: of the item.
        record: of all its uses.
        phases: the same by phase.
        said: what it is, where a bank or the log of maintenance knows it.
        state: ``in bank``, ``retired``, ``evicted``; empty where there is no bank to tell.
        worth: what it is known to be good for, if that is known.
    """

    id: str
    record: ItemRecord
    phases: tuple[ItemRecord, ...]
    said: _Said | None
    state: str
    worth: str | None

    @property
    def credit(self) -> Credit:
        return credit(self.record)

    @property
    def support(self) -> float | None:
        """Mean support of successes less that of failures, in nats per token; ``None`` without both."""
        on_success, on_failure = self.record.mean_support_success, self.record.mean_support_failure
        return None if on_success is None or on_failure is None else on_success - on_failure


_KEYS: dict[str, Callable[[_Row], float]] = {
    "credit": lambda row: row.credit.value,
    "within_phases": lambda row: credit_within(row.phases).value,
    "positive_share": lambda row: positive_share(row.record).value,
    "support": lambda row: 0.0 if row.support is None else row.support,
    "uses": lambda row: row.record.uses,
    "active": lambda row: row.record.active,
}


def ledger(options: argparse.Namespace) -> int:
    """Print the ranking of a run's items."""
    whole = _read_ledger(options.run)
    found = whole if options.until is None else whole.until(options.until)
    banks = [load(options.bank)] if options.bank else _banks(options.run)
    rows = sorted(_rows(found, banks, options.run), key=_KEYS[options.sort], reverse=True)
    unused = [item.id for item in (banks[-1].items if banks else ()) if item.id not in found.items]
    apart = _separation(rows)
    condemned = None if options.retire_below is None else _condemned(found, banks, options.retire_below)
    if options.json:
        print_json(_document(options, found, rows, unused, apart) | {"would_retire": condemned})
        return 0
    console = Console()
    console.print(_ranking(options.run, rows))
    if options.phases:
        console.print(Padding(_by_phase(found, rows), (1, 0, 0, 0)))
    total = found.total
    console.print(
        f"{total.uses} uses of {len(rows)} items: {total.active} active, {total.positive} positive, "
        f"{total.negative} negative, {total.neutral} neutral, {total.undecided} undecided; a teacher counts for both "
        f"of its items. Never used: {len(unused)}.",
        highlight=False,
        soft_wrap=True,
    )
    for entry in apart:
        console.print(
            f"{entry['better']} above {entry['worse']} (area under the ROC curve): by credit {entry['credit']:.3f}, "
            f"within phases {entry['within_phases']:.3f}, by share of positive uses {entry['positive_share']:.3f}, by "
            f"support {entry['support']:.3f}",
            highlight=False,
            soft_wrap=True,
        )
    if condemned is not None:
        by_worth = Counter(row.worth for row in rows if row.id in condemned and row.worth is not None)
        kinds = ", ".join(f"{count} {worth}" for worth, count in by_worth.items())
        console.print(f"below {options.retire_below}: {len(condemned)} items{f' ({kinds})' if kinds else ''}")
    return 0


def _condemned(found: Ledger, banks: list[SkillBank], limit: float) -> list[str]:
    """Ids of whom this limit would retire now, static items too, with all else as by default (``RetirementRule``)."""
    if not banks:
        raise BankError("no bank to retire from", expected="--bank, or the folder of a run with its banks")
    _, gone = retire(restored(banks[-1]), found, RetirementRule(limit, static=True))
    return [one.id for one in gone]


def restore(options: argparse.Namespace) -> int:
    """Write a bank with its retired items, or some of them, back in their lists."""
    before = load(options.bank)
    after = restored(before, options.ids or None)
    back = [item.id for item in before.diff(after).added]
    if not back:
        raise BankError("nothing to bring back", got=options.bank, expected="a bank with retired items")
    if options.output is not None and options.output.exists():
        raise BankError("the output exists", got=str(options.output), remedy="choose another name")
    file = options.output or Path(bank_file(options.bank))
    message = f"{len(back)} retired items are back"
    version = history.save(file, after, action="restore", message=message, time=datetime.now(UTC))
    if options.json:
        print_json({"file": str(file), "version": version, "restored": back, "digest": after.digest})
    else:
        print(f"{file}: version {version}, {sizes(after)}; back: {', '.join(back)}")
    return 0


# ---- reading


def _read_ledger(folder: Path) -> Ledger:
    for file in (folder / "ledger.json", folder / "sgsd" / "ledger.json"):
        if file.is_file():
            try:
                return Ledger.from_json(file.read_text(encoding="utf-8"), source=str(file))
            except (OSError, UnicodeDecodeError) as error:
                raise BankError("the ledger cannot be read", got=str(file)) from error
    raise BankError(
        "no ledger", got=str(folder), expected="ledger.json, which SGSD writes with each checkpoint and at the end"
    )


def _banks(folder: Path) -> list[SkillBank]:
    """The run's, the latest last."""
    files = [folder / name for name in ("bank-start.json", "bank.json", "sgsd/bank.json")]
    return [SkillBank.load(file) for file in files if file.is_file()]


def _rows(found: Ledger, banks: list[SkillBank], folder: Path) -> list[_Row]:
    known: dict[str, _Said] = {}
    log = folder / MAINTENANCE_FILE
    for place, line in complete_lines(log) if log.is_file() else ():
        with located(place):
            for value in as_list(line.get("items", []), "items"):
                entry = as_object(value, "items")
                known[str(entry.get("id"))] = _Said(str(entry.get("kind")), str(entry.get("title")), Origin.ONLINE)
    for bank in banks:
        for item in (*bank.items, *retired_items(bank)):
            kind = "skill" if isinstance(item, Skill) else "mistake"
            known[item.id] = _Said(kind, item.title or item.text[:60], item.origin)
    worth: dict[str, str] = {}
    for bank in banks:
        said = cast(object, bank.metadata.get("worth"))
        if isinstance(said, dict):
            worth |= {str(id): str(value) for id, value in cast(dict[object, object], said).items()}
    present = {item.id for item in banks[-1].items} if banks else set[str]()
    retired = {item.id for item in retired_items(banks[-1])} if banks else set[str]()
    state = {id: _HERE if id in present else "retired" if id in retired else "evicted" for id in found.items}
    return [
        _Row(id, record, found.by_phase(id), known.get(id), state[id] if banks else "", worth.get(id))
        for id, record in found.items.items()
    ]


def _separation(rows: list[_Row]) -> list[dict[str, Any]]:
    """How far items of known worth lie apart, where the bank's metadata knows it."""
    kinds = dict.fromkeys(row.worth for row in rows if row.worth is not None)
    if _BEST not in kinds:
        return []
    values = {
        name: {kind: [_KEYS[name](row) for row in rows if row.worth == kind] for kind in kinds}
        for name in ("credit", "within_phases", "positive_share", "support")
    }
    return [
        {"better": _BEST, "worse": kind} | {name: separation(of[_BEST], of[kind]) for name, of in values.items()}
        for kind in kinds
        if kind != _BEST
    ]


# ---- output


def _document(
    options: argparse.Namespace, found: Ledger, rows: list[_Row], unused: list[str], apart: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "run": str(options.run),
        "sort": options.sort,
        "until": options.until,
        "phase_steps": found.phase_steps,
        "totals": _counts(found.total),
        "items": [
            {
                "id": row.id,
                "kind": None if row.said is None else row.said.kind,
                "title": None if row.said is None else row.said.title,
                "origin": None if row.said is None else row.said.origin.value,
                "state": row.state or None,
                "worth": row.worth,
                **_evidence(row.record),
                "bound": lasting_bound(row.record),
                "within_phases": asdict(credit_within(row.phases)),
                "phases": [
                    {"first": phase.number * found.phase_steps + 1, "last": (phase.number + 1) * found.phase_steps}
                    | _evidence(record)
                    for phase, record in zip(found.phases, row.phases, strict=True)
                ],
            }
            for row in rows
        ],
        "unused": unused,
        "separation": apart,
    }


def _counts(record: ItemRecord) -> dict[str, Any]:
    sums = ("support_success", "support_failure")
    return {name: value for name, value in asdict(record).items() if name not in sums}


def _evidence(record: ItemRecord) -> dict[str, Any]:
    return _counts(record) | {
        "mean_support_success": record.mean_support_success,
        "mean_support_failure": record.mean_support_failure,
        "credit": asdict(credit(record)),
        "positive_share": asdict(positive_share(record)),
    }


def _ranking(run: Path, rows: list[_Row]) -> Table:
    """Two lines an item, so that it fits a terminal of 80 columns."""
    numbers = (
        "",
        "credit\ninterval",
        "active\nof uses",
        "positive\nnegative",
        "neutral\nundecided",
        "support\n+ and −",
    )
    listing = table(f"{run}: items by what they were worth", "", "item", *numbers[1:], right=numbers)
    listing.caption = "support: mean over successes, over failures, in nats per token"
    for column in listing.columns:
        column.no_wrap, column.min_width = column.header != "item", 18 if column.header == "item" else None
    for rank, row in enumerate(rows, 1):
        record, worth = row.record, row.credit
        supports = (record.mean_support_success, record.mean_support_failure)
        remarks = [row.id, *((row.worth,) if row.worth else ()), *((row.state,) if row.state != _HERE else ())]
        pairs = (
            (f"{worth.value:.2f}", f"{worth.low:.2f}–{worth.high:.2f}"),
            (str(record.active), str(record.uses)),
            (str(record.positive), str(record.negative)),
            (str(record.neutral), str(record.undecided)),
            tuple("–" if value is None else f"{value:+.3f}" for value in supports),
        )
        listing.add_row(
            str(rank),
            Text.assemble(_title(row), "\n", (", ".join(filter(None, remarks)), "dim")),
            *(Text.assemble(upper, "\n", (lower, "dim")) for upper, lower in pairs),
        )
    return listing


def _by_phase(found: Ledger, rows: list[_Row]) -> Table:
    ends = [str((phase.number + 1) * found.phase_steps) for phase in found.phases]
    listing = table(
        f"credit by phase of {found.phase_steps} optimizer steps, by their last one", "item", *ends, right=ends
    )
    for row in rows:
        decided = [record.positive + record.negative for record in row.phases]
        cells = [
            f"{credit(record).value:.2f}" if uses else "–" for record, uses in zip(row.phases, decided, strict=True)
        ]
        listing.add_row(Text.assemble(_title(row), "\n", (row.id, "dim")), *cells)
    return listing


def _title(row: _Row) -> str:
    return "(in no bank of the run)" if row.said is None else row.said.title
