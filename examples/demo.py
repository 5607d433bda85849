"""SmolLM2-135M learns mental arithmetic on the CPU; the same held-out problems before and after.

    sgsd demo                  # or make demo, or python examples/demo.py
    sgsd demo --output runs/other --seed 1 -- --teacher ema --num_teachers 4

Settings are the preset ``demo``; docs/demo.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sgsd import runfolder
from sgsd.cli.console import progress_bar, standard_output
from sgsd.cli.parser import Parser, parse
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError
from sgsd.trainers.names import method_name

TASK = "What is a + b? (also −, ×; operands 2 to 20, products of digits)"
_TRAINING_PROBLEMS = 320
_MOST_PROBLEMS = 250  # to hold out: 615 questions there are, and some must be left to draw from
_SAMPLING = {"temperature": 0.7, "top_p": 1.0, "top_k": 0}


def arithmetic_problems(count: int, *, seed: int, prefix: str, without: frozenset[str] = frozenset()) -> list[Problem]:
    """Distinct questions such as ``What is 28 + 14?``: sums and differences of 2 to 20, products of 2 to 9.

    Args:
        count: how many.
        seed: of the draw.
        prefix: of the ids.
        without: texts not to ask.
    """
    draw = random.Random(seed)
    answers: dict[str, int] = {}
    while len(answers) < count:
        operation = draw.choice("+-×")
        highest = 9 if operation == "×" else 20
        a, b = draw.randint(2, highest), draw.randint(2, highest)
        if operation == "-" and b > a:
            a, b = b, a
        text = f"What is {a} {operation} {b}?"
        if text not in without:
            answers[text] = {"+": a + b, "-": a - b, "×": a * b}[operation]
    return [
        Problem(f"{prefix}-{index}", text, str(answer), source="sgsd demo")
        for index, (text, answer) in enumerate(answers.items())
    ]


def make_parser() -> argparse.ArgumentParser:
    """The demo's flags."""
    parser = Parser(prog="sgsd demo", description="Train SmolLM2-135M on the CPU, before and after, in minutes.")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="run folder (replaced)")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: the preset's)")
    parser.add_argument("--problems", type=int, default=200, help="held-out problems of the evaluations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", help="after --, flags of sgsd train, such as: -- --teacher live")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Evaluate, train, evaluate; print a table and write ``summary.json``."""
    options = parse(make_parser(), arguments)
    if not 2 <= options.problems <= _MOST_PROBLEMS:
        raise ConfigError("--problems is out of range", got=options.problems, expected=f"2 to {_MOST_PROBLEMS}")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything the demo needs is installed
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; the demo has its own
    console = standard_output()
    began = time.perf_counter()
    output: Path = options.output
    data = output.with_name(f"{output.name}-data")
    train_file, test_file = data / "train.jsonl", data / "test.jsonl"
    _refuse_other_folders(output, train_file)
    console.print("sgsd demo: SmolLM2-135M-Instruct learns mental arithmetic on this CPU", style="bold")

    import transformers

    from sgsd.cli.settings import parse_settings
    from sgsd.cli.train import run_training
    from sgsd.evaluation import paired_difference

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    flags = ["--config", "demo", "--output_dir", str(output), "--dataset", str(train_file), "--seed", str(options.seed)]
    flags += ["--eval_dataset", str(test_file)]
    if options.steps is not None:
        flags += ["--max_steps", str(options.steps)]
    run, training, model = parse_settings([*flags, *options.settings])
    shutil.rmtree(output, ignore_errors=True)
    test = arithmetic_problems(options.problems, seed=1, prefix="test")
    asked = frozenset(problem.text for problem in test)
    train = arithmetic_problems(_TRAINING_PROBLEMS, seed=2 + options.seed, prefix="train", without=asked)
    for file, problems in ((train_file, train), (test_file, test)):
        rows = ({"id": problem.id, "problem": problem.text, "answer": problem.answer} for problem in problems)
        runfolder.write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    evaluations: dict[str, Any] = {}
    with progress_bar(console) as progress:

        def before(trainer: Any) -> None:
            trainer.remove_callback(transformers.PrinterCallback)  # every step's metrics would drown the bars
            evaluations["before"] = _evaluate(trainer, test, progress, "before")
            trainer.add_callback(_steps_shown(progress, training.max_steps))

        trainer = run_training(run, training, model, console, before=before)
        evaluations["after"] = _evaluate(trainer, test, progress, "after")
    steps = {"before": 0, "after": trainer.state.global_step}
    for name, evaluation in evaluations.items():
        about = {"step": steps[name], "dataset": str(test_file), "seed": 0}
        evaluation.save(output / "evaluations" / name, **about, **_SAMPLING)
    accuracies = (list(evaluation.accuracies.values()) for evaluation in evaluations.values())
    difference = paired_difference(*accuracies)
    summary = {
        "model": model.model_name_or_path,
        "task": TASK,
        "problems": options.problems,
        "steps": steps["after"],
        "rollouts": steps["after"] * training.generation_batch_size,
        "seconds": round(time.perf_counter() - began, 1),
        **{name: _estimate("accuracy", evaluation.accuracy) for name, evaluation in evaluations.items()},
        "difference": _estimate("mean", difference),
    }
    runfolder.write_json(output / runfolder.SUMMARY, summary)
    _print_result(console, summary, training, output)
    return 0


def _refuse_other_folders(output: Path, train_file: Path) -> None:
    """The run folder is replaced, if it is an earlier demo's, finished or not."""
    from sgsd.cli.settings import read_run

    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if output.is_dir() and (read_run(output) or {}).get("dataset") == str(train_file):
        return
    raise ConfigError("the output folder holds something that is no demo", got=str(output), remedy="pass --output")


def _evaluate(trainer: Any, problems: list[Problem], progress: Progress, name: str) -> Any:
    """An answer to each problem from the model as it is, and its verdict."""
    from sgsd.engines.generation import TransformersSampler
    from sgsd.evaluation import evaluate
    from sgsd.verifiers import get_verifier

    task = progress.add_task(f"{name}: sampling", total=len(problems))
    sampler = TransformersSampler(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        max_new_tokens=trainer.args.max_completion_length,
        batch_size=100,
        progress=lambda done: progress.update(task, completed=done),
        **_SAMPLING,
    )
    return evaluate(sampler, problems, trainer.renderer, get_verifier(trainer.args.verifier))


def _steps_shown(progress: Progress, steps: int) -> Any:
    from transformers import TrainerCallback

    task = progress.add_task("training", total=steps)

    class Steps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "success_rate" in logs:
                right = f"training ({100 * logs['success_rate']:3.0f} % right)"
                progress.update(task, completed=state.global_step, description=right)

    return Steps()


def _estimate(key: str, estimate: Any) -> dict[str, Any]:
    return {key: estimate.mean, "ci95": [estimate.low, estimate.high]}


def _print_result(console: Console, summary: dict[str, Any], training: Any, output: Path) -> None:
    table = Table(
        title=f"{summary['problems']} held-out problems, plain prompt, temperature {_SAMPLING['temperature']}"
    )
    for column in ("", "right", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name, shown in (("before", "{:.1f}"), ("after", "{:.1f}"), ("difference", "{:+.1f}")):
        value, (low, high) = summary[name].values()
        row = "difference, paired" if name == "difference" else name
        unit = "points" if name == "difference" else "%"
        low, value, high = (shown.format(100 * number) for number in (low, value, high))
        table.add_row(row, f"{value} {unit}", f"{low} to {high}")
    console.print(table)
    console.print(
        "The interval covers 0: no learning shown in this run."
        if summary["difference"]["ci95"][0] <= 0 <= summary["difference"]["ci95"][1]
        else "The interval does not cover 0.",
        f"{summary['steps']} steps, {summary['rollouts']} rollouts, {summary['seconds']:.0f} s.",
    )
    if training.grpo_weight and training.sgsd_weight:
        console.print(
            f"The method was {method_name(vars(training))}: {training.sgsd_weight:g} times the teachers' loss plus "
            f"{training.grpo_weight:g} times GRPO's, with teacher '{training.teacher}'. In docs/demo.md's runs the "
            "published objective, SGSD's alone with a live teacher, did not learn, and GRPO's alone learned as much as "
            "GRPO + SGSD. To see them:",
        )
        for settings in ("published -- --teacher live --grpo_weight 0 --num_generations 1", "grpo -- --sgsd_weight 0"):
            console.print(f"  sgsd demo --output runs/{settings}", soft_wrap=True)
    more = f"--config demo --dataset {output}-data/train.jsonl --output_dir {output}"
    for line in (
        f"run folder: {output}",
        f"evaluate it again:  sgsd eval {output}",
        f"train on:           sgsd train {more} --max_steps {2 * summary['steps']} --resume",
    ):
        console.print(line, soft_wrap=True)


if __name__ == "__main__":
    from sgsd.cli import main as sgsd

    sys.exit(sgsd(["demo", *sys.argv[1:]]))
