"""The model card: TRL's, with what the model learned from, and how. ``report.certificate`` adds a certificate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgsd.bank import SkillBank
from sgsd.display import as_markdown
from sgsd.trainers.names import method_name

_OBJECTIVE = (
    *("objective", "sgsd_weight", "grpo_weight", "rehearsal_weight", "teacher", "teacher_context", "teacher_guidance"),
    *("support_baseline", "num_teachers", "reference", "divergence"),
)
_OF_GRPO = ("loss_type", "beta")
_UNSAID = (None, 0, "none")
_TRAINING = ("steps", "num_generations", "temperature", "max_completion_length", "learning_rate")


def hub_name(dataset: str | None) -> str | None:
    """A data set's name if the hub knows it by that: no file, and no task that is generated."""
    return None if dataset is None or os.path.exists(dataset) or ":" in dataset else dataset


def facts(
    settings: Mapping[str, Any],
    *,
    method: str,
    dataset: str | None,
    problems: int,
    verifier: str,
    bank: SkillBank | None,
) -> dict[str, str]:
    """What the card's table tells.

    Args:
        settings: of the run, and ``steps``, how many it made.
        method: ``sgsd``, ``grpo`` or ``opsd``.
        dataset: the data set's name; a local file is told by its own name alone.
        problems: how many it was trained on.
        verifier: what decided between right and wrong.
        bank: what teachers, or prompts, showed of.
    """
    grpo = method == "grpo" or settings.get("grpo_weight")
    of = "" if dataset is None else f" of {dataset if hub_name(dataset) else Path(dataset).name}"
    told = {
        "method": method_name({**settings, "method": method}),
        "data": f"{problems:,} problems{of}",
        "verifier": verifier,
        "objective": _listed(settings, (*_OBJECTIVE, *(_OF_GRPO if grpo else ()))),
        "training": _listed(settings, _TRAINING),
    }
    if bank is not None:
        told["bank"] = f"{bank.name or 'unnamed'}, {len(bank.items)} items, digest {bank.digest[:12]}"
    return told


def with_facts(card: str, told: Mapping[str, str]) -> str:
    """The card with a table of these before the versions of its libraries, or at its end."""
    rows = "".join(f"| {name} | {as_markdown(value)} |\n" for name, value in told.items())
    before, heading, after = card.partition("### Framework versions")
    return f"{before.rstrip()}\n\n| | |\n|---|---|\n{rows}\n{heading}{after}"


def _listed(settings: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {settings[name]}" for name in names if settings.get(name) not in _UNSAID)
