"""``sgsd bank diff``: what one bank has and another has not."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sgsd.bank import BankDiff, Item, Skill
from sgsd.cli.bank_files import item_block, load, sizes
from sgsd.cli.console import print_json, standard_output
from sgsd.display import say


def diff(options: argparse.Namespace) -> int:
    """Print what one bank has and another has not."""
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
    console = standard_output()
    console.print(Text(f"− {options.before}: {sizes(before)}", style="red"), soft_wrap=True)
    console.print(Text(f"+ {options.after}: {sizes(after)}", style="green"), soft_wrap=True)
    if found:
        _print_diff(console, found)
    else:
        say("the same items in another order" if moved else "the same items")
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
    say("\n{} added, {} removed, {} changed".format(*counts))


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
