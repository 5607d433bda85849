"""Where the time of ``sgsd demo``'s training steps goes: python benchmarks/demo_profile.py --steps 4

By the clock, and each part without what it calls of another part. The first step is not counted.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import TrainerCallback

from sgsd.cli.demo import arithmetic_problems
from sgsd.cli.settings import parse_settings
from sgsd.cli.train import run_training

# Methods of the trainer; what a training step does outside of the others is the student's forward and backward.
PARTS = {
    "_generate": "sampling",
    "_calculate_rewards": "verifier",
    "_teacher_pools": "retrieval",
    "_score_teachers": "teachers",
    "_compute_loss": "student",
    "_get_grad_norm": "optimizer",
}
ARITHMETIC = ("sampling", "teachers", "student", "optimizer")


class Clock(TrainerCallback):
    """Seconds by part, of all steps but the first."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.total, self._within, self._counting_since = 0.0, [0.0], 0.0

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            self._within.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                self.seconds[part] += spent - self._within.pop()
                self._within[-1] += spent

        return timed

    def watch(self, trainer: Any) -> None:
        for method, part in PARTS.items():
            setattr(trainer, method, self.timed(part, getattr(trainer, method)))
        accelerator = trainer.accelerator
        accelerator.backward = self.timed("student", accelerator.backward)
        accelerator.clip_grad_norm_ = self.timed("optimizer", accelerator.clip_grad_norm_)

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        optimizer.step = self.timed("optimizer", optimizer.step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 1:
            self.seconds.clear()
            self._counting_since = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.total = time.perf_counter() - self._counting_since


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", help="after --, flags of sgsd train")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "train.jsonl")
        problems = arithmetic_problems(320, seed=2, prefix="train")
        rows = [{"id": problem.id, "problem": problem.text, "answer": problem.answer} for problem in problems]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        flags = ["--config", "demo", "--dataset", str(data), "--output_dir", str(Path(folder, "run"))]
        flags += ["--max_steps", str(options.steps + 1), "--save_strategy", "no"]  # the demo saves once, at its end
        settings = parse_settings([*flags, *options.settings])
        run_training(*settings, Console(stderr=True), callbacks=[clock], before=clock.watch)
    shares = {part: clock.seconds[part] / clock.total for part in dict.fromkeys(PARTS.values())}
    shares["rest"] = 1 - sum(shares.values())
    for part, share in shares.items():
        print(f"{part:10} {share:6.1%}")
    other = 1 - sum(shares[part] for part in ARITHMETIC)
    print(f"{clock.total / options.steps:.1f} s a step; {other:.1%} of it is no model arithmetic")
    if options.json:
        options.json.write_text(json.dumps({"seconds": clock.total, "steps": options.steps, "shares": shares}) + "\n")


if __name__ == "__main__":
    main()
