"""``sgsd bank log | diff | rollback``: the versions of a bank file."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sgsd.bank import BankDiff, Item, Skill, SkillBank, history
from sgsd.commands.bank_files import bank_file, item_block, load, print_json, sizes, table
from sgsd.commands.bank_trace import MAINTENANCE_FILE, complete_lines
from sgsd.errors import DataError


def log(options: argparse.Namespace) -> int:
    """Print the versions of a bank file, and what became of it in training where that is a run's."""
    file = Path(bank_file(options.bank))
    found = history.read(file)
    steps = _steps(file.parent)
    if not found.versions and not (steps and not file.exists()):
        SkillBank.load(file)  # refuses what is not there
    outside = history.changed_outside(found)
    if options.json:
        print_json(
            {
                "file": str(file),
                "changed_outside": outside,
                "versions": [_row(found, number) for number in range(1, len(found.versions) + 1)],
                "training": [step.told for step in steps],
            }
        )
        return 0
    if steps:
        _print_steps(file.parent, steps)
    if found.versions:
        _print_versions(found)
    elif not steps:
        print(f"{file}: no versions yet; the first change made by sgsd begins its log, {history.log_file(file).name}")
    if outside:
        Console(stderr=True).print(
            f"{file}: changed outside since version {len(found.versions)}; "
            f"sgsd bank diff {file}@{len(found.versions)} {file} shows how, and the next write records it",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return 0


def _row(found: history.History, number: int) -> dict[str, Any]:
    """One version for programs."""
    version, bank = found.versions[number - 1], found.banks[number - 1]
    diff = (found.banks[number - 2] if number > 1 else SkillBank()).diff(bank)
    return {
        "version": number,
        "time": version.time,
        "action": version.action,
        "message": version.message,
        "before": version.before,
        "after": version.after,
        "skills": len(bank.skills),
        "mistakes": len(bank.mistakes),
        "added": [item.id for item in diff.added],
        "removed": [item.id for item in diff.removed],
        "changed": [item.id for _, item in diff.changed],
    }


def _print_versions(found: history.History) -> None:
    count = len(found.versions)
    listing = table(
        f"{found.file.name}: {count} {'version' if count == 1 else 'versions'}",
        *("", "time (UTC)", "what", "change", "items", "digest"),
        right=("", "items"),
    )
    for column in listing.columns:
        column.no_wrap = column.header != "what"
    for number in range(1, count + 1):
        row = _row(found, number)
        listing.add_row(
            str(number),
            row["time"].removesuffix("Z").replace("T", " ")[:16],
            Text(f"{row['action']}: {row['message']}" if row["message"] else row["action"]),
            _signed(*(len(row[name]) for name in ("added", "removed", "changed"))),
            f"{row['skills']}/{row['mistakes']}",
            row["after"][:8],
        )
    Console().print(listing)


@dataclass(frozen=True)
class _Step:
    """A line of a run's log about its bank: a check of online maintenance.

    Attributes:
        step: optimizer steps done.
        what: ``updated``, ``skipped`` …
        cells: for the table: success rate, change, digest, reason.
        told: the whole line.
    """

    step: int
    what: str
    cells: tuple[str, str, str, str]
    told: dict[str, Any]


def _steps(run: Path) -> list[_Step]:
    """What a run's folder tells of its bank while it trained, in order; nothing where it is no such folder.

    Raises:
        DataError: a line is damaged.
    """
    file = run / MAINTENANCE_FILE
    found: list[_Step] = []
    for where, values in complete_lines(file) if file.is_file() else ():
        try:
            found.append(_check(values))
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: not a line of {MAINTENANCE_FILE}", got=", ".join(values)) from error
    return found


def _check(values: dict[str, Any]) -> _Step:
    actions = Counter(entry["action"] for entry in values["items"])
    rate = "" if values["success_rate"] is None else f"{100 * values['success_rate']:.0f} %"
    leaks = f"{len(values['leaks'])} left out as leaks" if values["leaks"] else ""
    cells = (rate, _signed(actions["added"], actions["evicted"]), values["bank"][:8], values["reason"] or leaks)
    return _Step(values["step"], values["status"], cells, values)


def _signed(added: int, removed: int, changed: int = 0) -> str:
    counts = (("+", added), ("−", removed), ("~", changed))
    return " ".join(f"{sign}{count}" for sign, count in counts if count)


def _print_steps(run: Path, steps: list[_Step]) -> None:
    columns = ("step", "success", "what", "change", "digest", "reason")
    listing = table(f"{run}: the bank while it trained", *columns, right=("step", "success"))
    for column in listing.columns:
        column.no_wrap = column.header != "reason"
    for step in steps:
        success, change, digest, reason = step.cells
        listing.add_row(str(step.step), success, Text(step.what), change, digest, Text(reason))
    Console().print(listing)


def diff(options: argparse.Namespace) -> int:
    """Print what one bank, or version, has and another has not."""
    before, after = load(options.before), load(options.after)
    found = before.diff(after)
    moved = not found and before.digest != after.digest
    if options.json:
        print_json(
            {
                "before": before.digest,
                "after": after.digest,
                "added": [_as_dict(item) for item in found.added],
                "removed": [_as_dict(item) for item in found.removed],
                "changed": [{"before": _as_dict(old), "after": _as_dict(new)} for old, new in found.changed],
                "order_changed": moved,
            }
        )
        return 0
    console = Console()
    console.print(Text(f"− {options.before}: {sizes(before)}", style="red"), soft_wrap=True)
    console.print(Text(f"+ {options.after}: {sizes(after)}", style="green"), soft_wrap=True)
    if found:
        _print_diff(console, found)
    else:
        print("the same items in another order" if moved else "the same items")
    return 0


def _print_diff(console: Console, found: BankDiff) -> None:
    for item in found.removed:
        _print_item(console, "−", item, "red")
    for item in found.added:
        _print_item(console, "+", item, "green")
    for old, new in found.changed:
        console.print(Text(f"\n~ {new.id}", style="yellow"))
        for name, (was, now) in _changes(old, new).items():
            console.print(Padding(Text.assemble((f"{name} − ", "bold"), (was, "red")), (0, 0, 0, 4)))
            console.print(Padding(Text.assemble((f"{name} + ", "bold"), (now, "green")), (0, 0, 0, 4)))
    counts = (len(found.added), len(found.removed), len(found.changed))
    print("\n{} added, {} removed, {} changed".format(*counts))


def _print_item(console: Console, sign: str, item: Item, style: str) -> None:
    console.print(Text(f"\n{sign} {item.id}", style=style))
    console.print(Padding(item_block(item), (0, 0, 0, 4)))


def _changes(old: Item, new: Item) -> dict[str, tuple[str, str]]:
    """Field → what it was and is, of those that differ."""
    fields = {
        "kind": (type(old).__name__.lower(), type(new).__name__.lower()),
        "title": (old.title, new.title),
        "text": (old.text, new.text),
        "when" if isinstance(new, Skill) else "avoid": (old.note, new.note),
        "origin": (str(old.origin), str(new.origin)),
        "parents": (", ".join(old.parents), ", ".join(new.parents)),
    }
    return {name: pair for name, pair in fields.items() if pair[0] != pair[1]}


def _as_dict(item: Item) -> dict[str, Any]:
    return {"kind": type(item).__name__.lower(), **asdict(item)}


def rollback(options: argparse.Namespace) -> int:
    """Make a version's content the newest version."""
    file = bank_file(options.bank)
    before = history.read(file)
    version = history.rollback(file, options.version, message=options.message or "", time=datetime.now(UTC))
    restored = history.load(file)
    if options.json:
        print_json({"file": file, "version": version, "digest": restored.digest})
    elif version == len(before.versions):
        print(f"{options.bank}: it is as in version {options.version} already, {sizes(restored)}")
    else:
        print(f"{options.bank}: version {version}, as version {options.version} was, {sizes(restored)}")
    return 0
