"""``sgsd bank check``: what is odd about a bank, and what its items give away."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from sgsd.bank.leaks import LeakReport, scan
from sgsd.cli.bank_files import load, sizes
from sgsd.cli.bank_trace import Origins, read_memories
from sgsd.cli.console import print_json, standard_error, standard_output, table
from sgsd.data.problems import Problem
from sgsd.display import say
from sgsd.memories import Memory


def check(options: argparse.Namespace) -> int:
    """Report findings and leaks; the exit code is 1 if there are any."""
    loaded = load(options.bank)
    origins = Origins.of(options.bank)
    errors = standard_error()
    report = scan(
        loaded,
        problems=_problems(options.problems, errors),
        memories=_memories(origins, options),
        benchmarks={source: _problems([source], errors) for source in options.benchmark},
        lineage=origins.lineage(),
        n=options.n,
    )
    rows: list[dict[str, Any]] = [
        {"kind": str(finding.kind), "ids": list(finding.ids), "message": finding.message} for finding in loaded.check()
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
        listing = table(f"{options.bank}: {sizes(loaded)}", "what", "items")
        listing.show_lines = True
        for row in rows:
            what = Text.assemble((row["kind"], "bold"), "\n", row["message"])
            listing.add_row(what, Text("\n".join(row["ids"])))
        standard_output().print(listing)
    else:
        say(f"{options.bank}: {sizes(loaded)}, nothing odd")
    for note in _notes(report):
        errors.print(note, soft_wrap=True)
    return 1 if rows else 0


def _problems(sources: list[str], console: Console) -> Iterator[Problem]:
    for source in sources:
        from sgsd.cli.contamination import load_all  # what a check of the bank alone can do without

        yield from load_all(source, console)


def _memories(origins: Origins, options: argparse.Namespace) -> Iterator[Memory]:
    """Those of the file that was named, else those beside the bank."""
    return origins.memories() if options.memories is None else read_memories(options.memories)


def _notes(report: LeakReport) -> Iterator[str]:
    """What was compared, and what could not be."""
    if report.problems:
        yield f"leaks: items {report.items}, problems {report.problems:,}, compared by {report.n} words in a row"
    else:
        yield "leaks: nothing to compare with; give --problems, --benchmark or --memories"
    if report.untraced:
        count = len(report.untraced)
        yield (
            f"leaks: {count} {'item has' if count == 1 else 'items have'} parents but no memory at hand: the answers "
            "of their problems were not compared; --memories names the file"
        )
