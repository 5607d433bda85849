"""Tables of the report: the comparison, the items of banks, the settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sgsd.bank import Item, Skill
from sgsd.bank.credit import credit
from sgsd.evaluation.comparison import Comparison
from sgsd.evaluation.statistics import Estimate
from sgsd.report.runs import Group, Run


@dataclass(frozen=True)
class Interval:
    """A cell with an estimate and its interval, which are also drawn below the text.

    Attributes:
        text: estimate and interval.
        low, mean, high: positions in the drawing, from 0 to 1.
        middle: mark the middle of the drawing as the reference value.
    """

    text: str
    low: float
    mean: float
    high: float
    middle: bool


Cell = str | int | Interval | Item | None
"""A cell of a table; ``None`` is a missing value."""


@dataclass(frozen=True)
class Table:
    """Column heads, and rows whose first cell is the row head."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


# ---- figures in words


def figure(value: float | None, spec: str) -> str:
    """A number in a format specification, with a typographic minus and no −0; a dash for ``None``."""
    sign = "+" if spec.startswith("+") else ""
    spec = f"{sign}z{spec.removeprefix(sign)}"
    return "–" if value is None else f"{value:{spec}}".replace("-", "−").replace("%", " %")


percent = partial(figure, spec=".1%")
"""``12.3 %``."""
number = partial(figure, spec=".3g")
"""Three significant digits."""
signed = partial(figure, spec="+.3f")
"""``+0.123``."""


def short(text: str, characters: int) -> str:
    """The text on one line, cut to ``characters``."""
    line = " ".join(text.split())
    return line if len(line) <= characters else line[: characters - 1].rstrip() + "…"


def as_text(value: Any) -> str:
    """A setting for readers: a text without quotes, other values as JSON, a dash for ``None``."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ---- tables


def comparison_table(comparison: Comparison) -> Table:
    """Accuracy of each method on each evaluation, and its difference to the baseline."""
    heads = ["method", "seeds"]
    columns: list[Sequence[Cell]] = [
        [row.label for row in comparison.rows],
        [len(row.seeds) for row in comparison.rows],
    ]
    for n, column in enumerate(comparison.columns):
        heads.append(f"{column.name}, {column.problems} problems")
        columns.append([_estimate(row.cells[n], percent) for row in comparison.rows])
        differences = [row.differences[n] for row in comparison.rows]
        if shown := [max(-one.low, one.high, 0.01) for one in differences if one is not None]:
            heads.append(f"{column.name}, difference to {comparison.baseline}")
            columns.append([_estimate(one, partial(figure, spec="+.1%"), max(shown)) for one in differences])
    return Table(tuple(heads), tuple(zip(*columns, strict=True)))


def _estimate(
    estimate: Estimate | None, written: Callable[[float], str], reach: float | None = None
) -> Interval | None:
    """An estimate, drawn on a scale from 0 to 1, or from ``-reach`` to ``reach``."""
    if estimate is None:
        return None
    start, length = (0.0, 1.0) if reach is None else (-reach, 2 * reach)
    low, mean, high = estimate.low, estimate.mean, estimate.high
    places = (min(max((value - start) / length, 0.0), 1.0) for value in (low, mean, high))
    return Interval(f"{written(mean)} ({written(low)} to {written(high)})", *places, middle=reach is not None)


def item_table(group: Group) -> Table:
    """All items of the group's banks and ledgers, highest credit first."""
    ledger, items = group.ledger, group.items
    found: list[tuple[float, int, tuple[Cell, ...]]] = []
    for id in dict.fromkeys([*items, *ledger.items]):
        record, item = ledger.record(id), items.get(id)
        worth = credit(record)
        shown = f"{worth.value:.2f} ({worth.low:.2f} to {worth.high:.2f})"
        row = (
            f"{id}: not in the bank at the start or at the end" if item is None else item,
            None if item is None else "skill" if isinstance(item, Skill) else "mistake",
            record.uses,
            Interval(shown, worth.low, worth.value, worth.high, middle=True) if record.active else None,
            *(record.positive, record.negative, record.neutral, record.undecided),
            *map(signed, (record.mean_support_success, record.mean_support_failure)),
        )
        found.append((-worth.value if record.active else 0.0, -record.uses, row))
    columns = ("item", "kind", "uses", "credit", "positive", "negative", "neutral", "undecided")
    rows = tuple(row for _, _, row in sorted(found, key=lambda one: one[:2]))
    return Table((*columns, "support, success", "support, failure"), rows)


def order_note(items: Table) -> str:
    """A sentence on how many items of ``item_table`` have a credit that differs from 0.5."""
    credits = [cell for row in items.rows for cell in row if isinstance(cell, Interval)]
    apart = sum(cell.low > 0.5 or cell.high < 0.5 for cell in credits)
    if not apart:
        return "Every item's interval contains 0.5: the order of the items may be chance."
    return f"The intervals of {apart} of {len(credits)} items exclude 0.5; the order of the others may be chance."


def setting_tables(runs: Sequence[Run]) -> tuple[Table, Table]:
    """Settings, versions, bank and data of the runs: a table of those that differ, and one of those that agree."""
    told = [{name: as_text(value) for name, value in _record(run).items()} for run in runs]
    names = dict.fromkeys(name for one in told for name in one)
    rows = [(name, [one.get(name, "–") for one in told]) for name in names]
    apart = tuple((name, *values) for name, values in rows if len(set(values)) > 1)
    shared = tuple((name, values[0]) for name, values in rows if len(set(values)) == 1)
    return Table(("setting", *(run.name for run in runs)), apart), Table(("setting", "value"), shared)


def _record(run: Run) -> Mapping[str, Any]:
    data = run.record.get("data") or {}
    return {
        **run.settings,
        "bank digest": run.record.get("bank_digest"),
        **{f"data: {key}": data.get(key) for key in ("source", "rows", "kept")},
        **{f"version: {name}": run.record.get(name) for name in ("sgsd", "python")},
        **{f"version: {name}": version for name, version in run.record.get("versions", {}).items()},
    }
