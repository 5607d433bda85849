"""Objectives: pure tensor functions, no model in sight.

Axis letters, here and everywhere: B rows, K teachers, T completion tokens, V vocabulary, M tokens of a local support.
A mask is True where a token counts.
"""

from sgsd.objectives.correction import correction_loss, guided_logps, trusted_weights
from sgsd.objectives.divergences import DIVERGENCES, Divergence, OPSDLoss, opsd_loss, token_divergence
from sgsd.objectives.gated import SGSDLoss, gate, local_support_loss, sgsd_loss
from sgsd.objectives.logprobs import selected_logps

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "OPSDLoss",
    "SGSDLoss",
    "correction_loss",
    "gate",
    "guided_logps",
    "local_support_loss",
    "opsd_loss",
    "selected_logps",
    "sgsd_loss",
    "token_divergence",
    "trusted_weights",
]
