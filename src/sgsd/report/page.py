"""Everything on one HTML page that needs no network.

The page is safe to open whatever the runs hold: Jinja escapes every text, JSON is embedded with ``<``, ``>`` and ``&``
escaped, the script writes text and never HTML, and a content security policy admits only the page's own style and
script, by their hash, and no connection anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sgsd import __version__, runfolder
from sgsd.bank import Mistake, Skill
from sgsd.errors import ConfigError
from sgsd.evaluation.comparison import Comparison, compare_runs
from sgsd.report import curves, tables
from sgsd.report.rollouts import LEVELS, traced_groups
from sgsd.report.runs import Run, grouped, is_run, load_runs

MOST_BYTES = 6_000_000


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Read run folders and write the page, at once: readers see the old one or the new one.

    Args:
        folders: of runs, of several methods and seeds; also evaluations without a run, as ``compare_runs`` takes
            them, which are in the comparison alone.
        output: file to write; missing folders are made.

    Returns:
        The file written.

    Raises:
        ConfigError: a folder is no run, or the page is larger than ``MOST_BYTES`` or cannot be written.
        BankError: a run's bank or ledger cannot be read.
    """
    runs = load_runs([folder for folder in folders if is_run(folder)])
    try:
        comparison, why_not = compare_runs(folders), ""
    except ConfigError as error:
        comparison, why_not = None, f"No comparison of evaluations: {error}."
    page = _page(runs, comparison, why_not)
    if (size := len(page.encode())) > MOST_BYTES:
        raise ConfigError(
            "the report is too large", got=f"{size} bytes", expected=f"{MOST_BYTES}", remedy="name fewer runs"
        )
    try:
        runfolder.write_text(output, page)
    except OSError as error:
        raise ConfigError("the report cannot be written", got=f"{output} ({error.strerror})") from error
    return output


def _page(runs: Sequence[Run], comparison: Comparison | None, why_not: str) -> str:
    groups = grouped(runs)
    traced = traced_groups(groups)
    apart, shared = tables.setting_tables(runs)
    environment = Environment(
        loader=PackageLoader("sgsd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["item"] = lambda cell: isinstance(cell, (Skill, Mistake))
    environment.tests["interval"] = lambda cell: isinstance(cell, tables.Interval)
    # The package's own files: their text is meant as it is.
    style, script = (Markup(environment.get_template(name).render()) for name in ("page.css", "page.js"))
    return environment.get_template("page.html").render(
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=runs,
        groups=groups,
        methods=dict.fromkeys(run.method for run in runs),
        outcomes=curves.outcome_table(groups),
        comparison=comparison,
        compared=None if comparison is None else tables.comparison_table(comparison),
        notes=[why_not] if comparison is None else comparison.notes,
        learning=curves.learning_figure(groups),
        signs=curves.signs_figure(groups),
        polarities=curves.polarity_figure(groups),
        supports=tables.support_table(groups),
        banks=[
            (group.label, tables.worth_table(group), tables.item_table(group)) for group in groups if group.ledger.items
        ],
        traced=traced,
        levels=LEVELS,
        changes=[
            (run.name, diff)
            for run in runs
            if run.bank_start is not None and run.bank is not None and (diff := run.bank_start.diff(run.bank))
        ],
        apart=apart,
        shared=shared,
        traces={"levels": LEVELS, "rollouts": [rollout for group in traced for rollout in group["rollouts"]]},
        style=style,
        script=script,
        hashes={"style": _digest(style), "script": _digest(script)},
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
