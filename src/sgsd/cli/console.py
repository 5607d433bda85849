"""What the commands print with. A user's text is never markup: ``[/x]`` and ``\\[x^2\\]`` stay as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text


def standard_output() -> Console:
    """For results."""
    return Console(markup=False, emoji=False, highlight=False)


def standard_error() -> Console:
    """For what happens meanwhile."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False)


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table; columns named in ``right`` are aligned there, cells fold."""
    made = Table(title=Text(title) if title else None, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def progress_bar(console: Console) -> Progress:
    """A bar with counts and the time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def print_json(value: Any) -> None:
    """A JSON value for programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
