"""What became of each bank item: how often it taught, and whether it was right.

A teacher is a pair; both of its items are credited alike.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import combinations_with_replacement
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, TypeAdapter

from sgsd import runfolder
from sgsd.errors import BankError
from sgsd.validation import parse_json, validated

_VERSION = 3
_PRODUCTS = 10  # of two of four counts, the upper triangle row by row

_Count: TypeAlias = Annotated[runfolder.Count, Strict()]
_Product: TypeAlias = Annotated[int, Strict(), Field(ge=0, le=1 << 80)]


def _ten(products: tuple[int, ...]) -> tuple[int, ...]:
    if len(products) not in (0, _PRODUCTS):
        raise ValueError(f"{_PRODUCTS} counts")
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
        return tuple(getattr(self, name) for name in _COUNTS)

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


_COUNTS = [entry.name for entry in fields(ItemRecord)][:12]


@dataclass(frozen=True)
class Ledger:
    """Item id → record, in the order in which items were first used. Never changed in place."""

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
        uses: defaultdict[str, list[tuple[int, int, float, object]]] = defaultdict(list)
        for part in (0, 1):
            for row, teachers in enumerate(pairs):
                for k, teacher in enumerate(teachers):
                    use = int(outcomes[row]), int(stances[row, k]), float(supports[row, k]), problem[row]
                    uses[teacher[part]].append(use)
        return self + Ledger({id: _record(own) for id, own in uses.items() if id})

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


def _record(uses: Sequence[tuple[int, int, float, object]]) -> ItemRecord:
    """Of one item's (outcome, stance, support, problem) in a batch."""
    tally = Counter((outcome, stance) for outcome, stance, _, _ in uses)
    cells: defaultdict[object, list[int]] = defaultdict(lambda: [0, 0, 0, 0])  # problem → the four of ``products``
    supports = {1: 0.0, -1: 0.0, 0: 0.0}
    for outcome, stance, support, problem in uses:
        supports[outcome] += support
        if outcome and stance:
            start = 0 if outcome > 0 else 2
            cells[problem][start] += outcome * stance > 0
            cells[problem][start + 1] += 1
    products = [[one * other for one, other in combinations_with_replacement(cell, 2)] for cell in cells.values()]
    right, wrong, righted, wronged = tally[1, 1], tally[1, -1], tally[-1, -1], tally[-1, 1]
    successes, failures = (sum(n for (own, _), n in tally.items() if own == outcome) for outcome in (1, -1))
    active = sum(n for (_, stance), n in tally.items() if stance)
    return ItemRecord(
        uses=len(uses),
        active=active,
        positive=right + righted,
        negative=wrong + wronged,
        neutral=tally[1, 0] + tally[-1, 0],
        undecided=len(uses) - successes - failures,
        successes=successes,
        failures=failures,
        positive_success=right,
        negative_success=wrong,
        positive_failure=righted,
        negative_failure=wronged,
        support_success=supports[1],
        support_failure=supports[-1],
        products=tuple(map(sum, zip(*products, strict=True))),
    )


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
