"""Time and memory of OPSD's loss, in tiles and over whole float32 tensors: python benchmarks/opsd_memory.py"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
import time

import torch
from torch.nn.functional import kl_div

from sgsd.objectives import opsd_loss


def whole(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    """The same loss, where every token counts, as PyTorch's own functions have it."""
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    if kind == "forward_kl":
        return kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
    log_m = torch.logaddexp(log_q, log_p) - math.log(2)
    sides = [kl_div(log_m, side, log_target=True, reduction="none").sum(-1) for side in (log_p, log_q)]
    return (sides[0] + sides[1]).mean() / 2


def measure(how: str, kind: str, tokens: int, vocabulary: int) -> None:
    """In a process of its own: the peak of resident memory only ever rises."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    student, teacher = (torch.randn(1, tokens, vocabulary, dtype=torch.bfloat16) for _ in range(2))
    student.requires_grad_()
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # noqa: E731
    before, began = peak(), time.process_time()
    if how == "tiles":
        loss = opsd_loss(student, teacher, torch.ones(1, tokens, dtype=torch.bool), kind=kind).loss
    else:
        loss = whole(student, teacher, kind)
    loss.backward()
    seconds = time.process_time() - began
    print(f"{kind:10} {how:5} {seconds:5.1f} s  {peak() - before:5.0f} MB beside the inputs  loss {loss.item():.6f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(*options.one, options.tokens, options.vocabulary)
        return
    sizes = ["--tokens", str(options.tokens), "--vocabulary", str(options.vocabulary)]
    for kind in ("forward_kl", "jsd"):
        for how in ("tiles", "whole"):
            subprocess.run([sys.executable, __file__, *sizes, "--one", how, kind], check=True)


if __name__ == "__main__":
    main()
