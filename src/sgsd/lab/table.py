"""Lab runs → accuracy along training, by setting, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgsd import runfolder
from sgsd.errors import ConfigError, DataError
from sgsd.trainers.names import method_name

LAB_RECORD = "lab.json"


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
        lab: variant, shares of the bank, flips.
        label: the method, and the settings it was given.
        seeds: of the runs.
        accuracy: step → lowest, mean and highest accuracy over the seeds that got there, as fractions.
        collapsed: runs whose last accuracy is below their first.
        rollouts: of one optimizer step.
    """

    lab: str
    label: str
    seeds: tuple[int, ...]
    accuracy: dict[int, tuple[float, float, float]]
    collapsed: int
    rollouts: int


@dataclass(frozen=True, slots=True)
class _Run:
    lab: str
    label: str
    settings: dict[str, Any]
    curve: dict[int, float]


def summarise(folders: Sequence[Path]) -> list[Group]:
    """One group for each setting, in the order in which they were named.

    Args:
        folders: run folders of ``sgsd lab run``, or folders that hold them.

    Raises:
        ConfigError: no lab runs in them, or a run that did not end.
    """
    found = [run for folder in folders for run in _lab_runs(folder)]
    if not found:
        raise ConfigError("no lab runs found", got=", ".join(map(str, folders)), expected="folders of sgsd lab run")
    groups: dict[tuple[str, str], list[_Run]] = {}
    for run in (_read(folder) for folder in dict.fromkeys(found)):
        groups.setdefault((run.lab, run.label), []).append(run)
    return [_group(lab, label, members) for (lab, label), members in groups.items()]


def _lab_runs(folder: Path) -> list[Path]:
    if (folder / LAB_RECORD).is_file():
        return [folder]
    return sorted(record.parent for record in folder.glob(f"*/{LAB_RECORD}"))


def _read(folder: Path) -> _Run:
    try:
        record = runfolder.read_json(folder / LAB_RECORD)
        settings = runfolder.read_json(folder / runfolder.RUN)["settings"]
        history = runfolder.read_json(folder / runfolder.STATE)["log_history"]
        curve = {entry["step"]: entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry}
        shares = "/".join(str(record[name]) for name in ("helpful", "misleading", "irrelevant"))
        flips = f", flips {record['flips']:g}" if record["flips"] else ""
        k = f" K {record['k']}" if record["k"] else ""
        given = " ".join(part.removeprefix("--") for part in record["settings"])
        label = f"{method_name(settings)}{k} {given}".rstrip()
        return _Run(f"{record['variant']} {shares}{flips}", label, settings, curve)
    except (DataError, KeyError) as error:
        raise ConfigError("a lab run cannot be read", got=str(folder), expected="a run that went to its end") from error


def _group(lab: str, label: str, runs: Sequence[_Run]) -> Group:
    accuracy: dict[int, tuple[float, float, float]] = {}
    for step in sorted({step for run in runs for step in run.curve}):
        values = [run.curve[step] for run in runs if step in run.curve]
        accuracy[step] = min(values), sum(values) / len(values), max(values)
    settings = runs[0].settings
    return Group(
        lab=lab,
        label=label,
        seeds=tuple(run.settings["seed"] for run in runs),
        accuracy=accuracy,
        collapsed=sum(run.curve[max(run.curve)] < run.curve[min(run.curve)] for run in runs),
        rollouts=settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"],
    )
