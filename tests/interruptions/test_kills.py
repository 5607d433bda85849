"""SIGKILL at random moments: what is resumed ends bit by bit where an uninterrupted run does."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from .processes import finished, start, steps_recorded, wait_for_step
from .recorded import differences

pytestmark = pytest.mark.timeout(3600)  # on a machine with much else to do


def lived(flags: list[str], run: Path, kills: int, steps: int, draw: random.Random) -> list[str]:
    """Run to the end in spite of so many kills; returns the last checkpoint's name at each.

    The n-th kill comes at a random moment of the time that a share of the steps takes, after n such shares: wherever
    the process then is, in its start, in a step, in a check of the bank, in the writing of a checkpoint.
    """
    command = ["train", *flags, "--output_dir", run]
    seen = []
    begun, pace = time.monotonic(), 1.0
    for n in range(kills):
        process = start([*command, *(["--resume"] if n else [])], run.with_suffix(".txt"))
        share = steps / kills
        target = max(2, round(share * n * 0.9))
        wait_for_step(process, run, target)
        if n == 0:
            begun = time.monotonic()
            wait_for_step(process, run, 4)
            pace = (time.monotonic() - begun) / 2
        moment = time.monotonic() + draw.uniform(0, share * pace)
        while time.monotonic() < moment and steps_recorded(run) < target + share:  # a machine may get faster
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        assert finished(process) == -signal.SIGKILL, run.with_suffix(".txt").read_text()[-3000:]
        seen.append(max((int(f.parent.parent.name[11:]) for f in run.glob("checkpoint-*/sgsd/state.json")), default=0))
    assert finished(start([*command, "--resume"], run.with_suffix(".txt"))) == 0
    return seen


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bitwise_where_an_uninterrupted_one_does(flags, tmp_path):
    kills, steps = 10, 40
    flags = [*flags, "--max_steps", str(steps), "--save_total_limit", "2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finished(start(["train", *flags, "--output_dir", whole], tmp_path / "whole.txt")) == 0
    checks = [json.loads(line) for line in (whole / "maintenance.jsonl").read_text().splitlines()]
    assert [check["status"] for check in checks] == ["updated"] * (steps // 5)

    checkpoints = lived(flags, killed, kills, steps, random.Random(kills))
    assert len(set(checkpoints)) >= kills // 2  # the kills are spread over the run
    assert differences(killed, whole) == []


def test_a_run_killed_before_its_first_checkpoint_was_complete_starts_anew(sgsd, flags, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = ["train", *flags, "--max_steps", "4", "--save_steps", "3", "--maintenance_frequency", "2"]
    assert sgsd(*command, "--output_dir", whole).code == 0
    shutil.copytree(whole, run)
    for name in ("checkpoint-3/sgsd/state.json", "checkpoint-4/sgsd/state.json", "trainer_state.json", "bank.json"):
        (run / name).unlink()
    finished = sgsd(*command, "--output_dir", run, "--resume")
    assert finished.code == 2  # there is a model, which would be overwritten
    assert "no complete checkpoint" in finished.error
    (run / "model.safetensors").unlink()
    assert sgsd(*command, "--output_dir", run, "--resume").code == 0
    assert differences(run, whole) == []
