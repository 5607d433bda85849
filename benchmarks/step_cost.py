"""One loss step, forward and backward, on SmolLM2-135M: the official procedure, ours, and a lower bound.

    python benchmarks/step_cost.py --series first --threads 1

- official: as the method's public code does it. The student's row is repeated for every teacher, with gradient;
  float32 log-softmax over all positions of all rows, then the chosen tokens.
- ours: the calls that ``SGSDTrainer`` makes, with its defaults (token budget, the student's entropies) but without
  gradient checkpointing; checkpointed: with it, as TRL has it by default.
- unshared: ours, but teachers' prompts once for each rollout, whatever they have in common.
- correction, guided: ours with ``objective: correction``, every rollout a failure; with a control teacher and guidance.
- student, quarter: the student's forward and backward alone, of all rollouts, and of the quarter that a teacher scored.
- floor: the same teachers' and student's forwards and the student's backward, of the body alone, and one product with
  the head over completion positions. It computes no log-probabilities.

Every variant of every shape runs in a process of its own, which reports its peak resident memory; their steps
alternate, after ``--warm_up`` steps that do not count. No optimizer: gradients are dropped after each step. Ratios are
of CPU time (user and system), which on one thread of an idle machine equals wall time, and on a busy one varies less.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from measure import GB, peak_bytes, reset_peak, show_table
from sgsd.engines.models import load_model
from sgsd.objectives import correction_loss, guided_logps, sgsd_loss
from sgsd.scoring.heads import Select
from sgsd.scoring.logprobs import flat_targets, score_completions
from sgsd.scoring.student import StudentPass

MODEL = "local:smollm2-135m-instruct"
BUDGET = 16384  # SGSDConfig's max_tokens_per_chunk
TOP_TOKENS = 20  # and its teacher_top_tokens
_FLOOR_TILE = 128  # rows of the head's product


@dataclass(frozen=True)
class Shape:
    """B rollouts, G of each problem, K teachers; lengths in tokens. Teachers' prompts begin with one document."""

    B: int = 2
    K: int = 8
    prompt: int = 96
    teacher_prompt: int = 224
    completion: int = 128
    G: int = 1
    document: int = 0


SERIES: dict[str, tuple[list[Shape], list[str]]] = {
    "first": ([Shape()], ["official", "ours", "checkpointed", "floor"]),
    "teachers": ([replace(Shape(), K=K) for K in (1, 2, 4, 8, 16)], ["ours", "floor"]),
    "completion": ([replace(Shape(), completion=T) for T in (64, 128, 256, 512)], ["ours", "floor"]),
    "sharing": ([replace(Shape(), B=8, completion=64, G=G) for G in (1, 4)], ["ours", "unshared"]),
    "document": ([Shape(B=16, K=1, prompt=64, teacher_prompt=864, completion=24, document=800)], ["ours", "unshared"]),
    "correction": ([Shape()], ["ours", "correction", "guided"]),
    "student": ([Shape(B=8, K=1, prompt=64, completion=64)], ["student", "quarter"]),
}
"""Name → shapes, and the variants that are measured at each."""


class Step:
    """A model and one batch of random tokens."""

    def __init__(self, model: Any, shape: Shape) -> None:
        self.shape, self.model = shape, model
        generator = torch.Generator().manual_seed(0)
        draw = lambda rows, length: torch.randint(3, 49_000, (rows, length), generator=generator)  # noqa: E731
        problems = shape.B // shape.G
        self.prompts = draw(problems, shape.prompt).repeat_interleave(shape.G, 0)
        teachers = draw(problems * shape.K, shape.teacher_prompt).view(problems, shape.K, -1)
        teachers[..., : shape.document] = draw(1, shape.document)
        self.teacher_prompts = teachers.repeat_interleave(shape.G, 0).flatten(0, 1)
        self.completions = draw(shape.B, shape.completion)
        self.control_prompts = draw(problems, shape.teacher_prompt).repeat_interleave(shape.G, 0)
        self.outcome = torch.tensor([1, -1] * shape.B)[: shape.B]

    @property
    def repeated(self) -> Tensor:
        return self.completions.repeat_interleave(self.shape.K, 0)

    def official(self) -> tuple[Tensor, Tensor | None]:
        """The gated gap with polarity, on a copy of the student's row for every teacher."""

        def logps(prompts: Tensor) -> Tensor:
            ids = torch.cat([prompts, self.repeated], dim=1)
            whole = self.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            return whole[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)[:, -self.shape.completion :]

        with torch.no_grad():
            teachers = logps(self.teacher_prompts)
        gap = teachers - logps(self.prompts.repeat_interleave(self.shape.K, 0))
        polarity = gap.detach().mean(1).sign() * self.outcome.repeat_interleave(self.shape.K)
        gate = math.log(2) - torch.log1p(torch.exp(-(gap**2) / 2))
        loss = (polarity * gate.mean(1)).mean()
        loss.backward()
        return loss.detach(), teachers

    def ours(self, *, shared: bool = True, checkpointed: bool = False) -> tuple[Tensor, Tensor | None]:
        B, K = self.shape.B, self.shape.K
        teachers = score_completions(
            self.model,
            self.teacher_prompts.tolist(),
            self.repeated.tolist(),
            max_tokens_per_chunk=BUDGET,
            share_prompts=shared,
        ).logps.view(B, K, -1)
        if checkpointed:
            self.model.activation_checkpointing_enable()
        student, mask = self._student()[..., 0], torch.ones_like(self.completions, dtype=torch.bool)
        loss = sgsd_loss(student, teachers, mask, self.outcome, torch.full((B, K), 1 / K)).loss
        loss.backward()
        if checkpointed:
            self.model.activation_checkpointing_disable()
        return loss.detach(), teachers

    def correction(self, *, guided: bool = False) -> tuple[Tensor, Tensor | None]:
        B, K, T = self.shape.B, self.shape.K, self.shape.completion
        score = partial(score_completions, self.model, max_tokens_per_chunk=BUDGET)
        prompts, repeated = self.teacher_prompts.tolist(), self.repeated.tolist()
        teachers = score(prompts, repeated, top_tokens=TOP_TOKENS)
        likeliest = teachers.top_ids.view(B, K, T, TOP_TOKENS)
        of_teachers = teachers.top_logps.view(B, K, T, TOP_TOKENS)
        others = likeliest.transpose(1, 2).flatten(2)
        if guided:
            control = score(self.control_prompts.tolist(), self.completions.tolist(), others=others).other_logps
            control = control.view(B, T, K, TOP_TOKENS).transpose(1, 2)
            of_teachers = guided_logps(of_teachers, control, guidance=2.0, clip=3.0)
        of_student = self._student(others)[..., 1:].view(B, T, K, TOP_TOKENS).transpose(1, 2)
        mask = torch.ones_like(self.completions, dtype=torch.bool)
        failed, weights = torch.full((B,), -1), torch.full((B, K), 1 / K)
        loss = correction_loss(of_student, of_teachers, mask, failed, weights).mean()
        loss.backward()
        return loss.detach(), teachers.logps

    def student(self, read: int | None = None) -> tuple[Tensor, Tensor | None]:
        loss = self._student(read=read).sum()
        loss.backward()
        return loss.detach(), None

    def quarter(self) -> tuple[Tensor, Tensor | None]:
        return self.student(read=self.shape.B // 4)

    def _student(self, others: Tensor | None = None, *, read: int | None = None) -> Tensor:
        """``[B, T, 1 + M]``: what the trainer keeps of TRL's forward, of the first ``read`` rows."""
        ids = torch.cat([self.prompts, self.completions], dim=1)
        scored = torch.ones_like(self.completions)
        if read is not None:
            scored[read:] = 0
        student = StudentPass(
            self.model,
            scored,
            lambda flat: Select(flat_targets(self.completions, others, flat)),
        )
        student(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=None)
        return student.spread(student.kept[0])

    def guided(self) -> tuple[Tensor, Tensor | None]:
        return self.correction(guided=True)

    def checkpointed(self) -> tuple[Tensor, Tensor | None]:
        return self.ours(checkpointed=True)

    def unshared(self) -> tuple[Tensor, Tensor | None]:
        return self.ours(shared=False)

    def floor(self) -> tuple[Tensor, Tensor | None]:
        rows = max(1, BUDGET // (self.shape.teacher_prompt + self.shape.completion))
        with torch.no_grad():
            for prompts, completions in zip(self.teacher_prompts.split(rows), self.repeated.split(rows), strict=True):
                self._head(self._body(prompts, completions))
        hidden = self._body(self.prompts, self.completions)
        with torch.no_grad():
            self._head(hidden)
        hidden.backward(torch.ones_like(hidden))
        return torch.tensor(torch.nan), None

    def _body(self, prompts: Tensor, completions: Tensor) -> Tensor:
        ids = torch.cat([prompts, completions], dim=1)
        return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[
            :, -self.shape.completion - 1 : -1
        ]

    def _head(self, hidden: Tensor) -> None:
        for tile in hidden.flatten(0, 1).split(_FLOOR_TILE):
            self.model.lm_head(tile)


def work(connection: Any, variant: str, model: Any, shape: Shape, threads: int) -> None:
    """The process of a variant: one step per message of the parent, until ``None``."""
    torch.set_num_threads(threads)
    step = Step(model, shape)
    reset = reset_peak()
    while connection.recv() is not None:
        began, computing = time.perf_counter(), time.process_time()
        loss, teachers = getattr(step, variant)()
        seconds, computing = time.perf_counter() - began, time.process_time() - computing
        step.model.zero_grad()
        logps = None if teachers is None else teachers.flatten().tolist()
        connection.send((seconds, computing, peak_bytes(reset), loss.item(), logps))


def measure(model: Any, shape: Shape, variants: list[str], options: argparse.Namespace) -> None:
    """Print medians of the rounds and peaks by variant, and the largest difference of teachers' scores."""
    context = multiprocessing.get_context("fork")  # the weights are loaded once, and count in each process's memory
    workers = {}
    for variant in variants:
        workers[variant], theirs = context.Pipe()
        arguments = theirs, variant, model, shape, options.threads
        context.Process(target=work, args=arguments, daemon=True).start()
    replies: dict[str, list[Any]] = {variant: [] for variant in variants}
    for turn in range(options.warm_up + options.rounds):
        for variant, worker in workers.items():
            worker.send(turn)
            replies[variant].append(worker.recv())
            print(f"{variant}: {replies[variant][-1][1]:.2f} s", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.send(None)
        worker.close()
    rows, base = [], math.nan
    for variant, found in replies.items():
        clock, computing = (statistics.median(reply[n] for reply in found[options.warm_up :]) for n in (0, 1))
        _, _, peak, loss, _ = found[-1]
        base = computing if variant in ("ours", "student") else base
        rows.append([variant, computing, f"{clock:.2f}", f"{peak / GB:.2f} GB", f"{loss:.6f}"])
    shown = [[row[0], f"{row[1]:.2f}", f"{row[1] / base:.3f}", *row[2:]] for row in rows]
    columns = ("variant", "seconds of computing", "to ours or student", "by the clock", "peak", "loss")
    show_table(columns, shown, title=str(shape))
    logps = [torch.tensor(found[-1][4]) for found in replies.values() if found[-1][4] is not None]
    if logps:
        difference = max((scores - logps[0]).abs().max().item() for scores in logps)
        print(f"teachers' log-probabilities differ by at most {difference:.1e}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm_up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=30, help="number of decoder layers, fewer for a slow machine")
    options = parser.parse_args()
    model = load_model(MODEL).train()
    model.model.layers = model.model.layers[: options.layers]
    for series in options.series:
        shapes, variants = SERIES[series]
        for shape in shapes:
            measure(model, shape, variants, options)


if __name__ == "__main__":
    main()
