"""Everything on one HTML page that needs no network, and is harmless whatever the runs hold (see ``html``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from sgsd import __version__, runfolder
from sgsd.bank import Mistake, Skill
from sgsd.errors import ConfigError, DataError
from sgsd.evaluation.comparison import Comparison, compare_runs
from sgsd.report import curves, html, tables
from sgsd.report.rollouts import LEVELS, traced_groups
from sgsd.report.runs import Run, grouped, load_runs


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Read run folders and write the page, at once: readers see the old one or the new one.

    Args:
        folders: of runs, of several methods and seeds; also evaluations without a run, as ``compare_runs`` takes
            them, which are in the comparison alone.
        output: file to write; missing folders are made.

    Returns:
        The file written.

    Raises:
        ConfigError: a folder is no run, another file than a report lies at ``output``, or the page is larger than
            ``html.MOST_BYTES`` or cannot be written.
        DataError: a run's record cannot be read. Whatever else cannot be is left out, and named on the page.
    """
    if os.path.lexists(output) and not html.is_own(output):
        raise ConfigError("the target is no report of sgsd's", got=str(output), remedy="choose another --output")
    # A folder that is not there is refused as a run.
    runs = load_runs([one for one in folders if (one / runfolder.RUN).is_file() or not one.is_dir()])
    try:
        comparison, why_not = compare_runs(folders), ""
    except (ConfigError, DataError) as error:
        comparison, why_not = None, f"No comparison of evaluations: {error}."
    return html.write(output, _page(runs, comparison, why_not), "the report", "name fewer runs")


def _page(runs: Sequence[Run], comparison: Comparison | None, why_not: str) -> str:
    groups = grouped(runs)
    traced = traced_groups(groups)
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
        levels=LEVELS,
        apart=apart,
        shared=shared,
        traces={"levels": LEVELS, "rollouts": [rollout for group in traced for rollout in group["rollouts"]]},
        style=style,
        script=script,
        hashes={"style": html.digest(style), "script": html.digest(script)},
    )
