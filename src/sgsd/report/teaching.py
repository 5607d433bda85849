"""Figures of the teachers: polarities, supports, and what became of the bank's items."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
from numpy.typing import NDArray

from sgsd.bank.credit import credit
from sgsd.report.figures import DataTable, Figure, Panel, ceiling, percent, short, spec, step_axis, with_interval
from sgsd.report.runs import Group, Run
from sgsd.report.series import STRETCHES, last_step, metric_bands

_EXTREMES = 10
_DEFAULT_DEAD_ZONE = 0.05  # of runs whose record does not have it
_OUTCOMES = {"success": "successes", "failure": "failures"}
_POLARITIES = (("positive", "$positive"), ("neutral", "$neutral"), ("negative", "$negative"))


def polarity_figure(groups: Sequence[Group]) -> Figure | None:
    """Shares of teachers by polarity over steps, a panel for each group that has teachers."""
    panels, rows = [], []
    for group in groups:
        shares = {name: metric_bands(group, f"sgsd/polarity/{name}_share") for name, _ in _POLARITIES}
        if not all(shares.values()):
            continue
        records = [
            {"step": band.step, "polarity": name, "share": band.mean, "order": order}
            for order, (name, _) in enumerate(_POLARITIES)
            for band in shares[name]
        ]
        chart = (
            alt.Chart(alt.InlineData(values=records))
            .mark_area(line={"strokeWidth": 0.75, "color": "$line"})
            .encode(
                x=step_axis(last_step([group])),
                y=alt.Y("share:Q", stack="zero", title="share of teachers", axis=alt.Axis(format="%")).scale(
                    domain=[0, 1]
                ),
                color=alt.Color("polarity:N", title="polarity").scale(
                    domain=[name for name, _ in _POLARITIES], range=[colour for _, colour in _POLARITIES]
                ),
                order=alt.Order("order:Q", sort="descending"),
                tooltip=[
                    alt.Tooltip("polarity:N"),
                    alt.Tooltip("step:Q", format=".0f"),
                    alt.Tooltip("share:Q", format=".1%"),
                ],
            )
        )
        first, last = ({name: bands[at].mean for name, bands in shares.items()} for at in (0, -1))
        summary = (
            f"{group.label}: at the start " + _shares_in_words(first) + "; at the end " + _shares_in_words(last) + "."
        )
        panels.append(Panel(group.label, spec(chart, 200), summary))
        by_step = {name: {band.step: band.mean for band in bands} for name, bands in shares.items()}
        rows += [
            (group.label, band.step, *(percent(by_step[name].get(band.step)) for name, _ in _POLARITIES))
            for band in shares["positive"]
        ]
    if not panels:
        return None
    return Figure(
        "polarities",
        "Polarity of the teachers",
        "Positive: the teacher supported a rollout that succeeded or suppressed one that failed. Negative: the "
        "opposite. Neutral: no clear stance, or no verdict. Mean over seeds.",
        tuple(panels),
        DataTable(("group", "step", *(name for name, _ in _POLARITIES)), tuple(rows)),
    )


def _shares_in_words(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{percent(value)} {name}" for name, value in shares.items())


def support_figure(groups: Sequence[Group]) -> Figure | None:
    """Where supports lie, by outcome, in the first and in the last third of training; ``None`` without records."""
    panels: list[Panel] = []
    rows: list[tuple[object, ...]] = []
    for group in groups:
        recorded = _with_supports(group)
        if not recorded:
            continue
        names = bin_names(recorded[0].edges)
        thirds = {outcome: support_counts(recorded, outcome, 3) for outcome in _OUTCOMES}
        highest = ceiling(max(float(_shares(counts).max()) for counts in thirds.values()))
        for third, title in ((0, "first third"), (2, "last third")):
            counts = {outcome: thirds[outcome][third] for outcome in _OUTCOMES}
            chart = _histogram(names, counts, highest)
            panels.append(Panel(f"{group.label}, {title}", spec(chart, 190), _most_often(names, counts)))
            for outcome in _OUTCOMES:
                cells = zip(names, counts[outcome].tolist(), _shares(counts[outcome]).tolist(), strict=True)
                rows += [
                    (group.label, title, outcome, name, int(count), percent(share)) for name, count, share in cells
                ]
    if not panels:
        return None
    return Figure(
        "supports",
        "Support of successes and failures",
        "Support: mean clipped gap between teacher and student, over the counted tokens of a rollout. To the right the "
        "teacher found the rollout likelier than the student did. Shares of each outcome; bins are not of one width. "
        "All seeds together.",
        tuple(panels),
        DataTable(("group", "part", "rollout", "support", "teachers", "share"), tuple(rows)),
    )


def support_map_figure(groups: Sequence[Group]) -> Figure | None:
    """Histograms of the support over steps as a heat map, by outcome; ``None`` without records."""
    panels: list[Panel] = []
    rows: list[tuple[object, ...]] = []
    for group in groups:
        recorded = _with_supports(group)
        if not recorded:
            continue
        edges = recorded[0].edges
        names = bin_names(edges)
        last = max(int(line["step"]) for run in recorded for line in run.supports)
        for outcome, many in _OUTCOMES.items():
            counts = support_counts(recorded, outcome, min(STRETCHES, last))
            if not counts.any():
                continue
            summary = f"{group.label}, {many}: {_beyond(counts.sum(0), edges, _dead_zone(recorded[0]))}"
            panels.append(Panel(f"{group.label}, {many}", spec(_heat_map(names, counts, last), 240), summary))
            thirds = _shares(support_counts(recorded, outcome, 3)).T.tolist()
            rows += [
                (group.label, many, name, *map(percent, shares)) for name, shares in zip(names, thirds, strict=True)
            ]
    if not panels:
        return None
    return Figure(
        "support-maps",
        "Support over time",
        "Each column is a histogram of the support in one stretch of training, over teachers of rollouts with that "
        "outcome. All seeds together. The table has the thirds of training.",
        tuple(panels),
        DataTable(("group", "rollouts", "support", "first third", "second third", "last third"), tuple(rows)),
    )


def _dead_zone(run: Run) -> float:
    """The run's own threshold, in nats per token."""
    threshold = run.settings.get("support_threshold")
    return threshold if isinstance(threshold, (int, float)) else _DEFAULT_DEAD_ZONE


def _beyond(counts: NDArray[np.float64], edges: Sequence[float], threshold: float) -> str:
    """Shares of ``[bins]`` above and below a dead zone; least ones where its ends lie inside bins."""
    least = "" if {threshold, -threshold} <= set(edges) else "at least "
    above = counts[np.searchsorted(edges, threshold) + 1 :].sum() / counts.sum()
    below = counts[: np.searchsorted(edges, -threshold, side="right")].sum() / counts.sum()
    return (
        f"{least}{percent(above)} of teachers had a support above {threshold:g}, {least}{percent(below)} one below "
        f"−{threshold:g}."
    )


def support_counts(runs: Sequence[Run], outcome: str, stretches: int) -> NDArray[np.float64]:
    """``[stretches, bins]``: teachers by support, of equal stretches of the steps, over all runs."""
    last = max(int(line["step"]) for run in runs for line in run.supports)
    counts = np.zeros((stretches, len(runs[0].edges) + 1))
    for run in runs:
        for line in run.supports:
            counts[(int(line["step"]) - 1) * stretches // last] += line[outcome]
    return counts


def bin_names(edges: Sequence[float]) -> tuple[str, ...]:
    """``below −2``, ``−2 to −1`` … ``above 2``."""
    texts = [f"{edge:g}".replace("-", "−") for edge in edges]
    between = (f"{a} to {b}" for a, b in itertools.pairwise(texts))
    return (f"below {texts[0]}", *between, f"above {texts[-1]}")


def _with_supports(group: Group) -> list[Run]:
    """The runs whose bins are those of the first that has any."""
    recorded = [run for run in group.runs if run.supports and run.edges]
    return [run for run in recorded if run.edges == recorded[0].edges]


def _shares(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the last axis; 0 where there is nothing."""
    totals = counts.sum(-1, keepdims=True)
    return np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)


def _histogram(names: Sequence[str], counts: Mapping[str, NDArray[np.float64]], highest: float) -> alt.Chart:
    records = [
        {"bin": name, "rollout": outcome, "share": share}
        for outcome, values in counts.items()
        for name, share in zip(names, _shares(values).tolist(), strict=True)
    ]
    return (
        alt.Chart(alt.InlineData(values=records))
        .mark_bar()
        .encode(
            x=alt.X("bin:N", sort=list(names), title="support, nats per token").axis(
                labelAngle=-90, labelOverlap=False, labelLimit=110
            ),
            xOffset=alt.XOffset("rollout:N", sort=list(counts)),
            y=alt.Y("share:Q", title="share of teachers", axis=alt.Axis(format="%")).scale(domain=[0, highest]),
            color=alt.Color("rollout:N").scale(domain=list(counts), range=["$positive", "$negative"]),
            tooltip=[
                alt.Tooltip("rollout:N"),
                alt.Tooltip("bin:N", title="support"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )


def _heat_map(names: Sequence[str], counts: NDArray[np.float64], last: int) -> alt.Chart:
    width = last / len(counts)
    records = [
        {"from": round(n * width, 2), "to": round((n + 1) * width, 2), "bin": names[b], "share": round(share, 4)}
        for n, shares in enumerate(_shares(counts).tolist())
        for b, share in enumerate(shares)
        if share
    ]
    order = list(reversed(names))
    return (
        alt.Chart(alt.InlineData(values=records))
        .mark_rect()
        .encode(
            x=alt.X("from:Q", title="optimizer step").scale(domain=[0, last], nice=False).axis(grid=False),
            x2="to:Q",
            y=alt.Y("bin:N", sort=order, title="support, nats per token").scale(domain=order, padding=0),
            color=alt.Color("share:Q", title="share")
            .scale(range=["$heat0", "$heat1", "$heat2", "$heat3"], domain=[0, 1], type="sqrt")
            .legend(format="%", gradientLength=120, values=[0, 0.1, 0.5, 1]),
            tooltip=[
                alt.Tooltip("from:Q", title="from step", format=".0f"),
                alt.Tooltip("bin:N", title="support"),
                alt.Tooltip("share:Q", format=".1%"),
            ],
        )
    )


def _most_often(names: Sequence[str], counts: Mapping[str, NDArray[np.float64]]) -> str:
    said = [
        f"support of teachers on a {outcome}: most often {names[int(values.argmax())]} "
        f"({percent(float(values.max() / values.sum()))})"
        for outcome, values in counts.items()
        if values.any()
    ]
    return "; ".join(said or ["no rollouts"]).capitalize() + "."


# ---- bank items


def item_figure(group: Group, id: str) -> Figure | None:
    """The items with the highest and with the lowest credit, each with its interval."""
    records = group.ledger.items
    credits = {id: credit(record) for id, record in records.items() if record.active and id in group.items}
    used = sorted(credits, key=lambda id: -credits[id].value)
    chosen = used if len(used) <= 2 * _EXTREMES else [*used[:_EXTREMES], *used[-_EXTREMES:]]
    if not chosen:
        return None
    names = {id: f"{short(group.items[id].title or group.items[id].text, 44)} · {id[-4:]}" for id in chosen}
    values = [
        {
            "item": names[id],
            "text": group.items[id].text,
            "credit": credits[id].value,
            "low": credits[id].low,
            "high": credits[id].high,
            "active": records[id].active,
            "half": 0.5,
        }
        for id in chosen
    ]
    chart = alt.Chart(alt.InlineData(values=values))
    base = chart.encode(
        y=alt.Y("item:N", sort=list(names.values()), title=None).axis(labelPadding=6),
        tooltip=[
            alt.Tooltip("item:N"),
            *(alt.Tooltip(f"{name}:Q", format=".2f") for name in ("credit", "low", "high")),
            alt.Tooltip("active:Q", title="uses with a stance"),
            alt.Tooltip("text:N"),
        ],
    )
    x = alt.X("low:Q", title="credit, 95 % interval").scale(domain=[0, 1])
    intervals = base.mark_rule(strokeWidth=2).encode(x, alt.X2("high:Q"), color=alt.value("$series0"))
    points = base.mark_point(filled=True, size=55).encode(alt.X("credit:Q"), color=alt.value("$series0"))
    half = chart.mark_rule(strokeDash=[4, 3], strokeWidth=1.5).encode(alt.X("half:Q"), color=alt.value("$series1"))
    best, worst = chosen[0], chosen[-1]
    summary = (
        f"{group.label}: highest credit {with_interval(credits[best])} ({names[best]}), "
        f"lowest {with_interval(credits[worst])} ({names[worst]})."
    )
    which = (
        "All items that were used with a stance"
        if len(chosen) == len(used)
        else f"The {_EXTREMES} highest and {_EXTREMES} lowest of {len(used)} items that were used with a stance"
    )
    rows = tuple(
        (names[id], records[id].active, records[id].positive, records[id].negative, with_interval(credits[id]))
        for id in chosen
    )
    return Figure(
        id,
        f"Credit of bank items: {group.label}",
        f"{which}, by credit: above 0.5, where the dashed line is, an item supports successes and suppresses failures.",
        (Panel("", spec(half + intervals + points, 22 * len(chosen)), summary),),
        DataTable(("item", "uses with a stance", "positive", "negative", "credit"), rows),
    )
