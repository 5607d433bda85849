"""``sgsd compare``: methods side by side, in percent with 95 % intervals; for the terminal, Markdown, LaTeX, JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from rich.table import Table

from sgsd.cli.console import standard_output
from sgsd.evaluation.comparison import MEAN, Column, Comparison, compare_runs
from sgsd.evaluation.statistics import Estimate

NOTHING_SHOWN = "~"
"""Before a difference whose interval holds 0."""
_LEGEND = f"{NOTHING_SHOWN} the interval holds 0: no difference shown. Percent and points, 95 % intervals over problems"
_SEEDS = " and seeds"
_LATEX = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
}


def compare(options: argparse.Namespace) -> int:
    """Print the comparison in the form that was asked for."""
    comparison = compare_runs(options.runs, baseline=options.baseline, checkpoint=options.checkpoint)
    if options.json:
        print(json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False))
    elif options.markdown:
        print(markdown(comparison), end="")
    elif options.latex:
        print(latex(comparison), end="")
    else:
        _print(comparison)
    return 0


def markdown(comparison: Comparison) -> str:
    """Two Markdown tables, accuracies and differences, and the notes."""
    lines: list[str] = []
    for head, rows in _tables(comparison):
        header = [head, *map(_heading, comparison.columns)]
        lines += [_markdown_row(header), "|---|" + "---:|" * len(comparison.columns)]
        lines += [_markdown_row([label, *(" ".join(cell) for cell in cells)]) for label, cells in rows]
        lines.append("")
    lines += [f"- {note}" for note in (_legend(comparison), *comparison.notes)]
    return "\n".join(lines) + "\n"


def latex(comparison: Comparison) -> str:
    """A ``tabular`` for the booktabs package; the notes are comments."""
    width = len(comparison.columns)
    lines = [f"% {note}" for note in (_legend(comparison), *comparison.notes)]
    lines += [rf"\begin{{tabular}}{{l{'r' * width}}}", r"\toprule"]
    for place, (head, rows) in enumerate(_tables(comparison)):
        lines += [r"\midrule"] if place else []
        lines += [_latex_row([head, *map(_heading, comparison.columns)]), r"\midrule"]
        for label, cells in rows:
            parts = [_latex_cell(cell) for cell in cells]
            lines.append(" & ".join([_escaped(label), *parts]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _print(comparison: Comparison) -> None:
    console = standard_output()
    for head, rows in _tables(comparison):
        table = Table()
        table.add_column(head, overflow="fold")
        for column in comparison.columns:
            table.add_column(_heading(column), justify="right", no_wrap=True)
        for label, cells in rows:
            table.add_row(label, *("\n".join(cell) for cell in cells))
        console.print(table)
    for note in (_legend(comparison), *comparison.notes):
        console.print(note, style="dim")


Cell = tuple[str, ...]


def _tables(comparison: Comparison) -> list[tuple[str, list[tuple[str, list[Cell]]]]]:
    """What heads each table's first column, and its rows: a label and the cells, each a figure and its interval."""
    ks = {column.samples for column in comparison.columns if column.name != MEAN}
    metric = f"avg@{ks.pop()}" if len(ks) == 1 else "avg@k"
    means = [(row.label, [_figure(cell) for cell in row.cells]) for row in comparison.rows]
    tables = [(metric, means)]
    if comparison.baseline is not None:
        others = [row for row in comparison.rows if row.label != comparison.baseline]
        rows = [(row.label, [_figure(cell, difference=True) for cell in row.differences]) for row in others]
        tables.append((f"difference to {comparison.baseline}", rows))
    return tables


def _heading(column: Column) -> str:
    return column.name if column.name == MEAN else f"{column.name} ({column.problems})"


def _legend(comparison: Comparison) -> str:
    seeds = _SEEDS if any(len(row.seeds) > 1 for row in comparison.rows) else ""
    return f"{_LEGEND}{seeds}; in parentheses: problems."


def _figure(estimate: Estimate | None, *, difference: bool = False) -> Cell:
    if estimate is None:
        return ("–",)
    sign = "+" if difference else ""
    mean, low, high = (_number(value, sign) for value in (estimate.mean, estimate.low, estimate.high))
    mark = NOTHING_SHOWN if difference and estimate.covers_zero else ""
    return (f"{mark}{mean}", f"[{low}, {high}]")


def _number(fraction: float, sign: str) -> str:
    points = round(100 * fraction, 1) + 0.0  # no negative zero
    return f"{points:{sign if points else ''}.1f}".replace("-", "−")


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_escaped, cells)) + r" \\"


def _latex_cell(cell: Cell) -> str:
    figure, *interval = cell
    return " ".join([_escaped(figure), *(rf"{{\footnotesize {_escaped(part)}}}" for part in interval)])


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)
