"""A run's settings → the displayed name of its method, and its model card. Does not import torch.

"SGSD" is reserved for the objective of the paper (arXiv 2605.28791). Other objectives have their own names, and GRPO's
loss is named where it is added.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.display import as_markdown

BASE = "Base"
PAPER = "SGSD"
_OBJECTIVE_NAMES = {"gated": PAPER, "local": "local support"}  # others keep the value of the setting

_OBJECTIVE = (
    *("objective", "sgsd_weight", "grpo_weight", "rehearsal_weight", "teacher", "teacher_context", "teacher_guidance"),
    *("support_baseline", "num_teachers", "reference", "divergence"),
)
_TRAINING = ("steps", "num_generations", "temperature", "max_completion_length", "learning_rate")


def method_name(settings: Mapping[str, Any]) -> str:
    """``SGSD``, ``GRPO + correction, guided``, ``GRPO+Skill`` …

    Args:
        settings: of ``run.json`` or of a configuration; missing settings have their defaults. ``method`` is ``sgsd``,
            ``grpo``, ``opsd``, or ``base`` for a model without training.
    """
    method = str(settings.get("method", "sgsd"))
    known = {"base": BASE, "sgsd": _with_teachers(settings)}
    return known.get(method, method.upper()) + ("+Skill" if settings.get("skills_in_prompt") else "")


def _with_teachers(settings: Mapping[str, Any]) -> str:
    grpo = bool(settings.get("grpo_weight"))
    if grpo and not settings.get("sgsd_weight", 1.0):
        return "GRPO + ledger"  # teachers are scored, without a loss
    objective = str(settings.get("objective", "gated"))
    name = ("GRPO + " if grpo else "") + _OBJECTIVE_NAMES.get(objective, objective)
    if settings.get("teacher_guidance"):
        return f"{name}, guided"
    baseline = settings.get("support_baseline", "none")
    return f"{name}, {baseline}" if objective == "gated" and baseline != "none" else name


# ---- TRL's model card, with data, verifier, objective and bank


def card_name(settings: Mapping[str, Any]) -> str:
    """The method's name on a model card, where TRL's template continues "a method introduced in" the paper."""
    name = method_name(settings)
    return name if name == PAPER else f"{name}, which builds on {PAPER}"


def hub_name(dataset: str | None) -> str | None:
    """A data set's name if it is one of the hub's: neither a file nor a generated task."""
    return None if dataset is None or os.path.exists(dataset) or ":" in dataset else dataset


def card_facts(
    settings: Mapping[str, Any], *, dataset: str | None, problems: int, verifier: str, bank: SkillBank | None
) -> dict[str, str]:
    """The rows of the card's table: name → text.

    Args:
        settings: of the run, with ``method`` and the number of its ``steps``.
        dataset: the data set's name; of a local file only the file name is shown.
        problems: number of training problems.
        verifier: name of the verifier or the reward functions.
        bank: of the teachers or the prompts.
    """

    def listed(*names: str) -> str:
        return ", ".join(f"{name} {settings[name]}" for name in names if settings.get(name) not in (None, 0, "none"))

    grpo = settings["method"] == "grpo" or settings.get("grpo_weight")
    of = "" if dataset is None else f" of {dataset if hub_name(dataset) else Path(dataset).name}"
    facts = {
        "method": method_name(settings),
        "data": f"{problems:,} problems{of}",
        "verifier": verifier,
        "objective": listed(*_OBJECTIVE, *(("loss_type", "beta") if grpo else ())),
        "training": listed(*_TRAINING),
    }
    if bank is not None:
        facts["bank"] = f"{bank.name or 'unnamed'}, {len(bank.items)} items, digest {bank.digest[:12]}"
    return facts


def complete_card(folder: Path, facts: Mapping[str, str]) -> None:
    """Add a table to TRL's card in a run's folder, before the versions of its libraries, or at its end."""
    file = folder / "README.md"
    text = runfolder.read_text(file)
    # TRL's template links what is not on the hub: "None" for a folder, and the models of packages.
    text = text.replace("[None](https://huggingface.co/None)", "a model that is not on the hub")
    text = re.sub(r"\[(local:[^]\[\s]+)\]\(https://huggingface\.co/local:[^()\s]+\)", r"`\1`", text)
    text = text.replace('model="None"', f'model="{folder.name}"')
    rows = "".join(f"| {name} | {as_markdown(value)} |\n" for name, value in facts.items())
    before, heading, after = text.partition("### Framework versions")
    runfolder.write_text(file, f"{before.rstrip()}\n\n| | |\n|---|---|\n{rows}\n{heading}{after}")
