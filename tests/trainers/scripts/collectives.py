"""Two ranks that make the same collectives, or do not. Run by test_distributed.py, to try its watchdog."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed

RANK = int(os.environ["RANK"])


def ask_the_others() -> None:
    torch.distributed.all_reduce(torch.ones(1))


def go_on_alone() -> None:
    time.sleep(600)


def main() -> None:
    folder, collectives = Path(sys.argv[1]), sys.argv[2]
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    torch.distributed.init_process_group("gloo")
    ask_the_others()
    (folder / f"{RANK}.pid").write_text(str(os.getpid()))
    if RANK == 0 or collectives == "equal":
        ask_the_others()
    else:
        go_on_alone()
    torch.distributed.destroy_process_group()
    print("done")


if __name__ == "__main__":
    main()
