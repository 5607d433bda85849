"""``sgsd demo``: SmolLM2-135M learns mental arithmetic on the CPU; the same held-out problems before and after."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from sgsd import runfolder
from sgsd.cli.console import standard_output
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
        a, b = (
            (draw.randint(2, 9), draw.randint(2, 9)) if operation == "×" else (draw.randint(2, 20), draw.randint(2, 20))
        )
        if operation == "-" and b > a:
            a, b = b, a
        text = f"What is {a} {operation} {b}?"
        if text not in without:
            answers[text] = {"+": a + b, "-": a - b, "×": a * b}[operation]
    return [
        Problem(f"{prefix}-{index}", text, str(answer), source="sgsd demo")
        for index, (text, answer) in enumerate(answers.items())
    ]


def demo(options: argparse.Namespace) -> int:
    """Evaluate, train, evaluate; print a table and write ``summary.json``."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything the demo needs is installed
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars; the demo has its own
    if not 2 <= options.problems <= _MOST_PROBLEMS:
        raise ConfigError("--problems is out of range", got=options.problems, expected=f"2 to {_MOST_PROBLEMS}")
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

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    flags = ["--config", "demo", "--output_dir", str(output), "--dataset", str(train_file), "--seed", str(options.seed)]
    flags += ["--eval_dataset", str(test_file)]
    if options.steps is not None:
        flags += ["--max_steps", str(options.steps)]
    flags += options.settings
    run, training, model = parse_settings(flags)
    shutil.rmtree(output, ignore_errors=True)
    _write_data(train_file, test_file, options)

    with _Screen(console, training.max_steps, test_file, options.problems) as screen:
        trainer = run_training(run, training, model, console, callbacks=[screen.callback], before=screen.before)
        after = screen.evaluate(trainer, "after")
    before = screen.evaluations["before"]

    from sgsd.evaluation import paired_difference

    seconds = time.perf_counter() - began
    steps = {"before": 0, "after": trainer.state.global_step}
    for name, evaluation in screen.evaluations.items():
        about = {"step": steps[name], "dataset": str(test_file), "seed": 0}
        evaluation.save(output / "evaluations" / name, **about, **_SAMPLING)
    difference = paired_difference(list(before.accuracies.values()), list(after.accuracies.values()))
    summary = {
        "model": model.model_name_or_path,
        "task": TASK,
        "problems": options.problems,
        "steps": trainer.state.global_step,
        "rollouts": trainer.state.global_step * training.generation_batch_size,
        "seconds": round(seconds, 1),
        "before": _estimate("accuracy", before.accuracy),
        "after": _estimate("accuracy", after.accuracy),
        "difference": _estimate("mean", difference),
    }
    runfolder.write_json(output / runfolder.SUMMARY, summary)
    _print_result(console, summary, difference, training, output)
    return 0


def _refuse_other_folders(output: Path, train_file: Path) -> None:
    """The run folder is replaced, if it is an earlier demo's, finished or not."""
    from sgsd.cli.settings import read_run

    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if output.is_dir() and (read_run(output) or {}).get("dataset") == str(train_file):
        return
    raise ConfigError("the output folder holds something that is no demo", got=str(output), remedy="pass --output")


def _write_data(train_file: Path, test_file: Path, options: argparse.Namespace) -> None:
    test = arithmetic_problems(options.problems, seed=1, prefix="test")
    asked = frozenset(problem.text for problem in test)
    train = arithmetic_problems(_TRAINING_PROBLEMS, seed=2 + options.seed, prefix="train", without=asked)
    train_file.parent.mkdir(parents=True, exist_ok=True)
    for file, problems in ((train_file, train), (test_file, test)):
        rows = [{"id": problem.id, "problem": problem.text, "answer": problem.answer} for problem in problems]
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


class _Screen:
    """Progress bars for the three phases, and the two evaluations."""

    def __init__(self, console: Console, steps: int, test_file: Path, problems: int) -> None:
        from transformers import TrainerCallback

        from sgsd.cli.console import progress_bar

        self.evaluations: dict[str, Any] = {}
        self._progress: Progress = progress_bar(console)
        self._test_file = test_file
        self._tasks: dict[str, TaskID] = {
            "before": self._progress.add_task("before: sampling", total=problems),
            "train": self._progress.add_task("training", total=steps),
            "after": self._progress.add_task("after: sampling", total=problems),
        }
        screen = self

        class Steps(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                screen._progress.update(screen._tasks["train"], completed=state.global_step)

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
                if logs and "success_rate" in logs:
                    rate = 100 * logs["success_rate"]
                    screen._progress.update(screen._tasks["train"], description=f"training ({rate:3.0f} % right)")

        self.callback = Steps()

    def __enter__(self) -> _Screen:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def before(self, trainer: Any) -> None:
        """Called once the trainer stands: its own printing of every step's metrics would drown the bars."""
        from transformers import PrinterCallback

        trainer.remove_callback(PrinterCallback)
        self.evaluate(trainer, "before")

    def evaluate(self, trainer: Any, name: str) -> Any:
        from sgsd.data.sources import load_problems
        from sgsd.engines.generation import TransformersSampler
        from sgsd.evaluation import evaluate
        from sgsd.verifiers import get_verifier

        args = trainer.args
        task = self._tasks[name]
        sampler = TransformersSampler(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.processing_class,
            max_new_tokens=args.max_completion_length,
            batch_size=100,
            progress=lambda done: self._progress.update(task, completed=done),
            **_SAMPLING,
        )
        problems, _ = load_problems(self._test_file)
        self.evaluations[name] = evaluate(sampler, problems, trainer.renderer, get_verifier(args.verifier))
        return self.evaluations[name]


def _estimate(key: str, estimate: Any) -> dict[str, Any]:
    return {key: estimate.mean, "ci95": [estimate.low, estimate.high]}


def _print_result(console: Console, summary: dict[str, Any], difference: Any, training: Any, output: Path) -> None:
    table = Table(
        title=f"{summary['problems']} held-out problems, plain prompt, temperature {_SAMPLING['temperature']}"
    )
    for column in ("", "right", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("before", "after"):
        accuracy = summary[name]
        low, high = accuracy["ci95"]
        table.add_row(name, f"{100 * accuracy['accuracy']:.1f} %", f"{100 * low:.1f} to {100 * high:.1f}")
    points = f"{100 * difference.mean:+.1f} points"
    table.add_row("difference, paired", points, f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}")
    console.print(table)
    console.print(
        "The interval covers 0: no learning shown in this run."
        if difference.covers_zero
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
        for line in (
            "  sgsd demo --output runs/published -- --teacher live --grpo_weight 0 --num_generations 1",
            "  sgsd demo --output runs/grpo -- --sgsd_weight 0",
        ):
            console.print(line, soft_wrap=True)
    more = f"--config demo --dataset {output}-data/train.jsonl --output_dir {output}"
    for line in (
        f"run folder: {output}",
        f"evaluate it again:  sgsd eval {output}",
        f"train on:           sgsd train {more} --max_steps {2 * summary['steps']} --resume",
    ):
        console.print(line, soft_wrap=True)
