"""Figures of how the runs learn: accuracy, success, signs of trouble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt

from sgsd.report.figures import DataTable, Figure, Panel, Series, ceiling, percent, spec, step_axis, tooltip
from sgsd.report.runs import Group
from sgsd.report.series import STRETCHES, Band, accuracy_bands, last_step, metric_bands, success_metric, with_range

_FEW_POINTS = 40
_SIGNS = (
    ("entropy", "Entropy, nats per token", ".2~f"),
    ("completions/mean_length", "Completion length, tokens", "~s"),
    ("grad_norm", "Gradient norm", ".3~g"),
    ("sgsd/active_share", "Teachers with a stance", "%"),
)


def accuracy_figure(groups: Sequence[Group]) -> Figure | None:
    """Held-out accuracy over steps; ``None`` where no run logged it."""
    return _share_figure(
        groups,
        {group.label: accuracy_bands(group) for group in groups},
        id="accuracy",
        title="Held-out accuracy",
        axis="right, plain prompt",
        caption="Held-out problems answered right with the plain prompt while the run trained. Several seeds: their "
        "mean, and a band from the lowest to the highest. One seed: the band is the 95 % interval over problems.",
    )


def success_figure(groups: Sequence[Group]) -> Figure | None:
    """Success rate of the training rollouts; ``None`` where no run logged it."""
    return _share_figure(
        groups,
        {group.label: metric_bands(group, success_metric(group)) for group in groups},
        id="success",
        title="Success rate of training rollouts",
        axis="rollouts that succeeded",
        caption=f"Means of up to {STRETCHES} equal stretches of training, over seeds. The band goes from the lowest to "
        "the highest seed.",
    )


def signs_figure(groups: Sequence[Group]) -> Figure | None:
    """Metrics in which a run that goes wrong shows it first; ``None`` where no run logged them."""
    panels: list[Panel] = []
    rows: list[tuple[object, ...]] = []
    for metric, title, format in _SIGNS:
        curves = _present({group.label: metric_bands(group, metric) for group in groups})
        if not curves:
            continue
        layers = _curve_layers(groups, curves, alt.Axis(format=format), None, alt.Undefined, ".3~g", points=False)
        summary = " ".join(
            f"{label}: from {bands[0].mean:.3g} to {bands[-1].mean:.3g}." for label, bands in curves.items()
        )
        panels.append(Panel(title, spec(alt.layer(*layers), 170), f"{title}. {summary}"))
        for label, bands in curves.items():
            lowest, highest = min(band.low for band in bands), max(band.high for band in bands)
            figures = (bands[0].mean, lowest, highest, bands[-1].mean)
            rows.append((title, label, *(f"{figure:.3g}" for figure in figures)))
    if not panels:
        return None
    return Figure(
        "signs",
        "Entropy, length, gradients",
        "Entropy or length that falls to nothing or grows without end, and gradients that jump, come before a "
        "collapse. Means and ranges over seeds.",
        tuple(panels),
        DataTable(("metric", "group", "start", "lowest", "highest", "end"), tuple(rows)),
    )


def _share_figure(
    groups: Sequence[Group], all_curves: Mapping[str, list[Band]], *, id: str, title: str, axis: str, caption: str
) -> Figure | None:
    curves = _present(all_curves)
    if not curves:
        return None
    highest = ceiling(max(band.high for bands in curves.values() for band in bands))
    few = max(map(len, curves.values())) <= _FEW_POINTS
    scale = alt.Scale(domain=[0, highest])
    layers = _curve_layers(groups, curves, alt.Axis(format="%"), axis, scale, ".1%", points=few)
    by_step = {label: {band.step: band for band in bands} for label, bands in curves.items()}
    steps = sorted({step for bands in by_step.values() for step in bands})
    rows = tuple((f"{step:g}", *(with_range(by_step[label].get(step)) for label in curves)) for step in steps)
    panel = Panel("", spec(alt.layer(*layers), 280), f"{title}. {_in_words(curves)}")
    return Figure(id, title, caption, (panel,), DataTable(("step", *curves), rows))


def _curve_layers(
    groups: Sequence[Group],
    curves: Mapping[str, list[Band]],
    axis: alt.Axis,
    title: str | None,
    scale: alt.typing.Optional[alt.Scale],
    format: str,
    *,
    points: bool,
) -> list[alt.Chart]:
    """Band, line and, if there are to be any, points of every group."""
    series = Series(tuple(group.label for group in groups))
    records = [
        {"group": label, "step": band.step, "mean": band.mean, "low": band.low, "high": band.high}
        for label, bands in curves.items()
        for band in bands
    ]
    base = alt.Chart(alt.InlineData(values=records)).encode(x=step_axis(last_step(groups)))
    shown = tooltip("mean", "low", "high", format=format)
    layers = [
        base.mark_area(opacity=0.16).encode(
            y=alt.Y("low:Q", title=title, axis=axis, scale=scale), y2="high:Q", color=series.colour()
        ),
        base.mark_line(strokeWidth=2.25).encode(
            y="mean:Q", color=series.colour(), strokeDash=series.dash, tooltip=shown
        ),
        base.mark_point(filled=True, size=42, opacity=1).encode(y="mean:Q", color=series.colour(), tooltip=shown),
    ]
    return layers if points else layers[:2]


def _present(curves: Mapping[str, list[Band]]) -> dict[str, list[Band]]:
    return {label: bands for label, bands in curves.items() if bands}


def _in_words(curves: Mapping[str, list[Band]]) -> str:
    sentences: list[str] = []
    for label, bands in curves.items():
        first, last, best = bands[0], bands[-1], max(bands, key=lambda band: band.mean)
        sentences.append(
            f"{label}: {percent(first.mean)} at step {first.step:.0f}, {percent(last.mean)} at step {last.step:.0f}, "
            f"highest {percent(best.mean)} at step {best.step:.0f}."
        )
    return " ".join(sentences)
