"""The lab experiments behind docs/evidence.md: python examples/lab/evidence.py run|table|sweeps|page|figure

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

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "lab"
PAGE = ROOT / "docs" / "evidence.md"
LABS = {"sharp": (1, 3), "calibrated": (2, 2)}
"""Variant → helpful and misleading pairs a symbol, unless a cell says otherwise."""
LEARNING_RATES = [5e-5, 1e-4, 2e-4]
STEPS = (100, 200, 300)
LEDGER_STEP = 150


@dataclass(frozen=True)
class Cell:
    """What a row of the tables is called, and its flags: of ``sgsd train``, and of ``sgsd lab run``.

    ``pairs`` are the helpful and misleading pairs a symbol, if not the lab's; ``times`` those of the lab.
    """

    what: str
    train: str = ""
    lab: str = ""
    pairs: tuple[int, int] | None = None
    times: int = 1


_CORRECTION = "--objective correction --teacher frozen --grpo_weight 1 --teacher_trust"
CERTAINTY = f"{_CORRECTION} ledger"
WORTH = f"{_CORRECTION} worth --sgsd_weight 2"
CONTROL = f"{WORTH} --support_baseline control"
GUIDED = f"{CONTROL} --teacher_guidance 2"
IRRELEVANT: dict[str, Any] = {"lab": "--irrelevant 4", "pairs": (0, 0)}
GRPO = "--method grpo"
BY_CERTAINTY = "GRPO + correction, trust by certainty"
BY_WORTH = "GRPO + correction, trust by worth"
BESIDE_CONTROL = f"{BY_WORTH}, supports beside a control"
OTHERS = "all pairs of other problems"
MAIN = {
    "grpo": Cell("GRPO", lab=GRPO),
    "grpo-beta": Cell("GRPO with a KL penalty, β = 0.04", "--beta 0.04", GRPO),
    "grpo-entropy": Cell("GRPO with an entropy bonus, coefficient 0.01", "--entropy_coef 0.01", GRPO),
    "grpo-entropy-3": Cell("GRPO with an entropy bonus, coefficient 0.03", "--entropy_coef 0.03", GRPO),
    "opsd": Cell("OPSD, reference solutions, frozen teacher", lab="--method opsd"),
    "sgsd": Cell("SGSD as published, live teacher"),
    "sgsd-frozen": Cell("SGSD, frozen teacher", "--teacher frozen"),
    "sgsd-ema": Cell("SGSD, EMA teacher", "--teacher ema"),
    "sgsd-periodic": Cell("SGSD, periodic teacher", "--teacher periodic"),
    "sgsd-no-clip": Cell("SGSD without clip and dead zone", "--support_clip 1000 --support_threshold 0"),
    "sgsd-no-gate": Cell("SGSD without gate (squared gap)", "--use_gate false"),
    "sgsd-wide-gate": Cell("SGSD, gate four times as wide (τ = 16), as steep at 0", "--gate_tau 16 --sgsd_weight 16"),
    "sgsd-no-polarity": Cell("SGSD without polarity", "--use_polarity false"),
    "sgsd-local": Cell("local support of 10 tokens", "--objective local --teacher_top_tokens 10"),
    "sgsd-control": Cell("SGSD, supports beside a control", "--support_baseline control"),
    "sgsd-k1": Cell("SGSD, K = 1", lab="--k 1"),
    "sgsd-k8": Cell("SGSD, K = 8", times=2),
    "mixed-loss": Cell("GRPO + 4 × SGSD, frozen teacher", "--teacher frozen --grpo_weight 1 --sgsd_weight 4"),
    "correction": Cell(BY_CERTAINTY, CERTAINTY),
    "correction-irrelevant": Cell(f"{BY_CERTAINTY}, {OTHERS}", CERTAINTY, **IRRELEVANT),
    "worth": Cell(BY_WORTH, WORTH),
    "worth-irrelevant": Cell(f"{BY_WORTH}, {OTHERS}", WORTH, **IRRELEVANT),
    "worth-live-irrelevant": Cell(f"{BY_WORTH}, live teacher, {OTHERS}", f"{WORTH} --teacher live", **IRRELEVANT),
    "worth-beta": Cell(f"{BY_WORTH}, KL penalty β = 0.04", f"{WORTH} --beta 0.04"),
    "worth-all": Cell(f"{BY_WORTH}, of successes too", f"{WORTH} --correct_all true"),
    "worth-live": Cell(f"{BY_WORTH}, live teacher", f"{WORTH} --teacher live"),
    "worth-alone": Cell("correction, trust by worth", f"{WORTH} --grpo_weight 0"),
    "worth-top-1": Cell(f"{BY_WORTH}, likeliest token alone", f"{WORTH} --teacher_top_tokens 1"),
    "worth-control": Cell(BESIDE_CONTROL, CONTROL),
    "worth-control-helpful": Cell(f"{BESIDE_CONTROL}, no pair misleading", CONTROL, pairs=(4, 0)),
    "worth-control-irrelevant": Cell(f"{BESIDE_CONTROL}, {OTHERS}", CONTROL, **IRRELEVANT),
    "guided": Cell("GRPO + correction, guided", GUIDED),
    "guided-1": Cell("GRPO + correction, guided, γ = 1", f"{GUIDED} --teacher_guidance 1"),
    "guided-4": Cell("GRPO + correction, guided, γ = 4", f"{GUIDED} --teacher_guidance 4"),
    "guided-alone": Cell("correction, guided", f"{GUIDED} --grpo_weight 0"),
    "guided-single": Cell("correction, guided, one rollout a problem", f"{GUIDED} --grpo_weight 0 --num_generations 1"),
    "guided-irrelevant": Cell(f"GRPO + correction, guided, {OTHERS}", GUIDED, **IRRELEVANT),
    "correction-equal": Cell("GRPO + correction, all teachers trusted alike", f"{_CORRECTION} equal"),
}
SWEPT = ("grpo", "sgsd", "correction", "worth", "guided")
SWEEPS: dict[str, dict[str, Any]] = {
    "misleading": {f"{count} of 4 misleading": {"pairs": (4 - count, count)} for count in range(5)},
    "flips": {f"{share} % wrong": {"lab": f"--flips {share / 100:g}"} for share in (0, 10, 20, 30)},
}
"""Misleading shares of 0 to 100 % at K = 4, and verdicts of which 10 to 30 % are wrong → what they change in a cell."""


def swept(method: str, kind: str, shown: str) -> str:
    """Name of the cell of a method along a sweep: the method's own where the sweep changes nothing."""
    plain = shown.startswith("0 %") or (method == "grpo" and kind == "misleading")
    return method if plain else f"{method}-{kind}-{shown.split()[0]}"


CELLS = MAIN | {
    name: Cell(
        f"{method}, {shown}",
        MAIN[method].train,
        " ".join(filter(None, (MAIN[method].lab, change.get("lab", "")))),
        change.get("pairs"),
    )
    for method in SWEPT
    for kind, values in SWEEPS.items()
    for shown, change in values.items()
    if (name := swept(method, kind, shown)) not in MAIN
}


def flags(cell: Cell, lab: str, *, learning_rate: float, seed: int) -> list[str]:
    """Arguments of ``sgsd`` that make the run."""
    helpful, misleading = cell.pairs or (cell.times * share for share in LABS[lab])
    shares = ["--helpful", str(helpful), "--misleading", str(misleading), "--seed", str(seed)]
    train = ["--learning_rate", f"{learning_rate:g}", *cell.train.split()]
    return ["lab", "run", lab, *shares, *cell.lab.split(), "--", *train]


def command(name: str, lab: str, learning_rate: float, seed: int) -> str:
    """What is typed to make the run."""
    return f"sgsd {shlex.join(flags(CELLS[name], lab, learning_rate=learning_rate, seed=seed))}"


def stored(lab: str, name: str, learning_rate: float | None = None) -> list[dict[str, Any]]:
    """The runs of a cell, by seed: those of its command, whatever cell they were made for."""
    lines = [line for file in sorted(RESULTS.glob(f"{lab}-*.jsonl")) for line in file.read_text().splitlines()]
    own = [
        run
        for run in map(json.loads, lines)
        if run["command"] == command(name, lab, run["learning_rate"], run["seed"])
        and learning_rate in (None, run["learning_rate"])
    ]
    return sorted(own, key=lambda run: run["seed"])


# ---- making runs


def make(name: str, lab: str, learning_rate: float, seed: int, commit: str) -> str:
    """Make one run and add its line."""
    arguments = flags(CELLS[name], lab, learning_rate=learning_rate, seed=seed)
    at = arguments.index("--")
    with tempfile.TemporaryDirectory() as folder:
        first = [sys.executable, "-m", "sgsd.cli", *arguments[:at], "--json", "--output", f"{folder}/run"]
        save = ["--save_strategy", "steps", "--save_steps", str(LEDGER_STEP)]  # the ledger of that step
        began = time.perf_counter()
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
    with (RESULTS / f"{lab}-{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    return f"{lab} {name} lr {learning_rate:g} seed {seed}: {100 * curve[max(curve)]:.1f} %"


def separations(run: Path) -> dict[str, dict[str, float]]:
    """Worse kind → measure → area under the ROC curve of the helpful items against it, after ``LEDGER_STEP`` steps."""
    asked = [sys.executable, "-m", "sgsd.cli", "bank", "ledger", str(run / f"checkpoint-{LEDGER_STEP}"), "--json"]
    found = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)["separation"]
    return {entry["worse"]: {name: entry[name] for name in ("credit", "support")} for entry in found}


def run(options: argparse.Namespace) -> None:
    """Make what is not stored yet: all cells of a seed before the next seed, each command once."""
    commit = git("rev-parse", "--short", "HEAD") + ("-dirty" if git("status", "--porcelain", "src") else "")
    wanted = {
        command(name, lab, learning_rate, seed): (name, lab, learning_rate, seed)
        for seed in range(options.seeds)
        for learning_rate in options.learning_rates
        for name in options.cells or CELLS
        for lab in options.labs
        if seed not in {run["seed"] for run in stored(lab, name, learning_rate)}
    }
    with ThreadPoolExecutor(options.workers) as pool:
        for said in pool.map(lambda which: make(*which, commit), wanted.values()):
            print(said, flush=True)


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
            for learning_rate in options.learning_rates:
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
                for learning_rate in options.learning_rates:
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
        for learning_rate in options.learning_rates
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
    chart = panels.facet(alt.Facet("lab:N", title=None, sort=titles), columns=max(2, len(options.learning_rates)))
    chart.configure_view(stroke="#ddd").configure(background="white").save(str(options.output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("run", "table", "sweeps", "page", "figure"))
    parser.add_argument("--cells", nargs="+", choices=CELLS, help="default: all")
    parser.add_argument("--labs", nargs="+", choices=LABS, default=list(LABS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to this, exclusive")
    parser.add_argument("--learning_rates", nargs="+", type=float, default=LEARNING_RATES)
    parser.add_argument("--workers", type=int, default=2, help="runs at once, a thread each")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "lab.svg", help="of the figure")
    options = parser.parse_args()
    if options.action in ("table", "sweeps"):
        print("\n".join({"table": table, "sweeps": sweeps}[options.action](options)))
    else:
        {"run": run, "page": page, "figure": figure}[options.action](options)


if __name__ == "__main__":
    main()
