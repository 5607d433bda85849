"""What the trainer does between steps: teacher weights follow the policy, checkpoints get the method's own state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sgsd.training.state import save_state

if TYPE_CHECKING:
    from sgsd.training.base import VerifiedTrainer


class StateCallback(TrainerCallback):
    """Keeps a trainer's teacher weights and checkpoint state in step with the optimizer."""

    def __init__(self, trainer: VerifiedTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.skip_epochs(int(state.epoch))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._trainer.teacher_weights is not None:
            self._trainer.teacher_weights.after_optimizer_step(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.save_only_model:  # without optimizer and random state there is nothing to go on from
            return
        accelerator = self._trainer.accelerator

        def save() -> None:
            save_state(
                Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}",
                method=self._trainer.method,
                step=state.global_step,
                bank=self._trainer.bank,
                initial_bank=self._trainer.initial_bank,
                teacher=self._trainer.teacher_weights,
                ledger=self._trainer.ledger,
                window=self._trainer.window,
                guard=None if self._trainer.guard is None else self._trainer.guard.to_json(),
                rank=accelerator.process_index,
            )

        # Rank 0 writes the mark of a complete checkpoint, so it goes last.
        if not accelerator.is_main_process:
            save()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save()
