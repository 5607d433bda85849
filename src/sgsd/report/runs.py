"""Read run folders: settings, log, ledger, bank items and traced rollouts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from sgsd import runfolder
from sgsd.bank import Item, Ledger, SkillBank
from sgsd.errors import ConfigError, SGSDError
from sgsd.evaluation.comparison import distinct_labels
from sgsd.evaluation.recorded import method_settings, settings_key, sources_of, told_apart
from sgsd.trainers.names import method_name

T = TypeVar("T")
_DRAWN = 1e100  # the highest value in a chart, which computes squares and sums
_Sign: TypeAlias = Literal[-1, 0, 1]
# JSON has only finite numbers; others become None.
_Number: TypeAlias = Annotated[float | None, AfterValidator(lambda x: x if x is not None and isfinite(x) else None)]


class _Teacher(TypedDict):
    skill: str
    mistake: str
    stance: _Sign
    polarity: _Sign
    support: float
    weight: float
    gaps: list[_Number]


class Trace(TypedDict):
    """A line of ``traces.jsonl`` (``trainers.record``)."""

    step: runfolder.Count
    problem_id: str
    problem: str
    answer: str
    outcome: str
    tokens: list[str]
    counted: list[Annotated[int, Field(ge=0, le=1)]]
    student_logps: list[_Number]
    teachers: list[_Teacher]


def _as_long(trace: Trace) -> Trace:
    rows = [trace["counted"], trace["student_logps"], *(teacher["gaps"] for teacher in trace["teachers"])]
    if any(len(row) != len(trace["tokens"]) for row in rows):
        raise ValueError(f"{len(trace['tokens'])} values, one for each of the tokens")
    return trace


_TRACE = TypeAdapter(Annotated[Trace, AfterValidator(_as_long)])


@dataclass(frozen=True)
class Run:
    """One run folder. Files that are missing give empty values.

    Attributes:
        name: of the folder, unique in the report.
        record: ``run.json``.
        history: ``log_history`` of the trainer.
        items: items of the bank at the start and at the end, by id.
        ledger: counts and supports of each item.
        traces: traced rollouts.
        notes: on files that could not be read, whose values are empty.
    """

    name: str
    record: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    items: Mapping[str, Item]
    ledger: Ledger
    traces: Sequence[Trace]
    notes: tuple[str, ...]

    @property
    def settings(self) -> Mapping[str, Any]:
        """All settings in one mapping."""
        return self.record["settings"]

    @property
    def method(self) -> str:
        """The name of the method in tables: ``SGSD``, ``GRPO + correction``, ``GRPO+Skill`` …"""
        return method_name(self.settings)

    @property
    def last_step(self) -> int:
        """The last optimizer step in the log; 0 without one."""
        return max((entry["step"] for entry in self.history), default=0)

    def curve(self, metric: str, *, share: bool = False) -> list[tuple[int, float]]:
        """(step, value) of a logged metric, by step. Values that are not finite are left out, and so are values outside
        [0, 1] if ``share``.
        """
        lowest, highest = (0.0, 1.0) if share else (-_DRAWN, _DRAWN)
        points = {
            int(entry["step"]): float(entry[metric])
            for entry in self.history
            if isinstance(entry.get(metric), (int, float)) and lowest <= entry[metric] <= highest
        }
        return sorted(points.items())


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, with a label that is unique in the report."""

    label: str
    runs: tuple[Run, ...]

    @property
    def last_step(self) -> int:
        """The last optimizer step in their logs; 0 without one."""
        return max(run.last_step for run in self.runs)

    @property
    def ledger(self) -> Ledger:
        """The uses in all of its runs."""
        return sum((run.ledger for run in self.runs), Ledger())

    @property
    def items(self) -> dict[str, Item]:
        """Every item that a run began or ended with, by id."""
        return {id: item for run in self.runs for id, item in run.items.items()}


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders. A run's name is its path relative to the common parent folder.

    Files other than ``run.json`` that cannot be read are left out, and named in the run's ``notes``.

    Raises:
        ConfigError: no folders, a repeated folder, or one that is not a run.
        DataError: a ``run.json`` cannot be read.
    """
    if not folders:
        raise ConfigError("no runs", expected="a folder or more with run.json, which sgsd train writes")
    places = [runfolder.real(folder) for folder in folders]
    if len(set(places)) < len(places):
        twice = next(folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1)
        raise ConfigError("a run is named twice", got=str(twice))
    shared = Path(os.path.commonpath([place.parent for place in places]))
    return [_load(folder, str(place.relative_to(shared))) for folder, place in zip(folders, places, strict=True)]


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Group runs with equal settings except the seed, in the order of their first runs."""
    told = told_apart([method_settings(run.settings) for run in runs], [sources_of(run.record) for run in runs])
    groups: dict[str, list[Run]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run, own in zip(runs, told, strict=True):
        groups.setdefault(settings_key(own), []).append(run)
        settings.setdefault(settings_key(own), own)
    labels = distinct_labels([members[0].method for members in groups.values()], list(settings.values()))
    return [Group(label, tuple(members)) for label, members in zip(labels, groups.values(), strict=True)]


def _load(folder: Path, name: str) -> Run:
    file = folder / runfolder.RUN
    if not file.is_file():
        raise ConfigError("not a run folder", got=str(folder), expected="run.json in it, which sgsd train writes")
    notes: list[str] = []

    def part(file: Path, read: Callable[[Path], T], otherwise: T) -> T:
        try:
            return read(file) if file.is_file() else otherwise
        except SGSDError as error:
            notes.append(f"Left out: {error}.")
            return otherwise

    banks = [part(folder / bank, SkillBank.load, SkillBank()) for bank in (runfolder.BANK_START, runfolder.BANK)]
    # By number, not by time: copies have other times.
    states = sorted(folder.glob(f"checkpoint-*/{runfolder.STATE}"), key=lambda f: (len(f.parent.name), f.parent.name))
    own = folder / runfolder.STATE
    return Run(
        name=name,
        record=runfolder.read_json(file, runfolder.RUN_RECORD),
        history=part(own if own.is_file() or not states else states[-1], _read_history, []),
        items={item.id: item for bank in banks for item in bank.items},
        ledger=part(folder / runfolder.LEDGER, Ledger.load, Ledger()),
        traces=part(folder / runfolder.TRACES, _read_traces, []),
        notes=tuple(notes),
    )


def _read_history(file: Path) -> Sequence[Mapping[str, Any]]:
    return runfolder.read_json(file, runfolder.TRAINER_STATE).get("log_history", [])


def _read_traces(file: Path) -> Sequence[Trace]:
    return [trace for _, trace in runfolder.read_lines(file, _TRACE)]
