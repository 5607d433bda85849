"""The report: one HTML page about runs (see ``html`` for what all pages have in common)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sgsd import __version__, runfolder
from sgsd.bank import Item, Mistake, Skill
from sgsd.display import visible
from sgsd.errors import ConfigError, DataError
from sgsd.evaluation.comparison import Comparison, compare_runs
from sgsd.report import curves, html, tables
from sgsd.report.runs import Group, Run, grouped, load_runs
from sgsd.report.tables import short, signed

# Upper ends, in nats, of the gaps of one colour; the last colour has none.
_LEVELS = (0.05, 0.2, 1.0)
_STEPS_SHOWN = 4
_MOST_CHARACTERS = 2_500_000  # of the JSON of all rollouts
_STANCES = {1: "supports", -1: "suppresses", 0: "no stance"}
_POLARITIES = {1: "positive", -1: "negative", 0: "neutral"}


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Read run folders and write the page atomically.

    Args:
        folders: run folders of several methods and seeds, or output folders of ``sgsd internalize``; and folders of
            evaluations without a run, which appear only in the comparison (see ``compare_runs``).
        output: file to write; missing folders are made.

    Returns:
        ``output``.

    Raises:
        ConfigError: a folder is not a run, ``output`` exists and is not a report, or the page is larger than
            ``html.MOST_BYTES`` or cannot be written.
        DataError: the record of a run cannot be read. Other unreadable files are left out, and named on the page.
    """
    if os.path.lexists(output) and not html.is_own(output):
        raise ConfigError("the target exists and is not a report", got=str(output), remedy="choose another --output")
    # load_runs raises an error for a folder that does not exist.
    every = [run for folder in folders for run in runfolder.runs_of(folder)]
    runs = load_runs([one for one in every if (one / runfolder.RUN).is_file() or not one.is_dir()])
    try:
        comparison, why_not = compare_runs(folders), ""
    except (ConfigError, DataError) as error:
        comparison, why_not = None, f"No comparison of evaluations: {error}."
    return html.write(output, _page(runs, comparison, why_not), "the report", "name fewer runs")


def _page(runs: Sequence[Run], comparison: Comparison | None, why_not: str) -> str:
    groups = grouped(runs)
    traced = _traced(groups)
    apart, shared = tables.setting_tables(runs)
    environment = html.environment()
    environment.tests["item"] = lambda cell: isinstance(cell, (Skill, Mistake))
    environment.tests["interval"] = lambda cell: isinstance(cell, tables.Interval)
    style, script = html.own_text(environment, "page.css"), html.own_text(environment, "page.js")
    return environment.get_template("page.html").render(
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=runs,
        groups=groups,
        methods=dict.fromkeys(run.method for run in runs),
        outcomes=curves.outcome_table(groups),
        comparison=comparison,
        compared=None if comparison is None else tables.comparison_table(comparison),
        notes=[
            *([why_not] if comparison is None else comparison.notes),
            *(f"{run.name}: {note}" for run in runs for note in run.notes),
            *curves.left_out(groups),
        ],
        learning=curves.learning_figure(groups),
        signs=curves.signs_figure(groups),
        polarities=curves.polarity_figure(groups),
        banks=[
            (group.label, items, tables.order_note(items))
            for group in groups
            if group.ledger.items
            for items in [tables.item_table(group)]
        ],
        traced=traced,
        levels=_LEVELS,
        apart=apart,
        shared=shared,
        traces={"levels": _LEVELS, "rollouts": [rollout for group in traced for rollout in group["rollouts"]]},
        style=style,
        script=script,
        hashes={"style": html.digest(style), "script": html.digest(script)},
    )


def _traced(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Rollouts of the first traced run of each group, from steps spread over training, up to the limit of the page."""
    room = _MOST_CHARACTERS
    found: list[dict[str, Any]] = []
    for position, group in enumerate(groups):
        run = next((run for run in group.runs if run.traces), None)
        if run is None:
            continue
        steps = sorted({trace["step"] for trace in run.traces})
        spread = {steps[n] for n in np.linspace(0, len(steps) - 1, _STEPS_SHOWN).round().astype(int)}
        shown: list[Mapping[str, Any]] = []
        for trace in run.traces:
            if trace["step"] in spread:
                teachers = [_teacher(teacher, group.items) for teacher in trace["teachers"]]
                about = {"id": f"rollout-{position}-{len(shown)}", "begins": short(trace["problem"], 60)}
                rollout = {**trace, **about, "tokens": [*map(visible, trace["tokens"])], "teachers": teachers}
                size = len(json.dumps(rollout))
                if size <= room:
                    room -= size
                    shown.append(rollout)
        if shown:
            left_out = len(run.traces) - len(shown)
            found.append({"label": group.label, "run": run.name, "rollouts": shown, "left_out": left_out})
    return found


def _teacher(teacher: Mapping[str, Any], items: Mapping[str, Item]) -> dict[str, Any]:
    names, words = {}, {}
    for part in ("skill", "mistake"):
        item = items.get(teacher[part])
        names[part] = teacher[part] if item is None else short(item.title or item.text, 60)
        texts = [teacher[part]] if item is None else [text for text in (item.title, item.text) if text]
        words[part] = visible(". ".join(text.rstrip(".") for text in texts))
    stance, support = _STANCES[teacher["stance"]], signed(teacher["support"])
    return {
        "line": f"{names['skill'] or names['mistake']} ({stance}, {support})",
        **words,
        "support": f"{support} nats per token: {stance}, polarity {_POLARITIES[teacher['polarity']]}, "
        f"weight {teacher['weight']:.2f}",
        "gaps": teacher["gaps"],
    }
