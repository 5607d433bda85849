"""What became of each bank item, in all and by phase: how often it taught, and whether it was right.

A teacher is a pair; both of its items are credited alike. A rollout that is trained on twice counts twice.

A *phase* is a stretch of ``phase_steps`` optimizer steps: 1 to 25, 26 to 50 and so on. A ledger keeps at most
``MAX_PHASES``; where one more would begin, neighbours are joined and phases become twice as long. So it does not grow
with the run, and what it holds depends on the uses alone, not on where the run was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from math import lcm
from types import MappingProxyType
from typing import TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgsd.errors import BankError

MAX_PHASES = 16
PHASE_STEPS = 25
"""Optimizer steps of a phase at first: the paper's steps between two checks of the bank."""

_VERSION = 2
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """What became of one item.

    Attributes:
        uses: rollouts it was part of a teacher for; the sum of the four polarities below.
        active: uses with a stance.
        positive: uses of polarity +1: supported a success or suppressed a failure.
        negative: uses of polarity −1.
        neutral: uses without a stance on a rollout with a verdict.
        undecided: uses on a rollout without a verdict.
        successes, failures: uses on rollouts that succeeded, that failed.
        positive_success, negative_success: of the successes, those with a stance: supported, suppressed.
        positive_failure, negative_failure: of the failures, those with a stance: suppressed, supported.
        support_success, support_failure: sums of the support over successes, over failures, in nats per token.
    """

    uses: int = 0
    active: int = 0
    positive: int = 0
    negative: int = 0
    neutral: int = 0
    undecided: int = 0
    successes: int = 0
    failures: int = 0
    positive_success: int = 0
    negative_success: int = 0
    positive_failure: int = 0
    negative_failure: int = 0
    support_success: float = 0.0
    support_failure: float = 0.0

    def __add__(self, other: ItemRecord) -> ItemRecord:
        return ItemRecord(
            *(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)),
            support_success=self.support_success + other.support_success,
            support_failure=self.support_failure + other.support_failure,
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """Every count, in the order of the fields."""
        return (
            self.uses,
            self.active,
            self.positive,
            self.negative,
            self.neutral,
            self.undecided,
            self.successes,
            self.failures,
            self.positive_success,
            self.negative_success,
            self.positive_failure,
            self.negative_failure,
        )

    @property
    def active_share(self) -> float | None:
        """Share of the uses with a stance; ``None`` without uses."""
        return self.active / self.uses if self.uses else None

    @property
    def mean_support_success(self) -> float | None:
        """Mean support of rollouts that succeeded, in nats per token; ``None`` where there were none."""
        return self.support_success / self.successes if self.successes else None

    @property
    def mean_support_failure(self) -> float | None:
        """Mean support of rollouts that failed, in nats per token; ``None`` where there were none."""
        return self.support_failure / self.failures if self.failures else None


_SUMS = ("support_success", "support_failure")
_COUNTS = tuple(entry.name for entry in fields(ItemRecord) if entry.name not in _SUMS)


@dataclass(frozen=True)
class Phase:
    """What became of the items in one stretch of training.

    Attributes:
        number: from 0; with w steps a phase, it holds the optimizer steps number · w + 1 to (number + 1) · w.
        items: as in ``Ledger``, of these steps alone.
    """

    number: int
    items: Mapping[str, ItemRecord] = field(default_factory=dict[str, ItemRecord])

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", MappingProxyType(dict(self.items)))

    def record(self, id: str) -> ItemRecord:
        """The record of an item; all zeros for one that was not used then."""
        return self.items.get(id, ItemRecord())


@dataclass(frozen=True)
class Ledger:
    """Item id → record, in the order in which items were first used. Never changed in place.

    Attributes:
        items: the records of all uses; an item that was never used has none.
        phases: the same uses by phase, where their steps are known; those in which an item was used, in order.
        phase_steps: optimizer steps of a phase.
    """

    items: Mapping[str, ItemRecord] = field(default_factory=dict[str, ItemRecord])
    phases: tuple[Phase, ...] = ()
    phase_steps: int = PHASE_STEPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", MappingProxyType(dict(self.items)))

    def record(self, id: str) -> ItemRecord:
        """The record of an item; all zeros for one that was never used."""
        return self.items.get(id, ItemRecord())

    def by_phase(self, id: str) -> tuple[ItemRecord, ...]:
        """The records of an item in each of ``phases``."""
        return tuple(phase.record(id) for phase in self.phases)

    def until(self, step: int) -> Ledger:
        """The uses of the phases that had ended after ``step`` optimizer steps.

        Raises:
            BankError: no phase had.
        """
        ended = tuple(phase for phase in self.phases if (phase.number + 1) * self.phase_steps <= step)
        if not ended:
            expected = f"at least {self.phase_steps}, the steps of a phase"
            raise BankError("no phase had ended by that step", got=step, expected=expected)
        items: dict[str, ItemRecord] = {}
        for phase in ended:
            items = _merged(items, phase.items)
        return Ledger(items, ended, self.phase_steps)

    @property
    def total(self) -> ItemRecord:
        """Over all items; a teacher counts twice, for its skill and for its mistake."""
        return sum(self.items.values(), ItemRecord())

    def credited(
        self,
        pairs: Sequence[Sequence[tuple[str, str]]],
        *,
        support: ArrayLike,
        stance: ArrayLike,
        outcome: ArrayLike,
        step: int | None = None,
    ) -> Ledger:
        """A new ledger with a batch of rollouts added.

        Args:
            pairs: for each of B rollouts the (skill id, mistake id) of its real teachers, at most K, first ones first.
            support: ``[B, K]``, nats per token; what lies beyond a rollout's pairs is padding and never read.
            stance: ``[B, K]`` in {−1, 0, 1}.
            outcome: ``[B]`` in {−1, 0, 1}.
            step: the optimizer step they are part of, from 1; without it they are in no phase.

        Raises:
            ValueError: if the shapes do not fit, or a rollout has more pairs than K.
        """
        supports, stances = np.asarray(support, dtype=np.float64), np.asarray(stance, dtype=np.int64)
        outcomes = np.asarray(outcome, dtype=np.int64)
        if supports.ndim != 2 or stances.shape != supports.shape or outcomes.shape != supports.shape[:1]:
            raise ValueError(
                "support and stance must be [B, K], outcome [B]: got "
                f"{supports.shape}, {stances.shape}, {outcomes.shape}"
            )
        counts = [len(row) for row in pairs]
        if len(counts) != len(outcomes) or max(counts, default=0) > supports.shape[1]:
            raise ValueError(f"pairs must be at most K for each of {len(outcomes)} rollouts: got {counts}")
        real = np.zeros(supports.shape, dtype=np.bool_)
        for row, count in zip(real, counts, strict=True):
            row[:count] = True
        counted, summed = _contributions(supports[real], stances[real], np.repeat(outcomes, counts))
        positions: dict[str, int] = {}
        credited_items = [
            np.asarray(
                [positions.setdefault(pair[part], len(positions)) for row in pairs for pair in row], dtype=np.int64
            )
            for part in (0, 1)
        ]
        count_totals = np.zeros((len(positions), counted.shape[1]), dtype=np.int64)
        sum_totals = np.zeros((len(positions), summed.shape[1]))
        for items in credited_items:
            np.add.at(count_totals, items, counted)
            np.add.at(sum_totals, items, summed)
        records = map(_record, count_totals.tolist(), sum_totals.tolist())
        items = dict(zip(positions, records, strict=True))
        phases = () if step is None or not items else (Phase((step - 1) // self.phase_steps, items),)
        return self + Ledger(items, phases, self.phase_steps)

    def __add__(self, other: Ledger) -> Ledger:
        """The uses of both, such as of two seeds, in phases that both can be brought to."""
        widths = {ledger.phase_steps for ledger in (self, other) if ledger.phases}
        steps = lcm(*widths) if widths else self.phase_steps
        mine, theirs = (
            [_coarser(phase, steps // ledger.phase_steps) for phase in ledger.phases] for ledger in (self, other)
        )
        joined = _joined((*mine, *theirs))
        while len(joined) > MAX_PHASES:
            steps *= 2
            joined = _joined(_coarser(phase, 2) for phase in joined)
        return Ledger(_merged(self.items, other.items), joined, steps)

    def to_json(self) -> str:
        """JSON text, one item a line; ``from_json`` gives the same ledger back, to the last bit."""
        head = f'  "version": {_VERSION},\n  "items": {_lines(self.items)},\n  "phase_steps": {self.phase_steps},\n'
        phases = ",\n".join(f'"{phase.number}": {_lines(phase.items)}' for phase in self.phases)
        return f'{{\n{head}  "phases": {{\n{phases}\n  }}\n}}\n'

    @classmethod
    def from_json(cls, text: str, *, source: str = "ledger") -> Ledger:
        """Read what ``to_json`` wrote; counts that an older version did not keep are 0.

        Args:
            text: JSON.
            source: what to call it in errors.

        Raises:
            BankError: it is no ledger, or was written by a newer version.
        """
        try:
            document = cast(object, json.loads(text))
        except json.JSONDecodeError as error:
            raise BankError(f"{source}: not JSON", got=error.msg) from error
        if not isinstance(document, dict):
            raise BankError(f"{source}: not a ledger", expected="an object with version and items")
        content = cast(dict[str, object], document)
        version, items = content.get("version"), content.get("items")
        if not isinstance(version, int) or not isinstance(items, dict):
            raise BankError(f"{source}: not a ledger", expected="an object with version and items")
        if version > _VERSION:
            raise BankError(f"{source}: written by a newer version", got=version, expected=f"at most {_VERSION}")
        phases, steps = content.get("phases", {}), content.get("phase_steps", PHASE_STEPS)
        if not isinstance(phases, dict) or not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise BankError(f"{source}: phases cannot be read", expected="an object, and phase_steps of 1 or more")
        numbered = cast(dict[str, object], phases)
        if unknown := [name for name in numbered if not name.isdecimal()]:
            raise BankError(f"{source}: not the number of a phase", got=unknown[0])
        return cls(
            _read_items(cast(object, items), source),
            tuple(Phase(int(name), _read_items(value, f"{source}: phase {name}")) for name, value in numbered.items()),
            steps,
        )


def _merged(one: Mapping[str, ItemRecord], other: Mapping[str, ItemRecord]) -> dict[str, ItemRecord]:
    merged = dict(one)
    for id, record in other.items():
        merged[id] = merged.get(id, ItemRecord()) + record
    return merged


def _coarser(phase: Phase, factor: int) -> Phase:
    """As part of a phase of ``factor`` times as many steps."""
    return replace(phase, number=phase.number // factor)


def _joined(phases: Iterable[Phase]) -> tuple[Phase, ...]:
    """One phase a number, in order."""
    found: dict[int, Phase] = {}
    for phase in phases:
        present = found.get(phase.number, Phase(phase.number))
        found[phase.number] = Phase(phase.number, _merged(present.items, phase.items))
    return tuple(found[number] for number in sorted(found))


def _lines(items: Mapping[str, ItemRecord]) -> str:
    body = ",\n".join(f"    {json.dumps(id)}: {json.dumps(asdict(record))}" for id, record in items.items())
    return f"{{\n{body}\n  }}"


def _contributions(
    support: NDArray[np.float64], stance: NDArray[np.int64], outcome: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What each use adds to a record: ``[uses, counts]`` and ``[uses, sums]``, in the order of ``ItemRecord``."""
    polarity = stance * outcome
    counts = (
        np.ones_like(stance),
        stance != 0,
        polarity > 0,
        polarity < 0,
        (stance == 0) & (outcome != 0),
        outcome == 0,
        outcome > 0,
        outcome < 0,
        (polarity > 0) & (outcome > 0),
        (polarity < 0) & (outcome > 0),
        (polarity > 0) & (outcome < 0),
        (polarity < 0) & (outcome < 0),
    )
    sums = (np.where(outcome > 0, support, 0.0), np.where(outcome < 0, support, 0.0))
    return np.stack([column.astype(np.int64) for column in counts], axis=1), np.stack(sums, axis=1)


def _record(counts: Sequence[int], sums: Sequence[float]) -> ItemRecord:
    return ItemRecord(*counts, **dict(zip(_SUMS, sums, strict=True)))


def _read_items(value: object, source: str) -> dict[str, ItemRecord]:
    if not isinstance(value, dict):
        raise BankError(f"{source}: not records", expected="an object of items")
    return {id: _read_record(entry, f"{source}: {id}") for id, entry in cast(dict[str, object], value).items()}


def _read_record(value: object, where: str) -> ItemRecord:
    if not isinstance(value, dict):
        raise BankError(f"{where}: not a record", expected="an object of counts")
    entries = cast(dict[str, object], value)
    if unknown := sorted(set(entries) - {*_COUNTS, *_SUMS}):
        raise BankError(f"{where}: unknown count", got=unknown[0], expected=", ".join((*_COUNTS, *_SUMS)))
    return _record(
        [_number(entries, name, int, where) for name in _COUNTS],
        [_number(entries, name, float, where) for name in _SUMS],
    )


def _number(entries: dict[str, object], name: str, kind: type[_Number], where: str) -> _Number:
    value = entries.get(name, kind())
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BankError(f"{where}.{name}: wrong type", got=repr(value), expected=kind.__name__)
    return value
