"""Method names → trainers; their configurations are ``trainers.config.CONFIGS``."""

from __future__ import annotations

from sgsd.trainers.base import VerifiedTrainer
from sgsd.trainers.grpo import GRPOBaselineTrainer
from sgsd.trainers.opsd import OPSDTrainer
from sgsd.trainers.sgsd import SGSDTrainer

TRAINERS: dict[str, type[VerifiedTrainer]] = {
    trainer.method: trainer for trainer in (SGSDTrainer, GRPOBaselineTrainer, OPSDTrainer)
}
