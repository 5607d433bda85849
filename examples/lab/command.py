"""``sgsd lab``: run an experiment, tabulate experiments, plot two methods live, or pre-train a lab model."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sgsd import runfolder
from sgsd.cli.console import print_json, progress_bar, standard_error, standard_output
from sgsd.cli.parser import Parser, add_command, parse
from sgsd.display import say
from sgsd.errors import ConfigError

if TYPE_CHECKING:
    from sgsd.evaluation import Evaluation

_TRAIN_QUESTIONS, _TEST_QUESTIONS = 1800, 450
# Methods of the demo, by ``trainers.names.method_name``: flags of ``sgsd lab run``, flags of ``sgsd train``.
_DEMO_METHODS: dict[str, tuple[str, str]] = {
    "GRPO": ("--method grpo", ""),
    "GRPO + correction": ("", "--objective correction --teacher frozen --grpo_weight 1 --sgsd_weight 2"),
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all actions."""
    about = (
        "Run controlled experiments: a tiny model learns hidden rules with a bank whose items are known to help or not."
    )
    parser = Parser(prog="sgsd lab", description=about)
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)

    add = partial(add_command, actions)
    pretrain = add("pretrain", "pre-train a lab model; examples/lab/models has both of them")
    run = add("run", "run one experiment: train in the lab, and evaluate during training")
    table = add("table", "print a table of experiments, over seeds")
    demo = add("demo", "train by GRPO, and by GRPO with failures corrected by teachers, and plot both live")
    for action, threads in ((pretrain, 2), (run, 1)):
        action.add_argument(
            "variant",
            choices=("sharp", "calibrated"),
            help="sharp always follows a stated rule, calibrated six times in ten",
        )
        action.add_argument("--output", type=Path, help="folder to write (default: under runs/)")
        action.add_argument("--threads", type=int, default=threads, help="CPU threads; rounding depends on them")
    run.add_argument("--method", default="sgsd", help="sgsd, grpo or opsd (sgsd)")
    run.add_argument("--helpful", type=int, default=2, help="pairs per symbol that state its true rule (2)")
    run.add_argument("--misleading", type=int, default=2, help="pairs per symbol that state a wrong rule (2)")
    run.add_argument("--irrelevant", type=int, default=0, help="pairs per symbol about another symbol (0)")
    run.add_argument("--k", type=int, help="teachers per rollout (default: all pairs of the symbol)")
    run.add_argument("--flips", type=float, default=0.0, help="share of verdicts that are wrong (0)")
    run.add_argument("--skills_in_prompt", action="store_true", help="show a pair in the student's prompt as well")
    run.add_argument("--accuracy_steps", type=int, default=25, help="optimizer steps between evaluations (25)")
    run.add_argument("--pass_at", type=int, default=0, help="k of pass@k after training; 0: not measured (0)")
    run.add_argument("--json", action="store_true", help="print each evaluation as a line of JSON")
    run.add_argument("settings", nargs="*", help="after --, flags of sgsd train, such as: -- --teacher frozen")
    table.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of run folders")
    table.add_argument("--json", action="store_true", help="print JSON")
    demo.add_argument("--variant", choices=("sharp", "calibrated"), default="calibrated", help="lab model (calibrated)")
    demo.add_argument("--output", type=Path, default=Path("runs/lab-demo"), help="folder to write (runs/lab-demo)")
    demo.add_argument("--steps", type=int, default=300, help="optimizer steps of 64 rollouts (300)")
    for action in (run, demo):
        action.add_argument("--seed", type=int, default=0, help="of the bank, the sampling and the training (0)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run one action; returns the exit code."""
    options = parse(make_parser(), arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    {"pretrain": _pretrain, "run": _run, "table": _table, "demo": _demo}[options.action](options)
    return 0


def _refuse_full(output: Path) -> None:
    if output.exists() and any(output.iterdir()):
        raise ConfigError("the output folder is not empty", got=str(output), remedy="pass --output")


def _pretrain(options: argparse.Namespace) -> None:
    import torch

    from sgsd.examples.lab.pretrain import VARIANTS, pretrain, probe

    output: Path = options.output or Path("runs") / f"lab-{options.variant}"
    _refuse_full(output)
    torch.set_num_threads(options.threads)
    variant = VARIANTS[options.variant]
    with progress_bar(standard_error()) as progress:
        task = progress.add_task("pre-training", total=variant.steps)

        def show(step: int, loss: float) -> None:
            progress.update(task, completed=step, description=f"pre-training, loss {loss:.3f}")

        made = pretrain(variant, output, progress=show)
    table = Table(
        "prompt", "right, %", "95 % interval", title=f"{options.variant} after {made['seconds']:.0f} s of pre-training"
    )
    for name, estimate in probe(str(output)).items():
        table.add_row(name, f"{100 * estimate.mean:.1f}", f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}")
    standard_output().print(table)


def _run(options: argparse.Namespace) -> None:
    shares = f"{options.helpful}-{options.misleading}-{options.irrelevant}"
    name = f"{options.variant}-{options.method}-{shares}-seed{options.seed}"
    output: Path = options.output or Path("runs/lab") / name
    console = standard_error()

    def report(step: int, evaluation: Evaluation, seconds: float, cpu_seconds: float) -> None:
        accuracy = evaluation.accuracy.mean
        if options.json:
            several = {f"pass_at_{evaluation.k}": evaluation.pass_at(evaluation.k).mean} if evaluation.k > 1 else {}
            spent = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_seconds, 2)}
            say(json.dumps({"step": step, "accuracy": accuracy, **spent, **several}))
        elif evaluation.k > 1:
            least_one = evaluation.pass_at(evaluation.k).mean
            console.print(f"{evaluation.k} samples a problem: {100 * least_one:.1f} % have a right one among them")
        else:
            console.print(f"step {step:4d}: {100 * accuracy:5.1f} % right")

    seconds = _experiment(options, output, console, report)
    if not options.json:
        console.print(f"{seconds:.0f} s; more: sgsd lab table {output}", soft_wrap=True)


def _experiment(
    options: argparse.Namespace,
    output: Path,
    console: Console,
    listener: Callable[[int, Evaluation, float, float], None],
) -> float:
    """Train on the lab's data with its bank, embedder and verifier; returns the seconds of training.

    ``listener`` is called at each evaluation with the step, the evaluation, and the wall-clock and CPU seconds of all
    optimizer steps so far. Those include sampling and teachers, but not evaluations.
    """
    import torch
    import transformers

    from sgsd.cli.settings import parse_settings
    from sgsd.cli.train import run_training
    from sgsd.engines.generation import TransformersSampler
    from sgsd.evaluation import evaluate
    from sgsd.examples.lab.ablations import as_objectives
    from sgsd.examples.lab.curve import AccuracyCallback
    from sgsd.examples.lab.experiment import BankShares, NoisyVerifier, TopicEmbedder, make_bank, questions
    from sgsd.examples.lab.language import MAX_COMPLETION
    from sgsd.examples.lab.table import LAB_RECORD
    from sgsd.retrieval import EmbeddingRetriever
    from sgsd.verifiers import get_verifier

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    verifier = get_verifier("exact", workers=1)
    noisy = NoisyVerifier(verifier, flips=options.flips, seed=options.seed)
    shares = BankShares(options.helpful, options.misleading, options.irrelevant)
    made = make_bank(shares, seed=options.seed)
    test = questions(_TEST_QUESTIONS, seed=1, prefix="test")
    train = questions(_TRAIN_QUESTIONS, seed=2, prefix="train", without=frozenset(problem.text for problem in test))
    data = output.parent / "lab-data"
    question_file = data / "questions.jsonl"
    bank_file = data / f"bank-{shares.helpful}-{shares.misleading}-{shares.irrelevant}-seed{options.seed}.json"
    rows = ({"id": p.id, "problem": p.text, "answer": p.answer, "solution": p.solution} for p in train)
    for file, text in (
        (question_file, "".join(json.dumps(row) + "\n" for row in rows)),
        (bank_file, made.bank.to_json()),
    ):
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            runfolder.write_text(file, text)  # atomically: several runs may start at once

    flags = ["--config", "lab", "--model_name_or_path", f"local:lab-{options.variant}", "--output_dir", str(output)]
    flags += ["--dataset", str(question_file), "--seed", str(options.seed), "--method", options.method]
    if options.method == "sgsd" or options.skills_in_prompt:
        flags += ["--bank", str(bank_file)]
    if options.method == "sgsd":
        flags += ["--num_teachers", str(options.k or shares.total)]
    if options.skills_in_prompt:
        flags += ["--skills_in_prompt", "true"]
    run, training, model = parse_settings([*flags, *as_objectives(options.settings)])

    class Stopwatch(transformers.TrainerCallback):
        """Wall-clock and CPU seconds of all optimizer steps so far."""

        spent = began = (0.0, 0.0)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock, process = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
            self.spent = self.spent[0] + clock, self.spent[1] + process

    stopwatch, sampling = Stopwatch(), {"max_new_tokens": MAX_COMPLETION, "temperature": 1.0}
    trainers: list[Any] = []

    def prepare(trainer: Any) -> None:
        trainers.append(trainer)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.reward_funcs[0].verifier = noisy
        trainer.add_callback(stopwatch)  # before the evaluation, whose time does not count
        accuracy = AccuracyCallback(
            test,
            trainer.renderer,
            verifier,
            every=options.accuracy_steps,
            sampling=sampling | {"batch_size": _TEST_QUESTIONS},
            save_to=output / "evaluations" / "lab",
            listener=lambda step, evaluation: listener(step, evaluation, *stopwatch.spent),
        )
        trainer.add_callback(accuracy)

    began = time.perf_counter()
    run_training(
        run,
        training,
        model,
        Console(quiet=True) if options.json else console,
        before=prepare,
        retriever=EmbeddingRetriever(TopicEmbedder(made.topics)),
    )
    seconds = time.perf_counter() - began
    if options.pass_at:
        [trainer] = trainers
        sampler = TransformersSampler(trainer.model, trainer.renderer.tokenizer, **sampling, batch_size=_TEST_QUESTIONS)
        several = evaluate(sampler, test, trainer.renderer, verifier, k=options.pass_at, seed=1)
        listener(trainer.state.global_step, several, *stopwatch.spent)
    record = {"variant": options.variant, **asdict(shares), "flips": options.flips, "k": options.k}
    record |= {"settings": options.settings, "seconds": round(seconds, 1)}
    (output / LAB_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return seconds


def _table(options: argparse.Namespace) -> None:
    from sgsd.examples.lab.table import as_table, summarise

    groups = summarise(options.runs)
    if options.json:
        print_json([asdict(group) for group in groups])
    else:
        standard_output().print(as_table(groups))


def _demo(options: argparse.Namespace) -> None:
    """Train two runs in parallel, on a core each, and plot their accuracies live."""
    _refuse_full(options.output)
    console = standard_output()
    console.print(
        "sgsd lab demo: a tiny model that follows about half of the stated rules learns nine hidden rules. "
        f"{options.steps} steps of 64 rollouts each; the same questions, bank, verifier and seed.",
    )
    began = time.perf_counter()
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in _DEMO_METHODS}
    folders = {name: options.output / name.lower().replace(" ", "").replace("+", "-") for name in _DEMO_METHODS}
    failures: list[str] = []
    threads = [
        threading.Thread(target=_follow, args=(name, options, folders[name], curves[name], failures), daemon=True)
        for name in _DEMO_METHODS
    ]
    for thread in threads:
        thread.start()
    with Live(console=console, refresh_per_second=2) as live:
        running = True
        while running:
            running = any(thread.is_alive() for thread in threads)
            live.update(_screen(curves, options.steps, console, time.perf_counter() - began))
            time.sleep(0.5)
    if not console.is_terminal:
        console.print()  # only in terminals does a live display end its last line
    if failures:
        raise ConfigError("a run of the demo failed", got=failures[0])
    shown = " ".join(map(str, folders.values()))
    console.print(f"intervals: sgsd compare {shown}", soft_wrap=True)
    console.print(f"a page:    sgsd report {shown}", soft_wrap=True)
    console.print("This is one seed; docs/lab.md has more, with failures.")


def _follow(
    name: str, options: argparse.Namespace, folder: Path, curve: list[tuple[int, float]], failures: list[str]
) -> None:
    """Run ``sgsd lab run`` in another process and append its accuracies to ``curve``, or its error to ``failures``."""
    own, settings = (flags.split() for flags in _DEMO_METHODS[name])
    command = [sys.executable, "-m", "sgsd.cli", "lab", "run", options.variant, "--json", "--threads", "1"]
    command += ["--seed", str(options.seed), "--output", str(folder), *own]
    command += ["--accuracy_steps", str(max(1, options.steps // 20)), "--", *settings]
    command += ["--max_steps", str(options.steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            point = json.loads(line)
            curve.append((point["step"], 100 * point["accuracy"]))
        errors = (process.stderr.read() if process.stderr else "").strip()
    if process.returncode:
        failures.append(f"{name}: {errors.splitlines()[-1] if errors else process.returncode}")


def _screen(curves: dict[str, list[tuple[int, float]]], steps: int, console: Console, seconds: float) -> Group:
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(min(console.width, 90), 18)
    for (name, curve), marker in zip(curves.items(), "●○", strict=True):
        if curve:
            signal = figure.signal(*zip(*curve, strict=True), marker=marker)
            signal.lines()
            signal.label(name)
            figure.draw(signal)
    figure.ruler("x").lim(0, steps)
    figure.ruler("y").lim(0, 100)
    figure.label("optimizer steps", "x")
    figure.title("held-out questions right, plain prompt, %")
    latest = ", ".join(f"{name} {curve[-1][1]:.0f} %" for name, curve in curves.items() if curve)
    return Group(Text.from_ansi(str(figure.build())), Text(f"{latest or 'starting'}; {seconds:.0f} s"))
