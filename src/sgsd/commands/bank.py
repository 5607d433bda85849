"""``sgsd bank``: one skill bank, its items, its versions, and where they come from."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sgsd.bank import Item, Skill, SkillBank, history
from sgsd.errors import BankError
from sgsd.memories import as_strings

BANK_FILE = "bank.json"
"""In the folder of a run or a build."""


def bank(options: argparse.Namespace) -> int:
    """Run one action; the exit code is 1 where ``check`` found something."""
    match options.action:
        case "show":
            return _show(options)
        case "search":
            return _search(options)
        case "import":
            return _import(options)
        case "export":
            return _export(options)
        case "check":
            from sgsd.commands.bank_check import check

            return check(options)
        case "trace":
            from sgsd.commands.bank_trace import trace

            return trace(options)
        case "ledger":
            from sgsd.commands.bank_ledger import ledger

            return ledger(options)
        case _:
            from sgsd.commands import bank_history

            return {"log": bank_history.log, "diff": bank_history.diff, "rollback": bank_history.rollback}[
                options.action
            ](options)


def bank_file(name: str) -> str:
    """What a command was given: of a folder (a run's, a build's) its bank, else the name itself."""
    file, version = history.split_version(name)
    if not Path(file).is_dir():
        return name
    return str(Path(file) / BANK_FILE) + ("" if version is None else f"@{version}")


def load(name: str) -> SkillBank:
    """The bank a command was given: a file, a version, a folder, a shipped bank."""
    return history.load(bank_file(name))


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; columns named in ``right`` are aligned there. Cells are plain text: give them as ``Text``."""
    made = Table(title=Text(title), title_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def print_json(value: Any) -> None:
    """A JSON value for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def sizes(loaded: SkillBank) -> str:
    """How many items there are, in words."""
    skills, mistakes = len(loaded.skills), len(loaded.mistakes)
    return f"{skills} {'skill' if skills == 1 else 'skills'}, {mistakes} {'mistake' if mistakes == 1 else 'mistakes'}"


def item_block(item: Item) -> RenderableType:
    """An item for people: its title and origin, what it says, when it applies."""
    head = Text(item.title or "(no title)", style="bold")
    head.append(f"  {item.origin}", style="dim not bold")
    if item.parents:
        count = len(item.parents)
        head.append(f", {count} {'parent' if count == 1 else 'parents'}", style="dim not bold")
    parts: list[RenderableType] = [head, Text(item.text)]
    if item.note:
        parts.append(Text(f"{'When' if isinstance(item, Skill) else 'Avoid'}: {item.note}", style="italic"))
    return Group(*parts)


def _show(options: argparse.Namespace) -> int:
    loaded = load(options.bank)
    if options.json:
        print(loaded.to_json(), end="")
        return 0
    console = Console()
    console.print(Text(f"{options.bank}: {sizes(loaded)}", style="bold"), soft_wrap=True)
    for heading, items in (("Skills", loaded.skills), ("Mistakes", loaded.mistakes)):
        listing = table(heading, "id", "item")
        listing.columns[0].max_width = 24
        listing.show_lines = True
        for item in items:
            listing.add_row(Text(item.id), item_block(item))
        if items:
            console.print(Padding(listing, (1, 0, 0, 0)))
    console.print(f"\ndigest {loaded.digest}", highlight=False)
    return 0


def _search(options: argparse.Namespace) -> int:
    from sgsd.engines.embedders import build_retriever

    loaded = load(options.bank)
    retriever = build_retriever(options.retriever, embedder=options.embedder)
    retrieval = retriever.retrieve([options.problem], loaded, options.k)[0]
    rows = [
        {
            "skill": pair.skill.id,
            "mistake": pair.mistake.id,
            "similarity": pair.similarity,
            "weight": weight,
            "skill_title": pair.skill.title,
            "mistake_title": pair.mistake.title,
        }
        for pair, weight in zip(retrieval.pairs, retrieval.weights, strict=True)
    ]
    if options.json:
        print_json(rows)
        return 0
    scored = any(row["similarity"] is not None for row in rows)
    columns = ("rank", "weight", *(("similarity",) if scored else ()), "skill", "mistake")
    listing = table(
        f"{options.bank}: {len(rows)} pairs by {retriever.name}", *columns, right=("rank", "weight", "similarity")
    )
    for rank, (row, pair) in enumerate(zip(rows, retrieval.pairs, strict=True), 1):
        similarity = [] if not scored else ["" if row["similarity"] is None else f"{row['similarity']:.3f}"]
        listing.add_row(str(rank), f"{row['weight']:.3f}", *similarity, *map(_named, (pair.skill, pair.mistake)))
    Console().print(listing)
    return 0


def _named(item: Item) -> Text:
    """The id and a few words of an item, for a cell."""
    return Text.assemble(item.title or item.text, "\n", (item.id, "dim"))


def _import(options: argparse.Namespace) -> int:
    loaded = load(options.source)
    target: Path = options.target
    _refuse_existing(target, options, ": what is there stays in its log")
    message = options.message or f"from {options.source}"
    version = history.save(target, loaded, action="import", message=message, time=datetime.now(UTC))
    if options.json:
        print_json({"file": str(target), "version": version, "digest": loaded.digest})
    else:
        print(f"{target}: version {version}, {sizes(loaded)}")
    if ignored := as_strings(loaded.metadata.get("ignored_keys")):
        print(f"{options.source}: not carried, having no place here: {', '.join(ignored)}", file=sys.stderr)
    return 0


def _export(options: argparse.Namespace) -> int:
    loaded = load(options.bank)
    target: Path = options.target
    _refuse_existing(target, options, "")
    loaded.save(target, format=options.format)
    print(f"{target}: {sizes(loaded)}, {options.format} format")
    return 0


def _refuse_existing(target: Path, options: argparse.Namespace, remark: str) -> None:
    if target.exists() and not options.force:
        raise BankError("the target exists", got=str(target), remedy=f"choose another name, or pass --force{remark}")
