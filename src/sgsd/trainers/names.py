"""A run's settings → its method's name: on screens, in comparisons, reports, and on model cards. No torch.

"SGSD" is the objective of the paper (arXiv 2605.28791) and no other. Another objective has its own name, and GRPO's
loss is named where it is added.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.display import as_markdown

BASE = "Base"
PAPER = "SGSD"
_SHOWN = {"gated": PAPER, "local": "local support"}  # others are named as the setting ``objective`` names them

_OBJECTIVE = (
    *("objective", "sgsd_weight", "grpo_weight", "rehearsal_weight", "teacher", "teacher_context", "teacher_guidance"),
    *("support_baseline", "num_teachers", "reference", "divergence"),
)
_TRAINING = ("steps", "num_generations", "temperature", "max_completion_length", "learning_rate")


def method_name(settings: Mapping[str, Any]) -> str:
    """``SGSD``, ``GRPO + correction, guided``, ``GRPO+Skill`` …

    Args:
        settings: of a run, as ``run.json`` has them, or of an ``SGSDConfig``; what is missing has its default.
            ``method`` is ``sgsd``, ``grpo``, ``opsd``, or ``base`` for a model without training.
    """
    method = str(settings.get("method", "sgsd"))
    known = {"base": BASE, "sgsd": _with_teachers(settings)}
    return known.get(method, method.upper()) + ("+Skill" if settings.get("skills_in_prompt") else "")


def _with_teachers(settings: Mapping[str, Any]) -> str:
    grpo = bool(settings.get("grpo_weight"))
    if grpo and not settings.get("sgsd_weight", 1.0):
        return "GRPO + ledger"  # teachers are scored and teach nothing
    objective = str(settings.get("objective", "gated"))
    name = ("GRPO + " if grpo else "") + _SHOWN.get(objective, objective)
    if settings.get("teacher_guidance"):
        return f"{name}, guided"
    baseline = settings.get("support_baseline", "none")
    return f"{name}, {baseline}" if objective == "gated" and baseline != "none" else name


# ---- the model card: TRL's, with what the model learned from, and how


def card_name(settings: Mapping[str, Any]) -> str:
    """The name on a model card, where TRL's template goes on with "a method introduced in" and the paper's title."""
    name = method_name(settings)
    return name if name == PAPER else f"{name}, which builds on {PAPER}"


def hub_name(dataset: str | None) -> str | None:
    """A data set's name if the hub knows it by that: no file, and no task that is generated."""
    return None if dataset is None or os.path.exists(dataset) or ":" in dataset else dataset


def card_facts(
    settings: Mapping[str, Any], *, dataset: str | None, problems: int, verifier: str, bank: SkillBank | None
) -> dict[str, str]:
    """What the card's table tells.

    Args:
        settings: of the run, with ``method``, and ``steps``, how many it made.
        dataset: the data set's name; a local file is told by its own name alone.
        problems: how many it was trained on.
        verifier: what decided between right and wrong.
        bank: what teachers, or prompts, showed of.
    """

    def listed(*names: str) -> str:
        return ", ".join(f"{name} {settings[name]}" for name in names if settings.get(name) not in (None, 0, "none"))

    grpo = settings["method"] == "grpo" or settings.get("grpo_weight")
    of = "" if dataset is None else f" of {dataset if hub_name(dataset) else Path(dataset).name}"
    told = {
        "method": method_name(settings),
        "data": f"{problems:,} problems{of}",
        "verifier": verifier,
        "objective": listed(*_OBJECTIVE, *(("loss_type", "beta") if grpo else ())),
        "training": listed(*_TRAINING),
    }
    if bank is not None:
        told["bank"] = f"{bank.name or 'unnamed'}, {len(bank.items)} items, digest {bank.digest[:12]}"
    return told


def complete_card(folder: Path, told: Mapping[str, str]) -> None:
    """Add a table of these to TRL's card in a run's folder, before the versions of its libraries, or at its end."""
    file = folder / "README.md"
    text = runfolder.read_text(file)
    # TRL knows no model but those of the hub.
    text = text.replace("[None](https://huggingface.co/None)", "a model that is not on the hub")
    text = text.replace('model="None"', f'model="{folder.name}"')
    rows = "".join(f"| {name} | {as_markdown(value)} |\n" for name, value in told.items())
    before, heading, after = text.partition("### Framework versions")
    runfolder.write_text(file, f"{before.rstrip()}\n\n| | |\n|---|---|\n{rows}\n{heading}{after}")
