"""``sgsd bank``: one skill bank, its items, and where they come from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.padding import Padding
from rich.text import Text

from sgsd import runfolder
from sgsd.bank import Item
from sgsd.bank.documents import sources, write_document
from sgsd.cli.bank_files import item_block, load, sizes
from sgsd.cli.console import print_json, standard_output, table
from sgsd.display import say
from sgsd.errors import BankError


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
            from sgsd.cli.bank_check import check

            return check(options)
        case "trace":
            from sgsd.cli.bank_trace import trace

            return trace(options)
        case "ledger":
            from sgsd.cli.bank_ledger import ledger

            return ledger(options)
        case _:
            from sgsd.cli.bank_diff import diff

            return diff(options)


def _show(options: argparse.Namespace) -> int:
    loaded = load(options.bank)
    if options.json:
        print_json(json.loads(loaded.to_json()))
        return 0
    console = standard_output()
    places = sources(loaded)
    console.print(Text(f"{options.bank}: {sizes(loaded)}", style="bold"), soft_wrap=True)
    for heading, items in (("Skills", loaded.skills), ("Mistakes", loaded.mistakes)):
        listing = table(heading, "id", "item")
        listing.columns[0].max_width = 24
        listing.show_lines = True
        for item in items:
            listing.add_row(Text(item.id), item_block(item, places.get(item.id, "")))
        if items:
            console.print(Padding(listing, (1, 0, 0, 0)))
    console.print(f"\ndigest {loaded.digest}")
    return 0


def _search(options: argparse.Namespace) -> int:
    from sgsd.engines.embedders import build_retriever

    loaded = load(options.bank)
    retriever = build_retriever(options.retriever, embedder=options.embedder)
    # As teachers are made: of a document's rules each teaches alone.
    retrieval = retriever.retrieve([options.problem], loaded, options.k, alone="document" in loaded.metadata)[0]
    rows = [
        {
            "skill": pair.skill and pair.skill.id,
            "mistake": pair.mistake and pair.mistake.id,
            "similarity": pair.similarity,
            "weight": weight,
            "skill_title": pair.skill and pair.skill.title,
            "mistake_title": pair.mistake and pair.mistake.title,
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
    standard_output().print(listing)
    return 0


def _named(item: Item | None) -> Text:
    """The id and a few words of an item, for a cell."""
    return Text() if item is None else Text.assemble(item.title or item.text, "\n", (item.id, "dim"))


def _import(options: argparse.Namespace) -> int:
    loaded = load(options.source)
    target: Path = options.target
    _refuse_existing(target, options)
    loaded.save(target)
    if options.json:
        print_json({"file": str(target), "digest": loaded.digest})
    else:
        say(f"{target}: {sizes(loaded)}")
    ignored = loaded.metadata.get("ignored_keys")
    if isinstance(ignored, list) and ignored:
        say(f"{options.source}: not carried, having no place here: {', '.join(map(str, ignored))}", error=True)
    return 0


def _export(options: argparse.Namespace) -> int:
    loaded = load(options.bank)
    target: Path = options.target
    _refuse_existing(target, options)
    if options.format == "skill-md":
        try:
            runfolder.write_text(target, write_document(loaded))
        except OSError as error:
            raise BankError("the target cannot be written", got=f"{target} ({error.strerror})") from error
    else:
        loaded.save(target, format=options.format)
    say(f"{target}: {sizes(loaded)}, {options.format} format")
    return 0


def _refuse_existing(target: Path, options: argparse.Namespace) -> None:
    if target.exists() and not options.force:
        raise BankError("the target exists", got=str(target), remedy="choose another name, or pass --force")
