"""Tables of lab runs: accuracy during training, by setting, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from sgsd import runfolder
from sgsd.errors import ConfigError, DataError
from sgsd.trainers.names import method_name

LAB_RECORD = "lab.json"


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        lab: lab model, pairs of the bank, share of wrong verdicts.
        label: method and settings.
        seeds: of the runs.
        accuracy: lowest, mean and highest accuracy over the seeds, by step, from 0 to 1.
        collapsed: number of runs whose last accuracy is below their first.
        rollouts: per optimizer step.
    """

    lab: str
    label: str
    seeds: tuple[int, ...]
    accuracy: dict[int, tuple[float, float, float]]
    collapsed: int
    rollouts: int


def summarise(folders: Sequence[Path]) -> list[Group]:
    """One group per setting, in the order of the folders.

    Args:
        folders: run folders of ``sgsd lab run``, or folders that hold them.

    Raises:
        ConfigError: no lab runs in them, or an unfinished run.
    """
    records = [record for folder in folders for record in _records(folder)]
    if not records:
        raise ConfigError("no lab runs found", got=", ".join(map(str, folders)), expected="folders of sgsd lab run")
    groups: dict[tuple[str, str], list[tuple[dict[str, Any], dict[int, float]]]] = {}
    for record in dict.fromkeys(records):
        lab, label, *run = _read(record.parent)
        groups.setdefault((lab, label), []).append(tuple(run))
    return [_group(lab, label, runs) for (lab, label), runs in groups.items()]


def _records(folder: Path) -> list[Path]:
    own = folder / LAB_RECORD
    return [own] if own.is_file() else sorted(folder.glob(f"*/{LAB_RECORD}"))


def _read(folder: Path) -> tuple[str, str, dict[str, Any], dict[int, float]]:
    """Lab, label, settings and accuracies by step of a run."""
    try:
        record = runfolder.read_json(folder / LAB_RECORD)
        settings = runfolder.read_json(folder / runfolder.RUN)["settings"]
        history = runfolder.read_json(folder / runfolder.STATE)["log_history"]
        shares = "/".join(str(record[name]) for name in ("helpful", "misleading", "irrelevant"))
        flips = f", flips {record['flips']:g}" if record["flips"] else ""
        k = f" K {record['k']}" if record["k"] else ""
        given = " ".join(part.removeprefix("--") for part in record["settings"])
    except (DataError, KeyError) as error:
        raise ConfigError("a lab run cannot be read", got=str(folder), expected="a finished run") from error
    curve = {entry["step"]: entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry}
    return f"{record['variant']} {shares}{flips}", f"{method_name(settings)}{k} {given}".rstrip(), settings, curve


def _group(lab: str, label: str, runs: Sequence[tuple[dict[str, Any], dict[int, float]]]) -> Group:
    curves = [curve for _, curve in runs]
    accuracy: dict[int, tuple[float, float, float]] = {}
    for step in sorted({step for curve in curves for step in curve}):
        values = [curve[step] for curve in curves if step in curve]
        accuracy[step] = min(values), sum(values) / len(values), max(values)
    first = runs[0][0]
    return Group(
        lab=lab,
        label=label,
        seeds=tuple(settings["seed"] for settings, _ in runs),
        accuracy=accuracy,
        collapsed=sum(curve[max(curve)] < curve[min(curve)] for curve in curves),
        rollouts=first["per_device_train_batch_size"] * first["gradient_accumulation_steps"],
    )


def as_table(groups: Sequence[Group]) -> Table:
    """A table of the accuracy at the start, after each third, and at the end."""
    table = Table(
        title="plain-prompt accuracy in %, by step; mean (lowest to highest seed)",
        caption="fell: runs that ended below their start",
    )
    last = max(step for group in groups for step in group.accuracy)
    steps = sorted({0, last // 3, 2 * last // 3, last} & {step for group in groups for step in group.accuracy})
    table.add_column("lab", overflow="fold")
    table.add_column("method, settings", overflow="fold")
    for name in ("seeds", *map(str, steps), "fell"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        cells = []
        for step in steps:
            low, mean, high = group.accuracy.get(step, (None, None, None))
            spread = "" if low == high else f" ({100 * low:.0f} to {100 * high:.0f})"
            cells.append("–" if mean is None else f"{100 * mean:.1f}{spread}")
        table.add_row(group.lab, group.label, str(len(group.seeds)), *cells, f"{group.collapsed} of {len(group.seeds)}")
    return table
