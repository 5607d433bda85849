"""The ledger during training: its totals among the metrics, and retirement of items by their credit.

Every process keeps the same ledger, of all processes' rollouts, and retires by its counts alone: all come to the same
bank without asking each other. ``retirements.jsonl`` in the run's folder has a line for each retired item, with the
evidence. The items themselves are in the bank's metadata (``bank.retire``), hence in checkpoints.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from sgsd.bank import Ledger, SkillBank
from sgsd.bank.credit import credit
from sgsd.bank.retire import RetirementRule, retire, retired_items
from sgsd.training.config import SGSDConfig
from sgsd.training.record import append_lines, keep_until

if TYPE_CHECKING:
    from sgsd.training.sgsd import SGSDTrainer

RETIREMENTS_FILE = "retirements.jsonl"


def rule_of(args: SGSDConfig) -> RetirementRule | None:
    """The rule of a run; ``None`` where nothing is retired. A list keeps K items: fewer teachers are no cure."""
    if args.retire_below is None:
        return None
    return RetirementRule(args.retire_below, args.retire_min_active, static=args.retire_static, keep=args.num_teachers)


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
        "retired": float(len(retired_items(bank))),
    }


class LedgerCallback(TrainerCallback):
    """Retires every ``retire_frequency`` optimizer steps, before online maintenance makes room, and logs totals."""

    def __init__(self, trainer: SGSDTrainer) -> None:
        self._trainer = trainer
        args: Any = trainer.args
        self._rule = rule_of(args)
        self._file = Path(args.output_dir) / RETIREMENTS_FILE

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._rule is not None and state.is_world_process_zero:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            keep_until(self._file, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        if self._rule is not None and state.global_step % args.retire_frequency == 0:
            trainer.bank, gone = retire(trainer.bank, trainer.ledger, self._rule, step=state.global_step)
            if gone and state.is_world_process_zero:
                append_lines(self._file, map(asdict, gone))
        if control.should_log:
            trainer.log_totals(
                {f"sgsd/ledger/{name}": n for name, n in ledger_metrics(trainer.ledger, trainer.bank).items()}
            )
