"""The lab experiments behind docs/evidence.md: python benchmarks/lab_evidence.py run|table|sweeps|page|figure

Each run is one ``sgsd lab run``; its accuracy curve, command, commit and versions become a line of
``results/lab/LAB-CELL.jsonl``. A run whose command is in any of these files is not made again.
"""

from __future__ import annotations

import argparse
import json
import re
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
PAGE = ROOT / "docs" / "evidence.md"
LABS = {"sharp": (1, 3), "calibrated": (2, 2)}
"""Variant → helpful and misleading pairs a symbol, unless a cell says otherwise."""
_CORRECTION = ("--objective", "correction", "--teacher", "frozen", "--grpo_weight", "1", "--teacher_trust")
CORRECTION, ALIKE = ((*_CORRECTION, trust) for trust in ("ledger", "equal"))
WORTH = (*_CORRECTION, "worth", "--sgsd_weight", "2")
CONTROLLED = (*WORTH, "--support_baseline", "control")
GUIDED = (*CONTROLLED, "--teacher_guidance", "2")
SWEPT = {"grpo": (), "sgsd": (), "correction": CORRECTION, "worth": WORTH, "guided": GUIDED}
FLIPS = (0.1, 0.2, 0.3)
LEDGER_STEP = 150
ABLATIONS = ("--use_gate", "--use_polarity", "--correct_all")
"""Settings that only ``ablations.py`` takes."""


@dataclass(frozen=True)
class Cell:
    """Flags of ``sgsd lab run``, and behind the dashes of ``sgsd train``; helpful and misleading pairs a symbol.

    These are ``times`` those of the lab, unless ``pairs`` says otherwise.
    """

    lab: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    what: str = ""
    pairs: tuple[int, int] | None = None
    times: int = 1


def sgsd(*train: str, what: str, lab: tuple[str, ...] = (), times: int = 1) -> Cell:
    return Cell(lab, train, what, times=times)


def sweep_cells() -> dict[str, Cell]:
    """Misleading shares of 0 to 100 % at K = 4, and verdicts of which 10 to 30 % are wrong."""
    cells: dict[str, Cell] = {}
    for name, train in SWEPT.items():
        method = ("--method", "grpo") if name == "grpo" else ()
        for flips in FLIPS:
            what = f"{name}, {flips:.0%} of verdicts wrong"
            cells[f"{name}-flips-{flips:.0%}".rstrip("%")] = Cell((*method, "--flips", f"{flips:g}"), train, what)
        for misleading in range(5) if name != "grpo" else ():
            what = f"{name}, {misleading} of 4 pairs misleading"
            cells[f"{name}-misleading-{misleading}"] = Cell((), train, what, (4 - misleading, misleading))
    return cells


CELLS = {
    "grpo": Cell(("--method", "grpo"), (), "GRPO"),
    "grpo-beta": Cell(("--method", "grpo"), ("--beta", "0.04"), "GRPO with a KL penalty, β = 0.04"),
    "grpo-entropy": Cell(
        ("--method", "grpo"), ("--entropy_coef", "0.01"), "GRPO with an entropy bonus, coefficient 0.01"
    ),
    "grpo-entropy-3": Cell(
        ("--method", "grpo"), ("--entropy_coef", "0.03"), "GRPO with an entropy bonus, coefficient 0.03"
    ),
    "opsd": Cell(("--method", "opsd"), (), "OPSD, reference solutions, frozen teacher"),
    "sgsd": sgsd(what="SGSD as published, live teacher"),
    "sgsd-frozen": sgsd("--teacher", "frozen", what="SGSD, frozen teacher"),
    "sgsd-ema": sgsd("--teacher", "ema", what="SGSD, EMA teacher"),
    "sgsd-periodic": sgsd("--teacher", "periodic", what="SGSD, periodic teacher"),
    "sgsd-no-clip": sgsd("--support_clip", "1000", "--support_threshold", "0", what="SGSD without clip and dead zone"),
    "sgsd-no-gate": sgsd("--use_gate", "false", what="SGSD without gate (squared gap)"),
    "sgsd-wide-gate": sgsd(
        "--gate_tau", "16", "--sgsd_weight", "16", what="SGSD, gate four times as wide (τ = 16), as steep at 0"
    ),
    "sgsd-no-polarity": sgsd("--use_polarity", "false", what="SGSD without polarity"),
    "sgsd-local": sgsd("--objective", "local", "--teacher_top_tokens", "10", what="local support of 10 tokens"),
    "sgsd-control": sgsd("--support_baseline", "control", what="SGSD, supports beside a control"),
    "sgsd-k1": sgsd(lab=("--k", "1"), what="SGSD, K = 1"),
    "sgsd-k8": sgsd(times=2, what="SGSD, K = 8"),
    "mixed-loss": sgsd(
        "--teacher", "frozen", "--grpo_weight", "1", "--sgsd_weight", "4", what="GRPO + 4 × SGSD, frozen teacher"
    ),
    "correction": sgsd(*CORRECTION, what="GRPO + correction, trust by certainty"),
    "correction-irrelevant": Cell(
        ("--irrelevant", "4"), CORRECTION, "GRPO + correction, trust by certainty, all pairs of other problems", (0, 0)
    ),
    "worth": sgsd(*WORTH, what="GRPO + correction, trust by worth"),
    "worth-irrelevant": Cell(
        ("--irrelevant", "4"), WORTH, "GRPO + correction, trust by worth, all pairs of other problems", (0, 0)
    ),
    "worth-live-irrelevant": Cell(
        ("--irrelevant", "4"),
        (*WORTH, "--teacher", "live"),
        "GRPO + correction, trust by worth, live teacher, all pairs of other problems",
        (0, 0),
    ),
    "worth-beta": sgsd(*WORTH, "--beta", "0.04", what="GRPO + correction, trust by worth, KL penalty β = 0.04"),
    "worth-all": sgsd(*WORTH, "--correct_all", "true", what="GRPO + correction, trust by worth, of successes too"),
    "worth-live": sgsd(*WORTH, "--teacher", "live", what="GRPO + correction, trust by worth, live teacher"),
    "worth-alone": sgsd(*WORTH, "--grpo_weight", "0", what="correction, trust by worth"),
    "worth-top-1": sgsd(
        *WORTH, "--teacher_top_tokens", "1", what="GRPO + correction, trust by worth, likeliest token alone"
    ),
    "worth-control": sgsd(*CONTROLLED, what="GRPO + correction, trust by worth, supports beside a control"),
    "worth-control-helpful": Cell(
        (), CONTROLLED, "GRPO + correction, trust by worth, supports beside a control, no pair misleading", (4, 0)
    ),
    "worth-control-irrelevant": Cell(
        ("--irrelevant", "4"),
        CONTROLLED,
        "GRPO + correction, trust by worth, supports beside a control, all pairs of other problems",
        (0, 0),
    ),
    "guided": sgsd(*GUIDED, what="GRPO + correction, guided"),
    "guided-1": sgsd(*GUIDED, "--teacher_guidance", "1", what="GRPO + correction, guided, γ = 1"),
    "guided-4": sgsd(*GUIDED, "--teacher_guidance", "4", what="GRPO + correction, guided, γ = 4"),
    "guided-alone": sgsd(*GUIDED, "--grpo_weight", "0", what="correction, guided"),
    "guided-single": sgsd(
        *GUIDED,
        *("--grpo_weight", "0", "--num_generations", "1"),
        what="correction, guided, one rollout a problem",
    ),
    "guided-irrelevant": Cell(
        ("--irrelevant", "4"), GUIDED, "GRPO + correction, guided, all pairs of other problems", (0, 0)
    ),
    "correction-equal": sgsd(*ALIKE, what="GRPO + correction, all teachers trusted alike"),
    **sweep_cells(),
}


def flags(cell: Cell, lab: str, *, learning_rate: float, seed: int) -> list[str]:
    """Arguments of ``sgsd`` that make the run."""
    helpful, misleading = cell.pairs or (cell.times * share for share in LABS[lab])
    shares = ["--helpful", str(helpful), "--misleading", str(misleading), "--seed", str(seed)]
    return ["lab", "run", lab, *shares, *cell.lab, "--", "--learning_rate", f"{learning_rate:g}", *cell.train]


def stored(lab: str, name: str) -> list[dict[str, Any]]:
    """The runs of a cell, by seed: those of its command, whatever cell they were made for."""
    runs = [
        json.loads(line) for file in sorted(RESULTS.glob(f"{lab}-*.jsonl")) for line in file.read_text().splitlines()
    ]
    own = [run for run in runs if run["command"] == command(name, lab, run["learning_rate"], run["seed"])]
    return sorted(own, key=lambda run: run["seed"])


def command(name: str, lab: str, learning_rate: float, seed: int) -> str:
    return f"sgsd {shlex.join(flags(CELLS[name], lab, learning_rate=learning_rate, seed=seed))}"


def make(name: str, lab: str, learning_rate: float, seed: int, commit: str) -> str:
    """Make one run and add its line."""
    arguments = flags(CELLS[name], lab, learning_rate=learning_rate, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        at = arguments.index("--")
        first = [*program(arguments), *arguments[:at], "--json", "--output", f"{folder}/run"]
        began = time.perf_counter()
        save = ["--save_strategy", "steps", "--save_steps", str(LEDGER_STEP)]  # the ledger of that step
        done = subprocess.run([*first, *arguments[at:], *save], capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            return f"{lab} {name} seed {seed}: {(done.stderr.strip() or 'failed').splitlines()[-1]}"
        ledger = separations(Path(folder, "run")) if "--method" not in arguments else {}
    curve = {point["step"]: point["accuracy"] for point in map(json.loads, done.stdout.splitlines())}
    line = {
        "cell": name,
        "lab": lab,
        "learning_rate": learning_rate,
        "seed": seed,
        "command": command(name, lab, learning_rate, seed),
        "commit": commit,
        "versions": {package: version(package) for package in ("torch", "transformers", "trl")},
        "seconds": round(time.perf_counter() - began),
        "accuracy": curve,
    } | ({"helpful_above": ledger} if ledger else {})
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{lab}-{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return f"{lab} {name} lr {learning_rate:g} seed {seed}: {100 * curve[max(curve)]:.1f} %"


def program(arguments: Sequence[str]) -> list[str]:
    """What takes these arguments: ``sgsd``, or with more settings ``ablations.py``."""
    ablated = any(setting in arguments for setting in ABLATIONS)
    return [sys.executable, *([str(ROOT / "benchmarks" / "ablations.py")] if ablated else ["-m", "sgsd.cli"])]


def separations(run: Path) -> dict[str, dict[str, float]]:
    """Worse kind → measure → area under the ROC curve of the helpful items against it, after ``LEDGER_STEP`` steps."""
    asked = [sys.executable, "-m", "sgsd.cli", "bank", "ledger", str(run / f"checkpoint-{LEDGER_STEP}"), "--json"]
    found = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)["separation"]
    return {entry["worse"]: {name: entry[name] for name in ("credit", "support")} for entry in found}


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, float, int]]:
    """Runs that are not stored yet: all cells of a seed before the next seed."""
    begun: set[str] = set()
    for seed in range(options.seeds):
        for learning_rate in options.learning_rates:
            for name in options.cells or CELLS:
                for lab in options.labs:
                    made = {(run["learning_rate"], run["seed"]) for run in stored(lab, name)}
                    line = command(name, lab, learning_rate, seed)
                    if (learning_rate, seed) not in made and line not in begun:
                        begun.add(line)
                        yield name, lab, learning_rate, seed


def run(options: argparse.Namespace) -> None:
    commit = git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "src") else "")
    with ThreadPoolExecutor(options.workers) as pool:
        for said in pool.map(lambda which: make(*which, commit), list(wanted(options))):
            print(said, flush=True)


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def interval(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval over seeds; of one or two seeds, what each gave."""
    if len(values) < 3:
        return ", ".join(f"{value:.0f}" for value in values)
    half = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.0f} ± {half:.0f}"


def table(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: accuracy at thirds of the run, runs below their start, steps to 60 %, and to GRPO's last accuracy."""
    for lab in options.labs:
        yield f"\n**{lab}**\n"
        thirds = " | ".join(f"step {step}" for step in (100, 200, 300))
        yield f"| method | learning rate | seeds | {thirds} | fell | steps to 60 % | to GRPO's end | told apart |"
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for name in options.cells or [name for name in CELLS if name not in sweep_cells()]:
            for learning_rate in options.learning_rates:
                runs = [r for r in stored(lab, name) if r["learning_rate"] == learning_rate]
                if not runs:
                    continue
                curves = [{int(step): value for step, value in r["accuracy"].items()} for r in runs]
                steps = [interval([100 * curve[step] for curve in curves]) for step in (100, 200, 300)]
                fell = sum(curve[300] < curve[0] for curve in curves)
                reference = "grpo" + re.sub("^.*?(-flips-.*)?$", r"\1", name)
                goals = [r for r in stored(lab, reference) if r["learning_rate"] == learning_rate]
                reached = [first_steps(curves, 0.6)]
                reached.append(first_steps(curves, mean(r["accuracy"]["300"] for r in goals)) if goals else "")
                apart = [run["helpful_above"]["misleading"]["credit"] for run in runs if "helpful_above" in run]
                reached.append(f"{mean(apart):.2f} ({min(apart):.2f})" if apart else "")
                cells = [CELLS[name].what, f"{learning_rate:g}", str(len(runs)), *steps, f"{fell} of {len(runs)}"]
                yield "| " + " | ".join([*cells, *reached]) + " |"


def sweeps(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: accuracy after 300 steps along misleading shares and wrong verdicts, and the number of seeds."""
    for kind, values in (("misleading", range(5)), ("flips", (0, *(round(100 * flips) for flips in FLIPS)))):
        shown = [f"{value} of 4 misleading" if kind == "misleading" else f"{value} % wrong" for value in values]
        yield f"\n| lab | method | learning rate | {' | '.join(shown)} |"
        yield "|---|---|---|" + "---|" * len(shown)
        for lab in options.labs:
            for method in SWEPT:
                for learning_rate in options.learning_rates:
                    names = [
                        f"{method}-{kind}-{value}" if f"{method}-{kind}-{value}" in CELLS else method
                        for value in values
                    ]
                    found = [[r for r in stored(lab, name) if r["learning_rate"] == learning_rate] for name in names]
                    if sum(map(bool, found)) > 1:
                        cells = [
                            f"{interval([100 * r['accuracy']['300'] for r in runs])} ({len(runs)})" if runs else ""
                            for runs in found
                        ]
                        yield f"| {lab} | {CELLS[method].what} | {learning_rate:g} | {' | '.join(cells)} |"


def page(options: argparse.Namespace) -> None:
    """Put both tables into docs/evidence.md, between the comments that name them."""
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in (("table", table(options)), ("sweeps", sweeps(options))):
        first, last = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = text.partition(first)
        text = before + first + "\n".join(lines) + "\n" + last + rest.partition(last)[2]
    PAGE.write_text(text, encoding="utf-8")


def first_steps(curves: Sequence[dict[int, float]], goal: float) -> str:
    """The step at which each curve is first at the goal, as ``interval`` writes it, and how many never are."""
    first = [min((step for step, value in curve.items() if value >= goal), default=None) for curve in curves]
    reached = [step for step in first if step is not None]
    missed = f"{len(first) - len(reached)} never" if len(reached) < len(first) else ""
    return "; ".join(filter(None, [interval(reached) if reached else "", missed]))


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
        for learning_rate in options.learning_rates
        for name in names
        for run in stored(lab, name)
        if run["learning_rate"] == learning_rate
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
    chart = panels.facet(alt.Facet("lab:N", title=None, sort=titles), columns=max(2, len(options.learning_rates)))
    chart.configure_view(stroke="#ddd").configure(background="white").save(str(options.output))
    print(f"{len(points)} points in {options.output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "table", "sweeps", "page", "figure"))
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="default: all")
    parser.add_argument("--labs", nargs="+", choices=LABS, default=list(LABS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this, exclusive")
    parser.add_argument("--learning_rates", nargs="+", type=float, default=[5e-5, 1e-4, 2e-4])
    parser.add_argument("--workers", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "lab.svg", help="of the figure")
    options = parser.parse_args()
    if options.action in ("table", "sweeps"):
        print("\n".join({"table": table, "sweeps": sweeps}[options.action](options)))
    else:
        {"run": run, "page": page, "figure": figure}[options.action](options)


if __name__ == "__main__":
    main()
