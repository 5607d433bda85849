"""The cells of the experiments in docs/evidence.md: names, flags, stored runs, and plans for running them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "lab"
LABS = {"sharp": (1, 3), "calibrated": (2, 2)}
"""Helpful and misleading pairs per symbol in each lab, unless a cell has its own."""
LEARNING_RATES = (5e-5, 1e-4, 2e-4)
FRESH = 5
"""A seed that was not used for any choice."""


@dataclass(frozen=True)
class Cell:
    """A row of the tables, which is one setting.

    Attributes:
        what: its name.
        train, lab: flags of ``sgsd train`` and of ``sgsd lab run``.
        pairs: helpful and misleading pairs per symbol; ``None`` is ``times`` those of the lab.
        times: see ``pairs``.
        learning_rates: those of the tables.
    """

    what: str
    train: str = ""
    lab: str = ""
    pairs: tuple[int, int] | None = None
    times: int = 1
    learning_rates: tuple[float, ...] = LEARNING_RATES

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        given = self.train.split()
        return int(given[given.index("--max_steps") + 1]) if "--max_steps" in given else 300


_CORRECTION = "--objective correction --teacher frozen --grpo_weight 1 --teacher_trust"
CERTAINTY = f"{_CORRECTION} ledger"
WORTH = f"{_CORRECTION} worth --sgsd_weight 2"
CONTROL = f"{WORTH} --support_baseline control"
GUIDED = f"{CONTROL} --teacher_guidance 2"
CAUTIOUS = f"{GUIDED} --teacher_trust cautious"
IRRELEVANT: dict[str, Any] = {"lab": "--irrelevant 4", "pairs": (0, 0)}
GRPO = "--method grpo"
BY_CERTAINTY = "GRPO + correction, trust by certainty"
BY_WORTH = "GRPO + correction, trust by worth"
BESIDE_CONTROL = f"{BY_WORTH}, supports beside a control"
OTHERS = "all pairs of other problems"
RLSD = "--objective reweight --teacher frozen"
RLCSD = f"{RLSD} --support_baseline control"
PLACEBO = "--teacher frozen --grpo_weight 1"
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
    "guided-alone-irrelevant": Cell(f"correction, guided, {OTHERS}", f"{GUIDED} --grpo_weight 0", **IRRELEVANT),
    "cautious": Cell("GRPO + correction, guided, cautious trust", CAUTIOUS),
    "cautious-irrelevant": Cell(f"GRPO + correction, guided, cautious trust, {OTHERS}", CAUTIOUS, **IRRELEVANT),
    "rlsd": Cell("GRPO reweighted by teachers, gap to the student (RLSD)", RLSD),
    "rlsd-irrelevant": Cell(f"GRPO reweighted, gap to the student (RLSD), {OTHERS}", RLSD, **IRRELEVANT),
    "rlcsd": Cell("GRPO reweighted by teachers, gap to a control (RLCSD)", RLCSD),
    "rlcsd-irrelevant": Cell(f"GRPO reweighted, gap to a control (RLCSD), {OTHERS}", RLCSD, **IRRELEVANT),
    "random-tokens": Cell(
        "GRPO + correction, guided, to random tokens",
        f"{PLACEBO} --support_baseline control --sgsd_weight 2 --random_tokens true",
    ),
    "suppression": Cell(
        "GRPO + an advantage of −0.1 on failures (after OPSA)",
        f"{PLACEBO} --sgsd_weight 0.1 --suppress_failures true",
    ),
    "correction-equal": Cell("GRPO + correction, all teachers trusted alike", f"{_CORRECTION} equal"),
}
_REGIME = (
    "--use_peft true --lora_r 4 --lora_alpha 8 --lora_target_modules all-linear --lr_scheduler_type linear "
    "--max_grad_norm 0.1 --per_device_train_batch_size 16 --temperature 1.1 --top_p 0.95 --top_k 20"
)
_DOSES = (8e-5, 3.2e-4, 1.28e-3)
"""Learning rates: the published one, scaled, and 4 and 16 times as much.

AdamW changes every weight of an adapter by about the learning rate. A step therefore changes a layer's output, relative
to its input, by about alpha × rate at any width. The published values are width 2,048, r 64, alpha 128, rate 5e-6. The
lab's width is 128, which gives r 4 for the same r / width, alpha 8 for the same alpha / r, and rate 8e-5 for the same
alpha × rate.
"""


def _regime(what: str, train: str, lab: str = "", *, times: int = 1) -> dict[int, Cell]:
    """Cells of 200 and 1,000 steps, with LoRA and batch as published, and a rate that decays to 0 over all steps."""
    flags = f"{_REGIME} {train}"
    return {
        steps: Cell(what, f"{flags} --max_steps {steps}", lab, times=times, learning_rates=_DOSES)
        for steps in (200, 1000)
    }


_IN_ITS_REGIME = {
    "regime-sgsd": _regime("SGSD as published, K = 8", "--num_generations 1", times=2),
    "regime-grpo": _regime("GRPO, groups of 4", "--num_generations 4", GRPO),
    "regime-guided": _regime("GRPO + correction, guided, groups of 4", f"{GUIDED} --num_generations 4"),
}
REGIME = {
    name if steps == 200 else f"{name}-{steps}": cell
    for name, cells in _IN_ITS_REGIME.items()
    for steps, cell in cells.items()
} | {
    "regime-sgsd-unscaled": Cell(
        "SGSD as published, K = 8, LoRA r 64, alpha 128 at 5e-6",
        f"{_REGIME} --num_generations 1 --lora_r 64 --lora_alpha 128 --max_steps 200",
        times=2,
        learning_rates=(5e-6,),
    )
}
LONG = {
    f"{name}-1000": Cell(
        f"{MAIN[name].what}, 1,000 steps", f"{MAIN[name].train} --max_steps 1000".strip(), MAIN[name].lab
    )
    for name in ("grpo", "sgsd", "guided", "worth", "rlsd", "rlcsd")
}
SWEPT = ("grpo", "sgsd", "correction", "worth", "guided")
SWEEPS: dict[str, dict[str, Any]] = {
    "misleading": {f"{count} of 4 misleading": {"pairs": (4 - count, count)} for count in range(5)},
    "flips": {f"{share} % wrong": {"lab": f"--flips {share / 100:g}"} for share in (0, 10, 20, 30)},
}
"""Changes of a cell along two sweeps: misleading shares of 0 to 100 % at K = 4, and 0 to 30 % wrong verdicts."""


def swept(method: str, kind: str, shown: str) -> str:
    """The cell of a method at a point of a sweep; the method's own cell if the sweep changes nothing there."""
    plain = shown.startswith("0 %") or (method == "grpo" and kind == "misleading")
    return method if plain else f"{method}-{kind}-{shown.split()[0]}"


CELLS = (
    MAIN
    | REGIME
    | LONG
    | {
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
)


def flags(cell: Cell, lab: str, *, learning_rate: float, seed: int) -> list[str]:
    """The arguments of ``sgsd`` for the run."""
    helpful, misleading = cell.pairs or (cell.times * share for share in LABS[lab])
    shares = ["--helpful", str(helpful), "--misleading", str(misleading), "--seed", str(seed)]
    train = ["--learning_rate", f"{learning_rate:g}", *cell.train.split()]
    return ["lab", "run", lab, *shares, *cell.lab.split(), "--", *train]


def command(name: str, lab: str, learning_rate: float, seed: int) -> str:
    """The command line for the run."""
    return f"sgsd {shlex.join(flags(CELLS[name], lab, learning_rate=learning_rate, seed=seed))}"


@cache
def records() -> dict[str, dict[str, Any]]:
    """The stored runs by command. Of two runs of one command, that of the present trainer is kept."""
    lines = [line for file in sorted(RESULTS.glob("*.jsonl")) for line in file.read_text().splitlines()]
    found = sorted(map(json.loads, lines), key=is_former, reverse=True)
    return {run["command"]: run for run in found}


def is_former(run: dict[str, Any]) -> bool:
    """Whether the run is from before the rebuild of the trainer. Such runs have no times by step."""
    return "train_seconds" not in run


def stored(lab: str, name: str, learning_rate: float, *, fresh: bool = False) -> list[dict[str, Any]]:
    """The stored runs with the commands of a cell, by seed; with ``fresh``, only that of the fresh seed.

    The rebuild of the trainer changed the correction. Its former runs are returned only if there are no present ones.
    """
    typed = (command(name, lab, learning_rate, seed) for seed in ((FRESH,) if fresh else range(FRESH)))
    own = [records()[one] for one in typed if one in records()]
    return [run for run in own if not is_outdated(run)] or own


def is_outdated(run: dict[str, Any]) -> bool:
    """Whether the run is of the correction before the rebuild."""
    return is_former(run) and "--objective correction" in run["command"]


# ---- plans


@dataclass(frozen=True)
class Batch:
    """Runs of equal priority: all cells in all labs, seed by seed."""

    cells: Sequence[str]
    learning_rates: Sequence[float] = ()
    seeds: Sequence[int] = range(5)

    def runs(self, labs: Sequence[str]) -> Iterator[tuple[str, str, float, int]]:
        """Cell, lab, learning rate and seed of each run; by default with the learning rates of the cell."""
        for seed in self.seeds:
            for name in self.cells:
                for learning_rate in self.learning_rates or CELLS[name].learning_rates:
                    for lab in labs:
                        yield name, lab, learning_rate, seed


_SHARE = ("grpo", "guided", "guided-irrelevant", "guided-misleading-4")
_FAMILY = ("rlsd", "rlcsd", "random-tokens", "suppression")
_THREE = range(3)
PLANS = {
    "reduced": [
        Batch(["regime-sgsd"], _DOSES[:1], _THREE),
        Batch(["regime-sgsd"], _DOSES[1:], (0,)),
        Batch(["regime-grpo"], _DOSES, (0,)),
        Batch(_SHARE, (1e-4,), _THREE),
        Batch(_FAMILY, (1e-4,), (0,)),
        Batch(["guided"], (1e-4,), (FRESH,)),
        Batch(["random-tokens", "suppression", "rlcsd"], (1e-4,), (1,)),
        Batch(["regime-sgsd-1000"], (_DOSES[0], _DOSES[2]), (0,)),
    ],
    "regime": [
        Batch(["regime-sgsd"], _DOSES[:1]),
        Batch(["regime-grpo"], _DOSES),
        Batch(["regime-sgsd-1000"], _DOSES[:1], _THREE),
        Batch(["regime-sgsd", "regime-sgsd-1000"], _DOSES[1:], _THREE),
        Batch(["regime-grpo-1000"], _DOSES, _THREE),
        Batch(["regime-guided"], _DOSES, _THREE),
        Batch(["regime-sgsd-unscaled"], seeds=_THREE),
    ],
    "share": [
        Batch([*_SHARE, "cautious", "cautious-irrelevant"], (1e-4,)),
        Batch(["worth-control", "worth-control-irrelevant"], (1e-4,)),
        Batch(["guided-alone", "guided-alone-irrelevant"], (1e-4,)),
    ],
    "family": [
        Batch(_FAMILY, (1e-4,)),
        Batch(["rlsd-irrelevant", "rlcsd-irrelevant"], (1e-4,), _THREE),
        Batch(["grpo", "guided", "cautious", *_FAMILY], (5e-5, 2e-4)),
        Batch(["grpo", "guided", "cautious", "rlsd", "rlcsd"], LEARNING_RATES, (FRESH,)),
    ],
    "long": [Batch(list(LONG), (1e-4,), _THREE)],
}
"""Batches by plan, the most important first."""
