"""The lab experiments behind docs/evidence.md: python examples/lab/evidence.py run|check|page|figure|…

Each run is one ``sgsd lab run``. When it ends, its accuracies, seconds, command, commit and versions are appended as a
line to ``results/lab/LAB-CELL.jsonl``. Stored runs are not repeated, so the same command resumes an interrupted plan.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Any

from scipy import stats

from sgsd import runfolder
from sgsd.examples.lab.cells import CELLS, LABS, PLANS, RESULTS, ROOT, Batch, command, flags, is_former, records
from sgsd.examples.lab.pages import PASS_AT, TABLES, figure, page, printed

LEDGER_STEP = 150
HELPFUL = "helpful"
"""The worth of true items in a bank of the lab."""


def make(name: str, lab: str, learning_rate: float, seed: int) -> dict[str, Any]:
    """Make one run; returns its record.

    Raises:
        RuntimeError: the run failed; the message is its last line of output.
    """
    arguments = flags(CELLS[name], lab, learning_rate=learning_rate, seed=seed)
    at = arguments.index("--")
    changed = git("status", "--porcelain", "src", "examples/lab")
    commit = git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "run")
        first = [sys.executable, "-m", "sgsd.cli", *arguments[:at], "--json", "--pass_at", str(PASS_AT)]
        save = ["--save_strategy", "steps", "--save_steps", str(LEDGER_STEP)]  # the ledger of that step
        began = time.perf_counter()
        done = subprocess.run(
            [*first, "--output", str(output), *arguments[at:], *save],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip() or "failed").splitlines()[-1])
        seconds = round(time.perf_counter() - began)
        *curve, several = map(json.loads, done.stdout.splitlines())
        history = runfolder.read_json(output / runfolder.STATE)["log_history"]
        guard = output / runfolder.GUARD
        alarm = runfolder.read_json(guard) if guard.is_file() else None
        ledger = separations(output) if "--method" not in arguments else {}
    return {
        "cell": name,
        "lab": lab,
        "learning_rate": learning_rate,
        "seed": seed,
        "command": command(name, lab, learning_rate, seed),
        "commit": commit,
        "versions": {package: version(package) for package in ("torch", "transformers", "trl")},
        "cpu": instructions(),
        "seconds": seconds,
        "accuracy": {str(point["step"]): point["accuracy"] for point in curve},
        "train_seconds": {str(point["step"]): point["seconds"] for point in curve},
        "cpu_seconds": {str(point["step"]): point["cpu_seconds"] for point in curve},
        "last_25_steps": last_steps([entry for entry in history if "entropy" in entry][-25:]),
        f"pass_at_{PASS_AT}": several[f"pass_at_{PASS_AT}"],
        "guard": alarm and {part: alarm[part] for part in ("step", "what")},
    } | ({"helpful_above": ledger} if ledger else {})


def instructions() -> str:
    """The vector instructions that torch uses here, such as AVX2. The last digits of a run depend on them."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def last_steps(entries: Sequence[dict[str, float | None]]) -> dict[str, float]:
    """Means of the logged completion length in tokens and entropy in nats."""
    logged = {"tokens": "completions/mean_length", "entropy": "entropy"}
    return {
        what: round(mean(entry[name] for entry in entries if entry[name] is not None), 4)
        for what, name in logged.items()
    }


def separations(run: Path) -> dict[str, dict[str, float]]:
    """Areas under the ROC curve of helpful items against each other kind, by measure, after ``LEDGER_STEP`` steps."""
    asked = [sys.executable, "-m", "sgsd.cli", "bank", "ledger", str(run / f"checkpoint-{LEDGER_STEP}"), "--json"]
    items = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)["items"]
    return {kind: {name: found[name] for name in ("credit", "support")} for kind, found in areas(items).items()}


def areas(items: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Areas under the ROC curve of helpful items against each other kind, by measure; nothing without both.

    Args:
        items: those of ``sgsd bank ledger --json``, with the worth that a bank of the lab states.
    """

    def support(item: dict[str, Any]) -> float:
        success, failure = item["mean_support_success"], item["mean_support_failure"]
        return 0.0 if success is None or failure is None else success - failure

    measures = {
        "credit": lambda item: item["credit"]["value"],
        "positive_share": lambda item: 0.5 if item["positive_share"] is None else item["positive_share"],
        "support": support,
    }
    kinds: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        kinds.setdefault(item["worth"], []).append(item)
    helpful = kinds.pop(HELPFUL, [])
    return {
        kind: {name: area([*map(of, helpful)], [*map(of, others)]) for name, of in measures.items()}
        for kind, others in kinds.items()
        if kind is not None and helpful
    }


def area(better: Sequence[float], worse: Sequence[float]) -> float:
    """The probability that a value of ``better`` exceeds one of ``worse``; ties count half."""
    return float(stats.mannwhitneyu(better, worse).statistic) / (len(better) * len(worse))


def run(options: argparse.Namespace) -> None:
    """Make the runs that are not stored yet, the most important first."""
    batches = [Batch(options.cells or list(CELLS), options.learning_rates or (), options.seeds)]
    if options.plan:
        batches = [batch for name in options.plan for batch in PLANS[name]]
    done = {command for command, run in records().items() if not is_former(run)}
    wanted = {command(*which): which for batch in batches for which in batch.runs(options.labs)}
    wanted = {typed: which for typed, which in wanted.items() if typed not in done}
    if options.list:
        print(*wanted, f"{len(wanted)} runs", sep="\n")
        return

    def one(which: tuple[str, str, float, int]) -> str:
        name, lab, learning_rate, seed = which
        said = f"{lab} {name} lr {learning_rate:g} seed {seed}"
        try:
            line = make(*which)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            return f"{said}: {error}"
        with (RESULTS / f"{lab}-{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        former = records().get(line["command"])
        again = {None: "", True: ", as before", False: ", not as before"}[
            former and former["accuracy"] == line["accuracy"]
        ]
        last = list(line["accuracy"].values())[-1]
        return f"{said}: {100 * last:.1f} %, {line['seconds']} s{again}"

    with ThreadPoolExecutor(options.jobs) as pool:
        for n, said in enumerate(pool.map(one, wanted.values()), start=1):
            print(f"{n}/{len(wanted)} {said}", flush=True)


def check(options: argparse.Namespace) -> None:
    """Repeat three runs that were made with this processor's instructions, drawn by ``--draw``; compare all accuracies.

    Raises:
        SystemExit: with code 1 if any accuracy differs, or no run was made with these instructions.
    """
    made = [run for run in records().values() if run.get("cpu") == instructions()]
    if not made:
        print(f"no stored run was made with {instructions()}")
    drawn = random.Random(options.draw).sample(sorted(made, key=lambda run: run["command"]), min(3, len(made)))
    same = []
    for run in drawn:
        again = make(run["cell"], run["lab"], run["learning_rate"], run["seed"])
        same.append(again["accuracy"] == run["accuracy"])
        print(f"{run['command']}: {'the same' if same[-1] else again['accuracy']}", flush=True)
    if not (same and all(same)):
        raise SystemExit(1)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "check", "page", "figure", *TABLES))
    parser.add_argument("--plan", nargs="+", choices=PLANS, help="for run: cells, learning rates and seeds, in order")
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="default: all")
    parser.add_argument("--labs", nargs="+", choices=LABS, default=list(LABS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--learning_rates", nargs="+", type=float, help="default: each cell's own")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs, with a thread each")
    parser.add_argument("--list", action="store_true", help="for run: list the runs without making them")
    parser.add_argument("--draw", type=int, default=0, help="for check: seed of the draw")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "lab.svg", help="for figure: file to write")
    options = parser.parse_args()
    if options.action in TABLES:
        print(printed(options.action, options))
    else:
        {"run": run, "check": check, "page": page, "figure": figure}[options.action](options)


if __name__ == "__main__":
    main()
