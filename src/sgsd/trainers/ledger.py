"""The ledger during training: each scored rollout is counted once, and all processes have the same ledger.

A problem's G rollouts are one cluster of the credit's variance. An optimizer step may train on some of them only; they
are counted at the end of the step that has the last one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate.utils import gather
from numpy.typing import NDArray
from torch import Tensor

from sgsd.bank import Ledger, SkillBank
from sgsd.bank.credit import cautious_worth, credit, sure_worth, trust, vouched, worth
from sgsd.errors import BankError, CheckpointError
from sgsd.retrieval import Pair
from sgsd.scoring.teachers import TeacherPool

_Observations: TypeAlias = NDArray[np.float64]
_NOTHING: _Observations = np.empty((0, 1, 7))


class TrainingLedger:
    """Each bank item's record of stances and outcomes, and the trust in teachers that follows from it.

    Stances are collected on the device per micro-batch, and gathered once per optimizer step.

    Args:
        group_size: G, rollouts per problem; they are one cluster in the ledger's intervals.
        trust: the setting ``teacher_trust``.

    Attributes:
        ledger: of the problems whose G rollouts have all been observed.
    """

    def __init__(self, group_size: int, trust: str) -> None:
        self.ledger = Ledger()
        self._begun = _NOTHING  # observations of the other problems, of all processes
        self._group_size = group_size
        self._trust = trust
        # Item ids by number, since tensors cannot contain ids. Numbers are equal on all processes and never change.
        self._ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self._observed: list[Tensor] = []

    def numbers(self, pools: Sequence[TeacherPool], bank: SkillBank, num_teachers: int) -> Tensor:
        """``[B, K, 2]``: numbers of each teacher's skill and mistake; −1 for padding and for a missing item.

        Args:
            pools: the teachers of B rollouts.
            bank: the bank of their items, the same on all processes.
            num_teachers: K.
        """
        for item in bank.items:
            if item.id not in self._numbers:
                self._numbers[item.id] = len(self._ids)
                self._ids.append(item.id)
        numbers = torch.full((len(pools), num_teachers, 2), -1)
        for row, pool in enumerate(pools):
            for k, pair in enumerate(pool.pairs):
                of_pair = [-1 if item is None else self._numbers[item.id] for item in (pair.skill, pair.mistake)]
                numbers[row, k] = torch.tensor(of_pair)
        return numbers

    def ids(self, skill: int, mistake: int) -> tuple[str, str]:
        """Ids of a pair's ``numbers``; an empty text for −1."""
        first, second = (self._ids[number] if number >= 0 else "" for number in (skill, mistake))
        return first, second

    def trust(self, pools: Sequence[TeacherPool]) -> list[list[float]]:
        """τ of each pool's teachers, from the ledger before this batch; the same on all processes."""
        if self._trust == "equal":
            return [[1.0] * len(pool.pairs) for pool in pools]
        prior = sure_worth(self.ledger.items.values())

        def of_pair(pair: Pair) -> float:
            records = [self.ledger.record(item.id) for item in pair.items]
            if self._trust in ("worth", "cautious"):
                return (worth if self._trust == "worth" else cautious_worth)(*records, prior=prior)
            return vouched(*records) if self._trust == "vouched" else trust(*records)

        distinct = {id(pool): pool for pool in pools}  # the G rollouts of a prompt share one
        found = {key: [of_pair(pair) for pair in pool.pairs] for key, pool in distinct.items()}
        return [found[id(pool)] for pool in pools]

    def observe(
        self, rows: Tensor, items: Tensor, outcome: Tensor, scored: Tensor, support: Tensor, stance: Tensor
    ) -> None:
        """Keep a micro-batch for ``end_step``.

        Args:
            rows: ``[B]``, the rollouts' numbers in the step.
            items: ``[B, K, 2]``, from ``numbers``.
            outcome: ``[B]`` in {−1, 0, 1}.
            scored, support, stance: ``[B, K]``.
        """
        of_row = [tensor.unsqueeze(1).expand_as(support).float() for tensor in (rows, outcome)]
        columns = [*of_row, *items.unbind(-1), scored, support, stance]
        self._observed.append(torch.stack([column.detach().float() for column in columns], dim=-1))

    def end_step(self) -> None:
        """Credit the problems whose last rollout was observed since the last call; one gather, one host sync."""
        values = self._begun
        if self._observed:
            gathered = gather(torch.cat(self._observed).contiguous()).cpu().double().numpy()  # [B, K, 7]
            values = np.concatenate([values, gathered]) if len(values) else gathered
        self._observed = []
        _, of_row, sizes = np.unique(self._problems(values), return_inverse=True, return_counts=True)
        whole = sizes[of_row] >= self._group_size
        self.ledger, self._begun = self._credited(values[whole]), values[~whole]

    @property
    def so_far(self) -> Ledger:
        """The ledger with the observed rollouts of all problems: what is left if no more of them follow."""
        return self._credited(self._begun)

    def _problems(self, values: _Observations) -> _Observations:
        return values[:, 0, 0] // self._group_size

    def _credited(self, values: _Observations) -> Ledger:
        """The ledger with observations ``[B, K, 7]`` added."""
        run = [teachers[teachers[:, 4] > 0] for teachers in values]
        run = [teachers for teachers in run if len(teachers)]
        if not run:
            return self.ledger
        K = max(map(len, run))
        padded = np.stack([np.pad(teachers, ((0, K - len(teachers)), (0, 0))) for teachers in run])
        return self.ledger.credited(
            [[self.ids(int(skill), int(mistake)) for skill, mistake in teachers[:, 2:4]] for teachers in run],
            support=padded[..., 5],
            stance=padded[..., 6],
            outcome=padded[:, 0, 1],
            problems=self._problems(padded),
        )

    def credit_of(self, id: str) -> float | None:
        """An item's credit; ``None`` if its teachers have not taken a stance yet."""
        record = self.ledger.record(id)
        return credit(record).value if record.positive + record.negative else None

    def totals(self, bank: SkillBank) -> dict[str, float]:
        """Totals since the run began, for the log; a use of a pair counts for both items.

        ``credit`` is the mean over the bank's items that have a credit; NaN if none has.
        """
        credits = [value for item in bank.items if (value := self.credit_of(item.id)) is not None]
        names = ("uses", "active", "positive", "negative", "neutral")  # no undecided: such rollouts are not scored
        return {
            "items": float(len(self.ledger.items)),
            **dict(zip(names, map(float, self.ledger.total.counts), strict=False)),
            "credit": sum(credits) / len(credits) if credits else float("nan"),
        }

    def state_dict(self) -> dict[str, Any]:
        """With ``so_far``, since a resumed run samples anew: it does not see the rest of a generation batch."""
        return json.loads(self.so_far.to_json())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._begun = _NOTHING
        try:
            self.ledger = Ledger.from_json(json.dumps(state), source="the checkpoint's ledger")
        except BankError as error:
            raise CheckpointError("the checkpoint's ledger cannot be read", got=str(error)) from error
