"""What the commands print with. A user's text is never markup, ``[/x]`` and ``\\[x^2\\]`` stay as they are, and reaches
no terminal but through ``display.visible``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from sgsd.display import json_text, say, visible

_FEW = 50  # problems


class _Screen(Console):
    """A console without markup, whose texts are visible ones. Only its own colours and bars steer the terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text):  # laid out as it is shown
            shown = visible(renderable.plain)
            renderable = renderable if shown == renderable.plain else renderable.blank_copy(shown)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def standard_output() -> Console:
    """For results."""
    return _Screen()


def standard_error() -> Console:
    """For what happens meanwhile."""
    return _Screen(stderr=True)


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


class Bars:
    """A bar for each thing that is done in turn, by name."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._latest = TaskID(0)
        self._done = 0

    def show(self, name: str, done: int, total: int) -> None:
        """So much of it is done."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
        self._latest, self._done = self._tasks[name], done
        self._progress.update(self._latest, completed=done, total=total)

    def within(self, done: int) -> None:
        """So many of the batch under way, of what was shown last."""
        self._progress.update(self._latest, completed=self._done + done)


def warn_if_few(console: Console, what: str, problems: int) -> None:
    """Say how little an accuracy over so few problems tells: its 95 % interval, where it is widest."""
    if problems < _FEW:
        half = 98 / math.sqrt(problems)
        console.print(f"warning: {what}: {problems} problems are few, an accuracy is known to ±{half:.0f} points")


def print_json(value: Any) -> None:
    """A JSON value for programs."""
    say(json_text(value))
