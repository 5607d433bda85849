"""``sgsd bank show | check | search | convert``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sgsd.bank import SkillBank
from sgsd.errors import BankError


def bank(options: argparse.Namespace) -> int:
    """Run one action; the exit code is 1 where ``check`` found something."""
    loaded = SkillBank.load(options.bank)
    return {"show": _show, "check": _check, "search": _search, "convert": _convert}[options.action](loaded, options)


def _show(loaded: SkillBank, options: argparse.Namespace) -> int:
    if options.json:
        print(loaded.to_json(), end="")
        return 0
    table = Table(
        title=f"{options.bank}: {len(loaded.skills)} skills, {len(loaded.mistakes)} mistakes", show_lines=True
    )
    for column in ("id", "origin", "title", "text", "when / avoid"):
        table.add_column(column, no_wrap=column == "id")
    for item in loaded.items:
        table.add_row(item.id, item.origin, item.title, item.text, item.note)
    console = Console()
    console.print(table)
    console.print(f"digest {loaded.digest}")
    return 0


def _check(loaded: SkillBank, options: argparse.Namespace) -> int:
    findings = loaded.check()
    if options.json:
        rows = [{"kind": str(finding.kind), "ids": finding.ids, "message": finding.message} for finding in findings]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif findings:
        for finding in findings:
            print(f"{finding.kind}: {finding.message} ({', '.join(finding.ids)})")
    else:
        print(f"{options.bank}: {len(loaded.skills)} skills, {len(loaded.mistakes)} mistakes, nothing odd")
    return 1 if findings else 0


def _search(loaded: SkillBank, options: argparse.Namespace) -> int:
    from sgsd.engines.embedders import build_retriever

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
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    table = Table(title=f"{len(rows)} pairs by {retriever.name}")
    for column in ("rank", "weight", "similarity", "skill", "mistake"):
        table.add_column(column)
    for rank, row in enumerate(rows, 1):
        similarity = "" if row["similarity"] is None else f"{row['similarity']:.3f}"
        table.add_row(str(rank), f"{row['weight']:.3f}", similarity, row["skill_title"], row["mistake_title"])
    Console().print(table)
    return 0


def _convert(loaded: SkillBank, options: argparse.Namespace) -> int:
    target: Path = options.target
    if target.exists() and not options.force:
        raise BankError("the target exists", got=str(target), remedy="choose another name, or pass --force")
    loaded.save(target, format=options.format)
    print(f"{target}: {len(loaded.skills)} skills, {len(loaded.mistakes)} mistakes, {options.format} format")
    return 0
