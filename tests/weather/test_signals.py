"""SIGTERM: the step is finished, a checkpoint saved, the exit code says so, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager

import pytest

from .recorded import differences


@contextmanager
def sent(number, folder, *, after):
    """``number`` for this process, once the run in ``folder`` has recorded ``after`` steps."""
    over = threading.Event()

    def watch():
        records = folder / "supports.jsonl"
        while not over.wait(0.005):
            if records.exists() and records.read_text().count('"step"') >= after:
                os.kill(os.getpid(), number)
                over.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_run_with_a_checkpoint_and_nothing_is_lost(sgsd, flags, tmp_path, number):
    run, whole = tmp_path / "run", tmp_path / "whole"
    before = signal.getsignal(number)
    with sent(number, run, after=3):
        result = sgsd("train", *flags, "--output_dir", run, "--save_steps", "100")
    assert result.code == 75
    (saved,) = run.glob("checkpoint-*")
    step = int(saved.name.split("-")[1])
    assert 3 <= step < 12
    assert result.error == (
        f"sgsd: {number.name} ended the run after step {step} of 12: saved in {saved}; "
        "go on with the same command and --resume"
    )
    assert not (run / "model.safetensors").exists()
    assert signal.getsignal(number) is before

    assert sgsd("train", *flags, "--output_dir", run, "--save_steps", "100", "--resume").code == 0
    assert sgsd("train", *flags, "--output_dir", whole, "--save_steps", "100").code == 0
    assert differences(run, whole) == []
