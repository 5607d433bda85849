"""The comparison between methods, as a figure: accuracies with intervals, and the differences to the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import altair as alt

from sgsd.evaluation.comparison import Comparison
from sgsd.evaluation.statistics import Estimate
from sgsd.report.figures import DataTable, Figure, Panel, Series, percent, signed_percent, spec

_ROW_HEIGHT = 46


def comparison_figure(comparison: Comparison, labels: Sequence[str]) -> Figure:
    """Accuracy of every method on every evaluation, and what it differs from the baseline.

    Args:
        comparison: of ``evaluation.comparison.compare_runs``.
        labels: of the groups of the report, which have their colours; methods that are none of them come after.
    """
    names = [row.label for row in comparison.rows]
    known = [*labels, *(name for name in names if name not in labels)]
    panels: list[Panel] = []
    for position, column in enumerate(comparison.columns):
        cells = {row.label: row.cells[position] for row in comparison.rows}
        differences = {row.label: row.differences[position] for row in comparison.rows}
        panels.append(_panel(f"{column.name}, {column.problems} problems", "accuracy", cells, known, percent))
        if any(difference is not None for difference in differences.values()):
            title = f"{column.name}, difference to {comparison.baseline}"
            panels.append(_panel(title, "difference", differences, known, signed_percent))
    heads = [
        text
        for column in comparison.columns
        for text in (f"{column.name}, {column.problems} problems", f"{column.name}, difference")
    ]
    rows = tuple(
        (
            row.label,
            len(row.seeds),
            *(
                text
                for cell, difference in zip(row.cells, row.differences, strict=True)
                for text in (_with_interval(cell, percent), _with_interval(difference, signed_percent))
            ),
        )
        for row in comparison.rows
    )
    return Figure(
        "methods",
        "Accuracy by method",
        f"Mean and 95 % interval over problems and seeds. Differences are paired by problem; baseline: "
        f"{comparison.baseline or 'none'}. An interval that holds 0 shows no difference.",
        tuple(panels),
        DataTable(("method", "seeds", *heads), rows),
    )


def _panel(
    title: str,
    axis: str,
    estimates: dict[str, Estimate | None],
    known: Sequence[str],
    written: Callable[[float | None], str],
) -> Panel:
    shown = {label: estimate for label, estimate in estimates.items() if estimate is not None}
    records = [
        {"group": label, "mean": estimate.mean, "low": estimate.low, "high": estimate.high}
        for label, estimate in shown.items()
    ]
    series = Series(tuple(known))
    base = alt.Chart(alt.InlineData(values=records)).encode(
        y=alt.Y("group:N", sort=list(shown), axis=None),
        tooltip=[
            alt.Tooltip("group:N"),
            *(alt.Tooltip(f"{name}:Q", format="+.1%") for name in ("mean", "low", "high")),
        ],
    )
    shares = alt.X("low:Q", title=axis, scale=alt.Scale(zero=True), axis=alt.Axis(format="%", tickCount=5))
    layers = [
        base.mark_bar(height=3).encode(x=shares, x2="high:Q", color=series.colour(legend=False)),
        base.mark_point(filled=True, size=90, opacity=1).encode(x="mean:Q", color=series.colour(legend=False)),
        # Names above the intervals: beside them, long ones would leave no room on a phone.
        base.mark_text(
            align="left", baseline="bottom", dy=-7, fontSize=12.5, color="$text", limit=alt.expr("width - 8")
        ).encode(x=alt.value(4), text="group:N"),
    ]
    said = " ".join(f"{label}: {_with_interval(estimate, written)}." for label, estimate in shown.items())
    height = _ROW_HEIGHT * max(len(shown), 1)
    return Panel(title, spec(alt.layer(*layers), height), f"{title}. {said}")


def _with_interval(estimate: Estimate | None, written: Callable[[float | None], str]) -> str:
    if estimate is None:
        return "–"
    low, high = (f"{100 * side:.1f}".replace("-", "−") for side in (estimate.low, estimate.high))
    return f"{written(estimate.mean)} ({low} to {high})"
