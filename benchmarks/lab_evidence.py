"""The lab experiments behind docs/evidence.md: python benchmarks/lab_evidence.py run|table

Each run is one ``sgsd lab run``; its accuracy curve, command, commit and versions become a line of
``results/lab/LAB-CELL.jsonl``. A run that is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "lab"
LABS = {"sharp": (1, 3), "calibrated": (2, 2)}
"""Variant → helpful and misleading pairs a symbol, unless a cell says otherwise."""
MIXED = ("--objective", "advantage", "--teacher", "frozen", "--grpo_weight", "1")


@dataclass(frozen=True)
class Cell:
    """Flags of ``sgsd lab run``, and behind the dashes of ``sgsd train``."""

    lab: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    what: str = ""


def sgsd(*train: str, what: str, lab: tuple[str, ...] = ()) -> Cell:
    return Cell(lab, train, what)


CELLS = {
    "grpo": Cell(("--method", "grpo"), (), "GRPO"),
    "opsd": Cell(("--method", "opsd"), (), "OPSD, reference solutions, frozen teacher"),
    "sgsd": sgsd(what="SGSD as published, live teacher"),
    "sgsd-frozen": sgsd("--teacher", "frozen", what="SGSD, frozen teacher"),
    "sgsd-ema": sgsd("--teacher", "ema", what="SGSD, EMA teacher"),
    "sgsd-periodic": sgsd("--teacher", "periodic", what="SGSD, periodic teacher"),
    "sgsd-no-clip": sgsd("--support_clip", "1000", "--support_threshold", "0", what="SGSD without clip and dead zone"),
    "sgsd-no-gate": sgsd("--use_gate", "false", what="SGSD without gate (squared gap)"),
    "sgsd-no-polarity": sgsd("--use_polarity", "false", what="SGSD without polarity"),
    "sgsd-k1": sgsd(lab=("--k", "1"), what="SGSD, K = 1"),
    "mixed-loss": sgsd(
        "--teacher", "frozen", "--grpo_weight", "1", "--sgsd_weight", "4", what="GRPO's loss + 4 × SGSD's, frozen"
    ),
    "advantage": sgsd(*MIXED, what="trusted teachers in GRPO's advantage"),
    "advantage-equal": sgsd(*MIXED, "--teacher_trust", "equal", what="the same, all teachers trusted alike"),
    "advantage-live": sgsd(*MIXED, "--teacher", "live", what="the same, live teacher"),
    "advantage-alone": sgsd(*MIXED, "--grpo_weight", "0", what="the same, without GRPO's advantage"),
    "advantage-weight-2": sgsd(*MIXED, "--sgsd_weight", "2", what="the same, weight 2"),
    "advantage-weight-0.5": sgsd(*MIXED, "--sgsd_weight", "0.5", what="the same, weight 0.5"),
    "grpo-flips": Cell(("--method", "grpo", "--flips", "0.1"), (), "GRPO, 10 % of verdicts wrong"),
    "advantage-flips": sgsd(*MIXED, lab=("--flips", "0.1"), what="trusted teachers, 10 % of verdicts wrong"),
    "advantage-half": sgsd(
        *MIXED, lab=("--helpful", "2", "--misleading", "2"), what="trusted teachers, half of the bank misleading"
    ),
}


def flags(cell: Cell, lab: str, *, learning_rate: float, seed: int) -> list[str]:
    """Arguments of ``sgsd`` that make the run."""
    helpful, misleading = LABS[lab]
    shares = ["--helpful", str(helpful), "--misleading", str(misleading), "--seed", str(seed)]
    return ["lab", "run", lab, *shares, *cell.lab, "--", "--learning_rate", f"{learning_rate:g}", *cell.train]


def stored(lab: str, name: str) -> list[dict[str, Any]]:
    file = RESULTS / f"{lab}-{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def make(name: str, lab: str, learning_rate: float, seed: int, commit: str) -> str:
    """Make one run and add its line."""
    arguments = flags(CELLS[name], lab, learning_rate=learning_rate, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        at = arguments.index("--")
        command = [sys.executable, "-m", "sgsd.cli", *arguments[:at], "--json", "--output", f"{folder}/run"]
        began = time.perf_counter()
        done = subprocess.run([*command, *arguments[at:]], capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        return f"{lab} {name} seed {seed}: {(done.stderr.strip() or 'failed').splitlines()[-1]}"
    curve = {point["step"]: point["accuracy"] for point in map(json.loads, done.stdout.splitlines())}
    line = {
        "cell": name,
        "lab": lab,
        "learning_rate": learning_rate,
        "seed": seed,
        "command": f"sgsd {shlex.join(arguments)}",
        "commit": commit,
        "versions": {package: version(package) for package in ("torch", "transformers", "trl")},
        "seconds": round(time.perf_counter() - began),
        "accuracy": curve,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{lab}-{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return f"{lab} {name} lr {learning_rate:g} seed {seed}: {100 * curve[max(curve)]:.1f} %"


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, float, int]]:
    """Runs that are not stored yet: all cells of a seed before the next seed."""
    for seed in range(options.seeds):
        for learning_rate in options.learning_rates:
            for name in options.cells or CELLS:
                for lab in options.labs:
                    made = {(run["learning_rate"], run["seed"]) for run in stored(lab, name)}
                    if (learning_rate, seed) not in made:
                        yield name, lab, learning_rate, seed


def run(options: argparse.Namespace) -> None:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    with ThreadPoolExecutor(options.workers) as pool:
        for said in pool.map(lambda which: make(*which, commit), list(wanted(options))):
            print(said, flush=True)


def interval(values: Sequence[float]) -> str:
    """Mean in %, and Student's 95 % interval over seeds; of one or two seeds, what each gave."""
    percent = [100 * value for value in values]
    if len(percent) < 3:
        return ", ".join(f"{value:.0f}" for value in percent)
    half = stats.t.ppf(0.975, len(percent) - 1) * stdev(percent) / len(percent) ** 0.5
    return f"{mean(percent):.0f} ± {half:.0f}"


def table(options: argparse.Namespace) -> None:
    """Markdown: accuracy at thirds of the run, runs below their start, and rollouts until GRPO's last accuracy."""
    for lab in options.labs:
        print(f"\n**{lab}**\n")
        print("| method | learning rate | seeds | step 100 | step 200 | step 300 | fell | rollouts to GRPO's end |")
        print("|---|---|---|---|---|---|---|---|")
        for name in options.cells or CELLS:
            for learning_rate in options.learning_rates:
                runs = [r for r in stored(lab, name) if r["learning_rate"] == learning_rate]
                if not runs:
                    continue
                curves = [{int(step): value for step, value in r["accuracy"].items()} for r in runs]
                steps = [interval([curve[step] for curve in curves]) for step in (100, 200, 300)]
                fell = sum(curve[300] < curve[0] for curve in curves)
                reference = "grpo-flips" if name.endswith("-flips") else "grpo"
                goals = [r for r in stored(lab, reference) if r["learning_rate"] == learning_rate]
                reached = to_goal(curves, [r["accuracy"]["300"] for r in goals])
                cells = [CELLS[name].what, f"{learning_rate:g}", str(len(runs)), *steps, f"{fell} of {len(runs)}"]
                print("| " + " | ".join([*cells, reached]) + " |")


def to_goal(curves: Sequence[dict[int, float]], goals: Sequence[float]) -> str:
    """Rollouts until each curve first reaches the goals' mean, against those of 300 steps, as shares."""
    if not goals:
        return ""
    goal = mean(goals)
    first = [min((step for step, value in curve.items() if value >= goal), default=None) for curve in curves]
    shares = sorted(step / 300 for step in first if step is not None)
    if not shares:
        return f"none reached {100 * goal:.0f} %"
    missed = f"; {len(first) - len(shares)} never" if len(shares) < len(first) else ""
    return f"{shares[0]:.0%} to {shares[-1]:.0%}{missed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="default: all")
    parser.add_argument("--labs", nargs="+", choices=LABS, default=list(LABS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this, exclusive")
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[1e-4, 2e-4])
    parser.add_argument("--workers", type=int, default=2, help="runs at once, a thread each")
    options = parser.parse_args()
    {"run": run, "table": table}[options.action](options)


if __name__ == "__main__":
    main()
