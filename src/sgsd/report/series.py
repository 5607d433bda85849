"""Logged metrics → bands over seeds, in at most as many points as an eye can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgsd.report.figures import percent
from sgsd.report.runs import Group

STRETCHES = 60
_MOST_POINTS = 300


@dataclass(frozen=True)
class Band:
    """Mean over seeds at one step, and how far they lie apart."""

    step: float
    mean: float
    low: float
    high: float


def with_range(band: Band | None) -> str:
    """``40.2 % (34.2 to 46.3)``; a dash for ``None``."""
    if band is None:
        return "–"
    spread = f" ({100 * band.low:.1f} to {100 * band.high:.1f})" if band.high > band.low else ""
    return percent(band.mean) + spread


def last_step(groups: Sequence[Group]) -> int:
    """Of all runs."""
    return max((run.last_step for group in groups for run in group.runs), default=0)


def success_metric(group: Group) -> str:
    """The name of the success rate in a group's log: older runs have it under ``sgsd/``."""
    return "success_rate" if any(run.curve("success_rate") for run in group.runs) else "sgsd/success_rate"


def accuracy_bands(group: Group) -> list[Band]:
    """Per evaluated step: over seeds the mean, lowest and highest; of one seed its own 95 % interval."""
    if len(group.runs) > 1:
        return _thinned(bands_over_seeds([run.curve("eval_accuracy") for run in group.runs]))
    low, high = (dict(group.runs[0].curve(f"eval_accuracy_{side}")) for side in ("low", "high"))
    points = group.runs[0].curve("eval_accuracy")
    return _thinned([Band(step, value, low.get(step, value), high.get(step, value)) for step, value in points])


def metric_bands(group: Group, metric: str) -> list[Band]:
    """A training metric in stretches of equal length, mean and range over seeds."""
    curves = [run.curve(metric) for run in group.runs]
    last = last_step([group])
    return bands_over_seeds([in_stretches(curve, last) for curve in curves if curve])


def in_stretches(
    curve: Sequence[tuple[float, float]], last: float, stretches: int = STRETCHES
) -> list[tuple[float, float]]:
    """(mid step, mean) of at most ``stretches`` stretches of equal length from 0 to ``last``."""
    width = max(1.0, last / stretches)
    members: dict[int, list[float]] = {}
    for step, value in curve:
        members.setdefault(min(int((step - 1) // width), stretches - 1), []).append(value)
    return [((n + 0.5) * width + 0.5, float(np.mean(values))) for n, values in sorted(members.items())]


def bands_over_seeds(curves: Sequence[Sequence[tuple[float, float]]]) -> list[Band]:
    """Mean, lowest and highest over the curves, at the steps that every curve has."""
    named = [dict(curve) for curve in curves if curve]
    if not named:
        return []
    shared = sorted(set.intersection(*(set(curve) for curve in named)))
    columns = [[curve[step] for curve in named] for step in shared]
    return [
        Band(step, float(np.mean(values)), min(values), max(values))
        for step, values in zip(shared, columns, strict=True)
    ]


def _thinned(bands: list[Band]) -> list[Band]:
    if len(bands) <= _MOST_POINTS:
        return bands
    return [bands[n] for n in np.linspace(0, len(bands) - 1, _MOST_POINTS).round().astype(int)]
