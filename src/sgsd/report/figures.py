"""Groups of runs → figures: Vega-Lite specifications by Altair, each with a text alternative and a table.

Colours are names such as ``$series0``: the page puts its light or dark theme's colours in their place. A group is told
apart by its dash or its name too, never by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from sgsd.bank.credit import Credit

_COLOURS = 8
_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [4, 2, 1, 2], [1, 3], [10, 2, 2, 2, 2, 2])


@dataclass(frozen=True)
class Panel:
    """One chart of a figure.

    Attributes:
        title: shown above it; may be empty.
        spec: Vega-Lite, with colour names in place of colours.
        summary: its text alternative, whole sentences with the figures that matter.
    """

    title: str
    spec: dict[str, Any]
    summary: str


@dataclass(frozen=True)
class DataTable:
    """What a figure shows, as a table: ``None`` is a missing value."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        id: of its element.
        title: a few words.
        caption: what is shown and how it was made; no findings.
        panels: one or more charts.
        table: the same values.
    """

    id: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    table: DataTable


# ---- parts of charts


def spec(chart: alt.Chart | alt.LayerChart, height: int) -> dict[str, Any]:
    """The chart as Vega-Lite, as wide as its place on the page and ``height`` pixels high; colours come with it."""
    with alt.data_transformers.enable(consolidate_datasets=False):  # data stay where the page's script expects them
        made = chart.properties(width="container", height=height).to_dict()
    made.pop("config", None)  # the page's theme
    made["autosize"] = {"type": "fit-x", "contains": "padding"}
    return made


def step_axis(last: float) -> alt.X:
    """Optimizer steps from 0 to ``last``, from the field ``step``."""
    scale = alt.Scale(domain=[0, last], nice=False)
    return alt.X("step:Q", title="optimizer step", scale=scale, axis=alt.Axis(tickCount=6))


@dataclass(frozen=True)
class Series:
    """What a group looks like, in all figures: a colour and a dash."""

    labels: tuple[str, ...]

    def colour(self, *, legend: bool = True) -> alt.Color:
        """Of lines, bands, points and bars. All layers of a chart must agree on ``legend``; one group needs none."""
        scale = self._scale([f"$series{n}" for n in range(_COLOURS)])
        if not legend or len(self.labels) == 1:
            return alt.Color("group:N", scale=scale, legend=None)
        return alt.Color("group:N", title=None, scale=scale, legend=alt.Legend(symbolType="stroke", symbolOpacity=1))

    @property
    def dash(self) -> alt.StrokeDash:
        """Of lines; in the legend too."""
        encoded = alt.StrokeDash("group:N", title=None, scale=self._scale(_DASHES))
        return encoded if len(self.labels) > 1 else encoded.legend(None)

    def _scale(self, choices: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=list(self.labels), range=[choices[n % len(choices)] for n in range(len(self.labels))])


def tooltip(*shares: str, format: str = ".1%") -> list[alt.Tooltip]:
    """Group, step, and these fields."""
    fields = [alt.Tooltip(f"{share}:Q", format=format) for share in shares]
    return [alt.Tooltip("group:N"), alt.Tooltip("step:Q", format=".0f"), *fields]


def ceiling(share: float) -> float:
    """The next tenth, at least one and at most ten of them: axes that do not jump between reports."""
    return min(1.0, max(0.1, float(np.ceil(share * 10 - 1e-9) / 10)))


# ---- numbers and words


def percent(share: float | None) -> str:
    """``12.3 %``; a dash for ``None``."""
    return "–" if share is None else f"{100 * share:.1f} %"


def signed_percent(share: float | None) -> str:
    """``+12.3 %``, with a minus sign that lines up; a dash for ``None``."""
    return "–" if share is None else f"{100 * share:+.1f} %".replace("-", "−")


def with_interval(credit: Credit | None) -> str:
    """``0.71 (0.60 to 0.82)``; a dash for ``None``."""
    return "–" if credit is None else f"{credit.value:.2f} ({credit.low:.2f} to {credit.high:.2f})"


def short(text: str, characters: int) -> str:
    """The first line's beginning."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"
