"""What became of each bank item: how often it taught, and whether it was right.

A teacher is a pair; both of its items are credited alike. A rollout that is trained on twice counts twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import TypeVar, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgsd.errors import BankError

_VERSION = 1
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
        support_success, support_failure: sums of the support over them, in nats per token.
    """

    uses: int = 0
    active: int = 0
    positive: int = 0
    negative: int = 0
    neutral: int = 0
    undecided: int = 0
    successes: int = 0
    failures: int = 0
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
class Ledger:
    """Item id → record, in the order in which items were first used. Never changed in place.

    Attributes:
        items: the records; an item that was never used has none.
    """

    items: Mapping[str, ItemRecord] = field(default_factory=dict[str, ItemRecord])

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", MappingProxyType(dict(self.items)))

    def record(self, id: str) -> ItemRecord:
        """The record of an item; all zeros for one that was never used."""
        return self.items.get(id, ItemRecord())

    def credited(
        self,
        pairs: Sequence[Sequence[tuple[str, str]]],
        *,
        support: ArrayLike,
        stance: ArrayLike,
        outcome: ArrayLike,
    ) -> Ledger:
        """A new ledger with a batch of rollouts added.

        Args:
            pairs: for each of B rollouts the (skill id, mistake id) of its real teachers, at most K, first ones first.
            support: ``[B, K]``, nats per token; what lies beyond a rollout's pairs is padding and never read.
            stance: ``[B, K]`` in {−1, 0, 1}.
            outcome: ``[B]`` in {−1, 0, 1}.

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
        return self + Ledger(dict(zip(positions, records, strict=True)))

    def __add__(self, other: Ledger) -> Ledger:
        """The uses of both, such as of two seeds."""
        merged = dict(self.items)
        for id, record in other.items.items():
            merged[id] = merged.get(id, ItemRecord()) + record
        return Ledger(merged)

    def to_json(self) -> str:
        """JSON text, one item a line; ``from_json`` gives the same ledger back, to the last bit."""
        lines = [f"    {json.dumps(id)}: {json.dumps(asdict(record))}" for id, record in self.items.items()]
        body = ",\n".join(lines)
        return f'{{\n  "version": {_VERSION},\n  "items": {{\n{body}\n  }}\n}}\n'

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
        entries = cast(dict[str, object], items)
        return cls({id: _read_record(value, f"{source}: {id}") for id, value in entries.items()})


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
    )
    sums = (np.where(outcome > 0, support, 0.0), np.where(outcome < 0, support, 0.0))
    return np.stack([column.astype(np.int64) for column in counts], axis=1), np.stack(sums, axis=1)


def _record(counts: Sequence[int], sums: Sequence[float]) -> ItemRecord:
    return ItemRecord(*counts, support_success=sums[0], support_failure=sums[1])


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
