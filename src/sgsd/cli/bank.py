"""``sgsd bank show | search | import | export | diff | check``: commands on existing skill banks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from sgsd import runfolder
from sgsd.bank import BankDiff, Item, Skill, SkillBank
from sgsd.bank.build import LINEAGE, MEMORIES
from sgsd.bank.documents import changed_items, is_document, lines_without_item, load_bank, sources, write_document
from sgsd.bank.leaks import LeakReport, scan
from sgsd.cli.console import print_json, standard_error, standard_output, table
from sgsd.data.problems import Problem
from sgsd.display import say
from sgsd.errors import BankError
from sgsd.memories import Memory, read_memory
from sgsd.prompts import listed
from sgsd.validation import validated

_LINEAGE = TypeAdapter(dict[str, list[str]])
_SHOWN = 3
"""Lines without an item that ``import`` prints."""
_KEPT = TypeAdapter(list[dict[str, Any]])


def run(options: argparse.Namespace) -> int:
    """Run one action. The exit code is 1 if ``check`` finds something."""
    actions = {"show": _show, "search": _search, "import": _import, "export": _export, "diff": _diff}
    if options.action == "check":
        return _check(options)
    actions[options.action](options)
    return 0


# ---- show, search


def _show(options: argparse.Namespace) -> None:
    bank = load_bank(options.bank)
    if options.json:
        print_json(json.loads(bank.to_json()))
        return
    console = standard_output()
    places = sources(bank)
    console.print(Text(f"{options.bank}: {_sizes(bank)}", style="bold"), soft_wrap=True)
    for heading, items in (("Skills", bank.skills), ("Mistakes", bank.mistakes)):
        listing = table(heading, "id", "item")
        listing.columns[0].max_width = 24
        listing.show_lines = True
        for item in items:
            listing.add_row(Text(item.id), _block(item, places.get(item.id, "")))
        if items:
            console.print(Padding(listing, (1, 0, 0, 0)))
    console.print(f"\ndigest {bank.digest}")


def _search(options: argparse.Namespace) -> None:
    from sgsd.engines.embedders import build_retriever

    bank = load_bank(options.bank)
    retriever = build_retriever(options.retriever, embedder=options.embedder)
    # As in training: each rule of a document has a teacher of its own.
    found = retriever.retrieve([options.problem], bank, options.k, alone="document" in bank.metadata)[0]
    ranked = list(zip(found.pairs, found.weights, strict=True))
    if options.json:
        print_json(
            [
                {
                    "skill": pair.skill and pair.skill.id,
                    "mistake": pair.mistake and pair.mistake.id,
                    "similarity": pair.similarity,
                    "weight": weight,
                    "skill_title": pair.skill and pair.skill.title,
                    "mistake_title": pair.mistake and pair.mistake.title,
                }
                for pair, weight in ranked
            ]
        )
        return
    title = f"{options.bank}: {len(ranked)} pairs by {retriever.name}"
    similar = any(pair.similarity is not None for pair, _ in ranked)  # only an embedder's pairs have one
    numbers = ("rank", "weight", *(["similarity"] if similar else []))
    listing = table(title, *numbers, "skill", "mistake", right=numbers)
    for rank, (pair, weight) in enumerate(ranked, 1):
        shown = [f"{pair.similarity:.3f}"] if pair.similarity is not None else []
        listing.add_row(str(rank), f"{weight:.3f}", *shown, *map(_named, (pair.skill, pair.mistake)))
    standard_output().print(listing)


def _named(item: Item | None) -> Text:
    return Text() if item is None else Text.assemble(item.title or item.text, "\n", (item.id, "dim"))


# ---- import, export


def _import(options: argparse.Namespace) -> None:
    bank = load_bank(options.source)
    _refuse_existing(options)
    bank.save(options.target)
    if options.json:
        print_json({"file": str(options.target), "digest": bank.digest})
    else:
        say(f"{options.target}: {_sizes(bank)}")
    if lost := lines_without_item(Path(options.source)) if is_document(Path(options.source)) else []:
        shown = "; ".join(lost[:_SHOWN]) + (" …" if len(lost) > _SHOWN else "")
        say(f"{options.source}: {len(lost)} line{'s' * (len(lost) > 1)} became no item: {shown}", error=True)
    ignored = bank.metadata.get("ignored_keys")
    if isinstance(ignored, list) and ignored:
        say(f"{options.source}: keys that banks do not have were left out: {', '.join(map(str, ignored))}", error=True)


def _export(options: argparse.Namespace) -> None:
    bank = load_bank(options.bank)
    target: Path = options.target
    _refuse_existing(options)
    if options.format == "skill-md":
        text = write_document(bank)
        try:
            runfolder.write_text(target, text)
        except OSError as error:
            raise BankError("the target cannot be written", got=f"{target} ({error.strerror})") from error
        if changed := changed_items(bank, text):
            told = f"{len(changed)} of {len(bank.items)} items are other rules when it is read"
            say(f"warning: {target}: {told} (--format native keeps them): {listed(changed)}", error=True)
    else:
        bank.save(target, format=options.format)
    say(f"{target}: {_sizes(bank)}, {options.format} format")


def _refuse_existing(options: argparse.Namespace) -> None:
    if options.target.exists() and not options.force:
        raise BankError("the target exists", got=str(options.target), remedy="choose another name, or pass --force")


# ---- diff


def _diff(options: argparse.Namespace) -> None:
    before, after = load_bank(options.before), load_bank(options.after)
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
        return
    console = standard_output()
    console.print(Text(f"− {options.before}: {_sizes(before)}", style="red"), soft_wrap=True)
    console.print(Text(f"+ {options.after}: {_sizes(after)}", style="green"), soft_wrap=True)
    if found:
        _print_diff(console, found)
    else:
        say("the same items in another order" if moved else "the same items")


def _print_diff(console: Console, found: BankDiff) -> None:
    for sign, style, items in (("−", "red", found.removed), ("+", "green", found.added)):
        for item in items:
            console.print(Text(f"\n{sign} {item.id}", style=style))
            console.print(Padding(_block(item), (0, 0, 0, 4)))
    for old, new in found.changed:
        console.print(Text(f"\n~ {new.id}", style="yellow"))
        was, now = _as_dict(old), _as_dict(new)
        for name in dict.fromkeys([*was, *now]):
            for sign, style, fields in (("−", "red", was), ("+", "green", now)):
                if was.get(name) != now.get(name):
                    line = Text.assemble((f"{name} {sign} ", "bold"), (str(fields.get(name, "")), style))
                    console.print(Padding(line, (0, 0, 0, 4)))
    say(f"\n{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed")


def _as_dict(item: Item) -> dict[str, Any]:
    return {"kind": type(item).__name__.lower(), **asdict(item)}


# ---- check


def _check(options: argparse.Namespace) -> int:
    """Report findings and leaks; returns 1 if there are any."""
    bank = load_bank(options.bank)
    errors = standard_error()
    folder = None if options.bank.startswith("seed:") else _folder(Path(options.bank))
    report = scan(
        bank,
        problems=_problems(options.problems, errors),
        memories=_memories(folder) if options.memories is None else _read_memories(options.memories),
        benchmarks={source: _problems([source], errors) for source in options.benchmark},
        lineage=_lineage(folder),
        n=options.n,
    )
    rows: list[dict[str, Any]] = [
        {"kind": str(finding.kind), "ids": list(finding.ids), "message": finding.message} for finding in bank.check()
    ]
    rows += [
        {
            "kind": f"leak-{leak.kind.replace(' ', '-')}",
            "ids": [leak.item],
            "message": leak.reason,
            "problem": leak.problem,
            "source": leak.source,
            "held": leak.held,
        }
        for leak in report.leaks
    ]
    if options.json:
        print_json(rows)
    elif rows:
        listing = table(f"{options.bank}: {_sizes(bank)}", "what", "items")
        listing.show_lines = True
        for row in rows:
            what = Text.assemble((row["kind"], "bold"), "\n", row["message"])
            listing.add_row(what, Text("\n".join(row["ids"])))
        standard_output().print(listing)
    else:
        say(f"{options.bank}: {_sizes(bank)}, nothing odd")
    for note in _notes(report):
        errors.print(note, soft_wrap=True)
    return 1 if rows else 0


def _problems(names: list[str], console: Console) -> Iterator[Problem]:
    for name in names:
        from sgsd.cli.contamination import load_all  # slow, and not needed to check the bank alone

        yield from load_all(name, console)


def _folder(bank: Path) -> Path:
    """The folder of the bank, which may also hold the lineage and the memories of its build or run."""
    return bank if bank.is_dir() else bank.parent


def _lineage(folder: Path | None) -> dict[str, Sequence[str]]:
    """The parents of each candidate and item of a build, by id."""
    file = None if folder is None else folder / LINEAGE
    if file is None or not file.is_file():
        return {}
    return {**validated(_LINEAGE, runfolder.read_json(file), str(file), BankError)}


def _memories(folder: Path | None) -> Iterator[Memory]:
    """The memories of a build, and those from which a run's maintenance made items."""
    if folder is not None and (folder / MEMORIES).is_file():
        yield from _read_memories(folder / MEMORIES)
    if folder is not None and (folder / runfolder.MAINTENANCE).is_file():
        for where, check in runfolder.read_lines(folder / runfolder.MAINTENANCE):
            for values in validated(_KEPT, check.get("memories_kept", []), f"{where}: memories_kept"):
                yield read_memory(values, where)


def _read_memories(file: Path) -> Iterator[Memory]:
    for where, values in runfolder.read_lines(file):
        yield read_memory(values, where)


def _notes(report: LeakReport) -> Iterator[str]:
    """How many items and problems were compared, and which items could not be."""
    if report.problems:
        yield f"leaks: items {report.items}, problems {report.problems:,}, compared by word {report.n}-grams"
    else:
        yield "leaks: nothing to compare with; give --problems, --benchmark or --memories"
    if report.untraced:
        yield (
            f"leaks: items with parents but without a memory: {len(report.untraced)}; the answers of their problems "
            "were not compared; name the file of memories with --memories"
        )


# ---- items as text


def _sizes(bank: SkillBank) -> str:
    skills, mistakes = len(bank.skills), len(bank.mistakes)
    return f"{skills} {'skill' if skills == 1 else 'skills'}, {mistakes} {'mistake' if mistakes == 1 else 'mistakes'}"


def _block(item: Item, place: str = "") -> RenderableType:
    """An item for the terminal: title, origin, place in a document, parents, text and note."""
    parents = f"from {', '.join(item.parents)}" if item.parents else ""
    about = ", ".join(filter(None, (str(item.origin), place, parents)))
    parts: list[RenderableType] = [Text.assemble((item.title or "(no title)", "bold"), (f"  {about}", "dim"))]
    parts.append(Text(item.text))
    if item.note:
        parts.append(Text(f"{'When' if isinstance(item, Skill) else 'Avoid'}: {item.note}", style="italic"))
    return Group(*parts)
