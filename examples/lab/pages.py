"""The statistics, tables and answers of docs/evidence.md and results/README.md, from the stored runs."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import numpy as np
from scipy import stats

from sgsd import runfolder
from sgsd.evaluation import Estimate
from sgsd.examples.lab.cells import (
    CELLS,
    LABS,
    LEARNING_RATES,
    LONG,
    MAIN,
    REGIME,
    ROOT,
    SWEEPS,
    SWEPT,
    Cell,
    is_former,
    is_outdated,
    stored,
    swept,
)
from sgsd.report.certificate import Accuracy, Certificate, Difference, read_certificate

PAGE = ROOT / "docs" / "evidence.md"
DETAILS = ROOT / "results" / "README.md"
DEMO = ROOT / "docs" / "demo.md"
CERTIFICATES = ROOT / "results" / "internalize"
STEPS = (100, 200, 300)
PASS_AT = 8
NOT_RUN = "not run"
_Run = dict[str, Any]


# ---- arithmetic


def interval(values: Sequence[float]) -> str:
    """Mean and Student's 95 % interval over seeds; for one or two seeds, their values."""
    if len(values) < 3:
        return ", ".join(f"{value:.0f}" for value in values)
    estimate = student(values)
    return f"{estimate.mean:.0f} ± {estimate.high - estimate.mean:.0f}"


def student(values: Sequence[float]) -> Estimate:
    """Mean and Student's 95 % interval of at least two values."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return Estimate(mean(values), mean(values) - half, mean(values) + half)


def ratio_of_means(above: Sequence[float], below: Sequence[float]) -> Estimate | None:
    """Mean of ``above`` / mean of ``below``, paired by seed, with Fieller's 95 % interval.

    The interval contains each θ for which Student's test does not reject a mean of 0 for above − θ · below. The result
    is ``None`` for fewer than two pairs, and if the interval is unbounded because the test does not reject a mean of 0
    for ``below``.
    """
    n = len(above)
    if n < 2:
        return None
    x, y = float(np.mean(above)), float(np.mean(below))
    spread = float(stats.t.ppf(0.975, n - 1)) ** 2 / n * np.cov(above, below)
    a, b, c = y**2 - spread[1, 1], x * y - spread[0, 1], x**2 - spread[0, 0]
    if a <= 0:
        return None
    root = float(max(b**2 - a * c, 0.0)) ** 0.5
    return Estimate(x / y, float(b - root) / float(a), float(b + root) / float(a))


@dataclass(frozen=True)
class Share:
    """The share of a method's gain that is due to the bank, over the seeds that all three have.

    Attributes:
        gains: gain over the baseline with the true bank, per seed.
        placebo_gains: gain over the baseline with a placebo bank, per seed.
        differences: of the two gains, per seed; the baseline cancels.
        ratio: mean difference / mean gain.
    """

    gains: tuple[float, ...]
    placebo_gains: tuple[float, ...]
    differences: tuple[float, ...]
    ratio: Estimate | None


def bank_share(true: Mapping[int, float], placebo: Mapping[int, float], baseline: Mapping[int, float]) -> Share:
    """The share from accuracies by seed: with the true bank, with a placebo bank, and of the baseline."""
    seeds = sorted(true.keys() & placebo.keys() & baseline.keys())
    gains = tuple(true[seed] - baseline[seed] for seed in seeds)
    placebo_gains = tuple(placebo[seed] - baseline[seed] for seed in seeds)
    differences = tuple(gain - other for gain, other in zip(gains, placebo_gains, strict=True))
    return Share(gains, placebo_gains, differences, ratio_of_means(differences, gains))


def curve_of(run: _Run) -> dict[int, float]:
    """The accuracy by step."""
    return {int(step): value for step, value in run["accuracy"].items()}


def end_of(run: _Run) -> float:
    """Accuracy after the last step, in %."""
    curve = curve_of(run)
    return 100 * curve[max(curve)]


def mean_of(run: _Run) -> float:
    """Mean accuracy over all evaluations, in %."""
    return 100 * mean(run["accuracy"].values())


def fell(run: _Run) -> bool:
    """Whether the last accuracy is below the first."""
    curve = curve_of(run)
    return curve[max(curve)] < curve[0]


def first_at(curve: Mapping[int, float], goal: float) -> int | None:
    """The first step at which the curve reaches the goal."""
    return min((step for step, value in curve.items() if value >= goal), default=None)


def with_missing(values: Iterable[float | None]) -> str:
    """The ``interval`` of the values that are not ``None``, and the number of the others."""
    all_values = list(values)
    there = [value for value in all_values if value is not None]
    missed = f"{len(all_values) - len(there)} never" if len(there) < len(all_values) else ""
    return "; ".join(filter(None, [interval(there) if there else "", missed]))


def first_steps(curves: Sequence[Mapping[int, float]], goal: float) -> str:
    """The steps at which the curves reach the goal, and how many never do."""
    return with_missing(first_at(curve, goal) for curve in curves)


def mark(runs: Iterable[_Run]) -> str:
    """A dagger if any of the runs is outdated (``is_outdated``)."""
    return " †" if any(map(is_outdated, runs)) else ""


# ---- tables


def table(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: accuracy at thirds of the run, runs below their start, steps to 60 %, and to GRPO's last accuracy."""
    for lab in options.labs:
        yield f"\n**{lab}**\n"
        thirds = " | ".join(f"step {step}" for step in STEPS)
        yield f"| method | learning rate | seeds | {thirds} | fell | steps to 60 % | to GRPO's end | ledger, AUC |"
        yield "|---|---|---|---|---|---|---|---|---|---|"
        for name in options.cells or MAIN:
            for learning_rate in options.learning_rates or LEARNING_RATES:
                runs = stored(lab, name, learning_rate)
                if not runs:
                    continue
                curves = [curve_of(r) for r in runs]
                cells = [CELLS[name].what + mark(runs), f"{learning_rate:g}", str(len(runs))]
                cells += [interval([100 * curve[step] for curve in curves]) for step in STEPS]
                cells += [f"{sum(map(fell, runs))} of {len(runs)}", first_steps(curves, 0.6)]
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
                            f"{interval([end_of(r) for r in runs])} ({len(runs)}){mark(runs)}" if runs else ""
                            for runs in found
                        ]
                        yield f"| {lab} | {MAIN[method].what} | {learning_rate:g} | {' | '.join(cells)} |"


_SUMMARY = (
    *("grpo", "opsd", "sgsd", "rlsd", "rlcsd", "guided", "cautious"),
    *("guided-irrelevant", "random-tokens", "suppression"),
)
_RATE = 1e-4


def of_both(what: Callable[[str], str]) -> str:
    """The texts of both labs, sharp / calibrated; one text if they are equal."""
    return " / ".join(dict.fromkeys(what(lab) or "–" for lab in LABS))


def to_grpos_end(runs: Sequence[_Run], lab: str, learning_rate: float) -> list[tuple[_Run, int | None]]:
    """Each run, and the step at which it reaches GRPO's last accuracy, averaged over GRPO's seeds."""
    goals = [curve_of(run)[300] for run in stored(lab, "grpo", learning_rate)]
    return [(run, first_at(curve_of(run), mean(goals)) if goals else None) for run in runs]


def seconds_to_grpos_end(runs: Sequence[_Run], lab: str, learning_rate: float) -> str:
    """CPU seconds until the timed runs reach GRPO's last accuracy."""
    timed = to_grpos_end([run for run in runs if not is_former(run)], lab, learning_rate)
    return with_missing(None if step is None else run["cpu_seconds"][str(step)] for run, step in timed)


def summary(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: a row for each of ten methods, at one learning rate."""
    yield "| method | seeds | step 300, % | fell | steps to GRPO's end | seconds to it | pass@8, % | entropy, nats |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in _SUMMARY:
        runs = {lab: stored(lab, name, _RATE) for lab in LABS}
        both = [run for own in runs.values() for run in own]
        if not both:
            yield f"| {CELLS[name].what} | {NOT_RUN} | | | | | | |"
            continue
        cells = [
            CELLS[name].what + mark(both),
            of_both(lambda lab, runs=runs: str(len(runs[lab]))),
            of_both(lambda lab, runs=runs: interval([end_of(run) for run in runs[lab]])),
            f"{sum(map(fell, both))} of {len(both)}",
            of_both(lambda lab, runs=runs: with_missing(step for _, step in to_grpos_end(runs[lab], lab, _RATE))),
            of_both(lambda lab, runs=runs: seconds_to_grpos_end(runs[lab], lab, _RATE)),
            of_both(lambda lab, runs=runs: interval([100 * at for at in measured(runs[lab], f"pass_at_{PASS_AT}")])),
            of_both(lambda lab, runs=runs: entropy_of(runs[lab])),
        ]
        yield f"| {' | '.join(cells)} |"


def measured(runs: Iterable[_Run], name: str) -> list[Any]:
    """A field of the timed runs."""
    return [run[name] for run in runs if not is_former(run)]


def entropy_of(runs: Iterable[_Run]) -> str:
    """Entropy of the rollouts in the last 25 steps, averaged over seeds."""
    of_runs = [last["entropy"] for last in measured(runs, "last_25_steps")]
    return f"{mean(of_runs):.3f}" if of_runs else ""


def costs(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: CPU seconds of each timed cell, and its lengths, entropy and pass@8."""
    yield (
        "| lab | method | learning rate | seeds | seconds a run | seconds to GRPO's end | pass@8, % "
        "| tokens a rollout | entropy, nats |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for lab in options.labs:
        for name, cell in CELLS.items():
            for learning_rate in options.learning_rates or cell.learning_rates:
                runs = [run for run in stored(lab, name, learning_rate) if not is_former(run)]
                if runs:
                    cells = [lab, cell.what, f"{learning_rate:g}", str(len(runs))]
                    cells.append(interval([run["cpu_seconds"][str(cell.steps)] for run in runs]))
                    cells.append("" if name in REGIME else seconds_to_grpos_end(runs, lab, learning_rate))
                    cells.append(interval([100 * at for at in measured(runs, f"pass_at_{PASS_AT}")]))
                    cells.append(f"{mean(run['last_25_steps']['tokens'] for run in runs):.1f}")
                    cells.append(entropy_of(runs))
                    yield f"| {' | '.join(cells)} |"


def fell_at(run: _Run) -> int | None:
    """The step from which all accuracies are below the first; ``None`` for a run that did not fall."""
    curve = curve_of(run)
    last_above = max(step for step, value in curve.items() if value >= curve[0])
    return min((step for step in curve if step > last_above), default=None)


def endings(cells: Mapping[str, Cell], labs: Sequence[str]) -> Iterator[str]:
    """Markdown: best and last accuracy of each cell, where runs fell, and alarms of the guard."""
    yield "| lab | method | learning rate | steps | seeds | best, % | at step | end, % | fell, from step | guard |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for lab in labs:
        for name, cell in cells.items():
            for learning_rate in cell.learning_rates:
                runs = stored(lab, name, learning_rate)
                if not runs:
                    continue
                best = [max(curve_of(run).items(), key=lambda point: point[1]) for run in runs]
                falls = [step for run in runs if (step := fell_at(run)) is not None]
                alarms = [f"step {run['guard']['step']}" for run in runs if run["guard"]]
                shown = [lab, cell.what, f"{learning_rate:g}", str(cell.steps), str(len(runs))]
                shown += [interval([100 * value for _, value in best]), interval([step for step, _ in best])]
                shown += [interval([end_of(run) for run in runs])]
                shown += [f"{len(falls)} of {len(runs)}" + (f": {', '.join(map(str, falls))}" if falls else "")]
                shown += [", ".join(alarms) or "silent"]
                yield f"| {' | '.join(shown)} |"


def regime(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: the published form and GRPO with LoRA, batch, sampling and schedule as published."""
    return endings(REGIME, options.labs)


def longer(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: 1,000 steps of the lab's own settings."""
    return endings(LONG, options.labs)


def fresh(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: a row per run of the fresh seed."""
    yield "| lab | method | learning rate | lowest, % | end, % | steps to GRPO's end | seconds to it |"
    yield "|---|---|---|---|---|---|---|"
    for lab in options.labs:
        for name, cell in MAIN.items():
            for learning_rate in options.learning_rates or cell.learning_rates:
                for run in stored(lab, name, learning_rate, fresh=True):
                    cells = [lab, cell.what + mark([run]), f"{learning_rate:g}"]
                    cells += [f"{100 * min(curve_of(run).values()):.1f}", f"{end_of(run):.1f}"]
                    cells.append(with_missing(step for _, step in to_grpos_end([run], lab, learning_rate)))
                    cells.append(seconds_to_grpos_end([run], lab, learning_rate))
                    yield f"| {' | '.join(cells)} |"


_PLACEBOS = {"irrelevant": "pairs of other problems", "misleading-4": "misleading pairs alone"}
_MEASURES = {
    "step 100": lambda run: 100 * curve_of(run)[100],
    "step 300": end_of,
    "mean of all steps": mean_of,
}


def share_of(lab: str, name: str, placebo: str, of: Callable[[_Run], float] = end_of) -> tuple[Share, list[_Run]]:
    """The share of a method's gain that is due to the bank in a lab, and the runs behind it."""
    runs = [stored(lab, cell, _RATE) for cell in (name, f"{name}-{placebo}", "grpo")]
    found = bank_share(*({run["seed"]: of(run) for run in own} for own in runs))
    return found, [run for own in runs for run in own]


def share(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: gains over GRPO of the same seed with the bank and with placebos, and their difference."""
    yield (
        "| lab | method | placebo | measured | seeds | gain, the lab's bank | gain, placebo | difference "
        "| share of the gain |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    methods = [name for name in MAIN if any(f"{name}-{placebo}" in CELLS for placebo in _PLACEBOS)]
    for lab in options.labs:
        for name in methods:
            for placebo, shown in _PLACEBOS.items():
                for measure, of in _MEASURES.items():
                    if f"{name}-{placebo}" in CELLS:
                        found, runs = share_of(lab, name, placebo, of)
                        if found.gains:
                            cells = [lab, CELLS[name].what + mark(runs), shown, measure, str(len(found.gains))]
                            cells += [points(found.gains), points(found.placebo_gains), points(found.differences)]
                            cells.append(percent(found.ratio))
                            yield f"| {' | '.join(cells)} |"


def points(values: Sequence[float]) -> str:
    """Mean and Student's interval, in points; for one or two seeds, their values."""
    if len(values) < 3:
        return ", ".join(f"{value:+.1f}" for value in values).replace("-", "−")
    estimate = student(values)
    return f"{estimate.mean:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}]".replace("-", "−")


def percent(ratio: Estimate | None) -> str:
    """A share and its interval."""
    if ratio is None:
        return "without bounds"
    return f"{100 * ratio.mean:.0f} % [{100 * ratio.low:.0f}, {100 * ratio.high:.0f}]".replace("-", "−")


# ---- answers


def ends(lab: str, name: str, learning_rate: float = _RATE) -> str:
    """The last accuracy of a cell as a text, over seeds."""
    runs = stored(lab, name, learning_rate)
    return f"{interval([end_of(run) for run in runs])} %{mark(runs)}" if runs else NOT_RUN


def best_rate(lab: str, name: str) -> float:
    """The learning rate of a cell with the highest mean last accuracy; the first one if none was run."""
    rates = [rate for rate in CELLS[name].learning_rates if stored(lab, name, rate)]
    return max(
        rates or CELLS[name].learning_rates[:1],
        key=lambda rate: mean([end_of(run) for run in stored(lab, name, rate)] or [0]),
    )


def of_the_bank(name: str, what: str) -> str:
    """A sentence on the share of a method's gain that is due to the bank."""
    found = {lab: share_of(lab, name, "irrelevant") for lab in LABS}
    if not all(share.gains for share, _ in found.values()):
        return f"{what}: {NOT_RUN}."
    ends = {lab: share for lab, (share, _) in found.items()}
    along = {lab: share_of(lab, name, "irrelevant", mean_of)[0] for lab in LABS}
    return (
        f"{what} gains {of_both(lambda lab: points(ends[lab].gains))} points over GRPO by step 300, and "
        f"{of_both(lambda lab: points(ends[lab].placebo_gains))} with pairs of other problems in place of the bank, "
        f"at most {of_both(lambda lab: f'{largest_gap(lab, name):.1f}')} points from GRPO at any evaluation: "
        f"**the bank's share is {of_both(lambda lab: percent(ends[lab].ratio))}**; in the mean of all steps it is "
        f"{of_both(lambda lab: percent(along[lab].ratio))} ({of_both(lambda lab: str(len(ends[lab].gains)))} seeds"
        f"{mark(run for _, runs in found.values() for run in runs)})."
    )


def largest_gap(lab: str, name: str) -> float:
    """The largest difference in points between a method with pairs of other problems and GRPO of the same seed."""
    grpo = {run["seed"]: curve_of(run) for run in stored(lab, "grpo", _RATE)}
    return max(
        100 * abs(value - grpo[run["seed"]][step])
        for run in stored(lab, f"{name}-irrelevant", _RATE)
        if run["seed"] in grpo
        for step, value in curve_of(run).items()
    )


def placebos() -> str:
    """A sentence on the last accuracies of placebos and related methods."""
    shown = {
        "a teacher of random tokens": "random-tokens",
        "a fixed negative advantage on failures": "suppression",
        "RLSD": "rlsd",
        "RLCSD": "rlcsd",
        "GRPO": "grpo",
    }
    said = [f"{what} {of_both(lambda lab, name=name: ends(lab, name))}" for what, name in shown.items()]
    return f"Sharp / calibrated at step 300: {'; '.join(said)}."


def of_the_regime(lab: str) -> str:
    """A sentence on SGSD as published with the published LoRA, batch, sampling and schedule."""
    runs = stored(lab, "regime-sgsd", REGIME["regime-sgsd"].learning_rates[0])
    if not runs:
        return f"{lab.capitalize()} lab: {NOT_RUN}."
    (published, *doses), rate = REGIME["regime-sgsd"].learning_rates, best_rate(lab, "regime-grpo")
    higher = "; ".join(f"{dose / published:.0f} times the rate {ends(lab, 'regime-sgsd', dose)}" for dose in doses)
    on = stored(lab, "regime-sgsd-1000", published)
    beyond = f"{interval(list(map(end_of, on)))} %, {sum(map(fell, on))} of {len(on)} fell"
    start, fallen = 100 * curve_of(runs[0])[0], sum(map(fell, runs))
    return (
        f"{lab.capitalize()} lab: **after its 200 steps it is at {interval(list(map(end_of, runs)))} %**, from "
        f"{start:.1f}, and {fallen} of {len(runs)} runs fell ({higher}); GRPO with as many rollouts at "
        f"{ends(lab, 'regime-grpo', rate)} (its best of three rates, {rate:g}); after 1,000 steps: "
        f"{beyond if on else NOT_RUN}."
    )


def certificates(name: str) -> list[Certificate]:
    """The stored certificates of a document, by seed."""
    return [read_certificate(file) for file in sorted(CERTIFICATES.glob(f"{name}-*.json"))]


def accuracy(found: Accuracy | None) -> str:
    """An accuracy in %, with its interval."""
    if found is None:
        return "–"
    low, high = (100 * end for end in found.ci95)
    return f"{100 * found.accuracy:.1f} % ({low:.0f} to {high:.0f})"


def difference(found: Difference | None) -> str:
    """A difference in points, with its interval."""
    if found is None:
        return "–"
    low, high = (100 * end for end in found.ci95)
    return f"{100 * found.mean:+.1f} ({low:+.1f} to {high:+.1f})".replace("-", "−")


def internalized(name: str) -> Iterator[str]:
    """Markdown: a row per certificate of a document."""
    yield "| seed | before | with retrieved rule | GRPO | after | after − GRPO, points | gain kept | sums | seconds |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for made in certificates(name):
        of, kept, retained = made.accuracy, made.kept, made.retention
        cells = [str(made.training.seed), accuracy(of.before), accuracy(of.with_document), accuracy(of.grpo)]
        cells += [accuracy(of.after), difference(made.differences.after_grpo)]
        low, high = (100 * end for end in kept.ci95)
        cells += [f"{100 * kept.share:.0f} % ({low:.0f} to {high:.0f})"]
        cells += [f"{100 * retained.before.accuracy:.0f} → {100 * retained.after.accuracy:.0f} %"]
        cells += [f"{made.seconds['total']:,.0f}"]
        yield f"| {' | '.join(cells)} |"


def of_documents() -> str:
    """A sentence per model on ``sgsd internalize``."""

    def said(name: str, what: str) -> str:
        made = certificates(name)
        after = [100 * one.accuracy.after.accuracy for one in made]
        lost = [100 * one.retention.difference.mean for one in made]
        shown = 100 * mean(one.accuracy.with_document.accuracy for one in made)
        before = 100 * mean(one.accuracy.before.accuracy for one in made)
        ends = " and ".join((", ".join(f"{value:.1f}" for value in after)).rsplit(", ", 1))
        least, most = (f"{value:+.0f}".replace("-", "−") for value in (min(lost), max(lost)))
        return (
            f"{what}: **its accuracy on held-out tasks with the plain prompt rises from {before:.0f} to {ends} %**; "
            f"with the retrieved rule in the prompt it was {shown:.1f} % before training. Accuracy on sums changes by "
            f"{least} to {most} points."
        )

    return " ".join(
        (
            said("conventions", "Qwen2.5-Coder-0.5B learns an AGENTS.md of 30 rules in 36 steps"),
            said("demo", "SmolLM2-135M learns a SKILL.md of 12 rules"),
        )
    )


def of_real_models() -> str:
    """Two sentences on SmolLM2-135M, from results/smollm2."""

    def rows(name: str) -> list[dict[str, Any]]:
        found = runfolder.read_json(ROOT / "results" / "smollm2" / f"{name}.json")["compared"]["rows"]
        return list(found)

    def shown(row: dict[str, Any]) -> str:
        cell = row["cells"]["test"]
        return f"{100 * cell['mean']:.1f} % [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"

    knows = {row["method"]: row for row in rows("house-rules-130")}
    general = {row["method"]: row for row in (*rows("comparison"), *rows("worth"))}
    guided, grpo = knows["sgsd"], knows["grpo"]
    return (
        "SmolLM2-135M on 72 questions, with a bank that holds what the model cannot know: "
        f"**guided correction {shown(guided)}** ({len(guided['seeds'])} seeds), GRPO {shown(grpo)} "
        f"({len(grpo['seeds'])}), before training {shown(knows['base'])}. With a general bank on word problems it "
        f"equals GRPO: {shown(general['sgsd'])}, {shown(general['grpo'])}."
    )


def the_bank() -> str:
    """The answer on the share of the gain that is due to the bank."""
    ratios = {}
    for name in ("guided", "cautious"):
        found = {lab: share_of(lab, name, "irrelevant")[0] for lab in LABS}
        if not all(share.gains for share in found.values()):
            return f"{NOT_RUN.capitalize()}."
        ratios[name] = [percent(share.ratio) for share in found.values()]
        seeds = of_both(lambda lab, found=found: str(len(found[lab].gains)))
    (sharp, calibrated), cautious = ratios["guided"], " and ".join(ratios["cautious"])
    return (
        f"**The bank's share of guided correction's gain over GRPO at step 300 is {sharp} in the sharp lab and "
        f"{calibrated} in the calibrated lab. With `teacher_trust: cautious` it is {cautious}** ({seeds} seeds). The "
        "rest is what pairs of other problems in the teachers' prompts gain."
    )


def the_regime() -> str:
    """The answer on SGSD as published in its own regime."""
    rate = REGIME["regime-sgsd"].learning_rates[0]
    runs = {lab: stored(lab, "regime-sgsd", rate) for lab in LABS}
    every = [run for own in runs.values() for run in own]
    if not all(runs.values()):
        return f"{NOT_RUN.capitalize()}."
    ended = " and ".join(f"{interval(list(map(end_of, own)))} % ({lab})" for lab, own in runs.items())
    grpo = " and ".join(ends(lab, "regime-grpo", best_rate(lab, "regime-grpo")) for lab in LABS)
    said = (
        f"**With the paper's LoRA, batch, sampling and schedule SGSD as published is at {ended} after 200 steps, from "
        f"{100 * curve_of(every[0])[0]:.1f} %; GRPO with as many rollouts at {grpo}.** {sum(map(fell, every))} of "
        f"{len(every)} runs ended below their start."
    )
    on = [stored(lab, "regime-sgsd-1000", rate) for lab in LABS]
    if not all(on):
        return said
    longer = " and ".join(f"{interval(list(map(end_of, own)))} % ({len(own)} seeds)" for own in on)
    longer = longer.replace("(1 seeds)", "(one seed)")
    return f"{said} The learning rate is scaled to the lab. After 1,000 steps it is at {longer}."


def the_models() -> str:
    """The answer on models that people use."""

    def said(name: str, what: str) -> str:
        found = [made.accuracy for made in certificates(name)]
        worst = min(found, key=lambda of: of.after.accuracy)
        before = 100 * mean(of.before.accuracy for of in found)
        return f"{what}: {before:.0f} % before, {accuracy(worst.after)} after in the worst of {len(found)} seeds"

    return (
        f"**{said('conventions', 'Qwen2.5-Coder-0.5B and an AGENTS.md of 30 rules')}; "
        f"{said('demo', 'SmolLM2-135M and a SKILL.md of 12 rules')}** (held-out tasks right with the plain prompt). "
        "Both forget some sums. Nothing larger was run, and nothing on a GPU."
    )


def answers(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: three objections and their answers."""
    for objection, said in {
        "Is it the bank, or just any regulariser?": the_bank(),
        "You ran the published form outside its regime.": the_regime(),
        "It is a toy.": the_models(),
    }.items():
        yield ""
        yield from textwrap.wrap(f"**“{objection}”** {said}", 112, break_on_hyphens=False)
    yield ""


def details(options: argparse.Namespace) -> Iterator[str]:
    """Markdown: a list of the figures behind the answers."""
    yield ""
    for said in (
        of_the_bank("guided", "In the sharp / calibrated lab guided correction"),
        of_the_bank("cautious", "With `teacher_trust: cautious` it"),
        placebos(),
        *map(of_the_regime, LABS),
        of_documents(),
        of_real_models(),
    ):
        yield from textwrap.wrap(said, 112, break_on_hyphens=False, initial_indent="- ", subsequent_indent="  ")
    yield ""


TABLES: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
    "answers": answers,
    "details": details,
    "summary": summary,
    "table": table,
    "regime": regime,
    "longer": longer,
    "fresh": fresh,
    "share": share,
    "costs": costs,
    "sweeps": sweeps,
    "conventions": lambda options: internalized("conventions"),
    "demo": lambda options: internalized("demo"),
}
"""The printed texts by name. On the pages, each is between comments with its name."""


def printed(name: str, options: argparse.Namespace) -> str:
    """A table or the answers; ``Not run.`` for a table without rows."""
    lines = list(TABLES[name](options))
    is_empty = len(lines) == 2  # head and rule
    return "Not run." if is_empty else "\n".join(lines)


def fill(text: str, blocks: Mapping[str, str]) -> str:
    """Replace each block of the text, from ``<!-- name -->`` to ``<!-- end of name -->``."""
    block = re.compile(r"(?s)(<!-- (\w+) -->\n).*?(<!-- end of \2 -->)")
    return block.sub(lambda found: f"{found[1]}\n{blocks[found[2]].strip()}\n\n{found[3]}", text)


def page(options: argparse.Namespace) -> None:
    """Update the answers and tables in the pages."""
    blocks = {name: printed(name, options) for name in TABLES}
    for file in (PAGE, DETAILS, DEMO):
        file.write_text(fill(file.read_text(encoding="utf-8"), blocks), encoding="utf-8")


def figure(options: argparse.Namespace) -> None:
    """Draw an SVG of the accuracy by step: mean and range over seeds, a panel per lab and learning rate."""
    import altair as alt

    names = options.cells or ["grpo", "sgsd", "rlsd", "rlcsd", "guided-irrelevant", "cautious", "guided"]
    rates = options.learning_rates or [_RATE]
    points = [
        {
            "lab": f"{lab}, learning rate {learning_rate:g}",
            "method": CELLS[name].what,
            "step": int(step),
            "accuracy": 100 * share,
        }
        for lab in options.labs
        for learning_rate in rates
        for name in names
        for run in stored(lab, name, learning_rate)
        for step, share in run["accuracy"].items()
    ]
    order = [what for name in names if (what := CELLS[name].what) in {point["method"] for point in points}]
    dashes = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3], [12, 3], [1, 3], [4, 1]]
    legend = alt.Legend(
        title=None, orient="bottom", labelLimit=400, columns=1, symbolType="stroke", symbolSize=400, symbolOpacity=1
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
    chart = panels.facet(alt.Facet("lab:N", title=None, sort=titles), columns=max(2, len(rates)))
    chart.configure_view(stroke="#ddd").configure(background="white").save(str(options.output))
