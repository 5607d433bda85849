"""``sgsd bank ledger``: what the items of a run were worth."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from sgsd import runfolder
from sgsd.bank import ItemRecord, Ledger, Origin, Skill, SkillBank
from sgsd.bank.credit import Credit, credit, separation
from sgsd.cli.bank_files import load
from sgsd.cli.console import print_json, standard_output, table
from sgsd.errors import BankError
from sgsd.validation import validated

_ENTRIES = TypeAdapter(list[dict[str, object]])
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
        said: what it is, where a bank or the log of maintenance knows it.
        state: ``in bank``, ``evicted``; empty where there is no bank to tell.
        worth: what it is known to be good for, if that is known.
    """

    id: str
    record: ItemRecord
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
    "positive_share": lambda row: 0.5 if (share := _positive_share(row.record)) is None else share,
    "support": lambda row: 0.0 if row.support is None else row.support,
    "uses": lambda row: row.record.uses,
    "active": lambda row: row.record.active,
}


def ledger(options: argparse.Namespace) -> int:
    """Print the ranking of a run's items."""
    found = _read_ledger(options.run)
    banks = [load(options.bank)] if options.bank else _banks(options.run)
    rows = sorted(_rows(found, banks, options.run), key=_KEYS[options.sort], reverse=True)
    unused = [item.id for item in (banks[-1].items if banks else ()) if item.id not in found.items]
    apart = _separation(rows)
    if options.json:
        print_json(_document(options, found, rows, unused, apart))
        return 0
    console = standard_output()
    console.print(_ranking(options.run, rows))
    total = found.total
    console.print(
        f"{total.uses} uses of {len(rows)} items: {total.active} active, {total.positive} positive, "
        f"{total.negative} negative, {total.neutral} neutral, {total.undecided} undecided; a teacher counts for both "
        f"of its items. Never used: {len(unused)}.",
        soft_wrap=True,
    )
    for entry in apart:
        console.print(
            f"{entry['better']} above {entry['worse']} (area under the ROC curve): by credit {entry['credit']:.3f}, "
            f"by share of positive uses {entry['positive_share']:.3f}, by support {entry['support']:.3f}",
            soft_wrap=True,
        )
    return 0


# ---- reading


def _read_ledger(folder: Path) -> Ledger:
    for file in (folder / runfolder.LEDGER, folder / runfolder.PARTS / runfolder.LEDGER):
        if file.is_file():
            return Ledger.load(file)
    raise BankError(
        "no ledger", got=str(folder), expected="ledger.json, which SGSD writes with each checkpoint and at the end"
    )


def _banks(folder: Path) -> list[SkillBank]:
    """The run's, the latest last."""
    files = [folder / runfolder.BANK_START, folder / runfolder.BANK, folder / runfolder.PARTS / runfolder.BANK]
    return [SkillBank.load(file) for file in files if file.is_file()]


def _rows(found: Ledger, banks: list[SkillBank], folder: Path) -> list[_Row]:
    known: dict[str, _Said] = {}
    log = folder / runfolder.MAINTENANCE
    for place, line in runfolder.read_lines(log) if log.is_file() else ():
        for entry in validated(_ENTRIES, line.get("items", []), f"{place}: items", BankError):
            known[str(entry.get("id"))] = _Said(str(entry.get("kind")), str(entry.get("title")), Origin.ONLINE)
    for bank in banks:
        for item in bank.items:
            kind = "skill" if isinstance(item, Skill) else "mistake"
            known[item.id] = _Said(kind, item.title or item.text[:60], item.origin)
    worth: dict[str, str] = {}
    for bank in banks:
        said = cast(object, bank.metadata.get("worth"))
        if isinstance(said, dict):
            worth |= {str(id): str(value) for id, value in cast(dict[object, object], said).items()}
    present = {item.id for item in banks[-1].items} if banks else set[str]()
    state = {id: _HERE if id in present else "evicted" for id in found.items}
    return [
        _Row(id, record, known.get(id), state[id] if banks else "", worth.get(id)) for id, record in found.items.items()
    ]


def _separation(rows: list[_Row]) -> list[dict[str, Any]]:
    """How far items of known worth lie apart, where the bank's metadata knows it."""
    kinds = dict.fromkeys(row.worth for row in rows if row.worth is not None)
    if _BEST not in kinds:
        return []
    values = {
        name: {kind: [_KEYS[name](row) for row in rows if row.worth == kind] for kind in kinds}
        for name in ("credit", "positive_share", "support")
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
            }
            for row in rows
        ],
        "unused": unused,
        "separation": apart,
    }


def _counts(record: ItemRecord) -> dict[str, Any]:
    sums = ("support_success", "support_failure", "products")
    return {name: value for name, value in asdict(record).items() if name not in sums}


def _positive_share(record: ItemRecord) -> float | None:
    """Of the active uses on rollouts with a verdict; ``None`` without any."""
    decided = record.positive + record.negative
    return record.positive / decided if decided else None


def _evidence(record: ItemRecord) -> dict[str, Any]:
    return _counts(record) | {
        "mean_support_success": record.mean_support_success,
        "mean_support_failure": record.mean_support_failure,
        "credit": asdict(credit(record)),
        "positive_share": _positive_share(record),
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


def _title(row: _Row) -> str:
    return "(in no bank of the run)" if row.said is None else row.said.title
