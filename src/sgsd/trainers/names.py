"""A run's settings → its method's name: on screens, in comparisons, reports and model cards. No torch.

"SGSD" is the objective of the paper (arXiv 2605.28791) and no other. Another objective has its own name, and GRPO's
loss is named where it is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BASE = "Base"
PAPER = "SGSD"
_SHOWN = {"gated": PAPER, "local": "local support"}  # others are named as the setting ``objective`` names them


def method_name(settings: Mapping[str, Any]) -> str:
    """``SGSD``, ``GRPO + correction, guided``, ``GRPO+Skill`` …

    Args:
        settings: of a run, as ``run.json`` has them, or of an ``SGSDConfig``; what is missing has its default.
            ``method`` is ``sgsd``, ``grpo``, ``opsd``, or ``base`` for a model without training.
    """
    method = str(settings.get("method", "sgsd"))
    known = {"base": BASE, "sgsd": _with_teachers(settings)}
    return known.get(method, method.upper()) + ("+Skill" if settings.get("skills_in_prompt") else "")


def card_name(settings: Mapping[str, Any]) -> str:
    """The name on a model card, where TRL's template goes on with "a method introduced in" and the paper's title."""
    name = method_name(settings)
    return name if name == PAPER else f"{name}, which builds on {PAPER}"


def _with_teachers(settings: Mapping[str, Any]) -> str:
    grpo = bool(settings.get("grpo_weight"))
    if grpo and not settings.get("sgsd_weight", 1.0):
        return "GRPO + ledger"  # teachers are scored and teach nothing
    objective = str(settings.get("objective", "gated"))
    parts = [("GRPO + " if grpo else "") + _SHOWN.get(objective, objective)]
    if settings.get("teacher_guidance"):
        parts.append("guided")
    elif objective == "gated" and settings.get("support_baseline", "none") != "none":
        parts.append(str(settings["support_baseline"]))
    return ", ".join(parts)
