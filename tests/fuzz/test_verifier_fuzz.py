"""The fuzz program of the verifiers, on a small part of its cases: the same ones each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "verifier_fuzz.py"


@pytest.mark.parametrize("seed", [1, 2])
def test_hostile_texts_are_judged_in_time_and_leave_nothing(seed: int):
    pytest.importorskip("reasoning_gym")
    command = [sys.executable, str(PROGRAM), "--cases", "2000", "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
