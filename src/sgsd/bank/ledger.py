"""The ledger: how often each bank item was part of a teacher, and how often that teacher was right.

A teacher is made of a skill and a mistake; each of its uses counts for both.
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
_PRODUCTS = 10  # the upper triangle of a 4 × 4 matrix

_Count: TypeAlias = Annotated[runfolder.Count, Strict()]
_Product: TypeAlias = Annotated[int, Strict(), Field(ge=0, le=1 << 80)]


def _check_length(products: tuple[int, ...]) -> tuple[int, ...]:
    if len(products) not in (0, _PRODUCTS):
        raise ValueError(f"{_PRODUCTS} counts")
    return products


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """Counts of one item's uses. A use is one rollout, scored by one teacher with the item.

    Attributes:
        uses: all uses: positive + negative + neutral + undecided.
        active: uses with a stance.
        positive: uses of polarity +1: supported a success or suppressed a failure.
        negative: uses of polarity −1.
        neutral: uses without a stance on a rollout with a verdict.
        undecided: uses on a rollout without a verdict.
        successes, failures: uses on rollouts that succeeded, that failed.
        positive_success, negative_success: successes that it supported, that it suppressed.
        positive_failure, negative_failure: failures that it suppressed, that it supported.
        support_success, support_failure: sums of the support over successes, over failures, in nats per token.
        products: the sum over problems of x xᵀ, with x = (positive_success, active on successes, positive_failure,
            active on failures) of one problem: the upper triangle, row by row. By default each use counts as a problem
            of its own.
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
    products: Annotated[tuple[_Product, ...], AfterValidator(_check_length)] = ()

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
        """All counts, in the order of the fields."""
        return tuple(getattr(self, name) for name in _COUNTS)

    @property
    def mean_support_success(self) -> float | None:
        """Mean support of rollouts that succeeded, in nats per token; ``None`` if there are none."""
        return self.support_success / self.successes if self.successes else None

    @property
    def mean_support_failure(self) -> float | None:
        """Mean support of rollouts that failed, in nats per token; ``None`` if there are none."""
        return self.support_failure / self.failures if self.failures else None


_COUNTS = [entry.name for entry in fields(ItemRecord)][:12]


@dataclass(frozen=True)
class Ledger:
    """Item id → record, in the order of first use. Immutable."""

    items: Mapping[str, ItemRecord] = field(default_factory=dict[str, ItemRecord])

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", MappingProxyType(dict(self.items)))

    def record(self, id: str) -> ItemRecord:
        """The record of an item; all zeros for one that was never used."""
        return self.items.get(id, ItemRecord())

    @property
    def total(self) -> ItemRecord:
        """The sum of all records; a teacher counts twice, for its skill and for its mistake."""
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

        All rollouts of a problem must be in one call, because they are one cluster of the credit's variance.

        Args:
            pairs: for each of B rollouts, the (skill id, mistake id) of its teachers, at most K, in the order of the
                columns; an empty id for an item that a teacher does not have.
            support: ``[B, K]``, nats per token; values beyond a rollout's pairs are padding.
            stance: ``[B, K]`` in {−1, 0, 1}.
            outcome: ``[B]`` in {−1, 0, 1}: failure, undecided, success.
            problems: ``[B]``, the number or id of each rollout's problem.

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
        """The sum of two ledgers, such as those of two seeds."""
        merged = dict(self.items)
        for id, record in other.items.items():
            merged[id] = merged.get(id, ItemRecord()) + record
        return Ledger(merged)

    def to_json(self) -> str:
        """JSON text, one item a line; ``from_json`` restores the ledger exactly."""
        items = ",\n".join(f"    {json.dumps(id)}: {json.dumps(asdict(one))}" for id, one in self.items.items())
        return f'{{\n  "version": {_VERSION},\n  "items": {{\n{items}\n  }}\n}}\n'

    @classmethod
    def from_json(cls, text: str, *, source: str = "ledger") -> Ledger:
        """Read the text of ``to_json``. In files of older versions each use counts as a problem of its own.

        Args:
            text: JSON.
            source: the name of the text in error messages.

        Raises:
            BankError: the text is not a ledger, or was written by a newer version.
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
    """The record of one item from the (outcome, stance, support, problem) of its uses."""
    tally = Counter((outcome, stance) for outcome, stance, _, _ in uses)
    cells: defaultdict[object, list[int]] = defaultdict(lambda: [0, 0, 0, 0])  # problem → x of ``products``
    supports = {1: 0.0, -1: 0.0, 0: 0.0}
    for outcome, stance, support, problem in uses:
        supports[outcome] += support
        if outcome and stance:
            start = 0 if outcome > 0 else 2
            cells[problem][start] += outcome * stance > 0
            cells[problem][start + 1] += 1
    products = [[one * other for one, other in combinations_with_replacement(cell, 2)] for cell in cells.values()]
    supported, suppressed = (tally[1, 1], tally[-1, 1]), (tally[1, -1], tally[-1, -1])  # successes, failures
    successes, failures = (sum(n for (own, _), n in tally.items() if own == outcome) for outcome in (1, -1))
    active = sum(n for (_, stance), n in tally.items() if stance)
    return ItemRecord(
        uses=len(uses),
        active=active,
        positive=supported[0] + suppressed[1],
        negative=suppressed[0] + supported[1],
        neutral=tally[1, 0] + tally[-1, 0],
        undecided=len(uses) - successes - failures,
        successes=successes,
        failures=failures,
        positive_success=supported[0],
        negative_success=suppressed[0],
        positive_failure=suppressed[1],
        negative_failure=supported[1],
        support_success=supports[1],
        support_failure=supports[-1],
        products=tuple(map(sum, zip(*products, strict=True))),
    )


def _check_products(record: ItemRecord) -> ItemRecord:
    """Refuse impossible sums of squares, by which a credit divides: Σ n_i² of n uses lies between n and n²."""
    success, failure = (
        record.positive_success + record.negative_success,
        record.positive_failure + record.negative_failure,
    )
    if not (success <= record.products[4] <= success**2 and failure <= record.products[9] <= failure**2):
        raise ValueError("products that its counts can have")
    return record


class _File(BaseModel):
    """The content of a ledger file; other keys of older versions are ignored."""

    version: _Count
    items: dict[str, Annotated[ItemRecord, AfterValidator(_check_products)]]


_FILE = TypeAdapter(_File)
