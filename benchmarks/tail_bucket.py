"""What equation (7) would be without its bucket for all but the M likeliest tokens: how often below 0, how far off.

    python benchmarks/tail_bucket.py

Teacher and student are distributions over a vocabulary of 49,152 tokens; the student's logits are the teacher's with
noise of a given size, in nats, and a temperature: below 1 it is surer than its teacher. A power of the rank makes them
as peaked as a language model's (entropy in the table), normal logits are flat. Each line is of ``--tokens`` positions:

    negative       share of positions where the truncated sum Σ_{v ∈ top M} p_T log(p_T / p_S) is below 0
    rows negative  the same of means over 128 positions
    rest           the teacher's probability beyond its M likeliest tokens
    gradient       |g − g′| / |g|, the median over positions: g is the gradient in the student's logits, g′ without the
                   bucket, in the 1-norm
    beyond         the part of |g| that falls on tokens beyond the M, the median
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from sgsd.objectives import correction_loss, selected_logps

VOCABULARY = 49_152
ROW = 128


def teachers(kind: str, tokens: int) -> Tensor:
    """``[tokens, V]`` logits."""
    if kind == "flat":
        return torch.randn(tokens, VOCABULARY)
    ranks = torch.arange(1, VOCABULARY + 1).log()
    steepness = 1.2 + 2.5 * torch.rand(tokens, 1)  # from an open position to a sure one
    return -steepness * ranks + 0.5 * torch.randn(tokens, VOCABULARY)


def losses_and_gradient(logits: Tensor, top: Tensor, of_teacher: Tensor, *, bucket: bool) -> tuple[Tensor, Tensor]:
    """Of each position: the sum, and its gradient in the logits, ``[tokens]`` and ``[tokens, V]``."""
    logits = logits.detach().requires_grad_()
    of_student, _ = selected_logps(logits, top)
    if bucket:
        tokens = len(logits)
        everything = torch.ones(tokens, 1, dtype=torch.bool), -torch.ones(tokens), torch.ones(tokens, 1)
        sums = correction_loss(of_student[:, None, None], of_teacher[:, None, None], *everything)
    else:
        sums = (of_teacher.exp() * (of_teacher - of_student)).sum(-1)
    (gradient,) = torch.autograd.grad(sums.sum(), logits)
    return sums.detach(), gradient


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4 * ROW)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| teacher | entropy | M | noise | temperature | negative | rows negative | rest | gradient | beyond |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for kind in ("flat", "peaked"):
        for top_tokens in (5, 20, 100):
            for noise, temperature in ((0.1, 1.0), (1.0, 1.0), (0.1, 0.8), (1.0, 0.8)):
                torch.manual_seed(0)
                scores = teachers(kind, options.tokens)
                of_all = scores.log_softmax(-1)
                entropy = -(of_all.exp() * of_all).sum(-1).mean()
                of_teacher, top = of_all.topk(top_tokens)
                student = (scores + noise * torch.randn_like(scores)) / temperature
                truncated, without = losses_and_gradient(student, top, of_teacher, bucket=False)
                whole, gradient = losses_and_gradient(student, top, of_teacher, bucket=True)
                if (whole < -1e-5).any():
                    raise SystemExit(f"a divergence below 0: {whole.min()}")
                size = gradient.abs().sum(-1)
                off = ((gradient - without).abs().sum(-1) / size).median()
                beyond = (gradient.scatter(-1, top, 0.0).abs().sum(-1) / size).median()
                rows = (truncated.unflatten(0, (-1, ROW)).mean(1) < 0).float().mean()
                rest = 1 - of_teacher.exp().sum(-1).mean()
                shares = [(truncated < 0).float().mean(), rows, rest, off, beyond]
                percents = " | ".join(f"{100 * share:.0f} %" for share in shares)
                print(f"| {kind} | {entropy:.2f} | {top_tokens} | {noise} | {temperature} | {percents} |")


if __name__ == "__main__":
    main()
