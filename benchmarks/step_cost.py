"""One loss step, forward and backward, on SmolLM2-135M: the official procedure, ours, and the floor.

    python benchmarks/step_cost.py --series first --threads 1 --json step_cost.json

- official: as the method's public code does it. The student's row is repeated for every teacher, with gradient;
  float32 log-softmax over all positions of all rows, then the chosen tokens.
- ours: the calls that ``SGSDTrainer`` makes, with its defaults (token budget, the student's entropies) but without
  gradient checkpointing; checkpointed: with it, as TRL has it by default.
- unshared, different: ours, but teachers' prompts once for each rollout; ours on rollouts without equals.
- correction, guided: ours with ``objective: correction``, every rollout a failure; with a control teacher and guidance.
- floor: the same teachers' and student's forwards and the student's backward, of the body alone, and one product with
  the head over completion positions. No log-probability comes of it.

Every variant of every shape runs in a process of its own, which tells its peak of resident memory; their steps
alternate, after ``--warm_up`` steps that do not count. No optimizer: gradients are dropped after each step. Ratios are
of the process's own seconds of computing (user and system), which on one thread of an idle machine are those of the
clock, and on a busy one vary less.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgsd.engines.models import load_model
from sgsd.objectives import correction_loss, guided_logps, sgsd_loss
from sgsd.scoring.logprobs import Select, StudentPass, flat_targets, score_completions

MODEL = "local:smollm2-135m-instruct"
BUDGET = 16384  # SGSDConfig's max_tokens_per_chunk
TOP_TOKENS = 20  # and its teacher_top_tokens
_FLOOR_TILE = 128  # rows of the head's product


@dataclass(frozen=True)
class Shape:
    """B rollouts, G of each problem, of which ``copies`` are equal, K teachers; lengths in tokens.

    Teachers' prompts are up to ``spread`` tokens shorter; not the floor's.
    """

    B: int = 2
    K: int = 8
    prompt: int = 96
    teacher_prompt: int = 224
    completion: int = 128
    G: int = 1
    copies: int = 1
    spread: int = 0


SERIES: dict[str, list[Shape]] = {
    "first": [Shape()],
    "teachers": [replace(Shape(), K=K) for K in (1, 2, 4, 8, 16)],
    "completion": [replace(Shape(), completion=T) for T in (64, 128, 256, 512)],
    "sharing": [replace(Shape(), B=8, completion=64, G=G) for G in (1, 4)],
    "copies": [replace(Shape(), B=8, completion=64, G=4, copies=2)],
    "correction": [Shape()],
    "unequal": [replace(Shape(), completion=T, spread=128) for T in (128, 512)],
}
VARIANTS = {
    "first": ["official", "ours", "checkpointed", "floor"],
    "teachers": ["ours", "floor"],
    "completion": ["ours", "floor"],
    "sharing": ["ours", "unshared"],
    "copies": ["ours", "different"],
    "correction": ["ours", "correction", "guided"],
    "unequal": ["ours", "floor"],
}


class Step:
    """A model and one batch of random tokens."""

    def __init__(self, model: Any, shape: Shape, budget: int) -> None:
        self.shape, self.model, self.budget = shape, model, budget
        generator = torch.Generator().manual_seed(0)
        draw = lambda rows, length: torch.randint(3, 49_000, (rows, length), generator=generator)  # noqa: E731
        problems = shape.B // shape.G
        self.prompts = draw(problems, shape.prompt).repeat_interleave(shape.G, 0)
        teachers = draw(problems * shape.K, shape.teacher_prompt).view(problems, shape.K, -1)
        self.teacher_prompts = teachers.repeat_interleave(shape.G, 0).flatten(0, 1)
        self.completions = draw(shape.B // shape.copies, shape.completion).repeat_interleave(shape.copies, 0)
        self.others = draw(shape.B, shape.completion)
        self.control_prompts = draw(problems, shape.teacher_prompt).repeat_interleave(shape.G, 0)
        self.outcome = torch.tensor([1, -1] * shape.B)[: shape.B]

    @property
    def repeated(self) -> Tensor:
        return self.completions.repeat_interleave(self.shape.K, 0)

    @property
    def unequal_prompts(self) -> list[list[int]]:
        return [ids[37 * n % (self.shape.spread + 1) :] for n, ids in enumerate(self.teacher_prompts.tolist())]

    def official(self) -> tuple[Tensor, Tensor | None]:
        """The gap's gate, with polarity, on every teacher's own copy of the student's row."""

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
            self.unequal_prompts,
            self.repeated.tolist(),
            max_tokens_per_chunk=self.budget,
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
        score = partial(score_completions, self.model, max_tokens_per_chunk=self.budget)
        prompts, repeated = self.unequal_prompts, self.repeated.tolist()
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

    def _student(self, others: Tensor | None = None) -> Tensor:
        """``[B, T, 1 + M]``: the forward that TRL makes, and what the trainer keeps of it."""
        ids = torch.cat([self.prompts, self.completions], dim=1)
        student = StudentPass(
            self.model,
            torch.ones_like(self.completions),
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

    def different(self) -> tuple[Tensor, Tensor | None]:
        """Ours, with completions that have no equals."""
        self.completions = self.others
        return self.ours()[0], None

    def floor(self) -> tuple[Tensor, Tensor | None]:
        rows = max(1, self.budget // (self.shape.teacher_prompt + self.shape.completion))
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


def work(connection: Any, variant: str, model: Any, shape: Shape, threads: int, budget: int) -> None:
    """A variant's process: a step for every word from the parent, until ``None``."""
    torch.set_num_threads(threads)
    step = Step(model, shape, budget)
    reset = reset_peak()
    while connection.recv() is not None:
        began, computing = time.perf_counter(), time.process_time()
        loss, teachers = getattr(step, variant)()
        seconds, computing = time.perf_counter() - began, time.process_time() - computing
        step.model.zero_grad()
        logps = None if teachers is None else teachers.flatten().tolist()
        connection.send(
            {"seconds": seconds, "cpu": computing, "loss": loss.item(), "peak": peak_bytes(reset), "logps": logps}
        )


def reset_peak() -> bool:
    """Forget the peak of resident memory that loading left behind; Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes(was_reset: bool) -> int:
    if not was_reset:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024


def measure(
    model: Any, shape: Shape, variants: list[str], rounds: int, warm_up: int, threads: int, budget: int
) -> dict[str, Any]:
    """Seconds of each round and peak bytes by variant, ``difference``: the most that teachers' scores differ."""
    context = multiprocessing.get_context("fork")  # the weights are loaded once, and count in each process's memory
    workers = {}
    for variant in variants:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, variant, model, shape, threads, budget), daemon=True)
        process.start()
        workers[variant] = ours
    replies: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for round_ in range(warm_up + rounds):
        for variant, worker in workers.items():
            worker.send(round_)
            replies[variant].append(worker.recv())
            last = replies[variant][-1]
            print(f"{variant}: {last['cpu']:.2f} s, {last['peak'] / 1e9:.2f} GB", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.send(None)
        worker.close()
    result: dict[str, Any] = {
        variant: {
            "seconds": [reply["seconds"] for reply in found[warm_up:]],
            "cpu": [reply["cpu"] for reply in found[warm_up:]],
            "median": statistics.median(reply["cpu"] for reply in found[warm_up:]),
            "median_clock": statistics.median(reply["seconds"] for reply in found[warm_up:]),
            "peak_bytes": found[-1]["peak"],
            "loss": found[-1]["loss"],
        }
        for variant, found in replies.items()
    }
    logps = [torch.tensor(found[-1]["logps"]) for found in replies.values() if found[-1]["logps"] is not None]
    result["difference"] = max((a - logps[0]).abs().max().item() for a in logps)
    return result


def show(shape: Shape, variants: list[str], result: dict[str, Any]) -> None:
    print("\n" + ", ".join(f"{name} {value}" for name, value in asdict(shape).items()))
    for variant in variants:
        row = result[variant]
        seconds, clock, peak = row["median"], row["median_clock"], row["peak_bytes"] / 1e9
        print(f"  {variant:12} {seconds:7.2f} s ({clock:.2f} by the clock)  {peak:5.2f} GB  loss {row['loss']:.6f}")
    ours = result["ours"]
    for other in variants:
        if other != "ours":
            seconds, peak = (result[other][name] / ours[name] for name in ("median", "peak_bytes"))
            print(f"  {other}/ours: seconds {seconds:.2f}, ours/{other} {1 / seconds:.3f}; peak {peak:.2f}")
    print(f"  teachers' log-probabilities differ by at most {result['difference']:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", nargs="+", choices=list(SERIES), default=list(SERIES))
    parser.add_argument("--variants", nargs="+", choices=sorted(set().union(*VARIANTS.values())))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm_up", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, help="of the model's 30, the first ones only: for a slow machine")
    parser.add_argument("--budget", type=int, default=BUDGET, help="max_tokens_per_chunk")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = load_model(MODEL).train()
    if options.layers:
        model.model.layers = model.model.layers[: options.layers]
    results: list[dict[str, Any]] = []
    for series in options.series:
        variants = options.variants or VARIANTS[series]
        if "ours" not in variants:
            parser.error("--variants must name ours: the ratios are to it")
        for shape in SERIES[series]:
            result = measure(model, shape, variants, options.rounds, options.warm_up, options.threads, options.budget)
            show(shape, variants, result)
            results.append(
                {
                    "series": series,
                    "shape": asdict(shape),
                    "threads": options.threads,
                    "layers": options.layers or 30,
                    "budget": options.budget,
                }
                | result
            )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
