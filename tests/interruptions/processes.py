"""Runs of ``sgsd`` in processes of their own, which signals may end."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["sgsd.cli.train", "sgsd.trainers.methods"])  # imported once, for all processes


def start(arguments: Sequence[object], said: Path) -> BaseProcess:
    """``sgsd`` with these arguments, in a process group of its own; its output goes to the end of the file ``said``."""
    process = _FORKS.Process(target=_main, args=([*map(str, arguments)], str(said)))
    process.start()
    while process.is_alive() and os.getpgid(process.pid) != process.pid:
        time.sleep(0.005)
    return process


def finished(process: BaseProcess, seconds: float = 900) -> int:
    """Its exit code, negative for a signal."""
    process.join(seconds)
    assert process.exitcode is not None, f"not done after {seconds} s"
    return process.exitcode


def steps_recorded(run: Path) -> int:
    """Optimizer steps that a run has recorded so far, a trace each."""
    records = run / "traces.jsonl"
    return len(set(re.findall(r'"step": (\d+)', records.read_text()))) if records.exists() else 0


def wait_for_step(process: BaseProcess, run: Path, step: int, seconds: float = 900) -> None:
    """Until the run has recorded so many steps, or has ended."""
    deadline = time.monotonic() + seconds
    while steps_recorded(run) < step and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.005)


def _main(arguments: list[str], said: str) -> None:
    import torch

    from sgsd.cli import main

    os.setpgid(0, 0)
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    torch.set_num_threads(1)
    sys.exit(main(arguments))
