"""Line charts of logged metrics: mean and range over seeds, as SVG by ziaplot, with a text and a table of the values.

The SVG contains no text of a run. Its colours are CSS variables of the page; lines also differ in their dashes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import ziaplot
from markupsafe import Markup

from sgsd.report.runs import Group
from sgsd.report.tables import Table, number, percent

_BINS = 60
_MARKED_POINTS = 15
_DASHES = ("1 0", "6 3", "2 2", "8 3 2 3", "12 3", "4 2 1 2", "1 3", "10 2 2 2 2 2")
_POLARITIES = (("positive", "--positive", "1 0"), ("neutral", "--soft", "2 2"), ("negative", "--negative", "6 3"))
_SIGNS = (
    ("entropy", "Entropy, nats per token"),
    ("completions/mean_length", "Completion length, tokens"),
    ("grad_norm", "Gradient norm"),
    ("sgsd/active_share", "Share of teachers with a stance"),
)
_STYLE = """
    Canvas { color: none; }
    Graph { color: none; edge_color: var(--soft); edge_width: 1; }
    Graph.GridX { color: var(--line); stroke: -; }
    Graph.GridY { color: var(--line); stroke: -; }
    Graph.TickX { color: var(--soft); font_size: 12; height: 5; stroke_width: 1; pad: 0; }
    Graph.TickY { color: var(--soft); font_size: 12; height: 5; stroke_width: 1; pad: 0; }
    Graph.XName { color: var(--soft); font_size: 12; }
    PolyLine { stroke_width: 2.25; radius: 3.5; edge_width: 0; }
"""
ziaplot.config.text = "text"  # otherwise ziamath, if installed, draws texts as formulas
ziaplot.config.precision = 1


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest value over seeds at one step."""

    step: float
    mean: float
    low: float
    high: float

    def written(self, value: Callable[[float | None], str]) -> str:
        """``40.2 % (34.2 % to 46.3 %)``; without brackets if the values are equal."""
        spread = f" ({value(self.low)} to {value(self.high)})" if self.high > self.low else ""
        return value(self.mean) + spread


@dataclass(frozen=True)
class Line:
    """One line of a chart, with its label in the legend."""

    label: str
    colour: str
    dash: str
    bands: Sequence[Band] = field(repr=False)


@dataclass(frozen=True)
class Chart:
    """A drawing, its text alternative, and a table of its values."""

    title: str
    svg: Markup
    summary: str
    table: Table


@dataclass(frozen=True)
class Figure:
    """Charts under one legend."""

    legend: Sequence[Line]
    charts: Sequence[Chart]


def outcome_table(groups: Sequence[Group]) -> Table:
    """First and last accuracy and success rate of each group, as far as all its seeds logged them."""

    def from_to(bands: Sequence[Band]) -> str | None:
        return f"{percent(bands[0].mean)} → {bands[-1].written(percent)}" if bands else None

    def steps(group: Group) -> int | str:
        ends = sorted({run.last_step for run in group.runs})
        return ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"

    rows = [
        (group.label, len(group.runs), steps(group), *map(from_to, (accuracy_bands(group), success_bands(group))))
        for group in groups
    ]
    return Table(("method", "seeds", "steps", "accuracy", "success rate"), tuple(rows))


# ---- figures; ``None`` if no run logged the metric


def learning_figure(groups: Sequence[Group]) -> Figure | None:
    """Held-out accuracy, and the success rate of training rollouts."""
    bands = {"Held-out accuracy": accuracy_bands, "Success rate of training rollouts": success_bands}
    return _figure("learning", {title: _lines(groups, of) for title, of in bands.items()}, shares=True)


def signs_figure(groups: Sequence[Group]) -> Figure | None:
    """Metrics that first show a run going wrong."""
    lines = {title: _lines(groups, partial(metric_bands, metric=metric)) for metric, title in _SIGNS}
    return _figure("signs", lines, shares=False)


def polarity_figure(groups: Sequence[Group]) -> Figure | None:
    """Shares of teachers by polarity, a chart for each group that has teachers."""
    lines = {
        group.label: [
            Line(name, f"var({colour})", dash, metric_bands(group, f"sgsd/polarity/{name}_share", share=True))
            for name, colour, dash in _POLARITIES
        ]
        for group in groups
    }
    return _figure("polarities", lines, shares=True)


def left_out(groups: Sequence[Group]) -> list[str]:
    """Notes on logged metrics that have no value to draw."""
    metrics = {"eval_accuracy": True, "success_rate": True, **dict.fromkeys((metric for metric, _ in _SIGNS), False)}
    metrics |= {f"sgsd/polarity/{name}_share": True for name, _, _ in _POLARITIES}
    return [
        f"{run.name}: Left out: {metric}, of which no logged value is {'from 0 to 1' if share else 'a finite number'}."
        for group in groups
        for run in group.runs
        for metric, share in metrics.items()
        if any(entry.get(metric) is not None for entry in run.history) and not run.curve(metric, share=share)
    ]


def _lines(groups: Sequence[Group], bands: Callable[[Group], Sequence[Band]]) -> list[Line]:
    """A line per group. It has the same colour and dash in all charts; they differ for up to 64 groups."""
    return [
        Line(group.label, f"var(--series{n % 8})", _DASHES[(n + n // 8) % 8], bands(group))
        for n, group in enumerate(groups)
    ]


def _figure(id: str, lines: Mapping[str, Sequence[Line]], *, shares: bool) -> Figure | None:
    """A chart for each title that has values. All charts have the same range of steps; shares have the same y-axis."""
    drawn = {title: kept for title, found in lines.items() if (kept := [line for line in found if line.bands])}
    points = [band for found in drawn.values() for line in found for band in line.bands]
    if not points:
        return None
    last, highest = max(band.step for band in points), max(band.high for band in points)
    charts = [
        _chart(f"{id}-{n}", title, found, last, highest if shares else None)
        for n, (title, found) in enumerate(drawn.items())
    ]
    legend = {line.label: line for found in drawn.values() for line in found}
    return Figure(list(legend.values()), charts)


# ---- charts


def _chart(id: str, title: str, lines: Sequence[Line], last: float, share: float | None) -> Chart:
    """A chart of steps up to ``last``. ``share`` is the highest value if the values are shares, else ``None``."""
    written = number if share is None else percent
    points = [band for line in lines for band in line.bands]
    lowest, highest = min(band.low for band in points), max(band.high for band in points)
    graph = ziaplot.Graph().css(_STYLE).size(440, 250).axesnames("optimizer step")
    steps = _whole_ticks(last)
    graph.xticks(steps, [f"{step:,}" for step in steps]).xrange(0, max(1.0, last))
    if share is not None:  # from 0 to a tick, so that reports have similar axes
        apart = 10 if share <= 0.5 else 20
        ticks = range(0, max(2, int(np.ceil(100 * share / apart - 1e-9)) + 1) * apart, apart)
        graph.yticks([tick / 100 for tick in ticks], [f"{tick} %" for tick in ticks])
        graph.yrange(0, ticks[-1] / 100)
    elif highest - lowest <= 1e-6 * max(abs(highest), 1e-6):  # a constant line is drawn in the middle
        room = max(abs(highest), 1.0)
        graph.yrange(lowest - room, highest + room)
    for line in lines:
        steps, means, lows, highs = np.array([[b.step, b.mean, b.low, b.high] for b in line.bands]).T.tolist()
        if lows != highs:
            graph.add(ziaplot.LineFill(steps, highs, lows).fill(f"{line.colour} 16%").color("none"))
        drawn = ziaplot.PolyLine(steps, means).color(line.colour).stroke(line.dash)
        graph.add(drawn.marker("round") if len(steps) <= _MARKED_POINTS else drawn)
    # Ids of clip paths and markers are unique in a drawing; they must be unique on the page.
    svg = re.sub(r'(\bid="|url\(#)', rf"\g<1>{id}-", graph.tosvg())
    by_step = [{f"{band.step:g}": band.written(written) for band in line.bands} for line in lines]
    steps = sorted({step for found in by_step for step in found}, key=float)
    table = Table(
        ("step", *(line.label for line in lines)),
        tuple((step, *(found.get(step) for found in by_step)) for step in steps),
    )
    return Chart(title, Markup(svg), f"{title}. {' '.join(_in_words(line, written) for line in lines)}", table)


def _whole_ticks(last: float) -> list[int]:
    """At most seven ticks, at whole steps."""
    apart = next(n * 10**power for power in range(20) for n in (1, 2, 5) if last <= 6 * n * 10**power)
    return list(range(0, int(last) + 1, apart))


def _in_words(line: Line, written: Callable[[float | None], str]) -> str:
    first, last = line.bands[0], line.bands[-1]
    lowest, highest = (written(choose(band.mean for band in line.bands)) for choose in (min, max))
    return (
        f"{line.label}: {written(first.mean)} at step {first.step:.0f}, {written(last.mean)} at step {last.step:.0f}, "
        f"lowest {lowest}, highest {highest}."
    )


# ---- bands


def accuracy_bands(group: Group) -> list[Band]:
    """Accuracy at each evaluated step, with the range over seeds; for one seed, with its 95 % interval."""
    bands = bands_over_seeds([run.curve("eval_accuracy", share=True) for run in group.runs])
    if len(group.runs) == 1:
        low, high = (dict(group.runs[0].curve(f"eval_accuracy_{side}", share=True)) for side in ("low", "high"))
        bands = [Band(b.step, b.mean, low.get(b.step, b.mean), high.get(b.step, b.mean)) for b in bands]
    return bands


def success_bands(group: Group) -> list[Band]:
    """The success rate of training rollouts."""
    return metric_bands(group, "success_rate", share=True)


def metric_bands(group: Group, metric: str, *, share: bool = False) -> list[Band]:
    """A training metric averaged in bins of steps, with the range over seeds."""
    return bands_over_seeds([binned(run.curve(metric, share=share), group.last_step) for run in group.runs])


def binned(curve: Sequence[tuple[float, float]], last: float, bins: int = _BINS) -> list[tuple[float, float]]:
    """(mid step, mean) of at most ``bins`` bins of equal width from 0 to ``last``."""
    width = max(1.0, last / bins)
    members: dict[int, list[float]] = {}
    for step, value in curve:
        members.setdefault(min(int((step - 1) // width), bins - 1), []).append(value)
    return [((n + 0.5) * width + 0.5, float(np.mean(values))) for n, values in sorted(members.items())]


def bands_over_seeds(curves: Sequence[Sequence[tuple[float, float]]]) -> list[Band]:
    """Mean, lowest and highest value over the curves, at the steps of all curves. Empty curves are left out."""
    named = [dict(curve) for curve in curves if curve]
    shared = sorted(set.intersection(*map(set, named))) if named else []
    columns = [[curve[step] for curve in named] for step in shared]
    return [Band(step, float(np.mean(c)), min(c), max(c)) for step, c in zip(shared, columns, strict=True)]
