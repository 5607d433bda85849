"""Run folders and evaluation folders as a training run and ``sgsd eval`` leave them, made in a moment."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SAMPLING = {"verifier": "math", "temperature": 1.0, "top_p": 0.95, "top_k": 0, "max_completion_length": 1024}


def write_evaluation(folder: Path, correct: Mapping[str, Sequence[bool]], **summary: Any) -> Path:
    """An evaluation folder: problem id → whether each of its k samples is correct."""
    folder.mkdir(parents=True)
    lines: list[str] = []
    for problem, outcomes in correct.items():
        for place, right in enumerate(outcomes):
            sample = {
                "problem_id": problem,
                "sample": place,
                "completion": "",
                "tokens": 1,
                "stop_reason": "end",
                "outcome": "correct" if right else "incorrect",
                "reason": None,
                "extracted": None,
            }
            lines.append(json.dumps(sample))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    k = len(next(iter(correct.values())))
    about = {
        "model": "base-model",
        "problems": len(correct),
        "samples_per_problem": k,
        "seed": 0,
        **SAMPLING,
        **summary,
    }
    (folder / "summary.json").write_text(json.dumps(about))
    return folder


def write_run(
    folder: Path,
    evaluations: Mapping[str, Mapping[str, Sequence[bool]]],
    *,
    record: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Path:
    """A finished run of 100 steps, its evaluations of the final model; ``record``: further entries of ``run.json``."""
    folder.mkdir(parents=True)
    told = {"method": "sgsd", "model_name_or_path": "base-model", "seed": 0, "output_dir": str(folder), **settings}
    (folder / "run.json").write_text(json.dumps({**(record or {}), "settings": told}))
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 100, "log_history": []}))
    for name, correct in evaluations.items():
        write_evaluation(folder / "evaluations" / name, correct, model=str(folder))
    return folder


def solved(count: int, *, of: int = 10, k: int = 2, prefix: str = "p") -> dict[str, list[bool]]:
    """The first ``count`` problems right every time, the others never."""
    return {f"{prefix}-{place}": [place < count] * k for place in range(of)}
