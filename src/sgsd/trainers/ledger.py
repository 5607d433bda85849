"""The ledger during training: every scored rollout counts once, on all processes alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from torch import Tensor

from sgsd.bank import Ledger, SkillBank
from sgsd.bank.credit import credit, sure_worth, trust, vouched, worth
from sgsd.errors import BankError, CheckpointError
from sgsd.retrieval import Pair
from sgsd.scoring.teachers import TeacherPool


class TrainingLedger:
    """What each bank item was worth so far, and the trust in teachers that follows from it.

    Stances are observed micro-batch by micro-batch, kept on the device, and gathered once an optimizer step.

    Args:
        group_size: G, rollouts of a problem; they are one cluster in the ledger's intervals.
        trust: ``worth``, ``ledger``, ``vouched`` or ``equal`` (the setting ``teacher_trust``).
    """

    def __init__(self, group_size: int, trust: str) -> None:
        self.ledger = Ledger()
        self._group_size = group_size
        self._trust = trust
        # Item ids by number, the same on all processes: tensors carry numbers. An id keeps its number for good.
        self._ids: list[str] = []
        self._numbers: dict[str, int] = {}
        self._observed: list[Tensor] = []

    def numbers(self, pools: Sequence[TeacherPool], bank: SkillBank, num_teachers: int) -> Tensor:
        """``[B, K, 2]``: numbers of each teacher's skill and mistake, −1 for padding and for one that it has not.

        ``pools`` are the teachers of B rollouts, ``bank`` what they come from, the same on all processes.
        """
        for item in bank.items:
            if item.id not in self._numbers:
                self._numbers[item.id] = len(self._ids)
                self._ids.append(item.id)
        numbers = torch.full((len(pools), num_teachers, 2), -1)
        for row, pool in enumerate(pools):
            for k, pair in enumerate(pool.pairs):
                own = [-1 if item is None else self._numbers[item.id] for item in (pair.skill, pair.mistake)]
                numbers[row, k] = torch.tensor(own)
        return numbers

    def ids(self, skill: int, mistake: int) -> tuple[str, str]:
        """Ids of numbers that ``numbers`` gave; empty for −1."""
        first, second = (self._ids[number] if number >= 0 else "" for number in (skill, mistake))
        return first, second

    def trust(self, pools: Sequence[TeacherPool]) -> list[list[float]]:
        """τ of each pool's teachers, by what is known before this batch; the same on all processes."""
        if self._trust == "equal":
            return [[1.0] * len(pool.pairs) for pool in pools]
        prior = sure_worth(self.ledger.items.values())

        def of_pair(pair: Pair) -> float:
            records = [self.ledger.record(item.id) for item in pair.items]
            if self._trust == "worth":
                return worth(*records, prior=prior)
            return vouched(*records) if self._trust == "vouched" else trust(*records)

        distinct = {id(pool): pool for pool in pools}  # the G rollouts of a prompt share one
        found = {key: [of_pair(pair) for pair in pool.pairs] for key, pool in distinct.items()}
        return [found[id(pool)] for pool in pools]

    def observe(
        self, rows: Tensor, items: Tensor, outcome: Tensor, scored: Tensor, support: Tensor, stance: Tensor
    ) -> None:
        """Keep a micro-batch for ``end_step``.

        ``rows`` and ``outcome`` are ``[B]``, ``items`` those of ``numbers``; the others are ``[B, K]``.
        """
        of_row = [tensor.unsqueeze(1).expand_as(support).float() for tensor in (rows, outcome)]
        columns = [*of_row, *items.unbind(-1), scored, support, stance]
        self._observed.append(torch.stack([column.detach().float() for column in columns], dim=-1))

    def end_step(self) -> None:
        """Credit what was observed on all processes since the last call; one gather, one host sync."""
        values = np.empty((0, 1, 7))
        if self._observed:
            values = gather(torch.cat(self._observed).contiguous()).cpu().double().numpy()  # [B, K, 7]
        self._observed = []
        run = [teachers[teachers[:, 4] > 0] for teachers in values]
        run = [teachers for teachers in run if len(teachers)]
        if run:
            K = max(map(len, run))
            padded = np.stack([np.pad(teachers, ((0, K - len(teachers)), (0, 0))) for teachers in run])
            self.ledger = self.ledger.credited(
                [[self.ids(int(skill), int(mistake)) for skill, mistake in teachers[:, 2:4]] for teachers in run],
                support=padded[..., 5],
                stance=padded[..., 6],
                outcome=padded[:, 0, 1],
                problems=padded[:, 0, 0] // self._group_size,
            )

    def credit_of(self, id: str) -> float | None:
        """What an item has been worth; ``None`` where it took no stance yet."""
        record = self.ledger.record(id)
        return credit(record).value if record.positive + record.negative else None

    def totals(self, bank: SkillBank) -> dict[str, float]:
        """Totals since the run began, for the log; an item counts for each teacher it was part of.

        ``credit`` is the mean over the bank's items that were used with a stance; NaN where none was.
        """
        credits = [value for item in bank.items if (value := self.credit_of(item.id)) is not None]
        names = ("uses", "active", "positive", "negative", "neutral")  # undecided rollouts are not scored
        return {
            "items": float(len(self.ledger.items)),
            **dict(zip(names, map(float, self.ledger.total.counts), strict=False)),
            "credit": sum(credits) / len(credits) if credits else float("nan"),
        }

    def state_dict(self) -> dict[str, Any]:
        return json.loads(self.ledger.to_json())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        try:
            self.ledger = Ledger.from_json(json.dumps(state), source="the checkpoint's ledger")
        except BankError as error:
            raise CheckpointError("the checkpoint's ledger cannot be read", got=str(error)) from error
