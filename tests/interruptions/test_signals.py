"""SIGTERM: the step is finished, a checkpoint saved, the exit code says so, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from sgsd.trainers.callbacks import StopOnSignal
from sgsd.trainers.checkpoint import last_complete_checkpoint

from ..trainers.launching import launcher
from .processes import steps_recorded
from .recorded import differences


@contextmanager
def sent(number, folder, *, after):
    """``number`` for this process, once the run in ``folder`` has recorded ``after`` steps."""
    over = threading.Event()

    def watch():
        while not over.wait(0.005):
            if steps_recorded(folder) >= after:
                os.kill(os.getpid(), number)
                over.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
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
        "resume with the same command and --resume"
    )
    assert not (run / "model.safetensors").exists()
    assert signal.getsignal(number) is before

    assert sgsd("train", *flags, "--output_dir", run, "--save_steps", "100", "--resume").code == 0
    assert sgsd("train", *flags, "--output_dir", whole, "--save_steps", "100").code == 0
    assert differences(run, whole) == []


def test_a_second_signal_does_what_it_would_have_done(sgsd, flags, tmp_path, monkeypatch):
    """Here the process has a handler of its own; by default it ends."""
    monkeypatch.setattr(StopOnSignal, "PATIENCE", 0.0)
    taken = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))
    monkeypatch.setattr(StopOnSignal, "on_step_end", lambda self, *_, **__: signal.raise_signal(signal.SIGTERM))
    try:
        sgsd("train", *flags, "--output_dir", tmp_path / "run", "--max_steps", "3")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert taken == [signal.SIGTERM] * 2  # of steps 2 and 3


def test_a_signal_within_seconds_of_the_first_is_taken_for_the_same(sgsd, flags, tmp_path, monkeypatch):
    take = StopOnSignal._take
    monkeypatch.setattr(StopOnSignal, "_take", lambda self, *call: [take(self, *call) for _ in range(3)])
    with sent(signal.SIGTERM, tmp_path / "run", after=1):
        assert sgsd("train", *flags, "--output_dir", tmp_path / "run").code == 75


def test_a_signal_in_the_last_step_changes_nothing(sgsd, flags, tmp_path, monkeypatch):
    raised = []

    def last(self, args, state, control, **_):
        if state.global_step == state.max_steps - 1:
            raised.append(signal.raise_signal(signal.SIGTERM))

    monkeypatch.setattr(StopOnSignal, "on_step_begin", last)
    run = tmp_path / "run"
    assert sgsd("train", *flags, "--output_dir", run, "--max_steps", "2").code == 0
    assert raised
    assert (run / "model.safetensors").exists()


def test_a_run_that_keeps_no_state_says_so(sgsd, flags, tmp_path):
    run = tmp_path / "run"
    with sent(signal.SIGTERM, run, after=2):
        result = sgsd("train", *flags, "--output_dir", run, "--save_only_model", "true")
    assert result.code == 75
    assert result.error.endswith("no checkpoint has what resuming needs")


def test_transformers_own_way_is_refused(sgsd, flags, tmp_path):
    result = sgsd("train", *flags, "--output_dir", tmp_path / "run", "--enable_jit_checkpoint", "true")
    assert result.code == 2
    assert "sgsd train saves at SIGTERM" in result.error


def ranks_of(launched: subprocess.Popen) -> list[int]:
    """The processes that ``accelerate launch`` has started."""
    return [int(number) for number in Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_processes_stop_after_the_same_step_whoever_gets_the_signal(flags, tmp_path):
    run, whole, said = tmp_path / "run", tmp_path / "whole", tmp_path / "said.txt"
    command = ["-m", "sgsd.cli", "train", *flags, "--use_cpu", "true"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def start(*extra: object) -> subprocess.Popen:
        with said.open("a") as output:
            return subprocess.Popen(
                [*launcher(2), *command, *map(str, extra)],
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def finish(launched: subprocess.Popen) -> int:
        try:
            return launched.wait(900)
        finally:
            if launched.poll() is None:
                os.killpg(launched.pid, signal.SIGKILL)

    assert finish(start("--output_dir", whole)) == 0, said.read_text()[-5000:]
    resume: tuple[str, ...] = ()
    for after, whom in ((2, "launcher"), (6, "rank 1")):
        launched = start("--output_dir", run, *resume)
        while steps_recorded(run) < after and launched.poll() is None:
            time.sleep(0.01)
        process = launched.pid if whom == "launcher" else ranks_of(launched)[-1]
        os.kill(process, signal.SIGTERM)
        assert finish(launched) != 0
        last = said.read_text().split("sgsd: SIGTERM ended the run after step ")[-1]
        step = int(last.split()[0])
        assert after <= step < 12
        assert f"saved in {run / f'checkpoint-{step}'}; resume" in last
        assert last_complete_checkpoint(run) == run / f"checkpoint-{step}"
        resume = ("--resume",)
    assert finish(start("--output_dir", run, *resume)) == 0
    assert differences(run, whole) == []
