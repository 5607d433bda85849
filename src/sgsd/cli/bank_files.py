"""What the bank commands share: reading a bank by name, tables, JSON."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from sgsd import runfolder
from sgsd.bank import Item, Skill, SkillBank
from sgsd.bank.documents import load_bank


def bank_file(name: str) -> str:
    """What a command was given: of a folder (a run's, a build's) its bank, else the name itself."""
    return str(Path(name) / runfolder.BANK) if Path(name).is_dir() else name


def load(name: str) -> SkillBank:
    """The bank a command was given: a file, a document, a folder, a shipped bank."""
    return load_bank(name)


def sizes(loaded: SkillBank) -> str:
    """How many items there are, in words."""
    skills, mistakes = len(loaded.skills), len(loaded.mistakes)
    return f"{skills} {'skill' if skills == 1 else 'skills'}, {mistakes} {'mistake' if mistakes == 1 else 'mistakes'}"


def item_block(item: Item, place: str = "") -> RenderableType:
    """An item for people: its title, origin and place in a document, what it says, when it applies."""
    head = Text(item.title or "(no title)", style="bold")
    head.append(f"  {item.origin}", style="dim not bold")
    if place:
        head.append(f", {place}", style="dim not bold")
    if item.parents:
        count = len(item.parents)
        head.append(f", {count} {'parent' if count == 1 else 'parents'}", style="dim not bold")
    parts: list[RenderableType] = [head, Text(item.text)]
    if item.note:
        parts.append(Text(f"{'When' if isinstance(item, Skill) else 'Avoid'}: {item.note}", style="italic"))
    return Group(*parts)
