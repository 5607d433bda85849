"""Several processes on one CPU through ``accelerate launch``, under a watchdog."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent / "scripts"
# With --cpu accelerate starts one process, however many are asked for: use_cpu is among the settings instead.
GLOO = {False: ("--cpu",), True: ("--multi_gpu",)}
START = 180  # seconds that imports may take on a busy machine


def launch(folder: Path, processes: int, *flags: str, timeout: float = 600, **cases: dict) -> dict[str, list[dict]]:
    """Train each case in ``scripts/ranks.py``, one after the other in the same processes.

    Args:
        folder: for what the ranks write.
        processes: how many.
        flags: of ``accelerate launch``, in place of those that start gloo processes.
        timeout: seconds for all cases together.
        cases: name → settings; ``shard_on_cpu`` is none (see the script).

    Returns:
        name → what each rank saved.
    """
    watched(folder, processes, SCRIPTS / "ranks.py", str(folder), json.dumps(cases), flags=flags, timeout=timeout)
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(processes)]
    assert [rank["processes"] for rank in ranks] == [processes] * processes
    return {name: [rank[name] for rank in ranks] for name in cases if name in ranks[0]}


def watched(
    folder: Path, processes: int, script: Path, *arguments: str, flags: tuple[str, ...] = (), timeout: float
) -> str:
    """Run a script in several processes to its end; returns what they printed.

    Each rank writes its process id to ``{folder}/{rank}.pid`` when it is ready. If they are not done ``timeout``
    seconds after that, it is a deadlock: every rank prints the stacks of its threads (``faulthandler`` on SIGUSR1), all
    processes are ended, and the test fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [*launcher(processes, *flags), str(script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "output.txt").open("w+") as output:
        launched = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            ready = time.monotonic() + START
            while launched.poll() is None and len(rank_ids(folder)) < processes and time.monotonic() < ready:
                time.sleep(0.1)
            launched.wait(timeout)
            late = False
        except subprocess.TimeoutExpired:
            late = True
            show_stacks(folder)
        finally:
            end(launched, folder)
        output.seek(0)
        said = output.read()
    if late:
        pytest.fail(f"deadlock: {processes} processes were not done after {timeout:.0f} s\n{said[-12000:]}")
    assert launched.returncode == 0, said[-8000:]
    return said


def launcher(processes: int, *flags: str) -> list[str]:
    """``accelerate launch``, with these flags or those that start gloo processes."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--main_process_port", str(free_port()), "--num_processes", str(processes)),
        *(flags or (*GLOO[processes > 1], "--mixed_precision", "no", "--dynamo_backend", "no", "--num_machines", "1")),
    ]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def show_stacks(folder: Path) -> None:
    """One rank after the other: each writes its stack in many small pieces to the same file."""
    for rank in rank_ids(folder):
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGUSR1)
        time.sleep(1)


def end(launched: subprocess.Popen, folder: Path) -> None:
    """End the launcher, and the ranks, which it starts in sessions of their own."""
    if launched.poll() is not None:
        return
    for rank in rank_ids(folder):
        with suppress(ProcessLookupError):
            os.kill(rank, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.killpg(launched.pid, signal.SIGKILL)
    launched.wait()


def rank_ids(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.glob("*.pid")]
