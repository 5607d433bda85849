"""GRPO, the baseline: TRL's loss and advantages as they are, on the rows, prompts and verdicts of the other methods.

A successful rollout has reward 1, a failed one 0, an undecided one none. With ``skills_in_prompt`` (GRPO+Skill) the
rollouts' prompts show each problem's best skill–mistake pairs; evaluations stay plain.
"""

from __future__ import annotations

from sgsd.trainers.base import VerifiedTrainer


class GRPOBaselineTrainer(VerifiedTrainer):
    """TRL's GRPO under this package's roof, used like any TRL trainer.

    Arguments and errors: see ``trainers.base.VerifiedTrainer``. ``args`` is a ``GRPOBaselineConfig``.
    """

    method = "grpo"
