"""``sgsd bank ledger``: rank the items of a run by credit, the best first."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text

from sgsd import runfolder
from sgsd.bank import Item, ItemRecord, Ledger, SkillBank
from sgsd.bank.credit import credit
from sgsd.bank.documents import load_bank
from sgsd.cli.console import print_json, standard_output, table
from sgsd.errors import BankError
from sgsd.validation import validated

_ENTRIES = TypeAdapter(list[dict[str, object]])
_HERE = "in bank"


def run(options: argparse.Namespace) -> int:
    """Print the items of a run, ranked by credit."""
    ledger = _read_ledger(options.run)
    banks = [load_bank(options.bank)] if options.bank else _banks(options.run)
    rows = _rows(ledger, banks, options.run)
    unused = [item.id for item in (banks[-1].items if banks else ()) if item.id not in ledger.items]
    if options.json:
        print_json({"run": str(options.run), "totals": _counts(ledger.total), "items": rows, "unused": unused})
        return 0
    console = standard_output()
    console.print(_ranking(options.run, rows))
    total = ledger.total
    console.print(
        f"{total.uses} uses of {len(rows)} items: {total.active} active, {total.positive} positive, "
        f"{total.negative} negative, {total.neutral} neutral, {total.undecided} undecided; a teacher counts for both "
        f"of its items. Never used: {len(unused)}.",
        soft_wrap=True,
    )
    return 0


def _read_ledger(folder: Path) -> Ledger:
    for file in (folder / runfolder.LEDGER, folder / runfolder.PARTS / runfolder.LEDGER):
        if file.is_file():
            return Ledger.load(file)
    raise BankError(
        "no ledger", got=str(folder), expected="ledger.json, which SGSD writes with each checkpoint and at the end"
    )


def _banks(folder: Path) -> list[SkillBank]:
    """The banks of the run, the latest last."""
    files = [folder / runfolder.BANK_START, folder / runfolder.BANK, folder / runfolder.PARTS / runfolder.BANK]
    return [SkillBank.load(file) for file in files if file.is_file()]


def _rows(ledger: Ledger, banks: Sequence[SkillBank], folder: Path) -> list[dict[str, Any]]:
    """A row per item: description, worth where the bank states it, counts and credit; highest credit first."""
    known: dict[str, dict[str, Any]] = {}
    log = folder / runfolder.MAINTENANCE
    for place, line in runfolder.read_lines(log) if log.is_file() else ():
        for entry in validated(_ENTRIES, line.get("items", []), f"{place}: items", BankError):
            about = {"kind": str(entry.get("kind")), "title": str(entry.get("title")), "origin": "online"}
            known[str(entry.get("id"))] = about
    worth: dict[str, str] = {}
    for bank in banks:
        known |= {item.id: _about(item) for item in bank.items}
        said = cast(object, bank.metadata.get("worth"))
        if isinstance(said, dict):
            worth |= {str(id): str(value) for id, value in cast(dict[object, object], said).items()}
    present = {item.id for item in banks[-1].items} if banks else set[str]()
    nothing = {"kind": None, "title": None, "origin": None}
    rows = [
        {
            "id": id,
            **known.get(id, nothing),
            "state": (_HERE if id in present else "evicted") if banks else None,
            "worth": worth.get(id),
            **_counts(record),
            "mean_support_success": record.mean_support_success,
            "mean_support_failure": record.mean_support_failure,
            "credit": asdict(credit(record)),
            "positive_share": _share(record),
        }
        for id, record in ledger.items.items()
    ]
    return sorted(rows, key=lambda row: row["credit"]["value"], reverse=True)


def _about(item: Item) -> dict[str, Any]:
    return {"kind": type(item).__name__.lower(), "title": item.title or item.text[:60], "origin": item.origin.value}


def _counts(record: ItemRecord) -> dict[str, Any]:
    sums = ("support_success", "support_failure", "products")
    return {name: value for name, value in asdict(record).items() if name not in sums}


def _share(record: ItemRecord) -> float | None:
    """The share of positive uses among positive and negative ones; ``None`` without any."""
    decided = record.positive + record.negative
    return record.positive / decided if decided else None


def _ranking(run: Path, rows: Sequence[dict[str, Any]]) -> Table:
    """The ranking as a table with two lines per item, so that it fits a terminal of 80 columns."""
    pairs = ("credit\ninterval", "active\nof uses", "positive\nnegative", "neutral\nundecided", "support\n+ and −")
    listing = table(f"{run}: items by credit", "", "item", *pairs, right=("", *pairs))
    listing.caption = "support: mean over successes, over failures, in nats per token"
    for column in listing.columns:
        column.no_wrap, column.min_width = column.header != "item", 18 if column.header == "item" else None
    for rank, row in enumerate(rows, 1):
        worth, state = row["credit"], "" if row["state"] == _HERE else row["state"]
        remarks = ", ".join(filter(None, (row["id"], row["worth"], state)))
        title = "(in no bank of the run)" if row["title"] is None else row["title"]
        supports = (row["mean_support_success"], row["mean_support_failure"])
        cells = (
            (title, remarks),
            (f"{worth['value']:.2f}", f"{worth['low']:.2f}–{worth['high']:.2f}"),
            (str(row["active"]), str(row["uses"])),
            (str(row["positive"]), str(row["negative"])),
            (str(row["neutral"]), str(row["undecided"])),
            tuple("–" if value is None else f"{value:+.3f}" for value in supports),
        )
        listing.add_row(str(rank), *(Text.assemble(upper, "\n", (lower, "dim")) for upper, lower in cells))
    return listing
