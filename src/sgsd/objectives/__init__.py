"""Objectives: losses on tensors of log-probabilities, as pure functions and small classes.

Axis letters: B rows, K teachers, T completion tokens, V vocabulary, M likeliest tokens of a teacher. A mask is True
where a token counts.
"""

from sgsd.objectives.base import (
    Configurable,
    Metrics,
    Needs,
    Objective,
    OwnStances,
    Rollouts,
    Settings,
    StudentScores,
    TeacherScores,
    means,
    total,
)
from sgsd.objectives.correction import Correction, correction_loss, guided_logps, trusted_weights
from sgsd.objectives.divergences import DIVERGENCES, Divergence, token_divergence
from sgsd.objectives.gated import (
    Gated,
    LocalSupport,
    SGSDLoss,
    gate,
    local_support_loss,
    sgsd_loss,
    stance_metrics,
    stances,
    supports,
)
from sgsd.objectives.logprobs import selected_logps
from sgsd.objectives.reweight import Reweight

OBJECTIVES: dict[str, type[Configurable]] = {
    objective.name: objective for objective in (Gated, LocalSupport, Correction, Reweight)
}
"""Value of the setting ``objective`` → class: ``OBJECTIVES[args.objective].from_config(args)``."""

__all__ = [
    "DIVERGENCES",
    "OBJECTIVES",
    "Configurable",
    "Correction",
    "Divergence",
    "Gated",
    "LocalSupport",
    "Metrics",
    "Needs",
    "Objective",
    "OwnStances",
    "Reweight",
    "Rollouts",
    "SGSDLoss",
    "Settings",
    "StudentScores",
    "TeacherScores",
    "correction_loss",
    "gate",
    "guided_logps",
    "local_support_loss",
    "means",
    "selected_logps",
    "sgsd_loss",
    "stance_metrics",
    "stances",
    "supports",
    "token_divergence",
    "total",
    "trusted_weights",
]
