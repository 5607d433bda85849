"""``sgsd compare``: accuracies of methods with 95 % intervals, for the terminal or as Markdown, LaTeX or JSON."""

from __future__ import annotations

import argparse

import pandas as pd

from sgsd.cli.console import print_json, standard_output, table
from sgsd.display import say
from sgsd.evaluation.comparison import MEAN, Comparison, Row, compare_runs
from sgsd.evaluation.statistics import Estimate

NOTHING_SHOWN = "~"
"""Stands before a difference whose interval contains 0."""
_LEGEND = f"{NOTHING_SHOWN} the interval holds 0: no difference shown. Percent and points, 95 % intervals over problems"


def run(options: argparse.Namespace) -> int:
    """Print the comparison in the requested format."""
    comparison = compare_runs(options.runs, baseline=options.baseline, checkpoint=options.checkpoint)
    if options.json:
        print_json(comparison.to_dict())
    elif options.markdown:
        say(markdown(comparison))
    elif options.latex:
        say(latex(comparison))
    else:
        console = standard_output()
        for frame in frames(comparison):
            shown = table("", frame.columns.name, *frame.columns, right=list(frame.columns))
            for column in shown.columns[1:]:
                column.no_wrap = True
            for label, *cells in frame.itertuples():
                shown.add_row(label, *(cell.replace(" [", "\n[") for cell in cells))
            console.print(shown)
        for note in _notes(comparison):
            console.print(note, style="dim")
    return 0


def frames(comparison: Comparison) -> list[pd.DataFrame]:
    """The table of accuracies and, with a baseline, that of differences.

    There is a row per method and a column per evaluation. The name of the column axis says what the cells are.
    """
    ks = {column.samples for column in comparison.columns if column.name != MEAN}
    heads = [c.name if c.name == MEAN else f"{c.name} ({c.problems})" for c in comparison.columns]

    def frame(name: str, rows: dict[str, list[str]]) -> pd.DataFrame:
        return pd.DataFrame.from_dict(rows, orient="index", columns=heads).rename_axis(columns=name)

    def differing(row: Row) -> list[str]:
        return [_figure(difference, sign="+") for difference in row.differences]

    means = {row.label: [_figure(cell) for cell in row.cells] for row in comparison.rows}
    made = [frame(f"avg@{ks.pop()}" if len(ks) == 1 else "avg@k", means)]
    if comparison.baseline is not None:
        others = {row.label: differing(row) for row in comparison.rows if row.label != comparison.baseline}
        made.append(frame(f"difference to {comparison.baseline}", others))
    return made


def markdown(comparison: Comparison) -> str:
    """The tables in Markdown, and the notes."""

    def escaped(text: str) -> str:
        return text.replace("|", r"\|")

    made = [
        frame.reset_index(names=frame.columns.name)
        .map(escaped)
        .rename(columns=escaped)
        .to_markdown(index=False, colalign=("left", *["right"] * len(frame.columns)), disable_numparse=True)
        for frame in frames(comparison)
    ]
    return "\n\n".join([*made, "\n".join(f"- {note}" for note in _notes(comparison))])


def latex(comparison: Comparison) -> str:
    """The tables as ``tabular`` for the booktabs package. The notes are comments."""
    lines = [f"% {note}" for note in _notes(comparison)]
    for frame in frames(comparison):
        style = frame.style.format(_latex_cell)
        for axis in ("index", "columns"):
            style = style.format_index(escape="latex", axis=axis)
        style = style.format_index_names(escape="latex", axis="columns")
        lines.append(style.to_latex(hrules=True, column_format="l" + "r" * len(frame.columns)))
    return "\n".join(lines).rstrip()


def _notes(comparison: Comparison) -> list[str]:
    seeds = " and seeds" if any(len(row.seeds) > 1 for row in comparison.rows) else ""
    return [f"{_LEGEND}{seeds}; in parentheses: problems.", *comparison.notes]


def _figure(estimate: Estimate | None, *, sign: str = "") -> str:
    """``mean [low, high]`` in percent."""
    if estimate is None:
        return "–"
    points = [round(100 * value, 1) + 0.0 for value in (estimate.mean, estimate.low, estimate.high)]  # no negative zero
    mean, low, high = (f"{value:{sign if value else ''}.1f}".replace("-", "−") for value in points)
    return f"{NOTHING_SHOWN if sign and estimate.covers_zero else ''}{mean} [{low}, {high}]"


def _latex_cell(cell: str) -> str:
    mean, bracket, interval = cell.replace("−", "-").replace(NOTHING_SHOWN, r"{\sim}").partition(" [")
    return rf"${mean}$ {{\footnotesize $[{interval}$}}" if bracket else "--"
