"""The GRPO baseline, and all trainers by method name; ``trainers.config.CONFIGS`` has their configurations."""

from __future__ import annotations

from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.opsd import OPSDTrainer
from sgsd.trainers.sgsd import SGSDTrainer


class GRPOBaselineTrainer(VerifiedTrainer):
    """TRL's GRPO, with its loss and advantages, on the rows, prompts and verdicts of the other methods.

    With a verifier, a successful rollout has reward 1, a failed one 0, an undecided one none. With ``skills_in_prompt``
    (GRPO+Skill) the rollouts' prompts show each problem's best skill–mistake pairs; evaluation prompts stay plain.
    Arguments and errors: see ``trainers.base.VerifiedTrainer``. ``args`` is a ``GRPOBaselineConfig``.
    """

    method = "grpo"


TRAINERS: dict[str, type[VerifiedTrainer]] = {
    trainer.method: trainer for trainer in (SGSDTrainer, GRPOBaselineTrainer, OPSDTrainer)
}
