"""The lab experiments behind docs/evidence.md: python examples/lab/evidence.py run|check|table|sweeps|page|figure

Each run is one ``sgsd lab run``; its accuracy curve, seconds, command, commit and versions become a line of
``results/lab/LAB-CELL.jsonl`` as soon as it ends. A run that is there is not made again, so what was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

from sgsd import runfolder
from sgsd.examples.lab.cells import (
    CELLS,
    LABS,
    LEARNING_RATES,
    MAIN,
    PLANS,
    RESULTS,
    ROOT,
    SWEEPS,
    SWEPT,
    Batch,
    command,
    flags,
    is_former,
    records,
    stored,
    swept,
)

PAGE = ROOT / "docs" / "evidence.md"
STEPS = (100, 200, 300)
LEDGER_STEP = 150
PASS_AT = 8


# ---- making runs


def make(name: str, lab: str, learning_rate: float, seed: int) -> dict[str, Any]:
    """Make one run; its line.

    Raises:
        RuntimeError: it failed; the message is its last line.
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
        "seconds": seconds,
        "accuracy": {str(point["step"]): point["accuracy"] for point in curve},
        "train_seconds": {str(point["step"]): point["seconds"] for point in curve},
        "cpu_seconds": {str(point["step"]): point["cpu_seconds"] for point in curve},
        "last_25_steps": last_steps([entry for entry in history if "entropy" in entry][-25:]),
        f"pass_at_{PASS_AT}": several[f"pass_at_{PASS_AT}"],
        "guard": alarm and {part: alarm[part] for part in ("step", "what")},
    } | ({"helpful_above": ledger} if ledger else {})


def last_steps(entries: Sequence[dict[str, float | None]]) -> dict[str, float]:
    """Means of the rollouts' tokens and their entropy in nats, as the trainer logged them."""
    logged = {"tokens": "completions/mean_length", "entropy": "entropy"}
    return {
        what: round(mean(entry[name] for entry in entries if entry[name] is not None), 4)
        for what, name in logged.items()
    }


def separations(run: Path) -> dict[str, dict[str, float]]:
    """Worse kind → measure → area under the ROC curve of the helpful items against it, after ``LEDGER_STEP`` steps."""
    asked = [sys.executable, "-m", "sgsd.cli", "bank", "ledger", str(run / f"checkpoint-{LEDGER_STEP}"), "--json"]
    found = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)["separation"]
    return {entry["worse"]: {name: entry[name] for name in ("credit", "support")} for entry in found}


def run(options: argparse.Namespace) -> None:
    """Make what the present trainer has not made yet, in the order of importance."""
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
    """Make three runs again, drawn by ``--draw`` among the present trainer's; all accuracies must be the same.

    Raises:
        SystemExit: with code 1, if any is not.
    """
    made = [run for run in records().values() if not is_former(run)]
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


# ---- what the page shows


def interval(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval over seeds; of one or two seeds, what each gave."""
    if len(values) < 3:
        return ", ".join(f"{value:.0f}" for value in values)
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.0f} ± {half:.0f}"


def first_steps(curves: Sequence[dict[int, float]], goal: float) -> str:
    """The step at which each curve is first at the goal, as ``interval`` writes it, and how many never are."""
    first = [min((step for step, value in curve.items() if value >= goal), default=None) for curve in curves]
    reached = [step for step in first if step is not None]
    missed = f"{len(first) - len(reached)} never" if len(reached) < len(first) else ""
    return "; ".join(filter(None, [interval(reached) if reached else "", missed]))


def table(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: accuracy at thirds of the run, runs below their start, steps to 60 %, and to GRPO's last accuracy."""
    for lab in options.labs:
        yield f"\n**{lab}**\n"
        thirds = " | ".join(f"step {step}" for step in STEPS)
        yield f"| method | learning rate | seeds | {thirds} | fell | steps to 60 % | to GRPO's end | told apart |"
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for name in options.cells or MAIN:
            for learning_rate in options.learning_rates or LEARNING_RATES:
                runs = stored(lab, name, learning_rate)
                if not runs:
                    continue
                curves = [{int(step): value for step, value in r["accuracy"].items()} for r in runs]
                cells = [CELLS[name].what, f"{learning_rate:g}", str(len(runs))]
                cells += [interval([100 * curve[step] for curve in curves]) for step in STEPS]
                cells += [f"{sum(curve[300] < curve[0] for curve in curves)} of {len(runs)}", first_steps(curves, 0.6)]
                reference = "grpo" + re.sub("^.*?(-flips-.*)?$", r"\1", name)
                goals = [r["accuracy"]["300"] for r in stored(lab, reference, learning_rate)]
                cells.append(first_steps(curves, mean(goals)) if goals else "")
                apart = [run["helpful_above"]["misleading"]["credit"] for run in runs if "helpful_above" in run]
                cells.append(f"{mean(apart):.2f} ({min(apart):.2f})" if apart else "")
                yield f"| {' | '.join(cells)} |"


def sweeps(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: accuracy after 300 steps along misleading shares and wrong verdicts, and the number of seeds."""
    for kind, values in SWEEPS.items():
        yield f"\n| lab | method | learning rate | {' | '.join(values)} |"
        yield "|---|---|---|" + "---|" * len(values)
        for lab in options.labs:
            for method in SWEPT:
                for learning_rate in options.learning_rates or LEARNING_RATES:
                    found = [stored(lab, swept(method, kind, shown), learning_rate) for shown in values]
                    if sum(map(bool, found)) > 1:
                        cells = [
                            f"{interval([100 * r['accuracy']['300'] for r in runs])} ({len(runs)})" if runs else ""
                            for runs in found
                        ]
                        yield f"| {lab} | {MAIN[method].what} | {learning_rate:g} | {' | '.join(cells)} |"


def page(options: argparse.Namespace) -> None:
    """Put both tables into docs/evidence.md, between the comments that name them."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in (("table", table(options)), ("sweeps", sweeps(options))):
        first, last = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = text.partition(first)
        text = before + first + "\n".join(lines) + "\n" + last + rest.partition(last)[2]
    PAGE.write_text(text, encoding="utf-8")


def figure(options: argparse.Namespace) -> None:
    """Accuracy by step, mean and range over seeds, a panel for each lab and learning rate: an SVG."""
    import altair as alt

    names = options.cells or ["grpo", "sgsd", "worth-irrelevant", "worth", "guided"]
    points = [
        {
            "lab": f"{lab}, learning rate {learning_rate:g}",
            "method": CELLS[name].what,
            "step": int(step),
            "accuracy": 100 * share,
        }
        for lab in options.labs
        for learning_rate in options.learning_rates or LEARNING_RATES
        for name in names
        for run in stored(lab, name, learning_rate)
        for step, share in run["accuracy"].items()
    ]
    order = [what for name in names if (what := CELLS[name].what) in {point["method"] for point in points}]
    dashes = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [1, 3]]
    legend = alt.Legend(
        title=None, orient="bottom", labelLimit=400, columns=3, symbolType="stroke", symbolSize=400, symbolOpacity=1
    )
    base = alt.Chart().encode(
        alt.X("step:Q", title="optimizer step (64 rollouts each)"),
        alt.Color("method:N", scale=alt.Scale(domain=order), legend=legend),
    )
    dash = alt.StrokeDash("method:N", scale=alt.Scale(domain=order, range=dashes[: len(order)]), legend=legend)
    accuracy = alt.Y("mean(accuracy):Q", title="right, plain prompt, %", scale=alt.Scale(domain=[0, 100]))
    ranges = base.mark_area(opacity=0.18).encode(alt.Y("min(accuracy):Q"), alt.Y2("max(accuracy):Q"))
    means = base.mark_line(strokeWidth=2.2).encode(accuracy, dash)
    panels = alt.layer(ranges, means, data=alt.Data(values=points)).properties(width=250, height=190)
    titles = list(dict.fromkeys(point["lab"] for point in points))
    chart = panels.facet(
        alt.Facet("lab:N", title=None, sort=titles), columns=max(2, len(options.learning_rates or LEARNING_RATES))
    )
    chart.configure_view(stroke="#ddd").configure(background="white").save(str(options.output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "check", "table", "sweeps", "page", "figure"))
    parser.add_argument("--plan", nargs="+", choices=PLANS, help="of run: cells, rates and seeds, in order")
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="default: all")
    parser.add_argument("--labs", nargs="+", choices=LABS, default=list(LABS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--learning_rates", nargs="+", type=float, help="default: each cell's own")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--list", action="store_true", help="of run: say what would be made")
    parser.add_argument("--draw", type=int, default=0, help="of check: seed of the draw")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "lab.svg", help="of the figure")
    options = parser.parse_args()
    if options.action in ("table", "sweeps"):
        print("\n".join({"table": table, "sweeps": sweeps}[options.action](options)))
    else:
        {"run": run, "check": check, "page": page, "figure": figure}[options.action](options)


if __name__ == "__main__":
    main()
