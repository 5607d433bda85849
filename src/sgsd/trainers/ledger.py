"""The ledger's totals among a run's metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from sgsd.bank import Ledger, SkillBank
from sgsd.bank.credit import credit

if TYPE_CHECKING:
    from sgsd.trainers.sgsd import SGSDTrainer


def ledger_metrics(ledger: Ledger, bank: SkillBank) -> dict[str, float]:
    """Totals since the run began; an item counts for each teacher it was part of.

    ``credit`` is the mean over the bank's items that were used with a stance; NaN where none was.
    """
    total = ledger.total
    credits = [
        credit(record).value for item in bank.items if (record := ledger.record(item.id)).positive + record.negative
    ]
    names = ("uses", "active", "positive", "negative", "neutral", "undecided")
    return {
        "items": float(len(ledger.items)),
        **dict(zip(names, map(float, total.counts), strict=False)),
        "credit": sum(credits) / len(credits) if credits else float("nan"),
    }


class LedgerCallback(TrainerCallback):
    """Logs the ledger's totals."""

    def __init__(self, trainer: SGSDTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        if control.should_log:
            trainer.log_totals(
                {f"sgsd/ledger/{name}": n for name, n in ledger_metrics(trainer.ledger, trainer.bank).items()}
            )
