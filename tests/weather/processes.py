"""Runs of ``sgsd`` in processes of their own, which signals may end.

Run as a program it has everything imported and forks: a start then costs what the command itself takes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


class Starter:
    """Starts commands, each in a process group of its own."""

    def __enter__(self) -> Starter:
        self._program = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        self._program.stdin.close()
        self._program.wait(60)
        self._program.stdout.close()

    def start(self, arguments: Sequence[object], said: Path) -> int:
        """Begin ``sgsd`` with these arguments, its output in the file ``said``; returns its process's number."""
        return self._ask({"start": list(map(str, arguments)), "said": str(said)})

    def code(self, process: int) -> int | None:
        """Its exit code, negative for a signal; ``None`` while it runs."""
        return self._ask({"code": process})

    def wait(self, process: int, seconds: float = 900) -> int:
        deadline = time.monotonic() + seconds
        while (code := self.code(process)) is None:
            if time.monotonic() > deadline:
                os.killpg(process, signal.SIGKILL)
                raise TimeoutError(f"not done after {seconds} s")
            time.sleep(0.01)
        return code

    def _ask(self, question: dict) -> int | None:
        self._program.stdin.write(json.dumps(question) + "\n")
        self._program.stdin.flush()
        return self._answer()

    def _answer(self):
        return json.loads(self._program.stdout.readline())


def steps_recorded(run: Path) -> int:
    """Optimizer steps that a run has recorded so far."""
    records = run / "supports.jsonl"
    return records.read_text().count('"step"') if records.exists() else 0


def wait_for_step(starter: Starter, process: int, run: Path, step: int, seconds: float = 900) -> None:
    """Until the run has recorded so many steps, or has ended."""
    deadline = time.monotonic() + seconds
    while steps_recorded(run) < step and starter.code(process) is None and time.monotonic() < deadline:
        time.sleep(0.005)


def _start(arguments: list[str], said: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

        from sgsd.cli import main

        code = main(arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _serve() -> None:
    import torch

    import sgsd.cli.train
    import sgsd.trainers.methods  # noqa: F401

    torch.set_num_threads(1)
    replies = os.fdopen(os.dup(1), "w")
    codes: dict[int, int] = {}
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            answer = _start(question["start"], question["said"])
        else:
            process = question["code"]
            if process not in codes:
                ended, status = os.waitpid(process, os.WNOHANG)
                codes.update({process: os.waitstatus_to_exitcode(status)} if ended else {})
            answer = codes.get(process)
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    _serve()
