"""What a run leaves, without what no two runs have in common: times."""

from __future__ import annotations

import json
from pathlib import Path

# Times, and the last entry's mean loss, which transformers takes over the steps since the process began.
TIMED = {"step_time", "sgsd/maintenance/seconds"}
RECORDS = ("bank-start.json", "bank.json", "ledger.json", "maintenance.jsonl", "traces.jsonl")


def metrics(folder: Path) -> list[dict]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [
        {name: value for name, value in entry.items() if name not in TIMED}
        for entry in history
        if "train_runtime" not in entry
    ]


def left(run: Path) -> dict[str, object]:
    """Name → bytes of weights and records, and the metrics; of the last checkpoint, too."""
    last = max(run.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    files = [run / "model.safetensors", *(run / name for name in RECORDS)]
    files += [last / "model.safetensors", last / "optimizer.pt", last / "scheduler.pt", *last.glob("rng_state*.pth")]
    files += sorted(file for file in (last / "sgsd").iterdir() if file.name != "state.json")
    return {str(file.relative_to(run)): file.read_bytes() for file in files} | {"metrics": metrics(run)}


def differences(one: Path, other: Path) -> list[str]:
    """Names of what two runs do not have in common, bit by bit."""
    mine, theirs = left(one), left(other)
    return [name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)]
