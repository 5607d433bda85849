"""Consoles, tables and progress bars of the commands.

Text is never read as Rich markup, so ``[/x]`` and ``\\[x^2\\]`` are printed as they are. All text passes through
``display.visible``, which makes control characters visible.
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
    """A console without markup. Control characters in texts are made visible; only Rich's own reach the terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text):  # replaced before the layout, so that widths are right
            shown = visible(renderable.plain)
            renderable = renderable if shown == renderable.plain else renderable.blank_copy(shown)
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def standard_output() -> Console:
    """The console for results."""
    return _Screen()


def standard_error() -> Console:
    """The console for progress and warnings."""
    return _Screen(stderr=True)


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table. Long cells are folded; columns named in ``right`` are right-aligned."""
    made = Table(title=Text(title) if title else None, title_justify="left")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def progress_bar(console: Console) -> Progress:
    """A progress bar with counts and the remaining time."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


class Bars:
    """One progress bar per named task. Tasks run one after another.

    Args:
        progress: that shows them.
        lines: print a line as a task begins where no bars are drawn.
    """

    def __init__(self, progress: Progress, *, lines: bool = False) -> None:
        self._progress = progress
        self._lines = lines and not progress.console.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._latest = TaskID(0)
        self._done = 0

    def show(self, name: str, done: int, total: int) -> None:
        """Show ``done`` of ``total`` for the task ``name``."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total)
            if self._lines:
                self._progress.console.print(f"    {name} ({total})", soft_wrap=True)
        self._latest, self._done = self._tasks[name], done
        self._progress.update(self._latest, completed=done, total=total)

    def within(self, done: int) -> None:
        """Show ``done`` items of the current batch, in addition to those that ``show`` was last told."""
        self._progress.update(self._latest, completed=self._done + done)


def warn_if_few(console: Console, what: str, problems: int) -> None:
    """Warn if there are few problems, with the half-width of the 95 % interval at an accuracy of one half."""
    if problems < _FEW:
        half = 98 / math.sqrt(problems)  # 100 · 1.96 · sqrt(0.25 / n)
        console.print(f"warning: {what}: {problems} problems are few, an accuracy is known to ±{half:.0f} points")


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output."""
    say(json_text(value))
