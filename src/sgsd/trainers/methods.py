"""GRPO, the baseline, and method names → trainers; their configurations are ``trainers.config.CONFIGS``."""

from __future__ import annotations

from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.opsd import OPSDTrainer
from sgsd.trainers.sgsd import SGSDTrainer


class GRPOBaselineTrainer(VerifiedTrainer):
    """TRL's GRPO, loss and advantages as they are, on the rows, prompts and verdicts of the other methods.

    A successful rollout has reward 1, a failed one 0, an undecided one none. With ``skills_in_prompt`` (GRPO+Skill) the
    rollouts' prompts show each problem's best skill–mistake pairs; evaluations stay plain. Arguments and errors: see
    ``trainers.base.VerifiedTrainer``. ``args`` is a ``GRPOBaselineConfig``.
    """

    method = "grpo"


TRAINERS: dict[str, type[VerifiedTrainer]] = {
    trainer.method: trainer for trainer in (SGSDTrainer, GRPOBaselineTrainer, OPSDTrainer)
}
