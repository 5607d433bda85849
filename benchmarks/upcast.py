"""What it costs to make log-probabilities of one tile of logits, by how many of them are upcast at a time, on a CPU.

    python benchmarks/upcast.py

128 rows of a vocabulary of 49,152, with entropies, forward and backward; beside them the product with the head that
makes the tile. Medians of the process's own milliseconds, one thread; the numbers have the same bits whatever it is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from sgsd.objectives import logprobs, selected_logps

ROWS, HIDDEN, VOCABULARY = 128, 576, 49_152


def milliseconds(action: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds + 1):
        began = time.process_time()
        action()
        taken.append(1000 * (time.process_time() - began))
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden, weight = torch.randn(ROWS, HIDDEN), torch.randn(VOCABULARY, HIDDEN)
    logits, ids = (3 * torch.randn(ROWS, VOCABULARY)).requires_grad_(), torch.randint(VOCABULARY, (ROWS,))
    print(f"product with the head: {milliseconds(lambda: hidden @ weight.T, options.rounds):.1f} ms")
    for rows in (1, 2, 5, 10, 20, 128):
        logprobs._UPCAST_LOGITS["cpu"] = rows * VOCABULARY
        forward = milliseconds(lambda: selected_logps(logits, ids, with_entropy=True), options.rounds)
        total = selected_logps(logits, ids)[0].sum()
        backward = milliseconds(partial(torch.autograd.grad, total, logits, retain_graph=True), options.rounds)
        print(f"{rows:4} rows at a time: forward {forward:.1f} ms, backward {backward:.1f} ms")


if __name__ == "__main__":
    main()
