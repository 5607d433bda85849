"""What became of each bank item: how often it taught, and whether it was right.

A teacher is a pair; both of its items are credited alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, TypeAdapter

from sgsd import runfolder
from sgsd.errors import BankError
from sgsd.validation import parse_json, validated

_VERSION = 3
_UPPER = np.triu_indices(4)  # of two of four counts, row by row
_Scalar = TypeVar("_Scalar", np.int64, np.float64)


_Count: TypeAlias = Annotated[runfolder.Count, Strict()]
_Product: TypeAlias = Annotated[int, Strict(), Field(ge=0, le=1 << 80)]


def _ten(products: tuple[int, ...]) -> tuple[int, ...]:
    if len(products) not in (0, len(_UPPER[0])):
        raise ValueError(f"{len(_UPPER[0])} counts")
    return products


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
        products: with (positive_success, active on successes, positive_failure, active on failures) of one problem, the
            sum over problems of the product of each two, the upper triangle row by row. Left out, each use is of
            a problem of its own.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    uses: _Count = 0
    active: _Count = 0
    positive: _Count = 0
    negative: _Count = 0
    neutral: _Count = 0
    undecided: _Count = 0
    successes: _Count = 0
    failures: _Count = 0
    positive_success: _Count = 0
    negative_success: _Count = 0
    positive_failure: _Count = 0
    negative_failure: _Count = 0
    support_success: Annotated[float, Strict()] = 0.0
    support_failure: Annotated[float, Strict()] = 0.0
    products: Annotated[tuple[_Product, ...], AfterValidator(_ten)] = ()

    def __post_init__(self) -> None:
        if not self.products:
            success, failure = self.positive_success, self.positive_failure
            actives = success + self.negative_success, failure + self.negative_failure
            alone = (success, success, 0, 0, actives[0], 0, 0, failure, failure, actives[1])
            object.__setattr__(self, "products", alone)

    def __add__(self, other: ItemRecord) -> ItemRecord:
        return ItemRecord(
            *(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)),
            support_success=self.support_success + other.support_success,
            support_failure=self.support_failure + other.support_failure,
            products=tuple(mine + theirs for mine, theirs in zip(self.products, other.products, strict=True)),
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


@dataclass(frozen=True)
class Ledger:
    """Item id → record, in the order in which items were first used. Never changed in place.

    Attributes:
        items: the records of all uses; an item that was never used has none.
    """

    items: Mapping[str, ItemRecord] = field(default_factory=dict[str, ItemRecord])

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", MappingProxyType(dict(self.items)))

    def record(self, id: str) -> ItemRecord:
        """The record of an item; all zeros for one that was never used."""
        return self.items.get(id, ItemRecord())

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
        problems: ArrayLike,
    ) -> Ledger:
        """A new ledger with a batch of rollouts added.

        Rollouts of one problem are not independent of each other: hand over all of a problem in one call.

        Args:
            pairs: for each of B rollouts the (skill id, mistake id) of its real teachers, at most K, first ones first;
                an empty id where a teacher has no such item.
            support: ``[B, K]``, nats per token; what lies beyond a rollout's pairs is padding and never read.
            stance: ``[B, K]`` in {−1, 0, 1}.
            outcome: ``[B]`` in {−1, 0, 1}.
            problems: ``[B]``, numbers or texts, alike for rollouts of one problem of this call.

        Raises:
            ValueError: if the shapes do not fit, or a rollout has more pairs than K.
        """
        supports, stances = np.asarray(support, dtype=np.float64), np.asarray(stance, dtype=np.int64)
        outcomes, problem = np.asarray(outcome, dtype=np.int64), np.asarray(problems)
        per_rollout = {outcomes.shape, problem.shape}
        if supports.ndim != 2 or stances.shape != supports.shape or per_rollout != {supports.shape[:1]}:
            raise ValueError(
                "support and stance must be [B, K], outcome and problems [B]: got "
                f"{supports.shape}, {stances.shape}, {outcomes.shape}, {problem.shape}"
            )
        counts = [len(row) for row in pairs]
        if len(counts) != len(outcomes) or max(counts, default=0) > supports.shape[1]:
            raise ValueError(f"pairs must be at most K for each of {len(outcomes)} rollouts: got {counts}")
        real = np.zeros(supports.shape, dtype=np.bool_)
        for row, count in zip(real, counts, strict=True):
            row[:count] = True
        counted, summed = _contributions(supports[real], stances[real], np.repeat(outcomes, counts))
        positions: dict[str, int] = {}
        used = [positions.setdefault(pair[part], len(positions)) for part in (0, 1) for row in pairs for pair in row]
        items = np.asarray(used, dtype=np.int64)
        counted, summed = np.tile(counted, (2, 1)), np.tile(summed, (2, 1))  # of skills, of mistakes
        distinct, problem = np.unique(problem, return_inverse=True)
        # An item on a problem is a cell.
        cells, cell = np.unique(items * len(distinct) + np.tile(np.repeat(problem, counts), 2), return_inverse=True)
        products = _products(_totals(counted[:, -4:], cell, len(cells)))
        records = map(
            _record,
            _totals(counted, items, len(positions)).tolist(),
            _totals(summed, items, len(positions)).tolist(),
            _totals(products, cells // max(len(distinct), 1), len(positions)).tolist(),
        )
        return self + Ledger({id: record for id, record in zip(positions, records, strict=True) if id})

    def __add__(self, other: Ledger) -> Ledger:
        """The uses of both, such as of two seeds."""
        merged = dict(self.items)
        for id, record in other.items.items():
            merged[id] = merged.get(id, ItemRecord()) + record
        return Ledger(merged)

    def to_json(self) -> str:
        """JSON text, one item a line; ``from_json`` gives the same ledger back, to the last bit."""
        items = ",\n".join(f"    {json.dumps(id)}: {json.dumps(asdict(one))}" for id, one in self.items.items())
        return f'{{\n  "version": {_VERSION},\n  "items": {{\n{items}\n  }}\n}}\n'

    @classmethod
    def from_json(cls, text: str, *, source: str = "ledger") -> Ledger:
        """Read what ``to_json`` wrote, or an older version: its uses count as of a problem each, its phases are left.

        Args:
            text: JSON.
            source: what to call it in errors.

        Raises:
            BankError: it is no ledger, or was written by a newer version.
        """
        document = parse_json(text, source, BankError)
        version = document.get("version")
        if isinstance(version, int) and version > _VERSION:
            raise BankError(f"{source}: written by a newer version", got=version, expected=f"at most {_VERSION}")
        return cls(
            validated(_FILE, document, source, BankError, known=[entry.name for entry in fields(ItemRecord)]).items
        )

    @classmethod
    def load(cls, file: Path) -> Ledger:
        """Read a file; errors as ``from_json``."""
        return cls.from_json(runfolder.read_text(file, BankError), source=str(file))


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


def _products(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[cells, 10]``, see ``ItemRecord``, from ``[cells, 4]``: positive, negative on successes, on failures."""
    right, wrong, righted, wronged = counts.T
    both = np.stack([right, right + wrong, righted, righted + wronged], axis=1)
    return both[:, _UPPER[0]] * both[:, _UPPER[1]]


def _totals(values: NDArray[_Scalar], places: NDArray[np.int64], number: int) -> NDArray[_Scalar]:
    """``[number, columns]``: the rows of each place added up, in their order."""
    totals = np.zeros((number, values.shape[1]), dtype=values.dtype)
    np.add.at(totals, places, values)
    return totals


def _record(counts: Sequence[int], sums: Sequence[float], products: Sequence[int]) -> ItemRecord:
    on_success, on_failure = sums
    return ItemRecord(*counts, support_success=on_success, support_failure=on_failure, products=tuple(products))


def _possible(record: ItemRecord) -> ItemRecord:
    """A credit divides by the sums of squares: n uses of an item have one from n to n²."""
    success, failure = (
        record.positive_success + record.negative_success,
        record.positive_failure + record.negative_failure,
    )
    if not (success <= record.products[4] <= success**2 and failure <= record.products[9] <= failure**2):
        raise ValueError("products that its counts can have")
    return record


class _File(BaseModel):
    """A ledger's file; what older versions held beside the records is left."""

    version: _Count
    items: dict[str, Annotated[ItemRecord, AfterValidator(_possible)]]


_FILE = TypeAdapter(_File)
