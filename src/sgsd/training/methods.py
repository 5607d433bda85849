"""Method names → trainers; their configurations are ``training.config.CONFIGS``."""

from __future__ import annotations

from sgsd.training.base import VerifiedTrainer
from sgsd.training.grpo import GRPOBaselineTrainer
from sgsd.training.opsd import OPSDTrainer
from sgsd.training.sgsd import SGSDTrainer

TRAINERS: dict[str, type[VerifiedTrainer]] = {
    trainer.method: trainer for trainer in (SGSDTrainer, GRPOBaselineTrainer, OPSDTrainer)
}
