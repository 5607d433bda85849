"""Everything on one HTML page that needs no network.

The page is safe to open whatever the runs hold: Jinja escapes every text, JSON is embedded with ``<``, ``>`` and ``&``
escaped, the scripts write text and never HTML, and a content security policy admits only the page's own two scripts (by
hash, without ``eval``: Vega interprets its expressions) and no connection anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sgsd import __version__, runfolder
from sgsd.errors import ConfigError
from sgsd.evaluation.comparison import Comparison, compare_runs
from sgsd.report import curves, tables, teaching
from sgsd.report.figures import Figure, percent, with_interval
from sgsd.report.headline import comparison_figure
from sgsd.report.rollouts import LEVELS, traced_groups
from sgsd.report.runs import Group, Run, grouped, is_run, load_runs

MOST_BYTES = 6_000_000
# The newest Vega-Lite that both Altair and vl-convert know.
_VEGA_LITE = "6.4"


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Read run folders and write the page, at once: readers see the old one or the new one.

    Args:
        folders: of runs, of several methods and seeds; also evaluations without a run, as ``compare_runs`` takes
            them, which are in the comparison alone.
        output: file to write; missing folders are made.

    Returns:
        The file written.

    Raises:
        ConfigError: a folder is no run, or the page cannot be written.
        BankError: a run's bank or ledger cannot be read.
    """
    runs = load_runs([folder for folder in folders if is_run(folder)])
    page = render(runs, *_compared(folders))
    try:
        runfolder.write_text(output, page)
    except OSError as error:
        raise ConfigError("the report cannot be written", got=f"{output} ({error.strerror})") from error
    return output


def render(runs: Sequence[Run], comparison: Comparison | None = None, why_not: str = "") -> str:
    """The page of these runs.

    Args:
        runs: at least one.
        comparison: of their evaluations, if they can be compared.
        why_not: what is missing for a comparison.

    Raises:
        ConfigError: it would be larger than ``MOST_BYTES``.
    """
    groups = grouped(runs)
    labels = [group.label for group in groups]
    figures = {
        "headline": [] if comparison is None else [comparison_figure(comparison, labels)],
        "learning": _present(curves.accuracy_figure(groups), curves.success_figure(groups)),
        "teachers": _present(
            teaching.polarity_figure(groups), teaching.support_figure(groups), teaching.support_map_figure(groups)
        ),
        "signs": _present(curves.signs_figure(groups)),
    }
    banks = [_bank(position, group) for position, group in enumerate(groups) if group.ledger.items]
    traced = traced_groups(groups)
    shown = [figure for many in figures.values() for figure in many]
    shown += [bank["figure"] for bank in banks if bank["figure"] is not None]
    charts = {
        panel_id: {"spec": panel.spec}
        for figure in shown
        for panel_id, panel in zip(_ids(figure), figure.panels, strict=True)
    }
    environment = Environment(
        loader=PackageLoader("sgsd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "with_interval": with_interval}
    library, script = Markup(_library()), Markup(environment.get_template("page.js").render())
    page = environment.get_template("page.html").render(
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=runs,
        groups=groups,
        methods=dict.fromkeys(run.method for run in runs),
        outcomes=tables.outcome_table(groups),
        notes=[why_not] if comparison is None else comparison.notes,
        figures=figures,
        banks=banks,
        traced=traced,
        levels=LEVELS,
        changes=tables.bank_changes(runs),
        differences=tables.setting_differences(runs),
        common=tables.common_settings(runs),
        provenance=tables.provenance(runs),
        figured=lambda figure: zip(_ids(figure), figure.panels, strict=True),
        support=lambda value: "–" if value is None else f"{value:+.3f}".replace("-", "−"),
        charts=charts,
        rollouts=[rollout.data for group in traced for rollout in group.rollouts],
        library=library,
        script=script,
        hashes=" ".join(f"'sha256-{_digest(text)}'" for text in (library, script)),
        vega=f"Vega {vl_convert.get_vega_version()}, Vega-Lite {_VEGA_LITE}, "
        f"Vega-Embed {vl_convert.get_vega_embed_version()}",
    )
    if (size := len(page.encode())) > MOST_BYTES:
        raise ConfigError(
            "the report is too large", got=f"{size} bytes", expected=f"{MOST_BYTES}", remedy="name fewer runs"
        )
    return page


def _compared(folders: Sequence[Path]) -> tuple[Comparison | None, str]:
    """The comparison of what was evaluated; if that is not possible, why."""
    try:
        return compare_runs(folders), ""
    except ConfigError as error:
        return None, f"No comparison of evaluations: {error}."


def _bank(position: int, group: Group) -> dict[str, Any]:
    rows = tables.item_rows(group)
    return {
        "id": f"items-{position}",
        "label": group.label,
        "figure": teaching.item_figure(group, f"item-polarity-{position}"),
        "worth": tables.worth_table(group),
        "rows": rows,
    }


def _present(*figures: Figure | None) -> list[Figure]:
    return [figure for figure in figures if figure is not None]


def _ids(figure: Figure) -> list[str]:
    """Of its charts' elements."""
    return [f"chart-{figure.id}-{position}" for position in range(len(figure.panels))]


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines ``window.vegaEmbed`` and no other name."""
    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise ConfigError("this version of vl-convert-python does not fit", got=vl_convert.__version__)
    licence = (
        "/* Vega, Vega-Lite, Vega-Embed: Copyright University of Washington Interactive Data Lab, BSD-3-Clause. */"
    )
    return f"{licence}\n(() => {{\n{bundle}\n}})();"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
