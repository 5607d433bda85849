"""Groups of runs → tables: how they end, what became of bank items, settings, versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sgsd.bank import BankDiff, ItemRecord, Skill, SkillBank
from sgsd.bank.credit import Credit, credit
from sgsd.report.figures import DataTable, percent, with_interval
from sgsd.report.runs import Group, Run, differing
from sgsd.report.series import Band, accuracy_bands, last_step, metric_bands, success_metric, with_range


@dataclass(frozen=True)
class ItemRow:
    """A bank item and what became of it.

    Attributes:
        id, kind, title, text, note: of the item; ``note`` says when to apply a skill, how to avoid a mistake.
        worth: what it is known to be good for; empty where nobody knows, several where it depends on the run.
        record: in all runs of the group.
        credit: what it was worth, with its interval; ``None`` without a use with a stance.
    """

    id: str
    kind: str
    title: str
    text: str
    note: str
    worth: str
    record: ItemRecord
    credit: Credit | None


@dataclass(frozen=True)
class BankChange:
    """The bank of some runs: at the start, at the end, and between.

    Attributes:
        runs: their names; all began and ended with the same items.
        start, end: the banks; ``None`` where a run did not leave one.
        diff: from the one to the other; ``None`` without both.
    """

    runs: tuple[str, ...]
    start: SkillBank | None
    end: SkillBank | None
    diff: BankDiff | None


def outcome_table(groups: Sequence[Group]) -> DataTable:
    """How each group began and ended, by what the runs logged: accuracy where it was, and success rate."""
    rows: list[tuple[object, ...]] = []
    for group in groups:
        accuracy, success = accuracy_bands(group), metric_bands(group, success_metric(group))
        steps = last_step([group])
        rows.append((group.label, len(group.runs), steps, _from_to(accuracy), _from_to(success)))
    return DataTable(("method", "seeds", "steps", "accuracy", "success rate"), tuple(rows))


def _from_to(bands: Sequence[Band]) -> str:
    return f"{percent(bands[0].mean)} → {with_range(bands[-1])}" if bands else "–"


def item_rows(group: Group) -> list[ItemRow]:
    """Every item of the group's banks, highest credit first, and items that only the ledger knows."""
    ledger, items = group.ledger, group.items
    rows: list[ItemRow] = []
    for id in dict.fromkeys([*items, *ledger.items]):
        record, item = ledger.record(id), items.get(id)
        rows.append(
            ItemRow(
                id=id,
                kind="–" if item is None else "skill" if isinstance(item, Skill) else "mistake",
                title="" if item is None else item.title,
                text="not in the bank at the start or at the end" if item is None else item.text,
                note="" if item is None else item.note,
                worth=", ".join(sorted({run.worth[id] for run in group.runs if id in run.worth})),
                record=record,
                credit=credit(record) if record.active else None,
            )
        )
    return sorted(rows, key=lambda row: (-row.credit.value if row.credit else 0.0, -row.record.uses))


def worth_table(group: Group) -> DataTable | None:
    """Polarities by known worth, which is each run's own; ``None`` where no worth is known."""
    totals: dict[str, ItemRecord] = {}
    items: dict[str, int] = {}
    for run in group.runs:
        for id, worth in run.worth.items():
            totals[worth] = totals.get(worth, ItemRecord()) + run.ledger.record(id)
            items[worth] = items.get(worth, 0) + 1
    if not totals:
        return None
    rows: list[tuple[object, ...]] = []
    for worth, total in sorted(totals.items()):
        uses = total.uses or 1
        shares = (total.positive / uses, total.neutral / uses, total.negative / uses)
        rows.append((worth, items[worth], total.uses, *map(percent, shares), with_interval(credit(total))))
    return DataTable(("known worth", "items", "uses", "positive", "neutral", "negative", "credit"), tuple(rows))


def bank_changes(runs: Sequence[Run]) -> list[BankChange]:
    """One entry for all runs that began and ended with the same items."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if run.bank_start is not None or run.bank is not None:
            key = tuple("" if bank is None else bank.digest for bank in (run.bank_start, run.bank))
            found.setdefault((key[0], key[1]), []).append(run)
    changes: list[BankChange] = []
    for members in found.values():
        start, end = members[0].bank_start, members[0].bank
        diff = start.diff(end) if start is not None and end is not None else None
        changes.append(BankChange(tuple(run.name for run in members), start, end, diff))
    return changes


def setting_differences(runs: Sequence[Run]) -> DataTable | None:
    """The settings in which the runs differ, a column for each run; ``None`` for a single run or equal ones."""
    settings = [run.settings for run in runs]
    names = differing(settings)
    if not names:
        return None
    rows = tuple((name, *(as_text(one.get(name)) for one in settings)) for name in names)
    return DataTable(("setting", *(run.name for run in runs)), rows)


def common_settings(runs: Sequence[Run]) -> DataTable:
    """The settings that all the runs share; with ``setting_differences`` the whole configuration."""
    apart = set(differing([run.settings for run in runs]))
    rows = tuple((name, as_text(value)) for name, value in runs[0].settings.items() if name not in apart)
    return DataTable(("setting", "value"), rows)


def provenance(runs: Sequence[Run]) -> DataTable:
    """Versions, bank and data of each run."""
    versions = list(dict.fromkeys(name for run in runs for name in run.record.get("versions", {})))
    rows: list[tuple[object, ...]] = [("folder", *(str(run.folder) for run in runs))]
    rows += [(name, *(as_text(run.record.get(name)) for run in runs)) for name in ("sgsd", "python")]
    rows += [(name, *(as_text(run.record.get("versions", {}).get(name)) for run in runs)) for name in versions]
    rows.append(("bank digest", *(as_text(run.record.get("bank_digest"))[:12] or "–" for run in runs)))
    for key in ("source", "rows", "kept"):
        rows.append((f"data: {key}", *(as_text((run.record.get("data") or {}).get(key)) for run in runs)))
    return DataTable(("", *(run.name for run in runs)), tuple(rows))


def as_text(value: Any) -> str:
    """A setting as one reads it: text bare, the rest as JSON, nothing as a dash."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
