"""Run folders → values: what a run was told, what it logged, what became of its bank."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from sgsd import runfolder
from sgsd.bank import Item, Ledger, SkillBank
from sgsd.errors import ConfigError, DataError, SGSDError
from sgsd.evaluation.comparison import distinct_labels
from sgsd.evaluation.recorded import essence
from sgsd.runfolder import Count
from sgsd.trainers.names import method_name

T = TypeVar("T")
_DRAWN = 1e100  # at most: charts compute with squares and sums


class _Edges(TypedDict):
    edges: list[FiniteFloat]


class _Counts(TypedDict):
    step: Annotated[Count, Field(ge=1)]
    success: list[Count]
    failure: list[Count]
    undecided: list[Count]


_OUTCOMES = ("success", "failure", "undecided")
_Sign: TypeAlias = Literal[-1, 0, 1]


class _Teacher(TypedDict):
    skill: str
    mistake: str
    stance: _Sign
    polarity: _Sign
    support: float
    weight: float
    gaps: list[float | None]


class _Trace(TypedDict):
    step: Count
    problem_id: str
    problem: str
    answer: str
    outcome: str
    tokens: list[str]
    counted: list[bool]
    student_logps: list[float | None]
    teachers: list[_Teacher]


def _as_long(trace: _Trace) -> _Trace:
    rows = [trace["counted"], trace["student_logps"], *(teacher["gaps"] for teacher in trace["teachers"])]
    if any(len(row) != len(trace["tokens"]) for row in rows):
        raise ValueError(f"{len(trace['tokens'])} values, one for each of the tokens")
    return trace


_SUPPORTS = TypeAdapter(_Edges | _Counts)
_TRACE = TypeAdapter(Annotated[_Trace, AfterValidator(_as_long)])


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
        notes: what of the folder could not be read, and is empty or ``None`` here.
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
    notes: tuple[str, ...] = ()

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

    def curve(self, metric: str, *, share: bool = False) -> list[tuple[int, float]]:
        """(step, value) of a logged metric, in the order of the steps; what no chart can show is left out: other
        values than finite numbers, and than those from 0 to 1 where they are shares.
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
        DataError: as ``load_run``.
    """
    if not folders:
        raise ConfigError("no runs", expected="a folder or more with run.json, which sgsd train writes")
    places = [folder.resolve() for folder in folders]
    if twice := next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None):
        raise ConfigError("a run is named twice", got=str(twice))
    shared = Path(os.path.commonpath([place.parent for place in places]))
    return [
        load_run(folder, name=str(place.relative_to(shared))) for folder, place in zip(folders, places, strict=True)
    ]


def load_run(folder: Path, *, name: str | None = None) -> Run:
    """Read a run folder; what cannot be read beside its record is left out, and named in ``notes``.

    Raises:
        ConfigError: it is no run folder.
        DataError: its record cannot be read.
    """
    file = folder / runfolder.RUN
    if not file.is_file():
        raise ConfigError("not a run folder", got=str(folder), expected="run.json in it, which sgsd train writes")
    record = runfolder.read_json(file, runfolder.RUN_RECORD)
    notes: list[str] = []

    def part(read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except SGSDError as error:
            notes.append(f"Left out: {error}.")
            return otherwise

    def read_bank(file: Path) -> SkillBank | None:
        return part(lambda: SkillBank.load(file), None) if file.is_file() else None

    ledger = folder / runfolder.LEDGER
    edges, supports = part(lambda: _read_supports(folder / runfolder.SUPPORTS), ((), ()))
    return Run(
        folder=folder,
        name=name or folder.resolve().name,
        record=record,
        history=part(lambda: tuple(_history(folder)), ()),
        bank_start=read_bank(folder / runfolder.BANK_START),
        bank=read_bank(folder / runfolder.BANK),
        ledger=part(lambda: Ledger.load(ledger), Ledger()) if ledger.is_file() else Ledger(),
        edges=edges,
        supports=supports,
        traces=part(lambda: tuple(_lines(folder / runfolder.TRACES, _TRACE)), ()),
        notes=tuple(notes),
    )


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of one setting together, in the order in which settings first appear."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(essence(run.settings), sort_keys=True, default=str), []).append(run)
    firsts = [members[0] for members in groups.values()]
    labels = distinct_labels([run.method for run in firsts], [essence(run.settings) for run in firsts])
    return [Group(label, tuple(members)) for label, members in zip(labels, groups.values(), strict=True)]


def _history(folder: Path) -> Sequence[Mapping[str, Any]]:
    """The log of a run; of one that is under way or was cut off, its last checkpoint's."""
    # By number, not by time: clocks jump, and copies have other times.
    states = sorted(folder.glob(f"checkpoint-*/{runfolder.STATE}"), key=lambda f: (len(f.parent.name), f.parent.name))
    own = folder / runfolder.STATE
    state = own if own.is_file() else next(reversed(states), None)
    return [] if state is None else runfolder.read_json(state, runfolder.TRAINER_STATE).get("log_history", [])


def _read_supports(file: Path) -> tuple[tuple[float, ...], tuple[Mapping[str, Any], ...]]:
    """The edges of the bins, and the counts of each step."""
    lines = _lines(file, _SUPPORTS)
    edges = next((line["edges"] for line in lines if "edges" in line), [])
    steps = [line for line in lines if "edges" not in line]
    bins = len(edges) + 1
    if odd := next((line for line in steps if any(len(line[name]) != bins for name in _OUTCOMES)), None):
        raise DataError(f"{file}: other bins than its edges make", got=f"step {odd['step']}", expected=f"{bins} counts")
    return tuple(edges), tuple(steps)


def _lines(file: Path, schema: TypeAdapter[T]) -> list[T]:
    return [line for _, line in runfolder.read_lines(file, schema)] if file.is_file() else []
