"""Skill-conditioned gated self-distillation for language models.

``SGSDConfig`` and ``SGSDTrainer`` are the interface for training; GRPO's and OPSD's classes are used in the same way.
Names are imported on first use, so ``import sgsd`` does not import torch.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "GRPOBaselineConfig": "sgsd.trainers.config",
    "GRPOBaselineTrainer": "sgsd.trainers.methods",
    "OPSDConfig": "sgsd.trainers.config",
    "OPSDTrainer": "sgsd.trainers.opsd",
    "Outcome": "sgsd.verifiers",
    "Problem": "sgsd.data.problems",
    "SGSDConfig": "sgsd.trainers.config",
    "SGSDTrainer": "sgsd.trainers.sgsd",
    "SkillBank": "sgsd.bank",
    "Verdict": "sgsd.verifiers",
    "get_verifier": "sgsd.verifiers",
    "internalize": "sgsd.cli.internalize",
    "score_completions": "sgsd.scoring.logprobs",
    "sgsd_loss": "sgsd.objectives",
}

__all__ = [*sorted(_EXPORTS), "__version__"]


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'sgsd' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
