"""``sgsd lab``: pre-train a lab model, run an experiment, tabulate experiments, watch two methods learn."""

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sgsd import runfolder
from sgsd.cli.console import standard_error, standard_output
from sgsd.errors import ConfigError

if TYPE_CHECKING:
    from sgsd.evaluation import Evaluation

_TRAIN_QUESTIONS, _TEST_QUESTIONS = 1800, 450
# What the demo compares, by ``trainers.names.method_name``: GRPO alone, and with failures corrected by trusted
# teachers (docs/evidence.md).
_DEMO_METHODS = {
    "GRPO": ("--method", "grpo"),
    "GRPO + correction": (
        *("--", "--objective", "correction", "--teacher", "frozen"),
        *("--grpo_weight", "1", "--sgsd_weight", "2"),
    ),
}


def lab(options: argparse.Namespace) -> int:
    """Dispatch ``pretrain``, ``run``, ``table`` and ``demo``."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    return {"pretrain": _pretrain, "run": _run, "table": _table, "demo": _demo}[options.action](options)


def _pretrain(options: argparse.Namespace) -> int:
    import torch

    from sgsd.cli.console import progress_bar
    from sgsd.lab.pretrain import VARIANTS, pretrain
    from sgsd.lab.probe import probe

    output: Path = options.output or Path("runs") / f"lab-{options.variant}"
    if output.exists() and any(output.iterdir()):
        raise ConfigError("the output folder is not empty", got=str(output), remedy="pass --output")
    torch.set_num_threads(options.threads)
    variant = VARIANTS[options.variant]
    console = standard_error()
    with progress_bar(console) as progress:
        task = progress.add_task("pre-training", total=variant.steps)

        def show(step: int, loss: float) -> None:
            progress.update(task, completed=step, description=f"pre-training, loss {loss:.3f}")

        made = pretrain(variant, output, progress=show)
    table = Table(title=f"{options.variant}: {made['seconds']:.0f} s; accuracy of the model as it is")
    table.add_column("prompt")
    table.add_column("right", justify="right")
    table.add_column("95 % interval", justify="right")
    for name, estimate in probe(str(output)).items():
        table.add_row(name, f"{100 * estimate.mean:.1f} %", f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}")
    standard_output().print(table)
    return 0


def _run(options: argparse.Namespace) -> int:
    output: Path = options.output or Path("runs/lab") / _default_name(options)
    console = standard_error()

    def report(step: int, evaluation: Evaluation) -> None:
        if options.json:
            print(json.dumps({"step": step, "accuracy": evaluation.accuracy.mean}), flush=True)
        else:
            console.print(f"step {step:4d}: {100 * evaluation.accuracy.mean:5.1f} % right")

    seconds = _experiment(options, output, console, report)
    if not options.json:
        console.print(f"{seconds:.0f} s; more: sgsd lab table {output}", soft_wrap=True)
    return 0


def _default_name(options: argparse.Namespace) -> str:
    shares = f"{options.helpful}-{options.misleading}-{options.irrelevant}"
    return f"{options.variant}-{options.method}-{shares}-seed{options.seed}"


def _experiment(
    options: argparse.Namespace, output: Path, console: Console, listener: Callable[[int, Evaluation], None]
) -> float:
    """One run in the lab: the package's own training on the lab's data, bank, embedder and verifier."""
    import torch
    import transformers

    from sgsd.cli.settings import parse_settings
    from sgsd.cli.train import run_training
    from sgsd.evaluation.curve import AccuracyCallback
    from sgsd.lab.experiment import BankShares, NoisyVerifier, TopicEmbedder, make_bank, questions
    from sgsd.lab.language import MAX_COMPLETION
    from sgsd.lab.table import LAB_RECORD
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
    asked = frozenset(problem.text for problem in test)
    train = questions(_TRAIN_QUESTIONS, seed=2, prefix="train", without=asked)
    data = output.parent / "lab-data"
    bank_file = data / f"bank-{shares.helpful}-{shares.misleading}-{shares.irrelevant}-seed{options.seed}.json"
    rows = (
        {"id": problem.id, "problem": problem.text, "answer": problem.answer, "solution": problem.solution}
        for problem in train
    )
    _write_once(data / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _write_once(bank_file, made.bank.to_json())

    flags = ["--config", "lab", "--model_name_or_path", f"local:lab-{options.variant}", "--output_dir", str(output)]
    flags += ["--dataset", str(data / "questions.jsonl"), "--seed", str(options.seed), "--method", options.method]
    if options.method == "sgsd" or options.skills_in_prompt:
        flags += ["--bank", str(bank_file)]
    if options.method == "sgsd":
        flags += ["--num_teachers", str(options.k or shares.total)]
    if options.skills_in_prompt:
        flags += ["--skills_in_prompt", "true"]
    run, training, model = parse_settings([*flags, *options.settings])

    def prepare(trainer: Any) -> None:
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.reward_funcs[0].verifier = noisy
        sampling = {"max_new_tokens": MAX_COMPLETION, "temperature": 1.0, "batch_size": _TEST_QUESTIONS}
        trainer.add_callback(
            AccuracyCallback(
                test,
                trainer.renderer,
                verifier,
                every=options.accuracy_steps,
                sampling=sampling,
                save_to=output / "evaluations" / "lab",
                listener=listener,
            )
        )

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
    record = {"variant": options.variant, **asdict(shares), "flips": options.flips, "k": options.k}
    record |= {"settings": options.settings, "seconds": round(seconds, 1)}
    (output / LAB_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return seconds


def _write_once(file: Path, text: str) -> None:
    """Written whole or not at all: several runs may begin at once."""
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    runfolder.write_text(file, text)


def _table(options: argparse.Namespace) -> int:
    from sgsd.lab.table import summarise

    groups = summarise(options.runs)
    if options.json:
        print(json.dumps([asdict(group) for group in groups], indent=2))
        return 0
    steps = sorted({step for group in groups for step in group.accuracy} & set(_shown(groups)))
    table = Table(
        title="plain-prompt accuracy in %, by step; mean (lowest to highest seed)",
        caption="fell: runs that ended below their start",
    )
    table.add_column("lab", overflow="fold")
    table.add_column("method, settings", overflow="fold")
    table.add_column("seeds", justify="right")
    for step in steps:
        table.add_column(f"{step}", justify="right", no_wrap=True)
    table.add_column("fell", justify="right", no_wrap=True)
    for group in groups:
        cells = []
        for step in steps:
            low, mean, high = group.accuracy.get(step, (None, None, None))
            spread = "" if low == high else f" ({100 * low:.0f} to {100 * high:.0f})"
            cells.append("–" if mean is None else f"{100 * mean:.1f}{spread}")
        table.add_row(group.lab, group.label, str(len(group.seeds)), *cells, f"{group.collapsed} of {len(group.seeds)}")
    standard_output().print(table)
    return 0


def _shown(groups: Sequence[Any]) -> list[int]:
    """The start, the end, and what lies at thirds between them: a table has room for no more."""
    last = max(step for group in groups for step in group.accuracy)
    return [0, last // 3, 2 * last // 3, last]


def _demo(options: argparse.Namespace) -> int:
    """Two runs at once, a core each; their curves as they come."""
    output: Path = options.output
    if output.exists() and any(output.iterdir()):
        raise ConfigError("the output folder is not empty", got=str(output), remedy="pass --output")
    console = standard_output()
    console.print(
        "sgsd lab demo: a tiny model that follows half of what it is told learns nine hidden rules. "
        f"{options.steps} steps of 64 rollouts each; the same questions, bank, verifier and seed.",
    )
    began = time.perf_counter()
    curves: dict[str, list[tuple[int, float]]] = {name: [] for name in _DEMO_METHODS}
    failures: list[str] = []
    threads = [
        threading.Thread(target=_follow, args=(name, options, curves[name], failures), daemon=True)
        for name in _DEMO_METHODS
    ]
    for thread in threads:
        thread.start()
    with Live(console=console, refresh_per_second=2) as live:
        while any(thread.is_alive() for thread in threads):
            live.update(_screen(curves, options.steps, console, time.perf_counter() - began))
            time.sleep(0.5)
        live.update(_screen(curves, options.steps, console, time.perf_counter() - began))
    if not console.is_terminal:
        console.print()  # a live display ends its last line in terminals alone
    if failures:
        raise ConfigError("a run of the demo failed", got=failures[0])
    folders = " ".join(str(_demo_folder(output, name)) for name in _DEMO_METHODS)
    console.print(f"intervals: sgsd compare {folders}", soft_wrap=True)
    console.print(f"a page:    sgsd report {folders}", soft_wrap=True)
    console.print("One seed; docs/lab.md has more, and where it goes wrong.")
    return 0


def _demo_folder(output: Path, name: str) -> Path:
    return output / name.lower().replace(" ", "").replace("+", "-")


def _follow(name: str, options: argparse.Namespace, curve: list[tuple[int, float]], failures: list[str]) -> None:
    """Run ``sgsd lab run`` in a process of its own and collect what it prints."""
    own, dashes, settings = _split(_DEMO_METHODS[name])
    command = [sys.executable, "-m", "sgsd.cli", "lab", "run", options.variant, "--json", "--threads", "1"]
    command += ["--seed", str(options.seed), "--output", str(_demo_folder(options.output, name)), *own]
    command += ["--accuracy_steps", str(max(1, options.steps // 20)), *dashes, *settings]
    command += ["--max_steps", str(options.steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for line in process.stdout or ():
            point = json.loads(line)
            curve.append((point["step"], 100 * point["accuracy"]))
        complaint = (process.stderr.read() if process.stderr else "").strip()
    if process.returncode:
        failures.append(f"{name}: {complaint.splitlines()[-1] if complaint else process.returncode}")


def _split(flags: Sequence[str]) -> tuple[Sequence[str], list[str], Sequence[str]]:
    """Flags of ``lab run``, the dashes, and the flags of ``sgsd train`` behind them."""
    if "--" not in flags:
        return flags, ["--"], ()
    at = flags.index("--")
    return flags[:at], ["--"], flags[at + 1 :]


def _screen(curves: dict[str, list[tuple[int, float]]], steps: int, console: Console, seconds: float) -> Group:
    import plotext

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(min(console.width, 90), 18)
    markers = iter(("●", "○"))
    for name, curve in curves.items():
        if curve:
            signal = figure.signal(*zip(*curve, strict=True), marker=next(markers))
            signal.lines()
            signal.label(name)
            figure.draw(signal)
    figure.ruler("x").lim(0, steps)
    figure.ruler("y").lim(0, 100)
    figure.label("optimizer steps", "x")
    figure.title("held-out questions right, plain prompt, %")
    latest = ", ".join(f"{name} {curve[-1][1]:.0f} %" for name, curve in curves.items() if curve)
    return Group(Text.from_ansi(str(figure.build())), Text(f"{latest or 'starting'}; {seconds:.0f} s"))
