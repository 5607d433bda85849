"""Run folders → values: what a run was told, what it logged, what became of its bank."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgsd import runfolder
from sgsd.bank import Item, Ledger, SkillBank
from sgsd.errors import ConfigError
from sgsd.evaluation.comparison import distinct_labels
from sgsd.evaluation.recorded import essence
from sgsd.trainers.names import method_name


@dataclass(frozen=True)
class Run:
    """One run folder. What the run did not leave is empty or ``None``.

    Attributes:
        folder: of the run.
        name: the folder's, unique in the report.
        record: ``run.json``.
        history: the log, entries as the trainer wrote them.
        bank_start, bank: the bank at the start and at the end.
        ledger: what became of each item.
        edges: of the bins of ``supports``, in nats per token.
        supports: for each optimizer step, counts by bin: keys ``step``, ``success``, ``failure``, ``undecided``.
        traces: traced rollouts, as ``trainers.record`` wrote them.
    """

    folder: Path
    name: str
    record: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    bank_start: SkillBank | None
    bank: SkillBank | None
    ledger: Ledger
    edges: tuple[float, ...]
    supports: tuple[Mapping[str, Any], ...]
    traces: tuple[Mapping[str, Any], ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every setting, flat."""
        return self.record["settings"]

    @property
    def method(self) -> str:
        """As tables name it: ``SGSD``, ``GRPO + correction``, ``GRPO+Skill`` …"""
        return method_name(self.settings)

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        return self.settings.get("seed")

    @property
    def worth(self) -> dict[str, str]:
        """Item id → what it is known to be good for, where the run's bank says so in its metadata."""
        found: dict[str, str] = {}
        for bank in (self.bank_start, self.bank):
            worth = {} if bank is None else bank.metadata.get("worth")
            if isinstance(worth, dict):
                found |= {str(id): str(value) for id, value in worth.items()}
        return found

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """(step, value) of a logged metric, in the order of the steps; what is no finite number is left out."""
        points = {
            int(entry["step"]): float(entry[metric])
            for entry in self.history
            if isinstance(entry.get(metric), (int, float)) and abs(entry[metric]) < float("inf")
        }
        return sorted(points.items())


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed.

    Attributes:
        label: the method, and the settings that tell the groups of a report apart.
        runs: one for each seed, at least one.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def last_step(self) -> int:
        """The last optimizer step in their logs; 0 without one."""
        return max((int(entry.get("step", 0)) for run in self.runs for entry in run.history), default=0)

    @property
    def ledger(self) -> Ledger:
        """The uses in all of its runs."""
        return sum((run.ledger for run in self.runs), Ledger())

    @property
    def items(self) -> dict[str, Item]:
        """Every item that a run began or ended with, by id."""
        banks = [bank for run in self.runs for bank in (run.bank_start, run.bank) if bank is not None]
        return {item.id: item for bank in banks for item in bank.items}


def is_run(folder: Path) -> bool:
    """Whether ``sgsd train`` wrote it; a folder that is not there is taken for one, to be refused as one."""
    return not folder.is_dir() or (folder / runfolder.RUN).is_file()


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; each is named by its path from the folder that holds all.

    Raises:
        ConfigError: no folders, one named twice, or as ``load_run``.
        BankError: as ``load_run``.
    """
    if not folders:
        raise ConfigError("no runs", expected="one run folder or more")
    places = [folder.resolve() for folder in folders]
    if twice := next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None):
        raise ConfigError("a run is named twice", got=str(twice))
    shared = Path(os.path.commonpath([place.parent for place in places]))
    return [
        load_run(folder, name=str(place.relative_to(shared))) for folder, place in zip(folders, places, strict=True)
    ]


def load_run(folder: Path, *, name: str | None = None) -> Run:
    """Read a run folder.

    Raises:
        ConfigError: it is no run folder.
        DataError, BankError: something in it cannot be read.
    """
    file = folder / runfolder.RUN
    if not file.is_file():
        raise ConfigError("not a run folder", got=str(folder), expected="run.json in it, which sgsd train writes")
    record = runfolder.read_json(file)
    if not isinstance(record.get("settings"), dict):
        raise ConfigError("the run's record cannot be read", got=str(file), expected="what sgsd train wrote")
    state = folder / runfolder.STATE
    history = runfolder.read_json(state).get("log_history", []) if state.is_file() else _last_checkpoint_history(folder)
    ledger = folder / runfolder.LEDGER
    supports = _lines(folder / runfolder.SUPPORTS)
    edges = next((line["edges"] for line in supports if "edges" in line), ())
    banks = [folder / name for name in (runfolder.BANK_START, runfolder.BANK)]
    bank_start, bank = (SkillBank.load(file) if file.is_file() else None for file in banks)
    return Run(
        folder=folder,
        name=name or folder.resolve().name,
        record=record,
        history=tuple(history),
        bank_start=bank_start,
        bank=bank,
        ledger=Ledger.from_json(ledger.read_text(encoding="utf-8"), source=str(ledger))
        if ledger.is_file()
        else Ledger(),
        edges=tuple(edges),
        supports=tuple(line for line in supports if "step" in line),
        traces=tuple(_lines(folder / runfolder.TRACES)),
    )


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of one setting together, in the order in which settings first appear."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(essence(run.settings), sort_keys=True, default=str), []).append(run)
    firsts = [members[0] for members in groups.values()]
    labels = distinct_labels([run.method for run in firsts], [essence(run.settings) for run in firsts])
    return [Group(label, tuple(members)) for label, members in zip(labels, groups.values(), strict=True)]


def _last_checkpoint_history(folder: Path) -> list[Any]:
    """The log of a run that is under way or was cut off: its last checkpoint's."""
    # By number, not by time: clocks jump, and copies have other times.
    states = sorted(folder.glob(f"checkpoint-*/{runfolder.STATE}"), key=lambda f: (len(f.parent.name), f.parent.name))
    return runfolder.read_json(states[-1]).get("log_history", []) if states else []


def _lines(file: Path) -> list[dict[str, Any]]:
    return [line for _, line in runfolder.read_lines(file)] if file.is_file() else []
